//! A WebSocket client, and an HTTP answer.

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{self, Message, client::IntoClientRequest, http::Response},
};

use super::{Server, soon};

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    /// Returns the value of a header, of which there must be one at most. Its name in lower case, as it is
    /// sent.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let value = lines.next();
        assert_eq!(lines.next(), None, "{name} is there twice: {self:?}");
        value
    }

    /// Returns the status and the error code; that the body has the shape of the contract.
    pub(crate) fn error(&self) -> (u16, String) {
        let body = self.json();
        let message = body["error"]["message"].as_str().unwrap_or_else(|| panic!("no message: {self:?}"));
        assert!(message.ends_with('.'), "not a sentence: {message}");
        (self.status, body["error"]["code"].as_str().unwrap().to_owned())
    }
}

/// A WebSocket client.
pub(crate) struct Client {
    pub(crate) socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    pub(crate) id: String,
}

impl Client {
    /// Returns the next frame that is not a ping, which may come at any time.
    pub(crate) async fn next_frame(&mut self) -> Message {
        loop {
            match soon("a frame", self.socket.next()).await.expect("a frame, not the end").unwrap() {
                Message::Ping(_) => {}
                frame => return frame,
            }
        }
    }

    /// Returns the next frame that is not a control frame.
    pub(crate) async fn next(&mut self) -> Value {
        loop {
            match self.next_frame().await {
                Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                Message::Pong(_) => {}
                other => panic!("a message, not {other:?}"),
            }
        }
    }

    /// Returns the next message of this type.
    pub(crate) async fn next_of(&mut self, wanted: &str) -> Value {
        loop {
            let message = self.next().await;
            if message["type"] == wanted {
                return message;
            }
        }
    }

    pub(crate) async fn send(&mut self, message: Message) {
        soon("sending", self.socket.send(message)).await.unwrap();
    }

    pub(crate) async fn say(&mut self, text: &str) {
        self.send(Message::text(text)).await;
    }

    /// Reads on until the server closes; how it did, and the messages before. The handshake is finished.
    pub(crate) async fn closed(&mut self) -> ((u16, String), Vec<Value>) {
        let mut before = Vec::new();
        let mut close = None;
        loop {
            match soon("a close", self.socket.next()).await {
                Some(Ok(Message::Close(Some(frame)))) => {
                    close = Some((frame.code.into(), frame.reason.to_string()))
                }
                Some(Ok(Message::Text(text))) => before.push(serde_json::from_str(&text).unwrap()),
                Some(Ok(_)) => {}
                // The connection may end in any way once the close frame is here.
                None | Some(Err(_)) => break,
            }
        }
        (close.unwrap_or_else(|| panic!("a close frame, not a bare end, after {before:?}")), before)
    }

    /// Says goodbye and waits for the answer.
    pub(crate) async fn leave(mut self) {
        soon("closing", self.socket.close(None)).await.unwrap();
        while let Some(Ok(_)) = soon("the answer to a close", self.socket.next()).await {}
    }
}

/// Shakes hands at this URL, with these headers too.
pub(crate) async fn dial(
    url: &str,
    headers: &[(&'static str, &str)],
) -> Result<(Client, Response<Option<Vec<u8>>>), tungstenite::Error> {
    let mut request = url.into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    let (socket, response) = soon("the handshake", connect_async(request)).await?;
    Ok((Client { socket, id: String::new() }, response))
}

/// Returns how a handshake was refused: the status, the headers and the body.
pub(crate) fn refusal_of<T>(dialled: Result<(Client, T), tungstenite::Error>) -> Answer {
    match dialled {
        Err(tungstenite::Error::Http(response)) => Answer {
            status: response.status().as_u16(),
            head: format!("{:?}", response.headers()),
            body: String::from_utf8(response.body().clone().unwrap_or_default()).unwrap(),
        },
        other => panic!("to be refused, but {:?}", other.map(|_| "let in")),
    }
}

impl Server {
    pub(crate) async fn client(&self) -> Client {
        let (mut client, _) = self.dial(&[]).await.expect("to be let in");
        let welcome = client.next().await;
        assert_eq!(welcome["type"], "welcome", "welcome comes first");
        client.id = welcome["client"].as_str().unwrap().to_owned();
        client
    }

    pub(crate) async fn clients(&self, count: usize) -> Vec<Client> {
        let mut clients = Vec::new();
        for _ in 0..count {
            clients.push(self.client().await);
        }
        clients
    }

    /// Shakes hands, with these headers too.
    pub(crate) async fn dial(
        &self,
        headers: &[(&'static str, &str)],
    ) -> Result<(Client, Response<Option<Vec<u8>>>), tungstenite::Error> {
        dial(&self.ws_url(), headers).await
    }

    /// Returns how a handshake was refused: the status, `Retry-After`, and the body.
    pub(crate) async fn refusal(&self, headers: &[(&'static str, &str)]) -> Answer {
        refusal_of(self.dial(headers).await)
    }
}
