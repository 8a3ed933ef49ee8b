//! Sending a workload's requests when they are due.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::report::Report;
use crate::target::{Target, Timing};
use crate::workload::Workload;

/// Runs `workload` against `target` and says what came of it.
pub async fn run(workload: &Workload, model: &str, target: &Target) -> Report {
    let places = Arc::new(Semaphore::new(workload.arrival.at_once.get().min(Semaphore::MAX_PERMITS)));
    let closed = workload.arrival.per_second.is_none();
    let started = Instant::now();
    let mut requests = JoinSet::new();
    for planned in workload.plan(model) {
        let (target, places) = (target.clone(), Arc::clone(&places));
        let due = started + planned.at;
        tokio::time::sleep_until(due.into()).await;
        // Without a rate a request comes when there is a place for it; with one it comes when it is due, and waits.
        let place = if closed { Arc::clone(&places).acquire_owned().await.ok() } else { None };
        let arrived = if closed { Instant::now() } else { due };
        requests.spawn(async move {
            let _place = match place {
                Some(place) => Some(place),
                None => places.acquire_owned().await.ok(),
            };
            target.ask(&planned.body, arrived).await.map_err(|error| format!("{error:#}"))
        });
    }
    let mut outcomes: Vec<Result<Timing, String>> = Vec::new();
    while let Some(outcome) = requests.join_next().await {
        outcomes.push(outcome.unwrap_or_else(|error| Err(format!("the request's task ended: {error}"))));
    }
    let length: Duration = started.elapsed();
    Report::of(&outcomes, length, &workload.goal)
}
