//! Brief spinning in place of sleep, where it costs nobody anything.
//!
//! To put a thread to sleep and wake it again costs tens of microseconds: many times what a short
//! call takes. So where calls are made one after the other, each as soon as the one before has
//! ended, the thread that serves them stays awake for a moment and looks for the next.

use std::num::NonZeroUsize;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::sync::{self, AtomicBool, AtomicUsize, process_static, thread};

/// How long a thread looks for the next call before it sleeps. It has to be longer than a caller that
/// sleeps takes to wake up and call again: only then does either begin to stay awake.
const LIMIT: Duration = Duration::from_micros(200);

/// What a thread that spins looks at: that something may have happened.
///
/// On cache lines of its own (processors fetch them in pairs): who spins would otherwise take from the
/// other thread, again and again, what that needs to come to the point.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Flag(AtomicBool);

impl Flag {
  /// Before it is looked at.
  pub fn clear(&self) {
    self.0.store(false, Ordering::Relaxed);
  }

  /// Something has happened, and whoever sees this can see it: after the lock under which it happened
  /// is free, which is what they need next.
  pub fn set(&self) {
    self.0.store(true, Ordering::Relaxed);
  }

  /// Whether something has happened. What, is to be seen under its lock.
  pub fn is_set(&self) -> bool {
    self.0.load(Ordering::Relaxed)
  }
}

/// Spins until `is_due` or the time is over; whether it was due. On one core it does not wait: it would keep
/// the other thread from what it waits for.
pub fn until(limit: Duration, is_due: impl Fn() -> bool) -> bool {
  if cores() == 1 {
    return is_due();
  }
  let mut start = None;
  loop {
    for _ in 0..16 {
      if is_due() {
        return true;
      }
      sync::spin_loop();
    }
    // The clock costs as much as several looks, and more often than not it is not needed.
    let now = sync::now();
    if now - *start.get_or_insert(now) > limit {
      return is_due();
    }
  }
}

/// What tells whether spinning has paid lately: each time that it has not, it is left out for twice
/// as many times as before.
#[derive(Clone, Copy, Debug, Default)]
pub struct SpinBackoff {
  failures: u32,
  skips_left: u32,
}

impl SpinBackoff {
  /// Spins the first time.
  pub const NEW: Self = Self {
    failures: 0,
    skips_left: 0,
  };

  /// At most 63 times in a row it is left out: where it never pays, that costs next to nothing, and where
  /// it pays again, that is noticed soon.
  const MAX_FAILURES: u32 = 6;

  /// Whether to spin this time.
  pub fn is_due(&mut self) -> bool {
    match self.skips_left.checked_sub(1) {
      Some(left) => {
        self.skips_left = left;
        false
      }
      None => true,
    }
  }

  /// Learns whether it has paid.
  pub fn learn(&mut self, has_paid: bool) {
    self.failures = match has_paid {
      true => 0,
      false => (self.failures + 1).min(Self::MAX_FAILURES),
    };
    self.skips_left = (1 << self.failures) - 1;
  }
}

/// A thread's place among those of the process that spin; there are fewer than there are cores.
pub struct Spinner(());

fn cores() -> usize {
  static CORES: OnceLock<usize> = OnceLock::new();
  *CORES.get_or_init(|| thread::available_parallelism().map_or(1, NonZeroUsize::get))
}

process_static! { static SPINNERS: AtomicUsize = AtomicUsize::new(0); }

impl Spinner {
  /// `None` where all places are taken; always so on one core.
  pub fn new() -> Option<Self> {
    let is_free = |spinners| (spinners + 1 < cores()).then_some(spinners + 1);
    SPINNERS
      .fetch_update(Ordering::Relaxed, Ordering::Relaxed, is_free)
      .is_ok()
      // Made only then: one that is dropped gives its place back.
      .then(|| Self(()))
  }

  /// Looks for the next call; whether there is one.
  pub fn spin_wait(&self, is_due: impl Fn() -> bool) -> bool {
    until(LIMIT, is_due)
  }
}

impl Drop for Spinner {
  fn drop(&mut self) {
    SPINNERS.fetch_sub(1, Ordering::Relaxed);
  }
}

#[cfg(test)]
mod tests {
  use super::*;

  #[test]
  fn each_time_that_it_does_not_pay_it_is_left_out_twice_as_often_until_it_pays() {
    let skipped = |backoff: &mut SpinBackoff| (0..).take_while(|_| !backoff.is_due()).count();
    let mut backoff = SpinBackoff::NEW;
    assert_eq!(skipped(&mut backoff), 0);
    for expected in [1, 3, 7, 15, 31, 63, 63] {
      backoff.learn(false);
      assert_eq!(skipped(&mut backoff), expected);
    }
    backoff.learn(true);
    assert_eq!(skipped(&mut backoff), 0);
  }
}
