//! The commands of operators: each comes over a connection of its own.

use anyhow::{Context, bail};
use lastcall_handover::{
    ControlCommand, FirstMessage, HEADER_LEN, PROTOCOL, ServerAddress, UpgradeProgress, body_len, decode,
    encode, refusal,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};
use tracing::debug;

use super::SharedSocket;
use crate::upgrade::timeouts::REPORT_TIMEOUT;

/// Longest command, in bytes.
const MAX_COMMAND: usize = 64 << 10;

/// A connection over which `lastcall upgrade` asked for an upgrade, and waits for the report of how it goes.
/// Dropping it without a report tells the command that there is no result.
pub(crate) struct WaitingCommand(UnixStream);

impl WaitingCommand {
    /// Tells the command how the upgrade goes. If it has ended, nothing happens.
    pub(in crate::upgrade) async fn report(&mut self, progress: &UpgradeProgress) {
        let told = async {
            let message = encode(progress)?;
            timeout(REPORT_TIMEOUT, self.0.write_all(&message)).await??;
            anyhow::Ok(())
        };
        if let Err(error) = told.await {
            debug!("an operator could not be told how the upgrade went: {error:#}");
        }
    }
}

/// Reads a command. Returns one that asks for an upgrade; another one is answered.
///
/// # Errors
/// When the connection is not this user's, or sends no command that is understood.
pub(super) async fn receive(
    mut stream: UnixStream,
    socket: &SharedSocket,
    address: ServerAddress,
) -> anyhow::Result<Option<WaitingCommand>> {
    match socket.lock().as_ref() {
        Some(socket) => socket.check_peer(&stream)?,
        None => bail!("there is no control socket any more"),
    }
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header).await.context("no command was received")?;
    let mut body = vec![0; body_len(header, MAX_COMMAND)?];
    stream.read_exact(&mut body).await.context("the command is incomplete")?;
    match decode(&body)? {
        FirstMessage::Command(ControlCommand::Upgrade) => Ok(Some(WaitingCommand(stream))),
        FirstMessage::Command(ControlCommand::Address) => {
            stream.write_all(&encode(&address)?).await.context("the answer could not be sent")?;
            Ok(None)
        }
        FirstMessage::Hello(hello) => {
            let reason = format!(
                "the new process, version {}, speaks version {} of the handover, this one {PROTOCOL}",
                hello.version, hello.protocol
            );
            stream.write_all(&encode(&refusal(&reason))?).await?;
            bail!(reason)
        }
    }
}
