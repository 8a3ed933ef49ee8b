//! A small language for the life of a scheduler. One line, one event; `-> ` says what must come of it.
//!
//! ```text
//! pool blocks=8 size=4 budget=16 running=4 waiting=4 cache=on ahead=off      always first
//! add b prompt=sys:8+b:3 max=2 prio=1 salt=0 image=2+4:77 history=yes -> never fits
//!     the prompt is joined from texts: `name:length` is the start of an endless text, `@a` is all that sequence `a` said so
//!     far; `max` counts answer tokens; image=start+length:hash; history=yes: its draws have penalties; outcomes: full, never fits, empty, duplicate
//! step -> -c a[8..9]* +b[0..7]    plans, runs and commits: c preempted, a decodes, b admitted; * draws a token, $ the last, ? is
//!     computed from a token that is still being drawn
//! plan -> a[8..9]*                plans and runs only;  `commit` books the oldest such step
//! steps 3, drain                  without looking closely;  drain stops when nothing is left
//! cancel b
//! blocks used=3 free=5 cached=2 lookups=1 hits=1 saved=8 evictions=0      any of them
//! seq a cached=8 computed=9 tokens=10 blocks=3                            any of them
//! ```

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use cortex_core::{SamplingDefaults, SamplingParams, SamplingRequest};
use neuron_engine::scheduler::{AddError, Limits, Step};
use neuron_engine::sequence::{ImageSpan, PRIORITY_DEFAULT, Sequence, SequenceId};

use super::device::mix;
use super::simulation::{Setup, Simulation};

/// Plays a scenario; panics with the line that came out differently.
pub(crate) fn play(text: &str) {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut scenario = Scenario::new(&Words::parse(lines.next().expect("a scenario has a pool")));
    for line in lines {
        let words = Words::parse(line);
        let outcome = scenario.play(&words);
        let expected = words.outcome.or(words.facts());
        assert!(expected.is_none_or(|expected| expected == outcome), "\n    line: {line}\n  but it is: {outcome}\n");
    }
}

struct Scenario {
    simulation: Simulation,
    names: Vec<String>,
    /// All tokens of the sequences that ended.
    ended: BTreeMap<String, Vec<u32>>,
}

/// A line, taken apart.
struct Words<'a> {
    command: &'a str,
    name: &'a str,
    arguments: BTreeMap<&'a str, &'a str>,
    /// The arguments as they stand.
    tail: &'a str,
    outcome: Option<&'a str>,
}

impl<'a> Words<'a> {
    fn parse(line: &'a str) -> Self {
        let (event, outcome) = line.split_once("->").map_or((line, None), |(event, outcome)| (event, Some(outcome.trim())));
        let (command, rest) = event.trim().split_once(' ').unwrap_or((event.trim(), ""));
        let first = rest.split_whitespace().next().unwrap_or("");
        let name = if first.contains('=') { "" } else { first };
        let tail = rest.trim_start().strip_prefix(name).unwrap_or(rest).trim();
        let arguments = tail.split_whitespace().filter_map(|word| word.split_once('=')).collect();
        Self { command, name, arguments, tail, outcome }
    }

    fn number(&self, key: &str) -> Option<usize> {
        self.arguments.get(key).map(|value| value.parse().unwrap_or_else(|_| panic!("{key}={value} is no number")))
    }

    /// For lines whose arguments are what is expected.
    fn facts(&self) -> Option<&'a str> {
        matches!(self.command, "blocks" | "seq").then_some(self.tail)
    }

    /// The figures that the line asks for, as they are.
    fn figures(&self, figures: &[(&str, u64)]) -> String {
        let figure = |key: &str| figures.iter().find(|(name, _)| *name == key).unwrap_or_else(|| panic!("no figure {key}")).1;
        let words = self.tail.split_whitespace().filter_map(|word| word.split_once('='));
        words.map(|(key, _)| format!("{key}={}", figure(key))).collect::<Vec<_>>().join(" ")
    }
}

impl Scenario {
    fn new(words: &Words) -> Self {
        assert_eq!(words.command, "pool");
        let limits = Limits {
            step_tokens_max: words.number("budget").unwrap_or(64),
            step_scores_max: 64,
            running_max: words.number("running").unwrap_or(8),
            waiting_max: words.number("waiting").unwrap_or(8),
            lookahead: words.arguments.get("ahead") == Some(&"on"),
        };
        let setup = Setup {
            blocks: words.number("blocks").unwrap_or(16),
            block_size: words.number("size").unwrap_or(4),
            prefix_cache: words.arguments.get("cache") != Some(&"off"),
            limits,
            vocabulary: u32::MAX,
            end_token: None,
        };
        Self { simulation: Simulation::new(setup), names: Vec::new(), ended: BTreeMap::new() }
    }

    fn play(&mut self, words: &Words) -> String {
        match words.command {
            "add" => self.add(words),
            "step" => self.step(),
            "plan" => {
                let step = self.simulation.plan();
                self.render(&step, &[])
            }
            "commit" => self.commit().len().to_string(),
            "steps" => (0..words.name.parse().unwrap()).map(|_| self.step()).collect(),
            "drain" => {
                let ended = self.simulation.drain();
                self.bury(ended).len().to_string()
            }
            "cancel" => {
                let ended = self.simulation.finish(self.id(words.name));
                self.bury(ended.into_iter().collect()).len().to_string()
            }
            "blocks" => self.blocks(words),
            "seq" => self.sequence(words),
            other => panic!("unknown command {other}"),
        }
    }

    fn add(&mut self, words: &Words) -> String {
        let prompt: Vec<u32> = words.arguments["prompt"].split('+').flat_map(|piece| self.text(piece)).collect();
        let id = self.names.iter().position(|name| name == words.name).unwrap_or(self.names.len());
        let total_len_max = prompt.len() + words.number("max").unwrap_or(1);
        let mut sequence = Sequence::new(SequenceId(id as u64), prompt, total_len_max);
        sequence.priority = words.number("prio").map_or(PRIORITY_DEFAULT, |class| class as u8);
        sequence.salt = words.number("salt").unwrap_or(0) as u64;
        sequence.images = words.arguments.get("image").map(|text| image(text)).into_iter().collect();
        if words.arguments.contains_key("history") {
            sequence.sampling = penalised();
        }
        let outcome = self.simulation.add(sequence);
        if outcome.is_ok() {
            self.names.push(words.name.to_owned());
        }
        match outcome {
            Ok(()) => String::new(),
            Err(AddError::Full { .. }) => "full".into(),
            Err(AddError::NeverFits { .. }) => "never fits".into(),
            Err(AddError::Empty) => "empty".into(),
            Err(AddError::Duplicate(_)) => "duplicate".into(),
        }
    }

    fn text(&self, piece: &str) -> Vec<u32> {
        if let Some(name) = piece.strip_prefix('@') {
            return self.ended.get(name).unwrap_or_else(|| panic!("{name} has not ended")).clone();
        }
        let (name, len) = piece.split_once(':').expect("a text is name:length or @sequence");
        let seed = name.bytes().fold(0, |seed, byte| mix(seed ^ u64::from(byte)));
        (0..len.parse().expect("a length")).map(|index: u64| mix(seed ^ index) as u32).collect()
    }

    fn step(&mut self) -> String {
        let step = self.simulation.plan();
        let ended = self.commit();
        self.render(&step, &ended)
    }

    fn commit(&mut self) -> Vec<SequenceId> {
        let ended = self.simulation.commit();
        self.bury(ended)
    }

    fn bury(&mut self, ended: Vec<Sequence>) -> Vec<SequenceId> {
        let ids = ended.iter().map(|sequence| sequence.id).collect();
        for sequence in ended {
            self.ended.insert(self.name(sequence.id).to_owned(), sequence.tokens);
        }
        ids
    }

    fn render(&self, step: &Step, ended: &[SequenceId]) -> String {
        let mut text = String::new();
        for id in &step.preempted {
            write!(text, "-{} ", self.name(*id)).unwrap();
        }
        for chunk in &step.chunks {
            let newcomer = if step.admitted.contains(&chunk.id) { "+" } else { "" };
            let mark = match (chunk.samples, ended.contains(&chunk.id)) {
                (true, true) => "$",
                (true, false) => "*",
                (false, _) => "",
            };
            let guess = if chunk.pending { "?" } else { "" };
            write!(text, "{newcomer}{}[{}..{}]{guess}{mark} ", self.name(chunk.id), chunk.start, chunk.end()).unwrap();
        }
        text.trim_end().to_owned()
    }

    fn blocks(&self, words: &Words) -> String {
        let stats = self.simulation.scheduler.blocks().stats();
        words.figures(&[
            ("used", stats.used as u64),
            ("free", stats.free as u64),
            ("cached", stats.cached as u64),
            ("lookups", stats.lookups),
            ("hits", stats.hits),
            ("saved", stats.tokens_saved),
            ("evictions", stats.evictions),
        ])
    }

    fn sequence(&self, words: &Words) -> String {
        let sequence = self.simulation.scheduler.sequence(self.id(words.name)).expect("a live sequence");
        words.figures(&[
            ("cached", sequence.cached as u64),
            ("computed", sequence.computed as u64),
            ("tokens", sequence.tokens.len() as u64),
            ("blocks", sequence.blocks.len() as u64),
        ])
    }

    fn name(&self, id: SequenceId) -> &str {
        &self.names[id.0 as usize]
    }

    fn id(&self, name: &str) -> SequenceId {
        SequenceId(self.names.iter().position(|other| other == name).expect("a sequence that was added") as u64)
    }
}

/// Parameters under which a draw depends on the draws before it.
pub(crate) fn penalised() -> Arc<SamplingParams> {
    let request = SamplingRequest { temperature: Some(0.0), presence_penalty: Some(0.5), ..Default::default() };
    Arc::new(request.resolve(&SamplingDefaults::default(), 0))
}

/// `start+length:hash`
fn image(text: &str) -> ImageSpan {
    let (span, hash) = text.split_once(':').expect("image=start+length:hash");
    let (start, len) = span.split_once('+').expect("image=start+length:hash");
    ImageSpan { start: start.parse().unwrap(), len: len.parse().unwrap(), hash: hash.parse().unwrap() }
}
