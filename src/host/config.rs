//! `config_get`: the configuration of the plugin's manifest.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Answer, Bytes, HostFunction, HostFunctionError};
use crate::abi::KERNEL;
use crate::abi::ValueType;

/// `config_get(key: i64) -> i64`: the offset of the value, or 0 if the key is missing.
pub fn config_get(config: BTreeMap<String, String>) -> HostFunction {
  let config = config
    .into_iter()
    .map(|(key, value)| (key, Bytes::from(value.into_bytes())))
    .collect::<BTreeMap<_, _>>();
  let config = Arc::new(config);
  HostFunction::new(
    KERNEL,
    "config_get",
    [ValueType::I64],
    Some(ValueType::I64),
    move |call| {
      let key = call
        .text(0)
        .ok_or_else(|| HostFunctionError::new("config_get: the key is not UTF-8 text"))?;
      Ok(
        config
          .get(key)
          .map_or(Answer::ZERO, |value| Answer::Bytes(Arc::clone(value))),
      )
    },
  )
}
