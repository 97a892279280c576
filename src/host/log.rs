//! `log_*` and `get_log_level`. Extism's versions write to one process-wide logger; these write to the
//! plugin's.

use std::sync::Arc;

use super::{Answer, HostFunction, HostFunctionError};
use crate::abi::KERNEL;
use crate::abi::ValueType::{I32, I64};

/// The severity of a message. The numbers are those of Extism's PDKs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
  /// Fine-grained tracing.
  Trace = 0,
  /// Debugging information for the plugin's author.
  Debug = 1,
  /// Normal events.
  Info = 2,
  /// Something unexpected that is not an error.
  Warn = 3,
  /// An error.
  Error = 4,
}

/// A plugin's logger.
pub trait Logger: Send + Sync {
  /// The lowest level that is logged; `None` to log nothing. Guests can query it to skip building messages.
  fn level(&self) -> Option<Level>;

  /// Called only for messages of at least [`level`](Self::level). Invalid UTF-8 is replaced with U+FFFD.
  /// `call` is the number of the call that logged the message; `None` during an instance's initialization.
  fn log(&self, call: Option<u64>, level: Level, message: &str);
}

/// Logs a warning that does not belong to a call.
pub fn warn(logger: &dyn Logger, message: &str) {
  if logger
    .level()
    .is_some_and(|min_level| Level::Warn >= min_level)
  {
    logger.log(None, Level::Warn, message);
  }
}

/// A logger that discards everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Logger for Silent {
  fn level(&self) -> Option<Level> {
    None
  }

  fn log(&self, _: Option<u64>, _: Level, _: &str) {}
}

/// `log_trace` to `log_error`, `(message: i64)`, and `get_log_level() -> i32`.
pub fn functions(logger: &Arc<dyn Logger>) -> Vec<HostFunction> {
  let mut functions = [
    ("log_trace", Level::Trace),
    ("log_debug", Level::Debug),
    ("log_info", Level::Info),
    ("log_warn", Level::Warn),
    ("log_error", Level::Error),
  ]
  .into_iter()
  .map(|(name, level)| {
    let logger = Arc::clone(logger);
    HostFunction::new(KERNEL, name, [I64], None, move |call| {
      let number = call.call();
      // Check the argument even if the message is not logged.
      let message = call
        .bytes(0)
        .ok_or_else(|| HostFunctionError::new(format!("{name}: the message is not a block")))?;
      if logger.level().is_some_and(|min_level| level >= min_level) {
        logger.log(number, level, &String::from_utf8_lossy(message));
      }
      Ok(Answer::Nothing)
    })
  })
  .collect::<Vec<_>>();
  let logger = Arc::clone(logger);
  functions.push(HostFunction::new(
    KERNEL,
    "get_log_level",
    [],
    Some(I32),
    move |_| {
      Ok(Answer::I32(
        logger.level().map_or(i32::MAX, |level| level as i32),
      ))
    },
  ));
  functions
}
