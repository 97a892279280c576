//! `hostMemoryGet`, the article's host function: a key's offset in, the value's offset out.

use std::sync::Arc;

use extism::Function;

use super::from_offset_to_offset;
use crate::store::Store;

/// The name under which guests import it.
pub const NAME: &str = "hostMemoryGet";

/// Reads a value from `store`.
///
/// The guest passes the offset of a block that holds the key in UTF-8, and gets the offset of a
/// new block with the value. It gets offset 0, which every PDK reads as an empty block, where the
/// key is missing, where it is no UTF-8, and where the value is empty: Extism's kernel has no
/// block of length 0, so an empty value and a missing key look alike to the guest.
pub fn function(store: Arc<dyn Store>) -> Function {
  from_offset_to_offset(NAME, move |plugin, offset| {
    let Some(handle) = plugin.memory_handle(offset) else {
      return Ok(0);
    };
    let Ok(key) = std::str::from_utf8(plugin.memory_bytes(handle)?) else {
      return Ok(0);
    };
    match store.get(key) {
      Some(value) => Ok(plugin.memory_new(&*value)?.offset()),
      None => Ok(0),
    }
  })
}
