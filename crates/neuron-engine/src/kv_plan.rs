//! How large a KV cache a model gets.

use crate::cache::kv_cache::BLOCK_SIZE;
use crate::error::LoadError;
use crate::load::LoadOptions;

/// The KV cache of a model, the same on each rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvPlan {
    /// Longest sequence in tokens.
    pub context: usize,
    /// Blocks in all.
    pub blocks: usize,
}

impl KvPlan {
    /// `block_bytes` on one rank, the checkpoint's own longest context, and the bytes that are free for this rank.
    ///
    /// A context that was asked for is kept or refused; the checkpoint's own is shortened to what fits.
    pub fn new(block_bytes: u64, context_max: usize, free: u64, options: &LoadOptions) -> Result<Self, LoadError> {
        let budget = options.kv_bytes_max.unwrap_or(free / 2);
        let affordable = (budget / block_bytes) as usize;
        if let Some(asked) = options.context.filter(|&asked| asked > context_max) {
            return Err(LoadError::Unsupported(format!(
                "context = {asked}: the checkpoint was made for at most {context_max} tokens (max_position_embeddings)"
            )));
        }
        let wanted = options.context.unwrap_or(context_max);
        let fits = wanted.div_ceil(BLOCK_SIZE) <= affordable;
        let context = if fits || options.context.is_some() { wanted } else { affordable * BLOCK_SIZE };
        let per_sequence = context.div_ceil(BLOCK_SIZE);
        if per_sequence == 0 || per_sequence > affordable {
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            let (need, have) = (mib(block_bytes * wanted.div_ceil(BLOCK_SIZE) as u64), mib(budget));
            return Err(LoadError::Device(format!(
                "a KV cache for one sequence of {wanted} tokens needs {need:.0} MiB, but {have:.0} MiB may be used; choose a smaller `context`"
            )));
        }
        Ok(Self { context, blocks: affordable.min(per_sequence * options.parallel.max(1)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_context_is_kept_shortened_or_refused() {
        const MIB: u64 = 1 << 20;
        let plan = |context, free| KvPlan::new(MIB, 4096, free, &LoadOptions { context, parallel: 4, ..Default::default() });
        let (asked, own) = (|context| Some(context), None);
        for (context, free, expected) in [
            (own, 10_000 * MIB, Some((4096, 512))),
            (own, 400 * MIB, Some((4096, 200))),
            (own, 100 * MIB, Some((1600, 50))),
            (own, MIB, None),
            (asked(1024), 10_000 * MIB, Some((1024, 128))),
            (asked(1024), 32 * MIB, None),
            (asked(5000), 10_000 * MIB, None),
        ] {
            let found = plan(context, free).ok().map(|plan| (plan.context, plan.blocks));
            assert_eq!(found, expected, "context {context:?}, {free} bytes free");
        }
    }
}
