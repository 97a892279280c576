//! Tells of changes that anybody makes: over a connection to each server on which that says which keys with
//! the prefix have changed (`CLIENT TRACKING` with `BCAST`).
//!
//! Keyspace notifications would say what has happened to a key, but the server has to be configured for
//! them, and pays for them with every write.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use redis::{Pipeline, Value, cmd};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::connection::{Connection, PushEvent};
use super::errors;
use super::node::backoff;
use super::servers::Servers;
use super::settings::{Address, Settings};
use crate::store::{Change, WatchGuard, Watcher};
use crate::{Code, Error, Result};

/// How long a server may be silent before it is asked for a sign of life.
const SILENCE: Duration = Duration::from_secs(1);

/// Changed keys that wait to be looked at; when there are more, some are lost.
const MAX_KEYS: usize = 100_000;

/// Keys that are looked at at once.
const BATCH: usize = 1_000;

/// Begins to watch.
pub async fn watch(
  servers: &Arc<Servers>,
  prefix: &str,
  watcher: Arc<dyn Watcher>,
) -> Result<WatchGuard> {
  let shared = Arc::new(WatchState {
    settings: Arc::clone(&servers.settings),
    servers: Arc::downgrade(servers),
    prefix: prefix.to_owned(),
    watcher,
  });
  // Where a server is known to be away, nobody waits for it.
  for node in servers.nodes() {
    node.session()?;
  }
  let mut primaries = servers.primaries();
  let first = primaries.borrow_and_update().clone();
  let opened = join_all(first.iter().map(|server| shared.follow(server))).await;
  let mut followed = HashMap::new();
  for (server, opened) in first.into_iter().zip(opened) {
    let follower = Arc::clone(&shared).keep_following(server.clone(), Some(opened?));
    followed.insert(server, Task::start(follower));
  }
  let supervisor = tokio::spawn(async move {
    while primaries.changed().await.is_ok() {
      let now = primaries.borrow_and_update().clone();
      followed.retain(|server, _| now.contains(server));
      for server in now {
        followed.entry(server).or_insert_with_key(|server| {
          Task::start(Arc::clone(&shared).keep_following(server.clone(), None))
        });
      }
    }
  });
  Ok(WatchGuard::new(move || supervisor.abort()))
}

/// Ends when it is dropped.
struct Task(AbortHandle);

impl Task {
  fn start(work: impl Future<Output = ()> + Send + 'static) -> Self {
    Self(tokio::spawn(work).abort_handle())
  }
}

impl Drop for Task {
  fn drop(&mut self) {
    self.0.abort();
  }
}

/// What a server has said and nobody has looked at yet.
#[derive(Default)]
struct Said {
  /// Each once, in their order.
  keys: Vec<String>,
  has: HashSet<String>,
  are_all_changed: bool,
  is_lost: bool,
}

#[derive(Default)]
struct Inbox {
  said: Mutex<Said>,
  arrived: Notify,
}

impl Inbox {
  fn put(&self, event: PushEvent) {
    let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
    match event {
      PushEvent::KeysChanged(keys) => {
        for key in keys {
          if said.has.insert(key.clone()) {
            said.keys.push(key);
          }
        }
        if said.keys.len() > MAX_KEYS {
          *said = Said {
            are_all_changed: true,
            ..Said::default()
          };
        }
      }
      PushEvent::AllChanged => said.are_all_changed = true,
      PushEvent::Disconnected => said.is_lost = true,
    }
    drop(said);
    self.arrived.notify_one();
  }

  fn take(&self) -> Said {
    std::mem::take(&mut *self.said.lock().unwrap_or_else(PoisonError::into_inner))
  }
}

struct Follower {
  connection: Connection,
  inbox: Arc<Inbox>,
}

impl Drop for Follower {
  fn drop(&mut self) {
    self.connection.abort();
  }
}

struct WatchState {
  settings: Arc<Settings>,
  servers: Weak<Servers>,
  prefix: String,
  watcher: Arc<dyn Watcher>,
}

impl WatchState {
  /// Has a server tell of changes.
  async fn follow(&self, server: &Address) -> Result<Follower> {
    let inbox = Arc::new(Inbox::default());
    let pushed = Arc::clone(&inbox);
    let on_push = move |event| pushed.put(event);
    let connection = Connection::open(&self.settings, server, on_push).await?;
    if !connection.has_push {
      return Err(Error::new(
        Code::StoreUnavailable,
        format!("the Redis server {server} cannot tell of changes: that takes version 6 or later"),
      ));
    }
    let mut track = cmd("CLIENT");
    track.arg("TRACKING").arg("ON").arg("BCAST");
    if !self.prefix.is_empty() {
      track.arg("PREFIX").arg(&self.prefix);
    }
    let tracked = timeout(self.settings.timeout, connection.send_checked(&track)).await;
    tracked.map_err(|_| errors::unreachable_for(server, "it has not answered in time"))??;
    Ok(Follower { connection, inbox })
  }

  /// Follows a server for as long as it is not ended. Without a follower to begin with, and whenever the
  /// connection was lost, changes may have been missed.
  async fn keep_following(self: Arc<Self>, server: Address, follower: Option<Follower>) {
    if let Some(follower) = follower {
      self.tell_from(&follower).await;
    }
    let mut attempt = 0;
    loop {
      if let Ok(follower) = self.follow(&server).await {
        attempt = 0;
        self.watcher.on_change(&Change::Lost);
        self.tell_from(&follower).await;
      }
      sleep(backoff(attempt)).await;
      attempt += 1;
    }
  }

  /// Returns when the connection is lost.
  async fn tell_from(&self, follower: &Follower) {
    loop {
      let said = follower.inbox.take();
      if said.is_lost {
        return;
      }
      if said.are_all_changed {
        self.watcher.on_change(&Change::Lost);
      }
      for keys in said.keys.chunks(BATCH) {
        if self.tell(follower, keys).await.is_err() {
          return;
        }
      }
      let arrived = timeout(SILENCE, follower.inbox.arrived.notified()).await;
      if arrived.is_err() {
        let ping = cmd("PING");
        let asked = timeout(self.settings.timeout, follower.connection.send(&ping)).await;
        if !matches!(asked, Ok(Ok(_))) {
          return;
        }
      }
    }
  }

  /// Looks whether keys are there, and tells.
  async fn tell(&self, follower: &Follower, keys: &[String]) -> Result<()> {
    let keys: Vec<_> = keys
      .iter()
      .filter(|key| key.starts_with(&self.prefix))
      .collect();
    if keys.is_empty() {
      return Ok(());
    }
    let mut looks = Pipeline::with_capacity(keys.len());
    for key in &keys {
      looks.cmd("EXISTS").arg(key);
    }
    let looked = timeout(self.settings.timeout, follower.connection.send_all(&looks)).await;
    let late =
      |_| errors::unreachable_for(&follower.connection.server, "it has not answered in time");
    let found = looked.map_err(late)??;
    let servers = self.servers.upgrade();
    for (key, found) in keys.into_iter().zip(found) {
      // Who reads the key now must not get what it was: the other connection may be behind this one.
      if let Some(servers) = &servers {
        servers.forget(key);
      }
      let key = key.clone();
      self.watcher.on_change(&match found {
        Value::Int(0) => Change::Deleted { key },
        Value::Int(_) => Change::Set { key, value: None },
        // It has just moved to another server, say.
        _ => Change::Lost,
      });
    }
    Ok(())
  }
}
