//! Who asks: a presented key turned into a principal, and what that one may still use.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cortex_core::config::{KeyEntry, Priority};
use cortex_core::openai::ApiError;
use cortex_core::{ModelId, Usage};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::clock;
use crate::rate::Rate;

/// All keys.
#[derive(Debug)]
pub(crate) struct Keys {
    started: Instant,
    keys: Vec<([u8; 32], Arc<Principal>)>,
}

/// The holder of a key.
#[derive(Debug)]
pub(crate) struct Principal {
    pub(crate) name: Arc<str>,
    pub(crate) admin: bool,
    pub(crate) priority: Priority,
    models: Option<BTreeSet<String>>,
    requests: Option<Rate>,
    tokens: Option<Rate>,
    open_max: usize,
    open: AtomicUsize,
    started: Instant,
}

/// One open request of a principal.
#[derive(Debug)]
pub(crate) struct OpenRequest(Arc<Principal>);

/// Why a request is not let in.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum Denied {
    #[error("This gateway needs an API key: send `authorization: Bearer KEY` or `x-api-key: KEY`.")]
    Missing,
    #[error("The API key is not known. Ask the operator of this gateway for one.")]
    Unknown,
    #[error("The key `{0}` may not use /admin.")]
    NotAdmin(Arc<str>),
    #[error("The key `{key}` may not use the model `{model}`. GET /v1/models lists what it may use.")]
    Model { key: Arc<str>, model: String },
    #[error("The key `{key}` has used up its {what}; come back in {retry_after_s} s.")]
    Limit { key: Arc<str>, what: &'static str, retry_after_s: u64 },
}

impl Denied {
    /// The word in metrics.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Unknown => "unknown",
            Self::NotAdmin(_) | Self::Model { .. } => "forbidden",
            Self::Limit { .. } => "limited",
        }
    }
}

impl From<Denied> for ApiError {
    fn from(denied: Denied) -> Self {
        let message = denied.to_string();
        let request_error = |status, code| Self::new(status, "invalid_request_error", Some(code), &*message);
        match denied {
            Denied::Missing | Denied::Unknown => request_error(401, "invalid_api_key"),
            Denied::NotAdmin(_) => request_error(403, "insufficient_permissions"),
            Denied::Model { .. } => request_error(403, "model_not_allowed").with_param("model"),
            Denied::Limit { retry_after_s, .. } => {
                Self::new(429, "rate_limit_error", Some("rate_limit_exceeded"), message).with_retry_after(retry_after_s)
            }
        }
    }
}

impl Keys {
    pub(crate) fn new(entries: &[KeyEntry]) -> Self {
        let started = clock::now();
        let keys = entries.iter().map(|entry| (entry.sha256.0, Arc::new(Principal::new(entry, started)))).collect();
        Self { started, keys }
    }

    /// Whether anybody is asked for a key.
    pub(crate) fn are_asked_for(&self) -> bool {
        !self.keys.is_empty()
    }

    /// The holder of the key in `headers`. How long it takes does not depend on the key: every known one is compared to its end.
    pub(crate) fn principal(&self, headers: &HeaderMap) -> Result<Arc<Principal>, Denied> {
        let presented: [u8; 32] = Sha256::digest(presented(headers).ok_or(Denied::Missing)?).into();
        let mut found = u64::MAX;
        for (place, (hash, _)) in self.keys.iter().enumerate() {
            let same: Choice = hash.ct_eq(&presented);
            found.conditional_assign(&(place as u64), same);
        }
        let found = usize::try_from(found).ok().and_then(|place| self.keys.get(place));
        found.map(|(_, principal)| Arc::clone(principal)).ok_or(Denied::Unknown)
    }

    /// Other keys. Those that stay as they were keep their accounts.
    pub(crate) fn replaced_by(&self, entries: &[KeyEntry]) -> Self {
        let same = |entry: &KeyEntry| {
            let kept = self.keys.iter().find(|(hash, principal)| *hash == entry.sha256.0 && principal.is(entry));
            kept.map_or_else(|| Arc::new(Principal::new(entry, self.started)), |(_, principal)| Arc::clone(principal))
        };
        Self { started: self.started, keys: entries.iter().map(|entry| (entry.sha256.0, same(entry))).collect() }
    }
}

/// A key, in either dialect's place for it.
fn presented(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = || {
        let value = headers.get(AUTHORIZATION)?.as_bytes();
        let (scheme, key) = value.split_at_checked(b"bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
    };
    bearer().or_else(|| Some(headers.get("x-api-key")?.as_bytes())).filter(|key| !key.is_empty())
}

impl Principal {
    fn new(entry: &KeyEntry, started: Instant) -> Self {
        Self {
            name: entry.name.as_str().into(),
            admin: entry.admin,
            priority: entry.priority,
            models: entry.models.clone(),
            requests: entry.requests_per_minute_max.map(Rate::per_minute),
            tokens: entry.tokens_per_minute_max.map(Rate::per_minute),
            open_max: entry.requests_open_max.unwrap_or(usize::MAX),
            open: AtomicUsize::new(0),
            started,
        }
    }

    fn is(&self, entry: &KeyEntry) -> bool {
        let limited = |rate: &Option<Rate>, max: Option<u32>| match (rate, max) {
            (Some(rate), Some(max)) => rate.is_per_minute(max),
            (None, None) => true,
            _ => false,
        };
        *self.name == *entry.name
            && self.admin == entry.admin
            && self.priority == entry.priority
            && self.models == entry.models
            && self.open_max == entry.requests_open_max.unwrap_or(usize::MAX)
            && limited(&self.requests, entry.requests_per_minute_max)
            && limited(&self.tokens, entry.tokens_per_minute_max)
    }

    /// Whether `model` may be asked for, by its own name or by the alias that was used.
    pub(crate) fn may_use(&self, model: &ModelId, asked: &str) -> Result<(), Denied> {
        match &self.models {
            Some(models) if !models.contains(model.as_str()) && !models.contains(asked) => {
                Err(Denied::Model { key: Arc::clone(&self.name), model: asked.to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// Counts one more request, within all limits.
    pub(crate) fn open(self: &Arc<Self>) -> Result<OpenRequest, Denied> {
        let now = self.now();
        let limit = |what, wait: Duration| Denied::Limit {
            key: Arc::clone(&self.name),
            what,
            retry_after_s: wait.as_secs_f64().ceil().max(1.0) as u64,
        };
        let room = |open: usize| (open < self.open_max).then_some(open + 1);
        self.open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, room)
            .map_err(|_| limit("open requests (requests_open_max)", Duration::from_secs(1)))?;
        let open = OpenRequest(Arc::clone(self)); // gives the place back if another limit is reached
        if let Some(tokens) = &self.tokens {
            tokens.ask(now).map_err(|wait| limit("tokens (tokens_per_minute_max)", wait))?;
        }
        if let Some(requests) = &self.requests {
            requests.take(1, now).map_err(|wait| limit("requests (requests_per_minute_max)", wait))?;
        }
        Ok(open)
    }

    /// What a request has used. Tokens found in the prefix cache count as well: they were sent.
    pub(crate) fn charge(&self, usage: &Usage) {
        if let Some(tokens) = &self.tokens {
            tokens.charge(u64::from(usage.prompt_tokens) + u64::from(usage.completion_tokens), self.now());
        }
    }

    fn now(&self) -> Duration {
        clock::now().saturating_duration_since(self.started)
    }
}

impl OpenRequest {
    pub(crate) fn principal(&self) -> &Principal {
        &self.0
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
