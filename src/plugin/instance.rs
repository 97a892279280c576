//! A compiled plugin, and one instance of it: initialization and calls.
//!
//! An instance stays on one thread. If a run ends in any way other than returning, the guest's state is
//! unknown, so the instance is dropped and another is created from the same [`Template`], in
//! microseconds.

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};

use wasmtime::{
  AsContextMut, Engine, Func, FuncType, InstancePre, Linker, Module, ModuleExport,
  PoolConcurrencyLimitError, Store, Trap, TypedFunc, Val, WasmBacktrace,
};
use wasmtime_wasi::{FsPerms, I32Exit, WasiCtxBuilder};

use super::engine::{self, EngineKind};
use super::interrupt::Interrupt;
use super::link::{self, Callable, Initializer, Linked, StateExports};
use super::manifest::AllowedPath;
use super::pristine::{GuestState, Pristine};
use super::reference::Reference;
use super::wasi;
use crate::abi::{self, FunctionType, ValueType};
use crate::host::guest::Limiter;
use crate::host::output::{Output, SharedStreams};
use crate::host::{Guest, HostFunction, HostFunctionError, Interruption, Stop};
use crate::kernel::{AllocError, HasKernel, Kernel};
use crate::{Code, Error, Result, signals};

/// The maximum length of a guest's error message: 64 KiB. Longer ones are cut, because messages are for
/// people.
pub(super) const MAX_MESSAGE: usize = 64 << 10;

/// The maximum number of functions in a backtrace.
const MAX_FRAMES: usize = 32;

/// The maximum length of a function name in a backtrace.
const MAX_FRAME_NAME: usize = 256;

/// The initial size of the kernel's memory for blocks.
const FIRST_KERNEL_BYTES: u64 = 64 << 10;

/// The maximum capacity of an input buffer that is reused for the output.
const MAX_SPARE: usize = 4096;

/// The limits of a plugin's instances, and their WASI environment.
#[derive(Clone)]
pub struct InstanceSettings {
  /// The kind of the engine.
  pub kind: EngineKind,
  /// Units of fuel for the initialization and for each call; not counted if `None`.
  pub fuel: Option<u64>,
  /// The number of pages by which all memories together may grow.
  pub growth_pages: u64,
  /// The maximum size of all live blocks together, in bytes.
  pub live_bytes: u64,
  /// The number of elements by which all tables together may grow.
  pub table_elements: u64,
  /// The maximum size of an output, in bytes.
  pub max_output: u64,
  /// The destination of standard output and error.
  pub output: Output,
  /// The arguments that WASI guests see.
  pub arguments: Vec<String>,
  /// Their environment variables.
  pub environment: Vec<(String, String)>,
  /// The directories that they may access.
  pub allowed_paths: Vec<AllowedPath>,
}

/// A compiled plugin, from which instances are created. Any number of threads may use it.
pub struct Template {
  settings: InstanceSettings,
  imports: Imports,
  callables: Vec<Callable>,
  /// The exports of the state that calls can change, if an instance can be restored.
  state: Option<StateExports>,
  /// The values of that state before the initialization, which are the same for all instances.
  pristine: OnceLock<Pristine>,
  /// The number of `_start`. An instance cannot be used again after it has run.
  start: Option<u32>,
  initializers: Vec<Initializer>,
  prepared: Arc<Prepared>,
  /// The same for the engine without a pool, created when the pool is full for the first time.
  on_demand: OnceLock<Arc<Prepared>>,
}

/// A linked module's imports from the host besides the kernel's functions.
struct Imports {
  functions: BTreeMap<usize, HostFunction>,
  uses_wasi: bool,
  wasi_memories: usize,
  /// Whether functions that reach outside the instance fail: all host functions, and WASI's file system.
  is_isolated: bool,
}

/// A module with its imports resolved, on one engine.
struct Prepared {
  pre: InstancePre<Guest>,
  callables: Vec<ModuleExport>,
  initializers: Vec<ModuleExport>,
}

impl Template {
  /// Connects a compiled module with the host functions that it imports.
  pub fn new(module: &Module, linked: &Linked, settings: InstanceSettings) -> Result<Self> {
    Self::with(module, linked, settings, false)
  }

  /// Like [`new`](Self::new), but the instances cannot reach anything outside: calling a host function or
  /// WASI's file system ends the run.
  pub fn isolated(module: &Module, linked: &Linked, settings: InstanceSettings) -> Result<Self> {
    Self::with(module, linked, settings, true)
  }

  fn with(
    module: &Module,
    linked: &Linked,
    settings: InstanceSettings,
    is_isolated: bool,
  ) -> Result<Self> {
    let imports = Imports {
      functions: linked.functions.clone(),
      uses_wasi: linked.uses_wasi,
      wasi_memories: linked.wasi_memories,
      is_isolated,
    };
    let (callables, initializers) = (linked.callables.clone(), linked.initializers.clone());
    let prepared = Prepared::new(module, &imports, &callables, &initializers)?;
    Ok(Self {
      settings,
      imports,
      state: linked.state.clone(),
      pristine: OnceLock::new(),
      start: (0..)
        .zip(&callables)
        .find(|(_, callable)| callable.name == "_start")
        .map(|(number, _)| number),
      callables,
      initializers,
      prepared: Arc::new(prepared),
      on_demand: OnceLock::new(),
    })
  }

  /// For an instance that does not fit into the pool.
  fn on_demand(&self) -> Result<&Arc<Prepared>> {
    if let Some(prepared) = self.on_demand.get() {
      return Ok(prepared);
    }
    let load = || {
      let code = self.prepared.pre.module().serialize()?;
      let engine = engine::on_demand(self.settings.kind)?;
      // SAFETY: the bytes must be output of Wasmtime's compiler. They are the serialization of a module.
      unsafe { Module::deserialize(&engine, code) }
    };
    let module = load().map_err(|error: wasmtime::Error| {
      let message = format!("the plugin cannot be loaded without the pool: {error:#}");
      Error::exhausted(&message, error.chain())
        .unwrap_or_else(|| Error::new(Code::Internal, message))
    })?;
    let prepared = Prepared::new(&module, &self.imports, &self.callables, &self.initializers)?;
    Ok(self.on_demand.get_or_init(|| Arc::new(prepared)))
  }
}

impl Prepared {
  fn new(
    module: &Module,
    imports: &Imports,
    callables: &[Callable],
    initializers: &[Initializer],
  ) -> Result<Self> {
    let linker = imports.define(module.engine()).map_err(|error| {
      let message = format!("the plugin cannot be linked: {error:#}");
      Error::new(Code::Internal, message)
    })?;
    let export = |name: &str| {
      module
        .get_export_index(name)
        .ok_or_else(|| Error::new(Code::Internal, format!("the linker left out {name}")))
    };
    let callables = callables.iter().map(|callable| export(&callable.export));
    let initializers = initializers
      .iter()
      .map(|initializer| export(&initializer.export));
    Ok(Self {
      pre: linker.instantiate_pre(module).map_err(|error| {
        let message = format!("the plugin cannot be linked: {error:#}");
        Error::new(Code::InvalidWasm, message)
      })?,
      callables: callables.collect::<Result<_>>()?,
      initializers: initializers.collect::<Result<_>>()?,
    })
  }
}

impl Imports {
  fn define(&self, engine: &Engine) -> wasmtime::Result<Linker<Guest>> {
    let mut linker = Linker::new(engine);
    define_kernel(&mut linker)?;
    for (number, function) in &self.functions {
      let name = number.to_string();
      match self.is_isolated {
        true => refuse(
          &mut linker,
          link::names::FUNCTION,
          &name,
          &function.name,
          &function.function,
        )?,
        false => define_host_function(&mut linker, &name, function.clone())?,
      }
    }
    if self.uses_wasi {
      self.define_wasi(&mut linker, abi::WASI, link::names::MEMORY)?;
      for number in 1..=self.wasi_memories {
        let (namespace, memory) = (link::names::wasi(number), link::names::wasi_memory(number));
        self.define_wasi(&mut linker, &namespace, &memory)?;
      }
    }
    Ok(linker)
  }

  fn define_wasi(
    &self,
    linker: &mut Linker<Guest>,
    namespace: &str,
    memory: &str,
  ) -> wasmtime::Result<()> {
    wasi::add_to_linker(linker, namespace, memory)?;
    if self.is_isolated {
      linker.allow_shadowing(true);
      for (name, ty) in abi::file_system() {
        refuse(linker, namespace, name, name, &ty)?;
      }
      linker.allow_shadowing(false);
    }
    Ok(())
  }
}

/// Defines a function that ends the run.
fn refuse(
  linker: &mut Linker<Guest>,
  namespace: &str,
  name: &str,
  what: &str,
  ty: &FunctionType,
) -> wasmtime::Result<()> {
  let error = HostFunctionError::new(format!("{what} cannot be called while a snapshot is taken"));
  let ty = function_type(linker.engine(), ty);
  linker.func_new(namespace, name, ty, move |_, _, _| {
    Err(wasmtime::Error::new(Stop::HostFunction(error.clone())))
  })?;
  Ok(())
}

fn function_type(engine: &Engine, ty: &FunctionType) -> FuncType {
  let params = ty.params.iter().map(|ty| (*ty).into());
  FuncType::new(engine, params, ty.results.iter().map(|ty| (*ty).into()))
}

fn define_host_function(
  linker: &mut Linker<Guest>,
  name: &str,
  function: HostFunction,
) -> wasmtime::Result<()> {
  let FunctionType { params, results } = &function.function;
  if let ([ValueType::I64], [ValueType::I64]) = (params.as_slice(), results.as_slice()) {
    // Most functions take an offset and return one. Calling a typed function takes Wasmtime half the
    // time.
    let typed = move |caller: wasmtime::Caller<'_, Guest>, argument: i64| {
      let mut result = [Val::I64(0)];
      let called = function.call(caller, &[Val::I64(argument)], &mut result);
      called.map_err(wasmtime::Error::new)?;
      match result {
        [Val::I64(result)] => Ok(result),
        // Unreachable: `call` has checked the type.
        _ => Err(wasmtime::Error::msg("the result has another type")),
      }
    };
    linker.func_wrap(link::names::FUNCTION, name, typed)?;
    return Ok(());
  }
  let ty = function_type(linker.engine(), &function.function);
  linker.func_new(
    link::names::FUNCTION,
    name,
    ty,
    move |caller, params, results| {
      let called = function.call(caller, params, results);
      called.map_err(wasmtime::Error::new)
    },
  )?;
  Ok(())
}

/// The kernel functions that the host implements.
fn define_kernel(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
  linker.func_wrap(
    link::names::KERNEL,
    "alloc",
    |mut caller: wasmtime::Caller<'_, Guest>, length: i64| -> wasmtime::Result<i64> {
      let mut store = caller.as_context_mut();
      Kernel::alloc(&mut store, length as u64)
        .map(|offset| offset as i64)
        .map_err(|AllocError::OutOfMemory| wasmtime::Error::new(Stop::OutOfMemory))
    },
  )?;
  linker.func_wrap(
    link::names::KERNEL,
    "free",
    |mut caller: wasmtime::Caller<'_, Guest>, offset: i64| {
      Kernel::free(&mut caller.as_context_mut(), offset as u64);
    },
  )?;
  Ok(())
}

/// Why a call that ended normally has no output.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
  /// The guest set an error message, returned a code other than 0, or both.
  #[error("{}", message.clone().unwrap_or_else(|| format!("the plugin returned the code {code}")))]
  Failed {
    /// The return value of the export; 0 if it does not return an i32.
    code: i32,
    /// The error message that the guest set. If longer than 64 KiB, it is cut and ends with a note about
    /// that.
    message: Option<String>,
  },
  /// The output exceeds the limit. It was not copied.
  #[error("the output has {length} bytes; the limit is {limit}")]
  OutputTooLarge {
    /// Its size in bytes.
    length: u64,
    /// The limit in bytes.
    limit: u64,
  },
}

/// The output of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallOutput {
  /// The output. Empty if it is not set; the vector may then still hold the buffer of the input.
  pub bytes: Vec<u8>,
  /// Whether the guest has set an output, even an empty one.
  pub is_set: bool,
}

/// How a call ended.
#[derive(Debug)]
pub enum Outcome {
  /// The guest returned. The instance can serve further calls.
  Returned(Result<CallOutput, CallError>),
  /// The guest returned or exited, and the instance cannot serve another call.
  Exited(Result<CallOutput, CallError>),
  /// The run was ended early.
  Ended(Ending),
}

/// Why a run was ended. Determined from error types and our own records, never from anything that a guest
/// says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
  /// The guest called `proc_exit` with this code during its initialization.
  Exited(i32),
  /// The guest violated a rule of WebAssembly, WASI or the kernel.
  Trapped {
    /// The rule that was violated.
    message: String,
    /// The functions that were running, innermost first.
    backtrace: Vec<String>,
    /// Whether the guest had written to standard error and that output was discarded.
    has_hidden_errors: bool,
  },
  /// The guest exceeded its memory limit.
  OutOfMemory,
  /// The guest used up its fuel.
  OutOfFuel,
  /// The instance was interrupted.
  Interrupted,
  /// A host function failed.
  HostFunction(HostFunctionError),
  /// A host function panicked.
  Panicked(String),
}

impl From<Stop> for Ending {
  fn from(stop: Stop) -> Self {
    match stop {
      Stop::OutOfMemory => Self::OutOfMemory,
      Stop::HostFunction(error) => Self::HostFunction(error),
      Stop::Panicked(message) => Self::Panicked(message),
      Stop::Interrupted => Self::Interrupted,
    }
  }
}

/// The source of a plugin's instances.
#[derive(Clone)]
pub enum PluginRuntime {
  /// This crate's own core.
  Wasmtime(Arc<Template>),
  /// The reference runtime.
  Extism(Arc<Reference>),
}

/// An instance, as a worker uses it.
pub trait Run {
  /// The handle that interrupts the instance.
  fn interrupt(&self) -> &Interrupt;

  /// The cancellation that its host functions watch.
  fn interruption(&self) -> Arc<Interruption>;

  /// Runs the guest's initialization. Called once before the first call, and again after
  /// [`restore`](Self::restore).
  fn initialize(&mut self) -> Result<(), Ending>;

  /// Calls the export with the number `export`.
  fn call(&mut self, number: u64, export: u32, input: Vec<u8>) -> Outcome;

  /// Clears everything that the last call has left, except the guest's own state.
  fn reset(&mut self);

  /// Saves what [`restore`](Self::restore) needs. Called before the initialization.
  fn prepare_restore(&mut self);

  /// Restores the state at [`prepare_restore`](Self::prepare_restore). If this returns `false`, the
  /// instance must be replaced.
  fn restore(&mut self) -> bool;

  /// Whether the plugin has an initialization.
  fn has_initialization(&self) -> bool;

  /// Whether `runtime` would create instances from the same template.
  fn is_instance_of(&self, runtime: &PluginRuntime) -> bool;

  /// Whether a restored instance is indistinguishable from a new one, after its initialization.
  fn matches_new_instance(&self) -> bool;

  /// The size of the memory that contains the blocks, in bytes. It never shrinks.
  fn kernel_bytes(&self) -> u64;

  /// The size of all its memories together, in bytes; 0 if the runtime does not tell.
  fn memory_bytes(&self) -> u64;

  /// Whether the guest has more files open than it may keep between calls.
  fn has_too_many_files(&self) -> bool;

  /// Makes the current memory size the baseline for [`is_nearly_full`](Self::is_nearly_full).
  fn set_memory_baseline(&mut self);

  /// Whether the guest's memories have grown so much beyond the baseline that they may soon reach their
  /// limit.
  fn is_nearly_full(&self) -> bool;
}

/// A callable function of an instance.
#[derive(Clone)]
enum EntryPoint {
  Plain(TypedFunc<(), ()>),
  Coded(TypedFunc<(), i32>),
  /// A function with another result type. The result is dropped.
  Other(Func, ValueType),
}

/// One instance of a plugin.
pub struct Instance {
  template: Arc<Template>,
  prepared: Arc<Prepared>,
  interrupt: Interrupt,
  /// By number; looked up on their first call.
  entries: Vec<Option<EntryPoint>>,
  instance: wasmtime::Instance,
  spare: Vec<u8>,
  /// The memories and globals, if the instance can be restored.
  state: Option<GuestState>,
  matches_new_instance: bool,
  store: Store<Guest>,
}

impl Drop for Instance {
  fn drop(&mut self) {
    // Before the store, which is dropped after this.
    self.interrupt.disarm();
  }
}

impl Instance {
  /// Creates an instance. Runs no guest code.
  pub fn new(template: &Arc<Template>) -> Result<Self> {
    match Self::on_engine(template, &template.prepared) {
      Err(error) if error.is::<PoolConcurrencyLimitError>() => {
        Self::on_engine(template, template.on_demand()?)
      }
      made => made,
    }
    .map_err(|error| match error.downcast_ref::<Trap>() {
      // An active segment outside its memory or table.
      Some(trap) => Error::new(Code::Trap, format!("the plugin trapped: {trap}")),
      None => {
        let message = format!("the plugin cannot be instantiated: {error:#}");
        Error::exhausted(&message, error.chain())
          .unwrap_or_else(|| Error::new(Code::InvalidWasm, message))
      }
    })
  }

  fn on_engine(template: &Arc<Template>, prepared: &Arc<Prepared>) -> wasmtime::Result<Self> {
    let settings = &template.settings;
    let streams = SharedStreams::new(settings.output.clone());
    let limiter = Limiter::new(settings.growth_pages, settings.table_elements);
    let mut guest = Guest::new(Kernel::new(settings.live_bytes), limiter, streams);
    if template.imports.uses_wasi {
      guest.wasi = Some(wasi_context(settings)?);
    }
    let mut store = Store::new(prepared.pre.module().engine(), guest);
    store.limiter(|guest| &mut guest.limiter);
    if template.settings.fuel.is_some() {
      // Instantiation must not consume the guest's fuel.
      store.set_fuel(u64::MAX)?;
    }
    let interrupt = Interrupt::new(&mut store, settings.kind.interruptions);
    signals::ensure_installed();
    let in_guest = signals::enter_guest();
    let instance = prepared.pre.instantiate(&mut store);
    drop(in_guest);
    let instance = instance?;
    let memory = |store: &mut Store<Guest>, name: &str| {
      let missing = || wasmtime::format_err!("the linker left out {name}");
      instance.get_memory(store, name).ok_or_else(missing)
    };
    let blocks = memory(&mut store, link::names::BLOCKS)?;
    let table = memory(&mut store, link::names::TABLE)?;
    store.data_mut().kernel_mut().attach(blocks, table);
    if let Some(page) = instance.get_memory(&mut store, link::names::INTERRUPT) {
      page.grow(&mut store, 1)?;
      if let Some(address) = NonNull::new(page.data_ptr(&store)) {
        interrupt.arm_page(address);
      }
    }
    store.data_mut().limiter.start();
    Ok(Self {
      template: Arc::clone(template),
      prepared: Arc::clone(prepared),
      interrupt,
      entries: vec![None; template.callables.len()],
      instance,
      spare: Vec::new(),
      state: None,
      matches_new_instance: true,
      store,
    })
  }

  fn try_restore(&mut self) -> Option<()> {
    let (state, pristine) = (self.state.as_ref()?, self.template.pristine.get()?);
    if Kernel::bytes(&self.store) > FIRST_KERNEL_BYTES {
      return None;
    }
    pristine.restore(state, &mut self.store)?;
    let wasi = match self.template.imports.uses_wasi {
      true => Some(wasi_context(&self.template.settings).ok()?),
      false => None,
    };
    self.reset();
    let guest = self.store.data_mut();
    (guest.wasi, guest.open_descriptors) = (wasi, 0);
    Some(())
  }

  /// The Wasmtime instance and its store.
  pub(super) fn parts(&mut self) -> (wasmtime::Instance, &mut Store<Guest>) {
    (self.instance, &mut self.store)
  }

  fn fill_fuel(&mut self) {
    if let Some(fuel) = self.template.settings.fuel {
      // Fails only for an engine that does not count fuel.
      let _ = self.store.set_fuel(fuel);
    }
  }

  fn entry(&mut self, export: u32) -> Option<EntryPoint> {
    let index = export as usize;
    if let Some(entry) = self.entries.get(index)? {
      return Some(entry.clone());
    }
    let export = self.prepared.callables.get(index)?;
    let result = self.template.callables.get(index)?.result;
    let function = self
      .instance
      .get_module_export(&mut self.store, export)?
      .into_func()?;
    let entry = match result {
      None => EntryPoint::Plain(function.typed(&self.store).ok()?),
      Some(ValueType::I32) => EntryPoint::Coded(function.typed(&self.store).ok()?),
      Some(result) => EntryPoint::Other(function, result),
    };
    *self.entries.get_mut(index)? = Some(entry.clone());
    Some(entry)
  }

  /// The result of a call that returned `code`.
  fn result(&mut self, code: i32) -> Result<CallOutput, CallError> {
    let store = &self.store;
    if let Some(error) = Kernel::error(store) {
      let kept = error.get(..MAX_MESSAGE).unwrap_or(error);
      return Err(CallError::Failed {
        code,
        message: Some(message(kept, error.len())),
      });
    }
    if code != 0 {
      return Err(CallError::Failed {
        code,
        message: None,
      });
    }
    let output = Kernel::output(store);
    let is_set = output.is_some();
    let output = output.unwrap_or_default();
    let (length, limit) = (output.len() as u64, self.template.settings.max_output);
    if length > limit {
      return Err(CallError::OutputTooLarge { length, limit });
    }
    let mut copy = std::mem::take(&mut self.spare);
    copy.clear();
    copy.extend_from_slice(output);
    Ok(CallOutput {
      bytes: copy,
      is_set,
    })
  }

  fn ending_of(&self, error: &wasmtime::Error) -> Ending {
    if let Some(I32Exit(code)) = error.downcast_ref() {
      return Ending::Exited(*code);
    }
    if let Some(stop) = error.downcast_ref::<Stop>() {
      return stop.clone().into();
    }
    let trap = error.downcast_ref::<Trap>();
    if self.interrupt.is_interrupted() && trap.is_some() {
      return Ending::Interrupted;
    }
    match trap {
      Some(Trap::OutOfFuel) => return Ending::OutOfFuel,
      Some(Trap::AllocationTooLarge) => return Ending::OutOfMemory,
      _ => {}
    }
    if error.is::<wasmtime::GcHeapOutOfMemory<()>>() {
      return Ending::OutOfMemory;
    }
    Ending::Trapped {
      message: error.root_cause().to_string(),
      backtrace: backtrace(error.downcast_ref()),
      has_hidden_errors: self.store.data().streams.has_hidden_errors(),
    }
  }
}

impl Run for Instance {
  fn interrupt(&self) -> &Interrupt {
    &self.interrupt
  }

  fn interruption(&self) -> Arc<Interruption> {
    Arc::clone(&self.store.data().interruption)
  }

  fn initialize(&mut self) -> Result<(), Ending> {
    let prepared = Arc::clone(&self.prepared);
    for export in &prepared.initializers {
      let function = self.instance.get_module_export(&mut self.store, export);
      let Some(function) = function.and_then(wasmtime::Extern::into_func) else {
        continue;
      };
      let ty = function.ty(&self.store);
      // Arguments are zeros and results are dropped, as in Haskell's `hs_init(0, 0)`.
      let zeros = |types: Vec<wasmtime::ValType>| {
        let zero = |ty| wasmtime::Val::default_for_ty(&ty).unwrap_or(wasmtime::Val::I32(0));
        types.into_iter().map(zero).collect::<Vec<_>>()
      };
      let (params, mut results) = (zeros(ty.params().collect()), zeros(ty.results().collect()));
      self.fill_fuel();
      let in_guest = signals::enter_guest();
      let ran = function.call(&mut self.store, &params, &mut results);
      drop(in_guest);
      self.store.data().streams.end();
      ran.map_err(|error| self.ending_of(&error))?;
    }
    // The initialization may have called host functions, which may have allocated blocks.
    self.reset();
    self.matches_new_instance = match &mut self.state {
      Some(state) => state.record_sizes(&mut self.store),
      None => true,
    };
    Ok(())
  }

  fn call(&mut self, number: u64, export: u32, input: Vec<u8>) -> Outcome {
    let Some(entry) = self.entry(export) else {
      let message = "there is no such function".to_owned();
      return Outcome::Ended(trapped(message));
    };
    let guest = self.store.data_mut();
    guest.call = Some(number);
    guest.streams.begin(Some(number));
    if let Err(AllocError::OutOfMemory) =
      Kernel::set_input(&mut self.store.as_context_mut(), &input)
    {
      return Outcome::Ended(Ending::OutOfMemory);
    }
    if input.capacity() <= MAX_SPARE {
      // So a short call allocates and frees memory only on its caller's thread.
      self.spare = input;
    }
    self.fill_fuel();
    let in_guest = signals::enter_guest();
    let ran = match &entry {
      EntryPoint::Plain(function) => function.call(&mut self.store, ()).map(|()| 0),
      EntryPoint::Coded(function) => function.call(&mut self.store, ()),
      EntryPoint::Other(function, ty) => function
        .call(&mut self.store, &[], &mut [ty.zero()])
        .map(|()| 0),
    };
    drop(in_guest);
    self.store.data().streams.end();
    match ran {
      Ok(code) => {
        let result = self.result(code);
        match self.template.start == Some(export) {
          true => Outcome::Exited(result),
          false => Outcome::Returned(result),
        }
      }
      Err(error) => match self.ending_of(&error) {
        Ending::Exited(code) => Outcome::Exited(self.result(code)),
        ending => Outcome::Ended(ending),
      },
    }
  }

  fn reset(&mut self) {
    Kernel::reset(&mut self.store.as_context_mut());
    let guest = self.store.data_mut();
    guest.call = None;
    guest.last_response = Default::default();
  }

  fn prepare_restore(&mut self) {
    let Some(exports) = &self.template.state else {
      return;
    };
    self.state = GuestState::new(exports, &self.instance, &mut self.store);
    if let Some(state) = &self.state {
      let pristine = &self.template.pristine;
      pristine.get_or_init(|| Pristine::new(state, &mut self.store));
    }
  }

  fn restore(&mut self) -> bool {
    self.try_restore().is_some()
  }

  fn has_initialization(&self) -> bool {
    !self.prepared.initializers.is_empty()
  }

  fn is_instance_of(&self, runtime: &PluginRuntime) -> bool {
    matches!(runtime, PluginRuntime::Wasmtime(template) if Arc::ptr_eq(template, &self.template))
  }

  fn matches_new_instance(&self) -> bool {
    self.matches_new_instance
  }

  fn kernel_bytes(&self) -> u64 {
    Kernel::bytes(&self.store)
  }

  fn memory_bytes(&self) -> u64 {
    self.store.data().limiter.memory()
  }

  fn has_too_many_files(&self) -> bool {
    self.store.data().open_descriptors > wasi::MAX_KEPT_OPEN
  }

  fn set_memory_baseline(&mut self) {
    self.store.data_mut().limiter.accept();
  }

  fn is_nearly_full(&self) -> bool {
    self.store.data().limiter.is_nearly_full()
  }
}

/// The functions that were running, innermost first.
pub(super) fn backtrace(backtrace: Option<&WasmBacktrace>) -> Vec<String> {
  let frames = backtrace.map(WasmBacktrace::frames).unwrap_or_default();
  let name = |frame: &wasmtime::FrameInfo| match frame.func_name() {
    Some(name) => name
      .get(..name.floor_char_boundary(MAX_FRAME_NAME))
      .unwrap_or(name)
      .to_owned(),
    None => format!("wasm-function[{}]", frame.func_index()),
  };
  frames.iter().take(MAX_FRAMES).map(name).collect()
}

pub(super) fn trapped(message: String) -> Ending {
  Ending::Trapped {
    message,
    backtrace: Vec::new(),
    has_hidden_errors: false,
  }
}

/// The WASI context of a new instance.
fn wasi_context(settings: &InstanceSettings) -> wasmtime::Result<wasmtime_wasi::p1::WasiP1Ctx> {
  let mut builder = WasiCtxBuilder::new();
  builder
    .allow_blocking_current_thread(true)
    .args(&settings.arguments)
    .envs(&settings.environment);
  for path in &settings.allowed_paths {
    let permissions = match path.is_read_only {
      true => FsPerms::ReadOnly,
      false => FsPerms::ReadWrite,
    };
    let guest = path.guest.to_string_lossy();
    builder.preopened_dir(&path.host, guest, permissions)?;
  }
  Ok(builder.build_p1())
}

/// The text of an error message of `length` bytes, of which `bytes` are the first.
pub(super) fn message(bytes: &[u8], length: usize) -> String {
  let mut text = String::from_utf8_lossy(bytes).into_owned();
  // Replacing invalid UTF-8 can make the text longer.
  if length <= MAX_MESSAGE && text.len() <= MAX_MESSAGE {
    return text;
  }
  text.truncate(text.floor_char_boundary(MAX_MESSAGE));
  // The last character was cut.
  if text.ends_with(char::REPLACEMENT_CHARACTER) {
    text.pop();
  }
  text.push_str(&format!("... (cut: the message has {length} bytes)"));
  text
}
