//! A plugin's messages, on their way to its logger in JavaScript.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use super::boundary::{Event, Finished};
use crate::host::log::{Level, Logger};

/// Bytes of messages of one plugin that may be on their way. Guests can write faster than the event
/// loop reads: what exceeds this is dropped, and counted.
const MAX_UNREAD: usize = 4 << 20;

/// What a message costs beside its text.
const MESSAGE: usize = 128;

/// Passes a plugin's messages to JavaScript.
pub struct ToJavaScript {
  table: u32,
  finished: Arc<Finished>,
  /// The least level that is wanted; more than any for silence.
  level: u32,
  unread: Arc<AtomicUsize>,
  dropped: AtomicU32,
}

impl ToJavaScript {
  /// `table` is what JavaScript knows the plugin by.
  pub fn new(table: u32, level: Option<u32>, finished: Arc<Finished>) -> Self {
    Self {
      table,
      finished,
      level: level.unwrap_or(u32::MAX),
      unread: Arc::default(),
      dropped: AtomicU32::new(0),
    }
  }

  fn push(&self, call: Option<u64>, level: Level, text: &str) {
    let cost = text.len() + MESSAGE;
    self.unread.fetch_add(cost, Ordering::Relaxed);
    let mut bytes = Vec::with_capacity(text.len() + 2 * size_of::<u32>());
    for number in [self.table, level as u32] {
      bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.extend_from_slice(text.as_bytes());
    self.finished.push(Event::Log(Message {
      call,
      bytes,
      cost,
      unread: Arc::clone(&self.unread),
    }));
  }
}

impl Logger for ToJavaScript {
  fn level(&self) -> Option<Level> {
    const LEVELS: [Level; 5] = [
      Level::Trace,
      Level::Debug,
      Level::Info,
      Level::Warn,
      Level::Error,
    ];
    LEVELS.get(self.level as usize).copied()
  }

  fn log(&self, call: Option<u64>, level: Level, message: &str) {
    let unread = self.unread.load(Ordering::Relaxed);
    if unread.saturating_add(message.len()) > MAX_UNREAD {
      self.dropped.fetch_add(1, Ordering::Relaxed);
      return;
    }
    let dropped = self.dropped.swap(0, Ordering::Relaxed);
    if dropped > 0 {
      let text = format!("{dropped} messages of the plugin were dropped: they came too fast");
      self.push(call, Level::Warn, &text);
    }
    self.push(call, level, message);
  }
}

/// A message that JavaScript has not read yet.
pub struct Message {
  /// The plugin's call that it is part of.
  pub call: Option<u64>,
  bytes: Vec<u8>,
  cost: usize,
  unread: Arc<AtomicUsize>,
}

impl Message {
  /// What JavaScript reads.
  pub fn take(mut self) -> Vec<u8> {
    std::mem::take(&mut self.bytes)
  }
}

impl Drop for Message {
  fn drop(&mut self) {
    self.unread.fetch_sub(self.cost, Ordering::Relaxed);
  }
}
