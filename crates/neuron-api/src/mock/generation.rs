//! One scripted generation: admission, the faults, the tokens, and what its end counts.

use std::sync::Arc;

use cortex_core::{
    Capability, EventStream, FinishReason, GenerateEvent, GenerateRequest, HarnessError, ModelId, Prompt, TokenLogprob, Usage,
};
use futures::StreamExt;
use tokio::time::sleep;

use super::{MockModel, MockNeuron, REQUESTS_KEPT, Said, script};

/// What a generation will say, decided at admission.
struct Plan {
    said: Vec<Said>,
    reason: FinishReason,
    stop: Option<String>,
    usage: Usage,
}

impl Plan {
    fn new(model: &MockModel, request: &GenerateRequest) -> Result<Self, HarnessError> {
        let prompt_tokens = script::tokens(&request.prompt).len();
        if prompt_tokens >= model.context {
            return Err(HarnessError::ContextLength { prompt_tokens, context: model.context });
        }
        let whole = model.answer.tokens(&request.prompt);
        let tokens_max = request.max_tokens.map_or(usize::MAX, |max| max as usize).min(model.context - prompt_tokens);
        let cut_by_length: Vec<Said> = whole.iter().take(tokens_max).cloned().collect();
        let (said, stop) = until_stop(cut_by_length, &request.stop);
        let reason = match said.iter().any(|said| matches!(said, Said::ToolCall { .. })) {
            _ if stop.is_none() && said.len() < whole.len() => FinishReason::Length,
            true => FinishReason::ToolCalls,
            false => FinishReason::Stop,
        };
        let prompt_tokens = prompt_tokens as u32;
        let thoughts = said.iter().filter(|said| matches!(said, Said::Reasoning(_))).count();
        let usage = Usage {
            prompt_tokens,
            cached_tokens: model.cached_tokens.min(prompt_tokens),
            completion_tokens: said.len() as u32,
            reasoning_tokens: thoughts as u32,
        };
        Ok(Self { said, reason, stop, usage })
    }
}

/// The tokens before the first stop text, and that text; a token that the stop text starts in keeps its beginning.
fn until_stop(mut said: Vec<Said>, stops: &[String]) -> (Vec<Said>, Option<String>) {
    let text: String = said.iter_mut().filter_map(|said| said.text()).map(|text| text.as_str()).collect();
    let first = stops.iter().filter_map(|stop| Some((text.find(stop.as_str())?, stop))).min();
    let Some((end, stop)) = first else { return (said, None) };
    let mut left = end;
    let mut kept = Vec::new();
    for mut token in said {
        if left == 0 {
            break;
        }
        if let Some(text) = token.text() {
            text.truncate(left); // `find` gives a character's start, so the cut is between characters
            left -= text.len();
        }
        kept.push(token);
    }
    (kept, Some(stop.clone()))
}

pub(super) async fn start(mock: &MockNeuron, request: GenerateRequest) -> Result<EventStream, HarnessError> {
    if mock.state().slots.get(&request.model).is_some_and(|slot| slot.model.faults.hang_admission) {
        std::future::pending::<()>().await;
    }
    let admitted = admit(mock, &request);
    if admitted.is_err() {
        mock.count(|counts| counts.refused += 1);
    }
    let (model, plan) = admitted?;
    let running = Running { mock: mock.clone(), id: request.model.clone(), ended: false };
    Ok(events(running, model, plan, &request))
}

fn admit(mock: &MockNeuron, request: &GenerateRequest) -> Result<(MockModel, Plan), HarnessError> {
    let mut state = mock.state();
    if state.requests.len() == REQUESTS_KEPT {
        state.requests.pop_front();
    }
    state.requests.push_back(request.clone());
    if !state.ready {
        return Err(HarnessError::ShuttingDown);
    }
    let active: usize = state.slots.values().map(|slot| slot.active).sum();
    let slot = state.serving(&request.model, Capability::Chat)?;
    if let Some(retry_after_s) = slot.model.faults.overloaded {
        return Err(HarnessError::Overloaded { message: "the mock was told so".into(), retry_after_s });
    }
    if active >= mock.node.active_max {
        return Err(HarnessError::Overloaded { message: format!("all {} places are taken", mock.node.active_max), retry_after_s: 1 });
    }
    let plan = Plan::new(&slot.model, request)?;
    slot.active += 1;
    slot.prompt_tokens_total += u64::from(plan.usage.prompt_tokens);
    mock.count(|counts| {
        counts.generations += 1;
        counts.active += 1;
        counts.active_peak = counts.active_peak.max(counts.active);
    });
    Ok((slot.model.clone(), plan))
}

/// A place taken; given back when dropped, and counted as cancelled unless the end was reached.
struct Running {
    mock: MockNeuron,
    id: ModelId,
    ended: bool,
}

impl Running {
    fn count_token(&self) {
        if let Some(slot) = self.mock.state().slots.get_mut(&self.id) {
            slot.generated_tokens_total += 1;
        }
    }

    fn end(&mut self, change: impl FnOnce(&mut super::MockCounts)) {
        self.ended = true;
        self.mock.count(change);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(slot) = self.mock.state().slots.get_mut(&self.id) {
            slot.active -= 1;
        }
        self.mock.count(|counts| {
            counts.active -= 1;
            counts.cancelled += usize::from(!self.ended);
        });
        self.mock.node.ended.notify_waiters();
    }
}

/// `Started`, the prompt if it is wanted, the tokens, `Finish`. Nothing runs unless the stream is read, and what it holds is freed when it is dropped.
fn events(running: Running, model: MockModel, plan: Plan, request: &GenerateRequest) -> EventStream {
    let usage = plan.usage;
    let started = GenerateEvent::Started { prompt_tokens: usage.prompt_tokens, cached_tokens: usage.cached_tokens };
    let end = GenerateEvent::Finish { reason: plan.reason, stop: plan.stop, usage };
    let prompt = request.prompt_logprobs.then(|| prompt_event(&request.prompt, request.logprobs.unwrap_or(0)));
    let said = said_events(plan.said, request.logprobs);
    let script: Vec<GenerateEvent> = [started].into_iter().chain(prompt).chain(said).chain([end]).collect();
    let model = Arc::new(model);
    let unfolding = (Some(running), script.into_iter().enumerate());
    futures::stream::unfold(unfolding, move |(running, mut script)| {
        let model = Arc::clone(&model);
        async move {
            let mut running = running?;
            let (place, event) = script.next()?;
            if let Err(error) = wait(&running, &model, place).await {
                running.end(|counts| counts.died += 1);
                return Some((Err(error), (None, script)));
            }
            match event {
                GenerateEvent::Finish { .. } => {
                    running.end(|counts| counts.finished += 1);
                    return Some((Ok(event), (None, script)));
                }
                GenerateEvent::Started { .. } | GenerateEvent::Prompt { .. } | GenerateEvent::ToolArguments { .. } => {}
                _ => running.count_token(),
            }
            Some((Ok(event), (Some(running), script)))
        }
    })
    .boxed()
}

fn prompt_event(prompt: &Prompt, top: u8) -> GenerateEvent {
    let mut tokens = script::tokens(prompt).into_iter().map(|token| script::text_of(&[token])).enumerate();
    let first = tokens.next().map(|(_, text)| text).unwrap_or_default();
    GenerateEvent::Prompt { first, rest: tokens.map(|(place, text)| script::logprob(&text, place, top)).collect() }
}

fn said_events(said: Vec<Said>, logprobs: Option<u8>) -> Vec<GenerateEvent> {
    let logprobs = |text: &str, place| -> Vec<TokenLogprob> { logprobs.map(|top| script::logprob(text, place, top)).into_iter().collect() };
    let mut calls = 0..;
    let events = |(place, said)| match said {
        Said::Text(text) => vec![GenerateEvent::Text { logprobs: logprobs(&text, place), text }],
        Said::Reasoning(text) => vec![GenerateEvent::Reasoning { logprobs: logprobs(&text, place), text }],
        Said::ToolCall { name, arguments } => {
            let index = calls.next().unwrap_or_default();
            let call = GenerateEvent::ToolCall { index, id: format!("call_{index}"), name };
            let more = fragments(&arguments).into_iter().map(|text| GenerateEvent::ToolArguments { index, text });
            [call].into_iter().chain(more).collect()
        }
    };
    said.into_iter().enumerate().flat_map(events).collect()
}

/// As a model writes them: a few characters at a time, wherever that cuts.
fn fragments(arguments: &str) -> Vec<String> {
    const CHARACTERS: usize = 6;
    let characters: Vec<char> = arguments.chars().collect();
    characters.chunks(CHARACTERS).map(|fragment| fragment.iter().collect()).collect()
}

/// What happens before the event at `place` (0 is `Started`, then one for the prompt where it is wanted, one per token, and one per fragment of a call).
async fn wait(running: &Running, model: &MockModel, place: usize) -> Result<(), HarnessError> {
    let Some(tokens) = place.checked_sub(1) else {
        if model.faults.hang {
            std::future::pending::<()>().await;
        }
        pause(model.prefill_time).await;
        return Ok(());
    };
    if model.faults.die_after == Some(tokens) {
        return Err(HarnessError::Internal("the mock was told to die".into()));
    }
    if model.faults.cut_after == Some(tokens) {
        running.mock.cut_connections();
        std::future::pending::<()>().await;
    }
    pause(model.token_time).await;
    Ok(())
}

/// A sleep of zero would still wait for the clock's next tick.
async fn pause(time: std::time::Duration) {
    if !time.is_zero() {
        sleep(time).await;
    }
}
