//! Results of store operations, and their conversion to JavaScript.

use napi::Env;
use napi::bindgen_prelude::{Array, BigInt, BufferSlice, Either, Null};

use super::completion_queue::JobResult;
use crate::store::{Bytes, Change, KeyPage};

/// The result of a store operation.
pub enum StoreReply {
  /// Done, without a value.
  Done,
  /// A boolean.
  Flag(bool),
  /// A number; a bigint if a JavaScript number would be inexact.
  Number(i64),
  /// A value, or `null`.
  Value(Option<Bytes>),
  /// An array of values, or `null` for missing keys.
  Values(Vec<Option<Bytes>>),
  /// An array: the cursor or `null`, then the keys.
  Page(KeyPage),
  /// An array with an array for each change: its kind, its key or `null`, and its value or `null`.
  Changes(Vec<Change>),
}

impl From<StoreReply> for JobResult {
  fn from(reply: StoreReply) -> Self {
    Self::Value(Box::new(|env, values| reply.append_to(env, values)))
  }
}

impl StoreReply {
  /// The only place that copies a value's bytes.
  fn append_to(self, env: &Env, values: &mut Array<'_>) -> napi::Result<()> {
    match self {
      Self::Done => values.insert(()),
      Self::Flag(flag) => values.insert(flag),
      Self::Number(number) => values.insert(number_or_bigint(number)),
      Self::Value(value) => values.insert(buffer(env, value.as_ref())?),
      Self::Values(found) => {
        let mut array = env.create_array(0)?;
        for value in &found {
          array.insert(buffer(env, value.as_ref())?)?;
        }
        values.insert(array)
      }
      Self::Page(page) => {
        let mut array = env.create_array(0)?;
        array.insert(or_null(page.cursor))?;
        for key in page.keys {
          array.insert(key)?;
        }
        values.insert(array)
      }
      Self::Changes(changes) => values.insert(changes_to_array(env, changes)?),
    }
  }
}

fn number_or_bigint(number: i64) -> Either<f64, BigInt> {
  const MAX_SAFE: u64 = (1 << 53) - 1;
  match number.unsigned_abs() <= MAX_SAFE {
    true => Either::A(number as f64),
    false => Either::B(BigInt::from(number)),
  }
}

fn or_null<T>(value: Option<T>) -> Either<T, Null> {
  value.map_or(Either::B(Null), Either::A)
}

fn buffer<'env>(env: &Env, value: Option<&Bytes>) -> napi::Result<Either<BufferSlice<'env>, Null>> {
  let copy = value.map(|bytes| BufferSlice::copy_from(env, &**bytes));
  Ok(or_null(copy.transpose()?))
}

fn changes_to_array<'env>(env: &'env Env, changes: Vec<Change>) -> napi::Result<Array<'env>> {
  let mut array = env.create_array(0)?;
  for change in changes {
    let (kind, key, value) = match change {
      Change::Set { key, value } => ("set", Some(key), value),
      Change::Deleted { key } => ("delete", Some(key), None),
      Change::Lost => ("lost", None, None),
    };
    let mut parts = env.create_array(0)?;
    parts.insert(kind)?;
    parts.insert(or_null(key))?;
    parts.insert(buffer(env, value.as_ref())?)?;
    array.insert(parts)?;
  }
  Ok(array)
}
