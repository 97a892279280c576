//! The threads that run calls: one slot per instance, and one bounded queue for all of them.
//!
//! `queue` holds the waiting calls, `worker` is the code of a slot's thread, `slot` records what runs there,
//! `deadline` ends calls that run for too long, `recycling` decides when a working instance is replaced, and
//! `scaling` starts further instances.
//!
//! Each slot records why its call ended ([`slot::Record`]), under the record's lock; guest messages are never
//! trusted for that. Exactly one party completes a call: the one that takes its [`slot::Waiter`] out of the
//! record. That is the thread that ran it, the watchdog, or a cancellation. The latter two also interrupt the
//! instance, which then takes no further call and is replaced. An instance that does not react is stuck in a
//! blocking host call: its thread is abandoned and counted, and a new slot takes its place.
//!
//! Lock order: first the queue, then a slot's record. No result callback runs under a lock.

mod deadline;
mod queue;
mod recycling;
mod scaling;
mod slot;
mod waiting;
mod worker;

use std::collections::VecDeque;
use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use super::instance::{CallError, CallOutput, Ending, PluginRuntime};
use super::spin::Flag;
use super::stats::{Counters, Stats};
use crate::sync::{AtomicUsize, Condvar, Mutex, MutexGuard, Receiver, sync_channel};
use crate::trace::CallTrace;
use crate::{Code, Error, Result, watchdog};
use queue::CallQueue;
use scaling::ScaleUp;
use slot::{Activity, InFlight, Slot, Waiter};

/// Receives the results of a plugin's calls.
pub trait Results: Send + Sync {
  /// Called once for each call when it has ended, on whichever thread ends it. Must be quick.
  fn done(&self, number: u64, result: Result<CallOutput>);

  /// Called before the plugin's first instance starts. If the receiver goes away before the plugin has been
  /// opened, it aborts the plugin through `_workers`.
  fn starting(&self, _workers: WeakWorkers) {}
}

/// Logs a warning for operators about something that no call reports.
pub type Warn = Box<dyn Fn(&str) + Send + Sync>;

/// Limits for the instances and the call queue of a plugin.
#[derive(Clone, Copy, Debug)]
pub struct WorkerLimits {
  /// The maximum number of instances. Each has its own thread.
  pub instances: NonZeroUsize,
  /// Whether all instances start at once. Otherwise only the first does, and the others start when calls need
  /// them.
  pub is_eager: bool,
  /// The maximum number of unfinished calls, running ones included.
  pub max_queue: NonZeroUsize,
  /// The maximum size of the inputs of all queued calls together, in bytes. A single call may always wait.
  pub max_queue_bytes: usize,
  /// The maximum duration of a call without a timeout of its own; unlimited if `None`.
  pub timeout: Option<Duration>,
  /// The maximum duration of an instance's initialization.
  pub initialization_timeout: Duration,
  /// The kernel memory that an instance may keep after a call, in bytes. A larger one is replaced, because
  /// its memory never shrinks.
  pub max_idle_memory: u64,
  /// Whether each call gets a fresh instance.
  pub is_isolated: bool,
  /// How many calls an instance serves before it is replaced; unlimited if `None`.
  pub max_calls: Option<NonZeroU64>,
  /// The age at which an instance is replaced, after a call; unlimited if `None`.
  pub max_age: Option<Duration>,
}

/// A call that waits for an instance.
pub struct Call {
  /// Identifies the call for [`Workers::cancel`]; unique among the plugin's unfinished calls.
  pub number: u64,
  /// The number of the function to call.
  pub export: u32,
  /// The guest's input. Its buffer is returned with the output if that fits.
  pub input: Vec<u8>,
  /// The call's own timeout. If `None`, [`WorkerLimits::timeout`] applies.
  pub timeout: Option<Duration>,
  /// Whether its caller has no other call in flight, and only waits for this one. After several such calls in
  /// a row, worker and caller spin for each other instead of sleeping.
  pub is_alone: bool,
  /// Where to record what the call does, if somebody traces it.
  pub trace: Option<Arc<CallTrace>>,
}

/// Which kind of thread will take a queued call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queued {
  /// A thread that is awake. Also returned if the call was refused.
  Awake,
  /// A sleeping thread, which must be woken.
  Asleep,
  /// A thread that spins for it, and the call is alone: it starts at once.
  Awaited,
}

/// The worker threads of one plugin. They end when the last call has ended after [`close`](Self::close).
/// Dropping this discards the queued calls and interrupts the running ones.
pub struct Workers {
  shared: Arc<WorkerPool>,
}

/// The state that the threads share.
struct WorkerPool {
  queue: Mutex<CallQueue>,
  /// Signalled for each call, and for all threads when the queue is closed.
  changed: Condvar,
  /// Accepted calls without a result yet, the queued ones included.
  unfinished: AtomicUsize,
  /// Calls whose result the watchdog or a cancellation has claimed and not delivered yet. The plugin is not
  /// closed before they are. Incremented under the lock of the queue or record that the call is taken from,
  /// and so before its slot is removed.
  claimed: AtomicUsize,
  /// Wakes spinning threads: there may be a call, or the queue has been closed.
  has_changed: Flag,
  limits: WorkerLimits,
  counters: Counters,
  results: Arc<dyn Results>,
  warn: Warn,
  /// For threads that are started later.
  this: Weak<WorkerPool>,
}

impl Workers {
  /// Starts the first instance, or with [`WorkerLimits::is_eager`] all of them, each on its own thread.
  pub fn start(
    limits: WorkerLimits,
    results: Arc<dyn Results>,
    runtime: PluginRuntime,
    warn: Warn,
  ) -> Result<Self> {
    let shared = Arc::new_cyclic(|this| WorkerPool {
      queue: Mutex::new(CallQueue::new(runtime)),
      changed: Condvar::new(),
      unfinished: AtomicUsize::new(0),
      claimed: AtomicUsize::new(0),
      has_changed: Flag::default(),
      limits,
      counters: Counters::default(),
      results,
      warn,
      this: Weak::clone(this),
    });
    let watched = Arc::downgrade(&shared);
    watchdog::watch(watched).map_err(|error| cannot_start(&error))?;
    let workers = Self { shared };
    workers.shared.results.starting(workers.downgrade());
    let start = || {
      let (sender, is_ready) = sync_channel(1);
      let ready = Box::new(move |result| drop(sender.send(result)));
      let shared = &workers.shared;
      worker::start(
        shared,
        &mut shared.lock(),
        Arc::default(),
        Some(ready),
        None,
      )?;
      Ok(is_ready)
    };
    // If the plugin cannot be initialized, the first instance shows it.
    wait_until_ready(&start()?)?;
    let others = limits.instances.get() - 1;
    if limits.is_eager {
      let others = (0..others).map(|_| start()).collect::<Result<Vec<_>>>()?;
      others.iter().try_for_each(wait_until_ready)?;
    } else {
      workers.shared.lock().scale_up = ScaleUp::new(others);
    }
    Ok(workers)
  }

  /// Queues a call, or fails it at once if it is refused.
  pub fn push(&self, call: Call) -> Queued {
    let mut queue = self.shared.lock();
    let unfinished = self.shared.unfinished.load(Ordering::Relaxed);
    let not_started = scaling::scale_up(&self.shared, &mut queue, unfinished + 1);
    let refused = if queue.is_closed {
      Error::new(Code::Closed, "the plugin is closed")
    } else if unfinished >= self.shared.limits.max_queue.get() {
      Error::new(
        Code::QueueFull,
        format!(
          "{unfinished} calls are unfinished already; wait for one, or raise maxQueue or instances"
        ),
      )
    } else if !self.shared.has_room(&queue, call.input.len()) {
      let bytes = queue.waiting.bytes();
      Error::new(
        Code::QueueFull,
        format!(
          "the queue already holds {bytes} bytes of input; wait for a call, or raise maxQueueBytes or instances"
        ),
      )
    } else if queue.all_are_stuck() {
      all_are_stuck()
    } else {
      self.shared.unfinished.fetch_add(1, Ordering::Relaxed);
      let is_alone = call.is_alone && unfinished == 0;
      queue.alone = if is_alone { queue.alone + 1 } else { 0 };
      queue.waiting.push_back(call);
      if queue.waiting.len() > queue.ready() {
        queue.waited += 1;
      }
      let queued = match queue.spinning {
        0 if queue.idle > 0 => Queued::Asleep,
        0 => Queued::Awake,
        _ if is_alone => Queued::Awaited,
        _ if queue.waiting.len() > queue.spinning && queue.idle > 0 => Queued::Asleep,
        _ => Queued::Awake,
      };
      drop(queue);
      self.shared.has_changed.set();
      self.shared.warn_not_started(not_started);
      return queued;
    };
    drop(queue);
    self.shared.warn_not_started(not_started);
    let refused = Err(refused);
    self.shared.counters.ended(&refused);
    self.shared.results.done(call.number, refused);
    Queued::Awake
  }

  /// Wakes one thread, which wakes the next if it finds more calls than it takes. Separate from
  /// [`push`](Self::push) because a wake-up is a system call, and one is enough for several calls.
  pub fn wake(&self) {
    self.shared.changed.notify_one();
  }

  /// Ends the call with this number with [`Code::Canceled`] at once, whether it is queued or running. Does
  /// nothing if the call has already ended.
  pub fn cancel(&self, number: u64) {
    let mut queue = self.shared.lock();
    let waiter = match queue.waiting.remove(number) {
      Some(call) => Some(Waiter::Call(call.number)),
      None => queue.slots.iter().find_map(|slot| {
        let mut record = slot.lock();
        let in_flight = record.in_flight.as_mut()?;
        let matches_call =
          |waiter: &mut Waiter| matches!(waiter, Waiter::Call(other) if *other == number);
        let waiter = in_flight.waiter.take_if(matches_call)?;
        record.interrupt();
        Some(waiter)
      }),
    };
    if waiter.is_some() {
      self.shared.claimed.fetch_add(1, Ordering::Relaxed);
    }
    drop(queue);
    if let Some(waiter) = waiter {
      let error = Error::new(Code::Canceled, "the call was canceled");
      self.shared.complete_claimed(waiter, error);
    }
  }

  /// Closes the queue. When no call waits any more, the slots are removed, then `closed` runs.
  pub fn close(&self, closed: Box<dyn FnOnce() + Send>) {
    let mut queue = self.shared.lock();
    queue.is_closed = true;
    queue.scale_up = None;
    queue.on_closed.push(closed);
    if queue.waiting.is_empty() {
      // Instances that are still starting are no longer needed.
      let records = queue.slots.iter().map(|slot| slot.lock());
      records
        .filter(|record| !record.is_proven)
        .for_each(|mut record| record.interrupt());
    }
    queue.reconsider_stuck_slots();
    let run_now = self.shared.closed_callbacks(&mut queue);
    drop(queue);
    self.shared.has_changed.set();
    self.shared.changed.notify_all();
    run_now.into_iter().for_each(|closed| closed());
  }

  /// Ends all calls of a closed plugin at once, with [`Code::Closed`].
  pub fn end_calls(&self) {
    let mut queue = self.shared.lock();
    let waiting = queue.waiting.take();
    let mut ended: Vec<_> = waiting
      .into_iter()
      .map(|call| Waiter::Call(call.number))
      .collect();
    for slot in &queue.slots {
      let mut record = slot.lock();
      let waiter = record.in_flight.as_mut();
      ended.extend(waiter.and_then(|in_flight| in_flight.waiter.take()));
      record.interrupt();
    }
    self
      .shared
      .claimed
      .fetch_add(ended.len(), Ordering::Relaxed);
    queue.reconsider_stuck_slots();
    drop(queue);
    self.shared.has_changed.set();
    self.shared.changed.notify_all();
    for waiter in ended {
      let error = Error::new(Code::Closed, "the plugin was closed before the call ended");
      self.shared.complete_claimed(waiter, error);
    }
  }

  /// A reference that does not keep the plugin alive.
  pub fn downgrade(&self) -> WeakWorkers {
    WeakWorkers(Arc::downgrade(&self.shared))
  }

  /// How many threads have been replaced because they are stuck in host calls.
  pub fn abandoned(&self) -> usize {
    self.shared.lock().abandoned
  }

  /// The counters and the current state.
  pub fn stats(&self) -> Stats {
    let queue = self.shared.lock();
    let is_busy = |slot: &&Arc<Slot>| {
      let record = slot.lock();
      let in_flight = record.in_flight.as_ref();
      in_flight.is_some_and(|in_flight| in_flight.activity == Activity::Call)
    };
    let counters = &self.shared.counters;
    Stats {
      succeeded: counters.succeeded(),
      failed: counters.failed(),
      queued: queue.waiting.len(),
      busy: queue.slots.iter().filter(is_busy).count(),
      instances: queue.slots.len(),
      ready: queue.ready(),
      made: counters.instances_made(),
      waited: queue.waited,
      replaced: counters.replacements(),
      abandoned_threads: queue.abandoned,
      memory: queue.slots.iter().map(|slot| slot.memory()).sum(),
    }
  }
}

/// A weak reference to [`Workers`].
pub struct WeakWorkers(Weak<WorkerPool>);

impl WeakWorkers {
  /// Sets the source of further instances, unless the plugin is closed. Its exports must have the same
  /// numbers.
  pub fn set_runtime(&self, runtime: PluginRuntime) {
    let Some(shared) = self.0.upgrade() else {
      return;
    };
    let mut queue = shared.lock();
    let current = queue.runtime.as_mut();
    let old = current.map(|current| std::mem::replace(current, runtime));
    drop(queue);
    drop(old);
  }

  /// Stops the plugin as dropping [`Workers`] does.
  pub fn abort(&self) {
    if let Some(shared) = self.0.upgrade() {
      shared.abort();
    }
  }

  /// Whether the workers, or one of their threads, still exist.
  pub fn is_alive(&self) -> bool {
    self.0.strong_count() > 0
  }
}

impl Drop for Workers {
  fn drop(&mut self) {
    self.shared.abort();
  }
}

impl WorkerPool {
  /// Closes the queue, discards the queued calls, and interrupts the running ones.
  fn abort(&self) {
    let mut queue = self.lock();
    queue.is_closed = true;
    queue.scale_up = None;
    let forgotten = queue.waiting.take();
    for slot in &queue.slots {
      slot.lock().interrupt();
    }
    queue.reconsider_stuck_slots();
    drop(queue);
    self.has_changed.set();
    self.changed.notify_all();
    drop(forgotten);
  }

  /// Nothing that could panic runs under the lock, so the data behind a poisoned lock is consistent.
  fn lock(&self) -> MutexGuard<'_, CallQueue> {
    self.queue.lock().unwrap_or_else(PoisonError::into_inner)
  }

  /// Whether a call with an input of `bytes` may be queued.
  fn has_room(&self, queue: &CallQueue, bytes: usize) -> bool {
    queue.waiting.is_empty()
      || bytes.saturating_add(queue.waiting.bytes()) <= self.limits.max_queue_bytes
  }

  /// Warns that an instance could not be started. Not under a lock.
  fn warn_not_started(&self, not_started: Option<Error>) {
    if let Some(error) = not_started {
      (self.warn)(&format!(
        "an instance of the plugin could not be started, the others continue to serve: {error}"
      ));
    }
  }

  /// Warns that an instance continues to serve because it could not be replaced. Not under a lock.
  fn warn_not_replaced(&self, error: &Error) {
    (self.warn)(&format!(
      "an instance of the plugin could not be replaced by a new one and continues to serve: {error}"
    ));
  }

  /// Completes a call or initialization that was taken from the queue or from a record.
  pub fn end(&self, waiter: Waiter, result: Result<CallOutput>) {
    match waiter {
      Waiter::Call(number) => {
        // Decrement first: a caller that has seen the result can rely on a free slot in the queue.
        self.unfinished.fetch_sub(1, Ordering::Relaxed);
        self.counters.ended(&result);
        self.results.done(number, result);
      }
      Waiter::Initialization(Some(ready)) => ready(result.map(drop)),
      Waiter::Initialization(None) => {}
    }
  }

  /// Completes a call that was counted in [`claimed`](Self::claimed). Runs the callbacks of a plugin whose
  /// closing waited for that.
  fn complete_claimed(&self, waiter: Waiter, error: Error) {
    self.end(waiter, Err(error));
    self.claimed.fetch_sub(1, Ordering::Relaxed);
    let closed = self.closed_callbacks(&mut self.lock());
    closed.into_iter().for_each(|closed| closed());
  }

  /// If no slot can take a call and none can be started, fails the queued calls. If no slot is left and the
  /// plugin is closed, runs the callbacks for that.
  pub fn fail_unservable_calls(&self) {
    let mut queue = self.lock();
    let waiting = queue.waiting.len();
    let not_started = scaling::scale_up(self, &mut queue, waiting);
    let unserved = match queue.all_are_stuck() {
      true => queue.waiting.take(),
      false => VecDeque::new(),
    };
    self.claimed.fetch_add(unserved.len(), Ordering::Relaxed);
    let closed = self.closed_callbacks(&mut queue);
    drop(queue);
    self.warn_not_started(not_started);
    for call in unserved {
      self.complete_claimed(Waiter::Call(call.number), all_are_stuck());
    }
    closed.into_iter().for_each(|closed| closed());
  }
}

fn cannot_start(error: &std::io::Error) -> Error {
  Error::no_thread("for the plugin", error)
}

fn wait_until_ready(is_ready: &Receiver<Result<()>>) -> Result<()> {
  let ended_early = || {
    Error::new(
      Code::Internal,
      "a thread of the plugin ended during its start",
    )
  };
  is_ready.recv().unwrap_or_else(|_| Err(ended_early()))
}

fn all_are_stuck() -> Error {
  Error::new(
    Code::Unavailable,
    "all threads of the plugin are stuck in host calls that do not return",
  )
}

/// The messages start like those of Extism's JavaScript SDK, because programs check for them.
fn timed_out(in_flight: &InFlight) -> Error {
  let message = match in_flight.activity {
    Activity::Call => "EXTISM: call canceled due to timeout",
    Activity::Initialization | Activity::Recycling => {
      "EXTISM: timed out while waiting for plugin to instantiate"
    }
  };
  let limit = in_flight.limit.map(|limit| {
    let milliseconds = limit.as_millis();
    format!(": it ran for longer than {milliseconds} ms")
  });
  Error::new(
    Code::Timeout,
    format!("{message}{}", limit.unwrap_or_default()),
  )
}

fn error_of_call(error: CallError) -> Error {
  match error {
    CallError::Failed { code, .. } => Error {
      return_code: code,
      ..Error::new(
        Code::PluginError,
        format!("Plugin-originated error: {error}"),
      )
    },
    CallError::OutputTooLarge { .. } => Error::new(Code::OutputTooLarge, error.to_string()),
  }
}

/// The error for a call or initialization whose run ended like this.
fn error_of(ending: Ending) -> Error {
  match ending {
    Ending::Trapped {
      message,
      backtrace,
      has_hidden_errors,
    } => {
      let innermost = innermost(&backtrace);
      let hint = match has_hidden_errors {
        true => "; it wrote to standard error, which enableWasiOutput shows",
        false => "",
      };
      Error {
        backtrace,
        ..Error::new(
          Code::Trap,
          format!("the plugin trapped: {message}{innermost}{hint}"),
        )
      }
    }
    Ending::OutOfMemory => Error::new(
      Code::OutOfMemory,
      "the plugin asked for more memory than its limit, memory.maxPages",
    ),
    Ending::OutOfFuel => Error::new(
      Code::FuelExhausted,
      "the plugin has used up its fuel for this call",
    ),
    Ending::HostFunction(error) => {
      Error::new(error.code.unwrap_or(Code::HostFunctionError), error.message)
    }
    Ending::Exited(code) => Error {
      return_code: code,
      ..Error::new(
        Code::PluginError,
        format!("Plugin-originated error: the plugin exited with the code {code}"),
      )
    },
    // An interruption that no timeout or cancellation has claimed: the plugin is shutting down.
    Ending::Interrupted => Error::new(Code::Closed, "the plugin is closed"),
    Ending::Panicked(_) => Error::new(
      Code::Internal,
      format!("the plugin's instance ended without a result ({ending:?})"),
    ),
  }
}

/// The innermost functions of a backtrace, for an error message.
fn innermost(backtrace: &[String]) -> String {
  const SHOWN: usize = 3;
  const MAX_NAME: usize = 80;
  if backtrace.is_empty() {
    return String::new();
  }
  let shown = backtrace.iter().take(SHOWN).map(|name| {
    let end = name.floor_char_boundary(MAX_NAME.min(name.len()));
    name.get(..end).unwrap_or_default()
  });
  format!(" (in {})", shown.collect::<Vec<_>>().join(", called by "))
}
