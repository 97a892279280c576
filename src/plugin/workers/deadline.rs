//! Deadlines of calls, and threads that do not react to an interruption.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::slot::{Activity, InFlight, Slot};
use super::{WorkerPool, timed_out, worker};
use crate::sync;
use crate::watchdog::HasDeadlines;

/// How long an interrupted instance may take to stop before its thread is abandoned.
pub const GRACE: Duration = Duration::from_millis(200);

/// How often an interruption that may have been missed is repeated.
const REPEAT: Duration = Duration::from_millis(10);

/// The maximum number of abandoned threads per plugin. A guest can cause them: each keeps an
/// instance's memory until the host call that it is stuck in returns.
const MAX_ABANDONED: usize = 16;

impl HasDeadlines for WorkerPool {
  fn poll_deadlines(&self, now: Instant) -> Option<Instant> {
    let slots = self.lock().slots.clone();
    let due = slots.iter().filter_map(|slot| self.poll_slot(slot, now));
    due.min()
  }
}

impl WorkerPool {
  /// Ends whatever has exceeded its deadline in one slot, and returns when to poll again.
  fn poll_slot(&self, slot: &Arc<Slot>, now: Instant) -> Option<Instant> {
    let mut record = slot.lock();
    let in_flight = record.in_flight.as_mut()?;
    if in_flight.abandon_at.is_some_and(|at| at <= now) {
      drop(record);
      self.abandon(slot);
      return None;
    }
    let is_late = in_flight.deadline.is_some_and(|deadline| deadline <= now);
    let mut ended = None;
    if is_late {
      let error = timed_out(in_flight);
      if let Some(waiter) = record.claim_to_fail(&error) {
        ended = Some((waiter, error));
        self.claimed.fetch_add(1, Ordering::Relaxed);
        record.interrupt();
      }
    }
    let repeats = record.interrupt.as_ref();
    let repeats = repeats.filter(|_| record.is_interrupted);
    let repeats = repeats.filter(|interrupt| interrupt.needs_repeating());
    let due = match (repeats, &record.in_flight) {
      (Some(interrupt), Some(_)) => {
        interrupt.interrupt();
        now.checked_add(REPEAT)
      }
      (_, Some(in_flight)) => {
        // A call that has been ended still has its deadline, which no longer matters.
        let deadline = in_flight.deadline.filter(|_| in_flight.waiter.is_some());
        in_flight.abandon_at.or(deadline)
      }
      (_, None) => None,
    };
    drop(record);
    if let Some((waiter, error)) = ended {
      self.complete_claimed(waiter, error);
    }
    due
  }

  /// Abandons a thread that does not react to its interruption, and starts another one in its place.
  fn abandon(&self, slot: &Arc<Slot>) {
    let mut queue = self.lock();
    let mut record = slot.lock();
    let is_due =
      |in_flight: &&mut InFlight| in_flight.abandon_at.is_some_and(|at| at <= sync::now());
    let Some(in_flight) = record.in_flight.as_mut().filter(is_due) else {
      return;
    };
    in_flight.abandon_at = None;
    // The replacement would probably fail the same way, so it fails the next call with this error
    // before it creates an instance.
    let failure = match in_flight.activity {
      Activity::Initialization => Some(timed_out(in_flight)),
      Activity::Call | Activity::Recycling => None,
    };
    let are_too_many = queue.abandoned >= MAX_ABANDONED;
    if are_too_many && !queue.is_closed {
      slot.is_stuck.store(true, Ordering::Relaxed);
      drop(record);
      drop(queue);
      return self.fail_unservable_calls();
    }
    record.is_abandoned = true;
    let is_proven = record.is_proven;
    drop(record);
    queue.abandoned += 1;
    queue.slots.retain(|other| !Arc::ptr_eq(other, slot));
    // A closed plugin needs another thread only for queued calls, and none beyond the limit. If the
    // slot has not served yet, others serve its calls.
    let is_needed = is_proven && (!queue.is_closed || !queue.waiting.is_empty());
    let mut not_started = None;
    if is_needed
      && !are_too_many
      && let Some(shared) = self.this.upgrade()
    {
      let replacement = Arc::<Slot>::default();
      replacement.lock().is_proven = true;
      // If the thread cannot start, the slot is not added, which is handled below.
      not_started = worker::start(&shared, &mut queue, replacement, None, failure).err();
    }
    drop(queue);
    self.warn_not_started(not_started);
    self.fail_unservable_calls();
  }
}
