//! Counters of a plugin, cheap enough to be always on: one addition for each call, of numbers that
//! nobody waits for.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Code, Error};

/// Why an instance was replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replaced {
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
  /// Its kernel memory had grown too large, or all its memories near their limit.
  Memory,
  /// It kept too many files open after a call.
  Descriptors,
  /// Each call has an instance of its own.
  Isolation,
  /// It had served as many calls as it may.
  Calls,
  /// It was too old.
  Age,
  /// A defect in this library.
  Internal,
}

impl Replaced {
  /// All reasons, each at the place of its number.
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

  /// Its name in JavaScript.
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

/// What is counted while a plugin runs.
#[derive(Debug, Default)]
pub struct Counters {
  /// Calls with an output, then those that failed, at the numbers of their codes.
  outcomes: [AtomicU64; Code::ALL.len() + 1],
  made: AtomicU64,
  replaced: [AtomicU64; Replaced::ALL.len()],
}

impl Counters {
  /// A call has ended.
  pub fn ended<T>(&self, result: &Result<T, Error>) {
    let index = match result {
      Ok(_) => 0,
      Err(error) => error.code.number() as usize,
    };
    self.outcomes[index].fetch_add(1, Ordering::Relaxed);
  }

  /// An instance has been made and initialized.
  pub fn made(&self) {
    self.made.fetch_add(1, Ordering::Relaxed);
  }

  /// How many have.
  pub fn instances_made(&self) -> u64 {
    self.made.load(Ordering::Relaxed)
  }

  /// An instance has been replaced.
  pub fn replaced(&self, reason: Replaced) {
    self.replaced[reason as usize].fetch_add(1, Ordering::Relaxed);
  }

  /// How many calls had an output.
  pub fn succeeded(&self) -> u64 {
    self.outcomes[0].load(Ordering::Relaxed)
  }

  /// How many calls failed, by their codes, without those codes that none had.
  pub fn failed(&self) -> Vec<(Code, u64)> {
    let counts = self.outcomes[1..]
      .iter()
      .map(|count| count.load(Ordering::Relaxed));
    let failed = Code::ALL.into_iter().zip(counts);
    failed.filter(|(_, count)| *count > 0).collect()
  }

  /// How many instances were replaced, by reason.
  pub fn replacements(&self) -> Vec<(Replaced, u64)> {
    let counts = self
      .replaced
      .iter()
      .map(|count| count.load(Ordering::Relaxed));
    Replaced::ALL.into_iter().zip(counts).collect()
  }
}

/// What a plugin has done and does at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
  /// Calls that had an output, an empty one included.
  pub succeeded: u64,
  /// Calls that failed, by code; those that were refused too.
  pub failed: Vec<(Code, u64)>,
  /// Calls that wait for an instance.
  pub queued: usize,
  /// Instances that run a call.
  pub busy: usize,
  /// Instances that there are, busy or not.
  pub instances: usize,
  /// Those of them that wait for a call.
  pub ready: usize,
  /// Instances that have been made and initialized.
  pub made: u64,
  /// Calls that found no instance ready for them.
  pub waited: u64,
  /// Instances that were replaced, by reason.
  pub replaced: Vec<(Replaced, u64)>,
  /// Threads that hang in calls of the host and have been replaced.
  pub abandoned_threads: usize,
}
