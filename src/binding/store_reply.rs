//! What operations of stores come to, and how JavaScript gets it.

use napi::Env;
use napi::bindgen_prelude::{Array, BigInt, BufferSlice, Either, Null};

use super::completion_queue::JobResult;
use crate::store::{Bytes, Change, KeyPage};

/// What comes of an operation of a store.
pub enum StoreReply {
  /// It has been done.
  Done,
  /// Yes or no.
  Flag(bool),
  /// A number; a bigint where a JavaScript number is not exact.
  Number(i64),
  /// A value, or `null`.
  Value(Option<Bytes>),
  /// Values, or `null`s.
  Values(Vec<Option<Bytes>>),
  /// An array of the cursor, or `null`, and the keys.
  Page(KeyPage),
  /// An array of arrays: of each change what kind it is, its key and its value, or `null`.
  Changes(Vec<Change>),
}

impl From<StoreReply> for JobResult {
  fn from(reply: StoreReply) -> Self {
    Self::Value(Box::new(|env, values| reply.append_to(env, values)))
  }
}

impl StoreReply {
  /// A value's bytes are copied here, and nowhere else.
  fn append_to(self, env: &Env, values: &mut Array<'_>) -> napi::Result<()> {
    match self {
      Self::Done => values.insert(()),
      Self::Flag(flag) => values.insert(flag),
      Self::Number(number) => values.insert(number_of(number)),
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
      Self::Changes(changes) => values.insert(changes_of(env, changes)?),
    }
  }
}

fn number_of(number: i64) -> Either<f64, BigInt> {
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

fn changes_of<'env>(env: &'env Env, changes: Vec<Change>) -> napi::Result<Array<'env>> {
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
