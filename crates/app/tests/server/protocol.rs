//! RFC 6455, where the Autobahn suite does not look: our own codes, reasons and limits.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use crate::support::{ACCEPT, Server, Start, handshake, masked_frame, read_frame, soon, text_frame};

/// Reads frames up to the close frame and the end of the connection: the code and the reason.
async fn read_close(stream: &mut TcpStream) -> (u16, String) {
    loop {
        let (first_byte, payload) = read_frame(stream).await;
        if first_byte == 0x88 {
            // Answered, so that the server need not wait. It may be gone already.
            let _ = stream.write_all(&masked_frame(0x88, &payload[..2])).await;
            let rest = soon("the end", stream.read_to_end(&mut Vec::new())).await;
            assert_eq!(rest.unwrap_or(0), 0, "nothing follows a close frame");
            return (
                u16::from_be_bytes([payload[0], payload[1]]),
                String::from_utf8(payload[2..].to_vec()).unwrap(),
            );
        }
    }
}

#[tokio::test]
async fn a_client_that_breaks_the_protocol_is_closed_with_the_code_for_it() {
    let server = Server::start().await;
    let too_big = [&[0x81, 0xFF][..], &(65_537u64).to_be_bytes(), &[0; 4]].concat();
    for (name, bytes, code) in [
        ("not masked", vec![0x81, 0x01, b'x'], 1002),
        ("invalid UTF-8", masked_frame(0x81, b"\xFF"), 1007),
        ("too big, at its header", too_big, 1009),
    ] {
        let mut client = server.raw_client().await;
        client.write_all(&bytes).await.unwrap();
        let (got, reason) = read_close(&mut client).await;
        assert_eq!(got, code, "{name}: {reason}");
        assert!(!reason.is_empty() && !reason.starts_with(['{', '1']), "{name}: plain words, not {reason:?}");
    }
    server.client().await.leave().await;
}

#[tokio::test]
async fn a_binary_message_is_answered_with_an_error_before_the_close() {
    let server = Server::start().await;
    let mut client = server.client().await;
    client.send(Message::binary(vec![1, 2, 3])).await;
    let error = client.next().await;
    assert_eq!((&error["type"], &error["code"]), (&"error".into(), &"unsupported_data".into()));
    assert_eq!(client.closed().await.0.0, 1003);
}

#[tokio::test]
async fn the_largest_message_is_accepted_and_one_byte_more_is_not() {
    let server = Start::default().env("MAX_MESSAGE_SIZE", "1000").serve().await;
    let mut client = server.client().await;
    client.say(&"x".repeat(1000)).await;
    assert_eq!(client.next_of("message").await["data"].as_str().unwrap().len(), 1000);
    client.say(&"x".repeat(1001)).await;
    assert_eq!(client.closed().await.0, (1009, "message too big".into()));
}

#[tokio::test]
async fn a_close_is_answered_with_its_code() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let frame = CloseFrame { code: CloseCode::Normal, reason: "done".into() };
    client.socket.close(Some(frame)).await.unwrap();
    assert_eq!(client.closed().await.0.0, 1000);
}

#[tokio::test]
async fn a_ping_between_fragments_is_answered_before_the_message_is_whole() {
    let server = Server::start().await;
    let mut client = server.raw_client().await;
    let mut listener = server.client().await;
    client.write_all(&masked_frame(0x01, b"Hel")).await.unwrap();
    client.write_all(&masked_frame(0x89, b"there?")).await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"\x8A\x06there?") {
        seen.push(soon("the pong", client.read_u8()).await.unwrap());
    }
    client.write_all(&masked_frame(0x80, b"lo")).await.unwrap();
    assert_eq!(listener.next_of("message").await["data"], "Hello");
}

#[tokio::test]
async fn a_handshake_right_behind_another_request_is_answered_after_it() {
    let server = Server::start().await;
    let mut client = TcpStream::connect(server.address).await.unwrap();
    let host = server.address;
    let requests = format!(
        "GET / HTTP/1.1\r\nHost: {host}\r\n\r\nGET /health/live HTTP/1.1\r\nHost: {host}\r\n\r\n{}",
        handshake(host)
    );
    client.write_all(requests.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    while !seen.windows(17).any(|part| part == b"\"type\":\"welcome\",") {
        seen.push(soon("the greeting", client.read_u8()).await.unwrap());
    }
    let seen = String::from_utf8_lossy(&seen);
    let at = |part: &str| seen.find(part).unwrap_or_else(|| panic!("{part} is missing in {seen}"));
    assert!(at("HTTP/1.1 200 OK") < at("</html>") && at("</html>") < at("HTTP/1.1 101 Switching Protocols"));
    assert_eq!(seen.matches("HTTP/1.1 200 OK").count(), 2);
    assert_eq!(seen.matches("HTTP/1.1 101").count(), 1);
    let accepted = at(&format!("sec-websocket-accept: {ACCEPT}\r\n"));
    assert!(at("\"type\":\"welcome\"") > accepted);
}

#[tokio::test]
async fn a_text_right_behind_the_handshake_is_not_lost() {
    let server = Server::start().await;
    let mut listener = server.client().await;
    let mut client = TcpStream::connect(server.address).await.unwrap();
    let handshake = handshake(server.address);
    client.write_all(&[handshake.as_bytes(), &text_frame("early")].concat()).await.unwrap();
    assert_eq!(listener.next_of("message").await["data"], "early");
}

#[tokio::test]
async fn a_client_that_answers_pings_stays_and_one_that_does_not_is_closed_as_idle() {
    let server = Start::default().env("PING_INTERVAL", "2").env("PONG_TIMEOUT", "2").serve().await;
    let mut alive = server.client().await;
    let mut silent = server.raw_client().await;
    // The library answers pings while it reads.
    let reading = tokio::spawn(async move { alive.next_of("message").await });
    assert_eq!(read_close(&mut silent).await, (1008, "idle".into()));
    server.client().await.say("still here?").await;
    assert_eq!(soon("the text", reading).await.unwrap()["data"], "still here?");
}
