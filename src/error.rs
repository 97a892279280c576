//! The crate's one error type: a stable code for programs, a message for people.

use std::fmt;
#[cfg(unix)]
use std::io;

/// The kind of failure, for programs. The names that JavaScript sees ([`Code::as_str`]) never change once
/// published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Code {
  /// An argument is invalid.
  InvalidArgument,
  /// The file does not exist or cannot be read.
  FileNotFound,
  /// The bytes are not a WebAssembly module that this runtime supports.
  InvalidWasm,
  /// The bytes do not match the hash in the manifest.
  HashMismatch,
  /// Nothing provides one of the module's imports.
  MissingImport,
  /// Modules of the manifest import each other in a cycle.
  CircularLinking,
  /// A module imports, exports or has a name that is reserved for this library.
  ReservedName,
  /// The plugin does not export the function, or its signature is not callable.
  FunctionNotFound,
  /// The plugin itself reported an error.
  PluginError,
  /// The guest trapped: an out-of-bounds access, `unreachable`, a division by zero and so on.
  Trap,
  /// The call, or the plugin's initialization, exceeded its time limit.
  Timeout,
  /// The caller canceled the call.
  Canceled,
  /// The output exceeds `maxOutputBytes`.
  OutputTooLarge,
  /// A host function failed, which ended the guest's call.
  HostFunctionError,
  /// The guest exceeded its memory limit.
  OutOfMemory,
  /// The guest used up the call's fuel.
  FuelExhausted,
  /// The plugin already has `maxQueue` unfinished calls.
  QueueFull,
  /// All of the plugin's threads are stuck in host calls that do not return.
  Unavailable,
  /// No directory is available for the compile cache.
  CacheUnavailable,
  /// The plugin's runtime does not support an option.
  Unsupported,
  /// The plugin or the store is closed.
  Closed,
  /// A synchronous call would wait forever.
  WouldDeadlock,
  /// No store supports the URL's scheme.
  NoSuchStore,
  /// The store rejected the credentials, or denied permission.
  AccessDenied,
  /// The store cannot be reached, or did not answer in time.
  StoreUnavailable,
  /// The value exceeds the store's size limit.
  ValueTooLarge,
  /// The store is full.
  StoreFull,
  /// The store's file is damaged, or is not a store.
  StoreDamaged,
  /// The process has no threads, address space or open files left.
  OutOfResources,
  /// A defect in this library.
  Internal,
}

impl Code {
  /// All codes. The index of a code is its [`number`](Self::number) minus 1.
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

  /// A number for the code, starting at 1. Only meaningful within one process.
  pub const fn number(self) -> u32 {
    self as u32 + 1
  }

  /// The code's name in JavaScript (`error.code`).
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
  /// The kind of failure, for programs.
  pub code: Code,
  /// What went wrong, for people.
  pub message: String,
  /// For a trap: the guest's stack, innermost function first. Otherwise empty.
  pub backtrace: Vec<String>,
  /// For a plugin error: the code that the plugin returned or exited with. Otherwise 0.
  pub return_code: i32,
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
  /// An error without a backtrace or return code.
  pub fn new(code: Code, message: impl Into<String>) -> Self {
    Self {
      code,
      message: message.into(),
      backtrace: Vec::new(),
      return_code: 0,
    }
  }

  /// The error for a thread that fails to start. `purpose` completes "cannot start a thread".
  pub fn no_thread(purpose: &str, error: &dyn fmt::Display) -> Self {
    Self::new(
      Code::OutOfResources,
      format!(
        "cannot start a thread {purpose}: {error}; raise the thread limit (ulimit -u, pids.max, TasksMax) or the \
         address space limit (ulimit -v), or use fewer plugins or instances"
      ),
    )
  }

  /// An [`OutOfResources`](Code::OutOfResources) error if one of the `causes` shows that the process ran out
  /// of address space or file descriptors. `failure` says what failed.
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

/// Which resource ran out, and what to do about it.
#[cfg(unix)]
fn exhausted_resource(cause: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
  let io_errno = cause.downcast_ref().and_then(io::Error::raw_os_error);
  let rustix_errno = cause.downcast_ref::<rustix::io::Errno>();
  match io_errno.or(rustix_errno.map(|error| error.raw_os_error()))? {
    libc::ENOMEM => Some(
      "the process has no address space or memory mappings left: an instance outside the pool reserves 16 GiB; \
       raise the limit (ulimit -v, vm.max_map_count), or use fewer plugins or instances",
    ),
    libc::EMFILE => Some(
      "the process has no file descriptors left; raise the limit (ulimit -n), or close some files",
    ),
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
  fn the_index_of_each_code_is_its_number_minus_1() {
    for (index, code) in Code::ALL.into_iter().enumerate() {
      assert_eq!(code.number() as usize, index + 1);
    }
  }
}
