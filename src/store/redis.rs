//! A store on a Redis server, or on those of a Redis cluster.
//!
//! * `settings`: what the URL and the options say.
//! * `connection`: a connection to one server, and what that says unasked.
//! * `cache`: what a server has told and has not taken back.
//! * `node`: a server, its connection that is kept up, and the cache of that connection.
//! * `servers`: all servers of a store, and which of them has which key.
//! * `watching`: tells of changes.
//! * `errors`: what the server's errors mean here.

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
use self::settings::{Address, Settings};
use super::checks::check_key;
use super::{Bytes, KeyPage, OpenOptions, Store, WatchGuard, Watcher, wait};
use crate::io_runtime::io_runtime;
use crate::{Code, Error, Result};

/// The longest value that Redis takes, in bytes.
const MAX_VALUE: usize = 512 << 20;

/// How many commands are sent at once. Each such batch has the time limit for itself.
const BATCH: usize = 1_000;

/// How many bytes of values are.
const BATCH_BYTES: usize = 4 << 20;

/// How many names of hosts may be looked up at once, in the whole process: each costs a thread.
const MAX_LOOKUPS: usize = 16;

/// How many times a server is asked for keys until it must be through. Tables of Redis with 10¹⁰ places need fewer.
const MAX_SCANS_OF_SERVER: u64 = 1 << 20;

/// Where the listing of a server's keys is. The positions of a server that works never repeat: they grow, read from the
/// last bit on.
#[derive(Clone, Copy, Default)]
struct Scan {
  /// Where the server goes on; 0 at the beginning.
  position: u64,
  /// How many times it has been asked.
  count: u64,
  /// The position after a power of two of them: so each circle is found, by Brent's algorithm.
  checkpoint: u64,
}

impl Scan {
  fn parse(text: &str) -> Option<Self> {
    let mut numbers = text.split('.').map(|number| number.parse::<u64>().ok());
    let mut next = || numbers.next().flatten();
    Some(Self {
      position: next()?,
      count: next()?,
      checkpoint: next()?,
    })
  }

  /// Goes on to the next position, or with 0 to the beginning of the next server. `false` if that would never end.
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

impl fmt::Display for Scan {
  fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
    let Self {
      position,
      count,
      checkpoint,
    } = self;
    write!(formatter, "{position}.{count}.{checkpoint}")
  }
}

/// Sets a key, or removes it, if it has the expected value. An argument that is not empty stands before the
/// expected value and before the new one, if there is such a one.
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

/// A Redis server, or a cluster of them. What is read often is answered from a cache that the servers keep
/// right.
pub struct RedisStore {
  servers: Arc<Servers>,
  runtime: &'static Runtime,
}

impl RedisStore {
  /// Connects to what a URL names. `scheme` is redis, rediss, redis+cluster or rediss+cluster, and `rest`
  /// what follows the colon. [`Code::StoreUnavailable`] where nobody answers; [`Code::AccessDenied`];
  /// [`Code::InvalidArgument`] for what makes no sense.
  pub fn open(scheme: &str, rest: &str, options: &OpenOptions) -> Result<Self> {
    let settings = Settings::new(scheme, rest, options)?;
    let runtime = runtime()?;
    let servers = runtime.block_on(Servers::open(settings))?;
    Ok(Self { servers, runtime })
  }

  fn run(&self, requests: &[Request<'_>]) -> Result<Vec<RedisReply>> {
    wait::block_on(self.runtime, self.servers.run(requests))
  }

  /// The answer to one command, which is no refusal.
  fn ask(&self, key: &str, effect: Effect, command: Cmd) -> Result<Value> {
    check_key(key)?;
    let answers = self.run(&[Request {
      key,
      effect,
      command,
    }])?;
    match answers.into_iter().next() {
      Some(RedisReply::Other(value)) => self.accepted(key, value),
      _ => Err(self.unexpected_reply()),
    }
  }

  /// The answers to many.
  fn ask_all(&self, requests: &[Request<'_>]) -> Result<Vec<Value>> {
    let answers = self.run(requests)?.into_iter().zip(requests);
    let values = answers.map(|(answer, request)| match answer {
      RedisReply::Other(value) => self.accepted(request.key, value),
      RedisReply::Value(_) => Err(self.unexpected_reply()),
    });
    values.collect()
  }

  fn accepted(&self, key: &str, value: Value) -> Result<Value> {
    match value {
      Value::ServerError(error) => Err(errors::of_server(&error, &self.servers.server_of(key))),
      value => Ok(value),
    }
  }

  /// The error for a reply of the wrong type.
  fn unexpected_reply(&self) -> Error {
    Error::new(
      Code::StoreUnavailable,
      "Redis has given an answer of the wrong type",
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
    let answers = self.run(&requests)?.into_iter().zip(keys);
    let values = answers.map(|(answer, key)| match answer {
      RedisReply::Value(value) => Ok(value),
      RedisReply::Other(value) => self.accepted(key, value).and(Err(self.unexpected_reply())),
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
      "Redis takes values of up to {MAX_VALUE} bytes, and this one has {}",
      value.len()
    ),
  ))
}

/// As `PX` takes it.
fn milliseconds(lifetime: Duration) -> i64 {
  // Redis adds the time of day, and refuses what it cannot hold then.
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

/// A pattern for `MATCH` that means the prefix as it is.
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

/// A server in a cursor, which guests see: they need not know its address.
fn mark(server: &Address) -> String {
  let mut hasher = DefaultHasher::new();
  server.hash(&mut hasher);
  format!("{:x}", hasher.finish())
}

/// The batches of entries, in their order.
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
      .ask(key, Effect::Write, set(key, value, lifetime))
      .map(drop)
  }

  fn delete(&self, key: &str) -> Result<bool> {
    let command = cmd("UNLINK").arg(key).take();
    let removed = self.ask(key, Effect::Write, command)?;
    Ok(self.number(&removed)? > 0)
  }

  fn exists(&self, key: &str) -> Result<bool> {
    if let Some(known) = self.get_now(key) {
      return Ok(known.is_some());
    }
    let command = cmd("EXISTS").arg(key).take();
    let found = self.ask(key, Effect::Look, command)?;
    Ok(self.number(&found)? > 0)
  }

  /// In the order of `SCAN`, server by server. A cursor is a server and a position there.
  fn list(&self, prefix: &str, cursor: Option<&str>, limit: usize) -> Result<KeyPage> {
    // How often the server is asked for a page: with a prefix that few keys have, most answers are empty.
    const MAX_SCANS: usize = 16;
    let nodes = self.servers.nodes();
    if nodes.is_empty() {
      return Err(Error::new(Code::Closed, "the store is closed"));
    }
    let (mut index, mut scan) = match cursor {
      None => (0, Scan::default()),
      Some(cursor) => {
        let bad = || Error::new(Code::InvalidArgument, "this is no cursor of this store");
        let (position, server) = cursor.split_once('@').ok_or_else(bad)?;
        let scan = Scan::parse(position).ok_or_else(bad)?;
        let index = nodes.iter().position(|node| mark(&node.server) == server);
        let index = index.ok_or_else(|| {
          Error::new(
            Code::StoreUnavailable,
            "the servers of the Redis cluster have changed while keys were listed; list them from the \
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
      let limit_of_time = self.servers.settings.timeout;
      let scanned = wait::block_on(self.runtime, async {
        let late = |_| errors::unreachable_for(&node.server, "it has not answered in time");
        let answer = timeout(limit_of_time, connection.send_checked(&command)).await;
        answer.map_err(late)?
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
        let message = format!("the Redis server {} never ends SCAN", node.server);
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
      .map(|node| format!("{scan}@{}", mark(&node.server)));
    Ok(KeyPage { keys, cursor })
  }

  fn increment(&self, key: &str, delta: i64) -> Result<i64> {
    let command = cmd("INCRBY").arg(key).arg(delta).take();
    let sum = self.ask(key, Effect::Write, command)?;
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
        let is_there: &[u8] = if part.is_some() { b"1" } else { b"" };
        command.arg(is_there).arg(part.unwrap_or_default());
      }
      match lifetime {
        Some(lifetime) => command.arg(milliseconds(lifetime)),
        None => command.arg(""),
      };
      command
    };
    check_key(key)?;
    let answers = self.run(&[Request {
      key,
      effect: Effect::Write,
      command: evaluate("EVALSHA", SWAP.get_hash()),
    }])?;
    let swapped = match answers.into_iter().next() {
      // The server has not seen it yet, or has been restarted.
      Some(RedisReply::Other(Value::ServerError(error))) if error.code() == "NOSCRIPT" => {
        self.ask(key, Effect::Write, evaluate("EVAL", COMPARE_AND_SWAP))?
      }
      Some(RedisReply::Other(value)) => self.accepted(key, value)?,
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

  /// Each entry is one step.
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
      self.ask_all(&requests)?;
    }
    Ok(())
  }

  /// Each key is one step.
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
      for count in self.ask_all(&requests)? {
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
  fn a_prefix_is_matched_as_it_is() {
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
  fn a_scan_that_never_ends_is_found() {
    let mut scan = Scan::default();
    let steps = (1..).take_while(|position| scan.advance(*position));
    assert_eq!(steps.count() as u64, MAX_SCANS_OF_SERVER);

    let mut circling = Scan::default();
    let circle = (1..).map(|step: u64| step % 1_000 + 1);
    let steps = circle.take_while(|position| circling.advance(*position));
    assert!(steps.count() < 4_000);
  }

  #[test]
  fn a_scan_goes_on_from_its_text() {
    let mut scan = Scan::default();
    assert!(scan.advance(u64::MAX) && scan.advance(5));
    let mut same = Scan::parse(&scan.to_string()).unwrap_or_default();
    assert_eq!(same.to_string(), "5.2.5");
    assert!(!same.advance(5));
    assert_eq!(Scan::parse("7").map(|scan| scan.position), None);
  }
}
