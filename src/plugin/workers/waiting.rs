//! The calls that wait, in their order, and how much memory their inputs take.

use std::collections::VecDeque;

use super::Call;

/// From how many bytes on that wait together it pays to give memory back afterwards.
const BURST: usize = 8 << 20;

/// Changed under the queue's lock, so that counting costs an addition.
#[derive(Default)]
pub struct Waiting {
  calls: VecDeque<Call>,
  bytes: usize,
  /// The most that they have been since the last burst.
  peak: usize,
}

impl Waiting {
  /// How many there are.
  pub fn len(&self) -> usize {
    self.calls.len()
  }

  /// Whether there are none.
  pub fn is_empty(&self) -> bool {
    self.calls.is_empty()
  }

  /// The bytes of all inputs.
  pub fn bytes(&self) -> usize {
    self.bytes
  }

  /// Adds a call that came.
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

  /// Takes the next.
  pub fn pop_front(&mut self) -> Option<Call> {
    let call = self.calls.pop_front()?;
    self.bytes -= call.input.len();
    Some(call)
  }

  /// Whether the last call of a burst has been taken. Says so once.
  pub fn ends_burst(&mut self) -> bool {
    let ends = self.peak >= BURST && self.calls.is_empty();
    if ends {
      self.peak = 0;
    }
    ends
  }

  /// Takes the call of this number.
  pub fn remove(&mut self, number: u64) -> Option<Call> {
    let position = self.calls.iter().position(|call| call.number == number)?;
    let call = self.calls.remove(position)?;
    self.bytes -= call.input.len();
    Some(call)
  }

  /// Takes all.
  pub fn take(&mut self) -> VecDeque<Call> {
    self.bytes = 0;
    std::mem::take(&mut self.calls)
  }
}
