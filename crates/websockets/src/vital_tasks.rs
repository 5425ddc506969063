//! The tasks and threads without which the server does not do what it promises. If one of them fails, nothing
//! else would notice: whoever waits for [`VitalTasks::failed`] ends the process.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    thread,
};

use tokio::{sync::watch, task::JoinHandle};

/// Watches the vital tasks of one server. Clones watch the same ones.
#[derive(Debug, Clone)]
pub struct VitalTasks(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// The name of the first task that failed.
    failed: watch::Sender<Option<&'static str>>,
    failpoint: fn(&'static str) -> bool,
}

impl Default for VitalTasks {
    fn default() -> Self {
        Self::with_failpoint(|_| false)
    }
}

impl VitalTasks {
    /// Has `failpoint` called with the name of a task each time that the task continues, so that a test can
    /// have it panic; or, where it returns true, have an event loop fail otherwise.
    pub fn with_failpoint(failpoint: fn(&'static str) -> bool) -> Self {
        Self(Arc::new(Shared { failed: watch::Sender::default(), failpoint }))
    }

    /// Starts a task, which has failed if it panics. To be called on a tokio runtime.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &'static str,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        let watch = PanicWatch { tasks: self.clone(), name };
        tokio::spawn(async move {
            let mut task = pin!(task);
            poll_fn(|context| {
                watch.tasks.failpoint(name);
                task.as_mut().poll(context)
            })
            .await
        })
    }

    /// Notes that a task has failed.
    pub fn fail(&self, name: &'static str) {
        self.0.failed.send_if_modified(|failed| {
            let is_first = failed.is_none();
            failed.get_or_insert(name);
            is_first
        });
    }

    /// Waits until a task has failed, which is a bug, and returns its name: the process should end.
    pub async fn failed(&self) -> &'static str {
        let mut changes = self.0.failed.subscribe();
        let failed = changes.wait_for(Option::is_some).await.ok().and_then(|failed| *failed);
        match failed {
            Some(name) => name,
            // Never happens: `self` holds the sender.
            None => std::future::pending().await,
        }
    }

    /// Returns true if a task has failed.
    pub fn has_failed(&self) -> bool {
        self.0.failed.borrow().is_some()
    }

    /// Calls the failpoint of a task.
    pub(crate) fn failpoint(&self, name: &'static str) -> bool {
        (self.0.failpoint)(name)
    }
}

/// Notes a failure when a panic drops it.
struct PanicWatch {
    tasks: VitalTasks,
    name: &'static str,
}

impl Drop for PanicWatch {
    fn drop(&mut self) {
        if thread::panicking() {
            self.tasks.fail(self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_is_noticed_and_one_that_ends_or_is_aborted_is_not() {
        let tasks = VitalTasks::default();
        assert_eq!(tasks.spawn("one", async { 1 }).await.unwrap(), 1);
        let aborted = tasks.spawn("another", std::future::pending::<()>());
        tokio::task::yield_now().await;
        aborted.abort();
        assert!(aborted.await.unwrap_err().is_cancelled());
        assert!(!tasks.has_failed());
        let later = tasks.spawn("the third", async {
            tokio::task::yield_now().await;
            panic!("as a test wants it");
        });
        assert_eq!(tasks.failed().await, "the third");
        assert!(later.await.unwrap_err().is_panic());
        tasks.fail("the fourth");
        assert_eq!(tasks.failed().await, "the third", "the first one is the cause");
    }

    #[tokio::test]
    async fn a_failpoint_is_reached_each_time_that_a_task_continues() {
        let tasks = VitalTasks::with_failpoint(|name| panic!("as a test wants it: {name}"));
        let never_begun = tasks.spawn("one", std::future::ready(()));
        assert!(never_begun.await.unwrap_err().is_panic());
        assert!(tasks.has_failed());
    }
}
