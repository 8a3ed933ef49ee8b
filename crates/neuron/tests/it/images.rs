//! Pictures of a request: which are found, which are refused, and where they may be fetched from.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Response, Uri};
use cortex_core::{ChatPrompt, HarnessError};
use futures::StreamExt;
use neuron::config::ImageLimits;
use neuron::images::{Images, Lookup};
use neuron_engine::image::{Detail, EncodedImage};
use serde_json::{Value, json};

fn chat(messages: &Value) -> ChatPrompt {
    ChatPrompt { messages: serde_json::from_value(messages.clone()).expect("what the test wrote"), ..ChatPrompt::default() }
}

fn user(content: &Value) -> ChatPrompt {
    chat(&json!([{ "role": "user", "content": content }]))
}

fn picture(url: &str) -> ChatPrompt {
    user(&json!([{ "type": "image_url", "image_url": { "url": url } }]))
}

/// Names resolve as in `names`; every other name does not.
fn lookup(names: &[(&str, &[&str])]) -> Lookup {
    let names: HashMap<String, Vec<IpAddr>> = names
        .iter()
        .map(|(name, addresses)| {
            ((*name).to_owned(), addresses.iter().map(|address| address.parse().expect("what the test wrote")).collect())
        })
        .collect();
    Arc::new(move |host| {
        let found = names.get(&host).cloned().ok_or_else(|| std::io::Error::other("no such name"));
        Box::pin(async move { found })
    })
}

fn images(limits: ImageLimits, names: &[(&str, &[&str])]) -> Images {
    Images::with_lookup(limits, lookup(names)).expect("what the test wrote")
}

fn plain() -> Images {
    images(ImageLimits::default(), &[])
}

fn refusal<T: std::fmt::Debug>(result: Result<T, HarnessError>) -> (String, String) {
    match result {
        Err(HarnessError::InvalidRequest { message, param }) => (param.expect("what the test wrote"), message),
        other => panic!("{other:?} is no refusal"),
    }
}

#[tokio::test]
async fn pictures_come_in_the_order_in_which_they_appear() {
    let prompt = chat(&json!([
        { "role": "system", "content": "no pictures here" },
        { "role": "user", "content": [
            { "type": "text", "text": "data:image/png;base64,bm90IG1l" },
            { "type": "image_url", "image_url": { "url": "data:image/png;base64,b25l" } },
            { "type": "image_url", "image_url": "data:image/jpeg;base64,dHdv" },
            { "type": "image", "image": "data:;base64,dGhyZWU" },
        ] },
        { "role": "tool", "content": [{ "type": "image_url", "image_url": { "url": "DATA:image/webp;charset=x;base64,Zm91\ncg==" } }] },
        { "role": "user", "content": [
            { "type": "tool_result", "content": [{ "type": "image_url", "image_url": { "url": "data:image/gif;base64,Zml2ZQ==" } }] },
        ] },
    ]));
    let found = plain().collect(&prompt, true).await.unwrap();
    assert_eq!(found, [&b"one"[..], b"two", b"three", b"four", b"five"].map(|bytes| EncodedImage::from(bytes.to_vec())));
}

#[tokio::test]
async fn detail_travels_with_its_picture() {
    const URL: &str = "data:image/png;base64,b25l";
    let cases = [
        (json!({ "type": "image_url", "image_url": { "url": URL, "detail": "low" } }), Detail::Low),
        (json!({ "type": "image_url", "image_url": URL, "detail": "low" }), Detail::Low),
        (json!({ "type": "image_url", "image_url": { "url": URL, "detail": "high" } }), Detail::Full),
        (json!({ "type": "image_url", "image_url": { "url": URL, "detail": "auto" } }), Detail::Full),
        (json!({ "type": "image_url", "image_url": { "url": URL, "detail": null } }), Detail::Full),
    ];
    let prompt = user(&cases.iter().map(|(part, _)| part.clone()).collect());
    let found = plain().collect(&prompt, true).await.unwrap();
    assert_eq!(found.iter().map(|image| image.detail).collect::<Vec<_>>(), cases.map(|(_, detail)| detail));
    for wrong in [json!("tiny"), json!(1)] {
        let part = json!({ "type": "image_url", "image_url": { "url": URL, "detail": wrong } });
        let (place, message) = refusal(plain().collect(&user(&json!([part])), true).await);
        assert_eq!(place, "messages[0].content[0].image_url.detail");
        assert!(message.contains("\"low\""), "{message}");
    }
}

#[tokio::test]
async fn a_conversation_without_pictures_needs_no_vision() {
    for content in [json!("hello"), json!([{ "type": "text", "text": "hello" }]), json!(null), json!([])] {
        assert_eq!(plain().collect(&user(&content), false).await, Ok(Vec::new()));
    }
}

#[tokio::test]
async fn broken_pictures_are_named_with_their_place() {
    let url = |url: &str| json!({ "type": "image_url", "image_url": { "url": url } });
    let cases = [
        (json!({ "type": "image" }), "has no url"),
        (json!({ "type": "image_url" }), "has no url"),
        (json!({ "type": "image_url", "image_url": {} }), "has no url"),
        (json!({ "type": "image_url", "image_url": { "url": 7 } }), "has no url"),
        (url("data:image/png;base64,!!!!"), "base64 is broken"),
        (url("data:image/png;base64,"), "is empty"),
        (url("data:image/png,abc"), "must be base64"),
        (url("data:image/png;base64"), "no comma"),
        (url("data:text/html;base64,YQ=="), "`text/html` is no picture"),
        (url("ftp://a/b.png"), "cannot come from `ftp:`"),
        (url("file:///etc/passwd"), "cannot come from `file:`"),
        (url("picture.png"), "no scheme"),
        (url("http://"), "url is broken"),
        (json!({ "type": "video_url", "video_url": { "url": "http://a" } }), "`video_url` parts are not supported"),
    ];
    for (part, expected) in cases {
        let prompt =
            chat(&json!([{ "role": "user", "content": "hi" }, { "role": "user", "content": [{ "type": "text", "text": "" }, part] }]));
        let (place, message) = refusal(plain().collect(&prompt, true).await);
        assert_eq!(place, "messages[1].content[1]");
        assert!(message.contains(expected), "{part}: {message}");
    }
}

#[tokio::test]
async fn a_model_without_vision_is_not_sent_pictures() {
    let (place, message) = refusal(plain().collect(&picture("data:image/png;base64,b25l"), false).await);
    assert_eq!(place, "messages[0].content[0]");
    assert!(message.contains("does not read pictures"), "{message}");
}

#[tokio::test]
async fn number_and_size_are_bounded() {
    let limits = ImageLimits { per_request_max: 2, size_mib_max: 1, ..ImageLimits::default() };
    let part = json!({ "type": "image_url", "image_url": { "url": "data:image/png;base64,b25l" } });
    assert!(images(limits.clone(), &[]).collect(&user(&json!([part, part])), true).await.is_ok());
    let (_, message) = refusal(images(limits.clone(), &[]).collect(&user(&json!([part, part, part])), true).await);
    assert!(message.contains("at most 2"), "{message}");
    let large = format!("data:image/png;base64,{}", "A".repeat((1 << 20) / 3 * 4 + 8));
    let (_, message) = refusal(images(limits, &[]).collect(&picture(&large), true).await);
    assert!(message.contains("larger than 1 MiB"), "{message}");
}

/// A host of pictures on 127.0.0.1.
async fn host() -> SocketAddr {
    async fn answer(uri: Uri) -> Response<Body> {
        let redirect = |to: &str| Response::builder().status(302).header("location", to).body(Body::empty()).expect("a valid answer");
        match uri.path() {
            "/picture" => Response::new(Body::from("pixels")),
            "/again" => redirect("/picture"),
            "/around" => redirect("/around"),
            "/nowhere" => Response::builder().status(302).body(Body::empty()).expect("a valid answer"),
            "/inside" => redirect("http://10.0.0.1/picture"),
            "/inside-name" => redirect("http://inside.example/picture"),
            "/metadata" => redirect("http://169.254.169.254/latest"),
            "/file" => redirect("file:///etc/passwd"),
            "/large" => Response::new(Body::from(vec![0; (1 << 20) + 1])),
            "/endless" => Response::new(Body::from_stream(futures::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![0; 1 << 16])))),
            "/silent" => Response::new(Body::from_stream(futures::stream::pending::<std::io::Result<Vec<u8>>>().boxed())),
            _ => Response::builder().status(404).body(Body::empty()).expect("a valid answer"),
        }
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("a free port");
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    addr
}

/// Only the host's own address is allowed, of all that is not public.
fn fetching() -> ImageLimits {
    ImageLimits {
        size_mib_max: 1,
        private_networks_allowed: vec!["127.0.0.1".parse().expect("what the test wrote")],
        ..ImageLimits::default()
    }
}

const NAMES: &[(&str, &[&str])] = &[
    ("pictures.example", &["127.0.0.1"]),
    ("inside.example", &["10.0.0.1"]),
    ("both.example", &["127.0.0.1", "192.168.0.1"]),
    ("mapped.example", &["::ffff:10.0.0.1"]),
];

#[tokio::test]
async fn pictures_are_fetched_by_name_and_address_and_through_redirects() {
    let port = host().await.port();
    for url in ["http://127.0.0.1:{}/picture", "http://pictures.example:{}/picture", "http://pictures.example:{}/again"] {
        let url = url.replace("{}", &port.to_string());
        assert_eq!(images(fetching(), NAMES).collect(&picture(&url), true).await, Ok(vec![b"pixels".to_vec().into()]), "{url}");
    }
}

#[tokio::test]
async fn what_is_not_public_is_not_fetched() {
    let port = host().await.port();
    let cases = [
        ("http://127.0.0.2:{}/picture", "not a public address"),
        ("http://localhost:{}/picture", "no such name"),
        ("http://[::1]:{}/picture", "not a public address"),
        ("http://[::ffff:10.0.0.1]:{}/picture", "not a public address"),
        ("http://10.0.0.1/picture", "not a public address"),
        ("http://169.254.169.254/latest/meta-data", "not a public address"),
        ("http://0x0a000001/picture", "not a public address"),
        ("http://167772161/picture", "not a public address"),
        ("http://inside.example:{}/picture", "not a public address"),
        ("http://both.example:{}/picture", "not a public address"),
        ("http://mapped.example:{}/picture", "not a public address"),
        ("http://pictures.example:{}/inside", "not a public address"),
        ("http://pictures.example:{}/inside-name", "not a public address"),
        ("http://pictures.example:{}/metadata", "not a public address"),
        ("http://pictures.example:{}/file", "redirects to `file:`"),
        ("http://pictures.example:{}/around", "more than 3 redirects"),
        ("http://pictures.example:{}/nowhere", "redirects to nowhere"),
        ("http://pictures.example:{}/gone", "answered 404"),
        ("http://pictures.example:{}/large", "larger than 1 MiB"),
        ("http://pictures.example:{}/endless", "larger than 1 MiB"),
    ];
    for (url, expected) in cases {
        let url = url.replace("{}", &port.to_string());
        let (place, message) = refusal(images(fetching(), NAMES).collect(&picture(&url), true).await);
        assert_eq!(place, "messages[0].content[0]");
        assert!(message.contains(expected), "{url}: {message}");
        assert!(!message.contains("10.0.0.1"), "{url}: {message}");
    }
}

#[tokio::test]
async fn nothing_is_fetched_where_the_operator_says_so_or_nothing_comes() {
    let port = host().await.port();
    let url = format!("http://127.0.0.1:{port}/silent");
    let cases = [
        (ImageLimits { fetch: false, ..fetching() }, "does not fetch pictures"),
        (ImageLimits { fetch_s_max: 0, ..fetching() }, "did not arrive within 0 s"),
    ];
    for (limits, expected) in cases {
        let (_, message) = refusal(images(limits, NAMES).collect(&picture(&url), true).await);
        assert!(message.contains(expected), "{message}");
    }
}
