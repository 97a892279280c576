//! `hostMemoryGet`: reads a key from the store.

use std::sync::Arc;

use super::{Answer, HostFunction, StoreAccess};
use crate::Code;
use crate::abi::USER;
use crate::abi::ValueType;

/// `hostMemoryGet(key: i64) -> i64`, in `extism:host/user`. Returns the offset of the value; 0 if the key is
/// missing, if its value is empty, or if `key` is not the offset of UTF-8 text. If the store fails, the call
/// ends with the store's code.
pub fn host_memory_get(access: Arc<StoreAccess>) -> HostFunction {
  HostFunction::new(
    USER,
    "hostMemoryGet",
    [ValueType::I64],
    Some(ValueType::I64),
    move |call| {
      let Some(key) = call.text(0) else {
        return Ok(Answer::ZERO);
      };
      match access.traced("hostMemoryGet", || access.get(key)) {
        Ok(Some(value)) => Ok(Answer::Bytes(value)),
        Ok(None) => Ok(Answer::ZERO),
        // A store cannot contain an invalid key.
        Err(error) if error.code == Code::InvalidArgument => Ok(Answer::ZERO),
        Err(error) => Err(error.into()),
      }
    },
  )
}
