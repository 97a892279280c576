//! Watches for changes by any client. A connection to each server receives the changed keys with the prefix
//! (`CLIENT TRACKING` with `BCAST`).
//!
//! Keyspace notifications would also tell what happened to a key, but the server must be configured for them,
//! and they make every write slower.

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
use super::settings::{RedisSettings, ServerAddress};
use crate::store::{Change, WatchGuard, Watcher};
use crate::{Code, Error, Result};

/// How long a server may be silent before it is pinged.
const SILENCE: Duration = Duration::from_secs(1);

/// How many changed keys may be queued; if there are more, the watcher gets [`Change::Lost`].
const MAX_KEYS: usize = 100_000;

/// How many keys one pipeline looks up.
const BATCH: usize = 1_000;

/// Starts watching.
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
  // Fail fast if a server is known to be unreachable.
  for node in servers.nodes() {
    node.session()?;
  }
  let mut primaries = servers.primaries();
  let first = primaries.borrow_and_update().clone();
  let opened = join_all(first.iter().map(|server| shared.subscribe(server))).await;
  let mut subscriptions = HashMap::new();
  for (server, opened) in first.into_iter().zip(opened) {
    let subscription = Arc::clone(&shared).stay_subscribed(server.clone(), Some(opened?));
    subscriptions.insert(server, AbortOnDrop::start(subscription));
  }
  let supervisor = tokio::spawn(async move {
    while primaries.changed().await.is_ok() {
      let now = primaries.borrow_and_update().clone();
      subscriptions.retain(|server, _| now.contains(server));
      for server in now {
        subscriptions.entry(server).or_insert_with_key(|server| {
          AbortOnDrop::start(Arc::clone(&shared).stay_subscribed(server.clone(), None))
        });
      }
    }
  });
  Ok(WatchGuard::new(move || supervisor.abort()))
}

/// A task that is aborted when this is dropped.
struct AbortOnDrop(AbortHandle);

impl AbortOnDrop {
  fn start(work: impl Future<Output = ()> + Send + 'static) -> Self {
    Self(tokio::spawn(work).abort_handle())
  }
}

impl Drop for AbortOnDrop {
  fn drop(&mut self) {
    self.0.abort();
  }
}

/// Events from a server that are not processed yet.
#[derive(Default)]
struct QueuedEvents {
  /// Distinct keys, in order of arrival.
  keys: Vec<String>,
  known_keys: HashSet<String>,
  are_all_changed: bool,
  is_lost: bool,
}

#[derive(Default)]
struct EventInbox {
  events: Mutex<QueuedEvents>,
  arrived: Notify,
}

impl EventInbox {
  fn put(&self, event: PushEvent) {
    let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
    match event {
      PushEvent::KeysChanged(keys) => {
        for key in keys {
          if events.known_keys.insert(key.clone()) {
            events.keys.push(key);
          }
        }
        if events.keys.len() > MAX_KEYS {
          *events = QueuedEvents {
            are_all_changed: true,
            ..QueuedEvents::default()
          };
        }
      }
      PushEvent::AllChanged => events.are_all_changed = true,
      PushEvent::Disconnected => events.is_lost = true,
    }
    drop(events);
    self.arrived.notify_one();
  }

  fn take(&self) -> QueuedEvents {
    std::mem::take(&mut *self.events.lock().unwrap_or_else(PoisonError::into_inner))
  }
}

struct Subscription {
  connection: Connection,
  inbox: Arc<EventInbox>,
}

impl Drop for Subscription {
  fn drop(&mut self) {
    self.connection.abort();
  }
}

struct WatchState {
  settings: Arc<RedisSettings>,
  servers: Weak<Servers>,
  prefix: String,
  watcher: Arc<dyn Watcher>,
}

impl WatchState {
  /// Subscribes to the changes on a server.
  async fn subscribe(&self, server: &ServerAddress) -> Result<Subscription> {
    let inbox = Arc::new(EventInbox::default());
    let pushed = Arc::clone(&inbox);
    let on_push = move |event| pushed.put(event);
    let connection = Connection::open(&self.settings, server, on_push).await?;
    if !connection.has_push {
      return Err(Error::new(
        Code::StoreUnavailable,
        format!(
          "the Redis server {server} cannot report changes; watching requires Redis 6 or later"
        ),
      ));
    }
    let mut track = cmd("CLIENT");
    track.arg("TRACKING").arg("ON").arg("BCAST");
    if !self.prefix.is_empty() {
      track.arg("PREFIX").arg(&self.prefix);
    }
    let tracked = timeout(self.settings.timeout, connection.send_checked(&track)).await;
    tracked.map_err(|_| errors::unreachable(server, errors::TIMED_OUT))??;
    Ok(Subscription { connection, inbox })
  }

  /// Stays subscribed to a server until aborted. Without an initial subscription, and whenever the connection
  /// was lost, changes may have been missed.
  async fn stay_subscribed(
    self: Arc<Self>,
    server: ServerAddress,
    subscription: Option<Subscription>,
  ) {
    if let Some(subscription) = subscription {
      self.process_events(&subscription).await;
    }
    let mut attempt = 0;
    loop {
      if let Ok(subscription) = self.subscribe(&server).await {
        attempt = 0;
        self.watcher.on_change(&Change::Lost);
        self.process_events(&subscription).await;
      }
      sleep(backoff(attempt)).await;
      attempt += 1;
    }
  }

  /// Processes events until the connection is lost.
  async fn process_events(&self, subscription: &Subscription) {
    loop {
      let events = subscription.inbox.take();
      if events.is_lost {
        return;
      }
      if events.are_all_changed {
        self.watcher.on_change(&Change::Lost);
      }
      for keys in events.keys.chunks(BATCH) {
        if self.notify(subscription, keys).await.is_err() {
          return;
        }
      }
      let arrived = timeout(SILENCE, subscription.inbox.arrived.notified()).await;
      if arrived.is_err() {
        let ping = cmd("PING");
        let asked = timeout(self.settings.timeout, subscription.connection.send(&ping)).await;
        if !matches!(asked, Ok(Ok(_))) {
          return;
        }
      }
    }
  }

  /// Looks up whether keys exist, and notifies the watcher.
  async fn notify(&self, subscription: &Subscription, keys: &[String]) -> Result<()> {
    let keys: Vec<_> = keys
      .iter()
      .filter(|key| key.starts_with(&self.prefix))
      .collect();
    if keys.is_empty() {
      return Ok(());
    }
    let mut lookups = Pipeline::with_capacity(keys.len());
    for key in &keys {
      lookups.cmd("EXISTS").arg(key);
    }
    let replies = timeout(
      self.settings.timeout,
      subscription.connection.send_all(&lookups),
    )
    .await;
    let timed_out = |_| errors::unreachable(&subscription.connection.server, errors::TIMED_OUT);
    let found = replies.map_err(timed_out)??;
    let servers = self.servers.upgrade();
    for (key, found) in keys.into_iter().zip(found) {
      // The cache's connection may lag behind this one; a reader must not see the old value after this
      // change.
      if let Some(servers) = &servers {
        servers.invalidate(key);
      }
      let key = key.clone();
      self.watcher.on_change(&match found {
        Value::Int(0) => Change::Deleted { key },
        Value::Int(_) => Change::Set { key, value: None },
        // For example, the key has just moved to another server.
        _ => Change::Lost,
      });
    }
    Ok(())
  }
}
