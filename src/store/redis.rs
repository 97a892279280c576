//! A store on a Redis server or a Redis cluster.
//!
//! * `settings`: parses the URL and the options.
//! * `connection`: a connection to one server, and its push messages.
//! * `cache`: values read from a server that it has not invalidated.
//! * `node`: a server, with a connection that reconnects, and that connection's cache.
//! * `servers`: the servers of a store, and the routing of keys to them.
//! * `watching`: notifies watchers of changes.
//! * `errors`: maps Redis errors to this crate's.

mod cache;
mod connection;
mod errors;
mod node;
mod servers;
mod settings;
mod watching;

use std::collections::HashSet;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Duration;

use redis::{Cmd, Script, Value, cmd};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use self::connection::text;
use self::node::{Effect, RedisReply, Request};
use self::servers::Servers;
use self::settings::{RedisSettings, ServerAddress};
use super::checks::check_key;
use super::{Bytes, KeyPage, OpenOptions, Store, WatchGuard, Watcher, wait};
use crate::io_runtime::io_runtime;
use crate::{Code, Error, Result};

/// Redis's limit on the size of a value, in bytes.
const MAX_VALUE: usize = 512 << 20;

/// How many commands one batch sends. Each batch has its own time limit.
const BATCH: usize = 1_000;

/// How many bytes of keys and values one batch sends.
const BATCH_BYTES: usize = 4 << 20;

/// How many DNS lookups may run at once in the process: each occupies a thread.
const MAX_LOOKUPS: usize = 16;

/// How many `SCAN` calls may list one server. A Redis hash table with 10¹⁰ buckets needs fewer.
const MAX_SCANS_OF_SERVER: u64 = 1 << 20;

/// The progress of listing one server's keys. A correct server never returns the same position twice: read
/// from the lowest bit on, positions increase.
#[derive(Clone, Copy, Default)]
struct ScanCursor {
  /// The server's cursor; 0 at the beginning.
  position: u64,
  /// How many `SCAN` calls have been made.
  count: u64,
  /// The position after the last power of two of calls. Comparing with it finds every cycle (Brent's
  /// algorithm).
  checkpoint: u64,
}

impl ScanCursor {
  fn parse(text: &str) -> Option<Self> {
    let mut numbers = text.split('.').map(|number| number.parse::<u64>().ok());
    let mut next = || numbers.next().flatten();
    Some(Self {
      position: next()?,
      count: next()?,
      checkpoint: next()?,
    })
  }

  /// Advances to the next position, or if it is 0 to the start of the next server. Returns `false` if the
  /// scan would never end.
  fn advance(&mut self, next: u64) -> bool {
    if next == 0 {
      *self = Self::default();
      return true;
    }
    if next == self.checkpoint || self.count >= MAX_SCANS_OF_SERVER {
      return false;
    }
    self.position = next;
    self.count += 1;
    if self.count.is_power_of_two() {
      self.checkpoint = next;
    }
    true
  }
}

impl fmt::Display for ScanCursor {
  fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
    let Self {
      position,
      count,
      checkpoint,
    } = self;
    write!(formatter, "{position}.{count}.{checkpoint}")
  }
}

/// Sets or removes a key if it has the expected value. The expected and the new value are each preceded by a
/// flag, which is empty if there is no such value.
const COMPARE_AND_SWAP: &str = r"
local value = redis.call('GET', KEYS[1])
if ARGV[1] == '' then
  if value then return 0 end
elseif value ~= ARGV[2] then
  return 0
end
if ARGV[3] == '' then
  redis.call('DEL', KEYS[1])
elseif ARGV[5] == '' then
  redis.call('SET', KEYS[1], ARGV[4])
else
  redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[5])
end
return 1";

static SWAP: LazyLock<Script> = LazyLock::new(|| Script::new(COMPARE_AND_SWAP));

fn runtime() -> Result<&'static Runtime> {
  static RUNTIME: OnceLock<Runtime> = OnceLock::new();
  io_runtime(&RUNTIME, "extism-redis", MAX_LOOKUPS, "for Redis")
}

/// A store on a Redis server or cluster. Frequent reads are answered from a cache that the servers
/// invalidate.
pub struct RedisStore {
  servers: Arc<Servers>,
  runtime: &'static Runtime,
}

impl RedisStore {
  /// Connects to the servers that a URL names. `scheme` is redis, rediss, redis+cluster or rediss+cluster,
  /// and `rest` is everything after the colon. [`Code::StoreUnavailable`] if no server answers;
  /// [`Code::AccessDenied`]; [`Code::InvalidArgument`] for an invalid URL or option.
  pub fn open(scheme: &str, rest: &str, options: &OpenOptions) -> Result<Self> {
    let settings = RedisSettings::new(scheme, rest, options)?;
    let runtime = runtime()?;
    let servers = runtime.block_on(Servers::open(settings))?;
    Ok(Self { servers, runtime })
  }

  fn run(&self, requests: &[Request<'_>]) -> Result<Vec<RedisReply>> {
    wait::block_on(self.runtime, self.servers.run(requests))
  }

  /// Runs one command. An error reply is an error.
  fn execute(&self, key: &str, effect: Effect, command: Cmd) -> Result<Value> {
    check_key(key)?;
    let replies = self.run(&[Request {
      key,
      effect,
      command,
    }])?;
    match replies.into_iter().next() {
      Some(RedisReply::Other(value)) => self.check_reply(key, value),
      _ => Err(self.unexpected_reply()),
    }
  }

  /// Runs several commands. An error reply is an error.
  fn execute_all(&self, requests: &[Request<'_>]) -> Result<Vec<Value>> {
    let replies = self.run(requests)?.into_iter().zip(requests);
    let values = replies.map(|(reply, request)| match reply {
      RedisReply::Other(value) => self.check_reply(request.key, value),
      RedisReply::Value(_) => Err(self.unexpected_reply()),
    });
    values.collect()
  }

  fn check_reply(&self, key: &str, value: Value) -> Result<Value> {
    match value {
      Value::ServerError(error) => Err(errors::from_server(&error, &self.servers.server_of(key))),
      value => Ok(value),
    }
  }

  /// The error for a reply of the wrong type.
  fn unexpected_reply(&self) -> Error {
    Error::new(
      Code::StoreUnavailable,
      "Redis sent a reply of the wrong type; check that the URL names a Redis server",
    )
  }

  fn number(&self, value: &Value) -> Result<i64> {
    match value {
      Value::Int(number) => Ok(*number),
      _ => Err(self.unexpected_reply()),
    }
  }

  fn values(&self, keys: &[&str]) -> Result<Vec<Option<Bytes>>> {
    let requests: Vec<_> = keys
      .iter()
      .map(|key| Request {
        key,
        effect: Effect::Get,
        command: cmd("GET").arg(key).take(),
      })
      .collect();
    let replies = self.run(&requests)?.into_iter().zip(keys);
    let values = replies.map(|(reply, key)| match reply {
      RedisReply::Value(value) => Ok(value),
      RedisReply::Other(value) => self
        .check_reply(key, value)
        .and(Err(self.unexpected_reply())),
    });
    values.collect()
  }
}

fn check_value(value: &[u8]) -> Result<()> {
  if value.len() <= MAX_VALUE {
    return Ok(());
  }
  Err(Error::new(
    Code::ValueTooLarge,
    format!(
      "the value has {} bytes, more than the {MAX_VALUE} that Redis accepts; store it in parts",
      value.len()
    ),
  ))
}

/// A lifetime as an argument of `PX`.
fn milliseconds(lifetime: Duration) -> i64 {
  // Redis adds the current time, and refuses a sum that overflows.
  const MAX: i64 = i64::MAX / 2;
  i64::try_from(lifetime.as_millis())
    .unwrap_or(MAX)
    .clamp(1, MAX)
}

fn set(key: &str, value: &[u8], lifetime: Option<Duration>) -> Cmd {
  let mut command = cmd("SET");
  command.arg(key).arg(value);
  if let Some(lifetime) = lifetime {
    command.arg("PX").arg(milliseconds(lifetime));
  }
  command
}

/// A pattern for `MATCH` that matches the prefix literally.
fn pattern(prefix: &str) -> String {
  let mut pattern = String::with_capacity(prefix.len() + 1);
  for character in prefix.chars() {
    if matches!(character, '*' | '?' | '[' | ']' | '\\') {
      pattern.push('\\');
    }
    pattern.push(character);
  }
  pattern.push('*');
  pattern
}

/// Identifies a server in a cursor by a hash: guests see cursors, and must not learn its address.
fn server_id(server: &ServerAddress) -> String {
  let mut hasher = DefaultHasher::new();
  server.hash(&mut hasher);
  format!("{:x}", hasher.finish())
}

/// Splits entries into batches.
fn batches<T>(mut entries: &[T], bytes: impl Fn(&T) -> usize) -> impl Iterator<Item = &[T]> {
  std::iter::from_fn(move || {
    let mut sum = 0_usize;
    let fits = entries.iter().take(BATCH).take_while(|entry| {
      let is_first = sum == 0;
      sum = sum.saturating_add(bytes(entry).max(1));
      is_first || sum <= BATCH_BYTES
    });
    let (batch, rest) = entries.split_at(fits.count());
    entries = rest;
    (!batch.is_empty()).then_some(batch)
  })
}

impl Store for RedisStore {
  fn system(&self) -> &'static str {
    "redis"
  }

  fn get_now(&self, key: &str) -> Option<Option<Bytes>> {
    self.servers.get_now(key)
  }

  fn get(&self, key: &str) -> Result<Option<Bytes>> {
    check_key(key)?;
    let values = self.values(&[key])?;
    values
      .into_iter()
      .next()
      .ok_or_else(|| self.unexpected_reply())
  }

  fn set(&self, key: &str, value: &[u8], lifetime: Option<Duration>) -> Result<()> {
    check_value(value)?;
    self
      .execute(key, Effect::Write, set(key, value, lifetime))
      .map(drop)
  }

  fn delete(&self, key: &str) -> Result<bool> {
    let command = cmd("UNLINK").arg(key).take();
    let removed = self.execute(key, Effect::Write, command)?;
    Ok(self.number(&removed)? > 0)
  }

  fn exists(&self, key: &str) -> Result<bool> {
    if let Some(known) = self.get_now(key) {
      return Ok(known.is_some());
    }
    let command = cmd("EXISTS").arg(key).take();
    let found = self.execute(key, Effect::Read, command)?;
    Ok(self.number(&found)? > 0)
  }

  /// Keys are in the order of `SCAN`, server by server. A cursor consists of a server and a position on it.
  fn list(&self, prefix: &str, cursor: Option<&str>, limit: usize) -> Result<KeyPage> {
    // The maximum number of `SCAN` calls for one page: with a rare prefix most replies are empty.
    const MAX_SCANS: usize = 16;
    let nodes = self.servers.nodes();
    if nodes.is_empty() {
      return Err(Error::new(Code::Closed, "the store is closed"));
    }
    let (mut index, mut scan) = match cursor {
      None => (0, ScanCursor::default()),
      Some(cursor) => {
        let bad = || {
          Error::new(
            Code::InvalidArgument,
            "the cursor is not one of this store; list from the beginning",
          )
        };
        let (position, server) = cursor.split_once('@').ok_or_else(bad)?;
        let scan = ScanCursor::parse(position).ok_or_else(bad)?;
        let index = nodes
          .iter()
          .position(|node| server_id(&node.server) == server);
        let index = index.ok_or_else(|| {
          Error::new(
            Code::StoreUnavailable,
            "the servers of the Redis cluster changed while keys were listed; list them from the \
             beginning",
          )
        })?;
        (index, scan)
      }
    };
    let pattern = pattern(prefix);
    let mut seen = HashSet::new();
    let mut keys = Vec::new();
    for _ in 0..MAX_SCANS {
      let Some(node) = nodes.get(index) else {
        return Ok(KeyPage { keys, cursor: None });
      };
      let connection = &node.session()?.connection;
      let mut command = cmd("SCAN");
      command.arg(scan.position);
      if !prefix.is_empty() {
        command.arg("MATCH").arg(&pattern);
      }
      command.arg("COUNT").arg(limit.clamp(10, BATCH));
      let time_limit = self.servers.settings.timeout;
      let scanned = wait::block_on(self.runtime, async {
        let timed_out = |_| errors::unreachable(&node.server, errors::TIMED_OUT);
        let reply = timeout(time_limit, connection.send_checked(&command)).await;
        reply.map_err(timed_out)?
      });
      let Value::Array(parts) = scanned? else {
        return Err(self.unexpected_reply());
      };
      let Ok([next, found]) = <[Value; 2]>::try_from(parts) else {
        return Err(self.unexpected_reply());
      };
      let next = text(next).and_then(|next| next.parse::<u64>().ok());
      let next = next.ok_or_else(|| self.unexpected_reply())?;
      if !scan.advance(next) {
        let message = format!(
          "the Redis server {} never finishes SCAN; check the server",
          node.server
        );
        return Err(Error::new(Code::StoreUnavailable, message));
      }
      let Value::Array(found) = found else {
        return Err(self.unexpected_reply());
      };
      for key in found.into_iter().filter_map(text) {
        if key.starts_with(prefix) && seen.insert(key.clone()) {
          keys.push(key);
        }
      }
      if next == 0 {
        index += 1;
      }
      if keys.len() >= limit {
        break;
      }
    }
    let cursor = nodes
      .get(index)
      .map(|node| format!("{scan}@{}", server_id(&node.server)));
    Ok(KeyPage { keys, cursor })
  }

  fn increment(&self, key: &str, delta: i64) -> Result<i64> {
    let command = cmd("INCRBY").arg(key).arg(delta).take();
    let sum = self.execute(key, Effect::Write, command)?;
    self.number(&sum)
  }

  fn compare_and_swap(
    &self,
    key: &str,
    expected: Option<&[u8]>,
    value: Option<&[u8]>,
    lifetime: Option<Duration>,
  ) -> Result<bool> {
    check_value(value.unwrap_or_default())?;
    let evaluate = |name: &str, script: &str| {
      let mut command = cmd(name);
      command.arg(script).arg(1).arg(key);
      for part in [expected, value] {
        let flag: &[u8] = if part.is_some() { b"1" } else { b"" };
        command.arg(flag).arg(part.unwrap_or_default());
      }
      match lifetime {
        Some(lifetime) => command.arg(milliseconds(lifetime)),
        None => command.arg(""),
      };
      command
    };
    check_key(key)?;
    let replies = self.run(&[Request {
      key,
      effect: Effect::Write,
      command: evaluate("EVALSHA", SWAP.get_hash()),
    }])?;
    let swapped = match replies.into_iter().next() {
      // The server has not cached the script yet, or was restarted.
      Some(RedisReply::Other(Value::ServerError(error))) if error.code() == "NOSCRIPT" => {
        self.execute(key, Effect::Write, evaluate("EVAL", COMPARE_AND_SWAP))?
      }
      Some(RedisReply::Other(value)) => self.check_reply(key, value)?,
      _ => return Err(self.unexpected_reply()),
    };
    Ok(self.number(&swapped)? > 0)
  }

  fn get_many(&self, keys: &[&str]) -> Result<Vec<Option<Bytes>>> {
    keys.iter().try_for_each(|key| check_key(key))?;
    let mut values: Vec<_> = keys.iter().map(|key| self.get_now(key)).collect();
    let missing: Vec<_> = (0..keys.len())
      .filter(|index| values[*index].is_none())
      .collect();
    for indices in missing.chunks(BATCH) {
      let missing: Vec<_> = indices.iter().map(|index| keys[*index]).collect();
      for (index, value) in indices.iter().zip(self.values(&missing)?) {
        values[*index] = Some(value);
      }
    }
    Ok(values.into_iter().map(Option::flatten).collect())
  }

  /// Each entry is set atomically, but not all of them together.
  fn set_many(&self, entries: &[(&str, &[u8])], lifetime: Option<Duration>) -> Result<()> {
    for (key, value) in entries {
      check_key(key)?;
      check_value(value)?;
    }
    for batch in batches(entries, |(key, value)| key.len() + value.len()) {
      let requests: Vec<_> = batch
        .iter()
        .map(|(key, value)| Request {
          key,
          effect: Effect::Write,
          command: set(key, value, lifetime),
        })
        .collect();
      self.execute_all(&requests)?;
    }
    Ok(())
  }

  /// Each key is removed atomically, but not all of them together.
  fn delete_many(&self, keys: &[&str]) -> Result<u64> {
    keys.iter().try_for_each(|key| check_key(key))?;
    let mut removed = 0;
    for keys in keys.chunks(BATCH) {
      let requests: Vec<_> = keys
        .iter()
        .map(|key| Request {
          key,
          effect: Effect::Write,
          command: cmd("UNLINK").arg(key).take(),
        })
        .collect();
      for count in self.execute_all(&requests)? {
        removed += self.number(&count)?.unsigned_abs();
      }
    }
    Ok(removed)
  }

  fn watch(&self, prefix: &str, watcher: Arc<dyn Watcher>) -> Result<WatchGuard> {
    let watching = watching::watch(&self.servers, prefix, watcher);
    self.runtime.block_on(watching)
  }

  fn close(&self) -> Result<()> {
    self.servers.stop();
    Ok(())
  }
}

impl Drop for RedisStore {
  fn drop(&mut self) {
    self.servers.stop();
  }
}

#[cfg(test)]
mod tests {
  use super::*;

  #[test]
  fn a_prefix_is_matched_literally() {
    assert_eq!(pattern("user:"), "user:*");
    assert_eq!(pattern(r"a*b?[c]\"), r"a\*b\?\[c\]\\*");
  }

  #[test]
  fn a_batch_is_bounded_in_entries_and_in_bytes_and_never_empty() {
    let lengths = |sizes: &[usize]| {
      let batches = batches(sizes, |size| *size);
      batches.map(<[usize]>::len).collect::<Vec<_>>()
    };
    assert_eq!(lengths(&[]), [0; 0]);
    assert_eq!(lengths(&[0; 2_500]), [1_000, 1_000, 500]);
    assert_eq!(
      lengths(&[BATCH_BYTES * 2, 1, BATCH_BYTES - 1, 1]),
      [1, 2, 1]
    );
  }

  #[test]
  fn a_scan_that_never_ends_is_detected() {
    let mut scan = ScanCursor::default();
    let steps = (1..).take_while(|position| scan.advance(*position));
    assert_eq!(steps.count() as u64, MAX_SCANS_OF_SERVER);

    let mut circling = ScanCursor::default();
    let circle = (1..).map(|step: u64| step % 1_000 + 1);
    let steps = circle.take_while(|position| circling.advance(*position));
    assert!(steps.count() < 4_000);
  }

  #[test]
  fn a_scan_resumes_from_its_text() {
    let mut scan = ScanCursor::default();
    assert!(scan.advance(u64::MAX) && scan.advance(5));
    let mut same = ScanCursor::parse(&scan.to_string()).unwrap_or_default();
    assert_eq!(same.to_string(), "5.2.5");
    assert!(!same.advance(5));
    assert_eq!(ScanCursor::parse("7").map(|scan| scan.position), None);
  }
}
