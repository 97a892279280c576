//! A plugin's counters. They are cheap enough to be always on: each call costs one relaxed atomic
//! addition.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Code, Error};

/// Why an instance was replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplaceReason {
  /// The guest did what WebAssembly or the kernel does not allow.
  Trap,
  /// It wanted more memory than its limit.
  OutOfMemory,
  /// It ran out of fuel.
  FuelExhausted,
  /// Its call, or its initialization, took too long or was canceled.
  Interrupted,
  /// A host function failed.
  HostFunctionError,
  /// It had exited, or `_start` had run.
  Exited,
  /// Its kernel memory had grown too large, or its memories were close to their limit together.
  Memory,
  /// It kept too many files open after a call.
  Descriptors,
  /// Each call gets a fresh instance.
  Isolation,
  /// It had reached its maximum number of calls.
  Calls,
  /// It had reached its maximum age.
  Age,
  /// A defect in this library.
  Internal,
}

impl ReplaceReason {
  /// All reasons, in the order of their discriminants.
  pub const ALL: [Self; 12] = [
    Self::Trap,
    Self::OutOfMemory,
    Self::FuelExhausted,
    Self::Interrupted,
    Self::HostFunctionError,
    Self::Exited,
    Self::Memory,
    Self::Descriptors,
    Self::Isolation,
    Self::Calls,
    Self::Age,
    Self::Internal,
  ];

  /// The name in JavaScript.
  pub const fn as_str(self) -> &'static str {
    match self {
      Self::Trap => "trap",
      Self::OutOfMemory => "outOfMemory",
      Self::FuelExhausted => "fuelExhausted",
      Self::Interrupted => "interrupted",
      Self::HostFunctionError => "hostFunctionError",
      Self::Exited => "exited",
      Self::Memory => "memory",
      Self::Descriptors => "descriptors",
      Self::Isolation => "isolation",
      Self::Calls => "calls",
      Self::Age => "age",
      Self::Internal => "internal",
    }
  }
}

/// Counters that change while a plugin runs.
#[derive(Debug, Default)]
pub struct Counters {
  /// The number of successful calls, followed by the failed ones at the index of their code.
  outcomes: [AtomicU64; Code::ALL.len() + 1],
  made: AtomicU64,
  replaced: [AtomicU64; ReplaceReason::ALL.len()],
}

impl Counters {
  /// Counts a completed call.
  pub fn ended<T>(&self, result: &Result<T, Error>) {
    let index = match result {
      Ok(_) => 0,
      Err(error) => error.code.number() as usize,
    };
    self.outcomes[index].fetch_add(1, Ordering::Relaxed);
  }

  /// Counts an instance that has been created and initialized.
  pub fn made(&self) {
    self.made.fetch_add(1, Ordering::Relaxed);
  }

  /// How many instances have been created.
  pub fn instances_made(&self) -> u64 {
    self.made.load(Ordering::Relaxed)
  }

  /// Counts a replaced instance.
  pub fn replaced(&self, reason: ReplaceReason) {
    self.replaced[reason as usize].fetch_add(1, Ordering::Relaxed);
  }

  /// How many calls succeeded.
  pub fn succeeded(&self) -> u64 {
    self.outcomes[0].load(Ordering::Relaxed)
  }

  /// How many calls failed, by code, without the codes that have not occurred.
  pub fn failed(&self) -> Vec<(Code, u64)> {
    let counts = self.outcomes[1..]
      .iter()
      .map(|count| count.load(Ordering::Relaxed));
    let failed = Code::ALL.into_iter().zip(counts);
    failed.filter(|(_, count)| *count > 0).collect()
  }

  /// How many instances were replaced, by reason.
  pub fn replacements(&self) -> Vec<(ReplaceReason, u64)> {
    let counts = self
      .replaced
      .iter()
      .map(|count| count.load(Ordering::Relaxed));
    ReplaceReason::ALL.into_iter().zip(counts).collect()
  }
}

/// The counters of a plugin and its current state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
  /// Calls that succeeded, with or without an output.
  pub succeeded: u64,
  /// Calls that failed, by code, refused calls included.
  pub failed: Vec<(Code, u64)>,
  /// Calls that wait for an instance now.
  pub queued: usize,
  /// Instances that run a call now.
  pub busy: usize,
  /// All instances, busy or not.
  pub instances: usize,
  /// Instances that wait for a call.
  pub ready: usize,
  /// Instances that have been created and initialized so far.
  pub made: u64,
  /// Calls that found no instance ready.
  pub waited: u64,
  /// Instances that were replaced, by reason.
  pub replaced: Vec<(ReplaceReason, u64)>,
  /// Threads that have been replaced because they are stuck in host calls.
  pub abandoned_threads: usize,
  /// The memory of all instances together, in bytes: what each had after its last call.
  pub memory: u64,
}
