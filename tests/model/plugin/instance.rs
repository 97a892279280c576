//! Instances that run no WebAssembly, but end in every way in which a guest can.

use std::sync::{Arc, PoisonError};

pub use extism_host::plugin::instance::{CallError, CallOutput, Ending, Outcome};

use super::interrupt::Interrupt;
use super::page::InstancePage;
use crate::host::{HostFunctionError, Interruption};
use crate::sync::{Condvar, Mutex, process_static};
use crate::{Code, Error, Result, violation};

/// The behaviour of a guest, by the number of its export.
pub mod export {
  /// Returns at once.
  pub const RETURN: u32 = 0;
  /// Traps.
  pub const TRAP: u32 = 1;
  /// Exits with success.
  pub const EXIT: u32 = 2;
  /// Runs until it is interrupted.
  pub const LOOP: u32 = 3;
  /// Calls a host function that waits and watches its interruption.
  pub const WAIT: u32 = 4;
  /// Calls a host function that ignores interruptions and returns after [`super::open_gate`].
  pub const HANG: u32 = 5;
  /// Returns, and leaks memory.
  pub const LEAK: u32 = 6;
}

process_static! { static GATE: Mutex<bool> = Mutex::new(false); }
process_static! { static OPENED: Condvar = Condvar::new(); }

/// Lets all hanging host functions return, now and later.
pub fn open_gate() {
  *GATE.lock().unwrap_or_else(PoisonError::into_inner) = true;
  OPENED.notify_all();
}

fn wait_for_gate() {
  let gate = GATE.lock().unwrap_or_else(PoisonError::into_inner);
  drop(OPENED.wait_while(gate, |is_open| !*is_open));
}

/// How the instances of a plugin start. Each takes the next entry; the last one is used repeatedly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Startup {
  Succeeds,
  /// The instance cannot be created.
  Fails,
  Traps,
  Loops,
  Hangs,
}

pub struct Template(Mutex<Vec<Startup>>);

impl Template {
  pub fn new(startups: &[Startup]) -> Self {
    let startups = startups.iter().rev().copied();
    Self(Mutex::new(startups.collect()))
  }

  fn next(&self) -> Startup {
    let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
    match left.as_slice() {
      [last] => *last,
      _ => left.pop().unwrap_or(Startup::Succeeds),
    }
  }
}

pub type Reference = Template;

/// As in `src/plugin/instance.rs`.
#[derive(Clone)]
pub enum PluginRuntime {
  Wasmtime(Arc<Template>),
  Extism(Arc<Reference>),
}

/// As in `src/plugin/instance.rs`.
pub trait Run {
  fn interrupt(&self) -> &Interrupt;
  fn interruption(&self) -> Arc<Interruption>;
  fn initialize(&mut self) -> Result<(), Ending>;
  fn call(&mut self, number: u64, export: u32, input: Vec<u8>) -> Outcome;
  fn reset(&mut self);
  fn kernel_bytes(&self) -> u64;
  fn memory_bytes(&self) -> u64;
  fn has_too_many_files(&self) -> bool;
  fn prepare_restore(&mut self);
  fn restore(&mut self) -> bool;
  fn has_initialization(&self) -> bool;
  fn is_instance_of(&self, runtime: &PluginRuntime) -> bool;
  fn matches_new_instance(&self) -> bool;
  fn set_memory_baseline(&mut self);
  fn is_nearly_full(&self) -> bool;
}

pub struct Instance {
  startup: Startup,
  /// Whether it has leaked since its memory baseline was set.
  has_leaked: bool,
  interrupt: Interrupt,
  interruption: Arc<Interruption>,
  page: InstancePage,
}

impl Drop for Instance {
  fn drop(&mut self) {
    // Before the page is freed, as in `src/plugin/instance.rs`.
    self.interrupt.disarm();
  }
}

impl Instance {
  pub fn new(template: &Arc<Template>) -> Result<Self> {
    let startup = template.next();
    if startup == Startup::Fails {
      return Err(Error::new(
        Code::InvalidWasm,
        "the instance cannot be created",
      ));
    }
    let page = InstancePage::new();
    let interrupt = Interrupt::for_extism();
    interrupt.arm_page(page.address());
    Ok(Self {
      startup,
      has_leaked: false,
      interrupt,
      interruption: Arc::default(),
      page,
    })
  }

  /// Simulates an interrupt check.
  fn check(&self) -> Result<(), Ending> {
    if !self.page.is_closed() {
      return Ok(());
    }
    if !self.interrupt.is_interrupted() {
      violation("the wrong instance was interrupted");
    }
    Err(Ending::Interrupted)
  }

  fn run(&self, export: u32) -> Result<(), Ending> {
    if export != export::HANG {
      self.check()?;
    }
    match export {
      export::TRAP => {
        return Err(Ending::Trapped {
          message: "unreachable".to_owned(),
          backtrace: Vec::new(),
          has_hidden_errors: false,
        });
      }
      export::LOOP => self.page.wait_until_closed(),
      export::WAIT => {
        let canceled = Arc::new((Mutex::new(false), Condvar::new()));
        let signal = Arc::clone(&canceled);
        let _watch = self.interruption.watch(move || {
          *signal.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
          signal.1.notify_all();
        });
        let waiting = canceled.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(canceled.1.wait_while(waiting, |is_canceled| !*is_canceled));
        return Err(Ending::HostFunction(HostFunctionError::new("interrupted")));
      }
      export::HANG => wait_for_gate(),
      _ => {}
    }
    self.check()
  }
}

impl Run for Instance {
  fn interrupt(&self) -> &Interrupt {
    &self.interrupt
  }

  fn interruption(&self) -> Arc<Interruption> {
    Arc::clone(&self.interruption)
  }

  fn initialize(&mut self) -> Result<(), Ending> {
    self.run(match self.startup {
      Startup::Traps => export::TRAP,
      Startup::Loops => export::LOOP,
      Startup::Hangs => export::HANG,
      _ => export::RETURN,
    })
  }

  fn call(&mut self, number: u64, export: u32, _: Vec<u8>) -> Outcome {
    let output = Ok(CallOutput {
      bytes: number.to_le_bytes().to_vec(),
      is_set: true,
    });
    self.has_leaked |= export == export::LEAK;
    match self.run(export) {
      Ok(()) if export == export::EXIT => Outcome::Exited(output),
      Ok(()) => Outcome::Returned(output),
      Err(ending) => Outcome::Ended(ending),
    }
  }

  fn reset(&mut self) {}

  fn kernel_bytes(&self) -> u64 {
    0
  }

  fn memory_bytes(&self) -> u64 {
    0
  }

  fn has_too_many_files(&self) -> bool {
    false
  }

  fn prepare_restore(&mut self) {}

  fn restore(&mut self) -> bool {
    false
  }

  fn has_initialization(&self) -> bool {
    true
  }

  fn is_instance_of(&self, _: &PluginRuntime) -> bool {
    true
  }

  fn matches_new_instance(&self) -> bool {
    true
  }

  fn set_memory_baseline(&mut self) {
    self.has_leaked = false;
  }

  fn is_nearly_full(&self) -> bool {
    self.has_leaked
  }
}
