//! Rows of the embedding table.

use crate::cpu::element::Element;
use crate::cpu::fill_rows;
use crate::cpu::view::{each_float, floats, u32s};
#[cfg(feature = "cuda")]
use crate::cuda::{Gpu, Launch, suffix};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

/// Looks up one row per token.
///
/// `ids` is `[T]` u32, `table` is `[V, H]` (f32, bf16 or f16), the result `[T, H]`, f32 on the CPU, else
/// of the table's type. On a GPU an id that is not below V gives zeros.
///
/// # Errors
/// When the shapes are not those, or (on the CPU) an id is not below V.
pub fn embedding(ids: &Tensor, table: &Tensor) -> Result<Tensor> {
    if ids.rank() != 1 || table.rank() != 2 {
        bail!("embedding: ids must be [T] and table [V, H], got {:?} and {:?}", ids.dims(), table.dims());
    }
    let (table, ids) = (table.contiguous()?, ids.contiguous()?);
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(table.device())? {
        return on_gpu(&gpu, &ids, &table);
    }
    table.apply_op2_no_bwd(&ids, &Embedding)
}

#[cfg(feature = "cuda")]
fn on_gpu(gpu: &Gpu, ids: &Tensor, table: &Tensor) -> Result<Tensor> {
    let (vocab, width) = table.dims2()?;
    let tokens = ids.elem_count();
    let out = gpu.empty((tokens, width), table.dtype())?;
    let threads = (width / 8).next_multiple_of(32).clamp(32, 512);
    let launch = Launch::new(gpu, format!("embedding_{}", suffix("embedding", table, &[])?)).grid(tokens, 1, 1).block(threads);
    launch.tensor(ids)?.tensor(table)?.arg(vocab as u32).arg(width as u32).tensor(&out)?.go()?;
    Ok(out)
}

struct Embedding;

impl CustomOp2 for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(&self, table: &CpuStorage, table_layout: &Layout, ids: &CpuStorage, ids_layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (vocab, width) = table_layout.shape().dims2()?;
        let ids = u32s("embedding", "ids", ids, ids_layout)?;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
            bail!("embedding: id {id} is not in the table of {vocab} rows");
        }
        let mut out = vec![0.0; ids.len() * width];
        each_float!(floats("embedding", "table", table, table_layout)?, table => {
            fill_rows(&mut out, width, width, |token, out| widen_row(&table[ids[token] as usize * width..], out));
        });
        Ok((CpuStorage::F32(out), Shape::from((ids.len(), width))))
    }
}

fn widen_row<T: Element>(row: &[T], out: &mut [f32]) {
    out.iter_mut().zip(row).for_each(|(out, x)| *out = x.widen());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bits, noise};
    use candle_core::{DType, Device};

    #[test]
    fn it_agrees_with_candles_index_select() {
        let ids = Tensor::new(&[3_u32, 0, 8, 3], &Device::Cpu).unwrap();
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let table = noise((9, 13), 1).to_dtype(dtype).unwrap();
            let got = embedding(&ids, &table).unwrap();
            assert_eq!(got.dtype(), DType::F32);
            assert_eq!(bits(&got), bits(&table.index_select(&ids, 0).unwrap()));
        }
    }

    #[test]
    fn an_id_outside_the_table_is_named() {
        let ids = Tensor::new(&[3_u32, 9], &Device::Cpu).unwrap();
        let error = embedding(&ids, &noise((9, 2), 1)).unwrap_err().to_string();
        assert!(error.starts_with("embedding: id 9 is not in the table of 9 rows"), "{error}");
    }

    #[test]
    fn no_ids_give_no_rows() {
        let ids = Tensor::zeros(0, DType::U32, &Device::Cpu).unwrap();
        assert_eq!(embedding(&ids, &noise((9, 2), 1)).unwrap().dims(), [0, 2]);
    }
}
