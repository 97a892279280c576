//! What a slot's thread does: one instance after the other, each call by call.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::instance::{CallOutput, Ending, Instance, Outcome, Run, Runtime};
use super::super::priority::{self, Effort};
use super::super::reference::ReferenceInstance;
use super::super::stats::Replaced;
use super::queue::Queue;
use super::recycling::Usage;
use super::slot::{Activity, Ready, Slot, Waiter};
use super::{Call, WorkerPool, cannot_start, error_of, error_of_call};
use crate::sync::{AtomicBool, thread};
use crate::{Code, Error, Result};

/// Puts a slot into the queue and starts its thread. `ready` is told whether its first instance could
/// be initialized. With a `failure`, the first call is told of that before an instance is made.
pub fn start(
  shared: &Arc<WorkerPool>,
  queue: &mut Queue,
  slot: Arc<Slot>,
  ready: Option<Ready>,
  failure: Option<Error>,
) -> Result<()> {
  let worker = Worker {
    shared: Arc::clone(shared),
    slot: Arc::clone(&slot),
    is_greedy: AtomicBool::new(false),
  };
  thread::Builder::new()
    .name("extism-instance".to_owned())
    .spawn(move || worker.serve(ready, failure))
    .map_err(|error| cannot_start(&error))?;
  queue.slots.push(slot);
  Ok(())
}

struct Worker {
  shared: Arc<WorkerPool>,
  slot: Arc<Slot>,
  /// Whether the first call of the last instance computed until it was interrupted. Then the next instance has a
  /// low priority until it has served a call.
  is_greedy: AtomicBool,
}

/// Why an instance has stopped serving.
enum Stopped {
  /// There are no more calls for it.
  Done,
  /// There is none.
  NotMade(Error),
  /// It is to be replaced.
  Replace(Replaced),
  /// It works, and is to be replaced by one that works too.
  Recycle(Replaced),
  /// Something ended what it did.
  Ended(Ending),
}

impl Worker {
  fn serve(self, mut ready: Option<Ready>, mut failure: Option<Error>) {
    loop {
      if let Some(error) = failure.take() {
        // The call that the instance was for is told why there is none.
        let Some(call) = self.shared.take(|_, call| Some(call)) else {
          break;
        };
        self.shared.end(Waiter::Call(call.number), Err(error));
      }
      if self.shared.is_over() {
        break;
      }
      let is_first = ready.is_some();
      let limit = self.shared.limits.initialization_timeout;
      let waiter = Waiter::Initialization(ready.take());
      // And nothing else: the plugin may have been dropped meanwhile, and `is_interrupted` says so.
      self
        .slot
        .lock()
        .begin(waiter, Activity::Initialization, Some(limit));
      // A panic inside the runtime passes through here.
      let run = AssertUnwindSafe(|| self.run_instance());
      let stopped =
        catch_unwind(run).unwrap_or_else(|_| Stopped::Ended(Ending::Panicked(String::new())));
      if self.settle(stopped) {
        return;
      }
      failure = self.slot.lock().failure.take();
      if is_first && failure.is_some() {
        break;
      }
    }
    // Under the lock: whoever finds the list empty may count on it that all is freed.
    let mut queue = self.shared.lock();
    queue.slots.retain(|other| !Arc::ptr_eq(other, &self.slot));
    drop(queue);
    self.shared.end_what_nobody_can_serve();
  }

  /// Makes an instance, initializes it, and serves calls until something stops it.
  fn run_instance(&self) -> Stopped {
    let runtime = self.shared.lock().runtime.clone();
    match &runtime {
      Some(Runtime::Wasmtime(template)) => self.run(|| Instance::new(template)),
      Some(Runtime::Extism(reference)) => self.run(|| ReferenceInstance::new(reference)),
      // The plugin is closed, and needs this slot no more.
      None => Stopped::Done,
    }
  }

  /// A copy for each runtime: calls do not ask which it is.
  fn run<I: Run + Send>(&self, make: impl Fn() -> Result<I> + Sync) -> Stopped {
    let begun = match self.is_greedy.swap(false, Ordering::Relaxed) {
      true => priority::run_low(|| self.begin_and_serve_one(&make)),
      false => self
        .begin_instance(&make)
        .map(|instance| (instance, self.new_usage())),
    };
    let (mut instance, mut usage) = match begun {
      Ok(begun) => begun,
      Err(stopped) => return stopped,
    };
    loop {
      let reason = match self.serve_calls(&mut instance, &mut usage) {
        Stopped::Recycle(reason) => reason,
        stopped => return stopped,
      };
      usage = self.new_usage();
      match self.begin_successor(&instance, &make) {
        Ok(Some(successor)) => {
          instance = successor;
          self.shared.counters.replaced(reason);
        }
        Ok(None) => {}
        Err(stopped) => return stopped,
      }
    }
  }

  fn new_usage(&self) -> Usage {
    Usage::new(&self.shared.limits)
  }

  /// Makes an instance, initializes it and serves one call, after which it is to go on.
  fn begin_and_serve_one<I: Run>(
    &self,
    make: impl Fn() -> Result<I>,
  ) -> Result<(I, Usage), Stopped> {
    let mut instance = self.begin_instance(make)?;
    let mut usage = self.new_usage();
    let current = instance.interruption().enter();
    let stopped = self.serve_call(&mut instance, &mut usage);
    drop(current);
    stopped.map_or(Ok((instance, usage)), Err)
  }

  /// Makes an instance and initializes it, which has been in flight since before.
  fn begin_instance<I: Run>(&self, make: impl Fn() -> Result<I>) -> Result<I, Stopped> {
    let mut instance = make().map_err(Stopped::NotMade)?;
    // What the guest waits for on this thread ends with its initialization.
    let current = instance.interruption().enter();
    let mut record = self.slot.lock();
    if record.is_interrupted {
      return Err(Stopped::Ended(Ending::Interrupted));
    }
    record.attach(&instance);
    drop(record);
    if self.shared.limits.is_isolated {
      instance.prepare_restore();
    }
    instance.initialize().map_err(Stopped::Ended)?;
    self.shared.counters.made();
    let mut record = self.slot.lock();
    record.is_proven = true;
    let in_flight = record.in_flight.take();
    drop(record);
    if let Some(waiter) = in_flight.and_then(|in_flight| in_flight.waiter) {
      self.shared.end(waiter, Ok(CallOutput::default()));
    }
    drop(current);
    Ok(instance)
  }

  /// Makes and initializes the instance that takes the place of `old`, which works. `None` if that fails, or
  /// is not needed: then `old` serves on.
  fn begin_successor<I: Run>(
    &self,
    old: &I,
    make: impl Fn() -> Result<I>,
  ) -> Result<Option<I>, Stopped> {
    if self.shared.is_over() {
      return Ok(None);
    }
    let mut record = self.slot.lock();
    if record.is_interrupted {
      return Err(Stopped::Ended(Ending::Interrupted));
    }
    // What ends the initialization must not reach the old instance.
    record.detach();
    let limit = self.shared.limits.initialization_timeout;
    let waiter = Waiter::Initialization(None);
    record.begin(waiter, Activity::Recycling, Some(limit));
    drop(record);
    let begun = self.begin_instance(make);
    let mut record = self.slot.lock();
    if record.is_abandoned {
      return Err(Stopped::Ended(Ending::Interrupted));
    }
    let error = match begun {
      Ok(successor) if !record.is_interrupted => return Ok(Some(successor)),
      Err(Stopped::NotMade(error)) => error,
      Err(Stopped::Ended(ending)) => ended(ending).1,
      _ => ended(Ending::Interrupted).1,
    };
    record.in_flight = None;
    record.is_interrupted = false;
    record.attach(old);
    self.slot.is_stuck.store(false, Ordering::Relaxed);
    drop(record);
    self.shared.warn_of_old_instance(&error);
    Ok(None)
  }

  /// Serves calls until something stops the instance.
  fn serve_calls<I: Run>(&self, instance: &mut I, usage: &mut Usage) -> Stopped {
    // What the guest waits for on this thread ends with its call.
    let _current = instance.interruption().enter();
    loop {
      if let Some(stopped) = self.serve_call(instance, usage) {
        return stopped;
      }
    }
  }

  /// Serves one call; what stops the instance, if anything does.
  fn serve_call<I: Run>(&self, instance: &mut I, usage: &mut Usage) -> Option<Stopped> {
    let limits = &self.shared.limits;
    if self.slot.lock().is_interrupted {
      return Some(Stopped::Ended(Ending::Interrupted));
    }
    let Some(call) = self.next() else {
      return Some(Stopped::Done);
    };
    let effort = usage.begin_first_call().then(Effort::begin);
    match instance.call(call.number, call.export, call.input) {
      Outcome::Returned(result) => {
        self.end_in_flight(result.map_err(error_of_call));
        if limits.is_isolated {
          let is_restored = match instance.restore() {
            true => self.initialize_again(instance),
            false => Ok(false),
          };
          match is_restored {
            Ok(true) => {}
            Ok(false) => return Some(Stopped::Replace(Replaced::Isolation)),
            Err(stopped) => return Some(stopped),
          }
          self.shared.counters.replaced(Replaced::Isolation);
          return None;
        }
        if instance.kernel_bytes() > limits.max_idle_memory {
          return Some(Stopped::Replace(Replaced::Memory));
        }
        instance.reset();
        if instance.keeps_files() {
          return Some(Stopped::Replace(Replaced::Descriptors));
        }
        usage.after_call(instance, limits).map(Stopped::Recycle)
      }
      Outcome::Exited(result) => {
        self.end_in_flight(result.map_err(error_of_call));
        Some(Stopped::Replace(Replaced::Exited))
      }
      Outcome::Ended(ending) => {
        let is_greedy =
          ending == Ending::Interrupted && effort.is_some_and(|effort| effort.is_high());
        self.is_greedy.store(is_greedy, Ordering::Relaxed);
        Some(Stopped::Ended(ending))
      }
    }
  }

  /// Initializes an instance that has been put back. Whether it cannot be told from a new one.
  fn initialize_again<I: Run>(&self, instance: &mut I) -> Result<bool, Stopped> {
    if !instance.has_initialization() || self.shared.is_over() {
      return Ok(true);
    }
    // A snapshot may have been taken meanwhile.
    let runtime = self.shared.lock().runtime.clone();
    if runtime.is_some_and(|runtime| !instance.is_of(&runtime)) {
      return Ok(false);
    }
    let mut record = self.slot.lock();
    if record.is_interrupted {
      return Err(Stopped::Ended(Ending::Interrupted));
    }
    let limit = self.shared.limits.initialization_timeout;
    let waiter = Waiter::Initialization(None);
    record.begin(waiter, Activity::Initialization, Some(limit));
    drop(record);
    instance.initialize().map_err(Stopped::Ended)?;
    self.slot.lock().in_flight = None;
    Ok(instance.is_like_new())
  }

  /// The next call, which is in flight from now on; `None` when there is none for this instance.
  fn next(&self) -> Option<Call> {
    self.shared.take(|queue, call| {
      let mut record = self.slot.lock();
      if record.is_interrupted {
        // While it waited: the plugin is going away.
        drop(record);
        queue.waiting.push_front(call);
        return None;
      }
      let timeout = call.timeout.or(self.shared.limits.timeout);
      record.begin(Waiter::Call(call.number), Activity::Call, timeout);
      Some(call)
    })
  }

  /// Ends what is in flight, unless somebody has.
  fn end_in_flight(&self, result: Result<CallOutput>) {
    let in_flight = self.slot.lock().in_flight.take();
    if let Some(waiter) = in_flight.and_then(|in_flight| in_flight.waiter) {
      self.shared.end(waiter, result);
    }
  }

  /// Tells whoever waits how the instance has ended, and clears the record for the next. Whether the
  /// thread has been abandoned, and must end.
  fn settle(&self, stopped: Stopped) -> bool {
    let mut record = self.slot.lock();
    let was_interrupted = std::mem::take(&mut record.is_interrupted);
    let (reason, error) = match stopped {
      Stopped::Done => (None, gone()),
      Stopped::NotMade(error) => (None, error),
      Stopped::Replace(reason) | Stopped::Recycle(reason) => (Some(reason), gone()),
      // It waited, and stopped for that.
      Stopped::Ended(Ending::HostFunction(_)) if was_interrupted => ended(Ending::Interrupted),
      Stopped::Ended(ending) => ended(ending),
    };
    let waiter = record.take_to_fail(&error);
    record.in_flight = None;
    record.detach();
    self.slot.is_stuck.store(false, Ordering::Relaxed);
    let is_abandoned = record.is_abandoned;
    drop(record);
    if let Some(reason) = reason {
      self.shared.counters.replaced(reason);
    }
    if let Some(waiter) = waiter {
      self.shared.end(waiter, Err(error));
    }
    if is_abandoned {
      // The slot has been replaced; this thread was all that was left of it.
      let mut queue = self.shared.lock();
      queue.abandoned -= 1;
      queue.reconsider_stuck_slots();
    }
    is_abandoned
  }
}

/// An instance that has stopped by itself leaves nothing in flight.
fn gone() -> Error {
  Error::new(
    Code::Internal,
    "the plugin's instance ended without an answer",
  )
}

/// Why an instance that ended so is replaced, and what is told whoever waits for it.
fn ended(ending: Ending) -> (Option<Replaced>, Error) {
  let reason = match ending {
    Ending::Exited(_) => Replaced::Exited,
    Ending::Trapped { .. } => Replaced::Trap,
    Ending::OutOfMemory => Replaced::OutOfMemory,
    Ending::OutOfFuel => Replaced::FuelExhausted,
    Ending::Interrupted => Replaced::Interrupted,
    Ending::HostFunction(_) => Replaced::HostFunctionError,
    Ending::Panicked(_) => Replaced::Internal,
  };
  (Some(reason), error_of(ending))
}
