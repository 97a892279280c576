//! Checks how calls are passed between the queue, workers, the watchdog and JavaScript's thread, with a model
//! checker: [shuttle](https://github.com/awslabs/shuttle).
//!
//! The modules under test are compiled here a second time, against `sync.rs`: at every lock, wait and atomic
//! access, shuttle chooses the thread that runs next. Instances and time are simulated (`plugin/instance.rs`,
//! `sync.rs`). Shuttle treats all atomics as sequentially consistent. That hides no bugs here: weaker atomics
//! change under a lock, or only tell a thread to check something under a lock.
//!
//! Each scenario runs in `MODEL_INTERLEAVINGS` random interleavings and in as many with few preemptions. Both
//! are derived from `MODEL_SEED`. A failure prints its schedule; `MODEL_SCHEDULE` replays it.

#![allow(dead_code, missing_docs)]

mod completions;
#[path = "../../src/binding/event_queue.rs"]
mod event_queue;
mod host;
#[path = "../../src/interruption.rs"]
mod interruption;
mod plugin;
mod scenario;
mod spinning;
mod sync;
/// Nobody traces the calls here.
mod trace {
  use std::sync::Arc;

  pub struct CallTrace;

  pub fn run<T>(_: Option<Arc<CallTrace>>, call: impl FnOnce() -> T) -> T {
    call()
  }
}
mod trim {
  pub fn schedule() {}
}
#[path = "../../src/watchdog.rs"]
mod watchdog;
mod workers;

pub use extism_host::{Code, Error, Result};
use scenario::violation;
