//! The stop of an HTTP server, level by level.

use tokio::sync::watch;

/// The extent to which a server has stopped. Each level includes those before it, and the level only rises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum StopLevel {
    /// The server accepts connections and answers requests.
    Running,
    /// Nothing is accepted, and idle connections are given back.
    ReturnIdle,
    /// Connections whose last response was sent are not waited for.
    AbortClosing,
    /// Requests that are not answered yet get 503.
    RefusePending,
    /// Nothing is waited for.
    AbortAll,
}

/// The level of one server.
#[derive(Debug)]
pub(super) struct Stop(watch::Sender<StopLevel>);

impl Default for Stop {
    fn default() -> Self {
        Self(watch::Sender::new(StopLevel::Running))
    }
}

impl Stop {
    /// Raises the level to `level`, unless it is there or above.
    pub(super) fn raise_to(&self, level: StopLevel) {
        self.0.send_if_modified(|current| {
            let rises = level > *current;
            *current = level.max(*current);
            rises
        });
    }

    /// Returns true if the level is `level` or above.
    pub(super) fn has_reached(&self, level: StopLevel) -> bool {
        *self.0.borrow() >= level
    }

    /// Waits until the level is `level` or above. Cancel safe.
    pub(super) async fn reached(&self, level: StopLevel) {
        // An error would mean that the sender is gone, which `self` keeps.
        let _ = self.0.subscribe().wait_for(|current| *current >= level).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn the_level_only_rises_and_wakes_all_that_it_has_passed() {
        let stop = std::sync::Arc::new(Stop::default());
        let waiting = [StopLevel::ReturnIdle, StopLevel::AbortClosing, StopLevel::AbortAll].map(|level| {
            let stop = std::sync::Arc::clone(&stop);
            tokio::spawn(async move { stop.reached(level).await })
        });
        yield_now().await;
        stop.raise_to(StopLevel::RefusePending);
        stop.raise_to(StopLevel::ReturnIdle);
        let [return_idle, abort_closing, abort_all] = waiting;
        return_idle.await.unwrap();
        abort_closing.await.unwrap();
        assert!(stop.has_reached(StopLevel::RefusePending), "a lower level does not lower it");
        assert!(!stop.has_reached(StopLevel::AbortAll) && !abort_all.is_finished());
        stop.raise_to(StopLevel::AbortAll);
        abort_all.await.unwrap();
        stop.reached(StopLevel::Running).await;
    }
}
