//! Instances that run no WebAssembly, but end in every way that a guest can.

use std::sync::{Arc, PoisonError};

pub use extism_host::plugin::instance::{CallError, CallOutput, Ending, Outcome};

use super::interrupt::Interrupt;
use super::page::InstancePage;
use crate::host::{HostFunctionError, Interruption};
use crate::sync::{Condvar, Mutex, process_static};
use crate::{Code, Error, Result, violation};

/// What a guest does, by the number of its export.
pub mod export {
  /// Returns at once.
  pub const RETURN: u32 = 0;
  /// Traps.
  pub const TRAP: u32 = 1;
  /// Exits with success.
  pub const EXIT: u32 = 2;
  /// Runs until it is interrupted.
  pub const LOOP: u32 = 3;
  /// Calls a host function that waits, and watches its interruption.
  pub const WAIT: u32 = 4;
  /// Calls a host function, even if it has been interrupted, which returns when [`super::open_gate`] lets it.
  pub const HANG: u32 = 5;
  /// Returns, and keeps some memory.
  pub const LEAK: u32 = 6;
}

process_static! { static GATE: Mutex<bool> = Mutex::new(false); }
process_static! { static OPENED: Condvar = Condvar::new(); }

/// Lets all host functions return that hang, now and later.
pub fn open_gate() {
  *GATE.lock().unwrap_or_else(PoisonError::into_inner) = true;
  OPENED.notify_all();
}

fn wait_for_gate() {
  let gate = GATE.lock().unwrap_or_else(PoisonError::into_inner);
  drop(OPENED.wait_while(gate, |is_open| !*is_open));
}

/// How the instances of a plugin begin. Each takes the next, the last one again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
  Succeeds,
  /// There is no instance.
  Fails,
  Traps,
  Loops,
  Hangs,
}

pub struct Template(Mutex<Vec<Beginning>>);

impl Template {
  pub fn new(beginnings: &[Beginning]) -> Self {
    let beginnings = beginnings.iter().rev().copied();
    Self(Mutex::new(beginnings.collect()))
  }

  fn next(&self) -> Beginning {
    let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
    match left.as_slice() {
      [last] => *last,
      _ => left.pop().unwrap_or(Beginning::Succeeds),
    }
  }
}

pub type Reference = Template;

/// As in `src/plugin/instance.rs`.
#[derive(Clone)]
pub enum Runtime {
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
  fn keeps_files(&self) -> bool;
  fn prepare_restore(&mut self);
  fn restore(&mut self) -> bool;
  fn has_initialization(&self) -> bool;
  fn is_of(&self, runtime: &Runtime) -> bool;
  fn is_like_new(&self) -> bool;
  fn accept_memory(&mut self);
  fn is_nearly_full(&self) -> bool;
}

pub struct Instance {
  beginning: Beginning,
  /// Whether it has leaked since its memory was accepted.
  has_leaked: bool,
  interrupt: Interrupt,
  interruption: Arc<Interruption>,
  page: InstancePage,
}

impl Drop for Instance {
  fn drop(&mut self) {
    // Before the page is given back, as in `src/plugin/instance.rs`.
    self.interrupt.disarm();
  }
}

impl Instance {
  pub fn new(template: &Arc<Template>) -> Result<Self> {
    let beginning = template.next();
    if beginning == Beginning::Fails {
      return Err(Error::new(Code::InvalidWasm, "there is no instance"));
    }
    let page = InstancePage::new();
    let interrupt = Interrupt::for_extism();
    interrupt.arm_page(page.address());
    Ok(Self {
      beginning,
      has_leaked: false,
      interrupt,
      interruption: Arc::default(),
      page,
    })
  }

  /// What an interrupt check does.
  fn check(&self) -> Result<(), Ending> {
    if !self.page.is_closed() {
      return Ok(());
    }
    if !self.interrupt.is_interrupted() {
      violation("an instance was interrupted in place of another");
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
        let told = Arc::clone(&canceled);
        let _watch = self.interruption.watch(move || {
          *told.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
          told.1.notify_all();
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
    self.run(match self.beginning {
      Beginning::Traps => export::TRAP,
      Beginning::Loops => export::LOOP,
      Beginning::Hangs => export::HANG,
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

  fn keeps_files(&self) -> bool {
    false
  }

  fn prepare_restore(&mut self) {}

  fn restore(&mut self) -> bool {
    false
  }

  fn has_initialization(&self) -> bool {
    true
  }

  fn is_of(&self, _: &Runtime) -> bool {
    true
  }

  fn is_like_new(&self) -> bool {
    true
  }

  fn accept_memory(&mut self) {
    self.has_leaked = false;
  }

  fn is_nearly_full(&self) -> bool {
    self.has_leaked
  }
}
