//! Plugins: what to load, the instances, and the threads that run them.

mod compilation;
mod compile_cache;
pub mod engine;
pub mod instance;
pub mod interrupt;
pub mod link;
mod manifest;
mod page;
mod pristine;
mod reference;
mod snapshot;
pub mod spin;
pub mod stats;
mod wasi;
mod workers;

use std::collections::BTreeMap;
use std::io;
use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use wasmtime::{Engine, Module};

pub use compile_cache::CompileCache;
pub use manifest::{
  AllowedPath, DEFAULT_MAX_OUTPUT, DEFAULT_MAX_PAGES, LoadedModule, Manifest, ModuleDigest,
  OutputTo, RuntimeKind, Source, Wasm,
};
pub use workers::{Call, Queued, Results};

pub use stats::Stats;

use crate::host::log::Level;
use crate::host::output::Output;
use crate::host::store::{StoreCounters, StoreStats};
use crate::host::{self, Environment, HostFunction, Vars, vars};
use crate::{Code, Error, Result, kernel};
use compile_cache::{Artefact, ArtefactDirectory, Key};
use engine::Kind;
use instance::{Runtime, Settings, Template};
use interrupt::Interruptions;
use link::{ExportDescription, ImportDescription, LinkError, Linked, Snapshot};
use reference::Reference;
use workers::Workers;

/// How long an initialization may run where calls have no limit.
const INITIALIZATION_TIMEOUT: Duration = Duration::from_secs(30);

/// Part of the cache's key. Raise it when the linker writes something else for the same input.
const LINKER_VERSION: [u8; 1] = [3];

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
}

/// What the main module exports and imports.
struct Interface {
  /// The functions that can be called, by name, with their numbers.
  functions: BTreeMap<String, u32>,
  exports: Vec<ExportDescription>,
  imports: Vec<ImportDescription>,
  snapshot: Snapshot,
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
    let (runtime, linked, initialization_timeout) = match manifest.runtime {
      RuntimeKind::Wasmtime => {
        // A cache that cannot be written to is not used.
        let (linked, module, _) = link_and_compile(manifest, environment, &vars, cache.as_ref())?;
        warn_of_snapshot(&linked.snapshot, environment);
        let settings = settings(manifest, environment, &linked)?;
        let template = Template::new(&module, &linked, settings)?;
        let runtime = Runtime::Wasmtime(Arc::new(template));
        (runtime, linked, manifest.timeout)
      }
      RuntimeKind::Extism => {
        let (modules, functions) = (manifest.load()?, functions(manifest, environment, &vars)?);
        let options = link_options(manifest, environment, &functions, &vars);
        let linked = link::link(&modules, &options).map_err(link_error)?;
        let reference = Reference::new(manifest, modules, functions, &linked)?;
        // Each instance compiles the plugin, which is not to count as the plugin's time.
        (Runtime::Extism(Arc::new(reference)), linked, None)
      }
    };
    let limits = workers::WorkerLimits {
      instances: limits.instances,
      is_eager: limits.is_eager,
      max_queue: limits.max_queue,
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
      snapshot: linked.snapshot,
    };
    Ok(Self {
      interface,
      vars,
      store_counters: Arc::clone(environment.store.counters()),
      workers: Workers::start(limits, results, runtime)?,
    })
  }

  /// Fills the compile cache with what [`open`](Self::open) would compile for this manifest. Nothing
  /// of the plugin is run. [`Code::CacheUnavailable`] if there is no cache, or if it cannot keep that.
  pub fn precompile(manifest: &Manifest, environment: &Environment) -> Result<()> {
    if manifest.runtime == RuntimeKind::Extism {
      return Err(reference::unsupported("precompile"));
    }
    let cache = manifest.compile_cache.open_to_fill()?;
    // The values of variables make no difference to what is compiled.
    let (linked, _, stored) =
      link_and_compile(manifest, environment, &Arc::default(), Some(&cache))?;
    warn_of_snapshot(&linked.snapshot, environment);
    stored.map_err(|error| {
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
  pub fn snapshot(&self) -> &Snapshot {
    &self.interface.snapshot
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

/// Puts the handlers back that make errors of guests' traps, if somebody has displaced them. JavaScript
/// has listeners for these signals.
pub fn put_back_signal_handlers(listened: &[String]) {
  crate::signals::listeners_changed(listened);
}

/// The engine's kind for a manifest.
fn kind(manifest: &Manifest) -> Kind {
  Kind {
    // A page cannot be closed elsewhere.
    interruptions: manifest
      .interruptions
      .filter(|interruptions| cfg!(unix) || *interruptions == Interruptions::Epoch)
      .unwrap_or_default(),
    has_fuel: manifest.fuel.is_some(),
  }
}

/// The host functions that come with a plugin.
fn functions(
  manifest: &Manifest,
  environment: &Environment,
  vars: &Arc<Vars>,
) -> Result<Vec<HostFunction>> {
  let settings = host::Settings {
    config: &manifest.config,
    http: &manifest.http,
    timeout: manifest.timeout,
  };
  host::functions(settings, environment, vars)
}

fn link_options<'a>(
  manifest: &Manifest,
  environment: &'a Environment,
  functions: &'a [HostFunction],
  vars: &'a Arc<Vars>,
) -> link::Options<'a> {
  link::Options {
    wasi: manifest.use_wasi,
    checks: kind(manifest).interruptions == Interruptions::Page,
    kernel: kernel::TEXT,
    limits: link::LinkLimits {
      memory_pages: u64::from(manifest.max_pages.unwrap_or(0).max(DEFAULT_MAX_PAGES)),
      ..link::LinkLimits::default()
    },
    functions,
    untyped: &environment.functions,
    vars,
  }
}

/// Reads and checks the modules, makes one of them, and compiles that, unless the cache has it. Tells
/// too whether the cache has it now.
fn link_and_compile(
  manifest: &Manifest,
  environment: &Environment,
  vars: &Arc<Vars>,
  cache: Option<&ArtefactDirectory>,
) -> Result<(Linked, Module, io::Result<()>)> {
  let functions = functions(manifest, environment, vars)?;
  let options = link_options(manifest, environment, &functions, vars);
  let engine = engine::engine(kind(manifest))?;
  if let Some(cache) = cache
    && let Some(digests) = manifest.digests()
    && let Some(hit) = cache.load(&cache_key(&digests, manifest, &options, &engine), &engine)
    && let Some(linked) = Linked::from_description(&hit.description, &options)
  {
    return Ok((linked, hit.module, Ok(())));
  }
  let modules = manifest.load()?;
  let failed = |error: wasmtime::Error| {
    Error::new(
      Code::InvalidWasm,
      format!("the plugin cannot be compiled: {error:#}"),
    )
  };
  let mut linked = link::link(&modules, &options).map_err(link_error)?;
  if manifest.snapshot {
    take_snapshot(&mut linked, &modules, &options, manifest, environment)?;
  }
  let Some(cache) = cache else {
    let _turn = compilation::wait_for_turn();
    let module = Module::new(&engine, &linked.bytes).map_err(failed)?;
    return Ok((linked, module, Ok(())));
  };
  let digests: Vec<_> = modules.iter().map(LoadedModule::digest).collect();
  let key = cache_key(&digests, manifest, &options, &engine);
  let turn = compilation::wait_for_turn();
  let artefact = Artefact::compile(&engine, &linked.bytes, linked.describe()).map_err(failed)?;
  drop(turn);
  let stored = cache.store(&key, &artefact);
  let module = match cache.load(&key, &engine) {
    Some(cached) => cached.module,
    None => artefact.to_module(&engine).map_err(failed)?,
  };
  Ok((linked, module, stored))
}

fn take_snapshot(
  linked: &mut Linked,
  modules: &[LoadedModule],
  options: &link::Options<'_>,
  manifest: &Manifest,
  environment: &Environment,
) -> Result<()> {
  let unchecked = link::Options {
    checks: false,
    ..*options
  };
  let unchecked = link::link(modules, &unchecked).map_err(link_error)?;
  let settings = settings(manifest, environment, linked)?;
  let timeout = manifest.timeout.unwrap_or(INITIALIZATION_TIMEOUT);
  let _turn = compilation::wait_for_turn();
  snapshot::apply(linked, &unchecked, settings, timeout);
  Ok(())
}

/// Tells the plugin's logger why there is no snapshot, though one was asked for.
fn warn_of_snapshot(snapshot: &Snapshot, environment: &Environment) {
  let wanted = environment.logger.level();
  if let Snapshot::Unsupported(reason) = snapshot
    && wanted.is_some_and(|wanted| Level::Warn >= wanted)
  {
    let message = format!("there is no snapshot, the plugin starts normally: {reason}");
    environment.logger.log(None, Level::Warn, &message);
  }
}

/// A digest of everything that the linked and compiled module depends on.
fn cache_key(
  modules: &[ModuleDigest],
  manifest: &Manifest,
  options: &link::Options<'_>,
  engine: &Engine,
) -> Key {
  // What an initialization may have seen.
  let snapshot = manifest.snapshot.then_some((
    &manifest.arguments,
    &manifest.environment,
    &manifest.allowed_paths,
    manifest.max_pages,
  ));
  let settings = format!(
    "{} {} {} {:?} {:?} {:?} {snapshot:?}",
    env!("CARGO_PKG_VERSION"),
    options.wasi,
    options.checks,
    options.limits,
    options.functions,
    options
      .untyped
      .iter()
      .map(|function| (&function.namespace, &function.name))
      .collect::<Vec<_>>(),
  );
  let compatibility = compatibility(engine);
  let mut parts: Vec<&[u8]> = vec![
    &LINKER_VERSION,
    options.kernel.as_bytes(),
    settings.as_bytes(),
    &compatibility,
  ];
  for (name, digest) in modules {
    parts.extend([name.as_bytes(), digest.as_bytes()]);
  }
  Key::new(&parts)
}

/// What tells artefacts of this engine from those of another configuration or version of Wasmtime.
fn compatibility(engine: &Engine) -> [u8; 8] {
  use std::hash::{DefaultHasher, Hash, Hasher};

  let mut hasher = DefaultHasher::new();
  engine.precompile_compatibility_hash().hash(&mut hasher);
  hasher.finish().to_le_bytes()
}

fn settings(manifest: &Manifest, environment: &Environment, linked: &Linked) -> Result<Settings> {
  Ok(Settings {
    kind: kind(manifest),
    fuel: manifest.fuel,
    growth_pages: growth_pages(manifest, linked),
    live_bytes: manifest
      .max_pages
      .map_or(u64::MAX / 2, |pages| u64::from(pages) * host::guest::PAGE),
    table_elements: link::LinkLimits::default().table_elements,
    max_output: manifest.max_output.unwrap_or(DEFAULT_MAX_OUTPUT),
    output: match manifest.output {
      OutputTo::Nowhere => Output::Off,
      OutputTo::Process => Output::Inherited,
      OutputTo::Logger => Output::Logged(Arc::clone(&environment.logger)),
    },
    arguments: manifest.arguments.clone(),
    environment: manifest.environment.clone().into_iter().collect(),
    allowed_paths: manifest.allowed_paths.clone(),
  })
}

/// Pages by which the memories of an instance may grow together.
fn growth_pages(manifest: &Manifest, linked: &Linked) -> u64 {
  let grown_pages = match linked.snapshot {
    Snapshot::Taken { grown_pages } => grown_pages,
    _ => 0,
  };
  let pages = match manifest.max_pages {
    // The user's limit is for what a plugin adds to the memories that its modules begin with: these a
    // compiler has chosen, and many begin with a megabyte.
    Some(pages) => u64::from(pages),
    None => u64::from(DEFAULT_MAX_PAGES).saturating_sub(linked.initial_pages),
  };
  pages.saturating_sub(grown_pages)
}

fn link_error(error: LinkError) -> Error {
  let code = match &error {
    LinkError::MissingImport { .. } => Code::MissingImport,
    LinkError::CircularLinking { .. } => Code::CircularLinking,
    LinkError::ReservedName { .. } => Code::ReservedName,
    LinkError::TooMuchMemory { .. } | LinkError::TooManyTableElements { .. } => Code::OutOfMemory,
    LinkError::NoMainModule | LinkError::DuplicateModule { .. } => Code::InvalidArgument,
    LinkError::Internal(_) => Code::Internal,
    _ => Code::InvalidWasm,
  };
  Error::new(code, error.to_string())
}
