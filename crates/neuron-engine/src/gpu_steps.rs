//! Steps on a GPU: one upload, a captured step where one fits, the draw where the logits are, and tokens that the next step finds there.

use std::collections::HashMap;

use candle_core::{Device, Result, Tensor, bail};
use neuron_kernels::sampling::{Drawn, Fault, Outcome, Row, Sampler};
use neuron_kernels::{Delivery, Inbox, Outbox, StepGraphs, resolve_ids};

use crate::batch::{Asked, Batch};
use crate::cache::kv_cache::LayerCaches;
use crate::device::command::StepOutcome;
use crate::error::DeviceError;
use crate::models::{CausalLm, Visual};
use crate::sampler::{SampleError, Sampled};
use crate::sequence::SequenceMap;
use crate::step_tensors::Layout;

/// What a GPU keeps from step to step.
#[derive(Default)]
pub(crate) struct GpuSteps {
    graphs: StepGraphs,
    /// Where the numbers of captured steps go; each capture reads its own.
    inboxes: HashMap<Layout, Inbox>,
    /// Where those of all other steps go.
    inbox: Inbox,
    outbox: Outbox,
    sampler: Sampler,
    /// What the last step drew, on the device, and which sequence's token is where.
    tokens: Option<Tensor>,
    rows: SequenceMap<u32>,
}

impl GpuSteps {
    /// The logits of the rows that draw, `[R, V]`.
    pub(crate) fn forward(
        &mut self,
        lm: &dyn CausalLm,
        batch: &Batch,
        rows: &SequenceMap<u32>,
        visual: Option<Visual>,
        caches: &LayerCaches,
        device: &Device,
    ) -> Result<Tensor> {
        let exact = Layout::of(batch);
        let captured = if visual.is_none() { exact.captured() } else { None };
        let layout = captured.unwrap_or(exact);
        let Some(words) = layout.pack(batch, rows) else { bail!("a token that this step starts from was not drawn") };
        let inbox = captured.map_or(&mut self.inbox, |layout| self.inboxes.entry(layout).or_default());
        let input = layout.view(&inbox.put(&words, device)?, batch.block_size, visual)?;
        if let (Some(tokens), true) = (&self.tokens, batch.pending().next().is_some()) {
            resolve_ids(&input.ids, tokens)?;
        }
        let step = || lm.forward(&input, caches);
        match captured {
            Some(layout) => self.graphs.run((layout.sequences, layout.table_width), device, step)?.narrow(0, 0, batch.sequences.len()),
            None => step(),
        }
    }

    /// Which of the tokens drawn last belongs to which sequence; after this, none does until the next draw.
    pub(crate) fn take_rows(&mut self) -> SequenceMap<u32> {
        std::mem::take(&mut self.rows)
    }

    /// Queues the draw of a token for each row.
    pub(crate) fn draw(&mut self, batch: &Batch, logits: &Tensor) -> Result<DrawnRows> {
        let rows: Vec<Row> = batch.asked().map(|(_, how)| how.row().on_device()).collect();
        let outcome = self.sampler.draw(logits, &rows)?;
        let asked: Vec<Asked> = batch.asked().map(|(asked, _)| asked).collect();
        self.tokens = Some(outcome.tokens()?);
        self.rows = asked.iter().zip(0..).filter(|(asked, _)| !asked.scores).map(|(asked, row)| (asked.id, row)).collect();
        Ok(DrawnRows { asked, outcome })
    }

    /// Sends what was drawn to the host.
    pub(crate) fn send(&mut self, drawn: DrawnRows) -> Result<DrawnTokens> {
        Ok(DrawnTokens { delivery: self.outbox.send(drawn.outcome.words())?, drawn })
    }
}

/// The tokens of a step on the device.
pub(crate) struct DrawnRows {
    asked: Vec<Asked>,
    outcome: Outcome,
}

/// The tokens of a step on their way to the host.
pub(crate) struct DrawnTokens {
    drawn: DrawnRows,
    delivery: Delivery,
}

impl DrawnTokens {
    /// Waits for them.
    pub(crate) fn wait(self) -> StepOutcome {
        let DrawnRows { asked, outcome } = self.drawn;
        let words = self.delivery.wait();
        let rows = words.and_then(|words| outcome.read(&words)).map_err(|error| DeviceError::Step(error.to_string()))?;
        let token = |(asked, row): (Asked, std::result::Result<Drawn, Fault>)| match row {
            Ok(drawn) => Ok((asked, Sampled::from(drawn))),
            Err(fault) => Err(DeviceError::Step(SampleError::from(fault).to_string())),
        };
        asked.into_iter().zip(rows).map(token).collect()
    }
}
