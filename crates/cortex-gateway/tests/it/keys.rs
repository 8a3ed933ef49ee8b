//! Who may do what, and how much of it.

use cortex_core::Placement;
use cortex_core::config::{GatewayConfig, KeyEntry, KeyHash, Priority};
use cortex_gateway::Gateway;
use http::{HeaderMap, HeaderValue, Method};
use http_body_util::BodyExt;
use neuron_api::mock::{Faults, MockConfig, MockModel, MockNeuron};
use sha2::{Digest, Sha256};

use crate::rig::{Reply, Rig, TestClient, chat, config, in_front_of, streamed, until};

pub(crate) fn key(name: &str) -> KeyEntry {
    KeyEntry {
        name: name.into(),
        sha256: KeyHash(Sha256::digest(format!("sk-{name}")).into()),
        admin: false,
        models: None,
        requests_per_minute_max: None,
        tokens_per_minute_max: None,
        requests_open_max: None,
        priority: Priority::Normal,
    }
}

async fn rig(keys: Vec<KeyEntry>) -> Rig {
    Rig::with([vec![MockModel::loaded("m"), MockModel::loaded("n")]], |config: &mut GatewayConfig| {
        config.keys = keys;
        config.placement = Placement::new([], [("alias".to_owned(), "m".into())].into());
    })
    .await
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_str(value).unwrap())).collect()
}

async fn ask(client: &TestClient, method: Method, path: &str, with: &[(&'static str, &str)], body: &str) -> Reply {
    client.request(method, path, headers(with), body.to_owned()).await
}

async fn chat_as(rig: &Rig, name: &str, model: &str) -> Reply {
    let key = format!("Bearer sk-{name}");
    ask(&rig.client(), Method::POST, "/v1/chat/completions", &[("authorization", &key)], &chat(model, "hi").to_string()).await
}

#[tokio::test]
async fn a_key_opens_what_it_is_for_in_either_dialects_header() {
    let rig = rig(vec![key("user"), KeyEntry { admin: true, ..key("admin") }]).await;
    let (chat, client) = (chat("m", "hi").to_string(), rig.client());
    let post = Method::POST;
    let (completions, messages) = ("/v1/chat/completions", "/v1/messages");
    let message = r#"{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}"#;
    type Case<'a> = (&'a Method, &'a str, &'a [(&'static str, &'a str)], &'a str, u16, &'a str);
    let cases: &[Case<'_>] = &[
        (&post, completions, &[("authorization", "Bearer sk-user")], &chat, 200, ""),
        (&post, completions, &[("authorization", "bearer  sk-user ")], &chat, 200, ""),
        (&post, completions, &[("x-api-key", "sk-user")], &chat, 200, ""),
        (&post, messages, &[("x-api-key", "sk-user")], message, 200, ""),
        (&post, completions, &[], &chat, 401, "needs an API key"),
        (&post, completions, &[("authorization", "Bearer ")], &chat, 401, "needs an API key"),
        (&post, completions, &[("authorization", "Basic sk-user")], &chat, 401, "needs an API key"),
        (&post, completions, &[("authorization", "Bearer sk-other")], &chat, 401, "not known"),
        (&post, completions, &[("x-api-key", "sk-use")], &chat, 401, "not known"),
        (&post, messages, &[("x-api-key", "no")], message, 401, "authentication_error"),
        (&Method::GET, "/v1/models", &[], "", 401, "needs an API key"),
        (&Method::GET, "/v1/nothing", &[], "", 401, "needs an API key"),
        (&Method::GET, "/admin/fleet", &[("x-api-key", "sk-user")], "", 403, "may not use /admin"),
        (&post, "/admin/models/unload", &[("x-api-key", "sk-user")], r#"{"model":"n"}"#, 403, "may not use /admin"),
        (&Method::GET, "/admin/fleet", &[("x-api-key", "sk-admin")], "", 200, ""),
        (&Method::GET, "/health", &[], "", 200, ""),
        (&Method::GET, "/ready?model=m", &[], "", 200, ""),
        (&Method::GET, "/version", &[], "", 200, ""),
    ];
    for (method, path, with, body, status, says) in cases {
        let reply = ask(&client, (*method).clone(), path, with, body).await;
        assert_eq!(reply.status.as_u16(), *status, "{path} {with:?}: {}", reply.text());
        assert!(reply.text().contains(says), "{path} {with:?}: {}", reply.text());
        assert!(reply.headers.contains_key("x-request-id"));
    }
    assert_eq!(rig.metric("cortex_auth_failures_total{reason=\"missing\"}").await, Some(5.0));
    until(async || rig.metric("cortex_key_requests_total{key=\"user\",outcome=\"ok\"}").await == Some(4.0)).await;
}

#[tokio::test]
async fn a_key_for_some_models_sees_and_uses_only_those() {
    let some = |models: &[&str]| Some(models.iter().map(ToString::to_string).collect());
    let rig = rig(vec![KeyEntry { models: some(&["m"]), ..key("model") }, KeyEntry { models: some(&["alias"]), ..key("alias") }]).await;
    let cases = [
        ("model", "m", 200),
        ("model", "alias", 200),
        ("model", "n", 403),
        ("alias", "alias", 200),
        ("alias", "m", 403),
        ("alias", "n", 403),
    ];
    for (name, model, status) in cases {
        let reply = chat_as(&rig, name, model).await;
        assert_eq!(reply.status.as_u16(), status, "{name} {model}: {}", reply.text());
        assert!(status == 200 || reply.code() == "model_not_allowed");
    }
    let list = ask(&rig.client(), Method::GET, "/v1/models", &[("x-api-key", "sk-model")], "").await.json();
    assert_eq!(list["data"].as_array().unwrap().iter().map(|entry| entry["id"].as_str().unwrap()).collect::<Vec<_>>(), ["m"]);
}

#[tokio::test]
async fn a_key_is_held_to_its_rates() {
    let rig = rig(vec![
        KeyEntry { requests_per_minute_max: Some(3), ..key("rare") },
        KeyEntry { tokens_per_minute_max: Some(1), ..key("short") },
    ])
    .await;
    let refused = async |name: &str| {
        let reply = chat_as(&rig, name, "m").await;
        assert_eq!((reply.status.as_u16(), reply.code().as_str()), (429, "rate_limit_exceeded"), "{}", reply.text());
        assert!(reply.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    };
    for _ in 0..3 {
        assert_eq!(chat_as(&rig, "rare", "m").await.status, 200);
    }
    refused("rare").await;
    // The first answer uses more than a minute's worth, which is known once it was given.
    assert_eq!(chat_as(&rig, "short", "m").await.status, 200);
    until(async || rig.metric("cortex_key_requests_total{key=\"short\",outcome=\"ok\"}").await == Some(1.0)).await;
    refused("short").await;
    refused("short").await;
    assert_eq!(rig.mock(0).counts().generations, 4, "what is refused reaches no node");
}

#[tokio::test]
async fn a_key_is_held_to_its_open_requests_and_gets_the_place_back() {
    let rig = rig(vec![KeyEntry { requests_open_max: Some(1), ..key("one") }, key("other")]).await;
    rig.mock(0).set_faults("m", Faults { hang: true, ..Faults::default() });
    let client = rig.client();
    let held = tokio::spawn(async move {
        let with = headers(&[("x-api-key", "sk-one")]);
        client.open(Method::POST, "/v1/chat/completions", with, streamed("m", "hi").to_string()).await.into_body().collect().await.map(drop)
    });
    rig.mock(0).wait_for(|counts| counts.active == 1).await;
    assert_eq!(chat_as(&rig, "one", "n").await.status, 429);
    assert_eq!(chat_as(&rig, "other", "n").await.status, 200);
    held.abort();
    until(async || chat_as(&rig, "one", "n").await.status == 200).await;
}

#[tokio::test]
async fn no_key_of_a_client_reaches_a_node_and_the_gateway_proves_itself_there() {
    let node = crate::rig::RawNode::start(vec![MockModel::loaded("m")], |_, _| None).await;
    let rig = in_front_of(&node, |config| {
        config.keys = vec![key("user")];
        config.gateway.node_token = "between-us".into();
    })
    .await;
    assert_eq!(chat_as(&rig, "user", "m").await.status, 200);
    for (path, headers, body) in node.seen.lock().unwrap().iter() {
        assert_eq!(headers["authorization"], "Bearer between-us", "{path}");
        let told = format!("{headers:?}{}", String::from_utf8_lossy(body));
        assert!(!told.contains("sk-user"), "{told}");
    }
}

#[tokio::test]
async fn a_node_with_a_token_answers_its_own_gateway_only() {
    let mock = MockNeuron::new(MockConfig { token: "between-us".into(), ..MockConfig::new([MockModel::loaded("m")]) });
    let node = mock.serve().await.unwrap();
    for (token, status) in [("between-us", 200), ("", 503), ("between", 503)] {
        let mut config = config([node.addr]);
        config.gateway.node_token = token.into();
        let gateway = Gateway::start(config).await.unwrap();
        let reply = TestClient::new(gateway.addr).chat(&chat("m", "hi")).await;
        assert_eq!(reply.status.as_u16(), status, "`{token}`: {}", reply.text());
    }
}

#[tokio::test]
async fn only_pages_of_the_named_origins_may_read_the_answers() {
    let rig = Rig::with([vec![MockModel::loaded("m")]], |config| {
        config.keys = vec![key("user")];
        config.gateway.cors_origins = vec!["https://app.example".into()];
    })
    .await;
    let preflight = |origin: &'static str| {
        let client = rig.client();
        async move {
            let with = [("origin", origin), ("access-control-request-method", "POST")];
            ask(&client, Method::OPTIONS, "/v1/chat/completions", &with, "").await
        }
    };
    let allowed = preflight("https://app.example").await;
    assert_eq!((allowed.status.as_u16(), &allowed.headers["access-control-allow-origin"]), (204, &"https://app.example".parse().unwrap()));
    let foreign = preflight("https://other.example").await;
    assert_eq!(foreign.status, 401);
    assert!(!foreign.headers.contains_key("access-control-allow-origin"));
    let with = [("origin", "https://app.example"), ("x-api-key", "sk-user")];
    let reply = ask(&rig.client(), Method::POST, "/v1/chat/completions", &with, &chat("m", "hi").to_string()).await;
    assert_eq!((reply.status.as_u16(), &reply.headers["access-control-allow-origin"]), (200, &"https://app.example".parse().unwrap()));
}
