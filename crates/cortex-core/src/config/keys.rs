//! API keys: who may use the gateway, for what, and how much. Keys are kept as hashes, so that a configuration gives none away.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Deserializer};

use super::Priority;

/// One `[[keys]]` entry.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyEntry {
    /// How logs and metrics name its holder.
    pub name: String,
    /// SHA-256 of the key, in hexadecimal: `printf %s "$KEY" | sha256sum`.
    pub sha256: KeyHash,
    /// May use `/admin`.
    #[serde(default)]
    pub admin: bool,
    /// Models that may be asked for. Absent: all.
    #[serde(default)]
    pub models: Option<BTreeSet<String>>,
    /// Requests per minute; absent: no limit.
    #[serde(default)]
    pub requests_per_minute_max: Option<u32>,
    /// Tokens per minute, prompts and answers, as the nodes count them; absent: no limit.
    #[serde(default)]
    pub tokens_per_minute_max: Option<u32>,
    /// Requests open at once; absent: no limit.
    #[serde(default)]
    pub requests_open_max: Option<usize>,
    /// Who goes first where requests wait in line.
    #[serde(default)]
    pub priority: Priority,
}

/// The SHA-256 of a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash(pub [u8; 32]);

impl KeyHash {
    /// Reads 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 64 || !text.is_ascii() {
            return None;
        }
        let mut hash = [0; 32];
        for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        Some(Self(hash))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash(..)")
    }
}

impl<'de> Deserialize<'de> for KeyHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = "a key is given as the 64 hexadecimal digits of its SHA-256: printf %s \"$KEY\" | sha256sum";
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom(wrong))
    }
}
