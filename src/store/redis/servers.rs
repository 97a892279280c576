//! The servers of a store: a single one, or a cluster's, and the routing of keys to them.
//!
//! We route requests ourselves rather than with the library's cluster client, because the cache depends on
//! individual connections: each must start tracking before its first read, drop its cache when it is lost,
//! and send heartbeats. The library's client opens and closes connections without notice.

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
use super::settings::{RedisSettings, ServerAddress};
use crate::store::Bytes;
use crate::{Code, Error, Result};

/// The number of hash slots of a cluster.
const SLOTS: u16 = 16_384;

/// How often to refresh the topology of a healthy cluster.
const REFRESH_INTERVAL: Duration = Duration::from_secs(5);

/// How often to refresh it while a server is unreachable.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// The shortest interval between two refreshes.
const MIN_REFRESH_INTERVAL: Duration = Duration::from_millis(50);

/// How many redirects a request may follow.
const MAX_REDIRECTS: usize = 8;

/// How long to wait before retrying while keys of a request migrate.
const MIGRATION_RETRY: Duration = Duration::from_millis(10);

/// The hash slot of a key, computed from its hash tag: the text between the first { and the next }, unless it
/// is empty.
fn slot(key: &str) -> u16 {
  let tag = key
    .split_once('{')
    .and_then(|(_, rest)| rest.split_once('}'))
    .map(|(tag, _)| tag)
    .filter(|tag| !tag.is_empty());
  crc16::State::<crc16::XMODEM>::calculate(tag.unwrap_or(key).as_bytes()) % SLOTS
}

/// Maps keys to servers.
struct SlotMap {
  /// Sorted by address.
  nodes: Vec<Arc<Node>>,
  /// For each slot, the index of its node. Empty if there is a single server.
  slots: Vec<Option<u16>>,
}

impl SlotMap {
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

/// Nodes that are not in the map, or not yet: targets of redirects.
#[derive(Default)]
struct UnmappedNodes {
  nodes: HashMap<ServerAddress, Arc<Node>>,
  is_stopped: bool,
}

/// The servers of a store.
pub struct Servers {
  pub settings: Arc<RedisSettings>,
  map: ArcSwap<SlotMap>,
  /// Also locked while the map is replaced, so that no node starts after `stop`.
  unmapped: Mutex<UnmappedNodes>,
  primaries: watch::Sender<Vec<ServerAddress>>,
  topology_hint: Arc<Notify>,
  /// Round-robin counter: which server to ask first for the topology.
  next_server: AtomicUsize,
  refresh_task: OnceLock<AbortHandle>,
}

impl Servers {
  /// Connects to the servers.
  pub async fn open(settings: RedisSettings) -> Result<Arc<Self>> {
    let settings = Arc::new(settings);
    let topology_hint = Arc::new(Notify::new());
    let map = SlotMap {
      nodes: Vec::new(),
      slots: Vec::new(),
    };
    let servers = Arc::new(Self {
      map: ArcSwap::from_pointee(map),
      unmapped: Mutex::default(),
      primaries: watch::Sender::default(),
      topology_hint,
      next_server: AtomicUsize::new(0),
      refresh_task: OnceLock::new(),
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
      let nodes: Vec<_> = servers.map(|server| self.unmapped_node(server)).collect();
      let attempts = join_all(nodes.iter().map(|node| node.wait_for_first_attempt())).await;
      self.publish(nodes, Vec::new());
      return self.unless_required(attempts.into_iter().collect());
    }
    self.unless_required(self.connect_to_cluster().await)?;
    let this = Arc::clone(self);
    let refresh_task = tokio::spawn(async move { this.keep_topology_fresh().await });
    self
      .refresh_task
      .get_or_init(|| refresh_task.abort_handle());
    Ok(())
  }

  async fn connect_to_cluster(self: &Arc<Self>) -> Result<()> {
    self.refresh_topology().await?;
    let map = self.map.load_full();
    let attempts = join_all(map.nodes.iter().map(|node| node.wait_for_first_attempt())).await;
    attempts.into_iter().collect()
  }

  /// Ignores unreachable servers if they are not required.
  fn unless_required(&self, connected: Result<()>) -> Result<()> {
    match connected {
      Err(error) if error.code == Code::StoreUnavailable && !self.settings.is_required => Ok(()),
      connected => connected,
    }
  }

  fn unmapped(&self) -> MutexGuard<'_, UnmappedNodes> {
    self.unmapped.lock().unwrap_or_else(PoisonError::into_inner)
  }

  /// Gets or starts the node of a server that is not in the map.
  fn unmapped_node(&self, server: &ServerAddress) -> Arc<Node> {
    let mut unmapped = self.unmapped();
    let is_stopped = unmapped.is_stopped;
    let node = unmapped
      .nodes
      .entry(server.clone())
      .or_insert_with(|| Node::start(&self.settings, server.clone(), &self.topology_hint));
    if is_stopped {
      node.stop(closed());
    }
    Arc::clone(node)
  }

  /// Replaces the map.
  fn publish(&self, nodes: Vec<Arc<Node>>, slots: Vec<Option<u16>>) {
    let mut unmapped = self.unmapped();
    if unmapped.is_stopped {
      return;
    }
    unmapped.nodes.retain(|server, node| {
      let is_in_map = nodes.iter().any(|node| node.server == *server);
      if !is_in_map && node.connect_failed() {
        node.stop(errors::unreachable(
          server,
          "it is no longer part of the cluster",
        ));
        return false;
      }
      !is_in_map
    });
    self.publish_locked(nodes, slots);
  }

  fn publish_locked(&self, nodes: Vec<Arc<Node>>, slots: Vec<Option<u16>>) {
    let primaries: Vec<_> = nodes.iter().map(|node| node.server.clone()).collect();
    self.map.store(Arc::new(SlotMap { nodes, slots }));
    self.primaries.send_if_modified(|before| {
      let has_changed = *before != primaries;
      *before = primaries;
      has_changed
    });
  }

  /// The addresses of the primaries, and their changes. Empty once the store is closed.
  pub fn primaries(&self) -> watch::Receiver<Vec<ServerAddress>> {
    self.primaries.subscribe()
  }

  /// The current primaries, in a fixed order.
  pub fn nodes(&self) -> Vec<Arc<Node>> {
    self.map.load().nodes.clone()
  }

  /// The address of the server that owns a key, for messages.
  pub fn server_of(&self, key: &str) -> String {
    let map = self.map.load();
    map
      .node(key)
      .map(|node| node.server.to_string())
      .unwrap_or_default()
  }

  /// The value of a key, if it is cached.
  pub fn get_now(&self, key: &str) -> Option<Option<Bytes>> {
    self.map.load().node(key)?.get_now(key)
  }

  /// Invalidates a key in its server's cache.
  pub fn invalidate(&self, key: &str) {
    if let Some(node) = self.map.load().node(key) {
      node.invalidate(key);
    }
  }

  /// Closes all connections. Requests in flight complete.
  pub fn stop(&self) {
    if let Some(refresh_task) = self.refresh_task.get() {
      refresh_task.abort();
    }
    let mut unmapped = self.unmapped();
    unmapped.is_stopped = true;
    let unmapped = std::mem::take(&mut unmapped.nodes);
    for node in self.map.load().nodes.iter().chain(unmapped.values()) {
      node.stop(closed());
    }
    self.publish_locked(Vec::new(), Vec::new());
  }

  /// Sends requests to the servers that own their keys, and returns the replies.
  pub async fn run(&self, requests: &[Request<'_>]) -> Result<Vec<RedisReply>> {
    let running = timeout(self.settings.timeout, self.route(requests)).await;
    running.unwrap_or_else(|_| {
      let limit = self.settings.timeout.as_millis();
      let message = format!(
        "Redis did not answer within {limit} ms (timeoutMs); the operation may have been performed"
      );
      Err(Error::new(Code::StoreUnavailable, message))
    })
  }

  async fn route(&self, requests: &[Request<'_>]) -> Result<Vec<RedisReply>> {
    let mut replies: Vec<Option<RedisReply>> = requests.iter().map(|_| None).collect();
    let mut pending = Vec::with_capacity(requests.len());
    let map = self.map.load_full();
    for (index, request) in requests.iter().enumerate() {
      let node = map
        .node(request.key)
        .ok_or_else(|| self.no_server_error())?;
      pending.push((index, Arc::clone(node), false));
    }
    drop(map);
    for _ in 0..=MAX_REDIRECTS {
      let groups = group_by_node(std::mem::take(&mut pending));
      let exchanges = groups.iter().map(async |(node, is_asking, indices)| {
        let requests: Vec<_> = indices.iter().map(|index| &requests[*index]).collect();
        node.session()?.exchange(&requests, *is_asking).await
      });
      let exchanged = join_all(exchanges).await;
      let mut is_migrating = false;
      for ((node, is_asking, indices), exchanged) in groups.into_iter().zip(exchanged) {
        for (index, reply) in indices.into_iter().zip(exchanged?) {
          match self.redirect(&node, &reply) {
            None => replies[index] = Some(reply),
            Some(Redirect::Wait) => {
              is_migrating = true;
              pending.push((index, Arc::clone(&node), is_asking));
            }
            Some(Redirect::To(server, is_asking)) => {
              node.invalidate(requests[index].key);
              pending.push((index, self.node_at(&server).await?, is_asking));
            }
          }
        }
      }
      if pending.is_empty() {
        return replies
          .into_iter()
          .map(|reply| reply.ok_or_else(|| self.no_server_error()))
          .collect();
      }
      if is_migrating {
        sleep(MIGRATION_RETRY).await;
      }
    }
    Err(self.no_server_error())
  }

  fn no_server_error(&self) -> Error {
    match self.unmapped().is_stopped {
      true => closed(),
      false => Error::new(
        Code::StoreUnavailable,
        "no server of the Redis cluster holds the key now: the cluster is being reconfigured, or is incomplete; try again",
      ),
    }
  }

  /// Whether the reply redirects the request.
  fn redirect(&self, node: &Node, reply: &RedisReply) -> Option<Redirect> {
    let RedisReply::Other(Value::ServerError(error)) = reply else {
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
      self.topology_hint.notify_one();
    }
    // A server leaves out the host if it is its own.
    let host = if host.is_empty() {
      &node.server.host
    } else {
      host
    };
    let server = ServerAddress {
      host: host.to_owned(),
      port: port.parse().ok()?,
    };
    Some(Redirect::To(server, is_asking))
  }

  /// The node of a server, whether or not it is in the map.
  async fn node_at(&self, server: &ServerAddress) -> Result<Arc<Node>> {
    let map = self.map.load_full();
    if let Some(node) = map.nodes.iter().find(|node| node.server == *server) {
      return Ok(Arc::clone(node));
    }
    let node = self.unmapped_node(server);
    node.wait_for_first_attempt().await?;
    Ok(node)
  }

  /// Refreshes the topology periodically and on hints.
  async fn keep_topology_fresh(&self) {
    loop {
      let is_healthy = self.map.load().nodes.iter().all(|node| node.is_connected());
      let pause = if is_healthy {
        REFRESH_INTERVAL
      } else {
        RETRY_INTERVAL
      };
      // A timeout and a hint are equivalent here.
      drop(timeout(pause, self.topology_hint.notified()).await);
      // A failed refresh is retried soon.
      drop(self.refresh_topology().await);
      sleep(MIN_REFRESH_INTERVAL).await;
    }
  }

  /// Asks the cluster which server owns which slots, and replaces the map.
  async fn refresh_topology(&self) -> Result<()> {
    let slot_ranges = self.slot_ranges().await?;
    let map = self.map.load_full();
    let mut nodes = BTreeMap::new();
    for (_, _, server) in &slot_ranges {
      nodes.entry(server.clone()).or_insert_with(|| {
        let node = map.nodes.iter().find(|node| node.server == *server);
        node.cloned().unwrap_or_else(|| self.unmapped_node(server))
      });
    }
    // Wait until new nodes are usable, or have failed.
    drop(join_all(nodes.values().map(|node| node.wait_for_first_attempt())).await);
    let mut slots = vec![None; SLOTS.into()];
    let indices: HashMap<_, _> = nodes.keys().zip(0_u16..).collect();
    for (first, last, server) in &slot_ranges {
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
      let why = "it is no longer a primary of the cluster";
      node.stop(errors::unreachable(&node.server, why));
    }
    Ok(())
  }

  async fn slot_ranges(&self) -> Result<Vec<(u16, u16, ServerAddress)>> {
    let nodes = self.nodes();
    let next_server = self.next_server.fetch_add(1, Ordering::Relaxed);
    for index in 0..nodes.len() {
      let node = &nodes[(next_server + index) % nodes.len()];
      if let Ok(session) = node.session()
        && let Ok(slot_ranges) = self.slot_ranges_from(&session.connection).await
      {
        return Ok(slot_ranges);
      }
    }
    let mut result = Err(self.no_server_error());
    for server in &self.settings.servers {
      result = match Connection::open(&self.settings, server, |_| {}).await {
        Ok(connection) => self.slot_ranges_from(&connection).await,
        Err(error) => Err(error),
      };
      if result.is_ok() {
        break;
      }
    }
    result
  }

  async fn slot_ranges_from(
    &self,
    connection: &Connection,
  ) -> Result<Vec<(u16, u16, ServerAddress)>> {
    let command = cmd("CLUSTER").arg("SLOTS").take();
    let reply = timeout(self.settings.timeout, connection.send_checked(&command)).await;
    let timed_out = || errors::unreachable(&connection.server, errors::TIMED_OUT);
    let Value::Array(slot_ranges) = reply.map_err(|_| timed_out())?? else {
      return Err(connection.unexpected_reply());
    };
    let slot_ranges = slot_ranges
      .into_iter()
      .map(|range| parse_slot_range(range, &connection.server.host));
    slot_ranges
      .collect::<Option<_>>()
      .ok_or_else(|| connection.unexpected_reply())
  }
}

enum Redirect {
  /// To a server, and whether the key is still migrating to it.
  To(ServerAddress, bool),
  Wait,
}

fn closed() -> Error {
  Error::new(Code::Closed, "the store is closed")
}

type RequestGroup = (Arc<Node>, bool, Vec<usize>);

/// Groups requests by server, preserving their order.
fn group_by_node(pending: Vec<(usize, Arc<Node>, bool)>) -> Vec<RequestGroup> {
  let mut groups: Vec<RequestGroup> = Vec::new();
  for (index, node, is_asking) in pending {
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

/// Parses a line of `CLUSTER SLOTS`: the first slot, the last, the primary, its replicas. `host` is the
/// server that sent it.
fn parse_slot_range(range: Value, host: &str) -> Option<(u16, u16, ServerAddress)> {
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
  // A server leaves out the host if it is its own, and sends ? if it has no name.
  let host = named
    .filter(|named| !named.is_empty() && named != "?")
    .unwrap_or_else(|| host.to_owned());
  let port = number(&primary.next()?)?;
  (first <= last && last < SLOTS).then_some((first, last, ServerAddress { host, port }))
}

fn number(value: &Value) -> Option<u16> {
  match value {
    Value::Int(number) => u16::try_from(*number).ok(),
    _ => None,
  }
}

/// Sets, for each node, a probe key that it owns according to the map.
fn set_probes(nodes: &[Arc<Node>], slots: &[Option<u16>]) {
  // Enough keys to hit every slot.
  const MAX_PROBES: u32 = 300_000;
  let mut probes = vec![None; nodes.len()];
  for number in 0..MAX_PROBES {
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
  fn the_slot_of_a_key_is_that_of_its_hash_tag() {
    // The results of CLUSTER KEYSLOT.
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
