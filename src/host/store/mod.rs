//! Host functions for the plugin's store, besides [`hostMemoryGet`](super::host_memory_get).
//!
//! The functions take and return offsets, like all of Extism's. A negative result is a status for the guest
//! to handle: a missing key or an error. Only errors that no guest can handle end the call.

mod access;
mod list;

use std::sync::Arc;
use std::time::Duration;

use super::{Answer, HostFunction, HostFunctionError, Invocation};
use crate::abi::USER;
use crate::abi::ValueType::{self, I64};
use crate::{Code, Error, Result};

pub use access::{DEFAULT_MAX_VALUE, Permissions, StoreAccess, StoreCounters, StoreStats};

/// The status for a missing key.
const MISSING: i64 = -1;

/// The argument that means "no value" as an expected or new value.
const NONE: i64 = -1;

/// The status of each error code that guests can handle.
const STATUS: [(Code, i64); 6] = [
  (Code::AccessDenied, -2),
  (Code::StoreUnavailable, -3),
  (Code::ValueTooLarge, -4),
  (Code::StoreFull, -5),
  (Code::InvalidArgument, -6),
  (Code::Closed, -7),
];

/// The largest number of keys that one call can pass or return.
const MAX_KEYS: usize = 1_000;

/// The host functions, all in `extism:host/user`, with i64 parameters and an i64 result.
pub fn functions(access: &Arc<StoreAccess>) -> Vec<HostFunction> {
  type Body = fn(&StoreAccess, &mut Invocation<'_>) -> Result<Answer>;
  let functions: [(&'static str, usize, Body); 8] = [
    ("hostStoreGet", 1, get),
    ("hostStoreSet", 3, set),
    ("hostStoreDelete", 1, delete),
    ("hostStoreExists", 1, exists),
    ("hostStoreKeys", 3, keys),
    ("hostStoreIncrement", 2, increment),
    ("hostStoreCompareAndSwap", 4, compare_and_swap),
    ("hostStoreGetMany", 1, get_many),
  ];
  let function = |(name, params, body): (_, _, Body)| {
    let access = Arc::clone(access);
    let params: Vec<ValueType> = vec![I64; params];
    HostFunction::new(USER, name, params, Some(I64), move |call| {
      access.traced(name, || body(&access, call)).or_else(status)
    })
  };
  functions.into_iter().map(function).collect()
}

/// Converts an error to a status, or fails the call.
fn status(error: Error) -> std::result::Result<Answer, HostFunctionError> {
  match STATUS.iter().find(|(code, _)| *code == error.code) {
    Some((_, status)) => Ok(Answer::I64(*status)),
    None => Err(error.into()),
  }
}

/// `hostStoreGet(key) -> value`
fn get(access: &StoreAccess, call: &mut Invocation<'_>) -> Result<Answer> {
  let value = access.get(text(call, 0)?)?;
  Ok(value.map_or(Answer::I64(MISSING), Answer::Bytes))
}

/// `hostStoreSet(key, value, ttl) -> 0`
fn set(access: &StoreAccess, call: &mut Invocation<'_>) -> Result<Answer> {
  let (key, lifetime) = (text(call, 0)?.to_owned(), lifetime(call, 2)?);
  let interruption = call.interruption();
  access.set(&key, bytes(call, 1)?, lifetime, &interruption)?;
  Ok(Answer::I64(0))
}

/// `hostStoreDelete(key) -> 1 | 0`
fn delete(access: &StoreAccess, call: &mut Invocation<'_>) -> Result<Answer> {
  Ok(flag(access.delete(text(call, 0)?)?))
}

/// `hostStoreExists(key) -> 1 | 0`
fn exists(access: &StoreAccess, call: &mut Invocation<'_>) -> Result<Answer> {
  Ok(flag(access.exists(text(call, 0)?)?))
}

/// `hostStoreKeys(prefix, cursor, limit) -> list`: the next cursor, which is empty on the last page, then the
/// keys.
fn keys(access: &StoreAccess, call: &mut Invocation<'_>) -> Result<Answer> {
  let prefix = text(call, 0)?.to_owned();
  let limit = match number(call, 2) {
    0 => MAX_KEYS,
    limit => usize::try_from(limit)
      .map_err(|_| invalid("limit is negative"))?
      .min(MAX_KEYS),
  };
  let cursor = Some(text(call, 1)?).filter(|cursor| !cursor.is_empty());
  let page = access.list(&prefix, cursor, limit)?;
  let cursor = page.cursor.as_deref().unwrap_or_default();
  let items = [cursor]
    .into_iter()
    .chain(page.keys.iter().map(String::as_str));
  let list = list::encode(items.map(|item| Some(item.as_bytes())));
  Ok(Answer::Bytes(list.into()))
}

/// `hostStoreIncrement(key, delta) -> sum`, as decimal digits.
fn increment(access: &StoreAccess, call: &mut Invocation<'_>) -> Result<Answer> {
  let (delta, interruption) = (number(call, 1), call.interruption());
  let sum = access.increment(text(call, 0)?, delta, &interruption)?;
  Ok(Answer::Bytes(sum.to_string().into_bytes().into()))
}

/// `hostStoreCompareAndSwap(key, expected, value, ttl) -> 1 | 0`
fn compare_and_swap(access: &StoreAccess, call: &mut Invocation<'_>) -> Result<Answer> {
  let (key, lifetime) = (text(call, 0)?.to_owned(), lifetime(call, 3)?);
  let interruption = call.interruption();
  let expected = optional_bytes(call, 1)?.map(<[u8]>::to_vec);
  let value = optional_bytes(call, 2)?;
  let swapped =
    access.compare_and_swap(&key, expected.as_deref(), value, lifetime, &interruption)?;
  Ok(flag(swapped))
}

/// `hostStoreGetMany(keys) -> values`, both as lists.
fn get_many(access: &StoreAccess, call: &mut Invocation<'_>) -> Result<Answer> {
  let keys = list::decode(bytes(call, 0)?, MAX_KEYS).ok_or_else(|| {
    invalid(&format!(
      "the keys are not a list of up to {MAX_KEYS} strings"
    ))
  })?;
  let values = access.get_many(&keys)?;
  let list = list::encode(values.iter().map(Option::as_deref));
  Ok(Answer::Bytes(list.into()))
}

fn flag(flag: bool) -> Answer {
  Answer::I64(i64::from(flag))
}

fn invalid(message: &str) -> Error {
  Error::new(Code::InvalidArgument, message)
}

fn bytes<'a>(call: &'a mut Invocation<'_>, argument: usize) -> Result<&'a [u8]> {
  call
    .bytes(argument)
    .ok_or_else(|| invalid("an argument is not the offset of a block"))
}

/// The bytes of a block, or `None` for [`NONE`].
fn optional_bytes<'a>(call: &'a mut Invocation<'_>, argument: usize) -> Result<Option<&'a [u8]>> {
  match number(call, argument) {
    NONE => Ok(None),
    _ => bytes(call, argument).map(Some),
  }
}

fn text<'a>(call: &'a mut Invocation<'_>, argument: usize) -> Result<&'a str> {
  std::str::from_utf8(bytes(call, argument)?).map_err(|_| invalid("a key is not UTF-8"))
}

fn number(call: &Invocation<'_>, argument: usize) -> i64 {
  // All parameters of these functions are i64.
  call
    .value(argument)
    .and_then(|value| value.i64())
    .unwrap_or(0)
}

/// A lifetime in milliseconds; 0 means forever.
fn lifetime(call: &Invocation<'_>, argument: usize) -> Result<Option<Duration>> {
  match u64::try_from(number(call, argument)) {
    Ok(0) => Ok(None),
    Ok(milliseconds) => Ok(Some(Duration::from_millis(milliseconds))),
    Err(_) => Err(invalid("the lifetime is negative")),
  }
}
