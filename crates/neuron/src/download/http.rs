//! Requests to the hub: redirects followed by hand, so that the first answer's headers are seen and the token stays with the
//! hub; retried while the hub is busy.

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, LOCATION, RANGE, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, Method, Response, StatusCode, Url};

use super::error::DownloadError;
use crate::config::Secret;

const REDIRECTS_MAX: usize = 10;
const CONNECT_MAX: Duration = Duration::from_secs(15);
/// Longest silence before a connection counts as cut.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How often and how patiently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Tries in a row that bring nothing.
    pub tries_max: u32,
    /// Wait after the first failure; it doubles with each further one.
    pub first_wait: Duration,
    /// Longest wait, also where the hub asks for a longer one.
    pub wait_max: Duration,
}

impl Retry {
    /// The wait after `failures` failures in a row.
    pub(crate) fn wait(&self, failures: u32, retry_after: Option<Duration>) -> Duration {
        let doubled = self.first_wait.saturating_mul(1 << failures.saturating_sub(1).min(16));
        retry_after.unwrap_or(doubled).min(self.wait_max)
    }
}

/// One hub.
#[derive(Debug)]
pub(crate) struct HubClient {
    http: Client,
    endpoint: Url,
    token: Option<Secret>,
    pub(crate) retry: Retry,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) method: Method,
    pub(crate) url: Url,
    /// For errors: the file or the repository.
    pub(crate) what: String,
    /// The first byte wanted.
    pub(crate) from: u64,
}

/// A good answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) response: Response,
    /// `X-Linked-Etag` of the hub, or else the `ETag`, without quotes.
    pub(crate) etag: Option<String>,
    /// `X-Linked-Size` of the hub.
    pub(crate) linked_size: Option<u64>,
}

/// Why one try brought nothing.
enum Failure {
    Final(DownloadError),
    Busy { status: u16, retry_after: Option<Duration> },
    Cut(String),
}

impl HubClient {
    pub(crate) fn new(endpoint: &str, token: Option<Secret>, retry: Retry) -> Result<Self, DownloadError> {
        let unusable = |reason: String| DownloadError::Unexpected { what: format!("the address `{endpoint}`"), reason };
        let http = Client::builder()
            .redirect(Policy::none())
            .connect_timeout(CONNECT_MAX)
            .read_timeout(SILENCE_MAX)
            .user_agent(concat!("neuron/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| unusable(story(&error)))?;
        let endpoint = Url::parse(endpoint).map_err(|error| unusable(error.to_string()))?;
        Ok(Self { http, endpoint, token, retry })
    }

    /// `endpoint` with `path` behind it, query included.
    pub(crate) fn url(&self, path: &str) -> Result<Url, DownloadError> {
        let text = format!("{}/{path}", self.endpoint.as_str().trim_end_matches('/'));
        Url::parse(&text).map_err(|error| DownloadError::Unexpected { what: format!("`{text}`"), reason: error.to_string() })
    }

    /// Asks until there is a good answer (2xx, or 416 for the caller to judge) or no hope.
    pub(crate) async fn ask(&self, ask: &Ask) -> Result<Answer, DownloadError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let (retry_after, last) = match self.follow(ask).await {
                Ok(answer) => return Ok(answer),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Busy { status, retry_after }) => (retry_after, DownloadError::Busy { status, what: ask.what.clone(), tries }),
                Err(Failure::Cut(reason)) => (None, DownloadError::Unreachable { what: ask.what.clone(), tries, reason }),
            };
            if tries >= self.retry.tries_max {
                return Err(last);
            }
            tracing::warn!(what = ask.what, tries, "{last}");
            tokio::time::sleep(self.retry.wait(tries, retry_after)).await;
        }
    }

    async fn follow(&self, ask: &Ask) -> Result<Answer, Failure> {
        let mut url = ask.url.clone();
        let (mut etag, mut linked_size) = (None, None);
        for _ in 0..=REDIRECTS_MAX {
            let response = self.send(ask, url.clone()).await?;
            let headers = response.headers();
            // A mirror's redirect carries an `ETag` of its own, so only the linked one counts before the last hop.
            etag = etag.or_else(|| text(headers, "x-linked-etag").map(unquote));
            linked_size = linked_size.or_else(|| text(headers, "x-linked-size")?.parse().ok());
            let status = response.status();
            if !status.is_redirection() {
                return self.judge(ask, response, etag, linked_size);
            }
            // What a HEAD wants to know is known; and signed addresses often refuse HEAD.
            if ask.method == Method::HEAD && etag.is_some() {
                return Ok(Answer { response, etag, linked_size });
            }
            url = next_hop(&url, text(headers, LOCATION.as_str())).map_err(|reason| Failure::Final(unexpected(ask, reason)))?;
        }
        Err(Failure::Final(unexpected(ask, format!("more than {REDIRECTS_MAX} redirects"))))
    }

    async fn send(&self, ask: &Ask, url: Url) -> Result<Response, Failure> {
        let at_home = url.origin() == self.endpoint.origin();
        let mut request = self.http.request(ask.method.clone(), url);
        if let Some(token) = self.token.as_ref().filter(|_| at_home) {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.reveal()));
        }
        if ask.from > 0 {
            request = request.header(RANGE, format!("bytes={}-", ask.from));
        }
        request.send().await.map_err(|error| Failure::Cut(story(&error)))
    }

    fn judge(&self, ask: &Ask, response: Response, etag: Option<String>, linked_size: Option<u64>) -> Result<Answer, Failure> {
        let status = response.status();
        let headers = response.headers();
        match status {
            _ if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE => {
                let etag = etag.or_else(|| text(headers, "etag").map(unquote));
                Ok(Answer { response, etag, linked_size })
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(Failure::Final(DownloadError::refused(status.as_u16(), ask.what.clone(), self.token.is_some())))
            }
            StatusCode::NOT_FOUND => Err(Failure::Final(DownloadError::NotFound { what: ask.what.clone() })),
            _ if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() => {
                let seconds = text(headers, RETRY_AFTER.as_str()).and_then(|value| value.trim().parse().ok());
                Err(Failure::Busy { status: status.as_u16(), retry_after: seconds.map(Duration::from_secs) })
            }
            _ => Err(Failure::Final(unexpected(ask, format!("status {status}")))),
        }
    }
}

/// Where a redirect leads; never from https down to http.
fn next_hop(from: &Url, location: Option<&str>) -> Result<Url, String> {
    let location = location.ok_or("a redirect without a Location")?;
    let to = from.join(location).map_err(|error| format!("a redirect to `{location}`: {error}"))?;
    if from.scheme() == "https" && to.scheme() != "https" {
        return Err(format!("a redirect from https to `{to}`"));
    }
    Ok(to)
}

fn unexpected(ask: &Ask, reason: String) -> DownloadError {
    DownloadError::Unexpected { what: ask.what.clone(), reason }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn unquote(etag: &str) -> String {
    etag.trim_start_matches("W/").trim_matches('"').to_owned()
}

/// An error with its causes: reqwest's own text stops before the one that matters.
pub(crate) fn story(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_their_bound_and_follow_the_hub() {
        let retry = Retry { tries_max: 9, first_wait: Duration::from_secs(1), wait_max: Duration::from_secs(60) };
        let cases = [
            (1, None, 1),
            (2, None, 2),
            (5, None, 16),
            (8, None, 60),
            (90, None, 60),
            (1, Some(7), 7),
            (1, Some(0), 0),
            (1, Some(999), 60),
        ];
        for (failures, retry_after, expected) in cases {
            assert_eq!(
                retry.wait(failures, retry_after.map(Duration::from_secs)),
                Duration::from_secs(expected),
                "{failures} {retry_after:?}"
            );
        }
    }

    #[test]
    fn redirects_never_lose_their_encryption() {
        let hop = |from: &str, to: Option<&str>| next_hop(&Url::parse(from).unwrap(), to).map(String::from);
        assert_eq!(hop("https://a/b/c", Some("/d")), Ok("https://a/d".into()));
        assert_eq!(hop("http://a/b", Some("https://cdn/d?x=1")), Ok("https://cdn/d?x=1".into()));
        assert!(hop("https://a/b", Some("http://a/b")).is_err());
        assert!(hop("https://a/b", None).is_err());
    }
}
