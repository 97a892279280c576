//! An instance of a plugin, and the loop in which it serves jobs.
//!
//! An instance is run once, on one thread, and is used up when its run ends: whatever ended it, the
//! guest's state is not to be trusted (or the driver would initialize it again). Another is made
//! from the same [`Compiled`] in a millisecond.
//!
//! While it runs, the functions that the driver and the gate call find what belongs to the run by
//! their thread. So they belong to no instance, and one that is stuck on its thread, abandoned,
//! shares nothing with the one that has taken its place.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use extism::convert::MemoryHandle;
use extism::{
  CancelHandle, CompiledPlugin, CurrentPlugin, Error, Function, Manifest, Plugin, PluginBuilder,
  UserData, Val, ValType, Wasm,
};

use super::driver::{
  self, DONE, EXIT, INITIALIZED, NEXT, OUT_OF_MEMORY, OUTPUT, RESUME, STARTED, TAKE,
};
use super::names::{self, HOST, RUN};
use super::prepare::Prepared;
use crate::host::http::LastResponse;
use crate::host::output::{Output, Streams};
use crate::host::{
  Answer, Block, Bytes, Called, Conversation, HostFunction, HostFunctionError, Interruption,
  Invocation, Step,
};

/// How many bytes of a guest's error message are kept: 64 KiB. A message is for people.
const MAX_MESSAGE: usize = 64 << 10;

/// The fuel for linking, which runs no code but that of the kernel and of our own modules.
const LINKING_FUEL: u64 = 1_000_000;

/// A call of a plugin.
#[derive(Clone, Debug)]
pub struct Job {
  /// For host functions, to know whose call they are part of.
  pub number: u64,
  /// The export, by its number in [`Prepared::callable`].
  pub export: u32,
  /// What the guest reads as its input.
  pub input: Vec<u8>,
}

/// Where an instance gets its jobs from, and gives their results to. All of it is called on the
/// thread of the run.
pub trait Jobs {
  /// The run has begun; nothing of the guest has. From now on `interrupt` interrupts it, from any
  /// thread, whatever it does at that moment. Earlier it would be lost: Extism ignores it before it
  /// has set the run's deadline. So who wants to end a run before this is called breaks here, and the
  /// run is over: [`Ending::Interrupted`].
  fn started(&self, _interrupt: CancelHandle) -> ControlFlow<()> {
    ControlFlow::Continue(())
  }

  /// The guest has been initialized. Until then, its initialization is what runs.
  fn initialized(&self) {}

  /// What host functions of the run are told by when somebody interrupts it.
  fn interruption(&self) -> Arc<Interruption> {
    Arc::default()
  }

  /// The next job, as soon as there is one; `None` to end the run.
  fn next(&self) -> Option<Job>;

  /// The job that [`Jobs::next`] returned last has ended. A job for which this is not called was
  /// ended by what ended the run; see [`Ending`].
  fn done(&self, finished: Finished);
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
  /// The output.
  pub result: Result<Vec<u8>, CallError>,
  /// How large the kernel's memory is now. It never shrinks.
  pub kernel_bytes: u64,
}

/// Why a job that the guest has ended has no output.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
  /// The guest set an error message, or returned a code other than 0, or both.
  #[error("{}", message.clone().unwrap_or_else(|| format!("the plugin returned the code {code}")))]
  Failed {
    /// What the export returned; 0 for one that returns nothing.
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

/// What ended a run. Unless it is `Stopped` or `Spent`, it also ended the job in flight, if
/// [`Jobs::done`] was not called for it, or the initialization.
///
/// This is known from records of our own. A guest cannot choose it by setting a message: its
/// messages are in [`CallError::Failed`] only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
  /// There were no more jobs.
  Stopped,
  /// `_start` has run, after which a module is over.
  Spent,
  /// The guest called `proc_exit` with this code. The job in flight was given to [`Jobs::done`]
  /// first.
  Exited(i32),
  /// The guest did what WebAssembly, WASI or the guard does not allow.
  Trapped(String),
  /// The guest wanted more memory than its limit.
  OutOfMemory,
  /// The guest used up its fuel.
  OutOfFuel,
  /// It was interrupted by its cancel handle, or [`Jobs::started`] broke it off.
  Interrupted,
  /// A host function failed.
  HostFunction(HostFunctionError),
  /// A host function, or an implementation of [`Jobs`], panicked.
  Panicked(String),
}

/// How a plugin is compiled.
#[derive(Clone, Default)]
pub struct CompileOptions {
  /// Whether guests may import WASI.
  pub wasi: bool,
  /// Directories that guests have then: each as Extism's manifest has it, and what the guest calls it.
  pub allowed_paths: BTreeMap<String, PathBuf>,
  /// Where their standard output and error go.
  pub output: Output,
  /// A configuration file of Wasmtime's cache; without it, nothing is cached.
  pub cache: Option<PathBuf>,
  /// How many units of fuel each job has, and the initialization; roughly, one unit is one
  /// instruction. Unlimited without it.
  pub fuel: Option<u64>,
}

/// Modules that are compiled, with their functions.
///
/// Instances made from one share an engine, and to interrupt one interrupts all: each slot of a
/// plugin needs its own.
#[derive(Clone)]
pub struct Compiled {
  plugin: CompiledPlugin,
  output: Output,
  has_fuel: bool,
  start: Option<u32>,
}

impl Compiled {
  /// Compiles them.
  pub fn new(prepared: &Prepared, options: &CompileOptions) -> Result<Self, Error> {
    let manifest = Manifest::new(
      prepared
        .modules
        .iter()
        .map(|module| Wasm::data(module.bytes.clone()).with_name(module.name.clone())),
    )
    .with_memory_max(prepared.growth_pages)
    .with_allowed_paths(options.allowed_paths.clone().into_iter());
    let imported = prepared
      .functions
      .iter()
      .map(|(number, function)| host_function(*number, function.clone()));
    let builder = PluginBuilder::new(manifest)
      .with_wasi(options.wasi)
      .with_functions(loop_functions())
      .with_functions(imported);
    let builder = match &options.cache {
      Some(path) => builder.with_cache_config(path),
      None => builder.with_cache_disabled(),
    };
    let builder = match options.fuel {
      Some(fuel) => builder
        .with_fuel_limit(fuel)
        .with_initialization_fuel_limit(LINKING_FUEL),
      None => builder,
    };
    Ok(Self {
      has_fuel: options.fuel.is_some(),
      output: options.output.clone(),
      plugin: builder.compile()?,
      start: prepared.callable.get("_start").copied(),
    })
  }

  /// Links the modules. No code of a guest runs.
  pub fn instantiate(&self) -> Result<Instance, Error> {
    Ok(Instance {
      has_fuel: self.has_fuel,
      output: self.output.clone(),
      plugin: Plugin::new_from_compiled(&self.plugin)?,
      start: self.start,
    })
  }
}

/// A plugin that can be run, once.
pub struct Instance {
  plugin: Plugin,
  output: Output,
  has_fuel: bool,
  start: Option<u32>,
}

impl Instance {
  /// Initializes the guest and serves jobs, on this thread, until there are no more or something
  /// ends it. Outputs longer than `output_limit` bytes are not copied.
  pub fn run(mut self, jobs: Rc<dyn Jobs>, output_limit: u64) -> Ending {
    let run = Rc::new(Run {
      interruption: jobs.interruption(),
      last_response: RefCell::default(),
      jobs,
      number: Cell::new(None),
      streams: RefCell::new(Streams::new(self.output.clone())),
      interrupt: self.plugin.cancel_handle(),
      output_limit,
      has_fuel: self.has_fuel,
      is_initialized: Cell::new(false),
      goes_on: Cell::new(false),
      start: self.start,
      export: Cell::new(None),
      conversation: RefCell::new(None),
      ready: RefCell::new(None),
      spare: RefCell::default(),
      ending: RefCell::new(None),
    });
    let _entered = Entered::new(Rc::clone(&run));
    let ending = loop {
      let result = self.plugin.call::<&[u8], ()>(RUN, &[]);
      let ending = run.ending.take();
      break match (ending, result) {
        (Some(ending), _) => ending,
        (None, Err(error)) => ending_of(&error),
        (None, Ok(())) if run.goes_on.take() => continue,
        (None, Ok(())) => Ending::Stopped,
      };
    };
    run.end_streams();
    ending
  }
}

/// What Extism's error says about the end of a run that none of our functions ended.
///
/// The texts are Extism's: it has no other way to say it. No guest can write them here, because
/// none reaches the kernel's error message, and no host function either, because their errors are
/// recorded.
fn ending_of(error: &Error) -> Ending {
  let cause = error.root_cause().to_string();
  match cause.as_str() {
    "timeout" => Ending::Interrupted,
    "oom" => Ending::OutOfMemory,
    "plugin ran out of fuel" => Ending::OutOfFuel,
    _ => Ending::Trapped(cause),
  }
}

/// What belongs to a run.
struct Run {
  jobs: Rc<dyn Jobs>,
  /// Of the job that runs.
  number: Cell<Option<u64>>,
  /// Standard output and error.
  streams: RefCell<Streams>,
  interruption: Arc<Interruption>,
  /// Of the HTTP requests of the job that runs.
  last_response: RefCell<LastResponse>,
  /// For [`Jobs::started`].
  interrupt: CancelHandle,
  output_limit: u64,
  /// Extism fills up the fuel when it calls the driver. So with fuel, the driver returns after the
  /// initialization and after each job, and is called again.
  has_fuel: bool,
  is_initialized: Cell<bool>,
  /// Whether the driver has returned to be called again.
  goes_on: Cell<bool>,
  /// The number of `_start`.
  start: Option<u32>,
  /// The export that runs for a job.
  export: Cell<Option<u32>>,
  /// With the host function that the guest has called and that answers in steps.
  conversation: RefCell<Option<Box<dyn Conversation>>>,
  /// Bytes for the next `take`.
  ready: RefCell<Option<Ready>>,
  /// The memory of the last input, for the output.
  spare: RefCell<Vec<u8>>,
  /// What ended the run, where one of our functions did.
  ending: RefCell<Option<Ending>>,
}

impl Run {
  /// How large the memory of an input may be to be used again: what is larger is not worth keeping for
  /// as long as an output lives.
  const MAX_SPARE: usize = 4096;

  /// Whether the driver stays for the next job. If it does not, it is called again.
  fn stays(&self) -> bool {
    self.goes_on.set(self.has_fuel);
    !self.has_fuel
  }

  /// Passes on what the guest has written of lines that have not ended.
  fn end_streams(&self) {
    self.streams.borrow_mut().end(self.number.get());
  }

  /// Keeps the memory of an input for the output. So a short call allocates and frees memory on the
  /// thread of its caller only.
  fn keep(&self, input: Vec<u8>) {
    if input.capacity() <= Self::MAX_SPARE {
      self.spare.replace(input);
    }
  }
}

enum Ready {
  Input(Vec<u8>),
  Answer(Bytes),
}

impl AsRef<[u8]> for Ready {
  fn as_ref(&self) -> &[u8] {
    match self {
      Self::Input(bytes) => bytes,
      Self::Answer(bytes) => bytes,
    }
  }
}

thread_local! {
    /// The run on this thread.
    static RUN_HERE: RefCell<Option<Rc<Run>>> = const { RefCell::new(None) };
}

/// Makes a run the one on this thread, for as long as this lives.
struct Entered {
  /// A host function that runs a plugin on its own thread would have another here.
  previous: Option<Rc<Run>>,
}

impl Entered {
  fn new(run: Rc<Run>) -> Self {
    Self {
      previous: RUN_HERE.replace(Some(run)),
    }
  }
}

impl Drop for Entered {
  fn drop(&mut self) {
    RUN_HERE.set(self.previous.take());
  }
}

/// The functions of [`HOST`] that serve the loop.
fn loop_functions() -> Vec<Function> {
  use ValType::{I32, I64};

  let result = [I32, I64, I64, I64, I64, I64];
  vec![
    function(
      STARTED.to_owned(),
      [],
      [I32],
      |run, _, _, results| match run.jobs.started(run.interrupt.clone()) {
        ControlFlow::Continue(()) => set(results, 0, Val::I32((!run.is_initialized.get()).into())),
        ControlFlow::Break(()) => Err(Ending::Interrupted),
      },
    ),
    function(INITIALIZED.to_owned(), [], [I32], |run, _, _, results| {
      run.is_initialized.set(true);
      run.jobs.initialized();
      set(results, 0, Val::I32(run.stays().into()))
    }),
    function(NEXT.to_owned(), [], [I32, I64], |run, _, _, results| {
      let (export, length) = match run.jobs.next() {
        None => (-1, 0),
        Some(job) => {
          let length = job.input.len() as i64;
          run.export.set(Some(job.export));
          run.number.set(Some(job.number));
          run.last_response.take();
          match length {
            0 => run.keep(job.input),
            _ => drop(run.ready.replace(Some(Ready::Input(job.input)))),
          }
          // A number that no export has is a trap in the driver, as a table has it.
          (i32::try_from(job.export).unwrap_or(i32::MAX), length)
        }
      };
      set(results, 0, Val::I32(export))?;
      set(results, 1, Val::I64(length))
    }),
    function(TAKE.to_owned(), [I64, I64], [], |run, plugin, values, _| {
      let (offset, length) = (number(values, 0)?, number(values, 1)?);
      let Some(ready) = run.ready.take() else {
        return Err(internal("nothing is ready"));
      };
      // SAFETY: only the driver and the gate import this function. They got the offset from
      // the guard for a new block of this length, which is inside the kernel's memory, and
      // nothing has run since that could have moved it.
      let handle = unsafe { MemoryHandle::new(offset, length) };
      let block = plugin
        .memory_bytes_mut(handle)
        .map_err(|error| internal(&error.to_string()))?;
      let bytes = ready.as_ref();
      if block.len() != bytes.len() {
        return Err(internal("a block has another length than its bytes"));
      }
      block.copy_from_slice(bytes);
      if let Ready::Input(input) = ready {
        run.keep(input);
      }
      Ok(())
    }),
    function(
      OUTPUT.to_owned(),
      [I32, I64, I64],
      [],
      |run, plugin, values, _| {
        let descriptor = values.first().and_then(Val::i32).unwrap_or_default();
        let block = Block::from_gate(plugin, number(values, 1)?, number(values, 2)?);
        if let Some(bytes) = block.into_bytes() {
          let mut streams = run.streams.borrow_mut();
          streams.write(run.number.get(), descriptor, bytes);
        }
        Ok(())
      },
    ),
    function(
      RESUME.to_owned(),
      [I64, I64],
      [I32, I64, I64],
      |run, plugin, values, results| {
        let block = Block::from_gate(plugin, number(values, 0)?, number(values, 1)?);
        converse(run, Some(block), results)
      },
    ),
    function(
      DONE.to_owned(),
      result.clone(),
      [I32],
      |run, plugin, values, results| {
        let export = run.export.take();
        let finished = finished(run, plugin, values)?;
        run.end_streams();
        run.jobs.done(finished);
        let spent = export.is_some() && export == run.start;
        if spent {
          run.ending.replace(Some(Ending::Spent));
        }
        set(results, 0, Val::I32((!spent && run.stays()).into()))
      },
    ),
    function(OUT_OF_MEMORY.to_owned(), [], [], |_, _, _, _| {
      Err(Ending::OutOfMemory)
    }),
    function(EXIT.to_owned(), result, [], |run, plugin, values, _| {
      if run.export.take().is_some() {
        let finished = finished(run, plugin, values)?;
        run.jobs.done(finished);
      }
      let code = values.first().and_then(Val::i32).unwrap_or(1);
      Err(Ending::Exited(code))
    }),
  ]
}

/// Reads how a job ended from what the driver or the gate has passed.
fn finished(run: &Run, plugin: &mut CurrentPlugin, values: &[Val]) -> Result<Finished, Ending> {
  let code = values.first().and_then(Val::i32).unwrap_or(-1);
  let output = (number(values, 1)?, number(values, 2)?);
  let error = (number(values, 3)?, number(values, 4)?);
  let kernel_bytes = number(values, 5)?;

  let mut copy = |(offset, length): (u64, u64)| -> Result<Vec<u8>, Ending> {
    if length == 0 {
      return Ok(Vec::new());
    }
    // SAFETY: only the driver and the gate import the functions that get here. They pass what
    // the guard has as output and error, and each is (0, 0) or lies in a live block. The guest
    // does not run meanwhile.
    let handle = unsafe { MemoryHandle::new(offset, length) };
    let bytes = plugin
      .memory_bytes(handle)
      .map_err(|error| internal(&error.to_string()))?;
    let mut copy = run.spare.take();
    copy.clear();
    copy.extend_from_slice(bytes);
    Ok(copy)
  };
  let result = if error.1 > 0 {
    let kept = copy((error.0, error.1.min(MAX_MESSAGE as u64)))?;
    Err(CallError::Failed {
      code,
      message: Some(message(&kept, error.1)),
    })
  } else if code != 0 {
    Err(CallError::Failed {
      code,
      message: None,
    })
  } else if output.1 > run.output_limit {
    Err(CallError::OutputTooLarge {
      length: output.1,
      limit: run.output_limit,
    })
  } else {
    Ok(copy(output)?)
  };
  Ok(Finished {
    result,
    kernel_bytes,
  })
}

/// The text of an error message that has `length` bytes, of which these are the first.
fn message(bytes: &[u8], length: u64) -> String {
  let mut text = String::from_utf8_lossy(bytes).into_owned();
  // What is no UTF-8 is replaced by something longer.
  if length <= MAX_MESSAGE as u64 && text.len() <= MAX_MESSAGE {
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

/// A host function as the gate imports it.
fn host_function(number: usize, host: HostFunction) -> Function {
  let ty = driver::host_type(&host.function, host.is_conversing());
  let answers_bytes = driver::answers_bytes(&host.function);
  function(
    names::function(number),
    ty.params.into_iter().map(ValType::from),
    ty.results.into_iter().map(ValType::from),
    move |run, plugin, values, results| {
      let called = host.call(&mut Invocation {
        function: &host.function,
        plugin,
        values,
        call: run.number.get(),
        interruption: &run.interruption,
        last_response: &run.last_response,
      });
      let answer = match called.map_err(Ending::HostFunction)? {
        Called::Answer(answer) => answer,
        Called::Conversation(conversation) => {
          run.conversation.replace(Some(conversation));
          return converse(run, None, results);
        }
      };
      let value = match answer {
        Answer::Nothing if results.is_empty() => return Ok(()),
        Answer::Bytes(bytes) if answers_bytes => {
          set(results, 1, Val::I64(prepare_to_take(run, bytes)))?;
          Val::I64(0)
        }
        Answer::I64(value) if answers_bytes => {
          set(results, 1, Val::I64(-1))?;
          Val::I64(value)
        }
        Answer::I32(value) => Val::I32(value),
        Answer::F32(value) => Val::F32(value.to_bits()),
        Answer::F64(value) => Val::F64(value.to_bits()),
        Answer::Nothing | Answer::Bytes(_) | Answer::I64(_) => {
          return Err(wrong_answer(&host));
        }
      };
      // Wasmtime panics where a result has another type than the function; so that it does
      // not come to that:
      match (host.function.results.as_slice(), &value) {
        ([super::types::ValueType::I32], Val::I32(_))
        | ([super::types::ValueType::I64], Val::I64(_))
        | ([super::types::ValueType::F32], Val::F32(_))
        | ([super::types::ValueType::F64], Val::F64(_)) => set(results, 0, value),
        _ => Err(wrong_answer(&host)),
      }
    },
  )
}

/// The next step of the conversation with a host function, as the gate knows it.
fn converse(run: &Run, block: Option<Block<'_>>, results: &mut [Val]) -> Result<(), Ending> {
  let Some(mut conversation) = run.conversation.take() else {
    return Err(internal("there is no conversation"));
  };
  let (step, value, length) = match conversation.next(block).map_err(Ending::HostFunction)? {
    Step::Answer(answer) => {
      let (value, length) = match answer {
        Answer::Nothing => (0, -1),
        Answer::I32(value) => (i64::from(value), -1),
        Answer::I64(value) => (value, -1),
        Answer::F32(value) => (i64::from(value.to_bits()), -1),
        Answer::F64(value) => (value.to_bits() as i64, -1),
        Answer::Bytes(bytes) => (0, prepare_to_take(run, bytes)),
      };
      return set_step(results, driver::ANSWER, value, length);
    }
    Step::Store(bytes) => (driver::STORE, 0, prepare_to_take(run, bytes)),
    Step::SetError(bytes) => (driver::SET_ERROR, 0, prepare_to_take(run, bytes)),
    Step::Allocate(length) => (driver::ALLOCATE, 0, length as i64),
    Step::Look(offset) => (driver::LOOK, offset as i64, 0),
  };
  run.conversation.replace(Some(conversation));
  set_step(results, step, value, length)
}

fn prepare_to_take(run: &Run, bytes: Bytes) -> i64 {
  let length = bytes.len() as i64;
  if length > 0 {
    run.ready.replace(Some(Ready::Answer(bytes)));
  }
  length
}

fn set_step(results: &mut [Val], step: i32, value: i64, length: i64) -> Result<(), Ending> {
  set(results, 0, Val::I32(step))?;
  set(results, 1, Val::I64(value))?;
  set(results, 2, Val::I64(length))
}

fn wrong_answer(host: &HostFunction) -> Ending {
  Ending::HostFunction(HostFunctionError::new(format!(
    "{} answered with something that its type does not allow",
    host.name
  )))
}

/// A function of [`HOST`]. What it fails with, and a panic in it, become the ending of the run.
fn function(
  name: String,
  params: impl IntoIterator<Item = ValType>,
  results: impl IntoIterator<Item = ValType>,
  body: impl Fn(&Run, &mut CurrentPlugin, &[Val], &mut [Val]) -> Result<(), Ending>
  + Send
  + Sync
  + 'static,
) -> Function {
  Function::new(
    name,
    params,
    results,
    UserData::new(()),
    move |plugin, values, results, _| {
      let Some(run) = RUN_HERE.with_borrow(Clone::clone) else {
        return Err(Error::msg("called outside of a run"));
      };
      // Nothing that a panic may have left half done is used again: the run ends, and with it
      // the instance. What the body shares with other threads must see to itself.
      let outcome = catch_unwind(AssertUnwindSafe(|| body(&run, plugin, values, results)))
        .unwrap_or_else(|panic| Err(Ending::Panicked(panic_message(panic.as_ref()))));
      outcome.map_err(|ending| {
        run.ending.replace(Some(ending));
        // Nobody reads this: the ending is recorded.
        Error::msg("ended by the host")
      })
    },
  )
  .with_namespace(HOST)
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
  panic
    .downcast_ref::<&str>()
    .map(|message| (*message).to_owned())
    .or_else(|| panic.downcast_ref::<String>().cloned())
    .unwrap_or_else(|| "panic".to_owned())
}

fn internal(message: &str) -> Ending {
  Ending::Trapped(format!("internal error: {message}"))
}

fn number(values: &[Val], place: usize) -> Result<u64, Ending> {
  values
    .get(place)
    .and_then(Val::i64)
    .map(|value| value as u64)
    .ok_or_else(|| internal("an argument is missing"))
}

fn set(results: &mut [Val], place: usize, value: Val) -> Result<(), Ending> {
  *results
    .get_mut(place)
    .ok_or_else(|| internal("a result is missing"))? = value;
  Ok(())
}
