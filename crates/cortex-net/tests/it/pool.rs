//! Connections are used again while they can be, and only then.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cortex_net::{Dialer, Line, Pool, PooledBody, SendError};
use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::Notify;

const IDLE_MAX: Duration = Duration::from_secs(60);
const WHOLE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nh\r\n1\r\ni\r\n0\r\n\r\n";
/// Said as soon as the head was read; nothing is read after it.
const EARLY: &str = "HTTP/1.1 413 Too Long\r\ncontent-length: 2\r\n\r\nno";
/// Instead of an answer.
const HANGS_UP: &str = "";
const BEGUN: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nh\r\n";

/// A server in this process: on each connection it gives these answers, one to each request, and hangs up.
struct Server {
    answers: &'static [&'static str],
    dialled: AtomicUsize,
    /// A connection was closed, by whomever.
    closed: Arc<Notify>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Server")
    }
}

impl Server {
    fn new(answers: &'static [&'static str]) -> Arc<Self> {
        Arc::new(Self { answers, dialled: AtomicUsize::new(0), closed: Arc::default() })
    }

    fn pool(self: &Arc<Self>) -> Pool {
        let line: Arc<dyn Line> = Arc::<Self>::clone(self);
        Pool::new(Dialer::in_memory(line), IDLE_MAX)
    }

    fn dialled(&self) -> usize {
        self.dialled.load(Ordering::Relaxed)
    }
}

impl Line for Server {
    fn dial(&self, authority: &str) -> io::Result<DuplexStream> {
        if authority != "node:1" {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        self.dialled.fetch_add(1, Ordering::Relaxed);
        let (ours, theirs) = tokio::io::duplex(1 << 10);
        let (answers, closed) = (self.answers, Arc::clone(&self.closed));
        tokio::spawn(async move {
            let _ = serve(theirs, answers).await;
            closed.notify_one();
        });
        Ok(ours)
    }
}

async fn serve(mut wire: DuplexStream, answers: &[&str]) -> io::Result<()> {
    for answer in answers {
        let mut seen = Vec::new();
        let until: &[u8] = if *answer == EARLY { b"\r\n\r\n" } else { b"\r\n\r\nask" };
        while !seen.windows(until.len()).any(|end| end == until) {
            if wire.read_buf(&mut seen).await? == 0 {
                return Ok(());
            }
        }
        if *answer == HANGS_UP {
            return Ok(());
        }
        wire.write_all(answer.as_bytes()).await?;
        if *answer == EARLY {
            std::future::pending::<()>().await;
        }
    }
    if answers.ends_with(&[BEGUN]) {
        wire.read_u8().await?; // until the client has enough
    }
    Ok(())
}

async fn ask(pool: &Pool) -> Result<Response<PooledBody>, SendError> {
    let request = Request::post("http://node:1/path").body(Bytes::from_static(b"ask")).unwrap();
    pool.request(request).await
}

async fn text(answer: Response<PooledBody>) -> Bytes {
    answer.into_body().collect().await.unwrap().to_bytes()
}

#[tokio::test]
async fn a_connection_serves_one_request_after_the_other() {
    for answers in [&[WHOLE; 9], &[CHUNKED; 9]] {
        let server = Server::new(answers);
        let pool = server.pool();
        for _ in 0..5 {
            assert_eq!(text(ask(&pool).await.unwrap()).await, "hi");
        }
        assert_eq!(server.dialled(), 1, "{answers:?}");
        let (one, other) = (ask(&pool).await.unwrap(), ask(&pool).await.unwrap());
        assert_eq!((text(one).await, text(other).await), ("hi".into(), "hi".into()));
        assert_eq!(server.dialled(), 2, "two at once need two, {answers:?}");
    }
}

#[tokio::test]
async fn one_that_the_server_closed_while_it_was_idle_is_not_used_again() {
    let server = Server::new(&[WHOLE]);
    let pool = server.pool();
    for asked in 1..5 {
        assert_eq!(text(ask(&pool).await.unwrap()).await, "hi");
        server.closed.notified().await;
        assert_eq!(server.dialled(), asked);
    }
}

#[tokio::test]
async fn one_that_the_server_closes_at_the_request_is_replaced_and_the_request_repeated() {
    let server = Server::new(&[WHOLE, HANGS_UP]);
    let pool = server.pool();
    for asked in 1..5 {
        assert_eq!(text(ask(&pool).await.unwrap()).await, "hi");
        assert_eq!(server.dialled(), asked);
    }
}

#[tokio::test]
async fn an_answer_that_comes_before_the_request_was_sent_counts_and_its_connection_is_not_used_again() {
    let server = Server::new(&[EARLY]);
    let pool = server.pool();
    for asked in 1..3 {
        let request = Request::post("http://node:1/path").body(Bytes::from(vec![b'x'; 1 << 20])).unwrap();
        let answer = pool.request(request).await.unwrap();
        assert_eq!((answer.status().as_u16(), text(answer).await), (413, "no".into()));
        assert_eq!(server.dialled(), asked);
    }
}

#[tokio::test]
async fn an_answer_that_is_not_read_to_its_end_takes_its_connection_along() {
    let server = Server::new(&[BEGUN]);
    let pool = server.pool();
    let mut answer = ask(&pool).await.unwrap();
    assert_eq!(answer.body_mut().frame().await.unwrap().unwrap().into_data().unwrap(), "h");
    drop(answer);
    server.closed.notified().await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_an_error_and_no_end() {
    let broken: &[&[&str]] =
        &[&["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nh"], &["HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nh"]];
    for answers in broken {
        let pool = Server::new(answers).pool();
        assert!(ask(&pool).await.unwrap().into_body().collect().await.is_err(), "{answers:?}");
    }
    let pool = Server::new(&["HTTP/1.1 200"]).pool();
    assert!(matches!(ask(&pool).await, Err(SendError::Broken(_))));
    let pool = Server::new(&[]).pool();
    assert!(matches!(ask(&pool).await, Err(SendError::Broken(_))));
}

#[tokio::test]
async fn a_server_that_nobody_runs_cannot_be_connected_to() {
    let pool = Server::new(&[]).pool();
    let request = Request::get("http://elsewhere:1/").body(Bytes::new()).unwrap();
    assert!(matches!(pool.request(request).await, Err(SendError::Connect(_))));
}

#[tokio::test(start_paused = true)]
async fn one_that_nobody_needs_is_closed_in_time() {
    let server = Server::new(&[WHOLE; 9]);
    let pool = server.pool();
    text(ask(&pool).await.unwrap()).await;
    let begun = tokio::time::Instant::now();
    server.closed.notified().await;
    let waited = begun.elapsed();
    assert!((IDLE_MAX..2 * IDLE_MAX).contains(&waited), "{waited:?}");
    text(ask(&pool).await.unwrap()).await;
    assert_eq!(server.dialled(), 2);
}
