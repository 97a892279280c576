//! Host functions: what guests may call.
//!
//! A host function sees numbers and blocks of bytes, and answers with a number or with bytes. It
//! has no access to Extism: it cannot allocate, free or look up anything in the kernel's memory.
//! What it reads are the blocks that the guard knew to be live when the guest called; what it
//! answers with is copied into a block that the guard makes afterwards (see `plugin/driver.rs`).

pub mod config;
pub mod conversation;
pub mod host_memory_get;
pub mod http;
pub mod interruption;
pub mod log;
pub mod output;
pub mod store;
pub mod vars;

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use extism::{CurrentPlugin, Val};

use crate::plugin::Manifest;
use crate::plugin::types::{FunctionType, ValueType};
use crate::store::Store;
use crate::{Code, Error};

pub use conversation::{Block, Conversation, Step};
pub use interruption::Interruption;
pub use log::Logger;
pub use store::{Access, Permissions};
pub use vars::Vars;

/// What a plugin has of the program that runs it.
#[derive(Clone)]
pub struct Environment {
  /// Where `hostMemoryGet` looks, and what guests may do there otherwise.
  pub store: Arc<Access>,
  /// Functions of the program's own. They come before ours of the same name.
  pub functions: Vec<UntypedFunction>,
  /// Where the plugin's messages go.
  pub logger: Arc<dyn Logger>,
}

impl Environment {
  /// With a store that guests may read, and silent.
  pub fn new(store: Arc<dyn Store>) -> Self {
    Self {
      store: Arc::new(Access::new(store, Permissions::default())),
      functions: Vec::new(),
      logger: Arc::new(log::Silent),
    }
  }
}

/// The functions that come with every plugin. Each plugin has its own: variables and configuration are
/// not shared between plugins.
pub fn functions(
  manifest: &Manifest,
  environment: &Environment,
  vars: &Arc<Vars>,
) -> crate::Result<Vec<HostFunction>> {
  let mut functions = vec![
    host_memory_get::host_memory_get(Arc::clone(&environment.store)),
    config::config_get(manifest.config.clone()),
  ];
  functions.extend(store::functions(&environment.store));
  functions.extend(vars::functions(vars));
  functions.extend(log::functions(&environment.logger));
  functions.extend(http::functions(&manifest.http, manifest.timeout)?);
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

type Answering = dyn Fn(&mut Invocation<'_>) -> Result<Answer, HostFunctionError> + Send + Sync;

type Conversing =
  dyn Fn(&mut Invocation<'_>) -> Result<Box<dyn Conversation>, HostFunctionError> + Send + Sync;

#[derive(Clone)]
enum Body {
  /// Answers at once.
  Answering(Arc<Answering>),
  /// Needs blocks of the guest's memory before it answers.
  Conversing(Arc<Conversing>),
}

/// A function that guests may import.
#[derive(Clone)]
pub struct HostFunction {
  /// Where guests import it from.
  pub namespace: String,
  /// The name under which they do.
  pub name: String,
  /// Its type, as guests see it.
  pub function: FunctionType,
  body: Body,
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
      body: Body::Answering(Arc::new(body)),
    }
  }

  /// As [`new`](Self::new), for one that allocates or reads other blocks than its arguments.
  pub fn conversing(
    namespace: impl Into<String>,
    name: impl Into<String>,
    function: FunctionType,
    begin: impl Fn(&mut Invocation<'_>) -> Result<Box<dyn Conversation>, HostFunctionError>
    + Send
    + Sync
    + 'static,
  ) -> Self {
    Self {
      namespace: namespace.into(),
      name: name.into(),
      function,
      body: Body::Conversing(Arc::new(begin)),
    }
  }

  /// Whether it is called by conversation.
  pub(crate) fn is_conversing(&self) -> bool {
    matches!(self.body, Body::Conversing(_))
  }

  /// Calls it with what the gate has passed.
  pub(crate) fn call(&self, call: &mut Invocation<'_>) -> Result<Called, HostFunctionError> {
    match &self.body {
      Body::Answering(body) => body(call).map(Called::Answer),
      Body::Conversing(begin) => begin(call).map(Called::Conversation),
    }
  }
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

/// What a host function does when it is called.
pub(crate) enum Called {
  Answer(Answer),
  Conversation(Box<dyn Conversation>),
}

/// One call of a host function.
pub struct Invocation<'a> {
  pub(crate) function: &'a FunctionType,
  pub(crate) plugin: &'a mut CurrentPlugin,
  /// The arguments as the gate passes them: after each i64 the length of the block that starts
  /// there.
  pub(crate) values: &'a [Val],
  pub(crate) call: Option<u64>,
  pub(crate) interruption: &'a Arc<Interruption>,
  pub(crate) last_response: &'a RefCell<http::LastResponse>,
}

impl Invocation<'_> {
  /// The number of the plugin's call that this is part of; `None` during the initialization of an
  /// instance.
  pub fn call(&self) -> Option<u64> {
    self.call
  }

  /// What a host function that waits has to watch.
  pub fn interruption(&self) -> &Arc<Interruption> {
    self.interruption
  }

  /// Where an argument is among the values.
  fn place(&self, argument: usize) -> usize {
    self
      .function
      .params
      .iter()
      .take(argument)
      .map(|param| match param {
        ValueType::I64 => 2,
        _ => 1,
      })
      .sum()
  }

  /// An argument as the guest passed it.
  pub fn value(&self, argument: usize) -> Option<&Val> {
    self.function.params.get(argument)?;
    self.values.get(self.place(argument))
  }

  /// The bytes of the block whose offset the guest passed: none for offset 0, and `None` where no
  /// live block starts.
  pub fn bytes(&mut self, argument: usize) -> Option<&[u8]> {
    if self.function.params.get(argument) != Some(&ValueType::I64) {
      return None;
    }
    let place = self.place(argument);
    let offset = self.values.get(place)?.i64()? as u64;
    if offset == 0 {
      return Some(&[]);
    }
    let length = self.values.get(place + 1)?.i64()? as u64;
    Block::from_gate(self.plugin, offset, length).into_bytes()
  }

  /// The text in the block whose offset the guest passed; `None` where there is no block or it is
  /// not UTF-8.
  pub fn text(&mut self, argument: usize) -> Option<&str> {
    std::str::from_utf8(self.bytes(argument)?).ok()
  }
}
