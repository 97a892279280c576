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
use instance::PluginRuntime;
use link::{ExportDescription, ImportDescription, Linked, LinkedSnapshot};
use load::{INITIALIZATION_TIMEOUT, Loader, link_error};
use reference::Reference;
use workers::Workers;

/// The kernel memory that an instance may keep between calls: 64 MiB.
const MAX_IDLE_MEMORY: u64 = 64 << 20;

/// Limits for the instances and the call queue of a plugin.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
  /// The maximum number of instances. Each has its own thread.
  pub instances: NonZeroUsize,
  /// Whether all instances start when the plugin is opened. Otherwise only the first does, and the others
  /// start when there are more calls than instances to run them.
  pub is_eager: bool,
  /// The maximum number of unfinished calls, running ones included.
  pub max_queue: NonZeroUsize,
  /// The maximum size of the inputs of all queued calls together, in bytes. A single call may always wait.
  pub max_queue_bytes: usize,
  /// Whether each call gets a fresh instance, so that no state passes from one call to the next.
  pub is_isolated: bool,
  /// How many calls an instance serves before it is replaced; unlimited if `None`.
  pub max_calls: Option<NonZeroU64>,
  /// The age at which an instance is replaced, after a call; unlimited if `None`.
  pub max_age: Option<Duration>,
}

/// A loaded plugin: several instances, each on its own thread, behind one queue.
///
/// May be used from any thread. Dropping it discards the queued calls and interrupts the running ones.
pub struct Plugin {
  interface: Interface,
  vars: Arc<Vars>,
  /// The counters and not the store itself: JavaScript may keep a closed plugin alive, which must not keep
  /// the store open.
  store_counters: Arc<StoreCounters>,
  workers: Workers,
  snapshot: Arc<Mutex<SnapshotStatus>>,
  version: String,
  code_bytes: u64,
}

/// What the main module exports and imports.
struct Interface {
  /// The callable functions by name, with their numbers.
  functions: BTreeMap<String, u32>,
  exports: Vec<ExportDescription>,
  imports: Vec<ImportDescription>,
}

/// The state that new instances of a plugin start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotStatus {
  /// The state that the modules describe: no snapshot was requested.
  None,
  /// The state that the modules describe, until the snapshot has been taken.
  Pending,
  /// The state after the initialization.
  Taken,
  /// The state that the modules describe: the plugin does not support a snapshot.
  Unsupported,
}

impl SnapshotStatus {
  /// The name in JavaScript.
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
  /// Reads, checks, links and compiles the modules, and starts the first instance, or all of them. Blocks
  /// until that is done: milliseconds with a warm compile cache, seconds without one.
  ///
  /// `results` receives the result of each call.
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
    let mut code_bytes = 0;
    let (runtime, linked, digests, initialization_timeout) = match manifest.runtime {
      RuntimeKind::Wasmtime => {
        // If the cache cannot be written to, the plugin still loads.
        let loaded = loader.load()?;
        if manifest.snapshot {
          snapshot = match loaded.linked.snapshot {
            LinkedSnapshot::None if loaded.linked.initializers.is_empty() => SnapshotStatus::Taken,
            LinkedSnapshot::None => SnapshotStatus::Pending,
            _ => snapshot_status(&loader, &loaded.linked),
          };
        }
        let runtime = PluginRuntime::Wasmtime(Arc::new(loader.template(&loaded)?));
        let code = loaded.module.image_range();
        code_bytes = (code.end as usize).saturating_sub(code.start as usize) as u64;
        (runtime, loaded.linked, loaded.digests, manifest.timeout)
      }
      RuntimeKind::Extism => {
        let (modules, functions) = (manifest.load()?, loader.functions()?);
        let digests = modules.iter().map(LoadedModule::digest).collect();
        let linked = link::link(&modules, &loader.link_options(&functions)).map_err(link_error)?;
        let reference = Reference::new(manifest, modules, functions, &linked)?;
        // Each instance compiles the plugin, which must not count towards the plugin's timeout.
        (
          PluginRuntime::Extism(Arc::new(reference)),
          linked,
          digests,
          None,
        )
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
      version: version(&digests),
      code_bytes,
    };
    if snapshot == SnapshotStatus::Pending {
      plugin.take_snapshot(manifest.clone(), environment.clone(), cache, digests);
    }
    Ok(plugin)
  }

  /// Takes the snapshot on a separate thread, while instances without it serve calls. Instances that are
  /// created afterwards start from it.
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
      // A defect in the linker or in wasmtime-wizer must end only this thread.
      let taken = catch_unwind(AssertUnwindSafe(taken)).unwrap_or_else(|_| {
        Err(Error::new(
          Code::Internal,
          "the linker or wasmtime-wizer panicked",
        ))
      });
      let new_status = match taken {
        Ok((template, linked)) => {
          let new_status = snapshot_status(&loader, &linked);
          if new_status == SnapshotStatus::Taken {
            workers.set_runtime(PluginRuntime::Wasmtime(Arc::new(template)));
          }
          new_status
        }
        Err(error) => {
          loader.warn_no_snapshot(&error.message);
          SnapshotStatus::Unsupported
        }
      };
      *status.lock().unwrap_or_else(PoisonError::into_inner) = new_status;
    };
    let started = thread::Builder::new()
      .name("extism-snapshot".to_owned())
      .spawn(job);
    if let Err(error) = started {
      let message = "no snapshot could be taken, so the plugin starts normally: the snapshot thread cannot be started";
      log::warn(&*logger, &format!("{message}: {error}"));
      *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = SnapshotStatus::Unsupported;
    }
  }

  /// Fills the compile cache with what [`open`](Self::open) would compile for this manifest. With a snapshot,
  /// this runs the plugin's initialization. Fails with [`Code::CacheUnavailable`] if there is no cache, or if
  /// it cannot store the result.
  pub fn precompile(manifest: &Manifest, environment: &Environment) -> Result<()> {
    if manifest.runtime == RuntimeKind::Extism {
      return Err(reference::unsupported("precompile"));
    }
    let cache = manifest.compile_cache.open_to_fill()?;
    let loader = Loader {
      manifest,
      environment,
      // The values of variables do not affect what is compiled.
      vars: &Arc::default(),
      cache: Some(&cache),
    };
    let loaded = match manifest.snapshot {
      true => loader.load_with_snapshot()?,
      false => loader.load()?,
    };
    snapshot_status(&loader, &loaded.linked);
    loaded.stored.map_err(|error| {
      let message = format!("the compiled plugin cannot be cached: {error}");
      Error::new(Code::CacheUnavailable, message)
    })
  }

  /// The callable functions of the main module, with the numbers of their exports.
  pub fn functions(&self) -> impl Iterator<Item = (&str, u32)> {
    let functions = self.interface.functions.iter();
    functions.map(|(name, export)| (name.as_str(), *export))
  }

  /// The number of the export `name`, if it is a callable function.
  pub fn function(&self, name: &str) -> Option<u32> {
    self.interface.functions.get(name).copied()
  }

  /// The exports of the main module, as its author wrote them.
  pub fn exports(&self) -> &[ExportDescription] {
    &self.interface.exports
  }

  /// The imports of the main module, as its author wrote them.
  pub fn imports(&self) -> &[ImportDescription] {
    &self.interface.imports
  }

  /// The state that new instances start from.
  pub fn snapshot(&self) -> SnapshotStatus {
    *self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
  }

  /// Identifies the code of the plugin: hexadecimal digits that change with any of its modules.
  pub fn version(&self) -> &str {
    &self.version
  }

  /// The size of the compiled code when the plugin was opened, in bytes; 0 for [`RuntimeKind::Extism`].
  pub fn code_bytes(&self) -> u64 {
    self.code_bytes
  }

  /// Deletes all variables. A call that runs meanwhile may set some again.
  pub fn clear_vars(&self) {
    self.vars.clear();
  }

  /// Queues a call. Its result is passed to [`Results::done`] once, on whichever thread ends the call: on
  /// this one if the call is refused, with [`Code::QueueFull`], [`Code::Closed`] or [`Code::Unavailable`].
  ///
  /// If this returns [`Queued::Asleep`], call [`wake`](Self::wake); otherwise the call may wait until another
  /// one ends. After queuing several calls, waking once is enough.
  #[must_use = "whether to wake a thread"]
  pub fn queue(&self, call: Call) -> Queued {
    self.workers.push(call)
  }

  /// Wakes a sleeping thread, if there is one, for the queued calls.
  pub fn wake(&self) {
    self.workers.wake();
  }

  /// Ends the call with this number with [`Code::Canceled`]: a queued call never starts, and a running one is
  /// interrupted. Does nothing if the call has already ended.
  pub fn cancel(&self, number: u64) {
    self.workers.cancel(number);
  }

  /// Refuses new calls, finishes the accepted ones, then frees the instances and runs `closed`: on another
  /// thread, or on this one if everything has ended already.
  pub fn close(&self, closed: impl FnOnce() + Send + 'static) {
    self.workers.close(Box::new(closed));
  }

  /// Ends all calls of a plugin that is being closed with [`Code::Closed`], running ones included.
  pub fn end_calls(&self) {
    self.workers.end_calls();
  }

  /// The plugin's counters and current state. Costs a few locks.
  pub fn stats(&self) -> Stats {
    self.workers.stats()
  }

  /// How often its guests have used its store.
  pub fn store_stats(&self) -> StoreStats {
    self.store_counters.stats()
  }

  /// How many threads have been replaced because they are stuck in host calls that no interruption reaches.
  pub fn abandoned_threads(&self) -> usize {
    self.workers.abandoned()
  }
}

/// Reinstalls the signal handlers that turn guests' traps into errors, if something has displaced them.
/// JavaScript has listeners for the `listened` signals.
pub fn restore_signal_handlers(listened: &[String]) {
  crate::signals::listeners_changed(listened);
}

/// The version of a plugin with these modules. Enough digits that versions of one plugin do not collide.
fn version(digests: &[ModuleDigest]) -> String {
  const DIGITS: usize = 16;
  let mut hasher = blake3::Hasher::new();
  for (name, digest) in digests {
    hasher.update(blake3::hash(name.as_bytes()).as_bytes());
    hasher.update(digest.as_bytes());
  }
  let mut digits = hasher.finalize().to_hex().to_string();
  digits.truncate(DIGITS);
  digits
}

/// Whether a plugin that requested a snapshot was loaded with one. Logs a warning if it does not support one.
fn snapshot_status(loader: &Loader<'_>, linked: &Linked) -> SnapshotStatus {
  match &linked.snapshot {
    LinkedSnapshot::None => SnapshotStatus::None,
    LinkedSnapshot::Taken { .. } => SnapshotStatus::Taken,
    LinkedSnapshot::Unsupported(reason) => {
      loader.warn_no_snapshot(reason);
      SnapshotStatus::Unsupported
    }
  }
}
