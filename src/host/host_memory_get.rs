//! `hostMemoryGet`: the value that a store has for a key.

use std::sync::Arc;

use super::{Answer, HostFunction};
use crate::plugin::names::USER;
use crate::plugin::types::ValueType;
use crate::store::{MAX_KEY, Store};

/// `hostMemoryGet(key: i64) -> i64`, in `extism:host/user`. The offset of the value; 0 when the key
/// has none, when the value is empty, and when what was passed is not the offset of UTF-8 text. Where
/// the store fails, the call ends with the store's code.
pub fn host_memory_get(store: Arc<dyn Store>) -> HostFunction {
  HostFunction::new(
    USER,
    "hostMemoryGet",
    [ValueType::I64],
    Some(ValueType::I64),
    move |call| {
      let Some(key) = call.text(0) else {
        return Ok(Answer::ZERO);
      };
      let value = match store.get_now(key) {
        Some(value) => value,
        // No store has such a key, and to ask for it is an error.
        None if key.len() > MAX_KEY => None,
        None => store.get(key)?,
      };
      Ok(value.map_or(Answer::ZERO, Answer::Bytes))
    },
  )
}
