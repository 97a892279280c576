//! Checks how calls are handed over between the queue, workers, the watchdog and JavaScript's thread, with a
//! model checker: [shuttle](https://github.com/awslabs/shuttle).
//!
//! The modules that are checked are compiled here a second time, against `sync.rs`: every lock, wait and atomic
//! access is a point where shuttle chooses the thread that goes on. Instances and time are played
//! (`plugin/instance.rs`, `sync.rs`). Shuttle takes all atomics for sequentially consistent. That hides nothing here:
//! weaker ones change under a lock, or only tell a thread to look under one.
//!
//! Each scenario runs in `MODEL_INTERLEAVINGS` random interleavings and as many with few preemptions. Both come
//! from `MODEL_SEED`. A failure prints its schedule; `MODEL_SCHEDULE` replays it.

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
mod trim {
  pub fn soon() {}
}
#[path = "../../src/watchdog.rs"]
mod watchdog;
mod workers;

pub use extism_host::{Code, Error, Result};
use scenario::violation;
