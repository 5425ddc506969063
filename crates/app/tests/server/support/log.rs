//! What a server logs, as it comes.

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    sync::watch,
};

use super::soon;

/// The lines so far; a test that waits for a line is woken by each.
#[derive(Clone)]
pub(crate) struct Log(watch::Receiver<Lines>);

#[derive(Default)]
struct Lines {
    all: Vec<Value>,
    /// Nothing more will come: the process has closed its stdout.
    ended: bool,
}

impl Log {
    pub(crate) fn read(stdout: impl AsyncRead + Send + Unpin + 'static) -> Self {
        let (writer, log) = watch::channel(Lines::default());
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                // What is no JSON is kept all the same: a test that looks for it can say so.
                let line = serde_json::from_str(&line).unwrap_or_else(|_| json!({"not_json": line}));
                writer.send_modify(|lines| lines.all.push(line));
            }
            writer.send_modify(|lines| lines.ended = true);
        });
        Self(log)
    }

    /// Returns the first line, past or to come, that is wanted.
    pub(crate) async fn line(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut log = self.0.clone();
        let found =
            soon("a line of the log", log.wait_for(|lines| lines.ended || lines.all.iter().any(&wanted)))
                .await;
        let found = found.unwrap();
        let line = found.all.iter().find(|line| wanted(line));
        line.unwrap_or_else(|| panic!("the server ended without that line; there are {:#?}", found.all))
            .clone()
    }

    /// Waits until nothing more will come.
    pub(crate) async fn ended(&self) {
        let mut log = self.0.clone();
        soon("the end of the log", log.wait_for(|lines| lines.ended)).await.unwrap();
    }

    /// Returns all lines so far.
    pub(crate) fn lines(&self) -> Vec<Value> {
        self.0.borrow().all.clone()
    }
}

/// Returns the message of a log line.
pub(crate) fn message(line: &Value) -> &str {
    line["fields"]["message"].as_str().unwrap_or("")
}
