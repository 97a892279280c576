//! `log_*` and `get_log_level`. Extism's own write to a logger of the whole process; these go to
//! the plugin's.

use std::sync::Arc;

use super::{Answer, HostFunction, HostFunctionError};
use crate::abi::KERNEL;
use crate::abi::ValueType::{I32, I64};

/// How much a message matters. The numbers are those of Extism's PDKs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
  /// For whoever looks for a needle.
  Trace = 0,
  /// For the plugin's author.
  Debug = 1,
  /// For the record.
  Info = 2,
  /// Something is odd.
  Warn = 3,
  /// Something is wrong.
  Error = 4,
}

/// Where the messages of a plugin go.
pub trait Logger: Send + Sync {
  /// The least level that is wanted; `None` for silence. Guests may ask, and save themselves the
  /// work.
  fn level(&self) -> Option<Level>;

  /// Called for messages of a wanted level only. What is not UTF-8 arrives with replacement
  /// characters. `call` is the number of the plugin's call that it is part of; none during the
  /// initialization of an instance.
  fn log(&self, call: Option<u64>, level: Level, message: &str);
}

/// Warns of something that is part of no call.
pub fn warn(logger: &dyn Logger, message: &str) {
  if logger.level().is_some_and(|wanted| Level::Warn >= wanted) {
    logger.log(None, Level::Warn, message);
  }
}

/// A logger for plugins that have none.
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
      // What is wrong is wrong whether or not anybody listens.
      let message = call
        .bytes(0)
        .ok_or_else(|| HostFunctionError::new(format!("{name}: the message is no block")))?;
      if logger.level().is_some_and(|wanted| level >= wanted) {
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
