//! Plugins: what to load, the instances, and the threads that run them.

mod compilation;
mod compile_cache;
pub mod engine;
pub mod instance;
pub mod interrupt;
pub mod link;
mod load;
mod manifest;
mod page;
mod priority;
mod pristine;
mod reference;
mod snapshot;
pub mod spin;
pub mod stats;
mod wasi;
mod workers;

use std::collections::BTreeMap;
use std::num::{NonZeroU64, NonZeroUsize};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

pub use compile_cache::CompileCache;
pub use instance::CallOutput;
pub use manifest::{
  AllowedPath, DEFAULT_MAX_OUTPUT, DEFAULT_MAX_PAGES, LoadedModule, Manifest, ModuleDigest,
  OutputTo, RuntimeKind, Source, Wasm,
};
pub use stats::Stats;
pub use workers::{Call, Queued, Results, WeakWorkers};

use crate::host::store::{StoreCounters, StoreStats};
use crate::host::{Environment, Vars, log, vars};
use crate::{Code, Error, Result};
use compile_cache::ArtefactDirectory;
use instance::Runtime;
use link::{ExportDescription, ImportDescription, Linked, Snapshot};
use load::{INITIALIZATION_TIMEOUT, Loader, link_error};
use reference::Reference;
use workers::Workers;

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
  /// How many bytes the inputs of waiting calls may have together. One call may wait whatever it has.
  pub max_queue_bytes: usize,
  /// Whether each call has an instance of its own, and leaves nothing to the next.
  pub is_isolated: bool,
  /// How many calls an instance serves before it is replaced. No limit without it.
  pub max_calls: Option<NonZeroU64>,
  /// How old an instance may be after a call and not be replaced. No limit without it.
  pub max_age: Option<Duration>,
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
  snapshot: Arc<Mutex<SnapshotStatus>>,
}

/// What the main module exports and imports.
struct Interface {
  /// The functions that can be called, by name, with their numbers.
  functions: BTreeMap<String, u32>,
  exports: Vec<ExportDescription>,
  imports: Vec<ImportDescription>,
}

/// What new instances of a plugin start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotStatus {
  /// The state that the modules describe. No snapshot is wanted.
  None,
  /// The same until the snapshot has been taken.
  Pending,
  /// The state after the initialization.
  Taken,
  /// The state that the modules describe: the plugin does not allow a snapshot.
  Unsupported,
}

impl SnapshotStatus {
  /// Its name in JavaScript.
  pub fn as_str(self) -> &'static str {
    match self {
      Self::None => "none",
      Self::Pending => "pending",
      Self::Taken => "taken",
      Self::Unsupported => "unsupported",
    }
  }
}

impl Plugin {
  /// Reads, checks, links and compiles the modules, and starts the first instance, or all. Blocks
  /// for as long as that takes: milliseconds with a warm compile cache, seconds without one.
  ///
  /// `results` gets what comes of each call.
  pub fn open(
    manifest: &Manifest,
    limits: Limits,
    environment: &Environment,
    results: Arc<dyn Results>,
  ) -> Result<Self> {
    if manifest.runtime == RuntimeKind::Extism {
      reference::check(manifest, limits, environment)?;
    }
    let cache = manifest.compile_cache.open()?;
    let vars = Arc::new(Vars::new(manifest.max_vars.unwrap_or(vars::DEFAULT_LIMIT)));
    let loader = Loader {
      manifest,
      environment,
      vars: &vars,
      cache: cache.as_ref(),
    };
    let mut snapshot = SnapshotStatus::None;
    let mut digests = Vec::new();
    let (runtime, linked, initialization_timeout) = match manifest.runtime {
      RuntimeKind::Wasmtime => {
        // A cache that cannot be written to is not used.
        let loaded = loader.load()?;
        if manifest.snapshot {
          snapshot = match loaded.linked.snapshot {
            Snapshot::None if loaded.linked.initializers.is_empty() => SnapshotStatus::Taken,
            Snapshot::None => SnapshotStatus::Pending,
            _ => snapshot_status(&loader, &loaded.linked),
          };
        }
        let runtime = Runtime::Wasmtime(Arc::new(loader.template(&loaded)?));
        digests = loaded.digests;
        (runtime, loaded.linked, manifest.timeout)
      }
      RuntimeKind::Extism => {
        let (modules, functions) = (manifest.load()?, loader.functions()?);
        let linked = link::link(&modules, &loader.link_options(&functions)).map_err(link_error)?;
        let reference = Reference::new(manifest, modules, functions, &linked)?;
        // Each instance compiles the plugin, which is not to count as the plugin's time.
        (Runtime::Extism(Arc::new(reference)), linked, None)
      }
    };
    let limits = workers::WorkerLimits {
      instances: limits.instances,
      is_eager: limits.is_eager,
      max_queue: limits.max_queue,
      max_queue_bytes: limits.max_queue_bytes,
      timeout: manifest.timeout,
      initialization_timeout: initialization_timeout.unwrap_or(INITIALIZATION_TIMEOUT),
      max_idle_memory: MAX_IDLE_MEMORY,
      is_isolated: limits.is_isolated,
      max_calls: limits.max_calls,
      max_age: limits.max_age,
    };
    let functions = (0..).zip(linked.callables);
    let interface = Interface {
      functions: functions
        .map(|(number, callable)| (callable.name, number))
        .collect(),
      exports: linked.exports,
      imports: linked.imports,
    };
    let logger = Arc::clone(&environment.logger);
    let warn = move |message: &str| log::warn(&*logger, message);
    let plugin = Self {
      interface,
      store_counters: Arc::clone(environment.store.counters()),
      workers: Workers::start(limits, results, runtime, Box::new(warn))?,
      snapshot: Arc::new(Mutex::new(snapshot)),
      vars,
    };
    if snapshot == SnapshotStatus::Pending {
      plugin.take_snapshot(manifest.clone(), environment.clone(), cache, digests);
    }
    Ok(plugin)
  }

  /// Takes the snapshot on a thread of its own, while instances without it serve calls. Those that are made
  /// afterwards start from it.
  fn take_snapshot(
    &self,
    manifest: Manifest,
    environment: Environment,
    cache: Option<ArtefactDirectory>,
    digests: Vec<ModuleDigest>,
  ) {
    let (status, workers) = (Arc::clone(&self.snapshot), self.workers.downgrade());
    let (vars, logger) = (Arc::clone(&self.vars), Arc::clone(&environment.logger));
    let job = move || {
      let loader = Loader {
        manifest: &manifest,
        environment: &environment,
        vars: &vars,
        cache: cache.as_ref(),
      };
      let taken = || {
        let loaded = loader.load_with_snapshot()?;
        if loaded.digests != digests {
          return Err(Error::new(
            Code::HashMismatch,
            "a file has changed since the plugin was opened",
          ));
        }
        Ok((loader.template(&loaded)?, loaded.linked))
      };
      // A defect in the linker or in wasmtime-wizer ends this thread only.
      let taken = catch_unwind(AssertUnwindSafe(taken))
        .unwrap_or_else(|_| Err(Error::new(Code::Internal, "taking it failed")));
      let reached = match taken {
        Ok((template, linked)) => {
          let reached = snapshot_status(&loader, &linked);
          if reached == SnapshotStatus::Taken {
            workers.set_runtime(Runtime::Wasmtime(Arc::new(template)));
          }
          reached
        }
        Err(error) => {
          loader.warn_of_no_snapshot(&error.message);
          SnapshotStatus::Unsupported
        }
      };
      *status.lock().unwrap_or_else(PoisonError::into_inner) = reached;
    };
    let started = thread::Builder::new()
      .name("extism-snapshot".to_owned())
      .spawn(job);
    if let Err(error) = started {
      let message =
        "there is no snapshot, the plugin starts normally: its thread cannot be started";
      log::warn(&*logger, &format!("{message}: {error}"));
      *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = SnapshotStatus::Unsupported;
    }
  }

  /// Fills the compile cache with what [`open`](Self::open) would compile for this manifest. With a snapshot
  /// this runs the plugin's initialization. [`Code::CacheUnavailable`] if there is no cache, or if it cannot keep that.
  pub fn precompile(manifest: &Manifest, environment: &Environment) -> Result<()> {
    if manifest.runtime == RuntimeKind::Extism {
      return Err(reference::unsupported("precompile"));
    }
    let cache = manifest.compile_cache.open_to_fill()?;
    let loader = Loader {
      manifest,
      environment,
      // The values of variables make no difference to what is compiled.
      vars: &Arc::default(),
      cache: Some(&cache),
    };
    let loaded = match manifest.snapshot {
      true => loader.load_with_snapshot()?,
      false => loader.load()?,
    };
    snapshot_status(&loader, &loaded.linked);
    loaded.stored.map_err(|error| {
      let message = format!("the compiled plugin cannot be kept: {error}");
      Error::new(Code::CacheUnavailable, message)
    })
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

  /// What its instances start from.
  pub fn snapshot(&self) -> SnapshotStatus {
    *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
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

  /// Ends all calls of a plugin that is being closed with [`Code::Closed`], those that run too.
  pub fn end_calls(&self) {
    self.workers.end_calls();
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

/// Puts the handlers back that make errors of guests' traps, if somebody has displaced them. JavaScript
/// has listeners for these signals.
pub fn put_back_signal_handlers(listened: &[String]) {
  crate::signals::listeners_changed(listened);
}

/// What a plugin that asked for a snapshot was loaded with. Warns if it has none.
fn snapshot_status(loader: &Loader<'_>, linked: &Linked) -> SnapshotStatus {
  match &linked.snapshot {
    Snapshot::None => SnapshotStatus::None,
    Snapshot::Taken { .. } => SnapshotStatus::Taken,
    Snapshot::Unsupported(reason) => {
      loader.warn_of_no_snapshot(reason);
      SnapshotStatus::Unsupported
    }
  }
}
