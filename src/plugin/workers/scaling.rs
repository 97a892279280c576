//! Starts further instances when calls need them.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::queue::CallQueue;
use super::{WorkerPool, worker};
use crate::{Error, Result, sync};

/// The pause after an instance could not be started. Each further failure doubles it, up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause after an instance could not be started.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// The instances that may still be started.
pub struct ScaleUp {
  /// How many instances have not been initialized yet.
  missing: usize,
  /// How many starts have failed since the last successful one.
  failures: u32,
  /// No instance is started before this time.
  not_before: Option<Instant>,
}

impl ScaleUp {
  /// `None` if `missing` is 0.
  pub fn new(missing: usize) -> Option<Self> {
    (missing > 0).then_some(Self {
      missing,
      failures: 0,
      not_before: None,
    })
  }

  fn pause(&mut self) {
    let doublings = self.failures.saturating_sub(1).min(16);
    let pause = (FIRST_PAUSE * (1 << doublings)).min(MAX_PAUSE);
    self.not_before = sync::now().checked_add(pause);
  }
}

/// Starts another instance if there are more unfinished calls than slots to run them. The calls do not wait
/// for it: the others serve them meanwhile.
///
/// If it cannot be started, no call fails. When calls need one after a pause, the next start is attempted.
/// The pause grows with each failure, and starts are then attempted one at a time. Returns an error if the
/// thread could not be started and the logger should be notified.
#[must_use]
pub fn scale_up(shared: &WorkerPool, queue: &mut CallQueue, unfinished: usize) -> Option<Error> {
  if queue.scale_up.is_none()
    || unfinished <= queue.usable_slots()
    || shared.limits.instances.get() <= queue.slots.len()
  {
    return None;
  }
  let is_due = |scale_up: &&mut ScaleUp| scale_up.not_before.is_none_or(|at| at <= sync::now());
  let scale_up = queue.scale_up.as_mut().filter(is_due)?;
  let this = shared.this.upgrade()?;
  let failures = scale_up.failures;
  if failures > 0 {
    scale_up.pause();
  }
  let weak = Weak::clone(&shared.this);
  let ready = Box::new(move |result: Result<()>| {
    if let Some(shared) = weak.upgrade() {
      let not_started = record_start(&mut shared.lock(), result, failures);
      shared.warn_not_started(not_started);
    }
  });
  let started = worker::start(&this, queue, Arc::default(), Some(ready), None);
  started
    .err()
    .and_then(|error| record_start(queue, Err(error), failures))
}

/// Records whether an instance could be started. `failures` is the number of failures when its start began.
/// Returns the error if the logger should be notified.
fn record_start(queue: &mut CallQueue, started: Result<()>, failures: u32) -> Option<Error> {
  let scale_up = queue.scale_up.as_mut()?;
  let Err(error) = started else {
    scale_up.missing -= 1;
    scale_up.failures = 0;
    scale_up.not_before = None;
    if scale_up.missing == 0 {
      queue.scale_up = None;
    }
    return None;
  };
  // If several starts began together, only the first failure counts.
  if scale_up.failures != failures {
    return None;
  }
  scale_up.failures += 1;
  scale_up.pause();
  Some(error)
}
