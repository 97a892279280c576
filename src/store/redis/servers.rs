//! The servers of a store: one, or those of a cluster, and which of them has which key.
//!
//! The routing is our own, and not that of the library's cluster client, since the cache and its
//! correctness hang on single connections: each must have been told to track before it reads, is to drop
//! its cache when it is lost, and has a heartbeat. Inside the library's client connections come and go
//! without a sign.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use redis::{Value, cmd};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::connection::{Connection, text};
use super::errors;
use super::node::{Node, RedisReply, Request};
use super::settings::{Address, Settings};
use crate::store::Bytes;
use crate::{Code, Error, Result};

/// Into how many slots a cluster divides its keys.
const SLOTS: u16 = 16_384;

/// How often a cluster is asked for its servers where nothing happens.
const REFRESH_INTERVAL: Duration = Duration::from_secs(5);

/// How often while one of them is missing.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// How long there is between two looks, whatever happens.
const PAUSE: Duration = Duration::from_millis(50);

/// How often a request is sent on to another server.
const MAX_REDIRECTS: usize = 8;

/// How long to wait where keys of a request are just moving.
const MOVING: Duration = Duration::from_millis(10);

/// The slot of a key: of what is between the first { and the next }, if there is something.
fn slot(key: &str) -> u16 {
  let tag = key
    .split_once('{')
    .and_then(|(_, rest)| rest.split_once('}'))
    .map(|(tag, _)| tag)
    .filter(|tag| !tag.is_empty());
  crc16::State::<crc16::XMODEM>::calculate(tag.unwrap_or(key).as_bytes()) % SLOTS
}

/// Which server has which key.
struct Map {
  /// In the order of their addresses.
  nodes: Vec<Arc<Node>>,
  /// The place of the node of each slot; nothing where there is one node for all keys.
  slots: Vec<Option<u16>>,
}

impl Map {
  fn node(&self, key: &str) -> Option<&Arc<Node>> {
    match self.slots.is_empty() {
      true => self.nodes.first(),
      false => {
        let index = self.slots.get(usize::from(slot(key)))?.as_ref()?;
        self.nodes.get(usize::from(*index))
      }
    }
  }
}

/// Servers to which others have sent us and which are not in the map, or not yet.
#[derive(Default)]
struct Others {
  nodes: HashMap<Address, Arc<Node>>,
  is_stopped: bool,
}

/// The servers.
pub struct Servers {
  pub settings: Arc<Settings>,
  map: ArcSwap<Map>,
  /// Locked while the map is changed too, so that nothing begins when all has been stopped.
  others: Mutex<Others>,
  primaries: watch::Sender<Vec<Address>>,
  trouble: Arc<Notify>,
  /// Whom to ask first, so that it is not always the same.
  turn: AtomicUsize,
  keeper: OnceLock<AbortHandle>,
}

impl Servers {
  /// Connects to them.
  pub async fn open(settings: Settings) -> Result<Arc<Self>> {
    let settings = Arc::new(settings);
    let trouble = Arc::new(Notify::new());
    let map = Map {
      nodes: Vec::new(),
      slots: Vec::new(),
    };
    let servers = Arc::new(Self {
      map: ArcSwap::from_pointee(map),
      others: Mutex::default(),
      primaries: watch::Sender::default(),
      trouble,
      turn: AtomicUsize::new(0),
      keeper: OnceLock::new(),
      settings,
    });
    let opened = servers.connect().await;
    if opened.is_err() {
      servers.stop();
    }
    opened.map(|()| servers)
  }

  async fn connect(self: &Arc<Self>) -> Result<()> {
    if !self.settings.is_cluster {
      let servers = self.settings.servers.iter();
      let nodes: Vec<_> = servers.map(|server| self.other(server)).collect();
      let tried = join_all(nodes.iter().map(|node| node.tried())).await;
      self.publish(nodes, Vec::new());
      return self.unless_required(tried.into_iter().collect());
    }
    self.unless_required(self.connect_to_cluster().await)?;
    let this = Arc::clone(self);
    let keeper = tokio::spawn(async move { this.keep().await });
    self.keeper.get_or_init(|| keeper.abort_handle());
    Ok(())
  }

  async fn connect_to_cluster(self: &Arc<Self>) -> Result<()> {
    self.refresh_topology().await?;
    let map = self.map.load_full();
    let tried = join_all(map.nodes.iter().map(|node| node.tried())).await;
    tried.into_iter().collect()
  }

  /// Lets it pass that servers cannot be reached, if they need not be there yet.
  fn unless_required(&self, connected: Result<()>) -> Result<()> {
    match connected {
      Err(error) if error.code == Code::StoreUnavailable && !self.settings.is_required => Ok(()),
      connected => connected,
    }
  }

  fn others(&self) -> MutexGuard<'_, Others> {
    self.others.lock().unwrap_or_else(PoisonError::into_inner)
  }

  /// A server that is not in the map.
  fn other(&self, server: &Address) -> Arc<Node> {
    let mut others = self.others();
    let is_stopped = others.is_stopped;
    let node = others
      .nodes
      .entry(server.clone())
      .or_insert_with(|| Node::start(&self.settings, server.clone(), &self.trouble));
    if is_stopped {
      node.stop(closed());
    }
    Arc::clone(node)
  }

  /// Goes by another map.
  fn publish(&self, nodes: Vec<Arc<Node>>, slots: Vec<Option<u16>>) {
    let mut others = self.others();
    if others.is_stopped {
      return;
    }
    others.nodes.retain(|server, other| {
      let is_in_map = nodes.iter().any(|node| node.server == *server);
      if !is_in_map && other.connect_failed() {
        other.stop(errors::unreachable_for(
          server,
          "it is no server of the cluster any more",
        ));
        return false;
      }
      !is_in_map
    });
    self.publish_locked(nodes, slots);
  }

  fn publish_locked(&self, nodes: Vec<Arc<Node>>, slots: Vec<Option<u16>>) {
    let primaries: Vec<_> = nodes.iter().map(|node| node.server.clone()).collect();
    self.map.store(Arc::new(Map { nodes, slots }));
    self.primaries.send_if_modified(|before| {
      let has_changed = *before != primaries;
      *before = primaries;
      has_changed
    });
  }

  /// The servers that keys are read from and written to, as they are and as they change. None when all is
  /// over.
  pub fn primaries(&self) -> watch::Receiver<Vec<Address>> {
    self.primaries.subscribe()
  }

  /// The same, as of now, in a fixed order.
  pub fn nodes(&self) -> Vec<Arc<Node>> {
    self.map.load().nodes.clone()
  }

  /// The server that has a key, for messages.
  pub fn server_of(&self, key: &str) -> String {
    let map = self.map.load();
    map
      .node(key)
      .map(|node| node.server.to_string())
      .unwrap_or_default()
  }

  /// The value of a key, if it is known.
  pub fn get_now(&self, key: &str) -> Option<Option<Bytes>> {
    self.map.load().node(key)?.get_now(key)
  }

  /// A key may have changed.
  pub fn forget(&self, key: &str) {
    if let Some(node) = self.map.load().node(key) {
      node.forget(key);
    }
  }

  /// Ends all connections. What is under way is answered.
  pub fn stop(&self) {
    if let Some(keeper) = self.keeper.get() {
      keeper.abort();
    }
    let mut others = self.others();
    others.is_stopped = true;
    let others = std::mem::take(&mut others.nodes);
    for node in self.map.load().nodes.iter().chain(others.values()) {
      node.stop(closed());
    }
    self.publish_locked(Vec::new(), Vec::new());
  }

  /// Sends requests to the servers that have their keys, and returns the answers.
  pub async fn run(&self, requests: &[Request<'_>]) -> Result<Vec<RedisReply>> {
    let running = timeout(self.settings.timeout, self.route(requests)).await;
    running.unwrap_or_else(|_| {
      let limit = self.settings.timeout.as_millis();
      let message = format!(
        "Redis has not answered within {limit} ms (timeoutMs); what was asked may have been done"
      );
      Err(Error::new(Code::StoreUnavailable, message))
    })
  }

  async fn route(&self, requests: &[Request<'_>]) -> Result<Vec<RedisReply>> {
    let mut answers: Vec<Option<RedisReply>> = requests.iter().map(|_| None).collect();
    let mut todo = Vec::with_capacity(requests.len());
    let map = self.map.load_full();
    for (index, request) in requests.iter().enumerate() {
      let node = map.node(request.key).ok_or_else(|| self.nobody_has())?;
      todo.push((index, Arc::clone(node), false));
    }
    drop(map);
    for _ in 0..=MAX_REDIRECTS {
      let groups = grouped(std::mem::take(&mut todo));
      let exchanges = groups.iter().map(async |(node, is_asking, indices)| {
        let requests: Vec<_> = indices.iter().map(|index| &requests[*index]).collect();
        node.session()?.exchange(&requests, *is_asking).await
      });
      let exchanged = join_all(exchanges).await;
      let mut is_moving = false;
      for ((node, is_asking, indices), exchanged) in groups.into_iter().zip(exchanged) {
        for (index, answer) in indices.into_iter().zip(exchanged?) {
          match self.redirected(&node, &answer) {
            None => answers[index] = Some(answer),
            Some(Redirect::Wait) => {
              is_moving = true;
              todo.push((index, Arc::clone(&node), is_asking));
            }
            Some(Redirect::To(server, is_asking)) => {
              node.forget(requests[index].key);
              todo.push((index, self.node_at(&server).await?, is_asking));
            }
          }
        }
      }
      if todo.is_empty() {
        return answers
          .into_iter()
          .map(|answer| answer.ok_or_else(|| self.nobody_has()))
          .collect();
      }
      if is_moving {
        sleep(MOVING).await;
      }
    }
    Err(self.nobody_has())
  }

  /// There is no server that can be asked.
  fn nobody_has(&self) -> Error {
    match self.others().is_stopped {
      true => closed(),
      false => Error::new(
        Code::StoreUnavailable,
        "no server of the Redis cluster has the key now; the cluster is being changed, or is not whole",
      ),
    }
  }

  /// Whether the cluster wants the request to go elsewhere.
  fn redirected(&self, node: &Node, answer: &RedisReply) -> Option<Redirect> {
    let RedisReply::Other(Value::ServerError(error)) = answer else {
      return None;
    };
    if !self.settings.is_cluster {
      return None;
    }
    let is_asking = match error.code() {
      "MOVED" => false,
      "ASK" => true,
      "TRYAGAIN" => return Some(Redirect::Wait),
      _ => return None,
    };
    let (_, server) = error.details()?.split_once(' ')?;
    let (host, port) = server.rsplit_once(':')?;
    if !is_asking {
      self.trouble.notify_one();
    }
    // It leaves out the host where that is its own.
    let host = if host.is_empty() {
      &node.server.host
    } else {
      host
    };
    let server = Address {
      host: host.to_owned(),
      port: port.parse().ok()?,
    };
    Some(Redirect::To(server, is_asking))
  }

  /// The node of a server, in the map or not.
  async fn node_at(&self, server: &Address) -> Result<Arc<Node>> {
    let map = self.map.load_full();
    if let Some(node) = map.nodes.iter().find(|node| node.server == *server) {
      return Ok(Arc::clone(node));
    }
    let node = self.other(server);
    node.tried().await?;
    Ok(node)
  }

  /// Looks after the cluster.
  async fn keep(&self) {
    loop {
      let is_whole = self.map.load().nodes.iter().all(|node| node.is_connected());
      let pause = if is_whole {
        REFRESH_INTERVAL
      } else {
        RETRY_INTERVAL
      };
      // That it is over, or that there is trouble, is the same here.
      drop(timeout(pause, self.trouble.notified()).await);
      // Who cannot be asked now is asked soon.
      drop(self.refresh_topology().await);
      sleep(PAUSE).await;
    }
  }

  /// Asks which server has which slots, and uses that from now on.
  async fn refresh_topology(&self) -> Result<()> {
    let ranges = self.ranges().await?;
    let map = self.map.load_full();
    let mut nodes = BTreeMap::new();
    for (_, _, server) in &ranges {
      nodes.entry(server.clone()).or_insert_with(|| {
        let node = map.nodes.iter().find(|node| node.server == *server);
        node.cloned().unwrap_or_else(|| self.other(server))
      });
    }
    // Who is new is published when it can be used.
    drop(join_all(nodes.values().map(|node| node.tried())).await);
    let mut slots = vec![None; SLOTS.into()];
    let indices: HashMap<_, _> = nodes.keys().zip(0_u16..).collect();
    for (first, last, server) in &ranges {
      if let Some(slots) = slots.get_mut(usize::from(*first)..=usize::from(*last)) {
        slots.fill(indices.get(server).copied());
      }
    }
    let nodes: Vec<_> = nodes.into_values().collect();
    let has = |nodes: &[Arc<Node>], node| nodes.iter().any(|other| Arc::ptr_eq(other, node));
    let gone: Vec<_> = map
      .nodes
      .iter()
      .filter(|node| !has(&nodes, node))
      .cloned()
      .collect();
    if map.slots != slots || !nodes.iter().all(|node| has(&map.nodes, node)) {
      set_probes(&nodes, &slots);
    }
    self.publish(nodes, slots);
    for node in gone {
      let why = "it is no primary of the cluster any more";
      node.stop(errors::unreachable_for(&node.server, why));
    }
    Ok(())
  }

  async fn ranges(&self) -> Result<Vec<(u16, u16, Address)>> {
    let nodes = self.nodes();
    let turn = self.turn.fetch_add(1, Ordering::Relaxed);
    for index in 0..nodes.len() {
      let node = &nodes[(turn + index) % nodes.len()];
      if let Ok(session) = node.session()
        && let Ok(ranges) = self.ranges_from(&session.connection).await
      {
        return Ok(ranges);
      }
    }
    let mut result = Err(self.nobody_has());
    for server in &self.settings.servers {
      result = match Connection::open(&self.settings, server, |_| {}).await {
        Ok(connection) => self.ranges_from(&connection).await,
        Err(error) => Err(error),
      };
      if result.is_ok() {
        break;
      }
    }
    result
  }

  async fn ranges_from(&self, connection: &Connection) -> Result<Vec<(u16, u16, Address)>> {
    let question = cmd("CLUSTER").arg("SLOTS").take();
    let asked = timeout(self.settings.timeout, connection.send_checked(&question)).await;
    let late = || errors::unreachable_for(&connection.server, "it has not answered in time");
    let Value::Array(ranges) = asked.map_err(|_| late())?? else {
      return Err(connection.unexpected_reply());
    };
    let ranges = ranges
      .into_iter()
      .map(|range| range_of(range, &connection.server.host));
    ranges
      .collect::<Option<_>>()
      .ok_or_else(|| connection.unexpected_reply())
  }
}

enum Redirect {
  /// To that server, and whether the key is only on its way there.
  To(Address, bool),
  Wait,
}

fn closed() -> Error {
  Error::new(Code::Closed, "the store is closed")
}

type Group = (Arc<Node>, bool, Vec<usize>);

/// The requests for each server, in their order.
fn grouped(todo: Vec<(usize, Arc<Node>, bool)>) -> Vec<Group> {
  let mut groups: Vec<Group> = Vec::new();
  for (index, node, is_asking) in todo {
    let same = groups
      .iter_mut()
      .find(|(other, other_asking, _)| Arc::ptr_eq(other, &node) && *other_asking == is_asking);
    match same {
      Some((_, _, indices)) => indices.push(index),
      None => groups.push((node, is_asking, vec![index])),
    }
  }
  groups
}

/// A line of `CLUSTER SLOTS`: the first slot, the last, the primary, its replicas. `host` is who says so.
fn range_of(range: Value, host: &str) -> Option<(u16, u16, Address)> {
  let Value::Array(range) = range else {
    return None;
  };
  let mut parts = range.into_iter();
  let (first, last) = (number(&parts.next()?)?, number(&parts.next()?)?);
  let Value::Array(primary) = parts.next()? else {
    return None;
  };
  let mut primary = primary.into_iter();
  let named = primary.next().and_then(text);
  // It leaves out the host where that is its own, and says ? where it has no name.
  let host = named
    .filter(|named| !named.is_empty() && named != "?")
    .unwrap_or_else(|| host.to_owned());
  let port = number(&primary.next()?)?;
  (first <= last && last < SLOTS).then_some((first, last, Address { host, port }))
}

fn number(value: &Value) -> Option<u16> {
  match value {
    Value::Int(number) => u16::try_from(*number).ok(),
    _ => None,
  }
}

/// Finds a key for each node that it should have.
fn set_probes(nodes: &[Arc<Node>], slots: &[Option<u16>]) {
  // Of so many keys each slot has some.
  const TRIED: u32 = 300_000;
  let mut probes = vec![None; nodes.len()];
  for number in 0..TRIED {
    if probes.iter().all(Option::is_some) {
      break;
    }
    let key = format!("extism-host:{number}");
    let index = slots.get(usize::from(slot(&key))).copied().flatten();
    if let Some(probe) = index.and_then(|index| probes.get_mut(usize::from(index)))
      && probe.is_none()
    {
      *probe = Some(key);
    }
  }
  for (node, probe) in nodes.iter().zip(probes) {
    node.set_probe(probe);
  }
}

#[cfg(test)]
mod tests {
  use super::*;

  #[test]
  fn the_slot_of_a_key_is_that_of_what_stands_in_braces() {
    // As CLUSTER KEYSLOT says.
    assert_eq!(slot("123456789"), 12_739);
    assert_eq!(slot("foo"), 12_182);
    assert_eq!(slot("{foo}.bar"), slot("foo"));
    assert_eq!(slot("a{foo}b{bar}"), slot("foo"));
    assert_eq!(
      slot("{}foo"),
      crc16::State::<crc16::XMODEM>::calculate(b"{}foo") % SLOTS
    );
    assert_eq!(
      slot("foo{"),
      crc16::State::<crc16::XMODEM>::calculate(b"foo{") % SLOTS
    );
  }
}
