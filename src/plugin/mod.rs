//! Plugins: what to load, the instances, and the threads that run them.

mod compile_cache;
pub mod driver;
pub mod instance;
mod interrupt;
mod manifest;
pub mod names;
pub mod prepare;
pub mod spin;
pub mod stats;
pub mod types;
mod workers;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use compile_cache::CompileCache;
pub use manifest::{DEFAULT_MAX_OUTPUT, DEFAULT_MAX_PAGES, LoadedModule, Manifest, Source, Wasm};
pub use workers::{Call, Queued, Results};

pub use stats::Stats;

use crate::host::{Environment, HostFunction, Vars};
use crate::{Code, Error, Result, host};
use instance::{CompileOptions, Compiled};
use prepare::{PrepareError, Prepared};
use workers::Workers;

/// How long an initialization may run where calls have no limit.
const INITIALIZATION_TIMEOUT: Duration = Duration::from_secs(30);

/// How large an instance's kernel memory may be between two calls: 64 MiB.
const MAX_IDLE_MEMORY: u64 = 64 << 20;

/// How a plugin is run.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
  /// How many instances, and so threads, there are at most.
  pub instances: NonZeroUsize,
  /// Whether all of them are started when the plugin is opened. Else the first is, and the others when
  /// there are more calls than instances to run them.
  pub is_eager: bool,
  /// How many calls may be unfinished at once, running ones included.
  pub max_queue: NonZeroUsize,
  /// Whether each call has an instance of its own, and leaves nothing to the next.
  pub is_isolated: bool,
}

/// A loaded plugin: a number of instances, each on a thread of its own, behind one queue.
///
/// May be used from any thread. Dropping it forgets the calls that wait, and interrupts those that
/// run.
pub struct Plugin {
  /// The functions that can be called, by name, with the numbers that the driver has for them.
  functions: BTreeMap<String, u32>,
  workers: Workers,
}

impl Plugin {
  /// Reads, checks, prepares and compiles the modules, and starts the first instance, or all. Blocks
  /// for as long as that takes: milliseconds with a warm compile cache, seconds without one.
  ///
  /// `results` gets what comes of each call.
  pub fn open(
    manifest: &Manifest,
    limits: Limits,
    environment: &Environment,
    results: Arc<dyn Results>,
  ) -> Result<Self> {
    let cache = manifest.compile_cache.configuration()?;
    let (callable, compile) = compiler(manifest, environment, cache)?;
    let limits = workers::Limits {
      instances: limits.instances,
      is_eager: limits.is_eager,
      max_queue: limits.max_queue,
      timeout: manifest.timeout,
      initialization_timeout: manifest.timeout.unwrap_or(INITIALIZATION_TIMEOUT),
      max_output: manifest.max_output.unwrap_or(DEFAULT_MAX_OUTPUT),
      max_idle_memory: MAX_IDLE_MEMORY,
      is_isolated: limits.is_isolated,
    };
    Ok(Self {
      functions: callable,
      workers: Workers::start(limits, results, compile)?,
    })
  }

  /// Fills the compile cache with what [`open`](Self::open) would compile for this manifest. Nothing
  /// of the plugin is run. Fails where there is no cache.
  pub fn precompile(manifest: &Manifest, environment: &Environment) -> Result<()> {
    let cache = manifest.compile_cache.configuration_to_fill()?;
    let (_, compile) = compiler(manifest, environment, Some(cache))?;
    compile().map(drop)
  }

  /// The functions of the main module that can be called, with the numbers of their exports.
  pub fn functions(&self) -> impl Iterator<Item = (&str, u32)> {
    let functions = self.functions.iter();
    functions.map(|(name, export)| (name.as_str(), *export))
  }

  /// The number of the export of that name, where it is a function that can be called.
  pub fn function(&self, name: &str) -> Option<u32> {
    self.functions.get(name).copied()
  }

  /// Queues a call. Its result is given to [`Results::done`] once, on whatever thread ends the call.
  /// That is this one where it is refused, with [`Code::QueueFull`], [`Code::Closed`] or
  /// [`Code::Unavailable`].
  ///
  /// Where the answer is [`Queued::Asleep`], [`wake`](Self::wake) must be called, or the call may wait
  /// for another to end. Who queues many calls can do so once, after the last.
  #[must_use = "whether to wake a thread"]
  pub fn queue(&self, call: Call) -> Queued {
    self.workers.push(call)
  }

  /// Wakes a thread for the calls that were queued, if one sleeps.
  pub fn wake(&self) {
    self.workers.wake();
  }

  /// Ends the call of this number with [`Code::Canceled`]: one that waits never starts, and one
  /// that runs is interrupted. A call that has ended is left alone.
  pub fn cancel(&self, number: u64) {
    self.workers.cancel(number);
  }

  /// Refuses calls from now on, lets those that were accepted end, then frees the instances and
  /// runs `closed`, on another thread or, where all that is done already, on this one.
  pub fn close(&self, closed: impl FnOnce() + Send + 'static) {
    self.workers.close(Box::new(closed));
  }

  /// What the plugin has done, and does at this moment. It costs a few locks.
  pub fn stats(&self) -> Stats {
    self.workers.stats()
  }

  /// How many threads hang in calls of the host that no interruption reaches, and have been
  /// replaced.
  pub fn abandoned_threads(&self) -> usize {
    self.workers.abandoned()
  }
}

/// Reads, checks and prepares the modules. Gives the functions that can be called, and what compiles the
/// modules, for an engine of their own each time.
fn compiler(
  manifest: &Manifest,
  environment: &Environment,
  cache: Option<PathBuf>,
) -> Result<(
  BTreeMap<String, u32>,
  impl Fn() -> Result<Compiled> + Send + Sync + use<>,
)> {
  let modules = manifest.load()?;
  let vars = Arc::new(Vars::new(
    manifest.max_vars.unwrap_or(host::vars::DEFAULT_LIMIT),
  ));
  let functions = host::functions(manifest, environment, &vars);
  let prepared = prepare(&modules, manifest, &functions, environment, &vars)?;
  drop(modules);
  let callable = prepared.callable.clone();
  let options = CompileOptions {
    wasi: manifest.use_wasi,
    cache,
    fuel: manifest.fuel,
  };
  let compile = move || {
    Compiled::new(&prepared, &options).map_err(|error| {
      Error::new(
        Code::InvalidWasm,
        format!("the plugin cannot be compiled: {error:#}"),
      )
    })
  };
  Ok((callable, compile))
}

fn prepare(
  modules: &[LoadedModule],
  manifest: &Manifest,
  functions: &[HostFunction],
  environment: &Environment,
  vars: &Arc<Vars>,
) -> Result<Prepared> {
  // The user's limit is for what the plugin takes; what each instance begins with comes on top.
  let max_pages = u64::from(manifest.max_pages.unwrap_or(DEFAULT_MAX_PAGES));
  let options = prepare::Options {
    wasi: manifest.use_wasi,
    limits: prepare::Limits {
      memory_pages: max_pages + prepare::OWN_PAGES,
      ..prepare::Limits::default()
    },
    functions,
    untyped: &environment.functions,
    vars,
  };
  prepare::prepare(modules, &options).map_err(|error| {
    let code = match &error {
      PrepareError::MissingImport { .. } => Code::MissingImport,
      PrepareError::CircularLinking { .. } => Code::CircularLinking,
      PrepareError::ReservedName { .. } => Code::ReservedName,
      PrepareError::TooMuchMemory { .. }
      | PrepareError::TooManyTableElements { .. }
      | PrepareError::LimitTooLow { .. } => Code::OutOfMemory,
      PrepareError::NoMainModule | PrepareError::DuplicateModule { .. } => Code::InvalidArgument,
      PrepareError::Internal(_) => Code::Internal,
      _ => Code::InvalidWasm,
    };
    Error::new(code, error.to_string())
  })
}
