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
pub mod wasi;
mod workers;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use compile_cache::CompileCache;
pub use manifest::{
  AllowedPath, DEFAULT_MAX_OUTPUT, DEFAULT_MAX_PAGES, LoadedModule, Manifest, OutputTo, Source,
  Wasm,
};
pub use workers::{Call, Queued, Results};

pub use stats::Stats;

use crate::host::output::Output;
use crate::host::store::{StoreCounters, StoreStats};
use crate::host::{Environment, HostFunction, Vars, vars};
use crate::{Code, Error, Result, host};
use instance::{CompileOptions, Compiled};
use prepare::{ExportDescription, ImportDescription, PrepareError, Prepared};
use wasi::Program;
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
  interface: Interface,
  vars: Arc<Vars>,
  /// Not the store itself: who has closed a plugin may keep it for as long as he likes.
  store_counters: Arc<StoreCounters>,
  workers: Workers,
}

/// What the main module exports and imports.
struct Interface {
  /// The functions that can be called, by name, with the numbers that the driver has for them.
  functions: BTreeMap<String, u32>,
  exports: Vec<ExportDescription>,
  imports: Vec<ImportDescription>,
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
    let vars = Arc::new(Vars::new(manifest.max_vars.unwrap_or(vars::DEFAULT_LIMIT)));
    let (interface, compile) = compiler(manifest, environment, &vars, cache)?;
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
      interface,
      vars,
      store_counters: Arc::clone(environment.store.counters()),
      workers: Workers::start(limits, results, compile)?,
    })
  }

  /// Fills the compile cache with what [`open`](Self::open) would compile for this manifest. Nothing
  /// of the plugin is run. Fails where there is no cache.
  pub fn precompile(manifest: &Manifest, environment: &Environment) -> Result<()> {
    let cache = manifest.compile_cache.configuration_to_fill()?;
    // What the variables have makes no difference to what is compiled.
    let (_, compile) = compiler(manifest, environment, &Arc::default(), Some(cache))?;
    compile().map(drop)
  }

  /// The functions of the main module that can be called, with the numbers of their exports.
  pub fn functions(&self) -> impl Iterator<Item = (&str, u32)> {
    let functions = self.interface.functions.iter();
    functions.map(|(name, export)| (name.as_str(), *export))
  }

  /// The number of the export of that name, where it is a function that can be called.
  pub fn function(&self, name: &str) -> Option<u32> {
    self.interface.functions.get(name).copied()
  }

  /// What the main module exports, as its author wrote it.
  pub fn exports(&self) -> &[ExportDescription] {
    &self.interface.exports
  }

  /// What the main module imports, as its author wrote it.
  pub fn imports(&self) -> &[ImportDescription] {
    &self.interface.imports
  }

  /// Forgets all variables. A call that runs meanwhile may set some again.
  pub fn clear_vars(&self) {
    self.vars.clear();
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

  /// What its guests have asked of its store.
  pub fn store_stats(&self) -> StoreStats {
    self.store_counters.stats()
  }

  /// How many threads hang in calls of the host that no interruption reaches, and have been
  /// replaced.
  pub fn abandoned_threads(&self) -> usize {
    self.workers.abandoned()
  }
}

/// Reads, checks and prepares the modules. Gives what the main one exports and imports, and what compiles
/// the modules, for an engine of their own each time.
fn compiler(
  manifest: &Manifest,
  environment: &Environment,
  vars: &Arc<Vars>,
  cache: Option<PathBuf>,
) -> Result<(
  Interface,
  impl Fn() -> Result<Compiled> + Send + Sync + use<>,
)> {
  let modules = manifest.load()?;
  let functions = host::functions(manifest, environment, vars)?;
  let prepared = prepare(&modules, manifest, &functions, environment, vars)?;
  drop(modules);
  let interface = Interface {
    functions: prepared.callable.clone(),
    exports: prepared.exports.clone(),
    imports: prepared.imports.clone(),
  };
  let options = CompileOptions {
    wasi: manifest.use_wasi,
    allowed_paths: allowed_paths(&manifest.allowed_paths)?,
    output: match manifest.output {
      OutputTo::Nowhere => Output::Off,
      OutputTo::Process => Output::Inherited,
      OutputTo::Logger => Output::Logged(Arc::clone(&environment.logger)),
    },
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
  Ok((interface, compile))
}

/// Directories as Extism's manifest has them: by the path on this machine, with `ro:` before it where they
/// may only be read. What is there twice has another name for the same directory.
fn allowed_paths(paths: &[AllowedPath]) -> Result<BTreeMap<String, PathBuf>> {
  let mut allowed = BTreeMap::new();
  for AllowedPath {
    host,
    guest,
    is_read_only,
  } in paths
  {
    let text = host.to_str().ok_or_else(|| {
      let message = format!("the path \"{}\" is not UTF-8", host.display());
      Error::new(Code::InvalidArgument, message)
    })?;
    // Always absolute, or a directory that is named `ro:…` would be another.
    let path = std::path::absolute(text).map_err(|error| {
      Error::new(
        Code::InvalidArgument,
        format!("\"{text}\" is no path: {error}"),
      )
    })?;
    let read_only = if *is_read_only { "ro:" } else { "" };
    let mut key = format!("{read_only}{}", path.display());
    while allowed.contains_key(&key) {
      key.push_str("/.");
    }
    allowed.insert(key, guest.clone());
  }
  Ok(allowed)
}

fn prepare(
  modules: &[LoadedModule],
  manifest: &Manifest,
  functions: &[HostFunction],
  environment: &Environment,
  vars: &Arc<Vars>,
) -> Result<Prepared> {
  // The user's limit is for what a plugin adds to the memories that its modules begin with: these a
  // compiler has chosen, and many begin with a megabyte. What is ours comes on top.
  let max_pages = manifest.max_pages.unwrap_or(0).max(DEFAULT_MAX_PAGES);
  let program = Program {
    arguments: manifest.arguments.clone(),
    environment: manifest.environment.clone().into_iter().collect(),
    has_output: manifest.output != OutputTo::Nowhere,
  };
  let options = prepare::Options {
    wasi: manifest.use_wasi,
    program: &program,
    limits: prepare::Limits {
      memory_pages: u64::from(max_pages) + prepare::OWN_PAGES,
      growth_pages: manifest.max_pages,
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
