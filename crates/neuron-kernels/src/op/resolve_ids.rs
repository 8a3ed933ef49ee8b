//! Token ids that the host does not know yet.

use crate::cpu::view::{span, u32s};
#[cfg(feature = "cuda")]
use crate::cuda::{Gpu, Launch};
use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Result, Tensor, bail};

/// An id with this bit set is not a token: the other bits say which of the tokens drawn last stands in its place.
pub const DRAWN: u32 = 1 << 31;

/// Puts tokens in the place of references to them, in `ids` itself.
///
/// `ids` is `[T]` u32, some with the bit [`DRAWN`]; `drawn` is `[R]` u32, the tokens of the step before.
///
/// # Errors
/// When a type is not u32, or (on the CPU) a reference is beyond R.
pub fn resolve_ids(ids: &Tensor, drawn: &Tensor) -> Result<()> {
    if ids.dtype() != DType::U32 || drawn.dtype() != DType::U32 {
        bail!("resolve_ids: ids and drawn must be u32, got {} and {}", ids.dtype().as_str(), drawn.dtype().as_str());
    }
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(ids.device())? {
        let launch = Launch::new(&gpu, "resolve_ids").grid(ids.elem_count().div_ceil(256), 1, 1);
        return launch.tensor(ids)?.tensor(drawn)?.arg(ids.elem_count() as u32).go();
    }
    ids.inplace_op2(drawn, &ResolveIds)
}

struct ResolveIds;

impl InplaceOp2 for ResolveIds {
    fn name(&self) -> &'static str {
        "resolve_ids"
    }

    fn cpu_fwd(&self, ids: &mut CpuStorage, ids_layout: &Layout, drawn: &CpuStorage, drawn_layout: &Layout) -> Result<()> {
        let drawn = u32s("resolve_ids", "drawn", drawn, drawn_layout)?;
        let CpuStorage::U32(ids) = ids else { bail!("resolve_ids: ids must be u32") };
        for id in &mut ids[span("resolve_ids", "ids", ids_layout)?] {
            if *id & DRAWN != 0 {
                match drawn.get((*id ^ DRAWN) as usize) {
                    Some(token) => *id = *token,
                    None => bail!("resolve_ids: only {} were drawn", drawn.len()),
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn references_become_the_tokens_drawn() {
        let tensor = |ids: &[u32]| Tensor::new(ids, &Device::Cpu).unwrap();
        let (ids, drawn) = (tensor(&[5, DRAWN | 1, DRAWN, 6]), tensor(&[70, 80]));
        resolve_ids(&ids, &drawn).unwrap();
        assert_eq!(ids.to_vec1::<u32>().unwrap(), [5, 80, 70, 6]);
        let error = resolve_ids(&tensor(&[DRAWN | 2]), &drawn).unwrap_err().to_string();
        assert!(error.starts_with("resolve_ids: only 2 were drawn"), "{error}");
    }
}
