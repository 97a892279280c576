//! `Store` for JavaScript: any store, its operations on threads of [`pool`].

use std::sync::Arc;
use std::time::Duration;

use napi::Env;
use napi::bindgen_prelude::{
  Array, BigInt, BufferSlice, Either, Either3, Null, ToNapiValue, Uint8ArraySlice, Undefined,
};
use napi_derive::napi;

use super::boundary::{Boundary, Finished, Outcome};
use super::memory_store::MemoryStore;
use super::pool;
use super::store_watch::StoreWatch;
use crate::Result;
use crate::store::{self, Bytes, Change, Handle, OpenOptions, Page};

/// What comes of an operation of a store.
pub enum Reply {
  /// It has been opened.
  Opened(Arc<dyn store::Store>),
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
  Page(Page),
  /// It is watched.
  Watching(StoreWatch),
  /// An array: of each change what kind it is, its key and its value, or `null`.
  Changes(Vec<Change>),
}

impl Reply {
  /// As JavaScript gets it: passed to `take`, in one of several types. A value's bytes are copied here,
  /// and nowhere else.
  pub fn place<T>(
    self,
    env: &Env,
    finished: &Arc<Finished>,
    place: impl Place<T>,
  ) -> napi::Result<T> {
    match self {
      Self::Opened(store) => place.value(Store::new(store, Arc::clone(finished))),
      Self::Done => place.value(()),
      Self::Flag(flag) => place.value(flag),
      Self::Number(number) => place.value(number_of(number)),
      Self::Value(value) => place.value(buffer(env, value.as_ref())?),
      Self::Values(values) => {
        let mut array = env.create_array(0)?;
        for value in &values {
          array.insert(buffer(env, value.as_ref())?)?;
        }
        place.value(array)
      }
      Self::Page(page) => {
        let mut array = env.create_array(0)?;
        array.insert(or_null(page.cursor))?;
        for key in page.keys {
          array.insert(key)?;
        }
        place.value(array)
      }
      Self::Watching(watch) => place.value(watch),
      Self::Changes(changes) => place.value(changes_of(env, changes)?),
    }
  }
}

/// Where a value is put that JavaScript gets.
pub trait Place<T> {
  /// Puts it there.
  fn value(self, value: impl ToNapiValue) -> napi::Result<T>;
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
    array.insert(kind)?;
    array.insert(or_null(key))?;
    array.insert(buffer(env, value.as_ref())?)?;
  }
  Ok(array)
}

/// What goes with a URL.
#[napi(object)]
pub struct StoreOptions {
  /// How many bytes a store in memory may take.
  pub max_bytes: Option<f64>,
  /// How many milliseconds a Redis server may take to let in and to answer.
  pub timeout_ms: Option<f64>,
  /// How many bytes the cache of a Redis store may take.
  pub cache_bytes: Option<f64>,
  /// The authorities that may have issued a Redis server's certificate, as PEM.
  pub ca: Option<String>,
}

/// Opens the store of a URL, which arrives under the number `call`.
#[napi(catch_unwind)]
pub fn open_store(call: u32, url: String, options: StoreOptions, boundary: &Boundary) {
  let finished = &boundary.near().finished;
  pool::run(call, finished, move || {
    let options = OpenOptions {
      max_bytes: options.max_bytes.map(|bytes| bytes as usize),
      timeout: lifetime(options.timeout_ms),
      cache_bytes: options.cache_bytes.map(|bytes| bytes as usize),
      ca: options.ca.map(String::into_bytes),
    };
    let store = store::open(&url, &options)?;
    Ok(Outcome::Store(Reply::Opened(store)))
  });
}

/// A store. What its operations come to arrives under the number `call`. Lifetimes are milliseconds.
#[napi]
pub struct Store {
  store: Arc<dyn store::Store>,
  finished: Arc<Finished>,
}

type Input<'a> = Either<String, Uint8ArraySlice<'a>>;

fn owned(input: Input<'_>) -> Vec<u8> {
  match input {
    Either::A(text) => text.into_bytes(),
    Either::B(bytes) => bytes.to_vec(),
  }
}

fn lifetime(milliseconds: Option<f64>) -> Option<Duration> {
  milliseconds.map(|milliseconds| Duration::from_millis(milliseconds as u64))
}

fn borrowed(keys: &[String]) -> Vec<&str> {
  keys.iter().map(String::as_str).collect()
}

impl Store {
  /// `finished` is where results go.
  pub fn new(store: Arc<dyn store::Store>, finished: Arc<Finished>) -> Self {
    Self { store, finished }
  }

  /// The store itself, to be shared with plugins.
  pub fn shared(&self) -> Arc<dyn store::Store> {
    Arc::clone(&self.store)
  }

  fn run(
    &self,
    call: u32,
    operation: impl FnOnce(&Arc<dyn store::Store>) -> Result<Reply> + Send + 'static,
  ) {
    let store = Arc::clone(&self.store);
    pool::run(call, &self.finished, move || {
      operation(&store).map(Outcome::Store)
    });
  }
}

#[napi]
impl Store {
  /// The same face for a MemoryStore, which others go on with when this one is closed.
  #[napi(factory, catch_unwind)]
  pub fn of_memory(store: &MemoryStore, boundary: &Boundary) -> Self {
    let handle = Handle::shared(store.shared());
    Self::new(Arc::new(handle), Arc::clone(&boundary.near().finished))
  }

  /// The value of a key where that is known at once: a copy, or `null` for no such key; `undefined` where
  /// [`get`](Self::get) has to be asked.
  #[napi(catch_unwind, ts_return_type = "Buffer | null | undefined")]
  pub fn get_now<'env>(
    &self,
    env: &'env Env,
    key: String,
  ) -> napi::Result<Either3<BufferSlice<'env>, Null, Undefined>> {
    Ok(match self.store.get_now(&key) {
      None => Either3::C(()),
      Some(None) => Either3::B(Null),
      Some(Some(value)) => Either3::A(BufferSlice::copy_from(env, &*value)?),
    })
  }

  /// The value of a key: a copy, or `null`.
  #[napi(catch_unwind)]
  pub fn get(&self, call: u32, key: String) {
    self.run(call, move |store| Ok(Reply::Value(store.get(&key)?)));
  }

  /// Sets a key.
  #[napi(catch_unwind)]
  pub fn set(&self, call: u32, key: String, value: Input<'_>, ttl_ms: Option<f64>) {
    let value = owned(value);
    self.run(call, move |store| {
      store.set(&key, &value, lifetime(ttl_ms))?;
      Ok(Reply::Done)
    });
  }

  /// Removes a key; whether it was there.
  #[napi(catch_unwind)]
  pub fn delete(&self, call: u32, key: String) {
    self.run(call, move |store| Ok(Reply::Flag(store.delete(&key)?)));
  }

  /// Whether a key is there.
  #[napi(catch_unwind)]
  pub fn has(&self, call: u32, key: String) {
    self.run(call, move |store| Ok(Reply::Flag(store.exists(&key)?)));
  }

  /// Some keys, as an array of the next page's cursor, or `null`, and the keys.
  #[napi(catch_unwind)]
  pub fn list(&self, call: u32, prefix: String, cursor: Option<String>, limit: u32) {
    self.run(call, move |store| {
      let page = store.list(&prefix, cursor.as_deref(), limit as usize)?;
      Ok(Reply::Page(page))
    });
  }

  /// Adds to a number, which must have 64 bits.
  #[napi(catch_unwind)]
  pub fn increment(&self, call: u32, key: String, delta: BigInt) {
    let (delta, _) = delta.get_i64();
    self.run(call, move |store| {
      Ok(Reply::Number(store.increment(&key, delta)?))
    });
  }

  /// Sets or removes a key if it has the expected value; whether it had.
  #[napi(catch_unwind)]
  pub fn compare_and_swap(
    &self,
    call: u32,
    key: String,
    expected: Option<Input<'_>>,
    value: Option<Input<'_>>,
    ttl_ms: Option<f64>,
  ) {
    let (expected, value) = (expected.map(owned), value.map(owned));
    self.run(call, move |store| {
      let (expected, value) = (expected.as_deref(), value.as_deref());
      let was = store.compare_and_swap(&key, expected, value, lifetime(ttl_ms))?;
      Ok(Reply::Flag(was))
    });
  }

  /// The values of keys: copies, or `null`s.
  #[napi(catch_unwind)]
  pub fn get_many(&self, call: u32, keys: Vec<String>) {
    self.run(call, move |store| {
      Ok(Reply::Values(store.get_many(&borrowed(&keys))?))
    });
  }

  /// Sets keys; each has the value of its place.
  #[napi(catch_unwind)]
  pub fn set_many(
    &self,
    call: u32,
    keys: Vec<String>,
    values: Vec<Input<'_>>,
    ttl_ms: Option<f64>,
  ) {
    let values: Vec<_> = values.into_iter().map(owned).collect();
    self.run(call, move |store| {
      let values = values.iter().map(Vec::as_slice);
      let entries: Vec<_> = borrowed(&keys).into_iter().zip(values).collect();
      store.set_many(&entries, lifetime(ttl_ms))?;
      Ok(Reply::Done)
    });
  }

  /// Removes keys; how many were there.
  #[napi(catch_unwind)]
  pub fn delete_many(&self, call: u32, keys: Vec<String>) {
    self.run(call, move |store| {
      let deleted = store.delete_many(&borrowed(&keys))?;
      // More keys than that are in no array.
      Ok(Reply::Number(deleted as i64))
    });
  }

  /// Watches the keys that begin with `prefix`.
  #[napi(catch_unwind)]
  pub fn watch(&self, call: u32, prefix: String) {
    let finished = Arc::clone(&self.finished);
    self.run(call, move |store| {
      let watch = StoreWatch::start(&**store, &prefix, finished)?;
      Ok(Reply::Watching(watch))
    });
  }

  /// Closes the store.
  #[napi(catch_unwind)]
  pub fn close(&self, call: u32) {
    self.run(call, |store| {
      store.close()?;
      Ok(Reply::Done)
    });
  }
}
