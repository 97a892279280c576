//! Deadlines of calls, and threads that do not heed an interruption.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::slot::{Activity, InFlight, Slot};
use super::{WorkerPool, timed_out, worker};
use crate::sync;
use crate::watchdog::Watched;

/// How long an interrupted instance may take to end before its thread is abandoned.
pub const GRACE: Duration = Duration::from_millis(200);

/// How soon an interruption that may have been missed is repeated.
const REPEAT: Duration = Duration::from_millis(10);

/// How many threads of a plugin may be abandoned at once. A guest can make them: each holds an
/// instance's memory until the host call that it is stuck in returns.
const MAX_ABANDONED: usize = 16;

impl Watched for WorkerPool {
  fn poll_deadlines(&self, now: Instant) -> Option<Instant> {
    let slots = self.lock().slots.clone();
    let due = slots.iter().filter_map(|slot| self.poll_slot(slot, now));
    due.min()
  }
}

impl WorkerPool {
  /// Ends what has run for too long in one slot, and tells when to look again.
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
      if let Some(waiter) = record.take_to_fail(&error) {
        ended = Some((waiter, error));
        self.taken.fetch_add(1, Ordering::Relaxed);
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
        // The deadline of what has been ended has been kept.
        let deadline = in_flight.deadline.filter(|_| in_flight.waiter.is_some());
        in_flight.abandon_at.or(deadline)
      }
      (_, None) => None,
    };
    drop(record);
    if let Some((waiter, error)) = ended {
      self.end_taken(waiter, error);
    }
    due
  }

  /// Gives up a thread that does not heed its interruption, and starts another in its place.
  fn abandon(&self, slot: &Arc<Slot>) {
    let mut queue = self.lock();
    let mut record = slot.lock();
    let is_due =
      |in_flight: &&mut InFlight| in_flight.abandon_at.is_some_and(|at| at <= sync::now());
    let Some(in_flight) = record.in_flight.as_mut().filter(is_due) else {
      return;
    };
    in_flight.abandon_at = None;
    // The replacement would meet the same: the next call is told of an initialization that failed.
    let failure = match in_flight.activity {
      Activity::Initialization => Some(timed_out(in_flight)),
      Activity::Call | Activity::Recycling => None,
    };
    let are_too_many = queue.abandoned >= MAX_ABANDONED;
    if are_too_many && !queue.is_closed {
      slot.is_stuck.store(true, Ordering::Relaxed);
      drop(record);
      drop(queue);
      return self.end_what_nobody_can_serve();
    }
    record.is_abandoned = true;
    let is_proven = record.is_proven;
    drop(record);
    queue.abandoned += 1;
    queue.slots.retain(|other| !Arc::ptr_eq(other, slot));
    // A closed plugin needs another thread only for calls that wait, and none beyond the limit. Where
    // the slot has not served yet, others do.
    let is_needed = is_proven && (!queue.is_closed || !queue.waiting.is_empty());
    let mut not_started = None;
    if is_needed
      && !are_too_many
      && let Some(shared) = self.this.upgrade()
    {
      let replacement = Arc::<Slot>::default();
      replacement.lock().is_proven = true;
      // Without a thread there is no slot, which is handled below.
      not_started = worker::start(&shared, &mut queue, replacement, None, failure).err();
    }
    drop(queue);
    self.warn_of(not_started);
    self.end_what_nobody_can_serve();
  }
}
