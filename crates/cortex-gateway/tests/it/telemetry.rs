//! Spans: one for each request, at a collector that may be there or not.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use cortex_core::config::{GatewayConfig, OtlpEndpoint};
use cortex_gateway::Gateway;
use http::{HeaderMap, Method};
use neuron_api::mock::MockModel;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

use crate::rig::{RawNode, Rig, chat, config, streamed, until};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// Takes what it is sent.
#[derive(Clone, Default)]
struct Collector {
    taken: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
}

impl Collector {
    async fn start(&self) -> OtlpEndpoint {
        let taken = Arc::clone(&self.taken);
        let take = move |body: Bytes| {
            taken.lock().unwrap().push(ExportTraceServiceRequest::decode(body).unwrap());
            std::future::ready(())
        };
        serve(Router::new().route("/v1/traces", post(take))).await
    }

    fn spans(&self) -> Vec<Span> {
        let taken = self.taken.lock().unwrap();
        taken.iter().flat_map(|batch| &batch.resource_spans).flat_map(|of| &of.scope_spans).flat_map(|of| of.spans.clone()).collect()
    }
}

async fn serve(router: Router) -> OtlpEndpoint {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = OtlpEndpoint::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    endpoint
}

fn attributes(span: &Span) -> BTreeMap<String, String> {
    let shown = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(flag) => flag.to_string(),
        Value::DoubleValue(_) => "a number".into(),
        other => format!("{other:?}"),
    };
    let value = |pair: &opentelemetry_proto::tonic::common::v1::KeyValue| pair.value.as_ref().and_then(|any| any.value.as_ref()).map(shown);
    span.attributes.iter().map(|pair| (pair.key.clone(), value(pair).unwrap_or_default())).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn rig(node: &RawNode, collector: Option<OtlpEndpoint>) -> Rig {
    let mut config: GatewayConfig = config([node.addr]);
    config.telemetry.otlp_endpoint = collector;
    Rig { gateway: Gateway::start(config).await.unwrap(), nodes: Vec::new() }
}

async fn ask(rig: &Rig, trace: &[(&'static str, &str)], body: serde_json::Value) -> u16 {
    let headers: HeaderMap = trace.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
    rig.client().request(Method::POST, "/v1/chat/completions", headers, body.to_string()).await.status.as_u16()
}

/// `traceparent` and `tracestate` of the chats that the node saw.
fn seen(node: &RawNode) -> Vec<(Option<String>, Option<String>)> {
    let text = |headers: &HeaderMap, name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let seen = node.seen.lock().unwrap();
    let chats = seen.iter().filter(|(path, ..)| path == "/v1/chat/completions");
    chats.map(|(_, headers, _)| (text(headers, "traceparent"), text(headers, "tracestate"))).collect()
}

#[tokio::test]
async fn each_request_is_a_span_of_its_callers_trace_and_the_nodes_work_is_part_of_it() {
    let collector = Collector::default();
    let node = RawNode::start(vec![MockModel::loaded("m").saying(["Good ", "day."])], |_, _| None).await;
    let rig = rig(&node, Some(collector.start().await)).await;
    let parent = format!("00-{TRACE}-{PARENT}-01");
    assert_eq!(ask(&rig, &[("traceparent", &parent), ("tracestate", "a=b"), ("x-request-id", "first")], streamed("m", "hello")).await, 200);
    assert_eq!(ask(&rig, &[("traceparent", "no parent"), ("tracestate", "a=b")], chat("m", "hello")).await, 200);
    assert_eq!(ask(&rig, &[], chat("nowhere", "hello")).await, 404);
    until(async || collector.spans().len() == 3).await;

    let spans = collector.spans();
    let of = |id: &str| spans.iter().find(|span| attributes(span)["cortex.request_id"] == id);
    let first = of("first").expect("the request with that id");
    assert_eq!((hex(&first.trace_id).as_str(), hex(&first.parent_span_id).as_str(), first.name.as_str()), (TRACE, PARENT, "chat m"));
    assert!(first.end_time_unix_nano >= first.start_time_unix_nano);
    let told = attributes(first);
    let expected = [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.provider.name", "cortex"),
        ("gen_ai.request.model", "m"),
        ("gen_ai.usage.output_tokens", "2"),
        ("gen_ai.usage.cache_read.input_tokens", "0"),
        ("http.request.method", "POST"),
        ("http.route", "/v1/chat/completions"),
        ("http.response.status_code", "200"),
        ("cortex.node", "a"),
        ("cortex.outcome", "ok"),
        ("cortex.retries", "0"),
        ("cortex.cold_start", "false"),
        ("cortex.ttft_ms", "a number"),
    ];
    for (name, value) in expected {
        assert_eq!(told.get(name).map(String::as_str), Some(value), "{name} in {told:?}");
    }
    assert!(told["gen_ai.usage.input_tokens"].parse::<u32>().unwrap() > 0);

    let [(with_parent, state), (without, no_state)] = <[_; 2]>::try_from(seen(&node)).unwrap();
    assert_eq!((with_parent, state.as_deref()), (Some(format!("00-{TRACE}-{}-01", hex(&first.span_id))), Some("a=b")));
    let root = spans.iter().find(|span| span.name == "chat m" && span.parent_span_id.is_empty()).expect("a trace of its own");
    assert_eq!((without, no_state), (Some(format!("00-{}-{}-01", hex(&root.trace_id), hex(&root.span_id))), None));

    let refused = spans.iter().map(attributes).find(|told| told["cortex.outcome"] == "refused").expect("the unknown model");
    assert_eq!((refused["error.type"].as_str(), refused["http.response.status_code"].as_str()), ("refused", "404"));
    assert_eq!(rig.metric("cortex_spans_total{outcome=\"exported\"}").await, Some(3.0));
}

#[tokio::test]
async fn a_trace_that_nobody_wants_to_see_is_passed_on_and_not_sent() {
    let collector = Collector::default();
    let node = RawNode::start(vec![MockModel::loaded("m")], |_, _| None).await;
    let rig = rig(&node, Some(collector.start().await)).await;
    assert_eq!(ask(&rig, &[("traceparent", &format!("00-{TRACE}-{PARENT}-00"))], chat("m", "hello")).await, 200);
    assert_eq!(ask(&rig, &[], chat("m", "hello")).await, 200);
    until(async || !collector.spans().is_empty()).await;
    assert!(collector.spans().iter().all(|span| hex(&span.trace_id) != TRACE));
    let (first, _) = seen(&node).remove(0);
    assert!(first.is_some_and(|first| first.starts_with(&format!("00-{TRACE}-")) && first.ends_with("-00")));
}

#[tokio::test]
async fn without_a_collector_the_trace_context_passes_as_it_is() {
    let node = RawNode::start(vec![MockModel::loaded("m")], |_, _| None).await;
    let rig = rig(&node, None).await;
    let parent = format!("00-{TRACE}-{PARENT}-01");
    assert_eq!(ask(&rig, &[("traceparent", &parent), ("tracestate", "a=b")], chat("m", "hello")).await, 200);
    assert_eq!(ask(&rig, &[], chat("m", "hello")).await, 200);
    assert_eq!(seen(&node), [(Some(parent), Some("a=b".into())), (None, None)]);
}

#[tokio::test]
async fn a_collector_that_fails_or_never_answers_stands_in_nobodys_way() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = serve(Router::new().route("/v1/traces", post(std::future::pending::<()>))).await;
    let broken = serve(Router::new().route("/v1/traces", post(|| std::future::ready(http::StatusCode::INTERNAL_SERVER_ERROR)))).await;
    for (endpoint, fails) in [(OtlpEndpoint::parse(&format!("http://{gone}")).unwrap(), true), (broken, true), (silent, false)] {
        let node = RawNode::start(vec![MockModel::loaded("m")], |_, _| None).await;
        let rig = rig(&node, Some(endpoint)).await;
        for _ in 0..20 {
            assert_eq!(ask(&rig, &[], chat("m", "hello")).await, 200);
        }
        if fails {
            until(async || rig.metric("cortex_spans_total{outcome=\"failed\"}").await == Some(20.0)).await;
        }
        assert_eq!(rig.gateway.shutdown().await.cut, 0, "what the collector does not take is not waited for, for long");
    }
}
