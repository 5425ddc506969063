//! The requests in flight.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::mpsc::{Receiver, Sender, channel},
    time::{Instant, timeout_at},
};

/// Requests that are in flight for less than this when others have ended are taken for short ones.
const SHORT: Duration = Duration::from_millis(50);

/// The requests in flight of one server, so that those of a moment can be waited for while others come.
/// Clones are handles to the same ones.
#[derive(Debug, Clone)]
pub struct RequestsInFlight(Arc<Mutex<Batch>>);

/// The requests since a moment. Nothing is ever sent: the channel is closed when the last of them has ended.
#[derive(Debug)]
struct Batch {
    token: Sender<Infallible>,
    ended: Receiver<Infallible>,
}

/// Shows that a request is in flight, until it is dropped.
#[derive(Debug)]
pub(super) struct InFlight(#[expect(dead_code, reason = "it is dropped")] Sender<Infallible>);

impl Default for Batch {
    fn default() -> Self {
        let (token, ended) = channel(1);
        Self { token, ended }
    }
}

impl Default for RequestsInFlight {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Batch::default())))
    }
}

impl RequestsInFlight {
    /// Adds a request.
    pub(super) fn add(&self) -> InFlight {
        InFlight(self.lock().token.clone())
    }

    /// Waits until there are only short requests: all that are long have been answered, and their responses
    /// taken. Others are served meanwhile. Waits at most so long: whoever sends or reads slowly must not keep
    /// others waiting. Cancel safe.
    pub async fn settle(&self, longest: Duration) {
        let deadline = Instant::now() + longest;
        loop {
            let begun = Instant::now();
            let Batch { token, mut ended } = std::mem::take(&mut *self.lock());
            drop(token);
            if timeout_at(deadline, ended.recv()).await.is_err() || begun.elapsed() < SHORT {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Batch> {
        // Nothing that holds it can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{sleep, timeout};

    use super::*;

    const LONGEST: Duration = Duration::from_secs(3);

    #[tokio::test(start_paused = true)]
    async fn long_requests_are_waited_for_while_short_ones_come_but_not_for_ever() {
        let requests = RequestsInFlight::default();
        requests.settle(LONGEST).await;
        let (long, started) = (requests.add(), Instant::now());
        let others = requests.clone();
        tokio::spawn(async move {
            loop {
                let short = others.add();
                sleep(Duration::from_millis(10)).await;
                drop(short);
            }
        });
        let mut settled = std::pin::pin!(requests.settle(LONGEST));
        assert!(timeout(Duration::from_secs(1), settled.as_mut()).await.is_err());
        drop(long);
        settled.await;
        assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
        let (_long, started) = (requests.add(), Instant::now());
        requests.settle(LONGEST).await;
        assert_eq!(started.elapsed(), LONGEST);
    }
}
