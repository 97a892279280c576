//! The place of one instance, and the record of what it is doing.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

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
  /// Whether an instance of the slot, or of the one that it replaces, has been initialized. Until then
  /// no call counts on it.
  pub is_proven: bool,
}

/// A call, or the initialization of an instance.
pub struct InFlight {
  /// `None` once somebody has ended it.
  pub waiter: Option<Waiter>,
  pub is_initialization: bool,
  pub deadline: Option<Instant>,
  /// When its thread is to be abandoned; set when the instance is interrupted.
  pub abandon_at: Option<Instant>,
}

/// Who is to be told how something ends.
pub enum Waiter {
  /// The caller of the call with this number.
  Call(u64),
  /// Whoever waits for the initialization of an instance.
  Initialization(Box<dyn FnOnce(Result<()>) + Send>),
}

/// Told whether the first instance of a slot could be initialized.
pub type Ready = Box<dyn FnOnce(Result<()>) + Send>;

/// Where the initialization of an instance leaves what went wrong with it.
pub type Failure = Arc<Mutex<Option<Error>>>;

impl Slot {
  /// Nothing that could panic runs under the lock, so a poisoned one is still sound.
  pub fn lock(&self) -> MutexGuard<'_, Record> {
    self.record.lock().unwrap_or_else(PoisonError::into_inner)
  }

  /// Records that a new instance is about to initialize itself. If that fails, the failure is told
  /// to `ready`, if there is one, and is found in what is returned.
  pub fn begin_initialization(&self, limit: Duration, ready: Option<Ready>) -> Failure {
    let failure = Failure::default();
    let found = Arc::clone(&failure);
    let initialized = move |result: Result<()>| {
      if let Err(error) = &result {
        *found.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
      }
      if let Some(ready) = ready {
        ready(result);
      }
    };
    // And nothing else: the plugin may have been dropped meanwhile, and `is_interrupted` says so.
    let waiter = Waiter::Initialization(Box::new(initialized));
    self.lock().begin(waiter, true, Some(limit));
    failure
  }
}

impl Record {
  /// Something runs from now on.
  pub fn begin(&mut self, waiter: Waiter, is_initialization: bool, limit: Option<Duration>) {
    let deadline = limit.and_then(|limit| sync::now().checked_add(limit));
    self.in_flight = Some(InFlight {
      waiter: Some(waiter),
      is_initialization,
      deadline,
      abandon_at: None,
    });
    if let Some(deadline) = deadline {
      watchdog::schedule(deadline);
    }
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
