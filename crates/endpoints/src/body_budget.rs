//! The memory of the bodies that are on their way.

use std::{
    fmt,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use lastcall_core::process::trim_heap;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
};

/// Most bytes of bodies that all calls have at once, if none may be larger than half of that.
const MAX_BYTES: usize = 64 << 20;

/// Bytes of bodies at once after which memory is given back to the system.
const TRIM_THRESHOLD: usize = 8 << 20;

/// The bytes that the bodies of all calls may have at once. Clones are the same budget.
#[derive(Debug, Clone)]
pub(crate) struct BodyBudget {
    left: Arc<Semaphore>,
    max: usize,
    /// The most that was used since memory was given back.
    peak: Arc<AtomicUsize>,
}

/// A body, as far as it has arrived. Its bytes are in the budget until it is dropped.
pub(crate) struct ReceivedBody {
    bytes: Vec<u8>,
    permit: Option<OwnedSemaphorePermit>,
    budget: BodyBudget,
}

/// All of the budget is used by other calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BudgetExhausted;

impl BodyBudget {
    /// Returns the budget for bodies of at most so many bytes each.
    pub(crate) fn new(max_body: usize) -> Self {
        let max = MAX_BYTES.max(max_body.saturating_mul(2)).min(Semaphore::MAX_PERMITS);
        Self { left: Arc::new(Semaphore::new(max)), max, peak: Arc::default() }
    }

    /// Returns a body of which nothing has arrived.
    pub(crate) fn begin(&self) -> ReceivedBody {
        ReceivedBody { bytes: Vec::new(), permit: None, budget: self.clone() }
    }
}

impl ReceivedBody {
    /// Adds what has arrived.
    ///
    /// # Errors
    /// When other calls use all of the budget.
    pub(crate) fn add(&mut self, bytes: &[u8]) -> Result<(), BudgetExhausted> {
        let budget = &self.budget;
        let count = u32::try_from(bytes.len()).map_err(|_| BudgetExhausted)?;
        let more = Arc::clone(&budget.left).try_acquire_many_owned(count).map_err(|_| BudgetExhausted)?;
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
        budget.peak.fetch_max(budget.max - budget.left.available_permits(), Ordering::Relaxed);
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

impl Deref for ReceivedBody {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for ReceivedBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceivedBody").field("bytes", &self.bytes.len()).finish_non_exhaustive()
    }
}

impl Drop for ReceivedBody {
    fn drop(&mut self) {
        self.bytes = Vec::new();
        drop(self.permit.take());
        let BodyBudget { left, max, peak } = &self.budget;
        if left.available_permits() == *max && peak.load(Ordering::Relaxed) >= TRIM_THRESHOLD {
            peak.store(0, Ordering::Relaxed);
            // Nothing waits for it, and it cannot fail.
            drop(spawn_blocking(trim_heap));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bodies_share_a_budget_and_give_it_back() {
        let budget = BodyBudget::new(1000);
        let part = vec![0; MAX_BYTES / 2];
        let (mut first, mut second, mut third) = (budget.begin(), budget.begin(), budget.begin());
        first.add(&part).unwrap();
        second.add(&part).unwrap();
        assert_eq!(third.add(b"1"), Err(BudgetExhausted));
        assert_eq!((first.len(), third.len()), (part.len(), 0));
        drop(second);
        third.add(b"1").unwrap();
        drop((first, third));
        assert_eq!(budget.left.available_permits(), MAX_BYTES);
        assert_eq!(BodyBudget::new(MAX_BYTES).max, 2 * MAX_BYTES, "two of the largest always have room");
    }
}
