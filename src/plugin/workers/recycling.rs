//! Decides when a working instance is replaced, between two of its calls.

use std::time::Instant;

use super::super::instance::Run;
use super::super::stats::ReplaceReason;
use super::WorkerLimits;
use crate::sync;

/// What an instance has done so far.
pub struct InstanceUsage {
  has_started_call: bool,
  calls: u64,
  /// Set if its age is limited.
  since: Option<Instant>,
}

impl InstanceUsage {
  /// For an instance that starts now.
  pub fn new(limits: &WorkerLimits) -> Self {
    Self {
      has_started_call: false,
      calls: 0,
      since: limits.max_age.map(|_| sync::now()),
    }
  }

  /// Whether the call that starts is the instance's first.
  pub fn starts_first_call(&mut self) -> bool {
    !std::mem::replace(&mut self.has_started_call, true)
  }

  /// Counts a call. Returns a reason if the instance should be replaced after it.
  pub fn after_call<I: Run>(
    &mut self,
    instance: &mut I,
    limits: &WorkerLimits,
  ) -> Option<ReplaceReason> {
    self.calls += 1;
    if self.calls == 1 {
      // Some guests load what they need in their first call. Replacing them for that would not help.
      instance.set_memory_baseline();
    }
    let is_too_old = |limit| self.since.is_some_and(|since| sync::now() - since >= limit);
    if instance.is_nearly_full() {
      Some(ReplaceReason::Memory)
    } else if limits
      .max_calls
      .is_some_and(|limit| self.calls >= limit.get())
    {
      Some(ReplaceReason::Calls)
    } else if limits.max_age.is_some_and(is_too_old) {
      Some(ReplaceReason::Age)
    } else {
      None
    }
  }
}
