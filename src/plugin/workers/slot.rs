//! The place of one instance, and the record of what it is doing.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::super::instance::Run;
use super::super::interrupt::Interrupt;
use super::deadline::GRACE;
use crate::host::Interruption;
use crate::sync::{self, AtomicBool, Mutex, MutexGuard};
use crate::{Error, Result, watchdog};

/// The place of one instance. An abandoned thread keeps its slot; its replacement gets a new one.
#[derive(Default)]
pub struct Slot {
  record: Mutex<Record>,
  /// Whether its instance is interrupted and does not end, and its thread cannot be abandoned as too
  /// many are already. Beside the record, since every call reads it.
  pub is_stuck: AtomicBool,
}

/// What the instance of a slot is doing.
#[derive(Default)]
pub struct Record {
  pub in_flight: Option<InFlight>,
  /// Of the instance that runs; there from before anything of the guest has run.
  pub interrupt: Option<Interrupt>,
  /// Of the same instance: what its host functions watch.
  pub interruption: Option<Arc<Interruption>>,
  /// Whether that instance has been interrupted: it takes no call any more. One that has not started
  /// yet does not start.
  pub is_interrupted: bool,
  pub is_abandoned: bool,
  /// What went wrong with the initialization of the instance. Noted when the waiter is taken: its thread
  /// may go on before the waiter has been told.
  pub failure: Option<Error>,
  /// Whether an instance of the slot, or of the one that it replaces, has been initialized. Until then
  /// no call counts on it.
  pub is_proven: bool,
}

/// A call, or the initialization of an instance.
pub struct InFlight {
  /// `None` once somebody has ended it.
  pub waiter: Option<Waiter>,
  pub activity: Activity,
  pub limit: Option<Duration>,
  pub deadline: Option<Instant>,
  /// When its thread is to be abandoned; set when the instance is interrupted.
  pub abandon_at: Option<Instant>,
}

/// What an instance does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Activity {
  /// It runs a call.
  Call,
  /// It begins. If it cannot, the next call is told why.
  Initialization,
  /// It begins to take the place of one that works. If it cannot, that one serves on, and no call is told.
  Recycling,
}

/// Who is to be told how something ends.
pub enum Waiter {
  /// The caller of the call with this number.
  Call(u64),
  /// Whoever waits for the initialization of a slot's first instance; nobody does for later ones.
  Initialization(Option<Ready>),
}

/// Told whether the first instance of a slot could be initialized.
pub type Ready = Box<dyn FnOnce(Result<()>) + Send>;

impl Slot {
  /// Nothing that could panic runs under the lock, so a poisoned one is still sound.
  pub fn lock(&self) -> MutexGuard<'_, Record> {
    self.record.lock().unwrap_or_else(PoisonError::into_inner)
  }
}

impl Record {
  /// From now on, this is the instance that an interruption reaches.
  pub fn attach(&mut self, instance: &impl Run) {
    self.interrupt = Some(instance.interrupt().clone());
    self.interruption = Some(instance.interruption());
  }

  /// From now on, an interruption reaches no instance, and only keeps the next one from starting.
  pub fn detach(&mut self) {
    self.interrupt = None;
    self.interruption = None;
  }

  /// Something runs from now on.
  pub fn begin(&mut self, waiter: Waiter, activity: Activity, limit: Option<Duration>) {
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

  /// Takes who waits for what is in flight, to be told of this error, unless somebody has.
  pub fn take_to_fail(&mut self, error: &Error) -> Option<Waiter> {
    let in_flight = self.in_flight.as_mut()?;
    let waiter = in_flight.waiter.take()?;
    if in_flight.activity == Activity::Initialization {
      self.failure = Some(error.clone());
    }
    Some(waiter)
  }

  /// Interrupts the instance that runs, or keeps the next one from starting.
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
