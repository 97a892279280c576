//! Lists of bytes as guests have them: simple enough to be read and written without a library, and any
//! bytes can be in them. Each item is its length, as four bytes with the least first, and then its bytes.

/// The length that stands for an item that is missing.
const MISSING: u32 = u32::MAX;

/// Puts a list together.
pub fn encode<'a>(items: impl IntoIterator<Item = Option<&'a [u8]>>) -> Vec<u8> {
  let mut list = Vec::new();
  for item in items {
    // No item has as many bytes as that: it would not fit into a guest's memory.
    let length = item.map_or(MISSING, |item| item.len() as u32);
    list.extend_from_slice(&length.to_le_bytes());
    list.extend_from_slice(item.unwrap_or_default());
  }
  list
}

/// Takes a list of text apart. `None` where it is none: an item is missing or no UTF-8, a length is not
/// right, or there are more than `max`.
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
  fn a_list_comes_back_as_it_was_and_what_is_missing_is_not_empty() {
    let list = encode([Some(&b"key"[..]), Some(b""), Some("👋".as_bytes())]);
    assert_eq!(decode(&list, 3), Some(vec!["key", "", "👋"]));
    assert_eq!(decode(&[], 0), Some(vec![]));
    assert_eq!(
      encode([Some(&b""[..]), None]),
      [0, 0, 0, 0, 255, 255, 255, 255]
    );
  }

  #[test]
  fn what_is_no_list_of_text_is_refused() {
    let list = encode([Some(&b"key"[..]), Some(b"other")]);
    for length in (1..list.len()).filter(|length| *length != 7) {
      assert_eq!(decode(&list[..length], 9), None, "{length}");
    }
    assert_eq!(decode(&list, 1), None);
    assert_eq!(decode(&encode([None]), 9), None);
    assert_eq!(decode(&encode([Some(&b"\xFF"[..])]), 9), None);
  }
}
