//! The `usage` object.

use serde::{Deserialize, Serialize};

use crate::harness::Usage;

/// Tokens of one answer. With `n` choices the prompt counts once and the choices add up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompletionUsage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens generated.
    pub completion_tokens: u32,
    /// Both.
    pub total_tokens: u32,
    /// What is known of the prompt's tokens.
    #[serde(default)]
    pub prompt_tokens_details: PromptTokensDetails,
    /// What is known of the generated tokens.
    #[serde(default)]
    pub completion_tokens_details: CompletionTokensDetails,
}

/// What is known of the prompt's tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptTokensDetails {
    /// How many were found in the prefix cache.
    #[serde(default)]
    pub cached_tokens: u32,
}

/// What is known of the generated tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompletionTokensDetails {
    /// How many were a thought.
    #[serde(default)]
    pub reasoning_tokens: u32,
}

impl From<Usage> for CompletionUsage {
    fn from(usage: Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: usage.prompt_tokens.saturating_add(usage.completion_tokens),
            prompt_tokens_details: PromptTokensDetails { cached_tokens: usage.cached_tokens },
            completion_tokens_details: CompletionTokensDetails { reasoning_tokens: usage.reasoning_tokens },
        }
    }
}
