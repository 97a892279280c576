//! The `MemoryStore` class.

use std::sync::Arc;
use std::time::Duration;

use napi::Env;
use napi::bindgen_prelude::{BufferSlice, Either, Uint8ArraySlice};
use napi_derive::napi;

use crate::store::{self, Value};

/// A store in memory.
#[napi]
pub struct MemoryStore {
  store: Arc<store::MemoryStore>,
}

/// Why an operation was refused.
#[napi(object, object_from_js = false)]
pub struct Refusal {
  /// The error's code.
  pub code: &'static str,
  /// Its message.
  pub message: String,
}

impl MemoryStore {
  /// The underlying store, to share with plugins.
  pub fn shared(&self) -> Arc<store::MemoryStore> {
    Arc::clone(&self.store)
  }
}

#[napi]
impl MemoryStore {
  /// An empty store with an optional size limit in bytes.
  #[napi(constructor, catch_unwind)]
  pub fn new(max_bytes: Option<f64>) -> Self {
    let store = match max_bytes {
      None => store::MemoryStore::new(),
      Some(max_bytes) => store::MemoryStore::bounded(max_bytes as usize),
    };
    Self {
      store: Arc::new(store),
    }
  }

  /// The store named `name`, which all threads of the process share.
  #[napi(factory, catch_unwind)]
  pub fn named(name: String) -> Self {
    Self {
      store: store::MemoryStore::named(&name),
    }
  }

  /// Sets a key to a string or to a copy of bytes, with an optional lifetime in milliseconds; returns the
  /// reason if it is refused.
  #[napi(catch_unwind)]
  pub fn set(
    &self,
    key: String,
    value: Either<String, Uint8ArraySlice<'_>>,
    ttl_ms: Option<f64>,
  ) -> Option<Refusal> {
    let value = match &value {
      Either::A(text) => Value::text(text),
      Either::B(bytes) => Value::bytes(bytes),
    };
    let lifetime = ttl_ms.map(|milliseconds| Duration::from_millis(milliseconds as u64));
    let refused = self.store.set_value(&key, value, lifetime).err()?;
    Some(Refusal {
      code: refused.code.as_str(),
      message: refused.message,
    })
  }

  /// The value of a key: a string, or a copy of bytes.
  #[napi(catch_unwind)]
  pub fn get<'env>(
    &self,
    env: &'env Env,
    key: String,
  ) -> napi::Result<Option<Either<String, BufferSlice<'env>>>> {
    let Some(value) = self.store.value(&key) else {
      return Ok(None);
    };
    Ok(Some(match value.is_text {
      true => Either::A(String::from_utf8_lossy(&value.bytes).into_owned()),
      false => Either::B(BufferSlice::copy_from(env, &*value.bytes)?),
    }))
  }

  /// Whether a key exists.
  #[napi(catch_unwind)]
  pub fn has(&self, key: String) -> bool {
    self.store.has(&key)
  }

  /// Removes a key; returns whether it existed.
  #[napi(catch_unwind)]
  pub fn delete(&self, key: String) -> bool {
    self.store.remove(&key)
  }

  /// Removes all keys.
  #[napi(catch_unwind)]
  pub fn clear(&self) {
    self.store.clear();
  }

  /// The number of keys.
  #[napi(getter, catch_unwind)]
  pub fn size(&self) -> u32 {
    u32::try_from(self.store.len()).unwrap_or(u32::MAX)
  }

  /// A snapshot of all keys, in insertion order.
  #[napi(catch_unwind)]
  pub fn keys(&self) -> Vec<String> {
    let keys = self.store.keys();
    keys.iter().map(|key| String::from(&**key)).collect()
  }
}
