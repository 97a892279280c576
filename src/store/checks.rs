//! What all stores refuse alike.

use super::MAX_KEY;
use crate::{Code, Error, Result};

/// Refuses a key that is too long.
pub fn check_key(key: &str) -> Result<()> {
  if key.len() <= MAX_KEY {
    return Ok(());
  }
  Err(Error::new(
    Code::InvalidArgument,
    format!(
      "a key may have {MAX_KEY} bytes of UTF-8, and this one has {}; use a hash of it, say",
      key.len()
    ),
  ))
}

/// What comes of adding `delta` to the number that is kept as `value`; see
/// [`Store::increment`](super::Store::increment).
pub fn sum(value: Option<&[u8]>, delta: i64) -> Result<i64> {
  let number = match value {
    None => 0,
    Some(value) => std::str::from_utf8(value)
      .ok()
      .and_then(|digits| digits.parse::<i64>().ok())
      .ok_or_else(|| {
        Error::new(
          Code::InvalidArgument,
          "the value is no whole number of 64 bits in decimal digits, so nothing can be added to it",
        )
      })?,
  };
  number.checked_add(delta).ok_or_else(|| {
    Error::new(
      Code::InvalidArgument,
      format!("the sum of {number} and {delta} does not fit into 64 bits"),
    )
  })
}

#[cfg(test)]
mod tests {
  use super::*;

  #[test]
  fn a_number_is_added_to_what_is_there_and_to_0_where_nothing_is() {
    assert_eq!(sum(None, 5), Ok(5));
    assert_eq!(sum(Some(b"-7"), 5), Ok(-2));
    assert_eq!(sum(Some(b"9223372036854775806"), 1), Ok(i64::MAX));
  }

  #[test]
  fn what_is_no_number_or_would_be_none_any_more_is_refused() {
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
  fn a_key_of_64_kib_is_taken_and_a_longer_one_refused() {
    assert_eq!(check_key(&"k".repeat(MAX_KEY)), Ok(()));
    let refused = check_key(&"k".repeat(MAX_KEY + 1));
    assert_eq!(
      refused.map_err(|error| error.code),
      Err(Code::InvalidArgument)
    );
  }
}
