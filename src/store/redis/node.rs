//! A server, and the connection to it that is kept up: what is asked of it, and the cache of its answers.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use redis::{Cmd, Pipeline, Value, cmd};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::cache::{Asked, Cache};
use super::connection::{Connection, PushEvent};
use super::errors;
use super::settings::{Address, Settings};
use crate::store::Bytes;
use crate::{Error, Result};

/// How often the server is asked for a sign of life while it is used: several times in the time for which
/// the cache is believed.
const HEARTBEAT: Duration = Duration::from_millis(200);

/// How often otherwise.
const IDLE: Duration = Duration::from_secs(5);

/// How long it takes until the next attempt to connect, at first and at most.
const BACKOFF: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(1)];

/// How long to wait after so many attempts: longer each time, and not as long as others who lost the same
/// server at the same moment.
pub fn backoff(attempt: u32) -> Duration {
  let longest = BACKOFF[0]
    .saturating_mul(1 << attempt.min(16))
    .min(BACKOFF[1]);
  // A hasher with random keys is as random as it has to be here.
  let random = RandomState::new().build_hasher().finish() as u32;
  longest.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

/// What a command does with its key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Effect {
  /// It is `GET`, whose answer is cached.
  Get,
  /// It reads something else.
  Look,
  /// It changes it.
  Write,
}

/// A command for a key.
pub struct Request<'a> {
  pub key: &'a str,
  pub effect: Effect,
  pub command: Cmd,
}

/// The reply of a server to a [`Request`].
pub enum RedisReply {
  /// To [`Effect::Get`].
  Value(Option<Bytes>),
  /// To others, and a refusal to any.
  Other(Value),
}

/// A server. The connection is made anew in the background when it is lost; meanwhile all is refused at
/// once.
pub struct Node {
  pub server: Address,
  settings: Arc<Settings>,
  session: ArcSwapOption<Session>,
  /// Why there is no session.
  why: Mutex<Error>,
  is_tried: watch::Sender<bool>,
  /// A key that the server of a cluster has, if it has what we think it has.
  probe: Mutex<Option<String>>,
  /// PushEvent when the servers of a cluster may not be what they were.
  trouble: Arc<Notify>,
  keeper: OnceLock<AbortHandle>,
}

impl Node {
  /// Begins to connect.
  pub fn start(settings: &Arc<Settings>, server: Address, trouble: &Arc<Notify>) -> Arc<Self> {
    let why = errors::unreachable_for(&server, "it is being connected to");
    let node = Arc::new(Self {
      server,
      settings: Arc::clone(settings),
      session: ArcSwapOption::empty(),
      why: Mutex::new(why),
      is_tried: watch::Sender::new(false),
      probe: Mutex::default(),
      trouble: Arc::clone(trouble),
      keeper: OnceLock::new(),
    });
    let keeper = tokio::spawn(Arc::clone(&node).keep());
    node.keeper.get_or_init(|| keeper.abort_handle());
    node
  }

  /// Waits for the first attempt to connect.
  pub async fn tried(&self) -> Result<()> {
    // It cannot be dropped before `self` is.
    drop(
      self
        .is_tried
        .subscribe()
        .wait_for(|is_tried| *is_tried)
        .await,
    );
    self.session().map(drop)
  }

  /// The connection as it is.
  pub fn session(&self) -> Result<Arc<Session>> {
    self.session.load_full().ok_or_else(|| self.why())
  }

  pub fn is_connected(&self) -> bool {
    self.session.load().is_some()
  }

  /// Whether the last attempt to connect failed.
  pub fn connect_failed(&self) -> bool {
    *self.is_tried.borrow() && !self.is_connected()
  }

  /// The value of a key, if it is known.
  pub fn get_now(&self, key: &str) -> Option<Option<Bytes>> {
    self.session.load().as_ref()?.cache.as_ref()?.get_now(key)
  }

  /// A key may have changed.
  pub fn forget(&self, key: &str) {
    if let Some(session) = &*self.session.load()
      && let Some(cache) = &session.cache
    {
      cache.forget(key);
    }
  }

  /// Names a key that the server should have.
  pub fn set_probe(&self, key: Option<String>) {
    *self.probe.lock().unwrap_or_else(PoisonError::into_inner) = key;
  }

  /// Ends it. What is under way is answered, and the rest refused with that.
  pub fn stop(&self, why: Error) {
    if let Some(keeper) = self.keeper.get() {
      keeper.abort();
    }
    self.lose(why);
    // Who waits for the first attempt waits no longer.
    self.is_tried.send_replace(true);
  }

  fn why(&self) -> Error {
    self
      .why
      .lock()
      .unwrap_or_else(PoisonError::into_inner)
      .clone()
  }

  fn lose(&self, why: Error) {
    *self.why.lock().unwrap_or_else(PoisonError::into_inner) = why;
    if let Some(session) = self.session.swap(None)
      && let Some(cache) = &session.cache
    {
      cache.close();
    }
  }

  async fn keep(self: Arc<Self>) {
    let mut attempt = 0;
    loop {
      match Session::open(&self.settings, &self.server).await {
        Ok(session) => {
          attempt = 0;
          let session = Arc::new(session);
          self.session.store(Some(Arc::clone(&session)));
          self.is_tried.send_replace(true);
          let why = self.watch_over(&session).await;
          self.lose(why);
          session.connection.abort();
        }
        Err(error) => {
          self.lose(error);
          self.is_tried.send_replace(true);
        }
      }
      self.trouble.notify_one();
      sleep(backoff(attempt)).await;
      attempt += 1;
    }
  }

  /// Returns when the connection is lost, and why. A server that is silent for as long as it may take to
  /// answer is lost too.
  async fn watch_over(&self, session: &Session) -> Error {
    loop {
      session.pause().await;
      if session.is_lost.load(Ordering::Acquire) {
        return errors::unreachable_for(&self.server, "the connection was lost");
      }
      let asked_at = Instant::now();
      let probe = self
        .probe
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
      let has_probe = probe.is_some();
      let question = match probe {
        Some(key) => cmd("EXISTS").arg(key).take(),
        None => cmd("PING"),
      };
      match timeout(self.settings.timeout, session.connection.send(&question)).await {
        Ok(Ok(Value::ServerError(error))) => match (error.code(), has_probe) {
          // It is there, and says so in its own way.
          ("NOPERM", false) => session.heard(asked_at),
          // Nobody knows then whether it has still the keys that it had.
          ("NOPERM", true) => {}
          // It may have become a replica of another, or have lost the others.
          _ => self.trouble.notify_one(),
        },
        Ok(Ok(_)) => session.heard(asked_at),
        Ok(Err(error)) => return error,
        Err(_) => return errors::unreachable_for(&self.server, "it has not answered in time"),
      }
    }
  }
}

/// One connection to a server, from when it is made to when it is lost, with its cache.
pub struct Session {
  pub connection: Connection,
  cache: Option<Arc<Cache>>,
  is_lost: Arc<AtomicBool>,
  /// Whether something was asked since the last heartbeat.
  is_used: AtomicBool,
  is_idle: AtomicBool,
  /// Ends a pause.
  stirred: Arc<Notify>,
}

impl Session {
  async fn open(settings: &Settings, server: &Address) -> Result<Self> {
    let cache = Arc::new(Cache::new(Arc::clone(&settings.budget)));
    let is_lost = Arc::new(AtomicBool::new(false));
    let stirred = Arc::new(Notify::new());
    let connection = Connection::open(settings, server, {
      let (cache, is_lost, stirred) = (
        Arc::clone(&cache),
        Arc::clone(&is_lost),
        Arc::clone(&stirred),
      );
      move |told| match told {
        PushEvent::KeysChanged(keys) => keys.iter().for_each(|key| cache.forget(key)),
        PushEvent::AllChanged => cache.forget_all(),
        PushEvent::Disconnected => {
          cache.close();
          is_lost.store(true, Ordering::Release);
          stirred.notify_one();
        }
      }
    })
    .await?;
    let is_cached = !settings.budget.is_none() && connection.has_push && {
      let track = cmd("CLIENT").arg("TRACKING").arg("ON").take();
      let tracked = timeout(settings.timeout, connection.send(&track)).await;
      let late = || errors::unreachable_for(server, "it has not answered in time");
      // Who may not have it, or where there is none, does without.
      !matches!(tracked.map_err(|_| late())??, Value::ServerError(_))
    };
    Ok(Self {
      connection,
      cache: is_cached.then_some(cache),
      is_lost,
      is_used: AtomicBool::new(false),
      is_idle: AtomicBool::new(false),
      stirred,
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
      // Somebody may not have seen that in time.
      is_awake = was_used();
    }
    let pause = if is_awake { HEARTBEAT } else { IDLE };
    // That it is over, or that somebody stirred, is the same here.
    drop(timeout(pause, self.stirred.notified()).await);
    self.is_idle.store(false, Ordering::SeqCst);
  }

  fn stir(&self) {
    self.is_used.store(true, Ordering::SeqCst);
    if self.is_idle.swap(false, Ordering::SeqCst) {
      self.stirred.notify_one();
    }
  }

  fn heard(&self, asked_at: Instant) {
    if let Some(cache) = &self.cache {
      cache.heard(asked_at);
    }
  }

  /// Sends requests, one after the other, and returns the answers. With `is_asking` they are for keys that
  /// are on their way from another server of the cluster to this one.
  pub async fn exchange(
    &self,
    requests: &[&Request<'_>],
    is_asking: bool,
  ) -> Result<Vec<RedisReply>> {
    self.stir();
    let asked_at = Instant::now();
    let cache = self.cache.as_deref();
    // What is written is forgotten when that is answered, or given up: before whoever waits is told.
    let _written: Vec<_> = requests
      .iter()
      .filter(|request| request.effect == Effect::Write)
      .filter_map(|request| Some(Written(cache?, request.key)))
      .collect();
    let mut asked: Vec<Option<Asked<'_>>> = requests
      .iter()
      .map(|request| match request.effect {
        Effect::Get if !is_asking => cache.map(|cache| cache.ask(request.key)),
        _ => None,
      })
      .collect();
    let values = match (requests, &asked[..]) {
      ([request], [None]) if !is_asking => vec![self.connection.send(&request.command).await?],
      _ => {
        let mut pipeline = Pipeline::with_capacity(requests.len() * 2);
        for (request, asked) in requests.iter().zip(&asked) {
          if is_asking {
            pipeline.cmd("ASKING");
          }
          pipeline.add_command(request.command.clone());
          if asked.is_some() {
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
    let mut answers = Vec::with_capacity(requests.len());
    for (request, asked) in requests.iter().zip(&mut asked) {
      if is_asking {
        next()?;
      }
      let answer = self.answer(request, next()?)?;
      if let Some(asked) = asked.take() {
        let lifetime = next()?;
        if let RedisReply::Value(value) = &answer {
          self.heard(asked_at);
          keep(asked, value.clone(), &lifetime);
        }
      }
      answers.push(answer);
    }
    Ok(answers)
  }

  fn answer(&self, request: &Request<'_>, value: Value) -> Result<RedisReply> {
    match (request.effect, value) {
      (Effect::Get, Value::Nil) => Ok(RedisReply::Value(None)),
      (Effect::Get, Value::BulkString(bytes)) => Ok(RedisReply::Value(Some(bytes.into()))),
      (Effect::Get, Value::ServerError(error)) => Ok(RedisReply::Other(Value::ServerError(error))),
      (Effect::Get, _) => Err(self.connection.unexpected_reply()),
      (_, value) => Ok(RedisReply::Other(value)),
    }
  }
}

/// Puts a value into the cache, given what `PTTL` says.
fn keep(asked: Asked<'_>, value: Option<Bytes>, lifetime: &Value) {
  const FOR_EVER: i64 = -1;
  const NO_KEY: i64 = -2;
  match (value, lifetime) {
    (None, Value::Int(NO_KEY)) => asked.answered(None, None),
    (Some(value), Value::Int(FOR_EVER)) => asked.answered(Some(value), None),
    (Some(value), Value::Int(milliseconds @ 1..)) => {
      let lifetime = Duration::from_millis(milliseconds.unsigned_abs());
      asked.answered(Some(value), Some(lifetime));
    }
    // It has changed in between.
    _ => {}
  }
}

struct Written<'a>(&'a Cache, &'a str);

impl Drop for Written<'_> {
  fn drop(&mut self) {
    self.0.forget(self.1);
  }
}
