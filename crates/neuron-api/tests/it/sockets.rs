//! What only shows on a real socket: trailers as bytes, the head before the first token, and a client that hangs up.

use neuron_api::mock::Faults;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::talker;

fn request(extra: &str, stream: bool) -> String {
    let body = format!(r#"{{"model":"m","prompt":"Hi","stream":{stream}}}"#);
    format!("POST /v1/completions HTTP/1.1\r\nhost: x\r\n{extra}content-length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn the_usage_trailer_is_on_the_wire() {
    let server = talker().serve().await.unwrap();
    let mut socket = TcpStream::connect(server.addr).await.unwrap();
    socket.write_all(request("te: trailers\r\nconnection: close\r\n", true).as_bytes()).await.unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).await.unwrap();
    assert!(text.contains("trailer: x-neuron-usage\r\n"), "{text}");
    assert!(text.ends_with("data: [DONE]\n\n\r\n0\r\nx-neuron-usage: prompt=2;cached=0;completion=3\r\n\r\n"), "{text}");
}

#[tokio::test]
async fn the_head_comes_while_the_model_still_reads_the_prompt() {
    let server = talker().serve().await.unwrap();
    server.mock.set_faults("m", Faults { hang: true, ..Faults::default() });
    let mut socket = TcpStream::connect(server.addr).await.unwrap();
    socket.write_all(request("", true).as_bytes()).await.unwrap();
    let mut head = [0; 15];
    socket.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
}

#[tokio::test]
async fn hanging_up_cancels_whole_and_streamed_answers() {
    for stream in [false, true] {
        let server = talker().serve().await.unwrap();
        server.mock.set_faults("m", Faults { hang: true, ..Faults::default() });
        let mut socket = TcpStream::connect(server.addr).await.unwrap();
        socket.write_all(request("", stream).as_bytes()).await.unwrap();
        server.mock.wait_for(|counts| counts.active == 1).await;
        drop(socket);
        let counts = server.mock.wait_for(|counts| counts.active == 0).await;
        assert_eq!(counts.cancelled, 1, "stream {stream}");
    }
}
