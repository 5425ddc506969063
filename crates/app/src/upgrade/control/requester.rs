//! A command that waits for the result of an upgrade.

use lastcall_handover::{UpgradeProgress, encode};
use tokio::{io::AsyncWriteExt, time::timeout};
use tracing::debug;

use super::spare::ControlConnection;
use crate::upgrade::timeouts::REPORT_TIMEOUT;

/// A connection to the control socket over which `lastcall upgrade` asked for an upgrade, and waits for the report of how it
/// goes. Dropping it without a report tells the command that there is no result.
pub(crate) struct Requester(ControlConnection);

impl Requester {
    pub(super) fn new(connection: ControlConnection) -> Self {
        Self(connection)
    }

    /// Tells the command how the upgrade goes. If it has ended, nothing happens.
    pub(in crate::upgrade) async fn report(&mut self, progress: &UpgradeProgress) {
        let told = async {
            let message = encode(progress)?;
            timeout(REPORT_TIMEOUT, self.0.stream()?.write_all(&message)).await??;
            anyhow::Ok(())
        };
        if let Err(error) = told.await {
            debug!("an operator could not be told how the upgrade went: {error:#}");
        }
    }
}
