//! Building blocks of the scenarios.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, MaxSteps, Runner};

use crate::plugin::instance::{CallOutput, PluginRuntime, Startup, Template};
use crate::plugin::workers::{Call, Queued, Results, WorkerLimits, Workers};
use crate::sync::{self, Condvar, Mutex, MutexGuard, process_static, thread};
use crate::{Code, Result};

process_static! { static VIOLATIONS: Mutex<Vec<String>> = Mutex::default(); }

/// Records something that must not happen. A panic would be caught by a worker.
pub fn violation(message: impl Into<String>) {
  let mut violations = VIOLATIONS.lock().unwrap_or_else(PoisonError::into_inner);
  violations.push(message.into());
}

/// The number of preemptions in schedules with few of them.
const PREEMPTIONS: usize = 3;

/// More than any interleaving needs; stops endless spinning.
const MAX_STEPS: usize = 50_000;

/// Runs a scenario in many interleavings.
pub fn check(scenario: impl Fn() + Send + Sync + Clone + 'static) {
  let run = move || {
    sync::reset_clock();
    scenario();
    let violations = VIOLATIONS.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(violations.is_empty(), "{violations:?}");
  };
  if let Ok(schedule) = std::env::var("MODEL_SCHEDULE") {
    return shuttle::replay(run, &schedule);
  }
  let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
  let interleavings = number("MODEL_INTERLEAVINGS").unwrap_or(500) as usize;
  let seed = number("MODEL_SEED").unwrap_or(0);
  with(
    RandomScheduler::new_from_seed(seed, interleavings),
    run.clone(),
  );
  with(
    PctScheduler::new_from_seed(seed, PREEMPTIONS, interleavings),
    run,
  );
}

fn with(scheduler: impl Scheduler + 'static, run: impl Fn() + Send + Sync + 'static) {
  let mut config = Config::new();
  config.max_steps = MaxSteps::FailAfter(MAX_STEPS);
  config.silence_warnings = true;
  Runner::new(scheduler, config).run(run);
}

/// A random one of the options.
pub fn any<T: Copy>(options: &[T]) -> T {
  options[thread_rng().gen_range(0..options.len())]
}

/// Yields for a random time, up to longer than a thread spins.
pub fn pause() {
  for _ in 0..thread_rng().gen_range(0..150) {
    thread::yield_now();
  }
}

/// Advances the clock step by step until it is dropped.
pub struct Time(Arc<Mutex<bool>>);

impl Time {
  pub fn passes(step: Duration) -> Self {
    let is_over = Arc::new(Mutex::new(false));
    let time = Self(Arc::clone(&is_over));
    thread::spawn(move || {
      while !*is_over.lock().unwrap_or_else(PoisonError::into_inner) {
        sync::advance(step);
        thread::yield_now();
      }
    });
    time
  }
}

impl Drop for Time {
  fn drop(&mut self) {
    *self.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
  }
}

#[derive(Default)]
struct Record {
  results: HashMap<u64, Result<Vec<u8>>>,
  /// How often each callback of `close` has run.
  closed: Vec<usize>,
}

/// Records the results and callbacks of a plugin.
#[derive(Default)]
pub struct Recorder {
  record: Mutex<Record>,
  changed: Condvar,
}

impl Recorder {
  fn lock(&self) -> MutexGuard<'_, Record> {
    self.record.lock().unwrap_or_else(PoisonError::into_inner)
  }

  fn wait_while(&self, condition: impl Fn(&Record) -> bool) -> MutexGuard<'_, Record> {
    let waited = self
      .changed
      .wait_while(self.lock(), |record| condition(record));
    waited.unwrap_or_else(PoisonError::into_inner)
  }
}

impl Results for Recorder {
  fn done(&self, number: u64, result: Result<CallOutput>) {
    let result = result.map(|output| output.bytes);
    let mut record = self.lock();
    let is_refused = |code| matches!(code, Code::Closed | Code::QueueFull | Code::Unavailable);
    let is_refused = result.as_ref().is_err_and(|error| is_refused(error.code));
    if !record.closed.is_empty() && record.closed.iter().all(|runs| *runs > 0) && !is_refused {
      violation(format!(
        "the call {number} ended after the plugin was closed: {result:?}"
      ));
    }
    let is_right = |output: &Vec<u8>| *output == number.to_le_bytes();
    if result.as_ref().is_ok_and(|output| !is_right(output)) {
      violation(format!("the call {number} got the result of another"));
    }
    if record.results.insert(number, result).is_some() {
      violation(format!("the call {number} ended twice"));
    }
    drop(record);
    self.changed.notify_all();
  }
}

/// A plugin and its recorder.
#[derive(Clone)]
pub struct Plugin {
  pub workers: Arc<Workers>,
  pub recorder: Arc<Recorder>,
}

pub fn limits(instances: usize) -> WorkerLimits {
  WorkerLimits {
    instances: NonZeroUsize::new(instances).unwrap(),
    is_eager: false,
    max_queue: NonZeroUsize::new(100).unwrap(),
    max_queue_bytes: usize::MAX,
    timeout: None,
    initialization_timeout: Duration::from_secs(1000),
    max_idle_memory: u64::MAX,
    is_isolated: false,
    max_calls: None,
    max_age: None,
  }
}

pub fn call(number: u64, export: u32) -> Call {
  Call {
    number,
    export,
    input: Vec::new(),
    timeout: None,
    is_alone: false,
    trace: None,
  }
}

impl Plugin {
  pub fn start(limits: WorkerLimits, startups: &[Startup]) -> Result<Self> {
    let recorder = Arc::<Recorder>::default();
    let template = Arc::new(Template::new(startups));
    let results = Arc::clone(&recorder) as Arc<dyn Results>;
    let workers = Workers::start(
      limits,
      results,
      PluginRuntime::Wasmtime(template),
      Box::new(|_| {}),
    )?;
    let workers = Arc::new(workers);
    Ok(Self { workers, recorder })
  }

  /// Queues a call and wakes a thread if necessary, as `calls.js` does.
  pub fn push(&self, call: Call) {
    if self.workers.push(call) == Queued::Asleep {
      self.workers.wake();
    }
  }

  /// Waits for the end of a call. Returns its code if it has failed.
  pub fn wait(&self, number: u64) -> Result<(), Code> {
    let record = self
      .recorder
      .wait_while(|record| !record.results.contains_key(&number));
    match &record.results[&number] {
      Ok(_) => Ok(()),
      Err(error) => Err(error.code),
    }
  }

  pub fn close(&self) {
    let recorder = Arc::clone(&self.recorder);
    let mut record = self.recorder.lock();
    let number = record.closed.len();
    record.closed.push(0);
    drop(record);
    self.workers.close(Box::new(move || {
      recorder.lock().closed[number] += 1;
      recorder.changed.notify_all();
    }));
  }

  /// Waits until the callback of each `close` has run.
  pub fn wait_until_closed(&self) {
    let open = |record: &Record| record.closed.contains(&0);
    let record = self.recorder.wait_while(open);
    if record.closed.iter().any(|runs| *runs > 1) {
      violation("a close callback ran twice");
    }
  }

  pub fn close_and_wait(&self) {
    self.close();
    self.wait_until_closed();
  }
}
