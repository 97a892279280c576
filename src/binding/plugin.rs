//! `Plugin` for JavaScript, and how one is made off the event loop.

use std::cell::Cell;
use std::collections::HashMap;
use std::num::{NonZeroU64, NonZeroUsize};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use napi::Env;
use napi::bindgen_prelude::{
  Array, Either, Function, FunctionCallContext, Uint8Array, Uint8ArraySlice,
};
use napi_derive::napi;

use super::boundary::Boundary;
use super::completion_queue::{CompletionQueue, JobResult};
use super::host_functions::JsFunctions;
use super::logger::JsLogger;
use super::memory_store::MemoryStore;
use super::plugin_options::{FunctionName, PluginOptions};
use super::protocol::{CALL_MUST_TAKE, CALL_MUST_WAKE, CALL_QUEUED, CALL_TAKEN, CallArguments};
use super::store::Store as AnyStore;
use crate::host::{Environment, StoreAccess};
use crate::plugin::spin::SpinBackoff;
use crate::plugin::{self, Limits, Queued};
use crate::store::Store;
use crate::{Code, Error};

/// What `Plugin::stats` tells.
#[napi(object, object_from_js = false)]
pub struct PluginStats {
  /// Calls that had an output.
  pub succeeded: f64,
  /// Calls that failed, by code.
  pub failed: HashMap<String, f64>,
  /// Calls that wait.
  pub queued: f64,
  /// Instances that run a call.
  pub busy: f64,
  /// Instances.
  pub instances: f64,
  /// Those of them that wait for a call.
  pub ready: f64,
  /// Instances that have been made and initialized.
  pub made: f64,
  /// Calls that found no instance ready.
  pub waited: f64,
  /// Instances that were replaced, by reason.
  pub replaced: HashMap<String, f64>,
  /// Threads that hang in calls of the host and have been replaced.
  pub abandoned_threads: f64,
  /// What instances start from: `none`, `pending`, `taken` or `unsupported`.
  pub snapshot: &'static str,
  /// What guests have asked of the store.
  pub store: StoreStats,
}

/// What guests have asked of a plugin's store.
#[napi(object)]
pub struct StoreStats {
  /// Keys that were looked up.
  pub reads: f64,
  /// Those of them that had a value.
  pub hits: f64,
  /// Changes that were made.
  pub writes: f64,
  /// What was refused or failed, by code.
  pub failed: HashMap<String, f64>,
}

/// Something that the main module exports, as `WebAssembly.Module.exports` describes it.
#[napi(object)]
pub struct ExportDescriptor {
  /// Its name.
  pub name: String,
  /// `function`, `table`, `memory` or `global`.
  pub kind: String,
}

/// Something that the main module imports, as `WebAssembly.Module.imports` describes it.
#[napi(object)]
pub struct ImportDescriptor {
  /// Where from.
  pub module: String,
  /// Its name there.
  pub name: String,
  /// `function`, `table`, `memory` or `global`.
  pub kind: String,
}

/// Loads and starts a plugin, which arrives under the number `call`.
#[napi(catch_unwind)]
pub fn open_plugin(
  call: u32,
  options: PluginOptions,
  store: Either<&MemoryStore, &AnyStore>,
  boundary: &Boundary,
) {
  let store: Arc<dyn Store> = match store {
    Either::A(store) => store.shared(),
    Either::B(store) => store.shared(),
  };
  let at_least_one = |number: u32| NonZeroUsize::new(number as usize).unwrap_or(NonZeroUsize::MIN);
  let limits = Limits {
    instances: at_least_one(options.instances),
    is_eager: options.eager,
    max_queue: at_least_one(options.max_queue),
    max_queue_bytes: options.max_queue_bytes as usize,
    is_isolated: options.is_isolated,
    max_calls: options
      .max_calls
      .and_then(|calls| NonZeroU64::new(calls as u64)),
    max_age: options
      .max_age_ms
      .map(|age| Duration::from_millis(age as u64)),
  };
  let environment = environment(&options, store, boundary);
  let manifest = plugin::Manifest::from(options);
  let queue = boundary.queue();
  load(call, boundary, move || {
    let results = Arc::clone(&queue) as _;
    let plugin = plugin::Plugin::open(&manifest, limits, &environment, results)?;
    Ok(JobResult::value(Plugin::new(plugin, queue)))
  });
}

/// Puts the handlers back that make errors of guests' traps, if somebody has displaced them. `listened` are
/// the names of those signals that JavaScript has listeners for now. Cheap.
#[napi(catch_unwind)]
pub fn put_back_signal_handlers(listened: Vec<String>) {
  plugin::put_back_signal_handlers(&listened);
}

/// What the plugin has of JavaScript.
fn environment(options: &PluginOptions, store: Arc<dyn Store>, boundary: &Boundary) -> Environment {
  let functions = JsFunctions {
    plugin_id: options.plugin_id,
    queue: boundary.queue(),
  };
  let names = (0..).zip(&options.functions);
  Environment {
    store: Arc::new(StoreAccess::new(store, (&options.store_permissions).into())),
    logger: Arc::new(JsLogger::new(
      options.plugin_id,
      options.log_level,
      boundary.queue(),
    )),
    functions: names
      .map(|(number, FunctionName { namespace, name })| {
        functions.function(number, namespace.clone(), name.clone())
      })
      .collect(),
  }
}

/// Fills the compile cache with what such a plugin needs; an empty result arrives under the number
/// `call`.
#[napi(catch_unwind)]
pub fn precompile(call: u32, options: PluginOptions, boundary: &Boundary) {
  // What the store has makes no difference to what is compiled.
  let store = Arc::new(crate::store::MemoryStore::new());
  let environment = environment(&options, store, boundary);
  let manifest = plugin::Manifest::from(options);
  load(call, boundary, move || {
    plugin::Plugin::precompile(&manifest, &environment).map(|()| JobResult::EMPTY)
  });
}

/// Does something on a thread of its own.
///
/// Not on libuv's pool: the end of the process waits for that, and a plugin may take as long as it
/// likes to initialize itself.
fn load(
  call: u32,
  boundary: &Boundary,
  work: impl FnOnce() -> crate::Result<JobResult> + Send + 'static,
) {
  let queue = boundary.queue();
  let results = Arc::clone(&queue);
  let spawned = thread::Builder::new()
    .name("extism-open".to_owned())
    .spawn(move || {
      let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let message = "the runtime panicked while it loaded the plugin";
        Err(Error::new(Code::Internal, message))
      });
      results.push_result(call, result);
    });
  if let Err(error) = spawned {
    let error = Error::no_thread("to load the plugin", &error);
    queue.push_result(call, Err(error));
  }
}

/// A running plugin. When JavaScript has forgotten it and its [`caller`](Self::caller), what it still
/// does is interrupted; so `calls.js` keeps it for as long as a call is unfinished.
#[napi]
pub struct Plugin {
  plugin: Arc<plugin::Plugin>,
  queue: Arc<CompletionQueue>,
}

impl Plugin {
  /// Results go into `queue`.
  pub fn new(plugin: plugin::Plugin, queue: Arc<CompletionQueue>) -> Self {
    Self {
      plugin: Arc::new(plugin),
      queue,
    }
  }
}

#[napi]
impl Plugin {
  /// The functions that can be called, each with the number of its export.
  #[napi(catch_unwind)]
  pub fn functions(&self) -> HashMap<String, u32> {
    let functions = self.plugin.functions();
    functions
      .map(|(name, export)| (name.to_owned(), export))
      .collect()
  }

  /// The function that queues a call, whose arguments are in the header ([`CallArguments`]). If the result
  /// has come meanwhile and it may take it, it does so as `take` would have. It returns a `CALL_…` number.
  #[napi(
    catch_unwind,
    ts_return_type = "(shared: Uint8Array, outOfBand: unknown[]) => number"
  )]
  pub fn caller<'env>(
    &self,
    env: &'env Env,
    boundary: &Boundary,
  ) -> napi::Result<Function<'env, (Uint8Array, Array<'env>), u32>> {
    let plugin = Arc::clone(&self.plugin);
    let js_thread = boundary.js_thread();
    let backoff = Cell::new(SpinBackoff::default());
    env.create_function_from_closure("call", move |context: FunctionCallContext<'_>| {
      let arguments = js_thread.call_arguments();
      let CallArguments { number, export, .. } = arguments;
      let input = js_thread.input(arguments.input_bytes);
      let mut call = call(number, export, input, arguments.timeout_ms);
      call.is_alone = arguments.is_alone;
      let queued = plugin.queue(call);
      if queued != Queued::Awaited {
        return Ok(call_outcome(queued));
      }
      let mut spins = backoff.get();
      let mut has_ended = false;
      if spins.is_due() {
        has_ended = js_thread.queue.events.spin_wait();
        spins.learn(has_ended);
      }
      backoff.set(spins);
      match (has_ended, arguments.may_take) {
        (false, _) => Ok(CALL_QUEUED),
        (true, false) => Ok(CALL_MUST_TAKE),
        (true, true) => js_thread.take(&context).map(|()| CALL_TAKEN),
      }
    })
  }

  /// As the function of [`caller`](Self::caller), for an input that is too long for the inbox. It
  /// takes no results.
  #[napi(catch_unwind)]
  pub fn call_with(
    &self,
    number: u32,
    export_number: u32,
    input: Either<String, Uint8ArraySlice<'_>>,
    timeout_ms: u32,
  ) -> u32 {
    let input = match input {
      Either::A(text) => text.into_bytes(),
      Either::B(bytes) => bytes.to_vec(),
    };
    let queued = self
      .plugin
      .queue(call(number, export_number, input, timeout_ms));
    call_outcome(queued)
  }

  /// Wakes the threads that calls need.
  #[napi(catch_unwind)]
  pub fn wake(&self) {
    self.plugin.wake();
  }

  /// Ends a call before its time; its result, which still arrives, means nothing.
  #[napi(catch_unwind)]
  pub fn cancel(&self, call: u32) {
    self.plugin.cancel(call.into());
  }

  /// What the plugin has done, and does at this moment.
  #[napi(catch_unwind)]
  pub fn stats(&self) -> PluginStats {
    // More than 2⁵³ of anything is out of reach.
    let by_code = |failed: Vec<(Code, u64)>| {
      let failed = failed.into_iter();
      failed
        .map(|(code, count)| (code.as_str().to_owned(), count as f64))
        .collect()
    };
    let (stats, store) = (self.plugin.stats(), self.plugin.store_stats());
    PluginStats {
      succeeded: stats.succeeded as f64,
      failed: by_code(stats.failed),
      queued: stats.queued as f64,
      busy: stats.busy as f64,
      instances: stats.instances as f64,
      ready: stats.ready as f64,
      made: stats.made as f64,
      waited: stats.waited as f64,
      replaced: stats
        .replaced
        .into_iter()
        .map(|(reason, count)| (reason.as_str().to_owned(), count as f64))
        .collect(),
      abandoned_threads: stats.abandoned_threads as f64,
      snapshot: self.plugin.snapshot().as_str(),
      store: StoreStats {
        reads: store.reads as f64,
        hits: store.hits as f64,
        writes: store.writes as f64,
        failed: by_code(store.failed),
      },
    }
  }

  /// What the main module exports.
  #[napi(catch_unwind)]
  pub fn exports(&self) -> Vec<ExportDescriptor> {
    let exports = self.plugin.exports().iter();
    exports
      .map(|export| ExportDescriptor {
        name: export.name.clone(),
        kind: export.kind.as_str().to_owned(),
      })
      .collect()
  }

  /// What the main module imports.
  #[napi(catch_unwind)]
  pub fn imports(&self) -> Vec<ImportDescriptor> {
    let imports = self.plugin.imports().iter();
    imports
      .map(|import| ImportDescriptor {
        module: import.module.clone(),
        name: import.name.clone(),
        kind: import.kind.as_str().to_owned(),
      })
      .collect()
  }

  /// Forgets all variables.
  #[napi(catch_unwind)]
  pub fn clear_vars(&self) {
    self.plugin.clear_vars();
  }

  /// Ends the calls that are left of a plugin that is being closed.
  #[napi(catch_unwind)]
  pub fn end_calls(&self) {
    self.plugin.end_calls();
  }

  /// Closes the plugin; an empty result arrives under the number `call` when all is freed.
  #[napi(catch_unwind)]
  pub fn close(&self, call: u32) {
    let queue = Arc::clone(&self.queue);
    self
      .plugin
      .close(move || queue.push_result(call, Ok(JobResult::EMPTY)));
  }
}

fn call_outcome(queued: Queued) -> u32 {
  match queued {
    Queued::Asleep => CALL_MUST_WAKE,
    Queued::Awake | Queued::Awaited => CALL_QUEUED,
  }
}

fn call(number: u32, export: u32, input: Vec<u8>, timeout_ms: u32) -> plugin::Call {
  plugin::Call {
    number: number.into(),
    export,
    input,
    timeout: (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms.into())),
    is_alone: false,
  }
}
