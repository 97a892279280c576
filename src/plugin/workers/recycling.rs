//! When an instance that works is replaced, between two of its calls.

use std::time::Instant;

use super::super::instance::Run;
use super::super::stats::Replaced;
use super::WorkerLimits;
use crate::sync;

/// What an instance has done.
pub struct Usage {
  has_begun: bool,
  calls: u64,
  /// There if its age is limited.
  since: Option<Instant>,
}

impl Usage {
  /// Of an instance that begins now.
  pub fn new(limits: &WorkerLimits) -> Self {
    Self {
      has_begun: false,
      calls: 0,
      since: limits.max_age.map(|_| sync::now()),
    }
  }

  /// Whether the call that begins is the instance's first.
  pub fn begin_first_call(&mut self) -> bool {
    !std::mem::replace(&mut self.has_begun, true)
  }

  /// Counts a call, and tells why the instance is to be replaced after it, if it is.
  pub fn after_call<I: Run>(
    &mut self,
    instance: &mut I,
    limits: &WorkerLimits,
  ) -> Option<Replaced> {
    self.calls += 1;
    if self.calls == 1 {
      // Some guests load what they need in their first call. To replace these for it would not help.
      instance.accept_memory();
    }
    let is_too_old = |limit| self.since.is_some_and(|since| sync::now() - since >= limit);
    if instance.is_nearly_full() {
      Some(Replaced::Memory)
    } else if limits
      .max_calls
      .is_some_and(|limit| self.calls >= limit.get())
    {
      Some(Replaced::Calls)
    } else if limits.max_age.is_some_and(is_too_old) {
      Some(Replaced::Age)
    } else {
      None
    }
  }
}
