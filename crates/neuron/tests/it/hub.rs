//! A hub to download from: the listing, redirects to a second host for large files, ranges, and faults on order.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Response, StatusCode};
use futures::{StreamExt, stream};
use serde_json::json;
use sha2::{Digest, Sha256};

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What goes wrong with the next matching requests, each once.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    Status(u16),
    RetryAfter {
        status: u16,
        seconds: u64,
    },
    /// The connection ends after this many bytes of the body.
    CutAfter(usize),
    /// Ranges are ignored: the whole file comes with 200.
    NoRange,
    /// These bytes instead.
    Bytes(Vec<u8>),
}

#[derive(Default)]
struct Inner {
    /// name -> contents, and whether it is large.
    files: BTreeMap<String, (Vec<u8>, bool)>,
    faults: BTreeMap<String, VecDeque<Fault>>,
    asked: Vec<Asked>,
    tells_blobs: bool,
    needs_token: Option<String>,
    cdn: Option<SocketAddr>,
}

/// One request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) host: &'static str,
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) token: Option<String>,
}

#[derive(Clone)]
pub(crate) struct Hub {
    inner: Arc<Mutex<Inner>>,
    pub(crate) endpoint: String,
}

impl Hub {
    pub(crate) async fn start() -> Self {
        let inner = Arc::new(Mutex::new(Inner { tells_blobs: true, ..Inner::default() }));
        let cdn = listen(Router::new().fallback(cdn_answer).with_state(inner.clone())).await;
        let hub = listen(Router::new().fallback(hub_answer).with_state(inner.clone())).await;
        inner.lock().expect("no holder panics").cdn = Some(cdn);
        Self { inner, endpoint: format!("http://{hub}") }
    }

    /// A repository with everything a model needs.
    pub(crate) async fn with_model(weights: &[u8]) -> Self {
        let hub = Self::start().await;
        hub.put("config.json", b"{\"model_type\": \"x\"}", false);
        hub.put("tokenizer.json", b"{}", true);
        hub.put("README.md", b"never fetched", false);
        hub.put("model.safetensors", weights, true);
        hub
    }

    pub(crate) fn put(&self, name: &str, contents: &[u8], large: bool) {
        self.inner.lock().expect("no holder panics").files.insert(name.to_owned(), (contents.to_owned(), large));
    }

    /// The next requests whose path ends with `name` go wrong, one fault each.
    pub(crate) fn fail(&self, name: &str, faults: impl IntoIterator<Item = Fault>) {
        self.inner.lock().expect("no holder panics").faults.entry(name.to_owned()).or_default().extend(faults);
    }

    pub(crate) fn tell_no_blobs(&self) {
        self.inner.lock().expect("no holder panics").tells_blobs = false;
    }

    pub(crate) fn need_token(&self, token: &str) {
        self.inner.lock().expect("no holder panics").needs_token = Some(token.to_owned());
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.inner.lock().expect("no holder panics").asked.clone()
    }

    /// Requests for bytes of a file so far.
    pub(crate) fn asked_for(&self, name: &str) -> Vec<Asked> {
        self.asked().into_iter().filter(|asked| asked.path.ends_with(name) && asked.path.contains("/bytes/")).collect()
    }
}

async fn listen(app: Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("a free port");
    tokio::spawn(async move { axum::serve(listener, app).await });
    addr
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

type Shared = State<Arc<Mutex<Inner>>>;

async fn hub_answer(State(inner): Shared, request: Request) -> Response<Body> {
    let mut inner = inner.lock().expect("no holder panics");
    let asked = inner.note("hub", &request);
    if let Some(fault) = inner.fault(&asked.path, |fault| matches!(fault, Fault::Status(_) | Fault::RetryAfter { .. })) {
        return refusal(&fault);
    }
    if inner.needs_token.is_some() && asked.token != inner.needs_token.as_ref().map(|token| format!("Bearer {token}")) {
        return status(401);
    }
    if asked.path.starts_with("/api/models/org/model/revision/") {
        return inner.listing();
    }
    match asked.path.strip_prefix(&format!("/org/model/resolve/{COMMIT}/")) {
        Some(name) => inner.resolve(name),
        // Small files come from the hub itself, behind a relative redirect.
        None => match asked.path.strip_prefix("/here/bytes/") {
            Some(name) => inner.bytes(name, &asked),
            None => status(404),
        },
    }
}

async fn cdn_answer(State(inner): Shared, request: Request) -> Response<Body> {
    let mut inner = inner.lock().expect("no holder panics");
    let asked = inner.note("cdn", &request);
    if let Some(fault) = inner.fault(&asked.path, |fault| matches!(fault, Fault::Status(_) | Fault::RetryAfter { .. })) {
        return refusal(&fault);
    }
    match asked.path.strip_prefix("/bytes/") {
        Some(name) => inner.bytes(name, &asked),
        None => status(404),
    }
}

impl Inner {
    fn note(&mut self, host: &'static str, request: &Request) -> Asked {
        let header = |name: &str| request.headers().get(name).map(|value| value.to_str().expect("UTF-8").to_owned());
        let asked = Asked { host, path: request.uri().path().to_owned(), range: header("range"), token: header("authorization") };
        self.asked.push(asked.clone());
        asked
    }

    fn fault(&mut self, path: &str, kind: fn(&Fault) -> bool) -> Option<Fault> {
        // `/resolve/` only leads on: what goes wrong, goes wrong where the bytes are.
        if path.contains("/resolve/") {
            return None;
        }
        let faults = self.faults.iter_mut().find(|(name, _)| path.ends_with(name.as_str()))?.1;
        if faults.front().is_some_and(kind) { faults.pop_front() } else { None }
    }

    fn listing(&self) -> Response<Body> {
        let sibling = |(name, (contents, large)): (&String, &(Vec<u8>, bool))| match (self.tells_blobs, large) {
            (false, _) => json!({ "rfilename": name }),
            (true, false) => json!({ "rfilename": name, "size": contents.len(), "blobId": &sha256(contents)[..40] }),
            (true, true) => json!({
                "rfilename": name, "size": contents.len(), "blobId": "d".repeat(40),
                "lfs": { "sha256": sha256(contents), "size": contents.len(), "pointerSize": 127 },
            }),
        };
        let siblings: Vec<_> = self.files.iter().map(sibling).collect();
        Response::new(Body::from(json!({ "sha": COMMIT, "siblings": siblings }).to_string()))
    }

    fn resolve(&self, name: &str) -> Response<Body> {
        let Some((contents, large)) = self.files.get(name) else { return status(404) };
        let (location, etag) = match large {
            true => (format!("http://{}/bytes/{name}", self.cdn.expect("what the test wrote")), sha256(contents)),
            false => (format!("/here/bytes/{name}"), sha256(contents)[..40].to_owned()),
        };
        let answer = Response::builder().status(302).header("location", location).header("etag", "\"the-redirect-itself\"");
        let answer = answer.header("x-linked-etag", format!("\"{etag}\"")).header("x-linked-size", contents.len());
        answer.header("x-repo-commit", COMMIT).body(Body::empty()).expect("a valid answer")
    }

    fn bytes(&mut self, name: &str, asked: &Asked) -> Response<Body> {
        let fault = self.fault(&asked.path, |_| true);
        let Some((contents, _)) = self.files.get(name) else { return status(404) };
        let contents = match &fault {
            Some(Fault::Bytes(bytes)) => bytes.clone(),
            _ => contents.clone(),
        };
        let from = asked.range.as_ref().map(|range| {
            range.strip_prefix("bytes=").expect("what the test wrote").trim_end_matches('-').parse::<usize>().expect("what the test wrote")
        });
        let from = from.filter(|_| !matches!(fault, Some(Fault::NoRange)));
        if from.is_some_and(|from| from >= contents.len()) {
            return status(416);
        }
        let rest = Bytes::from(contents[from.unwrap_or(0)..].to_vec());
        let answer = Response::builder().header("content-length", rest.len());
        let answer = match from {
            Some(from) => {
                let range = format!("bytes {from}-{}/{}", contents.len() - 1, contents.len());
                answer.status(206).header("content-range", range)
            }
            None => answer.status(200),
        };
        answer.body(body(rest, &fault)).expect("a valid answer")
    }
}

fn body(bytes: Bytes, fault: &Option<Fault>) -> Body {
    match fault {
        Some(Fault::CutAfter(len)) => {
            let first = bytes.slice(..bytes.len().min(*len));
            let cut = stream::once(async {
                // Pending once, so that the server sends what it has before it learns of the error.
                tokio::task::yield_now().await;
                Err(std::io::Error::other("cut"))
            });
            Body::from_stream(stream::once(async { Ok(first) }).chain(cut))
        }
        _ => Body::from(bytes),
    }
}

fn refusal(fault: &Fault) -> Response<Body> {
    match fault {
        Fault::RetryAfter { status, seconds } => {
            Response::builder().status(*status).header("retry-after", *seconds).body(Body::empty()).expect("a valid answer")
        }
        Fault::Status(code) => status(*code),
        other => unreachable!("{other:?} is no refusal"),
    }
}

fn status(code: u16) -> Response<Body> {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::from_u16(code).expect("what the test wrote");
    *answer.headers_mut() = HeaderMap::new();
    answer
}
