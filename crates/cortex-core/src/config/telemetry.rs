//! `[telemetry]`: who is told of each request.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `[telemetry]`: spans for a collector of OpenTelemetry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetrySection {
    /// Where one span for each request goes, as OTLP over HTTP: `http://collector:4318`. Absent: nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_endpoint: Option<OtlpEndpoint>,
    /// Whose certificate an `https` collector must show: a PEM file of authorities. Absent: any public authority's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
}

/// The address of a collector, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OtlpEndpoint(String);

impl OtlpEndpoint {
    /// Accepts `http://host:port` and `https://host:port`, with or without a path.
    ///
    /// # Errors
    /// Says what is missing.
    pub fn parse(text: &str) -> Result<Self, String> {
        let address = text.trim();
        let rest = address.strip_prefix("http://").or_else(|| address.strip_prefix("https://"));
        match rest {
            Some(rest) if !rest.is_empty() && !rest.starts_with('/') && !rest.contains([' ', '?', '#']) => Ok(Self(address.to_owned())),
            _ => Err(format!(
                "`{text}` must be http://host:port or https://host:port, where a collector takes OTLP over HTTP (4318 by default)"
            )),
        }
    }

    /// Where spans are sent: the path as it was given, or else the one of the standard.
    pub fn traces_url(&self) -> String {
        let (scheme, rest) = self.0.split_once("://").unwrap_or(("http", &self.0));
        match rest.split_once('/') {
            None | Some((_, "")) => format!("{scheme}://{}/v1/traces", rest.trim_end_matches('/')),
            Some(_) => self.0.clone(),
        }
    }
}

impl TryFrom<String> for OtlpEndpoint {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<OtlpEndpoint> for String {
    fn from(endpoint: OtlpEndpoint) -> Self {
        endpoint.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_is_an_address_with_the_standards_path_or_its_own() {
        let cases = [
            ("http://collector:4318", Some("http://collector:4318/v1/traces")),
            ("https://collector:4318/", Some("https://collector:4318/v1/traces")),
            (" http://collector/otlp/v1/traces ", Some("http://collector/otlp/v1/traces")),
            ("collector:4318", None),
            ("grpc://collector:4317", None),
            ("http://", None),
            ("http:///v1/traces", None),
            ("http://a b", None),
        ];
        for (text, url) in cases {
            assert_eq!(OtlpEndpoint::parse(text).ok().map(|endpoint| endpoint.traces_url()).as_deref(), url, "{text}");
        }
    }
}
