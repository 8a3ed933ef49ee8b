//! Products of many rows by cublasLt, with the algorithm of each shape chosen once.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cublaslt::{result, sys};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use candle_core::{DType, Result, Tensor, bail};

use super::Gpu;

/// As much as cublasLt's own advice for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;
/// Shapes whose algorithm is remembered; prompts come in many lengths.
const PLANS_MAX: usize = 4096;
/// What every allocation has, in bytes, and what cublasLt expects unless told otherwise.
const ALIGNMENT_MAX: u32 = 256;
/// `CUBLAS_OP_T`, which the bindings do not name.
const TRANSPOSED: i32 = 1;

/// The library, its workspace, and the plans made so far.
pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    workspace: CudaSlice<u8>,
    plans: HashMap<Key, Plan>,
}

/// `x` `[rows, k]` times `w` `[outputs, k]` transposed, to `[rows, outputs]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    rows: usize,
    outputs: usize,
    k: usize,
    from: sys::cudaDataType,
    to: sys::cudaDataType,
    bias: bool,
    /// Bytes, a power of two, that divide all addresses.
    alignment: u32,
}

/// All that a call needs besides addresses.
struct Plan {
    product: sys::cublasLtMatmulDesc_t,
    w: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// One product to compute.
pub(crate) struct Product<'a> {
    /// `[rows, k]`
    pub(crate) x: &'a Tensor,
    /// `[outputs, k]`, of the type of `x`
    pub(crate) w: &'a Tensor,
    /// `[outputs]`, of the type of `out`
    pub(crate) bias: Option<&'a Tensor>,
    /// `[rows, outputs]`, of the type of `x`, or f32
    pub(crate) out: &'a Tensor,
}

impl Blas {
    #[allow(unsafe_code)]
    pub(super) fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        // SAFETY: cublasLt writes its workspace before it reads it.
        let workspace = unsafe { stream.alloc::<u8>(WORKSPACE_BYTES) }.w()?;
        let handle = result::create_handle().map_err(candle_core::Error::wrap)?;
        Ok(Self { handle, workspace, plans: HashMap::new() })
    }
}

impl Product<'_> {
    /// Queues the product on the device's stream.
    #[allow(unsafe_code)]
    pub(crate) fn go(self, gpu: &Gpu) -> Result<()> {
        let Self { x, w, bias, out } = self;
        let ((rows, k), outputs) = (x.dims2()?, w.dim(0)?);
        if rows == 0 || outputs == 0 {
            return Ok(());
        }
        let (from, to) = (data_type(x.dtype())?, data_type(out.dtype())?);
        let (x, w, out) = (used(gpu, x)?, used(gpu, w)?, used(gpu, out)?);
        let bias = bias.map(|bias| used(gpu, bias)).transpose()?;
        let alignment = 1 << (x | w | out).trailing_zeros().min(ALIGNMENT_MAX.trailing_zeros());
        let key = Key { rows, outputs, k, from, to, bias: bias.is_some(), alignment };
        gpu.tape.borrow_mut().launched();
        let Blas { handle, workspace, plans } = &mut *gpu.blas.borrow_mut();
        if plans.len() >= PLANS_MAX {
            plans.clear();
        }
        let plan = match plans.entry(key) {
            std::collections::hash_map::Entry::Occupied(plan) => plan.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(Plan::new(*handle, key).map_err(|error| error.context(format!("cublasLt: {key:?}")))?)
            }
        };
        if let Some(bias) = bias {
            plan.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        let (one, zero) = (1f32, 0f32);
        // SAFETY: the addresses are those of live tensors of the shapes and types that the plan was made for, and the handle, the
        // plan and the workspace live as long as the stream's device.
        unsafe {
            result::matmul(
                *handle,
                plan.product,
                (&raw const one).cast(),
                (&raw const zero).cast(),
                w as *const c_void,
                plan.w,
                x as *const c_void,
                plan.x,
                out as *const c_void,
                plan.out,
                out as *mut c_void,
                plan.out,
                &raw const plan.algorithm,
                workspace.device_ptr(&gpu.stream).0 as *mut c_void,
                WORKSPACE_BYTES,
                gpu.stream.cu_stream().cast(),
            )
        }
        .map_err(|error| candle_core::Error::wrap(error).context(format!("cublasLt: {key:?}")))
    }
}

impl Plan {
    /// cublasLt counts columns first, so the product is `out^T = w^T^T x^T`.
    #[allow(unsafe_code)]
    fn new(handle: sys::cublasLtHandle_t, key: Key) -> Result<Self> {
        let Key { rows, outputs, k, from, to, bias, alignment } = key;
        let layout = |kind, rows: usize, columns: usize| result::create_matrix_layout(kind, rows as u64, columns as u64, rows as i64);
        let product = result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F);
        let wrap = candle_core::Error::wrap;
        let mut plan = Self {
            product: product.map_err(wrap)?,
            w: layout(from, k, outputs).map_err(wrap)?,
            x: layout(from, k, rows).map_err(wrap)?,
            out: layout(to, outputs, rows).map_err(wrap)?,
            algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
        };
        plan.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
        if bias {
            plan.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_EPILOGUE, &sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS)?;
        }
        let preference = result::create_matmul_pref().map_err(wrap)?;
        // SAFETY: everything was created above and is alive; the preference is destroyed once, here.
        unsafe {
            let bytes = WORKSPACE_BYTES;
            let limit = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            result::set_matmul_pref_attribute(preference, limit, (&raw const bytes).cast(), size_of::<usize>()).map_err(wrap)?;
            use sys::cublasLtMatmulPreferenceAttributes_t as Limit;
            for operand in [
                Limit::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                Limit::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                Limit::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                Limit::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
            ] {
                result::set_matmul_pref_attribute(preference, operand, (&raw const alignment).cast(), size_of::<u32>()).map_err(wrap)?;
            }
            let best = result::get_matmul_algo_heuristic(handle, plan.product, plan.w, plan.x, plan.out, plan.out, preference);
            result::destroy_matmul_pref(preference).map_err(wrap)?;
            plan.algorithm = best.map_err(wrap)?.algo;
        }
        Ok(plan)
    }

    #[allow(unsafe_code)]
    fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<()> {
        // SAFETY: the attribute has the type of `value`, and cublasLt copies it.
        unsafe { result::set_matmul_desc_attribute(self.product, attribute, std::ptr::from_ref(value).cast(), size_of::<T>()) }
            .map_err(candle_core::Error::wrap)
    }
}

impl Drop for Plan {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed only here. What the library answers changes nothing.
        unsafe {
            let _ = result::destroy_matmul_desc(self.product);
            for layout in [self.w, self.x, self.out] {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}

impl Drop for Blas {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: created in `new`, destroyed only here.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

fn used(gpu: &Gpu, tensor: &Tensor) -> Result<u64> {
    let address = gpu.address(tensor)?;
    gpu.tape.borrow_mut().used(address);
    Ok(address)
}

fn data_type(dtype: DType) -> Result<sys::cudaDataType> {
    Ok(match dtype {
        DType::F32 => sys::cudaDataType::CUDA_R_32F,
        DType::BF16 => sys::cudaDataType::CUDA_R_16BF,
        DType::F16 => sys::cudaDataType::CUDA_R_16F,
        other => bail!("linear: no product of {}", other.as_str()),
    })
}
