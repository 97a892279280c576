//! The threads that run calls: a slot for each instance, one bounded queue for all of them.
//!
//! A slot's thread runs one instance after the other. Each serves calls until something ends it:
//! a trap, a time limit, a cancelled call, memory that has grown too large. Then the slot makes the
//! next from what it has compiled. What ended a call is known from the slot's own record
//! ([`InFlight`]), which is changed under its lock only, and never from what a guest says.
//!
//! A call is ended once, by whoever takes its [`Waiter`] out of the record: the thread that ran it, the
//! watchdog, or whoever cancels it. The latter two also interrupt the instance, which takes no
//! further call then, and is replaced. An instance that does not heed it is stuck in a call of the
//! host that blocks: its thread is abandoned and counted, and the slot gets another.
//!
//! Locks: a slot's record is locked while the queue is, never the other way round, and no result is
//! run under a lock.

use std::cell::Cell;
use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use extism::CancelHandle;

use super::instance::{self, CallError, Compiled, Ending, Finished, Jobs};
use super::interrupt;
use super::spin::{Flag, Habit, Spinner};
use super::stats::{Counters, Replaced, Stats};
use crate::host::Interruption;
use crate::watchdog::{self, Watched};
use crate::{Code, Error, Result};

/// Where the results of a plugin's calls go.
pub trait Results: Send + Sync {
  /// The call of this number has ended. Called once for each call, on whatever thread ends it; what it
  /// does should be quick.
  fn done(&self, number: u64, result: Result<Vec<u8>>);
}

/// How long an interrupted instance may take to end before its thread is abandoned.
const GRACE: Duration = Duration::from_millis(200);

/// How many threads of a plugin may be abandoned at once. A guest can make them: each holds an
/// instance's memory until the host call that it is stuck in returns.
const MAX_ABANDONED: usize = 16;

/// How soon a call must have come for a thread to look for the next without sleeping. Longer than it
/// looks: it includes the time in which a thread that sleeps is woken.
const FAST: Duration = Duration::from_micros(300);

/// How many calls must have come one after the other for that.
const ALONE: u64 = 8;
/// How long no further instance is started after one that could not be. Each failure after that
/// doubles it, up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause after an instance that could not be started.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// How a plugin's calls are run.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
  /// How many instances, and so threads, there are at most.
  pub instances: NonZeroUsize,
  /// Whether all of them are started at once, and not only when calls need them.
  pub is_eager: bool,
  /// How many calls may be unfinished at once, running ones included.
  pub max_queue: NonZeroUsize,
  /// How long a call may run that has no limit of its own. No limit without it.
  pub timeout: Option<Duration>,
  /// How long an instance's initialization may run.
  pub initialization_timeout: Duration,
  /// How many bytes an output may have.
  pub max_output: u64,
  /// How large an instance's kernel memory may be after a call; a larger one is replaced, since it
  /// never shrinks.
  pub max_idle_memory: u64,
  /// Whether each call has an instance of its own.
  pub is_isolated: bool,
}

/// A call that waits for an instance.
pub struct Call {
  /// What [`Workers::cancel`] knows it by; unique among the unfinished calls of the plugin.
  pub number: u64,
  /// The export, by the number that the driver knows it by.
  pub export: u32,
  /// What the guest reads as its input. Its memory comes back with the output, where that fits.
  pub input: Vec<u8>,
  /// How long it may run, where that is not what [`Limits`] says.
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
  shared: Arc<Shared>,
}

struct Shared {
  queue: Mutex<Queue>,
  /// Signalled for each call, and for all threads when the queue is closed.
  changed: Condvar,
  /// Calls that were accepted and have no result yet, the waiting ones included.
  unfinished: AtomicUsize,
  /// What threads that spin look at: there may be a call, or the queue has been closed.
  has_news: Flag,
  limits: Limits,
  counters: Counters,
  results: Arc<dyn Results>,
  /// To hand to the threads that replace abandoned ones.
  this: Weak<Shared>,
}

#[derive(Default)]
struct Queue {
  waiting: VecDeque<Call>,
  /// How many threads sleep until there is a call. To wake one is a system call, which is not made for
  /// nobody.
  idle: usize,
  /// How many threads look for a call without sleeping.
  spinning: usize,
  /// Whether that has paid.
  spinning_habit: Habit,
  /// How many calls in a row were alone.
  alone: u64,
  /// How long a thread waited for the last call that had to be waited for.
  last_wait: Option<Duration>,
  slots: Vec<Arc<Slot>>,
  /// How many threads are compiling, and will have a slot after that.
  compiling: usize,
  /// Where further instances come from; `None` when there are none to come.
  further: Option<Further>,
  abandoned: usize,
  is_closed: bool,
  /// Run when the last slot has gone.
  on_closed: Vec<Box<dyn FnOnce() + Send>>,
}

/// Compiles the plugin's modules, for an engine of their own: to interrupt one instance interrupts all
/// of an engine.
type Compile = dyn Fn() -> Result<Compiled> + Send + Sync;

/// The instances that are not started with the plugin but when calls need them.
struct Further {
  compile: Arc<Compile>,
  /// How many have not been initialized yet.
  missing: usize,
  /// How many could not be started since the last that could.
  failures: u32,
  /// Before this, no other is started.
  not_before: Option<Instant>,
}

/// The place of one instance. An abandoned thread keeps its slot; its replacement gets a new one.
struct Slot {
  compiled: Compiled,
  record: Mutex<Record>,
  /// Whether its instance is interrupted and does not end, and its thread cannot be abandoned as too
  /// many are already. Beside the record, since it is looked at for each call.
  is_stuck: AtomicBool,
}

#[derive(Default)]
struct Record {
  in_flight: Option<InFlight>,
  /// Of the instance that runs; there from the moment at which an interruption reaches it.
  interrupt: Option<CancelHandle>,
  /// Of the same instance: what its host functions watch.
  interruption: Option<Arc<Interruption>>,
  /// Whether that instance has been interrupted: it takes no call any more. One that has not started
  /// yet does not start.
  is_interrupted: bool,
  is_abandoned: bool,
  /// Whether an instance of the slot, or of the one that it replaces, has been initialized. Until then
  /// no call counts on it.
  is_proven: bool,
}

/// What an instance is doing: a call, or its initialization.
struct InFlight {
  /// `None` once somebody has ended it.
  waiter: Option<Waiter>,
  is_initialization: bool,
  deadline: Option<Instant>,
  /// When its thread is to be abandoned; set when the instance is interrupted.
  abandon_at: Option<Instant>,
}

/// Who is to be told how something ends.
enum Waiter {
  /// Who made the call of this number.
  Call(u64),
  /// Who waits for the initialization of an instance.
  Initialization(Box<dyn FnOnce(Result<()>) + Send>),
}

impl Workers {
  /// Starts the first instance, or with [`Limits::is_eager`] all, each with a thread of its own.
  pub fn start(
    limits: Limits,
    results: Arc<dyn Results>,
    compile: impl Fn() -> Result<Compiled> + Send + Sync + 'static,
  ) -> Result<Self> {
    let shared = Arc::new_cyclic(|this| Shared {
      queue: Mutex::default(),
      changed: Condvar::new(),
      unfinished: AtomicUsize::new(0),
      has_news: Flag::default(),
      limits,
      counters: Counters::default(),
      results,
      this: Weak::clone(this),
    });
    let watched = Arc::downgrade(&shared);
    watchdog::watch(watched).map_err(|error| cannot_start(&error))?;
    let workers = Self { shared };
    // The first compiles and fills the cache; the others then find it full, and start at once.
    let compile: Arc<Compile> = Arc::new(compile);
    let start = || {
      let (sender, is_ready) = sync_channel(1);
      let ready = Box::new(move |result| drop(sender.send(result)));
      let mut queue = workers.shared.lock();
      let started = workers
        .shared
        .compile_and_serve(&mut queue, &compile, ready);
      started.map(|()| is_ready)
    };
    received(&start()?)?;
    let others = limits.instances.get() - 1;
    if limits.is_eager {
      let others = (0..others).map(|_| start()).collect::<Result<Vec<_>>>()?;
      others.iter().try_for_each(received)?;
    } else if others > 0 {
      workers.shared.lock().further = Some(Further {
        compile,
        missing: others,
        failures: 0,
        not_before: None,
      });
    }
    Ok(workers)
  }

  /// Queues a call, or ends it at once with the reason why not.
  pub fn push(&self, call: Call) -> Queued {
    let mut queue = self.shared.lock();
    let unfinished = self.shared.unfinished.load(Ordering::Relaxed);
    self.shared.start_further(&mut queue, unfinished + 1);
    let refused = if queue.is_closed {
      Error::new(Code::Closed, "the plugin is closed")
    } else if unfinished >= self.shared.limits.max_queue.get() {
      Error::new(
        Code::QueueFull,
        format!(
          "{unfinished} calls are unfinished already; wait for one, or raise maxQueue or instances"
        ),
      )
    } else if queue.all_are_stuck() {
      all_are_stuck()
    } else {
      self.shared.unfinished.fetch_add(1, Ordering::Relaxed);
      let is_alone = call.is_alone && unfinished == 0;
      queue.alone = if is_alone { queue.alone + 1 } else { 0 };
      queue.waiting.push_back(call);
      let queued = match queue.spinning {
        0 if queue.idle > 0 => Queued::Asleep,
        0 => Queued::Awake,
        _ if is_alone => Queued::Awaited,
        _ if queue.waiting.len() > queue.spinning && queue.idle > 0 => Queued::Asleep,
        _ => Queued::Awake,
      };
      drop(queue);
      self.shared.has_news.set();
      return queued;
    };
    drop(queue);
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
    let position = queue.waiting.iter().position(|call| call.number == number);
    let waiter = match position {
      Some(position) => queue
        .waiting
        .remove(position)
        .map(|call| Waiter::Call(call.number)),
      None => queue.slots.iter().find_map(|slot| {
        let mut record = slot.lock();
        let in_flight = record.in_flight.as_mut()?;
        let is_it = |waiter: &mut Waiter| matches!(waiter, Waiter::Call(other) if *other == number);
        let waiter = in_flight.waiter.take_if(is_it)?;
        record.interrupt();
        Some(waiter)
      }),
    };
    drop(queue);
    if let Some(waiter) = waiter {
      let error = Error::new(Code::Canceled, "the call was canceled");
      self.shared.end(waiter, Err(error));
    }
  }

  /// Lets the slots go when nothing waits any more, then runs `closed`.
  pub fn close(&self, closed: Box<dyn FnOnce() + Send>) {
    let mut queue = self.shared.lock();
    queue.is_closed = true;
    queue.further = None;
    queue.on_closed.push(closed);
    if queue.waiting.is_empty() {
      // Nobody needs what is still being started.
      let records = queue.slots.iter().map(|slot| slot.lock());
      records
        .filter(|record| !record.is_proven)
        .for_each(|mut record| record.interrupt());
    }
    queue.reconsider_stuck_slots();
    let run_now = queue.closed_callbacks();
    drop(queue);
    self.shared.has_news.set();
    self.shared.changed.notify_all();
    run_now.into_iter().for_each(|closed| closed());
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
      in_flight.is_some_and(|in_flight| !in_flight.is_initialization)
    };
    let counters = &self.shared.counters;
    Stats {
      succeeded: counters.succeeded(),
      failed: counters.failed(),
      queued: queue.waiting.len(),
      busy: queue.slots.iter().filter(is_busy).count(),
      instances: queue.slots.len(),
      replaced: counters.replacements(),
      abandoned_threads: queue.abandoned,
    }
  }
}

impl Drop for Workers {
  fn drop(&mut self) {
    let mut queue = self.shared.lock();
    queue.is_closed = true;
    queue.further = None;
    let forgotten = std::mem::take(&mut queue.waiting);
    for slot in &queue.slots {
      slot.lock().interrupt();
    }
    queue.reconsider_stuck_slots();
    drop(queue);
    self.shared.has_news.set();
    self.shared.changed.notify_all();
    drop(forgotten);
  }
}

impl Queue {
  fn closed_callbacks(&mut self) -> Vec<Box<dyn FnOnce() + Send>> {
    match self.is_closed && self.slots.is_empty() && self.compiling == 0 {
      true => std::mem::take(&mut self.on_closed),
      false => Vec::new(),
    }
  }

  /// Whether no slot can take a call, nor will soon.
  fn all_are_stuck(&self) -> bool {
    let mut slots = self.slots.iter();
    self.compiling == 0 && slots.all(|slot| slot.is_stuck.load(Ordering::Relaxed))
  }

  /// How many slots can take calls, or will soon.
  fn able(&self) -> usize {
    let is_able = |slot: &&Arc<Slot>| !slot.is_stuck.load(Ordering::Relaxed);
    self.slots.iter().filter(is_able).count()
  }

  /// Has the watchdog try again to abandon the threads of stuck slots, as something has changed.
  fn reconsider_stuck_slots(&self) {
    let now = Instant::now();
    for slot in &self.slots {
      if !slot.is_stuck.load(Ordering::Relaxed) {
        continue;
      }
      if let Some(in_flight) = &mut slot.lock().in_flight {
        in_flight.abandon_at = Some(now);
        watchdog::expect(now);
      }
    }
  }
}

impl Shared {
  /// Nothing that could panic runs under the lock, so a poisoned one is still sound.
  fn lock(&self) -> MutexGuard<'_, Queue> {
    self.queue.lock().unwrap_or_else(PoisonError::into_inner)
  }

  /// Starts a thread that compiles and then serves; it tells `ready` whether its first instance could
  /// be initialized.
  fn compile_and_serve(
    self: &Arc<Self>,
    queue: &mut Queue,
    compile: &Arc<Compile>,
    ready: Ready,
  ) -> Result<()> {
    let (shared, compile) = (Arc::clone(self), Arc::clone(compile));
    let spawned = spawn(move || {
      let compiled = catch_unwind(AssertUnwindSafe(|| compile())).unwrap_or_else(|_| {
        let message = "the compiler panicked";
        Err(Error::new(Code::Internal, message))
      });
      drop(compile);
      match compiled {
        Ok(compiled) => {
          let slot = Slot::new(compiled);
          let mut queue = shared.lock();
          queue.compiling -= 1;
          queue.slots.push(Arc::clone(&slot));
          drop(queue);
          shared.serve(slot, Some(ready), None);
        }
        Err(error) => {
          shared.lock().compiling -= 1;
          ready(Err(error));
          shared.end_what_nobody_can_serve();
        }
      }
    });
    // The thread counts itself out under the lock, so after this.
    queue.compiling += usize::from(spawned.is_ok());
    spawned
  }

  /// Starts a further instance where more calls are unfinished than there are threads for them, those
  /// that are on their way included. The calls do not wait for it: the others serve them meanwhile.
  ///
  /// One that cannot be started is nobody's error. The next is tried when calls need it after a pause,
  /// which grows with each failure, and then one at a time.
  fn start_further(&self, queue: &mut Queue, unfinished: usize) {
    if queue.further.is_none()
      || unfinished <= queue.able() + queue.compiling
      || self.limits.instances.get() <= queue.slots.len() + queue.compiling
    {
      return;
    }
    let is_due = |further: &&mut Further| further.not_before.is_none_or(|at| at <= Instant::now());
    let Some(further) = queue.further.as_mut().filter(is_due) else {
      return;
    };
    let Some(shared) = self.this.upgrade() else {
      return;
    };
    let failures = further.failures;
    if failures > 0 {
      further.pause();
    }
    let compile = Arc::clone(&further.compile);
    let this = Weak::clone(&self.this);
    let ready = Box::new(move |result: Result<()>| {
      if let Some(shared) = this.upgrade() {
        shared.lock().further_has(result.is_ok(), failures);
      }
    });
    if shared.compile_and_serve(queue, &compile, ready).is_err() {
      queue.further_has(false, failures);
    }
  }

  /// What a slot's thread does: one instance after the other, until the plugin is closed or the
  /// thread has been abandoned.
  ///
  /// With a `failure`, the first call is told of that before an instance is made.
  fn serve(self: Arc<Self>, slot: Arc<Slot>, mut ready: Option<Ready>, mut failure: Option<Error>) {
    loop {
      if let Some(error) = failure.take() {
        // The call that the instance was for is told why there is none.
        let Some(call) = self.take(|_, call| Some(call)) else {
          break;
        };
        self.end(Waiter::Call(call.number), Err(error));
      }
      if self.is_over() {
        break;
      }
      let instantiated = catch_unwind(AssertUnwindSafe(|| slot.compiled.instantiate()))
        .map_err(|_| Error::new(Code::Internal, "the runtime panicked"))
        .and_then(|instance| {
          instance.map_err(|error| {
            let message = format!("the plugin cannot be instantiated: {error:#}");
            Error::new(Code::InvalidWasm, message)
          })
        });
      let instance = match instantiated {
        Ok(instance) => instance,
        Err(error) => {
          match ready.take() {
            Some(ready) => {
              ready(Err(error));
              break;
            }
            None => failure = Some(error),
          }
          continue;
        }
      };
      let is_first = ready.is_some();
      let initialized = slot.begin_initialization(self.limits.initialization_timeout, ready.take());
      let jobs = Rc::new(Server {
        shared: Arc::clone(&self),
        slot: Arc::clone(&slot),
        interruption: Arc::default(),
        must_be_replaced: Cell::new(None),
      });
      // What panics inside Extism itself passes through it.
      let served = Rc::clone(&jobs);
      let run = AssertUnwindSafe(|| instance.run(served, self.limits.max_output));
      let ending = catch_unwind(run).unwrap_or_else(|_| Ending::Panicked(String::new()));
      let mut record = slot.lock();
      let in_flight = record.in_flight.take();
      let was_interrupted = std::mem::take(&mut record.is_interrupted);
      let may_strike_the_next = was_interrupted && ending != Ending::Interrupted;
      record.interrupt = None;
      record.interruption = None;
      slot.is_stuck.store(false, Ordering::Relaxed);
      let is_abandoned = record.is_abandoned;
      drop(record);
      let ending = match ending {
        // It waited, and stopped for that.
        Ending::HostFunction(_) if was_interrupted => Ending::Interrupted,
        ending => ending,
      };
      let has_failed_alone = in_flight.is_none() && ending == Ending::OutOfFuel;
      if let Some(reason) = jobs.must_be_replaced.get().or_else(|| replaced(&ending)) {
        self.counters.replaced(reason);
      }
      let error = error_of(ending);
      if let Some(waiter) = in_flight.and_then(|in_flight| in_flight.waiter) {
        self.end(waiter, Err(error.clone()));
      }
      if is_abandoned {
        // The slot has been replaced; this thread was all that was left of it.
        let mut queue = self.lock();
        queue.abandoned -= 1;
        queue.reconsider_stuck_slots();
        return;
      }
      failure = initialized
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
      if has_failed_alone {
        // Between two jobs, as there is not fuel enough even for that. It would be so again.
        failure = Some(error);
      }
      if may_strike_the_next {
        // A failure of this is one of the runtime; the next instance will meet it too.
        let _ = catch_unwind(interrupt::all_have_struck);
      }
      if is_first && failure.is_some() {
        break;
      }
    }
    // What the slot has compiled is dropped with its place in the list, under the lock: whoever finds
    // the list empty may count on it that all is freed.
    let place = Arc::as_ptr(&slot);
    drop(slot);
    let mut queue = self.lock();
    queue.slots.retain(|other| Arc::as_ptr(other) != place);
    drop(queue);
    self.end_what_nobody_can_serve();
  }

  /// Whether there is nothing to do any more.
  fn is_over(&self) -> bool {
    let queue = self.lock();
    queue.is_closed && queue.waiting.is_empty()
  }

  /// Waits for a call and hands it to `accept` under the queue's lock; what `accept` gives back is
  /// taken. `None` when the queue is closed and empty.
  fn take<T>(&self, accept: impl FnOnce(&mut Queue, Call) -> Option<T>) -> Option<T> {
    let mut queue = self.lock();
    loop {
      if let Some(call) = queue.waiting.pop_front() {
        let another_is_needed = queue.idle > 0 && !queue.waiting.is_empty();
        let accepted = accept(&mut queue, call);
        drop(queue);
        if another_is_needed {
          self.changed.notify_one();
        }
        return accepted;
      }
      if queue.is_closed {
        return None;
      }
      let since = Instant::now();
      let is_due = self.is_spinning_due(&mut queue);
      queue = match is_due.then(Spinner::new).flatten() {
        Some(spinner) => self.spin(queue, spinner),
        None => self.sleep(queue),
      };
      queue.last_wait = Some(since.elapsed());
    }
  }

  fn sleep<'a>(&self, mut queue: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
    queue.idle += 1;
    let wait = self.changed.wait(queue);
    queue = wait.unwrap_or_else(PoisonError::into_inner);
    queue.idle -= 1;
    queue
  }

  /// Whether the next call is to be looked for: calls have come one after the other lately, and fast.
  fn is_spinning_due(&self, queue: &mut Queue) -> bool {
    let is_fast = |wait| wait < FAST;
    queue.alone >= ALONE && queue.last_wait.is_some_and(is_fast) && queue.spinning_habit.is_due()
  }

  fn spin<'a>(
    &'a self,
    mut queue: MutexGuard<'a, Queue>,
    spinner: Spinner,
  ) -> MutexGuard<'a, Queue> {
    queue.spinning += 1;
    self.has_news.clear();
    drop(queue);
    let has_paid = spinner.look(|| self.has_news.is_set());
    drop(spinner);
    let mut queue = self.lock();
    queue.spinning -= 1;
    queue.spinning_habit.learn(has_paid);
    queue
  }

  /// Ends what somebody has taken from the queue or from a record.
  fn end(&self, waiter: Waiter, result: Result<Vec<u8>>) {
    match waiter {
      Waiter::Call(number) => {
        // Counted out first: who has seen a result can count on a free place.
        self.unfinished.fetch_sub(1, Ordering::Relaxed);
        self.counters.ended(&result);
        self.results.done(number, result);
      }
      Waiter::Initialization(initialized) => initialized(result.map(drop)),
    }
  }

  /// Gives up a thread that does not heed its interruption, and starts another in its place.
  fn abandon(&self, slot: &Arc<Slot>) {
    let mut queue = self.lock();
    let mut record = slot.lock();
    let is_due =
      |in_flight: &&mut InFlight| in_flight.abandon_at.is_some_and(|at| at <= Instant::now());
    let Some(in_flight) = record.in_flight.as_mut().filter(is_due) else {
      return;
    };
    in_flight.abandon_at = None;
    // The replacement would meet the same: the next call is told of an initialization that failed.
    let failure = in_flight.is_initialization.then(|| timed_out(true));
    let are_too_many = queue.abandoned >= MAX_ABANDONED;
    if are_too_many && !queue.is_closed {
      slot.is_stuck.store(true, Ordering::Relaxed);
      drop(record);
      drop(queue);
      return self.end_what_nobody_can_serve();
    }
    record.is_abandoned = true;
    let is_proven = record.is_proven;
    drop(record);
    queue.abandoned += 1;
    queue.slots.retain(|other| !Arc::ptr_eq(other, slot));
    // A closed plugin needs another thread only for calls that wait, and none beyond the limit. Where
    // the slot has not served yet, others do.
    let is_needed = is_proven && (!queue.is_closed || !queue.waiting.is_empty());
    if is_needed
      && !are_too_many
      && let Some(shared) = self.this.upgrade()
    {
      let replacement = Slot::new(slot.compiled.clone());
      replacement.lock().is_proven = true;
      queue.slots.push(Arc::clone(&replacement));
      drop(queue);
      let serving = Arc::clone(&replacement);
      let spawned = spawn(move || {
        // A failure of this is one of the runtime; the instance will meet it too.
        let _ = catch_unwind(interrupt::all_have_struck);
        shared.serve(serving, None, failure);
      });
      if spawned.is_err() {
        let mut queue = self.lock();
        queue
          .slots
          .retain(|other| !Arc::ptr_eq(other, &replacement));
      }
    } else {
      drop(queue);
    }
    self.end_what_nobody_can_serve();
  }

  /// Where no slot is left that could take a call, nor can be started: ends those that wait. Where none
  /// is left at all and the plugin is closed: says so.
  fn end_what_nobody_can_serve(&self) {
    let mut queue = self.lock();
    let waiting = queue.waiting.len();
    self.start_further(&mut queue, waiting);
    let unserved = match queue.all_are_stuck() {
      true => std::mem::take(&mut queue.waiting),
      false => VecDeque::new(),
    };
    let closed = queue.closed_callbacks();
    drop(queue);
    for call in unserved {
      self.end(Waiter::Call(call.number), Err(all_are_stuck()));
    }
    closed.into_iter().for_each(|closed| closed());
  }
}

impl Watched for Shared {
  fn look(&self, now: Instant) -> Option<Instant> {
    let mut next: Option<Instant> = None;
    let slots = self.lock().slots.clone();
    for slot in &slots {
      let mut record = slot.lock();
      let Some(in_flight) = &mut record.in_flight else {
        continue;
      };
      if in_flight.abandon_at.is_some_and(|at| at <= now) {
        drop(record);
        self.abandon(slot);
        continue;
      }
      let is_late = in_flight.deadline.is_some_and(|deadline| deadline <= now);
      let mut ended = None;
      if is_late && let Some(waiter) = in_flight.waiter.take() {
        ended = Some((waiter, timed_out(in_flight.is_initialization)));
        record.interrupt();
      }
      let due = record.in_flight.as_ref().and_then(|in_flight| {
        // The deadline of what has been ended has been kept.
        let deadline = in_flight.deadline.filter(|_| in_flight.waiter.is_some());
        in_flight.abandon_at.or(deadline)
      });
      drop(record);
      next = next.into_iter().chain(due).min();
      if let Some((waiter, error)) = ended {
        self.end(waiter, Err(error));
      }
    }
    next
  }
}

impl Queue {
  /// Notes whether a further instance, begun when so many had failed, has been started.
  fn further_has(&mut self, been_started: bool, failures: u32) {
    let Some(further) = &mut self.further else {
      return;
    };
    if been_started {
      further.missing -= 1;
      further.failures = 0;
      further.not_before = None;
      if further.missing == 0 {
        // What it is compiled from is not needed any more.
        self.further = None;
      }
    } else if further.failures == failures {
      // Of several that were begun together, only the first that fails counts.
      further.failures += 1;
      further.pause();
    }
  }
}

impl Further {
  fn pause(&mut self) {
    let doublings = self.failures.saturating_sub(1).min(16);
    let pause = (FIRST_PAUSE * (1 << doublings)).min(MAX_PAUSE);
    self.not_before = Instant::now().checked_add(pause);
  }
}

/// Told whether the first instance of a slot could be initialized.
type Ready = Box<dyn FnOnce(Result<()>) + Send>;

/// Where the initialization of an instance leaves what went wrong with it.
type Failure = Arc<Mutex<Option<Error>>>;

impl Slot {
  fn new(compiled: Compiled) -> Arc<Self> {
    Arc::new(Self {
      compiled,
      record: Mutex::default(),
      is_stuck: AtomicBool::new(false),
    })
  }

  fn lock(&self) -> MutexGuard<'_, Record> {
    self.record.lock().unwrap_or_else(PoisonError::into_inner)
  }

  /// Records that a new instance is about to initialize itself. If that fails, the failure is told
  /// to `ready`, if there is one, and is found in what is returned.
  fn begin_initialization(&self, limit: Duration, ready: Option<Ready>) -> Failure {
    let failure = Failure::default();
    let found = Arc::clone(&failure);
    let deadline = Instant::now().checked_add(limit);
    let initialized = move |result: Result<()>| {
      if let Err(error) = &result {
        *found.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
      }
      if let Some(ready) = ready {
        ready(result);
      }
    };
    // And nothing else: the plugin may have been dropped meanwhile, and `is_interrupted` says so.
    self.lock().in_flight = Some(InFlight {
      waiter: Some(Waiter::Initialization(Box::new(initialized))),
      is_initialization: true,
      deadline,
      abandon_at: None,
    });
    if let Some(deadline) = deadline {
      watchdog::expect(deadline);
    }
    failure
  }
}

impl Record {
  /// Interrupts the instance that runs, or keeps the next one from starting.
  fn interrupt(&mut self) {
    if self.is_interrupted {
      return;
    }
    self.is_interrupted = true;
    if let Some(interrupt) = &self.interrupt {
      // Fails only when Extism's timer has gone, with the process.
      let _ = interrupt.cancel();
    }
    if let Some(interruption) = &self.interruption {
      interruption.strike();
    }
    if let Some(in_flight) = &mut self.in_flight {
      let abandon_at = Instant::now() + GRACE;
      in_flight.abandon_at = Some(abandon_at);
      watchdog::expect(abandon_at);
    }
  }
}

/// What an instance sees of its slot.
struct Server {
  shared: Arc<Shared>,
  slot: Arc<Slot>,
  interruption: Arc<Interruption>,
  must_be_replaced: Cell<Option<Replaced>>,
}

impl Jobs for Server {
  fn started(&self, interrupt: CancelHandle) -> ControlFlow<()> {
    let mut record = self.slot.lock();
    if record.is_interrupted {
      return ControlFlow::Break(());
    }
    record.interrupt = Some(interrupt);
    record.interruption = Some(Arc::clone(&self.interruption));
    ControlFlow::Continue(())
  }

  fn interruption(&self) -> Arc<Interruption> {
    Arc::clone(&self.interruption)
  }

  fn initialized(&self) {
    let mut record = self.slot.lock();
    record.is_proven = true;
    let in_flight = record.in_flight.take();
    drop(record);
    if let Some(waiter) = in_flight.and_then(|in_flight| in_flight.waiter) {
      self.shared.end(waiter, Ok(Vec::new()));
    }
  }

  fn next(&self) -> Option<instance::Job> {
    if self.must_be_replaced.get().is_some() || self.slot.lock().is_interrupted {
      return None;
    }
    self.shared.take(|queue, call| {
      let mut record = self.slot.lock();
      if record.is_interrupted {
        // While it waited: the plugin is going away.
        drop(record);
        queue.waiting.push_front(call);
        return None;
      }
      let timeout = call.timeout.or(self.shared.limits.timeout);
      let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
      record.in_flight = Some(InFlight {
        waiter: Some(Waiter::Call(call.number)),
        is_initialization: false,
        deadline,
        abandon_at: None,
      });
      drop(record);
      if let Some(deadline) = deadline {
        watchdog::expect(deadline);
      }
      Some(instance::Job {
        number: call.number,
        export: call.export,
        input: call.input,
      })
    })
  }

  fn done(&self, finished: Finished) {
    let in_flight = self.slot.lock().in_flight.take();
    if self.shared.limits.is_isolated {
      self.must_be_replaced.set(Some(Replaced::Isolation));
    } else if finished.kernel_bytes > self.shared.limits.max_idle_memory {
      self.must_be_replaced.set(Some(Replaced::Memory));
    }
    if let Some(waiter) = in_flight.and_then(|in_flight| in_flight.waiter) {
      let result = finished.result.map_err(error_of_call);
      self.shared.end(waiter, result);
    }
  }
}

fn spawn(body: impl FnOnce() + Send + 'static) -> Result<()> {
  thread::Builder::new()
    .name("extism-instance".to_owned())
    .spawn(body)
    .map(drop)
    .map_err(|error| cannot_start(&error))
}

fn cannot_start(error: &std::io::Error) -> Error {
  Error::new(
    Code::Internal,
    format!("cannot start a thread for the plugin: {error}"),
  )
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

/// The messages are those that programs know from Extism's JavaScript SDK.
fn timed_out(is_initialization: bool) -> Error {
  let message = match is_initialization {
    false => "EXTISM: call canceled due to timeout",
    true => "EXTISM: timed out while waiting for plugin to instantiate",
  };
  Error::new(Code::Timeout, message)
}

fn error_of_call(error: CallError) -> Error {
  match error {
    CallError::Failed { .. } => Error::new(
      Code::PluginError,
      format!("Plugin-originated error: {error}"),
    ),
    CallError::OutputTooLarge { .. } => Error::new(Code::OutputTooLarge, error.to_string()),
  }
}

/// Why an instance that ended so is replaced; `None` where the plugin is going away.
fn replaced(ending: &Ending) -> Option<Replaced> {
  Some(match ending {
    Ending::Stopped => return None,
    Ending::Spent | Ending::Exited(_) => Replaced::Exited,
    Ending::Trapped(_) => Replaced::Trap,
    Ending::OutOfMemory => Replaced::OutOfMemory,
    Ending::OutOfFuel => Replaced::FuelExhausted,
    Ending::Interrupted => Replaced::Interrupted,
    Ending::HostFunction(_) => Replaced::HostFunctionError,
    Ending::Panicked(_) => Replaced::Internal,
  })
}

/// What a call, or an initialization, is told that was in flight when its instance ended.
fn error_of(ending: Ending) -> Error {
  match ending {
    Ending::Trapped(what) => Error::new(Code::Trap, format!("the plugin trapped: {what}")),
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
    Ending::Exited(code) => Error::new(
      Code::PluginError,
      format!("Plugin-originated error: the plugin exited with the code {code}"),
    ),
    // Without a record of ours: the plugin is going away.
    Ending::Interrupted => Error::new(Code::Closed, "the plugin is closed"),
    Ending::Panicked(_) | Ending::Stopped | Ending::Spent => Error::new(
      Code::Internal,
      format!("the plugin's instance ended without an answer ({ending:?})"),
    ),
  }
}
