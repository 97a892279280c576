//! A slot: holds one instance, and records what that instance is doing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::super::instance::Run;
use super::super::interrupt::Interrupt;
use super::deadline::GRACE;
use crate::host::Interruption;
use crate::sync::{self, AtomicBool, Mutex, MutexGuard};
use crate::{Error, Result, watchdog};

/// Holds one instance. An abandoned thread keeps its slot; its replacement gets a new one.
#[derive(Default)]
pub struct Slot {
  record: Mutex<Record>,
  /// Whether its instance was interrupted and has not stopped, but its thread cannot be abandoned because
  /// too many already are. Outside the record, because every call reads it.
  pub is_stuck: AtomicBool,
  /// The memory of its instance after the last call, in bytes.
  memory: AtomicU64,
}

/// The state of a slot and of its instance.
#[derive(Default)]
pub struct Record {
  pub in_flight: Option<InFlight>,
  /// Interrupts the running instance. Set before any guest code runs.
  pub interrupt: Option<Interrupt>,
  /// The cancellation that the same instance's host functions watch.
  pub interruption: Option<Arc<Interruption>>,
  /// Whether that instance has been interrupted. It takes no further call then; if it has not started yet,
  /// it does not start.
  pub is_interrupted: bool,
  pub is_abandoned: bool,
  /// Why the initialization of the instance failed. Set when the waiter is taken, because the slot's
  /// thread may continue before the waiter has been notified.
  pub failure: Option<Error>,
  /// Whether an instance of this slot, or of the slot that it replaces, has been initialized. Until then
  /// no call relies on it.
  pub is_proven: bool,
}

/// A running call, or the initialization of an instance.
pub struct InFlight {
  /// `None` once its result has been claimed.
  pub waiter: Option<Waiter>,
  pub activity: Activity,
  pub limit: Option<Duration>,
  pub deadline: Option<Instant>,
  /// When its thread is abandoned; set when the instance is interrupted.
  pub abandon_at: Option<Instant>,
}

/// What an instance is doing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Activity {
  /// It runs a call.
  Call,
  /// It initializes. If that fails, the next call fails with the error.
  Initialization,
  /// It initializes, to replace an instance that still works. If that fails, the old one continues to
  /// serve, and no call fails.
  Recycling,
}

/// Receives the result of a call or of an initialization.
pub enum Waiter {
  /// The caller of the call with this number.
  Call(u64),
  /// Waits for the initialization of a slot's first instance. `None` for later instances.
  Initialization(Option<ReadyCallback>),
}

/// Called with the result of the initialization of a slot's first instance.
pub type ReadyCallback = Box<dyn FnOnce(Result<()>) + Send>;

impl Slot {
  /// The memory of its instance after the last call, in bytes.
  pub fn memory(&self) -> u64 {
    self.memory.load(Ordering::Relaxed)
  }

  /// Records the memory of its instance.
  pub fn set_memory(&self, bytes: u64) {
    self.memory.store(bytes, Ordering::Relaxed);
  }

  /// Nothing that could panic runs under the lock, so the data behind a poisoned lock is consistent.
  pub fn lock(&self) -> MutexGuard<'_, Record> {
    self.record.lock().unwrap_or_else(PoisonError::into_inner)
  }
}

impl Record {
  /// Makes `instance` the one that an interruption reaches.
  pub fn attach(&mut self, instance: &impl Run) {
    self.interrupt = Some(instance.interrupt().clone());
    self.interruption = Some(instance.interruption());
  }

  /// From now on an interruption reaches no instance, and only keeps the next one from starting.
  pub fn detach(&mut self) {
    self.interrupt = None;
    self.interruption = None;
  }

  /// Records the start of a call or initialization, and schedules its deadline.
  pub fn start(&mut self, waiter: Waiter, activity: Activity, limit: Option<Duration>) {
    let deadline = limit.and_then(|limit| sync::now().checked_add(limit));
    self.in_flight = Some(InFlight {
      waiter: Some(waiter),
      activity,
      limit,
      deadline,
      abandon_at: None,
    });
    if let Some(deadline) = deadline {
      watchdog::schedule(deadline);
    }
  }

  /// Claims the waiter of what is in flight, in order to fail it with `error`. `None` if it was claimed
  /// before.
  pub fn claim_to_fail(&mut self, error: &Error) -> Option<Waiter> {
    let in_flight = self.in_flight.as_mut()?;
    let waiter = in_flight.waiter.take()?;
    if in_flight.activity == Activity::Initialization {
      self.failure = Some(error.clone());
    }
    Some(waiter)
  }

  /// Interrupts the running instance, or keeps the next one from starting.
  pub fn interrupt(&mut self) {
    if self.is_interrupted {
      return;
    }
    self.is_interrupted = true;
    if let Some(interrupt) = &self.interrupt {
      interrupt.interrupt();
    }
    if let Some(interruption) = &self.interruption {
      interruption.cancel();
    }
    if let Some(in_flight) = &mut self.in_flight {
      let abandon_at = sync::now() + GRACE;
      in_flight.abandon_at = Some(abandon_at);
      watchdog::schedule(abandon_at);
    }
  }
}
