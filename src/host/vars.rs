//! `var_get` and `var_set`: variables that outlive a call.
//!
//! All instances of a plugin share one set of variables. Otherwise a call's result would depend on the
//! instance that it happens to run on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Answer, Bytes, HostFunction, HostFunctionError};
use crate::abi::KERNEL;
use crate::abi::ValueType::I64;

/// The memory that a variable takes besides its name and value.
const VAR_OVERHEAD: usize = size_of::<String>() + size_of::<Vec<u8>>();

/// The default limit of the values of a plugin's variables, in bytes.
pub const DEFAULT_LIMIT: usize = 1 << 20;

/// The lowest limit of the names of variables in bytes, however low the limit of their values is.
const MIN_NAMES_LIMIT: usize = 64 << 10;

/// The variables of a plugin.
#[derive(Debug)]
pub struct Vars {
  /// The limit of all values in bytes.
  limit: usize,
  set: Mutex<VarsState>,
}

#[derive(Debug, Default)]
struct VarsState {
  values: BTreeMap<String, Bytes>,
  /// The size of all values in bytes.
  used: usize,
  /// The size of all names in bytes, plus [`VAR_OVERHEAD`] for each.
  names_used: usize,
}

/// Why a variable was not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VarsError {
  /// The limit is 0.
  #[error("vars are disabled by this host")]
  Disabled,
  /// The values would exceed their limit. The message is the one that programs know from Extism's SDKs.
  #[error("var memory limit exceeded: {requested} bytes requested, {allowed} allowed")]
  Full {
    /// The size that all values would have.
    requested: usize,
    /// The limit.
    allowed: usize,
  },
  /// The names would exceed their limit.
  #[error(
    "var name limit exceeded: {requested} bytes requested, including {VAR_OVERHEAD} per var, {allowed} allowed"
  )]
  TooManyNames {
    /// The size that all names would have.
    requested: usize,
    /// The limit.
    allowed: usize,
  },
}

impl Vars {
  /// `limit` bounds the total size of all values in bytes. Names, plus the host's overhead for each variable,
  /// have a separate limit of the same size, but at least 64 KiB: a guest that sets many variables with empty
  /// values must not exhaust the host's memory. A limit of 0 disables setting variables.
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

  /// Sets a variable. A value that it replaces does not count towards the limit.
  pub fn set(&self, key: &str, value: &[u8]) -> Result<(), VarsError> {
    if self.limit == 0 {
      return Err(VarsError::Disabled);
    }
    let mut set = self.lock();
    let old = set.values.get(key).map(|old| old.len());
    let used = (set.used - old.unwrap_or(0)).saturating_add(value.len());
    if used > self.limit {
      return Err(VarsError::Full {
        requested: used,
        allowed: self.limit,
      });
    }
    let name = match old {
      Some(_) => 0,
      None => key.len().saturating_add(VAR_OVERHEAD),
    };
    let names_used = set.names_used.saturating_add(name);
    let names_allowed = self.limit.max(MIN_NAMES_LIMIT);
    if names_used > names_allowed {
      return Err(VarsError::TooManyNames {
        requested: names_used,
        allowed: names_allowed,
      });
    }
    set.values.insert(key.to_owned(), value.into());
    set.used = used;
    set.names_used = names_used;
    Ok(())
  }

  /// Removes a variable. It is not an error if it is not set.
  pub fn remove(&self, key: &str) -> Result<(), VarsError> {
    if self.limit == 0 {
      return Err(VarsError::Disabled);
    }
    let mut set = self.lock();
    if let Some(old) = set.values.remove(key) {
      set.used -= old.len();
      set.names_used -= key.len() + VAR_OVERHEAD;
    }
    Ok(())
  }

  /// Removes all variables.
  pub fn clear(&self) {
    *self.lock() = VarsState::default();
  }

  /// A panic cannot leave the state inconsistent, so a poisoned lock is usable.
  fn lock(&self) -> MutexGuard<'_, VarsState> {
    self.set.lock().unwrap_or_else(PoisonError::into_inner)
  }
}

impl Default for Vars {
  fn default() -> Self {
    Self::new(DEFAULT_LIMIT)
  }
}

/// `var_get(key: i64) -> i64` and `var_set(key: i64, value: i64)`. A value at offset 0 removes the variable.
pub fn functions(vars: &Arc<Vars>) -> Vec<HostFunction> {
  let reader = Arc::clone(vars);
  let writer = Arc::clone(vars);
  vec![
    HostFunction::new(KERNEL, "var_get", [I64], Some(I64), move |call| {
      let key = call
        .text(0)
        .ok_or_else(|| HostFunctionError::new("var_get: the key is not UTF-8 text"))?;
      Ok(reader.get(key).map_or(Answer::ZERO, Answer::Bytes))
    }),
    HostFunction::new(KERNEL, "var_set", [I64, I64], None, move |call| {
      let key = call
        .text(0)
        .ok_or_else(|| HostFunctionError::new("var_set: the key is not UTF-8 text"))?
        .to_owned();
      let value = call
        .bytes(1)
        .ok_or_else(|| HostFunctionError::new("var_set: the value is not a block"))?;
      // Only offset 0 has no bytes: blocks are never empty.
      let result = if value.is_empty() {
        writer.remove(&key)
      } else {
        writer.set(&key, value)
      };
      result
        .map(|()| Answer::Nothing)
        .map_err(|error| HostFunctionError::new(error.to_string()))
    }),
  ]
}

#[cfg(test)]
mod tests {
  use super::*;

  fn full(requested: usize, allowed: usize) -> Result<(), VarsError> {
    Err(VarsError::Full { requested, allowed })
  }

  #[test]
  fn only_values_count_and_an_overwritten_value_counts_once() {
    let vars = Vars::new(10);
    vars.set("key", &[1; 10]).unwrap();
    vars.set("key", &[2; 10]).unwrap();
    assert_eq!(vars.set("key", &[3; 11]), full(11, 10));
    assert_eq!(vars.get("key").as_deref(), Some(&[2; 10][..]));
    assert_eq!(vars.set("other", &[3]), full(11, 10));
    vars.remove("key").unwrap();
    vars.set("other", &[4; 10]).unwrap();
    assert_eq!(
      vars.set("key", &[5; 1014]).unwrap_err().to_string(),
      "var memory limit exceeded: 1024 bytes requested, 10 allowed"
    );
  }

  #[test]
  fn names_have_their_own_limit() {
    let vars = Vars::new(10);
    let names = (0..).map(|number: u64| format!("{number:016}"));
    // 64 bytes each: the name and its overhead.
    let set = names.take_while(|name| vars.set(name, &[]).is_ok()).count();
    assert_eq!(set, 1024);
    let too_many = VarsError::TooManyNames {
      requested: (64 << 10) + 49,
      allowed: 64 << 10,
    };
    assert_eq!(vars.set("k", &[]), Err(too_many));
    vars.set("0000000000000000", &[1; 10]).unwrap();
    vars.remove("0000000000000001").unwrap();
    vars.set("k", &[]).unwrap();
    // The limit of the values applies if it is higher.
    let name = "k".repeat((1 << 20) - VAR_OVERHEAD);
    assert_eq!(Vars::new(1 << 20).set(&name, &[]), Ok(()));
    assert!(Vars::new((1 << 20) - 1).set(&name, &[]).is_err());
  }

  #[test]
  fn clearing_removes_all_variables_and_frees_their_quota() {
    let vars = Vars::new(10);
    vars.set("key", &[1; 10]).unwrap();
    vars.clear();
    assert_eq!(vars.get("key"), None);
    vars.set("other", &[2; 10]).unwrap();
    vars.remove("other").unwrap();
    assert_eq!(vars.lock().names_used, 0);
  }

  #[test]
  fn a_limit_of_0_disables_setting() {
    let vars = Vars::new(0);
    assert_eq!(vars.set("k", &[]), Err(VarsError::Disabled));
    assert_eq!(vars.get("k"), None);
  }
}
