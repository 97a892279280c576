//! `var_get` and `var_set`: what a plugin remembers from one call to the next.
//!
//! A plugin has one set of variables, which all its instances share; otherwise what a call finds
//! would depend on the instance that it happens to run on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Answer, Bytes, HostFunction, HostFunctionError};
use crate::plugin::names::KERNEL;
use crate::plugin::types::ValueType::I64;

/// What a variable costs beside its key and its value. It is what Extism counts.
const ENTRY: usize = size_of::<String>() + size_of::<Vec<u8>>();

/// Bytes that the variables of a plugin may take when nothing else is said.
pub const DEFAULT_LIMIT: usize = 1 << 20;

/// The variables of a plugin.
#[derive(Debug)]
pub struct Vars {
  limit: usize,
  set: Mutex<Set>,
}

#[derive(Debug, Default)]
struct Set {
  values: BTreeMap<String, Bytes>,
  /// The sum of [`cost`] over `values`.
  used: usize,
}

/// Why a variable was not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VarsError {
  /// The limit is 0.
  #[error("vars are disabled by this host")]
  Disabled,
  /// There is no room for it within the limit.
  #[error("the variable store is full")]
  Full,
}

fn cost(key: &str, value: &[u8]) -> usize {
  key.len().saturating_add(value.len()).saturating_add(ENTRY)
}

impl Vars {
  /// `limit` is in bytes: keys, values, and 48 for each variable. With 0, setting is refused.
  pub fn new(limit: usize) -> Self {
    Self {
      limit,
      set: Mutex::default(),
    }
  }

  /// The value of a variable.
  pub fn get(&self, key: &str) -> Option<Bytes> {
    self.lock().values.get(key).cloned()
  }

  /// The old value is not counted: it goes when the new one comes.
  pub fn set(&self, key: &str, value: &[u8]) -> Result<(), VarsError> {
    if self.limit == 0 {
      return Err(VarsError::Disabled);
    }
    let mut set = self.lock();
    let old = set.values.get(key).map_or(0, |old| cost(key, old));
    let used = (set.used - old).saturating_add(cost(key, value));
    if used > self.limit {
      return Err(VarsError::Full);
    }
    set.values.insert(key.to_owned(), value.into());
    set.used = used;
    Ok(())
  }

  /// Removes a variable; one that is not there is no error.
  pub fn remove(&self, key: &str) -> Result<(), VarsError> {
    if self.limit == 0 {
      return Err(VarsError::Disabled);
    }
    let mut set = self.lock();
    if let Some(old) = set.values.remove(key) {
      set.used -= cost(key, &old);
    }
    Ok(())
  }

  /// No step between two consistent states can panic, so what a poisoned lock holds is good.
  fn lock(&self) -> MutexGuard<'_, Set> {
    self.set.lock().unwrap_or_else(PoisonError::into_inner)
  }
}

impl Default for Vars {
  fn default() -> Self {
    Self::new(DEFAULT_LIMIT)
  }
}

/// `var_get(key: i64) -> i64` and `var_set(key: i64, value: i64)`. A value at offset 0 removes the
/// variable.
pub fn functions(vars: &Arc<Vars>) -> Vec<HostFunction> {
  let reader = Arc::clone(vars);
  let writer = Arc::clone(vars);
  vec![
    HostFunction::new(KERNEL, "var_get", [I64], Some(I64), move |call| {
      let key = call
        .text(0)
        .ok_or_else(|| HostFunctionError::new("var_get: the key is no text"))?;
      Ok(reader.get(key).map_or(Answer::ZERO, Answer::Bytes))
    }),
    HostFunction::new(KERNEL, "var_set", [I64, I64], None, move |call| {
      let key = call
        .text(0)
        .ok_or_else(|| HostFunctionError::new("var_set: the key is no text"))?
        .to_owned();
      let value = call
        .bytes(1)
        .ok_or_else(|| HostFunctionError::new("var_set: the value is no block"))?;
      // Only the offset 0 has no bytes: no block is empty.
      let result = if value.is_empty() {
        writer.remove(&key)
      } else {
        writer.set(&key, value)
      };
      result
        .map(|()| Answer::Nothing)
        .map_err(|error| HostFunctionError::new(format!("var_set: {error}")))
    }),
  ]
}

#[cfg(test)]
mod tests {
  use super::*;

  #[test]
  fn counts_a_value_once_when_it_is_overwritten() {
    let vars = Vars::new(ENTRY + 1 + 10);
    vars.set("k", &[1; 10]).unwrap();
    vars.set("k", &[2; 10]).unwrap();
    assert_eq!(vars.set("k", &[3; 11]), Err(VarsError::Full));
    assert_eq!(vars.get("k").as_deref(), Some(&[2; 10][..]));
    assert_eq!(vars.set("l", &[]), Err(VarsError::Full));
    vars.remove("k").unwrap();
    vars.set("l", &[4; 10]).unwrap();
  }

  #[test]
  fn refuses_when_disabled() {
    let vars = Vars::new(0);
    assert_eq!(vars.set("k", &[]), Err(VarsError::Disabled));
    assert_eq!(vars.get("k"), None);
  }
}
