//! How an encoder's rows become one vector per text, as the sentence-transformers files beside `config.json` say.

use std::path::Path;

use candle_core::{D, Result, Tensor};

use super::config::fields::Fields;
use crate::error::LoadError;

type Loaded<T> = std::result::Result<T, LoadError>;

/// What happens to the last layer's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pooling {
    /// Which rows count.
    pub mode: PoolingMode,
    /// Whether vectors are scaled to length one.
    pub normalise: bool,
}

/// How a text's rows become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolingMode {
    /// Their mean.
    Mean,
    /// The first row.
    Cls,
}

/// One step of a sentence-transformers pipeline.
#[derive(serde::Deserialize)]
struct Module {
    path: String,
    r#type: String,
}

impl Pooling {
    /// What a folder without `modules.json` means to sentence-transformers.
    const DEFAULT: Self = Self { mode: PoolingMode::Mean, normalise: false };

    /// Reads `modules.json` and the pooling module's own configuration.
    pub fn read(folder: &Path) -> Loaded<Self> {
        let file = folder.join("modules.json");
        let text = match std::fs::read(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::DEFAULT),
            Err(source) => return Err(LoadError::Unreadable { file, source }),
        };
        let malformed = |error: serde_json::Error| LoadError::Malformed { file: file.clone(), what: error.to_string() };
        let modules: Vec<Module> = serde_json::from_slice(&text).map_err(malformed)?;
        modules.iter().try_fold(Self::DEFAULT, |pooling, module| match module.r#type.rsplit('.').next() {
            Some("Transformer") => Ok(pooling),
            Some("Pooling") => Ok(Self { mode: mode(&folder.join(&module.path).join("config.json"))?, ..pooling }),
            Some("Normalize") => Ok(Self { normalise: true, ..pooling }),
            _ => Err(LoadError::Unsupported(format!("the module `{}` in `{}`", module.r#type, file.display()))),
        })
    }

    /// Rows `[T, H]` of texts laid end to end to vectors `[S, H]`.
    pub fn forward(&self, rows: &Tensor, segment_lens: &[usize]) -> Result<Tensor> {
        let starts = segment_lens.iter().scan(0, |next, len| Some(std::mem::replace(next, *next + len)));
        let vectors = starts.zip(segment_lens).map(|(start, len)| match self.mode {
            PoolingMode::Mean => rows.narrow(0, start, *len)?.mean_keepdim(0),
            PoolingMode::Cls => rows.narrow(0, start, 1),
        });
        let vectors = Tensor::cat(&vectors.collect::<Result<Vec<_>>>()?, 0)?;
        if self.normalise { normalise(&vectors) } else { Ok(vectors) }
    }
}

fn mode(file: &Path) -> Loaded<PoolingMode> {
    let fields = Fields::read(file, "modules.json names it; download the model again")?;
    if let Some(mode) = fields.optional_text("pooling_mode")? {
        return match mode.as_str() {
            "mean" => Ok(PoolingMode::Mean),
            "cls" => Ok(PoolingMode::Cls),
            _ => Err(fields.unsupported("pooling_mode", mode, "only `mean` and `cls` can be served")),
        };
    }
    const FLAGS: [&str; 6] = ["mean_tokens", "cls_token", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"];
    let on = |flag: &&str| fields.flag_or(&format!("pooling_mode_{flag}"), false);
    let flags = FLAGS.iter().map(|flag| Ok(on(flag)?.then_some(*flag))).collect::<Loaded<Vec<_>>>()?;
    match flags.into_iter().flatten().collect::<Vec<_>>().as_slice() {
        ["mean_tokens"] => Ok(PoolingMode::Mean),
        ["cls_token"] => Ok(PoolingMode::Cls),
        other => {
            Err(LoadError::Unsupported(format!("pooling by {other:?} in `{}`; only mean_tokens or cls_token, one of them", file.display())))
        }
    }
}

/// Rows scaled to length one; a row of zeros stays.
fn normalise(rows: &Tensor) -> Result<Tensor> {
    let lengths = rows.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(1e-12)?;
    rows.broadcast_div(&lengths)
}
