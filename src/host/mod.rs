//! Host functions: the functions that guests can import.
//!
//! A host function takes numbers and blocks of bytes, and returns a number or bytes, which are copied into a
//! new block of the guest's memory. It runs on the instance's thread.

pub mod config;
pub mod guest;
pub mod host_memory_get;
pub mod http;
pub mod log;
pub mod output;
pub mod store;
pub mod vars;

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use wasmtime::{AsContextMut, Caller, Val};

use crate::abi::{FunctionType, ValueType};
use crate::kernel::{AllocError, Kernel};
use crate::store::Store;
use crate::{Code, Error};

pub use crate::interruption::Interruption;
pub use guest::{Guest, Stop};
pub use log::Logger;
pub use store::{Permissions, StoreAccess};
pub use vars::Vars;

/// What the embedding program provides to a plugin.
#[derive(Clone)]
pub struct Environment {
  /// The store that guests can access, with their permissions.
  pub store: Arc<StoreAccess>,
  /// The program's own host functions. They take precedence over built-in ones of the same name.
  pub functions: Vec<UntypedFunction>,
  /// The plugin's logger.
  pub logger: Arc<dyn Logger>,
}

impl Environment {
  /// An environment with a store that guests may read, and without logging.
  pub fn new(store: Arc<dyn Store>) -> Self {
    Self {
      store: Arc::new(StoreAccess::new(store, Permissions::default())),
      functions: Vec::new(),
      logger: Arc::new(log::Silent),
    }
  }
}

/// The settings of the built-in host functions.
#[derive(Clone, Copy, Debug)]
pub struct HostSettings<'a> {
  /// The configuration that `config_get` reads.
  pub config: &'a BTreeMap<String, String>,
  /// Which HTTP requests guests may make.
  pub http: &'a http::HttpOptions,
  /// The time limit of a call.
  pub timeout: Option<Duration>,
}

/// The built-in host functions of a plugin. Each plugin has its own set, as plugins do not share variables or
/// configuration.
pub fn functions(
  settings: HostSettings<'_>,
  environment: &Environment,
  vars: &Arc<Vars>,
) -> crate::Result<Vec<HostFunction>> {
  let mut functions = vec![
    host_memory_get::host_memory_get(Arc::clone(&environment.store)),
    config::config_get(settings.config.clone()),
  ];
  functions.extend(store::functions(&environment.store));
  functions.extend(vars::functions(vars));
  functions.extend(log::functions(&environment.logger));
  functions.extend(http::functions(settings.http, settings.timeout)?);
  Ok(functions)
}

/// Bytes that a host function returns. They are reference-counted, so a store can return what it holds
/// without copying.
pub type Bytes = Arc<[u8]>;

/// What a host function returns.
#[derive(Clone, Debug)]
pub enum Answer {
  /// No result.
  Nothing,
  /// An i32.
  I32(i32),
  /// An i64.
  I64(i64),
  /// An f32.
  F32(f32),
  /// An f64.
  F64(f64),
  /// An i64: the offset of a new block with these bytes. Without bytes the offset is 0, the same as
  /// [`Answer::ZERO`]: guests cannot tell empty from missing.
  Bytes(Bytes),
}

impl Answer {
  /// The null offset.
  pub const ZERO: Self = Self::I64(0);

  /// The type of the result, for messages.
  fn kind(&self) -> &'static str {
    match self {
      Self::Nothing => "nothing",
      Self::I32(_) => "an i32",
      Self::I64(_) => "an i64",
      Self::F32(_) => "an f32",
      Self::F64(_) => "an f64",
      Self::Bytes(_) => "bytes",
    }
  }
}

/// Why a host function failed. It ends the call and the instance: a guest cannot continue after a host
/// function that did not return.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct HostFunctionError {
  /// The code of the plugin's call; `None` means [`Code::HostFunctionError`].
  pub code: Option<Code>,
  /// What went wrong, for people.
  pub message: String,
}

impl HostFunctionError {
  /// An error with this message.
  pub fn new(message: impl Into<String>) -> Self {
    Self {
      code: None,
      message: message.into(),
    }
  }
}

impl From<Error> for HostFunctionError {
  /// Keeps the code, and prefixes the message with it, for logs that only contain the message.
  fn from(error: Error) -> Self {
    Self {
      code: Some(error.code),
      message: format!("{}: {}", error.code.as_str(), error.message),
    }
  }
}

type Body = dyn Fn(&mut Invocation<'_>) -> Result<Answer, HostFunctionError> + Send + Sync;

/// A function that guests can import.
#[derive(Clone)]
pub struct HostFunction {
  /// Where guests import it from.
  pub namespace: String,
  /// The name under which they do.
  pub name: String,
  /// Its type, as guests see it.
  pub function: FunctionType,
  body: Arc<Body>,
}

/// A function that guests can import with any type.
#[derive(Clone)]
pub struct UntypedFunction {
  /// Where guests import it from.
  pub namespace: String,
  /// The name under which they do.
  pub name: String,
  /// Creates the function with the imported type, for a plugin with these variables.
  pub typed: Arc<HostFunctionFactory>,
}

/// Creates a host function of a given type.
pub type HostFunctionFactory = dyn Fn(FunctionType, &Arc<Vars>) -> HostFunction + Send + Sync;

impl HostFunction {
  /// A host function with at most one result. It is called on the instance's thread, and concurrently if
  /// there are several instances.
  pub fn new(
    namespace: impl Into<String>,
    name: impl Into<String>,
    params: impl IntoIterator<Item = ValueType>,
    result: Option<ValueType>,
    body: impl Fn(&mut Invocation<'_>) -> Result<Answer, HostFunctionError> + Send + Sync + 'static,
  ) -> Self {
    Self {
      namespace: namespace.into(),
      name: name.into(),
      function: FunctionType::new(params, result),
      body: Arc::new(body),
    }
  }

  /// Calls the function on behalf of the runtime. `results` has one element if the function has a result. An
  /// error or a panic of the function becomes the run's [`Stop`].
  pub(crate) fn call(
    &self,
    caller: Caller<'_, Guest>,
    params: &[Val],
    results: &mut [Val],
  ) -> Result<(), Stop> {
    let guest = CallingGuest::Wasmtime(caller);
    self.invoke(Invocation { guest, params }, results)
  }

  /// Calls the function on behalf of the reference runtime.
  pub(crate) fn call_from(
    &self,
    caller: &mut dyn ReferenceCaller,
    params: &[Val],
    results: &mut [Val],
  ) -> Result<(), Stop> {
    let guest = CallingGuest::Reference(caller);
    self.invoke(Invocation { guest, params }, results)
  }

  #[inline]
  fn invoke(&self, mut invocation: Invocation<'_>, results: &mut [Val]) -> Result<(), Stop> {
    // A panic ends the run and the instance, so no inconsistent state of this thread is reused. State that
    // the body shares with other threads must tolerate panics itself.
    let called = catch_unwind(AssertUnwindSafe(|| (self.body)(&mut invocation)));
    let answer = match called {
      Ok(answer) => answer.map_err(Stop::HostFunction)?,
      Err(panic) => return Err(Stop::Panicked(panic_message(panic.as_ref()))),
    };
    let kind = answer.kind();
    let value = match answer {
      Answer::Nothing => None,
      Answer::I32(value) => Some(Val::I32(value)),
      Answer::I64(value) => Some(Val::I64(value)),
      Answer::F32(value) => Some(Val::F32(value.to_bits())),
      Answer::F64(value) => Some(Val::F64(value.to_bits())),
      Answer::Bytes(bytes) => {
        let offset = invocation.try_store(&bytes).map_err(|error| match error {
          AllocError::OutOfMemory => Stop::OutOfMemory,
        })?;
        Some(Val::I64(offset as i64))
      }
    };
    match (results, value, self.function.results.as_slice()) {
      ([], None, []) => Ok(()),
      ([slot], Some(value), [result]) if result.is_of(&value) => {
        *slot = value;
        Ok(())
      }
      _ => Err(Stop::HostFunction(HostFunctionError::new(format!(
        "the host function \"{}\" \"{}\" returned {kind}, but its type is {}",
        self.namespace, self.name, self.function
      )))),
    }
  }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
  panic
    .downcast_ref::<&str>()
    .map(|message| (*message).to_owned())
    .or_else(|| panic.downcast_ref::<String>().cloned())
    .unwrap_or_else(|| "panic".to_owned())
}

impl fmt::Debug for HostFunction {
  fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(
      formatter,
      "{}::{} {}",
      self.namespace, self.name, self.function
    )
  }
}

/// What a host function can do with a guest of the reference runtime.
pub(crate) trait ReferenceCaller {
  /// The number of the plugin's call; `None` during initialization.
  fn call(&self) -> Option<u64>;
  fn interruption(&self) -> Arc<Interruption>;
  fn last_response(&mut self) -> &mut http::LastResponse;
  /// The bytes of the block that starts at `offset`, which is an argument of the host function.
  fn block(&self, offset: u64) -> Option<&[u8]>;
  fn alloc(&mut self, length: u64) -> Result<u64, AllocError>;
  fn store(&mut self, bytes: &[u8]) -> Result<u64, AllocError>;
  /// Returns whether the message fit into the guest's memory.
  fn set_error(&mut self, message: &[u8]) -> bool;
}

/// The calling guest, in either runtime.
enum CallingGuest<'a> {
  Wasmtime(Caller<'a, Guest>),
  Reference(&'a mut dyn ReferenceCaller),
}

/// A call of a host function.
pub struct Invocation<'a> {
  guest: CallingGuest<'a>,
  params: &'a [Val],
}

impl Invocation<'_> {
  /// The number of the plugin's call that this belongs to; `None` during an instance's initialization.
  pub fn call(&self) -> Option<u64> {
    match &self.guest {
      CallingGuest::Wasmtime(caller) => caller.data().call,
      CallingGuest::Reference(caller) => caller.call(),
    }
  }

  /// The interruption that a blocking host function must observe.
  pub fn interruption(&self) -> Arc<Interruption> {
    match &self.guest {
      CallingGuest::Wasmtime(caller) => Arc::clone(&caller.data().interruption),
      CallingGuest::Reference(caller) => caller.interruption(),
    }
  }

  /// The response to the last HTTP request of the plugin's call.
  pub(crate) fn last_response(&mut self) -> &mut http::LastResponse {
    match &mut self.guest {
      CallingGuest::Wasmtime(caller) => &mut caller.data_mut().last_response,
      CallingGuest::Reference(caller) => caller.last_response(),
    }
  }

  /// An argument.
  pub fn value(&self, argument: usize) -> Option<&Val> {
    self.params.get(argument)
  }

  /// The bytes of the block whose offset is the argument. Empty for offset 0; `None` if no live block starts
  /// at the offset.
  pub fn bytes(&self, argument: usize) -> Option<&[u8]> {
    match self.params.get(argument)?.i64()? {
      0 => Some(&[]),
      offset => self.block(offset as u64),
    }
  }

  /// The text in the block whose offset is the argument; `None` if there is no such block or it is not UTF-8.
  pub fn text(&self, argument: usize) -> Option<&str> {
    std::str::from_utf8(self.bytes(argument)?).ok()
  }

  /// The bytes of the block that starts at `offset`; `None` if no live block does.
  pub fn block(&self, offset: u64) -> Option<&[u8]> {
    match &self.guest {
      CallingGuest::Wasmtime(caller) => Kernel::block(caller, offset),
      CallingGuest::Reference(caller) => caller.block(offset),
    }
  }

  /// Allocates a zeroed block and returns its offset; 0 if it does not fit, or if `length` is 0.
  pub fn alloc(&mut self, length: u64) -> u64 {
    let allocated = match &mut self.guest {
      CallingGuest::Wasmtime(caller) => Kernel::alloc(&mut caller.as_context_mut(), length),
      CallingGuest::Reference(caller) => caller.alloc(length),
    };
    allocated.unwrap_or(0)
  }

  /// Allocates a block with these bytes and returns its offset; 0 if it does not fit, or if it is empty.
  pub fn store(&mut self, bytes: &[u8]) -> u64 {
    self.try_store(bytes).unwrap_or(0)
  }

  fn try_store(&mut self, bytes: &[u8]) -> Result<u64, AllocError> {
    match &mut self.guest {
      CallingGuest::Wasmtime(caller) => Kernel::store(&mut caller.as_context_mut(), bytes),
      CallingGuest::Reference(caller) => caller.store(bytes),
    }
  }

  /// Sets the error of the plugin's call; an empty message clears it. Returns whether the message fit into
  /// the guest's memory.
  pub fn set_error(&mut self, message: &[u8]) -> bool {
    let caller = match &mut self.guest {
      CallingGuest::Wasmtime(caller) => caller,
      CallingGuest::Reference(caller) => return caller.set_error(message),
    };
    let mut store = caller.as_context_mut();
    let offset = Kernel::store(&mut store, message);
    if let Ok(offset) = offset {
      Kernel::set_error(&mut store, offset);
    }
    offset.is_ok()
  }
}
