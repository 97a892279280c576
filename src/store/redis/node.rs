//! A server: its connection, which reconnects in the background, and the cache of that connection.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use redis::{Cmd, Pipeline, Value, cmd};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::cache::{Cache, PendingRead};
use super::connection::{Connection, PushEvent};
use super::errors;
use super::settings::{RedisSettings, ServerAddress};
use crate::store::Bytes;
use crate::{Error, Result};

/// The heartbeat's interval while the server is in use: several heartbeats within the time for which the
/// cache stays fresh.
const HEARTBEAT: Duration = Duration::from_millis(200);

/// The heartbeat's interval while the server is idle.
const IDLE_HEARTBEAT: Duration = Duration::from_secs(5);

/// The pause before reconnecting: the first, and the longest.
const BACKOFF: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(1)];

/// The pause after so many failed attempts: exponential backoff, with jitter so that clients that lost the
/// same server do not reconnect at the same moment.
pub fn backoff(attempt: u32) -> Duration {
  let longest = BACKOFF[0]
    .saturating_mul(1 << attempt.min(16))
    .min(BACKOFF[1]);
  // A hasher with random keys is random enough for jitter.
  let random = RandomState::new().build_hasher().finish() as u32;
  longest.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

/// What a command does to its key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Effect {
  /// `GET`, whose reply is cached.
  Get,
  /// Another read.
  Read,
  /// A write.
  Write,
}

/// A command on one key.
pub struct Request<'a> {
  pub key: &'a str,
  pub effect: Effect,
  pub command: Cmd,
}

/// A server's reply to a [`Request`].
pub enum RedisReply {
  /// The value that [`Effect::Get`] read.
  Value(Option<Bytes>),
  /// The reply to any other command, and error replies.
  Other(Value),
}

/// A server. If the connection is lost, it reconnects in the background; meanwhile requests fail at once.
pub struct Node {
  pub server: ServerAddress,
  settings: Arc<RedisSettings>,
  session: ArcSwapOption<Session>,
  /// The error of requests while there is no session.
  disconnect_error: Mutex<Error>,
  has_tried: watch::Sender<bool>,
  /// In a cluster: a key that this server owns according to the slot map.
  probe: Mutex<Option<String>>,
  /// Notified when the topology of the cluster may have changed.
  topology_hint: Arc<Notify>,
  reconnect_task: OnceLock<AbortHandle>,
}

impl Node {
  /// Starts connecting.
  pub fn start(
    settings: &Arc<RedisSettings>,
    server: ServerAddress,
    topology_hint: &Arc<Notify>,
  ) -> Arc<Self> {
    let disconnect_error = errors::unreachable(&server, "the connection is not open yet");
    let node = Arc::new(Self {
      server,
      settings: Arc::clone(settings),
      session: ArcSwapOption::empty(),
      disconnect_error: Mutex::new(disconnect_error),
      has_tried: watch::Sender::new(false),
      probe: Mutex::default(),
      topology_hint: Arc::clone(topology_hint),
      reconnect_task: OnceLock::new(),
    });
    let reconnect_task = tokio::spawn(Arc::clone(&node).stay_connected());
    node
      .reconnect_task
      .get_or_init(|| reconnect_task.abort_handle());
    node
  }

  /// Waits for the first attempt to connect; its error if it failed.
  pub async fn wait_for_first_attempt(&self) -> Result<()> {
    // The sender lives as long as `self`, so this cannot fail.
    drop(
      self
        .has_tried
        .subscribe()
        .wait_for(|has_tried| *has_tried)
        .await,
    );
    self.session().map(drop)
  }

  /// The current session, or why there is none.
  pub fn session(&self) -> Result<Arc<Session>> {
    self
      .session
      .load_full()
      .ok_or_else(|| self.disconnect_error())
  }

  pub fn is_connected(&self) -> bool {
    self.session.load().is_some()
  }

  /// Whether the last attempt to connect failed.
  pub fn connect_failed(&self) -> bool {
    *self.has_tried.borrow() && !self.is_connected()
  }

  /// The value of a key, if it is cached.
  pub fn get_now(&self, key: &str) -> Option<Option<Bytes>> {
    self.session.load().as_ref()?.cache.as_ref()?.get_now(key)
  }

  /// Invalidates a key in the cache.
  pub fn invalidate(&self, key: &str) {
    if let Some(session) = &*self.session.load()
      && let Some(cache) = &session.cache
    {
      cache.invalidate(key);
    }
  }

  /// Sets the key whose ownership each heartbeat checks.
  pub fn set_probe(&self, key: Option<String>) {
    *self.probe.lock().unwrap_or_else(PoisonError::into_inner) = key;
  }

  /// Stops the node. Requests in flight complete; later ones fail with `disconnect_error`.
  pub fn stop(&self, disconnect_error: Error) {
    if let Some(reconnect_task) = self.reconnect_task.get() {
      reconnect_task.abort();
    }
    self.end_session(disconnect_error);
    // Wakes up everyone who waits for the first attempt.
    self.has_tried.send_replace(true);
  }

  fn disconnect_error(&self) -> Error {
    self
      .disconnect_error
      .lock()
      .unwrap_or_else(PoisonError::into_inner)
      .clone()
  }

  fn end_session(&self, disconnect_error: Error) {
    *self
      .disconnect_error
      .lock()
      .unwrap_or_else(PoisonError::into_inner) = disconnect_error;
    if let Some(session) = self.session.swap(None)
      && let Some(cache) = &session.cache
    {
      cache.close();
    }
  }

  async fn stay_connected(self: Arc<Self>) {
    let mut attempt = 0;
    loop {
      match Session::open(&self.settings, &self.server).await {
        Ok(session) => {
          attempt = 0;
          let session = Arc::new(session);
          self.session.store(Some(Arc::clone(&session)));
          self.has_tried.send_replace(true);
          let disconnect_error = self.send_heartbeats(&session).await;
          self.end_session(disconnect_error);
          session.connection.abort();
        }
        Err(error) => {
          self.end_session(error);
          self.has_tried.send_replace(true);
        }
      }
      self.topology_hint.notify_one();
      sleep(backoff(attempt)).await;
      attempt += 1;
    }
  }

  /// Returns the reason when the connection is lost. A server that does not reply within the time limit
  /// counts as lost.
  async fn send_heartbeats(&self, session: &Session) -> Error {
    loop {
      session.pause().await;
      if session.is_lost.load(Ordering::Acquire) {
        return errors::unreachable(&self.server, "the connection was lost");
      }
      let sent_at = Instant::now();
      let probe = self
        .probe
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
      let has_probe = probe.is_some();
      let command = match probe {
        Some(key) => cmd("EXISTS").arg(key).take(),
        None => cmd("PING"),
      };
      match timeout(self.settings.timeout, session.connection.send(&command)).await {
        Ok(Ok(Value::ServerError(error))) => match (error.code(), has_probe) {
          // The server is alive, even though it denies `PING`.
          ("NOPERM", false) => session.mark_fresh(sent_at),
          // We cannot tell whether the server still owns its keys.
          ("NOPERM", true) => {}
          // It may have become a replica, or have lost the rest of the cluster.
          _ => self.topology_hint.notify_one(),
        },
        Ok(Ok(_)) => session.mark_fresh(sent_at),
        Ok(Err(error)) => return error,
        Err(_) => return errors::unreachable(&self.server, errors::TIMED_OUT),
      }
    }
  }
}

/// One connection to a server, with its cache.
pub struct Session {
  pub connection: Connection,
  cache: Option<Arc<Cache>>,
  is_lost: Arc<AtomicBool>,
  /// Whether a request was sent since the last heartbeat.
  is_used: AtomicBool,
  is_idle: AtomicBool,
  /// Wakes up the heartbeat.
  wake: Arc<Notify>,
}

impl Session {
  async fn open(settings: &RedisSettings, server: &ServerAddress) -> Result<Self> {
    let cache = Arc::new(Cache::new(Arc::clone(&settings.budget)));
    let is_lost = Arc::new(AtomicBool::new(false));
    let wake = Arc::new(Notify::new());
    let connection = Connection::open(settings, server, {
      let (cache, is_lost, wake) = (Arc::clone(&cache), Arc::clone(&is_lost), Arc::clone(&wake));
      move |event| match event {
        PushEvent::KeysChanged(keys) => keys.iter().for_each(|key| cache.invalidate(key)),
        PushEvent::AllChanged => cache.invalidate_all(),
        PushEvent::Disconnected => {
          cache.close();
          is_lost.store(true, Ordering::Release);
          wake.notify_one();
        }
      }
    })
    .await?;
    let is_cached = !settings.budget.is_zero() && connection.has_push && {
      let track = cmd("CLIENT").arg("TRACKING").arg("ON").take();
      let tracked = timeout(settings.timeout, connection.send(&track)).await;
      let timed_out = || errors::unreachable(server, errors::TIMED_OUT);
      // If the server denies tracking or does not support it, there is no cache.
      !matches!(tracked.map_err(|_| timed_out())??, Value::ServerError(_))
    };
    Ok(Self {
      connection,
      cache: is_cached.then_some(cache),
      is_lost,
      is_used: AtomicBool::new(false),
      is_idle: AtomicBool::new(false),
      wake,
    })
  }

  /// Waits until the next heartbeat is due.
  async fn pause(&self) {
    let was_used = || {
      let was_read = self.cache.as_ref().is_some_and(|cache| cache.was_used());
      self.is_used.swap(false, Ordering::AcqRel) || was_read
    };
    let mut is_awake = was_used();
    if !is_awake {
      self.is_idle.store(true, Ordering::SeqCst);
      // A request may have missed the flag.
      is_awake = was_used();
    }
    let pause = if is_awake { HEARTBEAT } else { IDLE_HEARTBEAT };
    // A timeout and a wake-up are equivalent here.
    drop(timeout(pause, self.wake.notified()).await);
    self.is_idle.store(false, Ordering::SeqCst);
  }

  fn mark_used(&self) {
    self.is_used.store(true, Ordering::SeqCst);
    if self.is_idle.swap(false, Ordering::SeqCst) {
      self.wake.notify_one();
    }
  }

  fn mark_fresh(&self, sent_at: Instant) {
    if let Some(cache) = &self.cache {
      cache.mark_fresh(sent_at);
    }
  }

  /// Sends requests in a pipeline, and returns the replies. `is_asking` is for keys that are migrating from
  /// another server of the cluster to this one.
  pub async fn exchange(
    &self,
    requests: &[&Request<'_>],
    is_asking: bool,
  ) -> Result<Vec<RedisReply>> {
    self.mark_used();
    let sent_at = Instant::now();
    let cache = self.cache.as_deref();
    // Written keys are invalidated when this function ends, also if it is canceled: before the caller sees
    // the reply.
    let _invalidations: Vec<_> = requests
      .iter()
      .filter(|request| request.effect == Effect::Write)
      .filter_map(|request| Some(InvalidateOnDrop(cache?, request.key)))
      .collect();
    let mut pending_reads: Vec<Option<PendingRead<'_>>> = requests
      .iter()
      .map(|request| match request.effect {
        Effect::Get if !is_asking => cache.map(|cache| cache.begin_read(request.key)),
        _ => None,
      })
      .collect();
    let values = match (requests, &pending_reads[..]) {
      ([request], [None]) if !is_asking => vec![self.connection.send(&request.command).await?],
      _ => {
        let mut pipeline = Pipeline::with_capacity(requests.len() * 2);
        for (request, pending_read) in requests.iter().zip(&pending_reads) {
          if is_asking {
            pipeline.cmd("ASKING");
          }
          pipeline.add_command(request.command.clone());
          if pending_read.is_some() {
            pipeline.cmd("PTTL").arg(request.key);
          }
        }
        self.connection.send_all(&pipeline).await?
      }
    };
    let mut values = values.into_iter();
    let mut next = || {
      values
        .next()
        .ok_or_else(|| self.connection.unexpected_reply())
    };
    let mut replies = Vec::with_capacity(requests.len());
    for (request, pending_read) in requests.iter().zip(&mut pending_reads) {
      if is_asking {
        next()?;
      }
      let reply = self.parse_reply(request, next()?)?;
      if let Some(pending_read) = pending_read.take() {
        let lifetime = next()?;
        if let RedisReply::Value(value) = &reply {
          self.mark_fresh(sent_at);
          cache_value(pending_read, value.clone(), &lifetime);
        }
      }
      replies.push(reply);
    }
    Ok(replies)
  }

  fn parse_reply(&self, request: &Request<'_>, value: Value) -> Result<RedisReply> {
    match (request.effect, value) {
      (Effect::Get, Value::Nil) => Ok(RedisReply::Value(None)),
      (Effect::Get, Value::BulkString(bytes)) => Ok(RedisReply::Value(Some(bytes.into()))),
      (Effect::Get, Value::ServerError(error)) => Ok(RedisReply::Other(Value::ServerError(error))),
      (Effect::Get, _) => Err(self.connection.unexpected_reply()),
      (_, value) => Ok(RedisReply::Other(value)),
    }
  }
}

/// Caches a value, with the lifetime that `PTTL` returned.
fn cache_value(pending_read: PendingRead<'_>, value: Option<Bytes>, lifetime: &Value) {
  const NO_LIFETIME: i64 = -1;
  const NO_KEY: i64 = -2;
  match (value, lifetime) {
    (None, Value::Int(NO_KEY)) => pending_read.complete(None, None),
    (Some(value), Value::Int(NO_LIFETIME)) => pending_read.complete(Some(value), None),
    (Some(value), Value::Int(milliseconds @ 1..)) => {
      let lifetime = Duration::from_millis(milliseconds.unsigned_abs());
      pending_read.complete(Some(value), Some(lifetime));
    }
    // The key changed between the two commands.
    _ => {}
  }
}

struct InvalidateOnDrop<'a>(&'a Cache, &'a str);

impl Drop for InvalidateOnDrop<'_> {
  fn drop(&mut self) {
    self.0.invalidate(self.1);
  }
}
