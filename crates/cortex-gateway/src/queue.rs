//! Requests that found every replica of their model full wait here for a place: a line per model, bounded, the more urgent ahead.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cortex_core::ModelId;
use cortex_core::config::Priority;
use tokio::sync::Notify;

/// The lines of all models. A line exists while somebody stands in it.
#[derive(Debug)]
pub(crate) struct Queues {
    len_max: usize,
    lines: Mutex<HashMap<ModelId, Line>>,
}

#[derive(Debug, Default)]
struct Line {
    waiting: BTreeMap<Ticket, Arc<Notify>>,
    next: u64,
}

/// The smallest is served first: by priority, then by arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Ticket {
    priority: Priority,
    arrival: u64,
}

/// The line is as long as it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full {
    pub(crate) len_max: usize,
}

/// A place in a line, left when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    queues: Arc<Queues>,
    model: ModelId,
    ticket: Ticket,
    called: Arc<Notify>,
}

impl Queues {
    pub(crate) fn new(len_max: usize) -> Self {
        Self { len_max, lines: Mutex::default() }
    }

    /// Stands in the line for `model`, behind those of the same priority.
    ///
    /// # Errors
    /// The line is full.
    pub(crate) fn stand(self: &Arc<Self>, model: &ModelId, priority: Priority) -> Result<Place, Full> {
        let mut lines = self.lines();
        let line = lines.entry(model.clone()).or_default();
        if line.waiting.len() >= self.len_max {
            return Err(Full { len_max: self.len_max });
        }
        let ticket = Ticket { priority, arrival: line.next };
        line.next += 1;
        let called = Arc::new(Notify::new());
        line.waiting.insert(ticket, Arc::clone(&called));
        Ok(Place { queues: Arc::clone(self), model: model.clone(), ticket, called })
    }

    /// How many requests wait for each model.
    pub(crate) fn lengths(&self) -> Vec<(String, usize)> {
        self.lines().iter().map(|(model, line)| (model.to_string(), line.waiting.len())).collect()
    }

    fn lines(&self) -> MutexGuard<'_, HashMap<ModelId, Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Resolves when nobody is ahead.
    pub(crate) async fn is_first(&self) {
        while !self.leads() {
            self.called.notified().await;
        }
    }

    /// Whether nobody is ahead now.
    pub(crate) fn leads(&self) -> bool {
        let lines = self.queues.lines();
        lines.get(&self.model).and_then(|line| line.waiting.first_key_value()).is_some_and(|(first, _)| *first == self.ticket)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut lines = self.queues.lines();
        let Some(line) = lines.get_mut(&self.model) else { return };
        line.waiting.remove(&self.ticket);
        match line.waiting.first_key_value() {
            Some((_, called)) => called.notify_one(),
            None => drop(lines.remove(&self.model)),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn the_urgent_go_first_and_equals_in_order() {
        let queues = Arc::new(Queues::new(8));
        let stand = |priority| queues.stand(&"m".into(), priority).unwrap();
        let mut places = vec![
            ("low", stand(Priority::Low)),
            ("first", stand(Priority::Normal)),
            ("second", stand(Priority::Normal)),
            ("high", stand(Priority::High)),
        ];
        let mut order = Vec::new();
        while !places.is_empty() {
            let first: Vec<usize> = (0..places.len()).filter(|at| places[*at].1.is_first().now_or_never().is_some()).collect();
            assert_eq!(first.len(), 1, "exactly one leads");
            order.push(places.remove(first[0]).0);
        }
        assert_eq!(order, ["high", "first", "second", "low"]);
        assert_eq!(queues.lengths(), []);
    }

    #[test]
    fn a_line_is_bounded_and_a_place_left_is_free_again() {
        let queues = Arc::new(Queues::new(2));
        let stand = |model: &str| queues.stand(&model.into(), Priority::Normal);
        let one = stand("m").unwrap();
        let _two = stand("m").unwrap();
        assert_eq!(stand("m").unwrap_err(), Full { len_max: 2 });
        let _other = stand("n").unwrap();
        drop(one);
        assert!(stand("m").is_ok());
    }

    #[tokio::test]
    async fn the_next_is_called_when_the_first_leaves() {
        let queues = Arc::new(Queues::new(8));
        let first = queues.stand(&"m".into(), Priority::Normal).unwrap();
        let second = queues.stand(&"m".into(), Priority::Normal).unwrap();
        let waiting = tokio::spawn(async move { second.is_first().await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        waiting.await.unwrap();
    }
}
