//! Requests that cannot be served are told why, in OpenAI's shape.

use cortex_gateway::{Gateway, StartError};
use http::{HeaderMap, Method};
use neuron_api::mock::MockModel;

use crate::rig::{Rig, chat, config};

#[tokio::test]
async fn every_refusal_says_what_is_wrong() {
    let rig = Rig::with([vec![MockModel::loaded("m")]], |config| config.limits.body_bytes_max = 1_000.try_into().unwrap()).await;
    let large = chat("m", &"x".repeat(1_000)).to_string();
    let cases = [
        (Method::POST, "/v1/chat/completions", chat("nobody", "hi").to_string(), 404, "model_not_found", "`nobody`"),
        (Method::POST, "/v1/embeddings", chat("no/body", "hi").to_string(), 404, "model_not_found", "`no/body`"),
        (Method::POST, "/v1/chat/completions", String::new(), 400, "", "it is empty"),
        (Method::POST, "/v1/chat/completions", "{\"model\": \"m\"".into(), 400, "", "not valid JSON"),
        (Method::POST, "/v1/completions", "{\"prompt\": \"m\"}".into(), 400, "missing_required_parameter", "names no `model`"),
        (Method::POST, "/v1/chat/completions", large, 413, "request_too_large", "1000 bytes"),
        (Method::POST, "/v1/chat/completions", "{\"model\": \"m\"}".into(), 400, "missing_required_parameter", "messages"),
        (Method::POST, "/v1/chat", "{}".into(), 404, "not_found", "POST /v1/chat"),
        (Method::GET, "/v1/chat/completions", String::new(), 405, "method_not_allowed", "GET"),
    ];
    for (method, path, body, status, code, says) in cases {
        let reply = rig.client().request(method, path, HeaderMap::new(), body.clone()).await;
        assert_eq!((reply.status.as_u16(), reply.code().as_str()), (status, code), "{path} {body}: {}", reply.text());
        let error = &reply.json()["error"];
        assert!(error["message"].as_str().unwrap().contains(says), "{error}");
        assert_eq!(error["type"], "invalid_request_error");
        assert!(reply.headers.contains_key("x-request-id"));
    }
    assert_eq!(rig.mock(0).counts().generations, 0);
    let unknown = "cortex_requests_total{endpoint=\"/v1/embeddings\",model=\"\",node=\"\",outcome=\"refused\"}";
    assert_eq!(rig.metric(unknown).await, Some(1.0), "names that clients invent are no labels");
}

#[tokio::test]
async fn an_address_in_use_is_named_with_its_setting() {
    let rig = Rig::start([]).await;
    let mut config = config([]);
    config.gateway.listen = rig.gateway.addr;
    let error = Gateway::start(config).await.expect_err("the address is taken");
    assert!(matches!(error, StartError::Listen { address, .. } if address == rig.gateway.addr));
    assert!(error.to_string().contains("gateway.listen"), "{error}");
}
