//! A compiled plugin, and one instance of it: initialization and calls.
//!
//! An instance stays on one thread. What ends a run by anything but a return leaves the guest's state
//! unknown, so the instance is dropped and another is made from the same [`Template`], in microseconds.

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};

use wasmtime::{
  AsContextMut, Engine, Func, FuncType, InstancePre, Linker, Module, ModuleExport,
  PoolConcurrencyLimitError, Store, Trap, TypedFunc, Val, WasmBacktrace,
};
use wasmtime_wasi::{FsPerms, I32Exit, WasiCtxBuilder};

use super::engine::{self, Kind};
use super::interrupt::Interrupt;
use super::link::{self, Callable, Initializer, Linked, StateExports};
use super::manifest::AllowedPath;
use super::pristine::{Pristine, State};
use super::reference::Reference;
use super::wasi;
use crate::abi::{self, FunctionType, ValueType};
use crate::host::guest::Limiter;
use crate::host::output::{Output, SharedStreams};
use crate::host::{Guest, HostFunction, HostFunctionError, Interruption, Stop};
use crate::kernel::{AllocError, HasKernel, Kernel};
use crate::{Code, Error, Result, signals};

/// How many bytes of a guest's error message are kept: 64 KiB. A message is for people.
pub(super) const MAX_MESSAGE: usize = 64 << 10;

/// How many functions a backtrace names.
const MAX_FRAMES: usize = 32;

/// How long the name of a function may be there.
const MAX_FRAME_NAME: usize = 256;

/// What the kernel's memory for blocks has at first.
const FIRST_KERNEL_BYTES: u64 = 64 << 10;

/// How large the memory of an input may be to be used again for the output.
const MAX_SPARE: usize = 4096;

/// What instances of a plugin may use, and what they have of WASI.
#[derive(Clone)]
pub struct Settings {
  /// The engine's kind.
  pub kind: Kind,
  /// Units of fuel that the initialization and each call have, if they are counted.
  pub fuel: Option<u64>,
  /// Pages by which memories may grow together.
  pub growth_pages: u64,
  /// Bytes that live blocks may have together.
  pub live_bytes: u64,
  /// Elements by which tables may grow together.
  pub table_elements: u64,
  /// Bytes that an output may have.
  pub max_output: u64,
  /// Where standard output and error go.
  pub output: Output,
  /// What WASI guests see as their arguments.
  pub arguments: Vec<String>,
  /// Their environment.
  pub environment: Vec<(String, String)>,
  /// Their directories.
  pub allowed_paths: Vec<AllowedPath>,
}

/// A compiled plugin, from which instances are made. Any number of threads may use it.
pub struct Template {
  settings: Settings,
  imports: Imports,
  callables: Vec<Callable>,
  /// What calls can change of an instance, if it can be put back.
  state: Option<StateExports>,
  /// Its values before the initialization, which are the same for all instances.
  pristine: OnceLock<Pristine>,
  /// The number of `_start`, after which an instance has run.
  start: Option<u32>,
  initializers: Vec<Initializer>,
  prepared: Arc<Prepared>,
  /// The same on the engine without a pool, made when the pool is full for the first time.
  on_demand: OnceLock<Arc<Prepared>>,
}

/// What a linked module imports from the host besides the kernel's functions.
struct Imports {
  functions: BTreeMap<usize, HostFunction>,
  uses_wasi: bool,
  wasi_memories: usize,
  /// Whether what reaches out of the instance fails: all host functions, and WASI's file system.
  is_isolated: bool,
}

/// A module that is connected with its imports, on one engine.
struct Prepared {
  pre: InstancePre<Guest>,
  callables: Vec<ModuleExport>,
  initializers: Vec<ModuleExport>,
}

impl Template {
  /// Connects a compiled module with the host functions that it imports.
  pub fn new(module: &Module, linked: &Linked, settings: Settings) -> Result<Self> {
    Self::with(module, linked, settings, false)
  }

  /// The same for instances that cannot reach anything outside: host functions and WASI's file system end
  /// the run.
  pub fn isolated(module: &Module, linked: &Linked, settings: Settings) -> Result<Self> {
    Self::with(module, linked, settings, true)
  }

  fn with(module: &Module, linked: &Linked, settings: Settings, is_isolated: bool) -> Result<Self> {
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

  /// For an instance that the pool has no place for.
  fn on_demand(&self) -> Result<&Arc<Prepared>> {
    if let Some(prepared) = self.on_demand.get() {
      return Ok(prepared);
    }
    let load = || {
      let code = self.prepared.pre.module().serialize()?;
      let engine = engine::on_demand(self.settings.kind)?;
      // SAFETY: the bytes must be what Wasmtime's compiler has made. They are those of a module.
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
  let error = HostFunctionError::new(format!("{what} cannot be called now"));
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
    // Most functions take an offset and return one. Wasmtime calls a typed function in half the time.
    let typed = move |caller: wasmtime::Caller<'_, Guest>, argument: i64| {
      let mut result = [Val::I64(0)];
      let called = function.call(caller, &[Val::I64(argument)], &mut result);
      called.map_err(wasmtime::Error::new)?;
      match result {
        [Val::I64(result)] => Ok(result),
        // The call has checked it.
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

/// The functions of the kernel that the host has.
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

/// Why a call that the guest has ended has no output.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
  /// The guest set an error message, or returned a code other than 0, or both.
  #[error("{}", message.clone().unwrap_or_else(|| format!("the plugin returned the code {code}")))]
  Failed {
    /// What the export returned; 0 for one that returns no i32.
    code: i32,
    /// The error that the guest set; one of more than 64 KiB is cut, and says so at its end.
    message: Option<String>,
  },
  /// The output is longer than allowed. It was not copied.
  #[error("the output has {length} bytes; {limit} are allowed")]
  OutputTooLarge {
    /// Its bytes.
    length: u64,
    /// How many there may be.
    limit: u64,
  },
}

/// What a guest has left as its output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallOutput {
  /// The output. None if it is not set; then this may still have the memory of the input.
  pub bytes: Vec<u8>,
  /// Whether the guest has set one, if only an empty one.
  pub is_set: bool,
}

/// How a call ended.
#[derive(Debug)]
pub enum Outcome {
  /// The guest returned. The instance serves on.
  Returned(Result<CallOutput, CallError>),
  /// The guest returned, or exited, and the instance cannot serve another call.
  Exited(Result<CallOutput, CallError>),
  /// Something ended the run.
  Ended(Ending),
}

/// What ended a run. It is known from types and from our own record; nothing that a guest says
/// decides it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
  /// The guest called `proc_exit` with this code during its initialization.
  Exited(i32),
  /// The guest did what WebAssembly, WASI or the kernel does not allow.
  Trapped {
    /// What it did.
    message: String,
    /// The functions that were running, the innermost first.
    backtrace: Vec<String>,
    /// Whether it has written to standard error before, and nobody sees it.
    has_hidden_errors: bool,
  },
  /// The guest wanted more memory than its limit.
  OutOfMemory,
  /// The guest used up its fuel.
  OutOfFuel,
  /// It was interrupted.
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

/// What instances of a plugin are made from.
#[derive(Clone)]
pub enum Runtime {
  /// This crate's own core.
  Wasmtime(Arc<Template>),
  /// The reference.
  Extism(Arc<Reference>),
}

/// What a worker does with an instance.
pub trait Run {
  /// What interrupts it.
  fn interrupt(&self) -> &Interrupt;

  /// What its host functions watch.
  fn interruption(&self) -> Arc<Interruption>;

  /// Runs what initializes the guest. Once, before the first call.
  fn initialize(&mut self) -> Result<(), Ending>;

  /// Calls the export of that number.
  fn call(&mut self, number: u64, export: u32, input: Vec<u8>) -> Outcome;

  /// Forgets everything of the last call but the guest's own state.
  fn reset(&mut self);

  /// Before the initialization, if [`restore`](Self::restore) will be called: keeps what that needs.
  fn prepare_restore(&mut self);

  /// Undoes everything since then. `false` if that fails; then the instance must be replaced.
  fn restore(&mut self) -> bool;

  /// Whether the plugin has an initialization.
  fn has_initialization(&self) -> bool;

  /// Whether further instances would be made from the same.
  fn is_of(&self, runtime: &Runtime) -> bool;

  /// After the initialization: whether the instance cannot be told from a new one.
  fn is_like_new(&self) -> bool;

  /// The bytes of the memory that blocks lie in, which never shrinks.
  fn kernel_bytes(&self) -> u64;

  /// Whether the guest keeps more files open than it may between calls.
  fn keeps_files(&self) -> bool;

  /// Takes the memory that the guest has now for what it needs.
  fn accept_memory(&mut self);

  /// Whether the guest's memories have grown so much since then that they may soon reach their limit.
  fn is_nearly_full(&self) -> bool;
}

/// A function that can be called.
#[derive(Clone)]
enum Entry {
  Plain(TypedFunc<(), ()>),
  Coded(TypedFunc<(), i32>),
  /// One with another result, which is dropped.
  Other(Func, ValueType),
}

/// One instance of a plugin.
pub struct Instance {
  template: Arc<Template>,
  prepared: Arc<Prepared>,
  interrupt: Interrupt,
  /// By number; looked up when they are first called.
  entries: Vec<Option<Entry>>,
  instance: wasmtime::Instance,
  spare: Vec<u8>,
  /// Memories and globals, if it can be put back.
  state: Option<State>,
  is_like_new: bool,
  store: Store<Guest>,
}

impl Drop for Instance {
  fn drop(&mut self) {
    // Before the store, which is dropped after this.
    self.interrupt.disarm();
  }
}

impl Instance {
  /// Makes an instance. No code of the guest runs.
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
      // What instantiation runs is not the guest's.
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
      is_like_new: true,
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

  /// The instance itself, and its store.
  pub(super) fn parts(&mut self) -> (wasmtime::Instance, &mut Store<Guest>) {
    (self.instance, &mut self.store)
  }

  fn fill_fuel(&mut self) {
    if let Some(fuel) = self.template.settings.fuel {
      // Fails only for an engine that does not count.
      let _ = self.store.set_fuel(fuel);
    }
  }

  fn entry(&mut self, export: u32) -> Option<Entry> {
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
      None => Entry::Plain(function.typed(&self.store).ok()?),
      Some(ValueType::I32) => Entry::Coded(function.typed(&self.store).ok()?),
      Some(result) => Entry::Other(function, result),
    };
    *self.entries.get_mut(index)? = Some(entry.clone());
    Some(entry)
  }

  /// What the guest has left as the result of a call that returned this code.
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
      // Arguments are zeros and results are dropped: Haskell's `hs_init(0, 0)`.
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
    // The guest may have called the host, and the host may have handed out blocks.
    self.reset();
    self.is_like_new = match &mut self.state {
      Some(state) => state.begin_calls(&mut self.store),
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
      // So a short call allocates and frees memory on the thread of its caller only.
      self.spare = input;
    }
    self.fill_fuel();
    let in_guest = signals::enter_guest();
    let ran = match &entry {
      Entry::Plain(function) => function.call(&mut self.store, ()).map(|()| 0),
      Entry::Coded(function) => function.call(&mut self.store, ()),
      Entry::Other(function, ty) => function
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
    self.state = State::new(exports, &self.instance, &mut self.store);
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

  fn is_of(&self, runtime: &Runtime) -> bool {
    matches!(runtime, Runtime::Wasmtime(template) if Arc::ptr_eq(template, &self.template))
  }

  fn is_like_new(&self) -> bool {
    self.is_like_new
  }

  fn kernel_bytes(&self) -> u64 {
    Kernel::bytes(&self.store)
  }

  fn keeps_files(&self) -> bool {
    self.store.data().open_descriptors > wasi::MAX_KEPT_OPEN
  }

  fn accept_memory(&mut self) {
    self.store.data_mut().limiter.accept();
  }

  fn is_nearly_full(&self) -> bool {
    self.store.data().limiter.is_nearly_full()
  }
}

/// The functions that were running, the innermost first.
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

/// What an instance has of WASI.
fn wasi_context(settings: &Settings) -> wasmtime::Result<wasmtime_wasi::p1::WasiP1Ctx> {
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

/// The text of an error message that has `length` bytes, of which these are the first.
pub(super) fn message(bytes: &[u8], length: usize) -> String {
  let mut text = String::from_utf8_lossy(bytes).into_owned();
  // What is not UTF-8 is replaced by something longer.
  if length <= MAX_MESSAGE && text.len() <= MAX_MESSAGE {
    return text;
  }
  text.truncate(text.floor_char_boundary(MAX_MESSAGE));
  // A character of which only the beginning was read.
  if text.ends_with(char::REPLACEMENT_CHARACTER) {
    text.pop();
  }
  text.push_str(&format!("... (cut: the message has {length} bytes)"));
  text
}
