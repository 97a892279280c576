//! The `Store` class: any store, with its operations on the threads of [`pool`].

use std::sync::Arc;
use std::time::Duration;

use napi::Env;
use napi::bindgen_prelude::{
  BigInt, BufferSlice, Either, Either3, Null, Uint8ArraySlice, Undefined,
};
use napi_derive::napi;

use super::boundary::Boundary;
use super::completion_queue::{CompletionQueue, JobResult};
use super::memory_store::MemoryStore;
use super::pool;
use super::store_reply::StoreReply;
use super::store_watch::StoreWatch;
use crate::Result;
use crate::store::{self, Handle, OpenOptions};

/// The options of a store.
#[napi(object)]
pub struct StoreOptions {
  /// The size limit of a store in memory in bytes.
  pub max_bytes: Option<f64>,
  /// The time limit of a Redis server for connecting and for each answer, in milliseconds.
  pub timeout_ms: Option<f64>,
  /// The size of the cache of a store in a file or on Redis in bytes.
  pub cache_bytes: Option<f64>,
  /// The certificate authorities to trust for a Redis server's certificate, as PEM.
  pub ca: Option<String>,
  /// Whether opening fails if a Redis server cannot be reached.
  pub required: Option<bool>,
}

/// Opens the store that `url` names; it arrives as the result of job `call`.
#[napi(catch_unwind)]
pub fn open_store(call: u32, url: String, options: StoreOptions, boundary: &Boundary) {
  let queue = boundary.queue();
  pool::run(call, &boundary.queue(), move || {
    let options = OpenOptions {
      max_bytes: options.max_bytes.map(|bytes| bytes as usize),
      timeout: lifetime(options.timeout_ms),
      cache_bytes: options.cache_bytes.map(|bytes| bytes as usize),
      ca: options.ca.map(String::into_bytes),
      is_required: options.required,
    };
    let store = store::open(&url, &options)?;
    Ok(JobResult::value(Store::new(store, queue)))
  });
}

/// A store. The result of an operation arrives for job `call`. Lifetimes are in milliseconds.
#[napi]
pub struct Store {
  store: Arc<dyn store::Store>,
  queue: Arc<CompletionQueue>,
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
  /// Wraps a store whose results go to `queue`.
  pub fn new(store: Arc<dyn store::Store>, queue: Arc<CompletionQueue>) -> Self {
    Self { store, queue }
  }

  /// The underlying store, to share with plugins.
  pub fn shared(&self) -> Arc<dyn store::Store> {
    Arc::clone(&self.store)
  }

  fn run(
    &self,
    call: u32,
    operation: impl FnOnce(&Arc<dyn store::Store>) -> Result<StoreReply> + Send + 'static,
  ) {
    let store = Arc::clone(&self.store);
    pool::run(call, &self.queue, move || {
      operation(&store).map(JobResult::from)
    });
  }
}

#[napi]
impl Store {
  /// A `Store` over a `MemoryStore`. Closing it leaves the `MemoryStore` open.
  #[napi(factory, catch_unwind)]
  pub fn of_memory(store: &MemoryStore, boundary: &Boundary) -> Self {
    let handle = Handle::shared(store.shared());
    Self::new(Arc::new(handle), boundary.queue())
  }

  /// The value of a key if it is available without blocking: a copy, or `null` if the key is missing.
  /// Otherwise `undefined`; then use [`get`](Self::get).
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

  /// The value of a key: a copy, or `null` if the key is missing.
  #[napi(catch_unwind)]
  pub fn get(&self, call: u32, key: String) {
    self.run(call, move |store| Ok(StoreReply::Value(store.get(&key)?)));
  }

  /// Sets a key.
  #[napi(catch_unwind)]
  pub fn set(&self, call: u32, key: String, value: Input<'_>, ttl_ms: Option<f64>) {
    let value = owned(value);
    self.run(call, move |store| {
      store.set(&key, &value, lifetime(ttl_ms))?;
      Ok(StoreReply::Done)
    });
  }

  /// Removes a key; returns whether it existed.
  #[napi(catch_unwind)]
  pub fn delete(&self, call: u32, key: String) {
    self.run(call, move |store| Ok(StoreReply::Flag(store.delete(&key)?)));
  }

  /// Whether a key exists.
  #[napi(catch_unwind)]
  pub fn has(&self, call: u32, key: String) {
    self.run(call, move |store| Ok(StoreReply::Flag(store.exists(&key)?)));
  }

  /// A page of keys, as an array: the next page's cursor or `null`, then the keys.
  #[napi(catch_unwind)]
  pub fn list(&self, call: u32, prefix: String, cursor: Option<String>, limit: u32) {
    self.run(call, move |store| {
      let page = store.list(&prefix, cursor.as_deref(), limit as usize)?;
      Ok(StoreReply::Page(page))
    });
  }

  /// Adds to a 64-bit integer; returns the sum.
  #[napi(catch_unwind)]
  pub fn increment(&self, call: u32, key: String, delta: BigInt) {
    let (delta, _) = delta.get_i64();
    self.run(call, move |store| {
      Ok(StoreReply::Number(store.increment(&key, delta)?))
    });
  }

  /// Sets or removes a key if it has the expected value; returns whether it did.
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
      Ok(StoreReply::Flag(was))
    });
  }

  /// The values of keys: copies, or `null` for missing keys.
  #[napi(catch_unwind)]
  pub fn get_many(&self, call: u32, keys: Vec<String>) {
    self.run(call, move |store| {
      Ok(StoreReply::Values(store.get_many(&borrowed(&keys))?))
    });
  }

  /// Sets keys; the value of a key has the key's index.
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
      Ok(StoreReply::Done)
    });
  }

  /// Removes keys; returns how many existed.
  #[napi(catch_unwind)]
  pub fn delete_many(&self, call: u32, keys: Vec<String>) {
    self.run(call, move |store| {
      let deleted = store.delete_many(&borrowed(&keys))?;
      // No array has that many keys.
      Ok(StoreReply::Number(deleted as i64))
    });
  }

  /// Watches the keys that begin with `prefix`.
  #[napi(catch_unwind)]
  pub fn watch(&self, call: u32, prefix: String) {
    let (store, queue) = (Arc::clone(&self.store), Arc::clone(&self.queue));
    pool::run(call, &self.queue, move || {
      StoreWatch::start(&*store, &prefix, queue).map(JobResult::value)
    });
  }

  /// Closes the store.
  #[napi(catch_unwind)]
  pub fn close(&self, call: u32) {
    self.run(call, |store| {
      store.close()?;
      Ok(StoreReply::Done)
    });
  }
}
