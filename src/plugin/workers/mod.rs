//! The threads that run calls: a slot for each instance, one bounded queue for all of them.
//!
//! `queue` has the calls that wait, `worker` is what a slot's thread does, `slot` records what runs
//! there, `deadline` ends what runs for too long, `recycling` tells when an instance that works is replaced,
//! and `scaling` starts further instances.
//!
//! What ended a call is known from the slot's record ([`slot::Record`]), which is changed under its lock
//! only, and never from what a guest says. A call is ended once, by whoever takes its
//! [`slot::Waiter`] out of the record: the thread that ran it, the watchdog, or whoever cancels it. The
//! latter two also interrupt the instance, which takes no further call then, and is replaced. An
//! instance that does not heed it is stuck in a host call that blocks: its thread is abandoned and
//! counted, and the slot gets another.
//!
//! Locks: a slot's record is locked while the queue is, never the other way round, and no result is
//! run under a lock.

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

use super::instance::{CallError, CallOutput, Ending, Runtime};
use super::spin::Flag;
use super::stats::{Counters, Stats};
use crate::sync::{AtomicUsize, Condvar, Mutex, MutexGuard, Receiver, sync_channel};
use crate::{Code, Error, Result, watchdog};
use queue::Queue;
use scaling::ScaleUp;
use slot::{Activity, InFlight, Slot, Waiter};

/// Where the results of a plugin's calls go.
pub trait Results: Send + Sync {
  /// The call of this number has ended. Called once for each call, on whatever thread ends it; what it
  /// does should be quick.
  fn done(&self, number: u64, result: Result<CallOutput>);

  /// The plugin's first instance is about to be started. Whoever gets the results may go away before the
  /// plugin is open, and then aborts it.
  fn starting(&self, _workers: WeakWorkers) {}
}

/// Is told what an operator should know and no call is told of.
pub type Warn = Box<dyn Fn(&str) + Send + Sync>;

/// How a plugin's calls are run.
#[derive(Clone, Copy, Debug)]
pub struct WorkerLimits {
  /// How many instances, and so threads, there are at most.
  pub instances: NonZeroUsize,
  /// Whether all of them are started at once, and not only when calls need them.
  pub is_eager: bool,
  /// How many calls may be unfinished at once, running ones included.
  pub max_queue: NonZeroUsize,
  /// How many bytes the inputs of waiting calls may have together. One call may wait whatever it has.
  pub max_queue_bytes: usize,
  /// How long a call may run that has no limit of its own. No limit without it.
  pub timeout: Option<Duration>,
  /// How long an instance's initialization may run.
  pub initialization_timeout: Duration,
  /// How large an instance's kernel memory may be after a call; a larger one is replaced, since it
  /// never shrinks.
  pub max_idle_memory: u64,
  /// Whether each call has an instance of its own.
  pub is_isolated: bool,
  /// How many calls an instance serves before it is replaced. No limit without it.
  pub max_calls: Option<NonZeroU64>,
  /// How old an instance may be after a call and not be replaced. No limit without it.
  pub max_age: Option<Duration>,
}

/// A call that waits for an instance.
pub struct Call {
  /// What [`Workers::cancel`] knows it by; unique among the unfinished calls of the plugin.
  pub number: u64,
  /// The function, by its number.
  pub export: u32,
  /// What the guest reads as its input. Its memory comes back with the output, where that fits.
  pub input: Vec<u8>,
  /// How long it may run, where that is not what [`WorkerLimits`] says.
  pub timeout: Option<Duration>,
  /// Whether its caller has no other call, and does nothing but wait for this one. Where that is so for
  /// several in a row, threads and caller stay awake for each other.
  pub is_alone: bool,
}

/// Who will take a call that was queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queued {
  /// A thread that is awake. Also where the call was refused.
  Awake,
  /// A thread that sleeps and is to be woken.
  Asleep,
  /// A thread that stayed awake for it, and the call is alone: it begins at once.
  Awaited,
}

/// The worker threads of one plugin. They end when the last call has ended after
/// [`close`](Self::close). On drop, what is queued is forgotten and what runs is interrupted.
pub struct Workers {
  shared: Arc<WorkerPool>,
}

/// What the threads share.
struct WorkerPool {
  queue: Mutex<Queue>,
  /// Signalled for each call, and for all threads when the queue is closed.
  changed: Condvar,
  /// Calls that were accepted and have no result yet, the waiting ones included.
  unfinished: AtomicUsize,
  /// Calls that the watchdog, or whoever cancels, has taken and not ended yet. Until then the plugin is not
  /// closed. Raised under the lock of the queue or record that the call is taken from, so before its slot goes.
  taken: AtomicUsize,
  /// What threads that spin look at: there may be a call, or the queue has been closed.
  has_news: Flag,
  limits: WorkerLimits,
  counters: Counters,
  results: Arc<dyn Results>,
  warn: Warn,
  /// For the threads that are started later.
  this: Weak<WorkerPool>,
}

impl Workers {
  /// Starts the first instance, or with [`WorkerLimits::is_eager`] all, each with a thread of its own.
  pub fn start(
    limits: WorkerLimits,
    results: Arc<dyn Results>,
    runtime: Runtime,
    warn: Warn,
  ) -> Result<Self> {
    let shared = Arc::new_cyclic(|this| WorkerPool {
      queue: Mutex::new(Queue::new(runtime)),
      changed: Condvar::new(),
      unfinished: AtomicUsize::new(0),
      taken: AtomicUsize::new(0),
      has_news: Flag::default(),
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
    // If the plugin cannot be initialized, one is enough to know it.
    received(&start()?)?;
    let others = limits.instances.get() - 1;
    if limits.is_eager {
      let others = (0..others).map(|_| start()).collect::<Result<Vec<_>>>()?;
      others.iter().try_for_each(received)?;
    } else {
      workers.shared.lock().scale_up = ScaleUp::new(others);
    }
    Ok(workers)
  }

  /// Queues a call, or ends it at once with the reason why not.
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
          "{bytes} bytes of input wait already; wait for a call, or raise maxQueueBytes or instances"
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
      self.shared.has_news.set();
      self.shared.warn_of(not_started);
      return queued;
    };
    drop(queue);
    self.shared.warn_of(not_started);
    let refused = Err(refused);
    self.shared.counters.ended(&refused);
    self.shared.results.done(call.number, refused);
    Queued::Awake
  }

  /// Wakes a thread, which wakes the next if it finds more calls than it takes. A wake-up is a system
  /// call, and who queues calls has better things to do.
  pub fn wake(&self) {
    self.shared.changed.notify_one();
  }

  /// Ends the call of this number with [`Code::Canceled`]: at once, whether it waits or runs. A
  /// call that has ended is left alone.
  pub fn cancel(&self, number: u64) {
    let mut queue = self.shared.lock();
    let waiter = match queue.waiting.remove(number) {
      Some(call) => Some(Waiter::Call(call.number)),
      None => queue.slots.iter().find_map(|slot| {
        let mut record = slot.lock();
        let in_flight = record.in_flight.as_mut()?;
        let is_it = |waiter: &mut Waiter| matches!(waiter, Waiter::Call(other) if *other == number);
        let waiter = in_flight.waiter.take_if(is_it)?;
        record.interrupt();
        Some(waiter)
      }),
    };
    if waiter.is_some() {
      self.shared.taken.fetch_add(1, Ordering::Relaxed);
    }
    drop(queue);
    if let Some(waiter) = waiter {
      let error = Error::new(Code::Canceled, "the call was canceled");
      self.shared.end_taken(waiter, error);
    }
  }

  /// Lets the slots go when nothing waits any more, then runs `closed`.
  pub fn close(&self, closed: Box<dyn FnOnce() + Send>) {
    let mut queue = self.shared.lock();
    queue.is_closed = true;
    queue.scale_up = None;
    queue.on_closed.push(closed);
    if queue.waiting.is_empty() {
      // Nobody needs what is still being started.
      let records = queue.slots.iter().map(|slot| slot.lock());
      records
        .filter(|record| !record.is_proven)
        .for_each(|mut record| record.interrupt());
    }
    queue.reconsider_stuck_slots();
    let run_now = self.shared.closed_callbacks(&mut queue);
    drop(queue);
    self.shared.has_news.set();
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
    self.shared.taken.fetch_add(ended.len(), Ordering::Relaxed);
    queue.reconsider_stuck_slots();
    drop(queue);
    self.shared.has_news.set();
    self.shared.changed.notify_all();
    for waiter in ended {
      let error = Error::new(
        Code::Closed,
        "the plugin was closed before the call had ended",
      );
      self.shared.end_taken(waiter, error);
    }
  }

  /// A reference that does not keep the plugin.
  pub fn downgrade(&self) -> WeakWorkers {
    WeakWorkers(Arc::downgrade(&self.shared))
  }

  /// How many threads are stuck in calls of the host and have been replaced.
  pub fn abandoned(&self) -> usize {
    self.shared.lock().abandoned
  }

  /// What has been done, and is done at this moment.
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
    }
  }
}

/// A reference to [`Workers`] that may be gone.
pub struct WeakWorkers(Weak<WorkerPool>);

impl WeakWorkers {
  /// Has further instances made from that, unless the plugin is closed. Its exports must have the same numbers.
  pub fn set_runtime(&self, runtime: Runtime) {
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

  /// Whether there is anything left.
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
  /// Closes the queue, forgets what waits, and interrupts what runs.
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
    self.has_news.set();
    self.changed.notify_all();
    drop(forgotten);
  }

  /// Nothing that could panic runs under the lock, so a poisoned one is still sound.
  fn lock(&self) -> MutexGuard<'_, Queue> {
    self.queue.lock().unwrap_or_else(PoisonError::into_inner)
  }

  /// Whether a call with so much input may wait.
  fn has_room(&self, queue: &Queue, bytes: usize) -> bool {
    queue.waiting.is_empty()
      || bytes.saturating_add(queue.waiting.bytes()) <= self.limits.max_queue_bytes
  }

  /// Tells the plugin's logger why an instance could not be started. Not under a lock.
  fn warn_of(&self, not_started: Option<Error>) {
    if let Some(error) = not_started {
      (self.warn)(&format!(
        "an instance of the plugin could not be started, the others serve on: {error}"
      ));
    }
  }

  /// Tells the plugin's logger why an instance serves on though it was to be replaced. Not under a lock.
  fn warn_of_old_instance(&self, error: &Error) {
    (self.warn)(&format!(
      "an instance of the plugin could not be replaced by a new one and serves on: {error}"
    ));
  }

  /// Ends what somebody has taken from the queue or from a record.
  pub fn end(&self, waiter: Waiter, result: Result<CallOutput>) {
    match waiter {
      Waiter::Call(number) => {
        // Counted out first: who has seen a result can count on a free place.
        self.unfinished.fetch_sub(1, Ordering::Relaxed);
        self.counters.ended(&result);
        self.results.done(number, result);
      }
      Waiter::Initialization(Some(ready)) => ready(result.map(drop)),
      Waiter::Initialization(None) => {}
    }
  }

  /// Ends a call that was counted in [`taken`](Self::taken), and tells that the plugin is closed if it waited
  /// for that.
  fn end_taken(&self, waiter: Waiter, error: Error) {
    self.end(waiter, Err(error));
    self.taken.fetch_sub(1, Ordering::Relaxed);
    let closed = self.closed_callbacks(&mut self.lock());
    closed.into_iter().for_each(|closed| closed());
  }

  /// Where no slot is left that could take a call, nor can be started: ends those that wait. Where none
  /// is left at all and the plugin is closed: says so.
  pub fn end_what_nobody_can_serve(&self) {
    let mut queue = self.lock();
    let waiting = queue.waiting.len();
    let not_started = scaling::scale_up(self, &mut queue, waiting);
    let unserved = match queue.all_are_stuck() {
      true => queue.waiting.take(),
      false => VecDeque::new(),
    };
    self.taken.fetch_add(unserved.len(), Ordering::Relaxed);
    let closed = self.closed_callbacks(&mut queue);
    drop(queue);
    self.warn_of(not_started);
    for call in unserved {
      self.end_taken(Waiter::Call(call.number), all_are_stuck());
    }
    closed.into_iter().for_each(|closed| closed());
  }
}

fn cannot_start(error: &std::io::Error) -> Error {
  Error::no_thread("for the plugin", error)
}

fn received(is_ready: &Receiver<Result<()>>) -> Result<()> {
  let gone = || Error::new(Code::Internal, "a thread of the plugin ended too early");
  is_ready.recv().unwrap_or_else(|_| Err(gone()))
}

fn all_are_stuck() -> Error {
  Error::new(
    Code::Unavailable,
    "all threads of the plugin are stuck in calls of the host that do not return",
  )
}

/// The messages begin as programs know them from Extism's JavaScript SDK.
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

/// What a call, or an initialization, is told that was in flight when its instance ended.
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
      "the plugin has used up the fuel that a call may use",
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
    // Without a record of ours: the plugin is going away.
    Ending::Interrupted => Error::new(Code::Closed, "the plugin is closed"),
    Ending::Panicked(_) => Error::new(
      Code::Internal,
      format!("the plugin's instance ended without an answer ({ending:?})"),
    ),
  }
}

/// The innermost functions of a backtrace, for a message.
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
