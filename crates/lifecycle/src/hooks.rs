//! Hooks: the parts of the server, started in order and stopped in the reverse order.

use std::{error::Error, future::Future, pin::Pin, time::Duration};

use tokio::time::timeout;
use tracing::{debug, error};

/// An error of a hook.
pub type BoxError = Box<dyn Error + Send + Sync>;

type Startup = Pin<Box<dyn Future<Output = Result<Shutdown, BoxError>> + Send>>;
type Shutdown = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

/// A startup hook has failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {name}")]
pub struct HookError {
    name: &'static str,
    source: BoxError,
}

/// One part of the server.
struct Hook<F> {
    name: &'static str,
    /// The time that its shutdown may take.
    timeout: Duration,
    future: F,
}

/// The parts of the server, in the order of their startup.
#[derive(Default)]
pub struct Hooks(Vec<Hook<Startup>>);

impl Hooks {
    /// Adds a part. `startup` starts it and returns the future that stops it, which may take `timeout`. A
    /// startup waits for nobody: what can take a while is done before.
    #[must_use]
    pub fn add<S, T>(mut self, name: &'static str, timeout: Duration, startup: S) -> Self
    where
        S: Future<Output = Result<T, BoxError>> + Send + 'static,
        T: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let future: Startup =
            Box::pin(async { startup.await.map(|shutdown| Box::pin(shutdown) as Shutdown) });
        self.0.push(Hook { name, timeout, future });
        self
    }

    /// Starts all parts in order. If one fails, stops the parts before it.
    ///
    /// # Errors
    /// The error of the part that failed.
    pub(crate) async fn start(self) -> Result<Started, HookError> {
        let mut started = Started(Vec::new());
        for Hook { name, timeout, future } in self.0 {
            match future.await {
                Ok(shutdown) => {
                    debug!(hook = name, "hook started");
                    started.0.push(Hook { name, timeout, future: shutdown });
                }
                Err(source) => {
                    started.stop().await;
                    return Err(HookError { name, source });
                }
            }
        }
        Ok(started)
    }
}

/// The parts that have been started.
pub(crate) struct Started(Vec<Hook<Shutdown>>);

impl Started {
    /// Returns how long the parts may take to stop, all of them.
    pub(crate) fn max_stop(&self) -> Duration {
        self.0.iter().map(|hook| hook.timeout).sum()
    }

    /// Stops all parts, the last one first. Logs each that fails or takes too long, and continues with the
    /// others. Returns true if none did.
    pub(crate) async fn stop(self) -> bool {
        let mut all_stopped = true;
        for Hook { name, timeout: time, future } in self.0.into_iter().rev() {
            match timeout(time, future).await {
                Ok(Ok(())) => debug!(hook = name, "hook stopped"),
                Ok(Err(error)) => {
                    error!(hook = name, %error, "a shutdown hook failed");
                    all_stopped = false;
                }
                Err(_) => {
                    error!(hook = name, "a shutdown hook took longer than {time:?}");
                    all_stopped = false;
                }
            }
        }
        all_stopped
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        sync::{Arc, Mutex},
    };

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    #[derive(Clone, Default)]
    struct Events(Arc<Mutex<Vec<String>>>);

    impl Events {
        fn note(&self, what: String) {
            self.0.lock().unwrap().push(what);
        }

        fn read(&self) -> String {
            self.0.lock().unwrap().join(" ")
        }

        /// Adds a part that notes its start and its stop.
        fn part(&self, hooks: Hooks, name: &'static str, stops: Result<(), &'static str>) -> Hooks {
            let events = self.clone();
            hooks.add(name, TIMEOUT, async move {
                events.note(format!("+{name}"));
                Ok(async move {
                    events.note(format!("-{name}"));
                    stops.map_err(Into::into)
                })
            })
        }
    }

    type Nothing = std::future::Pending<Result<(), BoxError>>;

    #[tokio::test(start_paused = true)]
    async fn the_last_part_to_start_is_the_first_to_stop() {
        let events = Events::default();
        let hooks = ["a", "b", "c"]
            .into_iter()
            .fold(Hooks::default(), |hooks, name| events.part(hooks, name, Ok(())));
        assert!(hooks.start().await.unwrap().stop().await);
        assert_eq!(events.read(), "+a +b +c -c -b -a");
    }

    #[tokio::test(start_paused = true)]
    async fn parts_that_started_before_a_failure_are_stopped() {
        let events = Events::default();
        let hooks = events.part(Hooks::default(), "a", Ok(()));
        let hooks = hooks.add("b", TIMEOUT, async { Err::<Nothing, _>("no".into()) });
        let hooks = events.part(hooks, "c", Ok(()));
        let error = hooks.start().await.err().unwrap();
        assert_eq!(error.to_string(), "cannot start b");
        assert_eq!(error.source().unwrap().to_string(), "no");
        assert_eq!(events.read(), "+a -a");
    }

    #[tokio::test(start_paused = true)]
    async fn a_hook_that_fails_or_hangs_does_not_keep_the_others_from_stopping() {
        let events = Events::default();
        let hooks = events.part(Hooks::default(), "a", Ok(()));
        let hooks = hooks.add("b", TIMEOUT, async { Ok(pending()) });
        let hooks = events.part(hooks, "c", Err("no"));
        assert!(!hooks.start().await.unwrap().stop().await);
        assert_eq!(events.read(), "+a +c -c -a");
    }
}
