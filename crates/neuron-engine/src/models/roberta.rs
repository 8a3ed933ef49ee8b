//! RoBERTa, and XLM-RoBERTa which has the same network for a hundred languages: BERT with one type of token, positions that count up from
//! behind the padding's, and a ranking head of its own.

use super::bert::{self, Family, HeadNames};
use super::config::ModelConfig;
use super::registry::Source;
use crate::error::LoadError;

const ROBERTA: Family = Family {
    prefix: "roberta",
    head: HeadNames { dense: "classifier.dense", output: "classifier.out_proj" },
    types_pairs: false,
    positions_after_padding: true,
};

/// Reads the `config.json` of a cross-encoder.
pub fn ranking_config(source: &Source) -> Result<ModelConfig, LoadError> {
    bert::read_ranking(source, &ROBERTA)
}

/// Reads a `config.json` and the sentence-transformers files beside it.
pub fn config(source: &Source) -> Result<ModelConfig, LoadError> {
    bert::read(source, &ROBERTA, None)
}
