//! Checks that all stores share.

use super::MAX_KEY;
use crate::{Code, Error, Result};

/// Fails if the key is longer than [`MAX_KEY`].
pub fn check_key(key: &str) -> Result<()> {
  if key.len() <= MAX_KEY {
    return Ok(());
  }
  Err(Error::new(
    Code::InvalidArgument,
    format!(
      "the key has {} bytes of UTF-8, more than the {MAX_KEY} allowed; use a shorter key, such as a hash of it",
      key.len()
    ),
  ))
}

/// Adds `delta` to the number stored as `value`; see [`Store::increment`](super::Store::increment).
pub fn sum(value: Option<&[u8]>, delta: i64) -> Result<i64> {
  let number = match value {
    None => 0,
    Some(value) => std::str::from_utf8(value)
      .ok()
      .and_then(|digits| digits.parse::<i64>().ok())
      .ok_or_else(|| {
        Error::new(
          Code::InvalidArgument,
          "cannot increment: the value is not a 64-bit integer in decimal digits",
        )
      })?,
  };
  number.checked_add(delta).ok_or_else(|| {
    Error::new(
      Code::InvalidArgument,
      format!("cannot increment: {number} plus {delta} overflows 64 bits"),
    )
  })
}

#[cfg(test)]
mod tests {
  use super::*;

  #[test]
  fn delta_is_added_to_the_stored_number_or_to_0_if_there_is_no_value() {
    assert_eq!(sum(None, 5), Ok(5));
    assert_eq!(sum(Some(b"-7"), 5), Ok(-2));
    assert_eq!(sum(Some(b"9223372036854775806"), 1), Ok(i64::MAX));
  }

  #[test]
  fn a_value_that_is_not_a_number_and_a_sum_that_overflows_are_refused() {
    for value in [
      &b""[..],
      b"1.5",
      b" 1",
      b"one",
      b"\xFF",
      b"9223372036854775808",
    ] {
      assert_eq!(
        sum(Some(value), 0).map_err(|error| error.code),
        Err(Code::InvalidArgument)
      );
    }
    let over = sum(Some(b"9223372036854775807"), 1);
    assert_eq!(over.map_err(|error| error.code), Err(Code::InvalidArgument));
    let under = sum(Some(b"-9223372036854775808"), -1);
    assert_eq!(
      under.map_err(|error| error.code),
      Err(Code::InvalidArgument)
    );
  }

  #[test]
  fn a_key_of_64_kib_is_accepted_and_a_longer_one_refused() {
    assert_eq!(check_key(&"k".repeat(MAX_KEY)), Ok(()));
    let refused = check_key(&"k".repeat(MAX_KEY + 1));
    assert_eq!(
      refused.map_err(|error| error.code),
      Err(Code::InvalidArgument)
    );
  }
}
