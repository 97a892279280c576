//! Plugins: what to load, the instances, and the threads that run them.

mod compile_cache;
mod instance;
mod manifest;
mod module;
mod workers;

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::sync::Arc;

pub use manifest::{DEFAULT_MAX_PAGES, Manifest, Source, Wasm};
pub use workers::Done;

use crate::store::Store;
use crate::{Code, Error, Result};
use instance::Blueprint;
use workers::{Job, Workers};

/// How a plugin is run.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
  /// How many instances, and so threads, there are.
  pub instances: NonZeroUsize,
  /// How many calls may be unfinished at once, running ones included.
  pub max_queue: NonZeroUsize,
}

/// A loaded plugin: a number of instances, each on a thread of its own, behind one queue.
///
/// May be used from any thread. Dropping it lets the calls that were accepted end.
pub struct Plugin {
  functions: HashSet<Arc<str>>,
  workers: Workers,
}

impl Plugin {
  /// Reads, checks and compiles the modules, and starts the instances. Blocks for as long as that
  /// takes: milliseconds with a warm compile cache, seconds without one.
  pub fn open(manifest: &Manifest, limits: Limits, store: Arc<dyn Store>) -> Result<Self> {
    let modules = manifest.load()?;
    let main = module::inspect_all(&modules, manifest.use_wasi)?;
    let cache = compile_cache::configuration();
    let blueprint = Arc::new(Blueprint::new(manifest, modules, store, cache));
    Ok(Self {
      functions: main.functions().map(Arc::from).collect(),
      workers: Workers::start(&blueprint, limits)?,
    })
  }

  /// Whether the main module exports a function of that name that can be called.
  pub fn function_exists(&self, name: &str) -> bool {
    self.functions.contains(name)
  }

  /// Queues a call. `done` is run once, whatever happens: on a worker's thread with what the call
  /// gave, or at once on this thread where the call is refused, with [`Code::FunctionNotFound`],
  /// [`Code::QueueFull`] or [`Code::Closed`].
  pub fn call(&self, function: &str, input: Vec<u8>, done: Done) {
    let Some(function) = self.functions.get(function) else {
      return done(Err(Error::new(
        Code::FunctionNotFound,
        format!("Plugin error: function \"{function}\" does not exist"),
      )));
    };
    self.workers.push(Job {
      function: Arc::clone(function),
      input,
      done,
    });
  }

  /// Refuses calls from now on, lets those that were accepted end, then frees the instances and
  /// runs `closed`, on another thread or, where all that is done already, on this one.
  pub fn close(&self, closed: impl FnOnce() + Send + 'static) {
    self.workers.close(Some(Box::new(closed)));
  }
}
