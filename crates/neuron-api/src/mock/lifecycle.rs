//! Loading and unloading in the mock: single flight, generations, memory, and the faults of a load.

use cortex_core::{HarnessError, ModelId, ModelReport, ModelSpec, ModelStatus, UnloadRequest};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::time::{Instant, sleep};

use super::MockNeuron;

/// A load or unload under way; all who ask for the same wait for the same.
#[derive(Clone, Debug)]
pub(super) struct Transition {
    kind: Kind,
    done: Shared<BoxFuture<'static, Result<(), HarnessError>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Load,
    Unload,
}

pub(super) async fn load(mock: &MockNeuron, spec: ModelSpec) -> Result<ModelReport, HarnessError> {
    reach(mock, &spec.model_id, spec.generation, Kind::Load).await?;
    Ok(mock.state().slot(&spec.model_id)?.report())
}

pub(super) async fn unload(mock: &MockNeuron, request: UnloadRequest) -> Result<(), HarnessError> {
    reach(mock, &request.model_id, request.generation, Kind::Unload).await
}

async fn reach(mock: &MockNeuron, id: &ModelId, generation: Option<u64>, wanted: Kind) -> Result<(), HarnessError> {
    accept_generation(mock, id, generation, wanted)?;
    loop {
        let Some(transition) = begin_or_join(mock, id, wanted)? else { return Ok(()) };
        let outcome = transition.done.await;
        if transition.kind == wanted {
            return outcome;
        }
    }
}

fn accept_generation(mock: &MockNeuron, id: &ModelId, given: Option<u64>, wanted: Kind) -> Result<(), HarnessError> {
    let mut state = mock.state();
    let current = state.generation;
    let slot = state.slot(id)?;
    let Some(given) = given else { return Ok(()) };
    let again = given == current && (given, Some(wanted)) == (slot.generation, slot.wanted);
    if given <= current && !again {
        return Err(HarnessError::StaleGeneration { given, current });
    }
    (slot.generation, slot.wanted) = (given, Some(wanted));
    state.generation = given;
    Ok(())
}

/// The transition to wait for; `None` when the model already stands where it should.
fn begin_or_join(mock: &MockNeuron, id: &ModelId, wanted: Kind) -> Result<Option<Transition>, HarnessError> {
    let mut state = mock.state();
    let used = state.memory_used_bytes();
    let slot = state.slot(id)?;
    if let Some(transition) = &slot.transition {
        return Ok(Some(transition.clone()));
    }
    let loaded = slot.status == ModelStatus::Loaded;
    if loaded == (wanted == Kind::Load) {
        return Ok(None);
    }
    let (model, mock) = (slot.model.clone(), mock.clone());
    let work: BoxFuture<'static, Result<(), HarnessError>> = match wanted {
        Kind::Load => {
            mock.count(|counts| counts.loads_started += 1);
            if let Some(reason) = refusal(&model, used, mock.node.memory_total_bytes) {
                slot.status = ModelStatus::Failed { reason: reason.clone() };
                mock.count(|counts| counts.loads_failed += 1);
                return Err(HarnessError::CannotLoad { model: id.clone(), reason });
            }
            slot.status = ModelStatus::Loading { percent: 0 };
            run_load(mock, model).boxed()
        }
        Kind::Unload => {
            slot.status = ModelStatus::Unloading;
            run_unload(mock, model).boxed()
        }
    };
    let task = tokio::spawn(work); // goes on when those who wait for it leave
    let done = async { task.await.unwrap_or_else(|error| Err(HarnessError::Internal(error.to_string()))) }.boxed().shared();
    let transition = Transition { kind: wanted, done };
    slot.transition = Some(transition.clone());
    Ok(Some(transition))
}

fn refusal(model: &super::MockModel, used_bytes: u64, total_bytes: u64) -> Option<String> {
    let free_bytes = total_bytes.saturating_sub(used_bytes);
    let too_large = (model.memory_bytes > free_bytes).then(|| format!("it needs {} bytes and {free_bytes} are free", model.memory_bytes));
    model.faults.refuse_load.clone().or(too_large)
}

async fn run_load(mock: MockNeuron, model: super::MockModel) -> Result<(), HarnessError> {
    let started = Instant::now();
    sleep(model.load_time).await;
    let mut state = mock.state();
    let slot = state.slot(&model.id)?;
    slot.transition = None;
    if slot.model.faults.fail_loads > 0 {
        slot.model.faults.fail_loads -= 1;
        let reason = "the mock was told to fail".to_owned();
        slot.status = ModelStatus::Failed { reason: reason.clone() };
        mock.count(|counts| counts.loads_failed += 1);
        return Err(HarnessError::CannotLoad { model: model.id, reason });
    }
    slot.status = ModelStatus::Loaded;
    slot.load_s = Some(started.elapsed().as_secs_f64());
    mock.count(|counts| counts.loads += 1);
    Ok(())
}

/// Drains first: `active` of the slot falls as the generations end.
async fn run_unload(mock: MockNeuron, model: super::MockModel) -> Result<(), HarnessError> {
    loop {
        let mut ended = std::pin::pin!(mock.node.ended.notified());
        ended.as_mut().enable();
        if mock.state().slot(&model.id)?.active == 0 {
            break;
        }
        ended.await;
    }
    sleep(model.unload_time).await;
    let mut state = mock.state();
    let slot = state.slot(&model.id)?;
    slot.transition = None;
    slot.status = ModelStatus::Available;
    mock.count(|counts| counts.unloads += 1);
    Ok(())
}
