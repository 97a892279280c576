//! Which store a URL means.

use std::sync::Arc;
use std::time::Duration;

use super::redis::RedisStore;
use super::{Handle, MemoryStore, Store};
use crate::{Code, Error, Result};

/// What goes with a URL. A store refuses what it has no use for.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
  /// How many bytes a new store in memory may take.
  pub max_bytes: Option<usize>,
  /// How long a Redis server may take to let in and to answer.
  pub timeout: Option<Duration>,
  /// How many bytes the cache of a Redis store may take; with 0 there is none.
  pub cache_bytes: Option<usize>,
  /// The authorities that may have issued a Redis server's certificate, as PEM.
  pub ca: Option<Vec<u8>>,
}

impl OpenOptions {
  fn are_for_redis(&self) -> bool {
    self.timeout.is_some() || self.cache_bytes.is_some() || self.ca.is_some()
  }
}

/// The schemes that there are, each with what follows it, for messages.
const SCHEMES: &str = "memory: (a new one), memory:name (shared by the process), redis://host:port, \
   rediss://host:port (with TLS), redis+cluster://host:port,host:port and rediss+cluster://";

/// Opens the store that `url` names, which may take as long as the store is far away.
///
/// [`Code::NoSuchStore`] where no store has the scheme; [`Code::InvalidArgument`] for options that
/// the store does not take; and what the store fails with.
pub fn open(url: &str, options: &OpenOptions) -> Result<Arc<dyn Store>> {
  match url.split_once(':') {
    Some(("memory", _)) if options.are_for_redis() => Err(Error::new(
      Code::InvalidArgument,
      "timeoutMs, cacheBytes and ca are for stores on Redis",
    )),
    Some(("memory", name)) => memory(name, options),
    Some((scheme @ ("redis" | "rediss" | "redis+cluster" | "rediss+cluster"), rest)) => {
      if options.max_bytes.is_some() {
        return Err(Error::new(
          Code::InvalidArgument,
          "maxBytes is for stores in memory; that of a Redis server is its maxmemory",
        ));
      }
      let store = RedisStore::open(scheme, rest, options)?;
      Ok(Arc::new(Handle::new(Arc::new(store))))
    }
    _ => Err(Error::new(
      Code::NoSuchStore,
      // Without the rest of the URL, which may have a password.
      format!(
        "there is no store for the URL scheme \"{}\"; the known ones are {SCHEMES}",
        url.split_once(':').map_or("", |(scheme, _)| scheme)
      ),
    )),
  }
}

fn memory(name: &str, options: &OpenOptions) -> Result<Arc<dyn Store>> {
  let handle = match (name, options.max_bytes) {
    ("", None) => Handle::new(Arc::new(MemoryStore::new())),
    ("", Some(max_bytes)) => Handle::new(Arc::new(MemoryStore::bounded(max_bytes))),
    (name, None) => Handle::shared(MemoryStore::named(name)),
    (_, Some(_)) => {
      return Err(Error::new(
        Code::InvalidArgument,
        "maxBytes cannot be set for a named store, which others may have already; use memory: or a MemoryStore",
      ));
    }
  };
  Ok(Arc::new(handle))
}

#[cfg(test)]
mod tests {
  use super::*;

  fn try_open(url: &str, max_bytes: Option<usize>) -> Result<Arc<dyn Store>> {
    let options = OpenOptions {
      max_bytes,
      ..OpenOptions::default()
    };
    open(url, &options)
  }

  #[test]
  fn memory_without_a_name_is_a_new_store_and_with_one_the_store_of_that_name() -> Result<()> {
    let (first, second) = (try_open("memory:", None)?, try_open("memory:", Some(4096))?);
    first.set("key", b"first", None)?;
    assert_eq!(second.get("key")?, None);
    let (one, same) = (
      try_open("memory:of open", None)?,
      try_open("memory:of open", None)?,
    );
    one.set("key", b"shared", None)?;
    assert_eq!(same.get("key")?.as_deref(), Some(&b"shared"[..]));
    Ok(())
  }

  #[test]
  fn what_no_store_takes_is_refused_without_quoting_what_may_be_secret() {
    for url in ["", "memory", "unknown://user:password@host"] {
      let error = try_open(url, None).err();
      assert_eq!(
        error.as_ref().map(|error| error.code),
        Some(Code::NoSuchStore)
      );
      let message = error.map(|error| error.message).unwrap_or_default();
      assert!(
        message.contains("memory:") && !message.contains("password"),
        "{message}"
      );
    }
    let error = try_open("memory:named", Some(1)).err();
    assert_eq!(error.map(|error| error.code), Some(Code::InvalidArgument));
  }
}
