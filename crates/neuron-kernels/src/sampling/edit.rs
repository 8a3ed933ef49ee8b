//! The logits that penalties and bias touch: few of a large vocabulary.

use std::collections::BTreeMap;

/// A token whose logit changes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Edit {
    /// Which.
    pub token: u32,
    /// 0 if it is in neither prompt nor answer, otherwise 1 and how often it is in the answer.
    pub seen: u32,
    /// Added after the penalties.
    pub bias: f32,
}

/// The edits of one row, sorted by token; several biases of one token stay in their order. Tokens that penalties need not know
/// may be left out of `prompt` and `answer`: those of the prompt if there is no repetition penalty, all if there are no penalties.
pub fn edits(prompt: &[u32], answer: &[u32], bias: &[(u32, f32)]) -> Vec<Edit> {
    let mut seen: BTreeMap<u32, u32> = prompt.iter().map(|&token| (token, 1)).collect();
    for &token in answer {
        *seen.entry(token).or_insert(1) += 1;
    }
    let mut edits: Vec<Edit> = seen.into_iter().map(|(token, seen)| Edit { token, seen, bias: 0.0 }).collect();
    let penalised = edits.len();
    for &(token, bias) in bias {
        match edits[..penalised].binary_search_by_key(&token, |edit| edit.token) {
            Ok(at) if edits[at].bias == 0.0 => edits[at].bias = bias,
            _ => edits.push(Edit { token, seen: 0, bias }),
        }
    }
    edits.sort_by_key(|edit| edit.token);
    edits
}
