//! Delivers a plugin's log messages to its logger in JavaScript.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use napi_derive::napi;

use super::completion_queue::{CompletionQueue, Event, LogMessage, UnreadBytes};
use super::protocol::{LOG_LEVEL, LOG_PLUGIN, LOG_TEXT};
use crate::host::log::{Level, Logger};

/// How many bytes of one plugin's messages may be queued. Guests can write faster than the event loop reads;
/// messages beyond this limit are dropped and counted.
const MAX_UNREAD: usize = 4 << 20;

/// The memory that a message takes besides its text.
const MESSAGE_OVERHEAD: usize = 128;

/// The levels and the names of the logger's methods. The index of a level is its number.
const LEVELS: [(Level, &str); 5] = [
  (Level::Trace, "trace"),
  (Level::Debug, "debug"),
  (Level::Info, "info"),
  (Level::Warn, "warn"),
  (Level::Error, "error"),
];

/// The names of the log levels. The index of a level is its number.
#[napi]
pub fn log_levels() -> Vec<&'static str> {
  LEVELS.map(|(_, name)| name).to_vec()
}

/// A logger that passes messages to JavaScript.
pub struct JsLogger {
  plugin_id: u32,
  queue: Arc<CompletionQueue>,
  /// The lowest level that is logged; higher than any level to log nothing.
  level: u32,
  unread: Arc<AtomicUsize>,
  dropped: AtomicU32,
}

impl JsLogger {
  /// `plugin_id` is JavaScript's id of the plugin.
  pub fn new(plugin_id: u32, level: Option<u32>, queue: Arc<CompletionQueue>) -> Self {
    Self {
      plugin_id,
      queue,
      level: level.unwrap_or(u32::MAX),
      unread: Arc::default(),
      dropped: AtomicU32::new(0),
    }
  }

  fn push(&self, call: Option<u64>, level: Level, text: &str) {
    let mut numbers = [0; LOG_TEXT as usize];
    numbers[LOG_PLUGIN as usize] = self.plugin_id;
    numbers[LOG_LEVEL as usize] = level as u32;
    let mut bytes = Vec::with_capacity(text.len() + size_of_val(&numbers));
    bytes.extend(numbers.into_iter().flat_map(u32::to_le_bytes));
    bytes.extend_from_slice(text.as_bytes());
    self.queue.push(Event::Log(LogMessage {
      call,
      bytes,
      unread: UnreadBytes::new(text.len() + MESSAGE_OVERHEAD, &self.unread),
    }));
  }
}

impl Logger for JsLogger {
  fn level(&self) -> Option<Level> {
    LEVELS.get(self.level as usize).map(|(level, _)| *level)
  }

  fn log(&self, call: Option<u64>, level: Level, message: &str) {
    let unread = self.unread.load(Ordering::Relaxed);
    if unread.saturating_add(message.len()) > MAX_UNREAD {
      self.dropped.fetch_add(1, Ordering::Relaxed);
      return;
    }
    let dropped = self.dropped.swap(0, Ordering::Relaxed);
    if dropped > 0 {
      let text =
        format!("dropped {dropped} log messages of the plugin: it logs faster than they are read");
      self.push(call, Level::Warn, &text);
    }
    self.push(call, level, message);
  }
}
