//! `var_get` and `var_set`: what a plugin remembers from one call to the next.
//!
//! A plugin has one set of variables, which all its instances share; otherwise what a call finds
//! would depend on the instance that it happens to run on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Answer, Bytes, HostFunction, HostFunctionError};
use crate::abi::KERNEL;
use crate::abi::ValueType::I64;

/// What a variable costs beside its name and its value.
const ENTRY: usize = size_of::<String>() + size_of::<Vec<u8>>();

/// Bytes that the values of a plugin's variables may have when nothing else is said.
pub const DEFAULT_LIMIT: usize = 1 << 20;

/// What the names of the variables may take at least, however low the limit of their values is.
const LEAST_NAMES_LIMIT: usize = 64 << 10;

/// The variables of a plugin.
#[derive(Debug)]
pub struct Vars {
  /// Of the values.
  limit: usize,
  set: Mutex<Set>,
}

#[derive(Debug, Default)]
struct Set {
  values: BTreeMap<String, Bytes>,
  /// The bytes of all values.
  used: usize,
  /// The bytes of all names, and [`ENTRY`] for each.
  names_used: usize,
}

/// Why a variable was not set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VarsError {
  /// The limit is 0.
  #[error("vars are disabled by this host")]
  Disabled,
  /// There is no room for its value. The message is the one that programs know from Extism's SDKs.
  #[error("var memory limit exceeded: {requested} bytes requested, {allowed} allowed")]
  Full {
    /// What all values would have together.
    requested: usize,
    /// What they may have.
    allowed: usize,
  },
  /// There is no room for its name.
  #[error(
    "the names of vars would take {requested} bytes, {ENTRY} for each included; {allowed} are allowed"
  )]
  TooManyNames {
    /// What all names would take together.
    requested: usize,
    /// What they may take.
    allowed: usize,
  },
}

impl Vars {
  /// `limit` is how many bytes all values may have together. Names, and what the host needs for each
  /// variable, may take as much again and at least 64 KiB: a guest that sets many variables without
  /// values must not fill the host's memory. With 0, setting is refused.
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
      None => key.len().saturating_add(ENTRY),
    };
    let names_used = set.names_used.saturating_add(name);
    let names_allowed = self.limit.max(LEAST_NAMES_LIMIT);
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

  /// Removes a variable; one that is not there is no error.
  pub fn remove(&self, key: &str) -> Result<(), VarsError> {
    if self.limit == 0 {
      return Err(VarsError::Disabled);
    }
    let mut set = self.lock();
    if let Some(old) = set.values.remove(key) {
      set.used -= old.len();
      set.names_used -= key.len() + ENTRY;
    }
    Ok(())
  }

  /// Removes all variables.
  pub fn clear(&self) {
    *self.lock() = Set::default();
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
  fn counts_values_only_and_each_once_when_it_is_overwritten() {
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
  fn names_have_a_limit_of_their_own() {
    let vars = Vars::new(10);
    let names = (0..).map(|number: u64| format!("{number:016}"));
    // 64 bytes each: the name, and what an entry takes.
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
    // As much as the values may have, where that is more.
    let name = "k".repeat((1 << 20) - ENTRY);
    assert_eq!(Vars::new(1 << 20).set(&name, &[]), Ok(()));
    assert!(Vars::new((1 << 20) - 1).set(&name, &[]).is_err());
  }

  #[test]
  fn nothing_is_left_of_what_was_cleared() {
    let vars = Vars::new(10);
    vars.set("key", &[1; 10]).unwrap();
    vars.clear();
    assert_eq!(vars.get("key"), None);
    vars.set("other", &[2; 10]).unwrap();
    vars.remove("other").unwrap();
    assert_eq!(vars.lock().names_used, 0);
  }

  #[test]
  fn refuses_when_disabled() {
    let vars = Vars::new(0);
    assert_eq!(vars.set("k", &[]), Err(VarsError::Disabled));
    assert_eq!(vars.get("k"), None);
  }
}
