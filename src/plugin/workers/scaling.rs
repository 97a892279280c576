//! Instances that are not started with the plugin but when calls need them.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::queue::Queue;
use super::{WorkerPool, worker};
use crate::{Error, Result, sync};

/// How long no further instance is started after one that could not be. Each failure after that
/// doubles it, up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause after an instance that could not be started.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// The instances that may still be started.
pub struct ScaleUp {
  /// How many have not been initialized yet.
  missing: usize,
  /// How many could not be started since the last that could.
  failures: u32,
  /// Before this, no other is started.
  not_before: Option<Instant>,
}

impl ScaleUp {
  /// `missing` instances may be started; `None` for none.
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

/// Starts a further instance where more calls are unfinished than there are slots for them. The calls
/// do not wait for it: the others serve them meanwhile.
///
/// One that cannot be started is nobody's error. The next is tried when calls need it after a pause,
/// which grows with each failure, and then one at a time. Returns why its thread could not be started, if the
/// logger is to be told.
#[must_use]
pub fn scale_up(shared: &WorkerPool, queue: &mut Queue, unfinished: usize) -> Option<Error> {
  if queue.scale_up.is_none()
    || unfinished <= queue.able()
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
      shared.warn_of(not_started);
    }
  });
  let started = worker::start(&this, queue, Arc::default(), Some(ready), None);
  started
    .err()
    .and_then(|error| record_start(queue, Err(error), failures))
}

/// Notes whether an instance, begun when so many had failed, has been started. Returns why not, if the logger
/// is to be told.
fn record_start(queue: &mut Queue, started: Result<()>, failures: u32) -> Option<Error> {
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
  // Of several that were begun together, only the first that fails counts.
  if scale_up.failures != failures {
    return None;
  }
  scale_up.failures += 1;
  scale_up.pause();
  Some(error)
}
