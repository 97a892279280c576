//! The reference runtime: runs a plugin with the `extism` crate. For users who suspect that this crate's
//! own core makes a difference, and for tests that compare both.
//!
//! The linker checks the modules and lists their exports as usual, but the `extism` crate links, compiles
//! and runs them. Host functions are ours, so they run on both runtimes. They replace `extism`'s functions
//! of the same name.
//!
//! `extism` trusts its guests: one that forges a block header can crash the process. So use this only for
//! trusted plugins. [`check`] refuses options that it does not support.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use extism::{CompiledPlugin, CurrentPlugin, Function, PluginBuilder, UserData, Val, ValType};
use wasmtime::{Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use super::instance::{self, CallError, CallOutput, Ending, Outcome, PluginRuntime, Run, trapped};
use super::interrupt::Interrupt;
use super::link::Linked;
use super::manifest::{
  AllowedPath, DEFAULT_MAX_OUTPUT, DEFAULT_MAX_PAGES, LoadedModule, Manifest, OutputTo,
};
use super::{CompileCache, Limits};
use crate::abi::{ENV, USER, ValueType};
use crate::host::guest::PAGE;
use crate::host::http::LastResponse;
use crate::host::{Environment, HostFunction, Interruption, ReferenceCaller, Stop};
use crate::kernel::AllocError;
use crate::{Code, Error, Result, signals};

/// No module exports this name, because the linker refuses it. Calling it only runs the initialization.
const INITIALIZE: &str = "extism-host:initialize";

/// The prefix of `extism`'s error for a function that returned a code other than 0.
const EXIT_CODE: &str = "Returned non-zero exit code: ";

/// The error for an option that this runtime does not support.
pub fn unsupported(option: &str) -> Error {
  Error::new(
    Code::Unsupported,
    format!("runtime 'extism' does not support {option}; leave it out, or use the default runtime"),
  )
}

/// Refuses options that this runtime does not support.
pub fn check(manifest: &Manifest, limits: Limits, environment: &Environment) -> Result<()> {
  // The crate has no other switch for the output of guests.
  let is_silent = std::env::var_os("EXTISM_ENABLE_WASI_OUTPUT").is_none();
  let options = [
    (limits.is_isolated, "isolation: 'call'"),
    (manifest.snapshot, "snapshot"),
    (manifest.fuel.is_some(), "fuel"),
    (manifest.interruptions.is_some(), "interruption"),
    (!environment.functions.is_empty(), "functions"),
    (!manifest.http.allowed_hosts.is_empty(), "allowedHosts"),
    (!manifest.arguments.is_empty(), "wasi.args"),
    (!manifest.environment.is_empty(), "wasi.env"),
    (
      manifest.output == OutputTo::Logger,
      "enableWasiOutput: 'logger'",
    ),
    (
      manifest.output == OutputTo::Process && is_silent,
      "enableWasiOutput: true",
    ),
    (
      !matches!(manifest.compile_cache, CompileCache::Off),
      "compileCache",
    ),
  ];
  match options.iter().find(|(is_used, _)| *is_used) {
    Some((_, option)) => Err(unsupported(option)),
    None => allowed_paths(&manifest.allowed_paths).map(drop),
  }
}

/// The directories in the format of `extism`: by their path on this machine.
fn allowed_paths(paths: &[AllowedPath]) -> Result<BTreeMap<String, std::path::PathBuf>> {
  let mut allowed = BTreeMap::new();
  for path in paths {
    let not_utf8 = || unsupported("a path that is not UTF-8 in allowedPaths");
    let host = path.host.to_str().ok_or_else(not_utf8)?;
    let host = match path.is_read_only {
      true => format!("ro:{host}"),
      false => host.to_owned(),
    };
    if allowed.insert(host, path.guest.clone()).is_some() {
      return Err(unsupported("one directory twice in allowedPaths"));
    }
  }
  Ok(allowed)
}

/// A plugin, from which instances are created. Any number of threads may use it.
pub struct Reference {
  manifest: extism::Manifest,
  functions: Vec<HostFunction>,
  use_wasi: bool,
  callables: Vec<(String, Option<ValueType>)>,
  max_output: u64,
  /// The maximum size of a block that host functions can read, in bytes.
  max_block: u64,
  /// Compiled plugins whose instances have been dropped.
  spare: Mutex<Vec<Compiled>>,
}

/// A plugin compiled for one instance at a time, because `extism` interrupts all instances of an engine at
/// once.
struct Compiled {
  plugin: CompiledPlugin,
  state: Arc<Mutex<ReferenceState>>,
}

/// What host functions need to know about the instance that calls them.
#[derive(Default)]
struct ReferenceState {
  /// Before that, `extism` cannot read the guest's memory: trying would crash the process.
  is_initialized: bool,
  call: Option<u64>,
  interruption: Arc<Interruption>,
  last_response: LastResponse,
  /// Why the run ended, if a host function ended it.
  ending: Option<Ending>,
}

impl Reference {
  /// Compiles the modules. They have already been linked by our own linker, as a check.
  pub fn new(
    manifest: &Manifest,
    modules: Vec<LoadedModule>,
    functions: Vec<HostFunction>,
    linked: &Linked,
  ) -> Result<Self> {
    let mut wasm = extism::Manifest::new(modules.into_iter().map(|module| extism::Wasm::Data {
      data: module.bytes,
      meta: extism::WasmMetadata {
        name: Some(module.name),
        hash: None,
      },
    }));
    let growth_pages = super::load::growth_pages(manifest, linked);
    wasm.memory.max_pages = Some(u32::try_from(growth_pages).unwrap_or(u32::MAX));
    wasm.config = manifest.config.clone();
    wasm.allowed_paths = Some(allowed_paths(&manifest.allowed_paths)?);
    let callables = linked.callables.iter();
    let reference = Self {
      manifest: wasm,
      functions,
      use_wasi: manifest.use_wasi,
      callables: callables
        .map(|callable| (callable.name.clone(), callable.result))
        .collect(),
      max_output: manifest.max_output.unwrap_or(DEFAULT_MAX_OUTPUT),
      max_block: u64::from(manifest.max_pages.unwrap_or(DEFAULT_MAX_PAGES)) * PAGE,
      spare: Mutex::default(),
    };
    let compiled = reference.compile()?;
    lock(&reference.spare).push(compiled);
    Ok(reference)
  }

  fn compile(&self) -> Result<Compiled> {
    let state = Arc::<Mutex<ReferenceState>>::default();
    let builder = PluginBuilder::new(&self.manifest)
      .with_wasi(self.use_wasi)
      .with_cache_disabled()
      .with_functions(self.functions.iter().flat_map(|function| {
        // As everywhere, functions of the namespace `USER` are also found in `ENV`.
        let is_user = function.namespace == USER;
        [Some(function.namespace.as_str()), is_user.then_some(ENV)]
          .into_iter()
          .flatten()
          .map(|namespace| self.host_function(function, namespace, &state))
          .collect::<Vec<_>>()
      }));
    let plugin = builder.compile().map_err(|error| {
      let message = format!("runtime 'extism' cannot compile the plugin: {error:#}");
      Error::new(Code::InvalidWasm, message)
    })?;
    Ok(Compiled { plugin, state })
  }

  fn host_function(
    &self,
    function: &HostFunction,
    namespace: &str,
    state: &Arc<Mutex<ReferenceState>>,
  ) -> Function {
    let (function, state, max_block) = (function.clone(), Arc::clone(state), self.max_block);
    let types = |types: &[ValueType]| types.iter().copied().map(value_type).collect::<Vec<_>>();
    Function::new(
      function.name.clone(),
      types(&function.function.params),
      types(&function.function.results),
      UserData::new(()),
      move |plugin, params, results, _| {
        let mut state = lock(&state);
        let called = call_host(&function, plugin, &mut state, max_block, params, results);
        called.map_err(|stop| {
          state.ending = Some(stop.into());
          // Never read, because the ending has been recorded.
          extism::Error::msg("ended by the host")
        })
      },
    )
    .with_namespace(namespace)
  }
}

fn value_type(value: ValueType) -> ValType {
  match value {
    ValueType::I32 => ValType::I32,
    ValueType::I64 => ValType::I64,
    ValueType::F32 => ValType::F32,
    ValueType::F64 => ValType::F64,
  }
}

/// No operation under these locks can panic halfway, so the data behind a poisoned lock is consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
  mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn call_host(
  function: &HostFunction,
  plugin: &mut CurrentPlugin,
  state: &mut ReferenceState,
  max_block: u64,
  params: &[Val],
  results: &mut [Val],
) -> Result<(), Stop> {
  if !state.is_initialized {
    let what = format!(
      "calling {} while a module initializes itself",
      function.name
    );
    return Err(Stop::HostFunction(unsupported(&what).into()));
  }
  if state.interruption.is_canceled() {
    return Err(Stop::Interrupted);
  }
  // Any i64 may be the offset of a block.
  let offsets = params
    .iter()
    .filter_map(Val::i64)
    .map(|offset| offset as u64);
  let blocks = offsets
    .filter_map(|offset| Some((offset, block(plugin, offset, max_block)?)))
    .collect();
  let mut caller = Caller {
    plugin,
    state,
    blocks,
  };
  function.call_from(&mut caller, params, results)
}

/// A copy of the block that starts at `offset`.
fn block(plugin: &mut CurrentPlugin, offset: u64, max: u64) -> Option<Vec<u8>> {
  let handle = plugin.memory_handle(offset)?;
  if handle.len() as u64 > max {
    return None;
  }
  plugin.memory_bytes(handle).ok().map(<[u8]>::to_vec)
}

/// A guest that calls a host function.
struct Caller<'a> {
  plugin: &'a mut CurrentPlugin,
  state: &'a mut ReferenceState,
  /// Copies of the blocks that it passed, by offset.
  blocks: Vec<(u64, Vec<u8>)>,
}

impl ReferenceCaller for Caller<'_> {
  fn call(&self) -> Option<u64> {
    self.state.call
  }

  fn interruption(&self) -> Arc<Interruption> {
    Arc::clone(&self.state.interruption)
  }

  fn last_response(&mut self) -> &mut LastResponse {
    &mut self.state.last_response
  }

  fn block(&self, offset: u64) -> Option<&[u8]> {
    let mut blocks = self.blocks.iter();
    let (_, bytes) = blocks.find(|(start, _)| *start == offset)?;
    Some(bytes)
  }

  fn alloc(&mut self, length: u64) -> Result<u64, AllocError> {
    let allocated = self.plugin.memory_alloc(length);
    allocated
      .map(|handle| handle.offset())
      .map_err(|_| AllocError::OutOfMemory)
  }

  fn store(&mut self, bytes: &[u8]) -> Result<u64, AllocError> {
    let stored = self.plugin.memory_new(bytes);
    stored
      .map(|handle| handle.offset())
      .map_err(|_| AllocError::OutOfMemory)
  }

  fn set_error(&mut self, message: &[u8]) -> bool {
    self
      .plugin
      .set_error(String::from_utf8_lossy(message))
      .is_ok()
  }
}

/// One instance of a plugin.
pub struct ReferenceInstance {
  reference: Arc<Reference>,
  interrupt: Interrupt,
  interruption: Arc<Interruption>,
  /// Set after the initialization. Declared before `compiled`, because it must be dropped first.
  plugin: Option<extism::Plugin>,
  /// Set until the instance is dropped.
  compiled: Option<Compiled>,
  /// The largest input and output of a call together, in bytes.
  largest: u64,
}

impl ReferenceInstance {
  /// Creates an instance. Runs no guest code.
  pub fn new(reference: &Arc<Reference>) -> Result<Self> {
    signals::ensure_installed();
    let spare = lock(&reference.spare).pop();
    let compiled = match spare {
      Some(compiled) => compiled,
      None => reference.compile()?,
    };
    let interruption = Arc::<Interruption>::default();
    *lock(&compiled.state) = ReferenceState {
      interruption: Arc::clone(&interruption),
      ..ReferenceState::default()
    };
    Ok(Self {
      reference: Arc::clone(reference),
      interrupt: Interrupt::for_extism(),
      interruption,
      plugin: None,
      compiled: Some(compiled),
      largest: 0,
    })
  }

  fn state(&self) -> Option<MutexGuard<'_, ReferenceState>> {
    self.compiled.as_ref().map(|compiled| lock(&compiled.state))
  }

  /// Why the run ended, according to our own records.
  fn recorded_ending(&self) -> Option<Ending> {
    let ending = self.state().and_then(|mut state| state.ending.take());
    ending.or_else(|| {
      self
        .interrupt
        .is_interrupted()
        .then_some(Ending::Interrupted)
    })
  }

  fn failed_initialization(&self, error: &extism::Error) -> Ending {
    if let Some(ending) = self.recorded_ending() {
      return ending;
    }
    match outcome_of(error) {
      Outcome::Ended(ending) => ending,
      Outcome::Exited(Err(CallError::Failed { code, .. })) => Ending::Exited(code),
      Outcome::Exited(_) => Ending::Exited(0),
      Outcome::Returned(_) => trapped(format!("{error:#}")),
    }
  }
}

impl Drop for ReferenceInstance {
  fn drop(&mut self) {
    self.plugin = None;
    // A late interruption would hit the next instance of the engine, so an interrupted one is not reused.
    let compiled = self.compiled.take();
    if let Some(compiled) = compiled.filter(|_| !self.interrupt.is_interrupted()) {
      lock(&self.reference.spare).push(compiled);
    }
  }
}

impl Run for ReferenceInstance {
  fn interrupt(&self) -> &Interrupt {
    &self.interrupt
  }

  fn interruption(&self) -> Arc<Interruption> {
    Arc::clone(&self.interruption)
  }

  fn initialize(&mut self) -> Result<(), Ending> {
    let _in_guest = signals::enter_guest();
    let Some(compiled) = &self.compiled else {
      return Err(not_initialized());
    };
    let mut plugin = extism::Plugin::new_from_compiled(&compiled.plugin)
      .map_err(|error| self.failed_initialization(&error))?;
    self.interrupt.set_cancel_handle(plugin.cancel_handle());
    if let Err(error) = plugin.call::<&[u8], ()>(INITIALIZE, &[])
      && error.to_string() != format!("Function not found: {INITIALIZE}")
    {
      return Err(self.failed_initialization(&error));
    }
    if self.interrupt.is_interrupted() {
      return Err(Ending::Interrupted);
    }
    self.plugin = Some(plugin);
    if let Some(mut state) = self.state() {
      state.is_initialized = true;
    }
    Ok(())
  }

  fn call(&mut self, number: u64, export: u32, input: Vec<u8>) -> Outcome {
    let _in_guest = signals::enter_guest();
    if let Some(mut state) = self.state() {
      state.call = Some(number);
    }
    let Some((name, result)) = self.reference.callables.get(export as usize) else {
      return Outcome::Ended(trapped("there is no such function".to_owned()));
    };
    let Some(plugin) = &mut self.plugin else {
      return Outcome::Ended(not_initialized());
    };
    let input = input.as_slice();
    let called = match result {
      None | Some(ValueType::I32) => plugin.call::<_, &[u8]>(name, input),
      // The result of such a function is not a return code, and is dropped.
      Some(_) => plugin
        .call_get_error_code::<_, &[u8]>(name, input)
        .map_err(|(error, _)| error),
    };
    let (length, limit) = match &called {
      Ok(output) => (output.len() as u64, self.reference.max_output),
      Err(_) => (0, 0),
    };
    self.largest = self.largest.max(input.len() as u64 + length);
    match called {
      Ok(_) if length > limit => {
        Outcome::Returned(Err(CallError::OutputTooLarge { length, limit }))
      }
      Ok(output) => {
        let output = CallOutput {
          bytes: output.to_vec(),
          // `extism` does not distinguish an empty output from none.
          is_set: length > 0,
        };
        match name == "_start" {
          true => Outcome::Exited(Ok(output)),
          false => Outcome::Returned(Ok(output)),
        }
      }
      Err(error) => match self.recorded_ending() {
        Some(ending) => Outcome::Ended(ending),
        None => outcome_of(&error),
      },
    }
  }

  fn reset(&mut self) {
    if let Some(mut state) = self.state() {
      state.call = None;
      state.last_response = LastResponse::default();
    }
  }

  fn kernel_bytes(&self) -> u64 {
    // `extism` does not report the size. It is at least what has passed through the memory.
    self.largest
  }

  fn memory_bytes(&self) -> u64 {
    0
  }

  fn has_too_many_files(&self) -> bool {
    false
  }

  // Calls are not isolated on this runtime.
  fn prepare_restore(&mut self) {}

  fn restore(&mut self) -> bool {
    false
  }

  fn has_initialization(&self) -> bool {
    true
  }

  fn is_instance_of(&self, _: &PluginRuntime) -> bool {
    true
  }

  fn matches_new_instance(&self) -> bool {
    true
  }

  fn set_memory_baseline(&mut self) {}

  fn is_nearly_full(&self) -> bool {
    // `extism` does not report that.
    false
  }
}

fn not_initialized() -> Ending {
  trapped("the instance has not been initialized".to_owned())
}

/// Classifies an error of `extism` for a call that none of our functions ended.
///
/// Traps and exits are recognized by type. For the rest `extism` has only texts, which a guest can produce
/// as well.
fn outcome_of(error: &extism::Error) -> Outcome {
  // If the guest has also set an error message, that is the root cause, and the reason why the call ended
  // is its context.
  let context = error.downcast_ref::<wasmtime::Error>();
  let root_cause = error.root_cause().to_string();
  let cause = match context {
    Some(context) => Cow::Owned(context.root_cause().to_string()),
    None => Cow::Borrowed(root_cause.as_str()),
  };
  if let Some(I32Exit(code)) = find(error) {
    let message = context.map(|_| text(&root_cause));
    return Outcome::Exited(Err(CallError::Failed {
      code: *code,
      message,
    }));
  }
  let is_out_of_memory = matches!(find(error), Some(Trap::AllocationTooLarge))
    || find::<wasmtime::GcHeapOutOfMemory<()>>(error).is_some();
  if is_out_of_memory || cause == "oom" || cause.ends_with(" out of memory") {
    return Outcome::Ended(Ending::OutOfMemory);
  }
  let backtrace = find::<WasmBacktrace>(error);
  if backtrace.is_some() || find::<Trap>(error).is_some() {
    return Outcome::Ended(Ending::Trapped {
      message: cause.into_owned(),
      backtrace: instance::backtrace(backtrace),
      // The crate does not report what the guest has written.
      has_hidden_errors: false,
    });
  }
  let code = root_cause.strip_prefix(EXIT_CODE);
  Outcome::Returned(Err(match code.and_then(|code| code.parse().ok()) {
    Some(code) => CallError::Failed {
      code,
      message: None,
    },
    None => CallError::Failed {
      code: 0,
      message: Some(text(&root_cause)),
    },
  }))
}

fn find<T: std::fmt::Display + std::fmt::Debug + Send + Sync + 'static>(
  error: &extism::Error,
) -> Option<&T> {
  let context = || error.downcast_ref::<wasmtime::Error>()?.downcast_ref();
  error.downcast_ref().or_else(context)
}

fn text(message: &str) -> String {
  let kept = message.as_bytes().get(..instance::MAX_MESSAGE);
  instance::message(kept.unwrap_or(message.as_bytes()), message.len())
}
