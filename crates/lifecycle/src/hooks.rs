//! What is started in order, and stopped in the reverse order.

use std::{error::Error, future::Future, pin::Pin, time::Duration};

use tokio::time::timeout;
use tracing::{debug, error};

/// Whatever went wrong in a hook.
pub type BoxError = Box<dyn Error + Send + Sync>;

type Startup = Pin<Box<dyn Future<Output = Result<Shutdown, BoxError>> + Send>>;
type Shutdown = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

/// A startup hook failed.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// It said so.
    #[error("cannot start {name}")]
    Failed {
        /// Its name.
        name: &'static str,
        /// What it said.
        source: BoxError,
    },
    /// It took too long.
    #[error("starting {name} took longer than {timeout:?}")]
    TimedOut {
        /// Its name.
        name: &'static str,
        /// The time it had.
        timeout: Duration,
    },
}

/// One part of the server.
struct Hook<F> {
    name: &'static str,
    /// The time that its startup may take, and its shutdown.
    timeout: Duration,
    future: F,
}

/// The parts of the server, in the order of their startup.
#[derive(Default)]
pub struct Hooks(Vec<Hook<Startup>>);

impl Hooks {
    /// Adds a part. `startup` starts it and returns what stops it; each may take `timeout`.
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

    /// Starts all, in order. At the first that fails, those before it are stopped.
    pub(crate) async fn start(self) -> Result<Started, HookError> {
        let mut started = Started(Vec::new());
        for Hook { name, timeout: time, future } in self.0 {
            let error = match timeout(time, future).await {
                Ok(Ok(shutdown)) => {
                    debug!(hook = name, "hook started");
                    started.0.push(Hook { name, timeout: time, future: shutdown });
                    continue;
                }
                Ok(Err(source)) => HookError::Failed { name, source },
                Err(_) => HookError::TimedOut { name, timeout: time },
            };
            started.stop().await;
            return Err(error);
        }
        Ok(started)
    }
}

/// The parts that run.
pub(crate) struct Started(Vec<Hook<Shutdown>>);

impl Started {
    /// Stops all, the last to start first. One that fails or takes too long is reported, and the others
    /// are stopped all the same; whether all went well.
    pub(crate) async fn stop(self) -> bool {
        let mut well = true;
        for Hook { name, timeout: time, future } in self.0.into_iter().rev() {
            match timeout(time, future).await {
                Ok(Ok(())) => debug!(hook = name, "hook stopped"),
                Ok(Err(error)) => {
                    error!(hook = name, %error, "a shutdown hook failed");
                    well = false;
                }
                Err(_) => {
                    error!(hook = name, "a shutdown hook took longer than {time:?}");
                    well = false;
                }
            }
        }
        well
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        sync::{Arc, Mutex},
    };

    use super::*;

    const TIME: Duration = Duration::from_millis(200);

    #[derive(Clone, Default)]
    struct Diary(Arc<Mutex<Vec<String>>>);

    impl Diary {
        fn note(&self, what: String) {
            self.0.lock().unwrap().push(what);
        }

        fn read(&self) -> String {
            self.0.lock().unwrap().join(" ")
        }

        /// Adds a part that notes its start and its stop.
        fn part(&self, hooks: Hooks, name: &'static str, stops: Result<(), &'static str>) -> Hooks {
            let diary = self.clone();
            hooks.add(name, TIME, async move {
                diary.note(format!("+{name}"));
                Ok(async move {
                    diary.note(format!("-{name}"));
                    stops.map_err(Into::into)
                })
            })
        }
    }

    type Nothing = std::future::Pending<Result<(), BoxError>>;

    #[tokio::test]
    async fn the_last_to_start_is_the_first_to_stop() {
        let diary = Diary::default();
        let hooks =
            ["a", "b", "c"].into_iter().fold(Hooks::default(), |hooks, name| diary.part(hooks, name, Ok(())));
        assert!(hooks.start().await.unwrap().stop().await);
        assert_eq!(diary.read(), "+a +b +c -c -b -a");
    }

    #[tokio::test]
    async fn what_started_before_a_failure_is_stopped() {
        let diary = Diary::default();
        let hooks = diary.part(Hooks::default(), "a", Ok(()));
        let hooks = hooks.add("b", TIME, async { Err::<Nothing, _>("no".into()) });
        let hooks = diary.part(hooks, "c", Ok(()));
        let error = hooks.start().await.err().unwrap();
        assert_eq!(error.to_string(), "cannot start b");
        assert_eq!(error.source().unwrap().to_string(), "no");
        assert_eq!(diary.read(), "+a -a");
    }

    #[tokio::test]
    async fn a_hook_that_fails_or_hangs_does_not_keep_the_others_from_stopping() {
        let diary = Diary::default();
        let hooks = diary.part(Hooks::default(), "a", Ok(()));
        let hooks = hooks.add("b", TIME, async { Ok(pending()) });
        let hooks = diary.part(hooks, "c", Err("no"));
        assert!(!hooks.start().await.unwrap().stop().await);
        assert_eq!(diary.read(), "+a +c -c -a");
    }

    #[tokio::test]
    async fn a_startup_that_hangs_is_an_error() {
        let hooks = Hooks::default().add("a", TIME, pending::<Result<Nothing, BoxError>>());
        assert_eq!(hooks.start().await.err().unwrap().to_string(), "starting a took longer than 200ms");
    }
}
