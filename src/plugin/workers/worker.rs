//! The thread of a slot: it runs one instance after the other, and one call after the other in each.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::instance::{CallOutput, Ending, Instance, Outcome, PluginRuntime, Run};
use super::super::priority::{self, CpuMeter};
use super::super::reference::ReferenceInstance;
use super::super::stats::ReplaceReason;
use super::queue::CallQueue;
use super::recycling::InstanceUsage;
use super::slot::{Activity, ReadyCallback, Slot, Waiter};
use super::{Call, WorkerPool, cannot_start, error_of, error_of_call};
use crate::sync::{AtomicBool, thread};
use crate::{Code, Error, Result, trace};

/// Adds a slot to the queue and starts its thread. `ready` receives the result of initializing its first
/// instance. If there is a `failure`, the first call fails with it before an instance is created.
pub fn start(
  shared: &Arc<WorkerPool>,
  queue: &mut CallQueue,
  slot: Arc<Slot>,
  ready: Option<ReadyCallback>,
  failure: Option<Error>,
) -> Result<()> {
  let worker = Worker {
    shared: Arc::clone(shared),
    slot: Arc::clone(&slot),
    is_cpu_bound: AtomicBool::new(false),
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
  /// Whether the first call of the last instance computed until it was interrupted. If so, the next instance
  /// runs with a low priority until it has served a call.
  is_cpu_bound: AtomicBool,
}

/// Why an instance has stopped serving.
enum Stopped {
  /// There are no more calls for it.
  Done,
  /// It could not be created.
  NotCreated(Error),
  /// It must be replaced.
  Replace(ReplaceReason),
  /// It works, and should be replaced by another working one.
  Recycle(ReplaceReason),
  /// Its run was ended early.
  Ended(Ending),
}

impl Worker {
  fn serve(self, mut ready: Option<ReadyCallback>, mut failure: Option<Error>) {
    loop {
      if let Some(error) = failure.take() {
        // The call that needed the instance fails with the reason why there is none.
        let Some(call) = self.shared.take(|_, call| Some(call)) else {
          break;
        };
        self.shared.end(Waiter::Call(call.number), Err(error));
      }
      if self.shared.is_drained() {
        break;
      }
      let is_first = ready.is_some();
      let limit = self.shared.limits.initialization_timeout;
      let waiter = Waiter::Initialization(ready.take());
      // Leaves `is_interrupted` alone: the plugin may have been dropped meanwhile.
      self
        .slot
        .lock()
        .start(waiter, Activity::Initialization, Some(limit));
      // A panic inside the runtime is caught here.
      let run = AssertUnwindSafe(|| self.run_instance());
      let stopped =
        catch_unwind(run).unwrap_or_else(|_| Stopped::Ended(Ending::Panicked(String::new())));
      if self.finish_instance(stopped) {
        return;
      }
      failure = self.slot.lock().failure.take();
      if is_first && failure.is_some() {
        break;
      }
    }
    // Under the lock, because when the list of slots is empty, all instances must have been freed.
    let mut queue = self.shared.lock();
    queue.slots.retain(|other| !Arc::ptr_eq(other, &self.slot));
    drop(queue);
    self.shared.fail_unservable_calls();
  }

  /// Creates an instance, initializes it, and serves calls until it stops.
  fn run_instance(&self) -> Stopped {
    let runtime = self.shared.lock().runtime.clone();
    match &runtime {
      Some(PluginRuntime::Wasmtime(template)) => self.run(|| Instance::new(template)),
      Some(PluginRuntime::Extism(reference)) => self.run(|| ReferenceInstance::new(reference)),
      // The plugin is closed, and no longer needs this slot.
      None => Stopped::Done,
    }
  }

  /// Generic, so that calls need not check which runtime it is.
  fn run<I: Run + Send>(&self, make: impl Fn() -> Result<I> + Sync) -> Stopped {
    let started = match self.is_cpu_bound.swap(false, Ordering::Relaxed) {
      true => priority::run_low(|| self.start_and_serve_one(&make)),
      false => self
        .start_instance(&make)
        .map(|instance| (instance, self.new_usage())),
    };
    let (mut instance, mut usage) = match started {
      Ok(started) => started,
      Err(stopped) => return stopped,
    };
    loop {
      let reason = match self.serve_calls(&mut instance, &mut usage) {
        Stopped::Recycle(reason) => reason,
        stopped => return stopped,
      };
      usage = self.new_usage();
      match self.start_successor(&instance, &make) {
        Ok(Some(successor)) => {
          instance = successor;
          self.shared.counters.replaced(reason);
        }
        Ok(None) => {}
        Err(stopped) => return stopped,
      }
    }
  }

  fn new_usage(&self) -> InstanceUsage {
    InstanceUsage::new(&self.shared.limits)
  }

  /// Creates an instance, initializes it and serves one call, after which the instance can continue.
  fn start_and_serve_one<I: Run>(
    &self,
    make: impl Fn() -> Result<I>,
  ) -> Result<(I, InstanceUsage), Stopped> {
    let mut instance = self.start_instance(make)?;
    let mut usage = self.new_usage();
    let current = instance.interruption().enter();
    let stopped = self.serve_call(&mut instance, &mut usage);
    drop(current);
    stopped.map_or(Ok((instance, usage)), Err)
  }

  /// Creates an instance and initializes it. The initialization is in flight already.
  fn start_instance<I: Run>(&self, make: impl Fn() -> Result<I>) -> Result<I, Stopped> {
    let mut instance = make().map_err(Stopped::NotCreated)?;
    // A host function that waits on this thread stops when the initialization is interrupted.
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
    self.slot.set_memory(instance.memory_bytes());
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

  /// Creates and initializes the successor of `old`, which still works. If that fails or is not needed,
  /// returns `None`, and `old` continues to serve.
  fn start_successor<I: Run>(
    &self,
    old: &I,
    make: impl Fn() -> Result<I>,
  ) -> Result<Option<I>, Stopped> {
    if self.shared.is_drained() {
      return Ok(None);
    }
    let mut record = self.slot.lock();
    if record.is_interrupted {
      return Err(Stopped::Ended(Ending::Interrupted));
    }
    // An interruption of the initialization must not reach the old instance.
    record.detach();
    let limit = self.shared.limits.initialization_timeout;
    let waiter = Waiter::Initialization(None);
    record.start(waiter, Activity::Recycling, Some(limit));
    drop(record);
    let started = self.start_instance(make);
    let mut record = self.slot.lock();
    if record.is_abandoned {
      return Err(Stopped::Ended(Ending::Interrupted));
    }
    let error = match started {
      Ok(successor) if !record.is_interrupted => return Ok(Some(successor)),
      Err(Stopped::NotCreated(error)) => error,
      Err(Stopped::Ended(ending)) => reason_and_error(ending).1,
      _ => reason_and_error(Ending::Interrupted).1,
    };
    record.in_flight = None;
    record.is_interrupted = false;
    record.attach(old);
    self.slot.is_stuck.store(false, Ordering::Relaxed);
    drop(record);
    self.shared.warn_not_replaced(&error);
    Ok(None)
  }

  /// Serves calls until the instance stops.
  fn serve_calls<I: Run>(&self, instance: &mut I, usage: &mut InstanceUsage) -> Stopped {
    // A host function that waits on this thread stops when the call is interrupted.
    let _current = instance.interruption().enter();
    loop {
      if let Some(stopped) = self.serve_call(instance, usage) {
        return stopped;
      }
    }
  }

  /// Serves one call. Returns a reason if the instance stops.
  fn serve_call<I: Run>(&self, instance: &mut I, usage: &mut InstanceUsage) -> Option<Stopped> {
    let limits = &self.shared.limits;
    if self.slot.lock().is_interrupted {
      return Some(Stopped::Ended(Ending::Interrupted));
    }
    let Some(call) = self.next() else {
      return Some(Stopped::Done);
    };
    let meter = usage.starts_first_call().then(CpuMeter::start);
    let Call {
      number,
      export,
      input,
      ..
    } = call;
    let outcome = trace::run(call.trace, || instance.call(number, export, input));
    self.slot.set_memory(instance.memory_bytes());
    match outcome {
      Outcome::Returned(result) => {
        self.end_in_flight(result.map_err(error_of_call));
        if limits.is_isolated {
          let is_restored = match instance.restore() {
            true => self.initialize_again(instance),
            false => Ok(false),
          };
          match is_restored {
            Ok(true) => {}
            Ok(false) => return Some(Stopped::Replace(ReplaceReason::Isolation)),
            Err(stopped) => return Some(stopped),
          }
          self.shared.counters.replaced(ReplaceReason::Isolation);
          return None;
        }
        if instance.kernel_bytes() > limits.max_idle_memory {
          return Some(Stopped::Replace(ReplaceReason::Memory));
        }
        instance.reset();
        if instance.has_too_many_files() {
          return Some(Stopped::Replace(ReplaceReason::Descriptors));
        }
        usage.after_call(instance, limits).map(Stopped::Recycle)
      }
      Outcome::Exited(result) => {
        self.end_in_flight(result.map_err(error_of_call));
        Some(Stopped::Replace(ReplaceReason::Exited))
      }
      Outcome::Ended(ending) => {
        let is_cpu_bound =
          ending == Ending::Interrupted && meter.is_some_and(|meter| meter.is_busy());
        self.is_cpu_bound.store(is_cpu_bound, Ordering::Relaxed);
        Some(Stopped::Ended(ending))
      }
    }
  }

  /// Initializes a restored instance again. Returns whether it is indistinguishable from a new one.
  fn initialize_again<I: Run>(&self, instance: &mut I) -> Result<bool, Stopped> {
    if !instance.has_initialization() || self.shared.is_drained() {
      return Ok(true);
    }
    // A snapshot may have been taken meanwhile.
    let runtime = self.shared.lock().runtime.clone();
    if runtime.is_some_and(|runtime| !instance.is_instance_of(&runtime)) {
      return Ok(false);
    }
    let mut record = self.slot.lock();
    if record.is_interrupted {
      return Err(Stopped::Ended(Ending::Interrupted));
    }
    let limit = self.shared.limits.initialization_timeout;
    let waiter = Waiter::Initialization(None);
    record.start(waiter, Activity::Initialization, Some(limit));
    drop(record);
    instance.initialize().map_err(Stopped::Ended)?;
    self.slot.lock().in_flight = None;
    Ok(instance.matches_new_instance())
  }

  /// Takes the next call and records it as in flight. `None` if there is no call for this instance.
  fn next(&self) -> Option<Call> {
    self.shared.take(|queue, call| {
      let mut record = self.slot.lock();
      if record.is_interrupted {
        // Interrupted while it waited: the plugin is shutting down.
        drop(record);
        queue.waiting.push_front(call);
        return None;
      }
      let timeout = call.timeout.or(self.shared.limits.timeout);
      record.start(Waiter::Call(call.number), Activity::Call, timeout);
      Some(call)
    })
  }

  /// Completes what is in flight, unless its result has been claimed already.
  fn end_in_flight(&self, result: Result<CallOutput>) {
    let in_flight = self.slot.lock().in_flight.take();
    if let Some(waiter) = in_flight.and_then(|in_flight| in_flight.waiter) {
      self.shared.end(waiter, result);
    }
  }

  /// Completes what is in flight after the instance has stopped, and clears the record for the next instance.
  /// Returns whether the thread has been abandoned, and must end.
  fn finish_instance(&self, stopped: Stopped) -> bool {
    let mut record = self.slot.lock();
    let was_interrupted = std::mem::take(&mut record.is_interrupted);
    let (reason, error) = match stopped {
      Stopped::Done => (None, no_result()),
      Stopped::NotCreated(error) => (None, error),
      Stopped::Replace(reason) | Stopped::Recycle(reason) => (Some(reason), no_result()),
      // Its host function failed because of the interruption.
      Stopped::Ended(Ending::HostFunction(_)) if was_interrupted => {
        reason_and_error(Ending::Interrupted)
      }
      Stopped::Ended(ending) => reason_and_error(ending),
    };
    let waiter = record.claim_to_fail(&error);
    record.in_flight = None;
    record.detach();
    self.slot.set_memory(0);
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
      // The slot has been replaced already; only this thread was left.
      let mut queue = self.shared.lock();
      queue.abandoned -= 1;
      queue.reconsider_stuck_slots();
    }
    is_abandoned
  }
}

/// The error for a call that is still in flight although its instance stopped by itself, which must not
/// happen.
fn no_result() -> Error {
  Error::new(
    Code::Internal,
    "the plugin's instance ended without a result",
  )
}

/// The reason for replacing an instance whose run ended like this, and the error for its waiter.
fn reason_and_error(ending: Ending) -> (Option<ReplaceReason>, Error) {
  let reason = match ending {
    Ending::Exited(_) => ReplaceReason::Exited,
    Ending::Trapped { .. } => ReplaceReason::Trap,
    Ending::OutOfMemory => ReplaceReason::OutOfMemory,
    Ending::OutOfFuel => ReplaceReason::FuelExhausted,
    Ending::Interrupted => ReplaceReason::Interrupted,
    Ending::HostFunction(_) => ReplaceReason::HostFunctionError,
    Ending::Panicked(_) => ReplaceReason::Internal,
  };
  (Some(reason), error_of(ending))
}
