//! The queued calls in order, and the size of their inputs.

use std::collections::VecDeque;

use super::Call;

/// How many bytes must have been queued together for memory to be returned afterwards.
const BURST: usize = 8 << 20;

/// Changed under the queue's lock, so plain additions suffice for counting.
#[derive(Default)]
pub struct WaitingCalls {
  calls: VecDeque<Call>,
  bytes: usize,
  /// The maximum of `bytes` since the last burst.
  peak: usize,
}

impl WaitingCalls {
  /// The number of queued calls.
  pub fn len(&self) -> usize {
    self.calls.len()
  }

  /// Whether no call is queued.
  pub fn is_empty(&self) -> bool {
    self.calls.is_empty()
  }

  /// The size of all inputs together.
  pub fn bytes(&self) -> usize {
    self.bytes
  }

  /// Adds a new call.
  pub fn push_back(&mut self, call: Call) {
    self.bytes += call.input.len();
    self.peak = self.peak.max(self.bytes);
    self.calls.push_back(call);
  }

  /// Puts back a call that was taken.
  pub fn push_front(&mut self, call: Call) {
    self.bytes += call.input.len();
    self.calls.push_front(call);
  }

  /// Takes the next call.
  pub fn pop_front(&mut self) -> Option<Call> {
    let call = self.calls.pop_front()?;
    self.bytes -= call.input.len();
    Some(call)
  }

  /// Whether the last call of a burst has been taken. True once per burst.
  pub fn ends_burst(&mut self) -> bool {
    let ends = self.peak >= BURST && self.calls.is_empty();
    if ends {
      self.peak = 0;
    }
    ends
  }

  /// Takes the call with this number.
  pub fn remove(&mut self, number: u64) -> Option<Call> {
    let position = self.calls.iter().position(|call| call.number == number)?;
    let call = self.calls.remove(position)?;
    self.bytes -= call.input.len();
    Some(call)
  }

  /// Takes all calls.
  pub fn take(&mut self) -> VecDeque<Call> {
    self.bytes = 0;
    std::mem::take(&mut self.calls)
  }
}
