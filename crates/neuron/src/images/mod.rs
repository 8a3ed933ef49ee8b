//! The pictures of a request: found in its messages, decoded or fetched, and handed over in the order they appear.

mod fetch;
mod parts;

use std::time::Duration;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use cortex_core::{ChatPrompt, HarnessError};
use futures::{FutureExt, StreamExt, TryStreamExt};
use neuron_engine::image::EncodedImage;

pub use fetch::{Fetcher, Lookup};
use parts::{Part, PartSource, picture_parts};

use crate::config::ImageLimits;

/// Pictures fetched at once for one request.
const PARALLEL_FETCHES_MAX: usize = 4;

/// Data URLs come with and without padding.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&alphabet::STANDARD, GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent));

/// Collects the pictures of requests within the configured bounds.
#[derive(Debug)]
pub struct Images {
    limits: ImageLimits,
    fetcher: Fetcher,
}

impl Images {
    /// Fetches through the system's resolver.
    pub fn new(limits: ImageLimits) -> Result<Self, String> {
        Self::with_lookup(limits, fetch::system_lookup())
    }

    /// As [`Images::new`], with another resolver.
    pub fn with_lookup(limits: ImageLimits, lookup: Lookup) -> Result<Self, String> {
        let fetcher = Fetcher::new(
            limits.private_networks_allowed.clone(),
            limits.size_mib_max << 20,
            limits.redirects_max,
            Duration::from_secs(limits.fetch_s_max),
            lookup,
        )?;
        Ok(Self { limits, fetcher })
    }

    /// The encoded pictures of `chat` in order of appearance. Where the model does not see, any picture is refused.
    pub async fn collect(&self, chat: &ChatPrompt, sees: bool) -> Result<Vec<EncodedImage>, HarnessError> {
        let parts = self.allowed_parts(chat, sees)?;
        // Boxed: the compiler cannot yet prove a stream of borrowing futures to be `Send`.
        let reads: Vec<_> = parts.into_iter().map(|part| self.read(part).boxed()).collect();
        futures::stream::iter(reads).buffered(PARALLEL_FETCHES_MAX).try_collect().await
    }

    fn allowed_parts(&self, chat: &ChatPrompt, sees: bool) -> Result<Vec<Part>, HarnessError> {
        let parts = picture_parts(&chat.messages)?;
        let max = self.limits.per_request_max;
        match parts.first() {
            Some(part) if !sees => {
                Err(HarnessError::invalid(&part.place, "this model does not read pictures; send text only, or use a vision model"))
            }
            Some(_) if parts.len() > max => {
                Err(HarnessError::invalid("messages", format!("{} pictures in one request; at most {max} are allowed", parts.len())))
            }
            _ => Ok(parts),
        }
    }

    async fn read(&self, part: Part) -> Result<EncodedImage, HarnessError> {
        let bytes = match part.source {
            PartSource::Data(base64) => self.decode(&base64),
            PartSource::Web(_) if !self.limits.fetch => Err("this node does not fetch pictures: send a data: URL".to_owned()),
            PartSource::Web(url) => self.fetcher.fetch(url).await,
        };
        match bytes {
            Ok(bytes) if bytes.is_empty() => Err(HarnessError::invalid(part.place, "the picture is empty")),
            Ok(bytes) => Ok(EncodedImage { bytes, detail: part.detail }),
            Err(problem) => Err(HarnessError::invalid(part.place, problem)),
        }
    }

    fn decode(&self, text: &str) -> Result<Vec<u8>, String> {
        if text.len() / 4 * 3 > self.limits.size_mib_max << 20 {
            return Err(format!("the picture is larger than {} MiB", self.limits.size_mib_max));
        }
        let compact: String = text.split_ascii_whitespace().collect();
        BASE64.decode(compact).map_err(|error| format!("the picture's base64 is broken: {error}"))
    }
}
