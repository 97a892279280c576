//! The one error type of the crate: a stable code for programs, a message for people.

use std::fmt;
#[cfg(unix)]
use std::io;

/// What went wrong, as programs see it. The names that JavaScript sees ([`Code::as_str`]) never
/// change once published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Code {
  /// The caller passed something that this function does not take.
  InvalidArgument,
  /// No file can be read at the path.
  FileNotFound,
  /// The bytes are no WebAssembly module that can be run here.
  InvalidWasm,
  /// The bytes are not those that the manifest's hash names.
  HashMismatch,
  /// The module imports something that nobody provides.
  MissingImport,
  /// Modules of the manifest import from one another in a circle.
  CircularLinking,
  /// A module imports, exports or bears a name that is kept for this library.
  ReservedName,
  /// The plugin has no such function, or one with a signature that cannot be called.
  FunctionNotFound,
  /// The plugin itself reported an error.
  PluginError,
  /// The guest did something that WebAssembly forbids, or reached `unreachable`.
  Trap,
  /// The call, or the plugin's initialization, took longer than its limit.
  Timeout,
  /// The call was canceled by its caller.
  Canceled,
  /// The output is longer than `maxOutputBytes`.
  OutputTooLarge,
  /// A host function failed; the guest's call ended there.
  HostFunctionError,
  /// The guest asked for more memory than it may have.
  OutOfMemory,
  /// The guest used up the call's fuel.
  FuelExhausted,
  /// `maxQueue` calls are unfinished already.
  QueueFull,
  /// All threads of the plugin are stuck in host calls that do not return.
  Unavailable,
  /// There is no place where compiled modules could be kept.
  CacheUnavailable,
  /// The runtime that was chosen for the plugin does not support an option.
  Unsupported,
  /// The plugin, or the store, has been closed.
  Closed,
  /// A synchronous call would wait for ever.
  WouldDeadlock,
  /// No store has the scheme of the URL.
  NoSuchStore,
  /// The store does not let in whoever asks.
  AccessDenied,
  /// The store cannot be reached, or not in time.
  StoreUnavailable,
  /// The value is larger than the store takes.
  ValueTooLarge,
  /// The store has no room left.
  StoreFull,
  /// What the store is kept in is damaged, or no store.
  StoreDamaged,
  /// The process may have no more threads, address space or open files.
  OutOfResources,
  /// A defect in this library.
  Internal,
}

impl Code {
  /// All codes, each at the index of its [`number`](Self::number) less one.
  pub const ALL: [Self; 30] = [
    Code::InvalidArgument,
    Code::FileNotFound,
    Code::InvalidWasm,
    Code::HashMismatch,
    Code::MissingImport,
    Code::CircularLinking,
    Code::ReservedName,
    Code::FunctionNotFound,
    Code::PluginError,
    Code::Trap,
    Code::Timeout,
    Code::Canceled,
    Code::OutputTooLarge,
    Code::HostFunctionError,
    Code::OutOfMemory,
    Code::FuelExhausted,
    Code::QueueFull,
    Code::Unavailable,
    Code::CacheUnavailable,
    Code::Unsupported,
    Code::Closed,
    Code::WouldDeadlock,
    Code::NoSuchStore,
    Code::AccessDenied,
    Code::StoreUnavailable,
    Code::ValueTooLarge,
    Code::StoreFull,
    Code::StoreDamaged,
    Code::OutOfResources,
    Code::Internal,
  ];

  /// A number for the code, from 1. It means something within one process only.
  pub const fn number(self) -> u32 {
    self as u32 + 1
  }

  /// The name of the code in JavaScript (`error.code`).
  pub const fn as_str(self) -> &'static str {
    match self {
      Code::InvalidArgument => "INVALID_ARGUMENT",
      Code::FileNotFound => "FILE_NOT_FOUND",
      Code::InvalidWasm => "INVALID_WASM",
      Code::HashMismatch => "HASH_MISMATCH",
      Code::MissingImport => "MISSING_IMPORT",
      Code::CircularLinking => "CIRCULAR_LINKING",
      Code::ReservedName => "RESERVED_NAME",
      Code::FunctionNotFound => "FUNCTION_NOT_FOUND",
      Code::PluginError => "PLUGIN_ERROR",
      Code::Trap => "TRAP",
      Code::Timeout => "TIMEOUT",
      Code::Canceled => "CANCELED",
      Code::OutputTooLarge => "OUTPUT_TOO_LARGE",
      Code::HostFunctionError => "HOST_FUNCTION_ERROR",
      Code::OutOfMemory => "OUT_OF_MEMORY",
      Code::FuelExhausted => "FUEL_EXHAUSTED",
      Code::QueueFull => "QUEUE_FULL",
      Code::Unavailable => "UNAVAILABLE",
      Code::CacheUnavailable => "CACHE_UNAVAILABLE",
      Code::Unsupported => "UNSUPPORTED",
      Code::Closed => "CLOSED",
      Code::WouldDeadlock => "WOULD_DEADLOCK",
      Code::NoSuchStore => "NO_SUCH_STORE",
      Code::AccessDenied => "ACCESS_DENIED",
      Code::StoreUnavailable => "STORE_UNAVAILABLE",
      Code::ValueTooLarge => "VALUE_TOO_LARGE",
      Code::StoreFull => "STORE_FULL",
      Code::StoreDamaged => "STORE_DAMAGED",
      Code::OutOfResources => "OUT_OF_RESOURCES",
      Code::Internal => "INTERNAL",
    }
  }
}

/// An error with its [`Code`] and a message that says what was wrong and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
  /// What went wrong, for programs.
  pub code: Code,
  /// What went wrong, for people.
  pub message: String,
  /// For a trap: the guest's functions that were running, the innermost first. Else empty.
  pub backtrace: Vec<String>,
  /// For an error of the plugin: the code that it returned or exited with. Else 0.
  pub return_code: i32,
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
  /// Makes an error.
  pub fn new(code: Code, message: impl Into<String>) -> Self {
    Self {
      code,
      message: message.into(),
      backtrace: Vec::new(),
      return_code: 0,
    }
  }

  /// The error for a thread that cannot be started. `purpose` completes "cannot start a thread".
  pub fn no_thread(purpose: &str, error: &dyn fmt::Display) -> Self {
    Self::new(
      Code::OutOfResources,
      format!(
        "cannot start a thread {purpose}: {error}; raise the limit of threads (ulimit -u, pids.max, TasksMax) or of \
         address space (ulimit -v), or have fewer plugins or instances"
      ),
    )
  }

  /// The error for something that failed because the process has no address space or descriptors left, if one
  /// of the causes says so. `failure` says what failed.
  pub fn exhausted<'a>(
    failure: &str,
    mut causes: impl Iterator<Item = &'a (dyn std::error::Error + 'static)>,
  ) -> Option<Self> {
    let resource = causes.find_map(exhausted_resource)?;
    Some(Self::new(
      Code::OutOfResources,
      format!("{failure}; {resource}"),
    ))
  }
}

/// What has run out, and what to do about it.
#[cfg(unix)]
fn exhausted_resource(cause: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
  let of_io = cause.downcast_ref().and_then(io::Error::raw_os_error);
  let of_rustix = cause.downcast_ref::<rustix::io::Errno>();
  match of_io.or(of_rustix.map(|error| error.raw_os_error()))? {
    libc::ENOMEM => Some(
      "the process has no address space or no memory mappings left: an instance outside the pool reserves 16 GiB; \
       raise the limit (ulimit -v, vm.max_map_count), or have fewer plugins or instances",
    ),
    libc::EMFILE => {
      Some("the process has no file descriptors left; raise the limit (ulimit -n), or close some")
    }
    libc::ENFILE => Some("the system has no open files left; raise its limit (fs.file-max)"),
    _ => None,
  }
}

#[cfg(not(unix))]
fn exhausted_resource(_: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
  None
}

impl fmt::Display for Error {
  fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "{} ({})", self.message, self.code.as_str())
  }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
  use super::Code;

  #[test]
  fn each_code_is_at_the_index_of_its_number() {
    for (index, code) in Code::ALL.into_iter().enumerate() {
      assert_eq!(code.number() as usize, index + 1);
    }
  }
}
