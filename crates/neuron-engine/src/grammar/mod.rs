//! Answers held to a form: which tokens may come next, so that JSON is JSON and a forced call is a call.
//!
//! ```text
//! what the request asks (cortex-core) -> form: a grammar's text -> Grammars: compiled -> Constraint: one answer, one mask a token
//! ```

mod constraint;
mod form;

use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};

pub use constraint::{Constraint, GrammarError};
pub use form::{Form, Rules};

use crate::sampler::TokenMask;
use crate::text::parser::Start;
use crate::text::tokenizer::Tokenizer;

/// A model's tokens, ordered so that grammars can be asked about all of them at once. Made once per model, on first use.
pub struct Grammars {
    factory: ParserFactory,
    alphabet: Arc<Alphabet>,
}

/// What a constraint knows of the tokens.
struct Alphabet {
    tokenizer: Arc<Tokenizer>,
    vocabulary: usize,
    /// `<think>`, where it is one token.
    think: Option<u32>,
    /// Tokens that are line breaks only.
    line_breaks: Vec<u32>,
    /// Everything but the ends of an answer.
    unended: Arc<TokenMask>,
}

impl Grammars {
    /// For a model with `vocabulary` rows of logits.
    ///
    /// # Errors
    /// What keeps this tokenizer from having grammars.
    pub fn new(tokenizer: &Arc<Tokenizer>, vocabulary: usize) -> Result<Self, String> {
        let env = token_env(tokenizer)?;
        let mut factory = ParserFactory::new_simple(&env).map_err(|error| error.to_string())?;
        factory.quiet();
        Ok(Self { factory, alphabet: Arc::new(Alphabet::new(tokenizer, vocabulary)) })
    }

    /// The constraint of one answer, which begins as `start` says. `may_think`: a thought may come before what is held to the form.
    ///
    /// # Errors
    /// What is wrong with the grammar, in words for whoever sent the schema.
    pub fn constraint(&self, form: &Form, start: Start, may_think: bool) -> Result<Constraint, String> {
        let grammar = TopLevelGrammar::from_lark(form.lark.clone());
        let parser = self.factory.create_parser(grammar).map_err(|error| first_line(&error.to_string()))?;
        let matcher = Matcher::new(Ok(parser));
        Constraint::new(matcher, self.alphabet.clone(), form.trigger, start, may_think).map_err(|error| error.to_string())
    }
}

impl Alphabet {
    fn new(tokenizer: &Arc<Tokenizer>, vocabulary: usize) -> Self {
        let known = 0..tokenizer.vocab_size().min(vocabulary) as u32;
        let is_line_break = |id: &u32| {
            let bytes = tokenizer.bytes(*id);
            !bytes.is_empty() && bytes.iter().all(|&byte| byte == b'\n')
        };
        let mut unended = TokenMask::none(vocabulary);
        known.clone().filter(|id| !tokenizer.eos_ids().contains(id)).for_each(|id| unended.allow(id));
        Self {
            tokenizer: tokenizer.clone(),
            vocabulary,
            think: tokenizer.token_id("<think>").filter(|id| known.contains(id)),
            line_breaks: known.filter(is_line_break).collect(),
            unended: Arc::new(unended),
        }
    }
}

/// Special tokens get a name that no text has, so that a grammar over texts never allows them.
fn token_env(tokenizer: &Tokenizer) -> Result<TokEnv, String> {
    let [end, ..] = tokenizer.eos_ids() else { return Err("this model's files name no token that ends an answer".into()) };
    let size = tokenizer.vocab_size() as u32;
    let ends = tokenizer.eos_ids();
    let special = |id: u32| tokenizer.is_special(id) || ends.contains(&id);
    let word = |id: u32| {
        let bytes = tokenizer.token_bytes(id);
        if special(id) { [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes.as_slice()].concat() } else { bytes }
    };
    let words: Vec<Vec<u8>> = (0..size).map(word).collect();
    let trie = TokTrie::from(&TokRxInfo::new(size, *end), &words).with_eos_tokens(ends);
    Ok(Arc::new(ApproximateTokEnv::new(trie)))
}

/// Compilers tell much; the first line is what their user needs.
fn first_line(story: &str) -> String {
    story.lines().next().unwrap_or_default().to_owned()
}
