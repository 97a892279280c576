//! A guest's standard output and error.

use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::log::{Level, Logger};

/// The longest line for a logger; longer lines are split.
const MAX_LINE: usize = 64 << 10;

/// The destination of a plugin's standard output and error.
#[derive(Clone, Default)]
pub enum Output {
  /// Discarded.
  #[default]
  Off,
  /// The streams of this process.
  Inherited,
  /// The plugin's logger, line by line: output at level info, errors at level error.
  Logged(Arc<dyn Logger>),
}

impl Output {
  /// Whether output is kept.
  pub fn is_on(&self) -> bool {
    !matches!(self, Self::Off)
  }
}

/// The output streams of one instance.
#[derive(Default)]
pub struct Streams {
  output: Output,
  /// The unterminated lines of output and error.
  lines: [Vec<u8>; 2],
  /// Whether the current call has written to a discarded standard error.
  has_hidden_errors: bool,
}

/// The output streams of one instance and the number of its call, shared with WASI. A poisoned lock is still
/// consistent: lines are only appended to and cleared.
#[derive(Clone, Default)]
pub struct SharedStreams(Arc<Mutex<(Streams, Option<u64>)>>);

impl SharedStreams {
  /// Streams that go there.
  pub fn new(output: Output) -> Self {
    Self(Arc::new(Mutex::new((Streams::new(output), None))))
  }

  fn lock(&self) -> MutexGuard<'_, (Streams, Option<u64>)> {
    self.0.lock().unwrap_or_else(PoisonError::into_inner)
  }

  /// Starts a call: later output belongs to it.
  pub fn begin(&self, call: Option<u64>) {
    let (streams, current) = &mut *self.lock();
    streams.has_hidden_errors = false;
    *current = call;
  }

  /// Whether the current call has written to a discarded standard error.
  pub fn has_hidden_errors(&self) -> bool {
    self.lock().0.has_hidden_errors
  }

  /// Ends a call: logs its unterminated lines.
  pub fn end(&self) {
    let (streams, call) = &mut *self.lock();
    streams.end(*call);
  }

  /// Writes to standard output (1) or error (2).
  pub fn write(&self, descriptor: i32, bytes: &[u8]) {
    let (streams, call) = &mut *self.lock();
    streams.write(*call, descriptor, bytes);
  }
}

const LEVELS: [Level; 2] = [Level::Info, Level::Error];

impl Streams {
  /// Streams that go there.
  pub fn new(output: Output) -> Self {
    Self {
      output,
      ..Self::default()
    }
  }

  /// Writes to standard output (1) or error (2). Write errors of the process's own streams are ignored.
  pub fn write(&mut self, call: Option<u64>, descriptor: i32, bytes: &[u8]) {
    let index = usize::from(descriptor == 2);
    match &self.output {
      Output::Off => self.has_hidden_errors |= index == 1 && !bytes.is_empty(),
      Output::Inherited if index == 0 => {
        let mut output = std::io::stdout().lock();
        let _ = output.write_all(bytes).and_then(|()| output.flush());
      }
      Output::Inherited => {
        let _ = std::io::stderr().lock().write_all(bytes);
      }
      Output::Logged(logger) => {
        let Some((line, level)) = self.lines.get_mut(index).zip(LEVELS.get(index)) else {
          return;
        };
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
          let (mut text, ends) = match part.strip_suffix(b"\n") {
            Some(text) => (text, true),
            None => (part, false),
          };
          while line.len() + text.len() > MAX_LINE {
            let (fits, rest) = text.split_at(MAX_LINE - line.len());
            line.extend_from_slice(fits);
            end(logger, call, *level, line);
            text = rest;
          }
          line.extend_from_slice(text);
          if ends {
            end(logger, call, *level, line);
          }
        }
      }
    }
  }

  /// Logs the unterminated lines of a call that has ended.
  pub fn end(&mut self, call: Option<u64>) {
    if let Output::Logged(logger) = &self.output {
      for (line, level) in self.lines.iter_mut().zip(LEVELS) {
        if !line.is_empty() {
          end(logger, call, level, line);
        }
      }
    }
  }
}

fn end(logger: &Arc<dyn Logger>, call: Option<u64>, level: Level, line: &mut Vec<u8>) {
  if logger.level().is_some_and(|min_level| level >= min_level) {
    logger.log(call, level, &String::from_utf8_lossy(line));
  }
  line.clear();
}
