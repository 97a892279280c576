//! Host functions: what guests may call.
//!
//! A host function sees numbers and blocks of bytes, and answers with a number or with bytes, which
//! are copied into a new block of the guest's. It runs on the thread of the instance.

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

/// What a plugin has of the program that runs it.
#[derive(Clone)]
pub struct Environment {
  /// Where `hostMemoryGet` looks, and what guests may do there otherwise.
  pub store: Arc<StoreAccess>,
  /// Functions of the program's own. They come before ours of the same name.
  pub functions: Vec<UntypedFunction>,
  /// Where the plugin's messages go.
  pub logger: Arc<dyn Logger>,
}

impl Environment {
  /// With a store that guests may read, and silent.
  pub fn new(store: Arc<dyn Store>) -> Self {
    Self {
      store: Arc::new(StoreAccess::new(store, Permissions::default())),
      functions: Vec::new(),
      logger: Arc::new(log::Silent),
    }
  }
}

/// What the functions that come with every plugin need to know of it.
#[derive(Clone, Copy, Debug)]
pub struct HostSettings<'a> {
  /// What guests read with `config_get`.
  pub config: &'a BTreeMap<String, String>,
  /// Which HTTP requests they may make.
  pub http: &'a http::HttpOptions,
  /// How long a call may take.
  pub timeout: Option<Duration>,
}

/// The functions that come with every plugin. Each plugin has its own: variables and configuration are
/// not shared between plugins.
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

/// Bytes that a host function answers with. They are shared and not copied: a store can hand out
/// what it holds.
pub type Bytes = Arc<[u8]>;

/// What a host function answers.
#[derive(Clone, Debug)]
pub enum Answer {
  /// For a function without a result.
  Nothing,
  /// For a function that returns i32.
  I32(i32),
  /// For a function that returns i64: this number.
  I64(i64),
  /// For a function that returns f32.
  F32(f32),
  /// For a function that returns f64.
  F64(f64),
  /// For a function that returns i64: the offset of a block with these bytes. Of no bytes the
  /// offset is 0, as it is for [`Answer::ZERO`]: to a guest, empty and missing look alike.
  Bytes(Bytes),
}

impl Answer {
  /// The offset that stands for nothing.
  pub const ZERO: Self = Self::I64(0);

  /// What it is, for messages.
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

/// Why a host function failed, for whoever called the plugin. It ends the call, and the instance
/// with it: a guest is not prepared to go on after a function that has not returned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct HostFunctionError {
  /// What the plugin's call fails with; [`Code::HostFunctionError`] without it.
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
  /// With the same code, whose name begins the message too: for logs, which see only that.
  fn from(error: Error) -> Self {
    Self {
      code: Some(error.code),
      message: format!("{}: {}", error.code.as_str(), error.message),
    }
  }
}

type Body = dyn Fn(&mut Invocation<'_>) -> Result<Answer, HostFunctionError> + Send + Sync;

/// A function that guests may import.
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

/// A function that guests may import with whatever type they like: who answers looks at it.
#[derive(Clone)]
pub struct UntypedFunction {
  /// Where guests import it from.
  pub namespace: String,
  /// The name under which they do.
  pub name: String,
  /// Makes it with that type, for a plugin with these variables.
  pub typed: Arc<Typed>,
}

/// Makes a function of a type.
pub type Typed = dyn Fn(FunctionType, &Arc<Vars>) -> HostFunction + Send + Sync;

impl HostFunction {
  /// It may have no more than one result. It is called on the thread of the instance, by several
  /// threads at once where there are several instances.
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

  /// Calls it, as the runtime does: with the guest's arguments, and a place for its result if it has
  /// one. What it fails with, and a panic in it, become the [`Stop`] of the run.
  pub(crate) fn call(
    &self,
    caller: Caller<'_, Guest>,
    params: &[Val],
    results: &mut [Val],
  ) -> Result<(), Stop> {
    let runtime = Runtime::Wasmtime(caller);
    self.invoke(Invocation { runtime, params }, results)
  }

  /// The same for a guest of the reference runtime.
  pub(crate) fn call_from(
    &self,
    caller: &mut dyn ReferenceCaller,
    params: &[Val],
    results: &mut [Val],
  ) -> Result<(), Stop> {
    let runtime = Runtime::Reference(caller);
    self.invoke(Invocation { runtime, params }, results)
  }

  #[inline]
  fn invoke(&self, mut invocation: Invocation<'_>, results: &mut [Val]) -> Result<(), Stop> {
    // Nothing that a panic may have left half done is used again: the run ends, and with it the
    // instance. What the body shares with other threads must see to itself.
    let called = catch_unwind(AssertUnwindSafe(|| (self.body)(&mut invocation)));
    let answer = match called {
      Ok(answer) => answer.map_err(Stop::HostFunction)?,
      Err(panic) => return Err(Stop::Panicked(panic_message(panic.as_ref()))),
    };
    let answered = answer.kind();
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
      ([place], Some(value), [result]) if result.is_of(&value) => {
        *place = value;
        Ok(())
      }
      _ => Err(Stop::HostFunction(HostFunctionError::new(format!(
        "the host function \"{}\" \"{}\" answered with {answered}, but its type is {}",
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

/// What a host function has of a guest of the reference runtime.
pub(crate) trait ReferenceCaller {
  /// The number of the plugin's call; `None` during the initialization.
  fn call(&self) -> Option<u64>;
  fn interruption(&self) -> Arc<Interruption>;
  fn last_response(&mut self) -> &mut http::LastResponse;
  /// The bytes of the block that starts at the offset, which is an argument of the host function.
  fn block(&self, offset: u64) -> Option<&[u8]>;
  fn alloc(&mut self, length: u64) -> Result<u64, AllocError>;
  fn store(&mut self, bytes: &[u8]) -> Result<u64, AllocError>;
  /// Whether there was room for the message.
  fn set_error(&mut self, message: &[u8]) -> bool;
}

/// The guest that calls a host function.
enum Runtime<'a> {
  Wasmtime(Caller<'a, Guest>),
  Reference(&'a mut dyn ReferenceCaller),
}

/// One call of a host function.
pub struct Invocation<'a> {
  runtime: Runtime<'a>,
  params: &'a [Val],
}

impl Invocation<'_> {
  /// The number of the plugin's call that this is part of; `None` during the initialization of an
  /// instance.
  pub fn call(&self) -> Option<u64> {
    match &self.runtime {
      Runtime::Wasmtime(caller) => caller.data().call,
      Runtime::Reference(caller) => caller.call(),
    }
  }

  /// What a host function that waits has to watch.
  pub fn interruption(&self) -> Arc<Interruption> {
    match &self.runtime {
      Runtime::Wasmtime(caller) => Arc::clone(&caller.data().interruption),
      Runtime::Reference(caller) => caller.interruption(),
    }
  }

  /// What the last HTTP request of the plugin's call brought.
  pub(crate) fn last_response(&mut self) -> &mut http::LastResponse {
    match &mut self.runtime {
      Runtime::Wasmtime(caller) => &mut caller.data_mut().last_response,
      Runtime::Reference(caller) => caller.last_response(),
    }
  }

  /// An argument as the guest passed it.
  pub fn value(&self, argument: usize) -> Option<&Val> {
    self.params.get(argument)
  }

  /// The bytes of the block whose offset the guest passed: none for offset 0, and `None` where no
  /// live block starts.
  pub fn bytes(&self, argument: usize) -> Option<&[u8]> {
    match self.params.get(argument)?.i64()? {
      0 => Some(&[]),
      offset => self.block(offset as u64),
    }
  }

  /// The text in the block whose offset the guest passed; `None` where there is no block or it is
  /// not UTF-8.
  pub fn text(&self, argument: usize) -> Option<&str> {
    std::str::from_utf8(self.bytes(argument)?).ok()
  }

  /// The bytes of the block that starts at the offset; `None` if no live block does.
  pub fn block(&self, offset: u64) -> Option<&[u8]> {
    match &self.runtime {
      Runtime::Wasmtime(caller) => Kernel::block(caller, offset),
      Runtime::Reference(caller) => caller.block(offset),
    }
  }

  /// Makes a block of zeros and returns its offset; 0 where there is no room, or no length.
  pub fn alloc(&mut self, length: u64) -> u64 {
    let allocated = match &mut self.runtime {
      Runtime::Wasmtime(caller) => Kernel::alloc(&mut caller.as_context_mut(), length),
      Runtime::Reference(caller) => caller.alloc(length),
    };
    allocated.unwrap_or(0)
  }

  /// Makes a block with these bytes and returns its offset; 0 where there is no room, or no bytes.
  pub fn store(&mut self, bytes: &[u8]) -> u64 {
    self.try_store(bytes).unwrap_or(0)
  }

  fn try_store(&mut self, bytes: &[u8]) -> Result<u64, AllocError> {
    match &mut self.runtime {
      Runtime::Wasmtime(caller) => Kernel::store(&mut caller.as_context_mut(), bytes),
      Runtime::Reference(caller) => caller.store(bytes),
    }
  }

  /// Makes these bytes the error of the plugin's call; none takes the error away. Whether there was
  /// room.
  pub fn set_error(&mut self, message: &[u8]) -> bool {
    let caller = match &mut self.runtime {
      Runtime::Wasmtime(caller) => caller,
      Runtime::Reference(caller) => return caller.set_error(message),
    };
    let mut store = caller.as_context_mut();
    let offset = Kernel::store(&mut store, message);
    if let Ok(offset) = offset {
      Kernel::set_error(&mut store, offset);
    }
    offset.is_ok()
  }
}
