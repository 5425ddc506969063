//! The last call: what every client is told when a drain starts.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::{
    client_id::ClientId,
    frame::Frame,
    message::{Reconnect, ServerMessage},
};

/// Soonest that clients are asked to come back, and the shortest window over which they are: they must not
/// all knock in the same moment.
const SOONEST: Duration = Duration::from_secs(1);

/// That the server is going to close, and when.
#[derive(Debug, Clone, Copy)]
pub struct Notice {
    /// Why, for people.
    pub reason: &'static str,
    /// When those who stay are closed.
    pub deadline: Instant,
    /// The window over which clients are to come back.
    window: Duration,
}

impl Notice {
    /// A notice of a drain that takes `shutdown_timeout` from now on, the last `pace` of which is for closing
    /// those who stay. Clients are to come back spread over as long.
    pub fn new(reason: &'static str, shutdown_timeout: Duration, pace: Duration) -> Self {
        Self { reason, deadline: Instant::now() + shutdown_timeout, window: pace.max(SOONEST) }
    }

    /// When this client should come back, counted from its close. It is told the same each time.
    pub(crate) fn reconnect_after(&self, client: ClientId) -> Duration {
        SOONEST + self.window.mul_f64(client.share())
    }

    /// The notice as this client gets it, now.
    pub(crate) fn frame(&self, client: ClientId) -> Frame {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let time = Timestamp::now();
        ServerMessage::Shutdown {
            time,
            reason: self.reason,
            // A deadline past the year 9999 is not to be had: settings end at 365 days.
            deadline: time.saturating_add(left).unwrap_or(Timestamp::MAX),
            seconds_left: (left.as_secs_f64() * 1000.0).round() / 1000.0,
            reconnect: Reconnect { after_ms: self.reconnect_after(client).as_millis() as u64 },
        }
        .frame()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_has_its_own_moment_within_the_window() {
        let notice = Notice::new("service restart", Duration::from_secs(30), Duration::from_secs(10));
        let clients: Vec<_> = (0..1000).map(|_| ClientId::generate()).collect();
        let mut moments: Vec<_> = clients.iter().map(|id| notice.reconnect_after(*id)).collect();
        assert_eq!(moments[0], notice.reconnect_after(clients[0]), "the same each time");
        moments.sort();
        assert!(moments[0] >= SOONEST && moments[999] <= SOONEST + Duration::from_secs(10));
        moments.dedup();
        assert!(moments.len() > 990, "they differ");
        assert!(
            moments[0] < Duration::from_millis(1500)
                && *moments.last().unwrap() > Duration::from_millis(10_500)
        );
    }
}
