//! Stop texts in a stream: the answer ends where the first of them is complete.

use super::parser::undecided;

/// Looks for stop texts in text that comes in pieces.
///
/// The match is the one that is complete first; of those that end at the same place, the longest. So the outcome depends on the
/// text only, never on how it was cut into pieces.
#[derive(Clone, Debug, Default)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// The end of the text so far that may still become a stop text.
    held: String,
    /// The one that was found.
    found: Option<String>,
}

/// What one piece of text led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopOutcome {
    /// Go on; this much is certainly part of the answer (perhaps nothing).
    Text(String),
    /// A stop text is complete. It is not part of the answer, and nothing follows.
    Stopped {
        /// What came before it and was not handed out yet.
        text_before: String,
        /// The stop text.
        stop: String,
    },
}

impl StopMatcher {
    /// Empty stop texts are ignored.
    pub fn new(mut stops: Vec<String>) -> Self {
        stops.retain(|stop| !stop.is_empty());
        Self { stops, held: String::new(), found: None }
    }

    /// The next piece. After a stop, every piece is dropped.
    pub fn push(&mut self, text: &str) -> StopOutcome {
        if let Some(stop) = &self.found {
            return StopOutcome::Stopped { text_before: String::new(), stop: stop.clone() };
        }
        if self.stops.is_empty() {
            return StopOutcome::Text(text.to_owned());
        }
        self.held.push_str(text);
        if let Some((start, stop)) = self.first_match() {
            let stop = stop.to_owned();
            self.found = Some(stop.clone());
            let mut text_before = std::mem::take(&mut self.held);
            text_before.truncate(start);
            return StopOutcome::Stopped { text_before, stop };
        }
        let still_possible = self.held.split_off(undecided(&self.held, &self.stops));
        StopOutcome::Text(std::mem::replace(&mut self.held, still_possible))
    }

    /// The text ended: what was held back is part of the answer after all.
    pub fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The match that is complete first, and where it starts.
    fn first_match(&self) -> Option<(usize, &str)> {
        let matches =
            self.stops.iter().filter_map(|stop| self.held.find(stop.as_str()).map(|start| (start + stop.len(), start, stop.as_str())));
        matches.min().map(|(_, start, stop)| (start, stop))
    }
}
