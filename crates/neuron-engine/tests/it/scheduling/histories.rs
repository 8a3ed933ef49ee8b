//! Random lives, in pools so small that sequences push each other out all the time.

use neuron_engine::scheduler::{Limits, Step};
use neuron_engine::sequence::{ImageSpan, Sequence, SequenceId};
use proptest::collection::vec;
use proptest::prelude::*;

use super::scenario::penalised;
use super::simulation::{Setup, Simulation};

#[derive(Clone, Debug)]
enum Event {
    Add(Request),
    /// Goes on with what an ended sequence said.
    Continue {
        which: usize,
        more: usize,
        answer_len: usize,
    },
    Step,
    /// Plans and runs a step whose results come later.
    Plan,
    Commit,
    Cancel(usize),
}

#[derive(Clone, Debug)]
struct Request {
    prompt: Vec<u32>,
    answer_len: usize,
    priority: u8,
    salt: u64,
    image: Option<(usize, usize, u64)>,
    /// Its draws need to know what was drawn before.
    history: bool,
    /// Its prompt is to be scored.
    scored: bool,
}

fn request() -> impl Strategy<Value = Request> {
    // Few texts, so that prompts often begin alike.
    let prompt = (0u32..3, 1usize..24).prop_map(|(text, len)| (0..len as u32).map(|index| (index * (text + 1) / 5) % 3).collect());
    let image =
        proptest::option::weighted(0.3, (0usize..4, 0usize..3, 0u64..2).prop_map(|(start, len, hash)| (2 * start, 1 + 2 * len, hash)));
    let (history, scored) = (proptest::bool::weighted(0.2), proptest::bool::weighted(0.3));
    (prompt, 0usize..12, 0u8..3, 0u64..2, image, history, scored).prop_map(
        |(prompt, answer_len, priority, salt, image, history, scored)| Request {
            prompt,
            answer_len,
            priority,
            salt,
            image,
            history,
            scored,
        },
    )
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => request().prop_map(Event::Add),
        1 => (0usize..8, 0usize..6, 1usize..8).prop_map(|(which, more, answer_len)| Event::Continue { which, more, answer_len }),
        6 => Just(Event::Step),
        1 => Just(Event::Plan),
        1 => Just(Event::Commit),
        1 => (0usize..8).prop_map(Event::Cancel),
    ]
}

fn setup() -> impl Strategy<Value = Setup> {
    let end_token = proptest::option::weighted(0.3, Just(0));
    (4usize..20, 1usize..6, (1usize..20, 1usize..12), 1usize..8, proptest::bool::weighted(0.8), any::<bool>(), end_token).prop_map(
        |(blocks, block_size, (budget, scores), running, prefix_cache, lookahead, end_token)| {
            let limits = Limits { step_tokens_max: budget, step_scores_max: scores, running_max: running, waiting_max: 6, lookahead };
            Setup { blocks, block_size, prefix_cache, limits, vocabulary: 3, end_token }
        },
    )
}

impl Request {
    fn sequence(self, id: u64) -> Sequence {
        let len = self.prompt.len();
        let mut sequence = Sequence::new(SequenceId(id), self.prompt, len + self.answer_len);
        sequence.priority = self.priority;
        sequence.salt = self.salt;
        if self.history {
            sequence.sampling = penalised();
        }
        if self.scored {
            sequence.score_from = 1;
        }
        if let Some((start, image_len, hash)) = self.image.filter(|(start, ..)| *start < len) {
            let image_len = image_len.min(len - start);
            sequence.images = vec![ImageSpan { start, len: image_len, hash }];
            // As in M-RoPE, a picture takes fewer positions than tokens, and how many depends on the picture.
            let squeeze = (image_len / (2 + hash as usize)) as u32;
            let position = |index: usize| match index {
                _ if index < start => [index as u32; 3],
                _ if index < start + image_len => [start as u32, index as u32, start as u32 + hash as u32],
                _ => [index as u32 - squeeze; 3],
            };
            sequence.positions = Some((0..len).map(position).collect());
            sequence.rope_delta = -(squeeze as i32);
        }
        sequence
    }
}

/// A simulation and the transcripts of those that ended.
struct History {
    simulation: Simulation,
    ended: Vec<Sequence>,
    added: u64,
    lookahead: bool,
}

impl History {
    fn play(&mut self, event: Event) {
        match event {
            Event::Add(request) => self.add(request),
            Event::Continue { which, more, answer_len } => {
                let told = self.ended.iter().rev().nth(which).filter(|sequence| sequence.images.is_empty());
                let Some(told) = told.cloned() else { return };
                let prompt = told.tokens.iter().copied().chain((0..more as u32).map(|index| index % 3)).collect();
                self.add(Request {
                    prompt,
                    answer_len,
                    priority: told.priority,
                    salt: told.salt,
                    image: None,
                    history: false,
                    scored: false,
                });
            }
            Event::Step => {
                self.plan();
                let ended = self.simulation.commit();
                self.ended.extend(ended);
            }
            Event::Plan => self.plan(),
            Event::Commit => self.ended.extend(self.simulation.commit()),
            Event::Cancel(which) => {
                let victim = self.simulation.live().nth(which);
                victim.and_then(|id| self.simulation.finish(id));
            }
        }
    }

    /// With lookahead, never more steps under way than an engine would have: a pending token is one of the step just before.
    fn plan(&mut self) {
        while self.lookahead && self.simulation.is_busy() {
            let ended = self.simulation.commit();
            self.ended.extend(ended);
        }
        self.simulation.plan();
    }

    /// A refusal is part of life; a sequence that is let in must end well.
    fn add(&mut self, request: Request) {
        let sequence = request.sequence(self.added);
        self.added += u64::from(self.simulation.add(sequence).is_ok());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    /// The checks are in the simulation: at each step the books agree, the budget holds, nobody overtakes, and every block
    /// table reads back exactly its sequence; in the end everyone has got the answer it would have got alone.
    #[test]
    fn whatever_happens_every_sequence_reads_its_own_past_and_ends(setup in setup(), events in vec(event(), 1..80)) {
        let mut history = History { simulation: Simulation::new(setup), ended: Vec::new(), added: 0, lookahead: setup.limits.lookahead };
        for event in events {
            history.play(event);
        }
        for sequence in history.simulation.drain() {
            let ended = sequence.answer().last().copied() == setup.end_token;
            // A prompt alone ends with a draw, too.
            prop_assert!(sequence.tokens.len() == sequence.total_len_max.max(sequence.prompt_len + 1) || ended);
        }
    }

    /// The same calls give the same steps.
    #[test]
    fn histories_repeat_exactly(setup in setup(), requests in vec(request(), 1..10)) {
        let run = || {
            let mut simulation = Simulation::new(setup);
            for (id, request) in requests.iter().cloned().enumerate() {
                let _ = simulation.add(request.sequence(id as u64));
            }
            let mut steps = Vec::new();
            while simulation.live().next().is_some() {
                steps.push(simulation.plan());
                if simulation.is_busy() || steps.last().is_some_and(Step::is_empty) {
                    simulation.commit();
                }
            }
            (steps, simulation.scheduler.blocks().stats())
        };
        prop_assert_eq!(run(), run());
    }
}
