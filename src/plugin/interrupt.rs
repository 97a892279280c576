//! Interrupting one instance, from any thread, while others on the same engine go on.
//!
//! On Linux each instance has an *interrupt page*: the linker puts a load from it at the head of every
//! loop and function (`link`). [`Interrupt::interrupt`] makes the page inaccessible, and the next load
//! traps. The page's address is known only between [`Interrupt::arm_page`] and
//! [`Interrupt::disarm`], which opens the page again; both and `interrupt` hold the same lock. So no
//! page is ever closed that belongs to nobody, or to somebody else by now.
//!
//! Elsewhere, and with `interruption: 'epoch'`, an interruption sets a flag and raises the engine's
//! epoch: every instance looks at its own flag then, and all but one go on.
//!
//! The reference runtime interrupts an instance through Extism's `CancelHandle`.

use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, PoisonError};

use extism::CancelHandle;
use wasmtime::{Engine, Store, UpdateDeadline};

use super::page::{Address, protect};
use crate::host::{Guest, Stop};
use crate::sync::{AtomicBool, Mutex, MutexGuard};

/// How instances are interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Interruptions {
  /// By a page of memory that is made inaccessible.
  Page,
  /// By the engine's epoch.
  Epoch,
}

impl Default for Interruptions {
  fn default() -> Self {
    match cfg!(all(target_os = "linux", target_arch = "x86_64")) {
      true => Self::Page,
      false => Self::Epoch,
    }
  }
}

/// What interrupts one instance.
#[derive(Clone)]
pub struct Interrupt(Arc<InterruptState>);

#[derive(Default)]
struct InterruptState {
  is_interrupted: AtomicBool,
  page: Mutex<Page>,
  /// There if epochs interrupt.
  engine: Option<Engine>,
  /// There if Extism interrupts, from when the instance has been linked.
  cancel_handle: OnceLock<CancelHandle>,
}

#[derive(Default)]
struct Page {
  /// There while an instance has it.
  address: Option<Address>,
  is_closed: bool,
}

impl Interrupt {
  /// For an instance of that engine. `store` is the instance's: nothing has run in it yet.
  pub fn new(store: &mut Store<Guest>, interruptions: Interruptions) -> Self {
    let engine = match interruptions {
      Interruptions::Page => None,
      Interruptions::Epoch => Some(store.engine().clone()),
    };
    let is_epoch = engine.is_some();
    let interrupt = Self(Arc::new(InterruptState {
      engine,
      ..InterruptState::default()
    }));
    if is_epoch {
      let own = interrupt.clone();
      store.set_epoch_deadline(1);
      store.epoch_deadline_callback(move |_| match own.is_interrupted() {
        true => Err(wasmtime::Error::new(Stop::Interrupted)),
        // Interruptions of others raise the epoch too.
        false => Ok(UpdateDeadline::Continue(1)),
      });
    }
    interrupt
  }

  /// For an instance of the reference runtime. Until [`set_cancel_handle`](Self::set_cancel_handle), an
  /// interruption is only recorded.
  pub fn for_extism() -> Self {
    Self(Arc::default())
  }

  /// Says how the instance is interrupted from now on.
  pub fn set_cancel_handle(&self, cancel_handle: CancelHandle) {
    // An instance has one, set once.
    let _ = self.0.cancel_handle.set(cancel_handle);
  }

  /// Whether it has been interrupted.
  pub fn is_interrupted(&self) -> bool {
    self.0.is_interrupted.load(Ordering::SeqCst)
  }

  /// Interrupts the instance: what it runs now, or would run next, traps. May be called again, which
  /// [`needs_repeating`](Self::needs_repeating) tells the use of.
  pub fn interrupt(&self) {
    self.0.is_interrupted.store(true, Ordering::SeqCst);
    if let Some(engine) = &self.0.engine {
      engine.increment_epoch();
      return;
    }
    if let Some(cancel_handle) = self.0.cancel_handle.get() {
      // Fails only when the process ends.
      let _ = cancel_handle.cancel();
      return;
    }
    let mut page = self.lock();
    if !page.is_closed
      && let Some(address) = &page.address
    {
      page.is_closed = protect(address, false);
    }
  }

  /// Whether one interruption may be missed: an instance that is just looking at its flag, for
  /// somebody else's sake, sets its next deadline after ours has passed. A second one reaches it.
  /// Extism forgets one that comes before the guest's function has started.
  pub fn needs_repeating(&self) -> bool {
    self.0.engine.is_some() || self.0.cancel_handle.get().is_some()
  }

  fn lock(&self) -> MutexGuard<'_, Page> {
    self.0.page.lock().unwrap_or_else(PoisonError::into_inner)
  }

  /// Says where the instance's interrupt page is. One that was interrupted before is so from now on.
  pub fn arm_page(&self, address: NonNull<u8>) {
    let mut page = self.lock();
    let address = Address::new(address);
    if self.is_interrupted() {
      page.is_closed = protect(&address, false);
    }
    page.address = Some(address);
  }

  /// Before the memory is given back: opens the page, and forgets where it was.
  pub fn disarm(&self) {
    let mut page = self.lock();
    if let Some(address) = page.address.take()
      && page.is_closed
    {
      protect(&address, true);
    }
    page.is_closed = false;
  }
}
