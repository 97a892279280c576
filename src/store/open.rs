//! Opens the store that a URL names.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::redis::RedisStore;
use super::{Handle, MemoryStore, RedbStore, Store};
use crate::{Code, Error, Result};

/// Options that accompany a URL. A store refuses options that it does not support.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
  /// The size limit of a new store in memory, in bytes.
  pub max_bytes: Option<usize>,
  /// The cache size, in bytes, of a store in a file or on Redis. With 0 a store on Redis has no cache.
  pub cache_bytes: Option<usize>,
  /// The time limit for connecting to a Redis server, and for each of its answers.
  pub timeout: Option<Duration>,
  /// The certificate authorities to trust for a Redis server's certificate, as PEM.
  pub ca: Option<Vec<u8>>,
  /// Whether opening fails if a Redis server cannot be reached. Otherwise each operation fails until it can
  /// be.
  pub is_required: Option<bool>,
}

impl OpenOptions {
  /// Fails if an option outside `allowed` is set.
  fn check_allowed(&self, allowed: &[&str], store: &str) -> Result<()> {
    let given = [
      ("maxBytes", self.max_bytes.is_some()),
      ("cacheBytes", self.cache_bytes.is_some()),
      ("timeoutMs", self.timeout.is_some()),
      ("ca", self.ca.is_some()),
      ("required", self.is_required.is_some()),
    ];
    let mut refused = given.iter().filter(|(name, _)| !allowed.contains(name));
    match refused.find(|(_, is_given)| *is_given) {
      None => Ok(()),
      Some((name, _)) => Err(Error::new(
        Code::InvalidArgument,
        format!("{store} have no option {name}; leave it out"),
      )),
    }
  }
}

/// The supported schemes, each with its syntax, for messages.
const SCHEMES: &str = "memory: (a new store), memory:name (shared by the process), redb:path (in a file), \
   redis://host:port, rediss://host:port (with TLS), redis+cluster://host:port,host:port and rediss+cluster://";

/// Opens the store that `url` names. May block on the network or on a file.
///
/// [`Code::NoSuchStore`] if no store supports the scheme; [`Code::InvalidArgument`] for options that the
/// store does not support; otherwise the store's own errors.
pub fn open(url: &str, options: &OpenOptions) -> Result<Arc<dyn Store>> {
  match url.split_once(':') {
    Some(("memory", name)) => memory(name, options),
    Some(("redb", path)) => redb(path, options),
    Some((scheme @ ("redis" | "rediss" | "redis+cluster" | "rediss+cluster"), rest)) => {
      redis(scheme, rest, options)
    }
    _ => Err(Error::new(
      Code::NoSuchStore,
      // Never quote the rest of the URL: it may contain a password.
      format!(
        "no store supports the URL scheme \"{}\"; use one of {SCHEMES}",
        url.split_once(':').map_or("", |(scheme, _)| scheme)
      ),
    )),
  }
}

fn memory(name: &str, options: &OpenOptions) -> Result<Arc<dyn Store>> {
  options.check_allowed(&["maxBytes"], "stores in memory")?;
  let handle = match (name, options.max_bytes) {
    ("", None) => Handle::new(Arc::new(MemoryStore::new())),
    ("", Some(max_bytes)) => Handle::new(Arc::new(MemoryStore::bounded(max_bytes))),
    (name, None) => Handle::shared(MemoryStore::named(name)),
    (_, Some(_)) => {
      return Err(Error::new(
        Code::InvalidArgument,
        "maxBytes cannot be set for a named store, which may be open already; use memory: or a MemoryStore",
      ));
    }
  };
  Ok(Arc::new(handle))
}

fn redb(path: &str, options: &OpenOptions) -> Result<Arc<dyn Store>> {
  options.check_allowed(&["cacheBytes"], "stores in files")?;
  if options.cache_bytes == Some(0) {
    return Err(Error::new(
      Code::InvalidArgument,
      "cacheBytes is 0; it must be at least 1 for a store in a file",
    ));
  }
  let store = RedbStore::open(&file_path(path)?, options.cache_bytes)?;
  Ok(Arc::new(Handle::new(Arc::new(store))))
}

fn redis(scheme: &str, rest: &str, options: &OpenOptions) -> Result<Arc<dyn Store>> {
  options.check_allowed(
    &["cacheBytes", "timeoutMs", "ca", "required"],
    "stores on Redis (their size limit is the server's maxmemory)",
  )?;
  let store = RedisStore::open(scheme, rest, options)?;
  Ok(Arc::new(Handle::new(Arc::new(store))))
}

/// The path in a `redb:` URL: absolute, or relative to the working directory.
fn file_path(path: &str) -> Result<PathBuf> {
  let invalid = |message: &str| Err(Error::new(Code::InvalidArgument, message));
  if path.is_empty() {
    return invalid(
      "the redb: URL names no file; write redb:./data.redb or redb:/path/of/data.redb",
    );
  }
  if path.starts_with("//") {
    return invalid(
      "a redb: URL cannot name a host; write redb:./data.redb or redb:/path/of/data.redb, without //",
    );
  }
  if path.contains(['?', '#']) {
    return invalid(
      "a redb: URL cannot have a query or a fragment; write %3F for a ? in a file name, and %23 for a #",
    );
  }
  let is_escape = |rest: &str| {
    let digits = rest.as_bytes().get(..2);
    digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
  };
  let decoded = percent_encoding::percent_decode_str(path).decode_utf8();
  match decoded {
    Ok(decoded) if path.split('%').skip(1).all(is_escape) && !decoded.contains('\0') => {
      Ok(PathBuf::from(&*decoded))
    }
    _ => invalid(
      "the redb: URL has an invalid percent escape; escapes encode UTF-8 without NUL, and %25 stands for a % in a file name",
    ),
  }
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
  fn a_file_path_is_decoded_once_and_an_ambiguous_one_is_refused() {
    for (path, meant) in [
      ("./data.redb", "./data.redb"),
      ("data.redb", "data.redb"),
      ("/var/lib/a b.redb", "/var/lib/a b.redb"),
      ("a%20b%2541%C3%A4", "a b%41\u{E4}"),
      ("\u{E4}%3F%23", "\u{E4}?#"),
    ] {
      assert_eq!(file_path(path), Ok(PathBuf::from(meant)));
    }
    for path in [
      "",
      "//host/data",
      "//data",
      "data?x=1",
      "data#x",
      "100%",
      "%4",
      "%zz",
      "%00",
      "%FF",
      "%+1",
    ] {
      let refused = file_path(path).map_err(|error| error.code);
      assert_eq!(refused, Err(Code::InvalidArgument), "{path}");
    }
  }

  #[test]
  fn memory_without_a_name_is_a_new_store_and_with_a_name_a_shared_one() -> Result<()> {
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
  fn an_unsupported_url_is_refused_without_quoting_its_secrets() {
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
