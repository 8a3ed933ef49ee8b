//! Answers are read as hyper reads them, in whatever pieces they come, or refused.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cortex_net::{Dialer, Line, Pool};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Body;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// What a client makes of an answer: nothing, or a head, and a body and trailers if they came to their end.
#[derive(Debug, PartialEq)]
enum Seen {
    Nothing,
    Broken(u16, HeaderMap),
    Whole(u16, HeaderMap, Bytes, Option<HeaderMap>),
}

/// A server that says these bytes to everybody, so many at once, and hangs up.
#[derive(Debug)]
struct Says {
    bytes: Vec<u8>,
    at_once: usize,
}

impl Says {
    fn dialled(&self) -> DuplexStream {
        let (ours, mut theirs) = tokio::io::duplex(self.at_once);
        let bytes = self.bytes.clone();
        tokio::spawn(async move {
            let mut asked = [0; 4];
            let _ = theirs.read_exact(&mut asked).await; // an answer before any question would be refused
            let (mut reading, mut writing) = tokio::io::split(theirs);
            let answer = async {
                let _ = writing.write_all(&bytes).await;
                let _ = writing.shutdown().await;
            };
            let _ = tokio::join!(answer, async { tokio::io::copy(&mut reading, &mut tokio::io::sink()).await });
        });
        ours
    }
}

impl Line for Says {
    fn dial(&self, _authority: &str) -> io::Result<DuplexStream> {
        Ok(self.dialled())
    }
}

async fn seen<B: Body<Data = Bytes>, E>(answer: Result<Response<B>, E>) -> Seen {
    let Ok(answer) = answer else { return Seen::Nothing };
    let (head, body) = answer.into_parts();
    let status = head.status.as_u16();
    match body.collect().await {
        Ok(body) => {
            let trailers = body.trailers().cloned();
            Seen::Whole(status, head.headers, body.to_bytes(), trailers)
        }
        Err(_) => Seen::Broken(status, head.headers),
    }
}

async fn ours(says: &Arc<Says>) -> Seen {
    let line: Arc<dyn Line> = Arc::<Says>::clone(says);
    let pool = Pool::new(Dialer::in_memory(line), Duration::from_secs(1));
    seen(pool.request(Request::post("http://node:1/").body(Bytes::new()).unwrap()).await).await
}

async fn hypers(says: &Says) -> Seen {
    let (mut requests, connection) = http1::handshake(TokioIo::new(says.dialled())).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("/").header("host", "node:1").body(Empty::<Bytes>::new()).unwrap();
    seen(requests.send_request(request).await).await
}

fn both(bytes: Vec<u8>, at_once: usize) -> (Seen, Seen) {
    let says = Arc::new(Says { bytes, at_once });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { (ours(&says).await, hypers(&says).await) })
}

/// A body as it goes over the wire, with the headers that tell its length.
fn body() -> impl Strategy<Value = (&'static str, Vec<u8>)> {
    let whole = vec(any::<u8>(), 0..200);
    let chunks = vec(vec(any::<u8>(), 1..60), 0..6);
    let end = select(&["0\r\n\r\n", "0;last=yes\r\n\r\n", "000\r\nx-tokens: 7\r\nx-more: 1\r\n\r\n"]);
    let chunked = (chunks, end).prop_map(|(chunks, end)| {
        let chunk = |chunk: &Vec<u8>| [format!("{:x}\r\n", chunk.len()).into_bytes(), chunk.clone(), b"\r\n".to_vec()].concat();
        let bytes = [chunks.iter().flat_map(chunk).collect(), end.as_bytes().to_vec()].concat();
        ("transfer-encoding: chunked\r\n", bytes)
    });
    prop_oneof![chunked, whole.clone().prop_map(|bytes| ("", bytes)), whole.prop_map(|bytes| ("length", bytes)),]
}

fn answer() -> impl Strategy<Value = Vec<u8>> {
    let interim = select(&["", "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"]);
    let status = select(&["1.1 200 OK", "1.1 503 ", "1.0 200 OK", "1.1 204 No Content", "1.1 304 Not Modified", "1.1 429 Slow down"]);
    let header = select(&[
        "",
        "content-type: text/event-stream\r\n",
        "x-request-id: 1\r\nX-Request-Id: 2\r\n",
        "connection: close\r\n",
        "x:  a \r\n",
    ]);
    (interim, status, header, body()).prop_map(|(interim, status, header, (length, body))| {
        let length = if length == "length" { format!("content-length: {}\r\n", body.len()) } else { length.into() };
        let status = if length.starts_with("transfer") { status.replace("1.0", "1.1") } else { status.into() }; // 1.0 knows no chunks
        [format!("{interim}HTTP/{status}\r\n{header}{length}\r\n").into_bytes(), body].concat()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_proper_answer_is_read_as_hyper_reads_it(bytes in answer(), at_once in 1_usize..64) {
        let (ours, hypers) = both(bytes, at_once);
        prop_assert_eq!(&ours, &hypers);
        prop_assert!(matches!(ours, Seen::Whole(..)), "{:?}", ours);
    }

    #[test]
    fn one_that_breaks_off_is_as_broken_to_both(bytes in answer(), end in any::<Index>(), at_once in 1_usize..64) {
        let (ours, hypers) = both(bytes[..end.index(bytes.len())].to_vec(), at_once);
        prop_assert_eq!(ours, hypers);
    }

    #[test]
    fn what_is_taken_of_a_wrong_one_hyper_takes_too(
        mut bytes in answer(), at in any::<Index>(), wrong in prop_oneof![any::<u8>(), select(&b"\r\n:; 09afx"[..])], at_once in 1_usize..64,
    ) {
        let at = at.index(bytes.len());
        bytes[at] = wrong;
        let (ours, hypers) = both(bytes, at_once);
        prop_assert!(!matches!(ours, Seen::Whole(..)) || ours == hypers, "{:?} and {:?}", ours, hypers);
    }
}

#[test]
fn an_answer_of_two_lengths_is_refused() {
    for lengths in [
        "content-length: 2\r\ntransfer-encoding: chunked",
        "content-length: 2\r\ncontent-length: 3",
        "content-length: +2",
        "content-length: 2, 2",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
    ] {
        let (ours, _) = both(format!("HTTP/1.1 200 OK\r\n{lengths}\r\n\r\nhi").into_bytes(), 64);
        assert_eq!(ours, Seen::Nothing, "{lengths}");
    }
}

#[test]
fn what_has_no_end_has_one_here() {
    let long = |head: &str, line: &str, end: &str| [head.as_bytes(), &line.as_bytes().repeat(1 << 18)[..1 << 18], end.as_bytes()].concat();
    for bytes in [
        long("HTTP/1.1 200 OK\r\n", "x: y\r\n", "\r\n"),
        long("HTTP/1.1 200 OK\r\nx: ", "y", "\r\ncontent-length: 0\r\n\r\n"),
        long("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;", "x", "\r\nh\r\n0\r\n\r\n"),
        long("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: ", "y", "\r\n\r\n"),
    ] {
        let (ours, _) = both(bytes, 1 << 12);
        assert!(!matches!(ours, Seen::Whole(..)), "{ours:?}");
    }
}
