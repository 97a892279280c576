//! What changes a store in a file.

use crate::store::Bytes;

/// A change that somebody waits for. What comes of it is a number: the sum of an increment, how many keys
/// were there for those that remove some, 1 for a swap that was made, and 0 otherwise. Lifetimes are
/// milliseconds.
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
  /// Sets a key, or removes it, if it has the expected value.
  Swap {
    key: String,
    expected: Option<Bytes>,
    value: Option<Bytes>,
    lifetime: Option<u64>,
  },
  /// Opens the file again if it has not been since this opening of it, whose number that is: a reader has
  /// found that it can be read no more.
  Reopen { opening: u64 },
}

impl Operation {
  /// How many bytes it takes, about.
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
