//! The encoding of lists of bytes for guests: simple enough to read and write without a library, and
//! binary-safe. Each item is its length, as four little-endian bytes, followed by its bytes.

/// The length that marks a missing item.
const MISSING: u32 = u32::MAX;

/// Encodes a list.
pub fn encode<'a>(items: impl IntoIterator<Item = Option<&'a [u8]>>) -> Vec<u8> {
  let mut list = Vec::new();
  for item in items {
    // Items fit into a guest's 32-bit memory, so no length reaches `MISSING`.
    let length = item.map_or(MISSING, |item| item.len() as u32);
    list.extend_from_slice(&length.to_le_bytes());
    list.extend_from_slice(item.unwrap_or_default());
  }
  list
}

/// Decodes a list of text. `None` if it is malformed: an item is missing or not UTF-8, a length is wrong, or
/// there are more than `max` items.
pub fn decode(mut list: &[u8], max: usize) -> Option<Vec<&str>> {
  let mut items = Vec::new();
  while !list.is_empty() {
    let (length, rest) = list.split_first_chunk()?;
    let length = u32::from_le_bytes(*length);
    let (item, rest) = rest.split_at_checked(length as usize)?;
    if length == MISSING || items.len() == max {
      return None;
    }
    items.push(std::str::from_utf8(item).ok()?);
    list = rest;
  }
  Some(items)
}

#[cfg(test)]
mod tests {
  use super::*;

  #[test]
  fn a_list_round_trips_and_a_missing_item_is_not_an_empty_one() {
    let list = encode([Some(&b"key"[..]), Some(b""), Some("👋".as_bytes())]);
    assert_eq!(decode(&list, 3), Some(vec!["key", "", "👋"]));
    assert_eq!(decode(&[], 0), Some(vec![]));
    assert_eq!(
      encode([Some(&b""[..]), None]),
      [0, 0, 0, 0, 255, 255, 255, 255]
    );
  }

  #[test]
  fn a_malformed_list_is_refused() {
    let list = encode([Some(&b"key"[..]), Some(b"other")]);
    for length in (1..list.len()).filter(|length| *length != 7) {
      assert_eq!(decode(&list[..length], 9), None, "{length}");
    }
    assert_eq!(decode(&list, 1), None);
    assert_eq!(decode(&encode([None]), 9), None);
    assert_eq!(decode(&encode([Some(&b"\xFF"[..])]), 9), None);
  }
}
