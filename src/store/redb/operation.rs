//! Operations on a store in a file.

use crate::store::Bytes;

/// A queued operation. Its result is a number: the sum for an increment, the number of keys that existed for
/// a deletion, 1 for a swap that was made, and 0 otherwise. Lifetimes are in milliseconds.
pub enum Operation {
  /// Sets keys.
  Set {
    entries: Vec<(String, Bytes)>,
    lifetime: Option<u64>,
  },
  /// Removes keys.
  Delete { keys: Vec<String> },
  /// Adds to a number.
  Increment { key: String, delta: i64 },
  /// Sets or removes a key if it has the expected value.
  Swap {
    key: String,
    expected: Option<Bytes>,
    value: Option<Bytes>,
    lifetime: Option<u64>,
  },
  /// Opens the file again unless that has happened since `generation`: a reader found that this generation of
  /// the file can no longer be read.
  Reopen { generation: u64 },
}

impl Operation {
  /// Its approximate size in bytes.
  pub fn bytes(&self) -> usize {
    let length = |value: &Option<Bytes>| value.as_ref().map_or(0, |value| value.len());
    match self {
      Self::Set { entries, .. } => entries
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum(),
      Self::Delete { keys } => keys.iter().map(String::len).sum(),
      Self::Increment { key, .. } => key.len(),
      Self::Swap {
        key,
        expected,
        value,
        ..
      } => key.len() + length(expected) + length(value),
      Self::Reopen { .. } => 0,
    }
  }
}
