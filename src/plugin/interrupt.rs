//! Interrupts one instance, from any thread, while others on the same engine continue.
//!
//! On Linux each instance has an *interrupt page*: the linker inserts a load from it at the start of
//! every loop and function (`link`). [`Interrupt::interrupt`] makes the page inaccessible, and the next
//! load traps. The page's address is known only between [`Interrupt::arm_page`] and
//! [`Interrupt::disarm`], which makes the page accessible again; both and `interrupt` hold the same
//! lock. So an interruption never closes a page that has been freed or belongs to another instance.
//!
//! On other systems, and with `interruption: 'epoch'`, an interruption sets a flag and raises the
//! engine's epoch: every instance then checks its own flag, and all but one continue.
//!
//! The reference runtime interrupts an instance through Extism's `CancelHandle`.

use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, PoisonError};

use extism::CancelHandle;
use wasmtime::{Engine, Store, UpdateDeadline};

use super::page::{PageAddress, protect};
use crate::host::{Guest, Stop};
use crate::sync::{AtomicBool, Mutex, MutexGuard};

/// How instances are interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Interruptions {
  /// By making a memory page inaccessible.
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

/// Interrupts one instance.
#[derive(Clone)]
pub struct Interrupt(Arc<InterruptState>);

#[derive(Default)]
struct InterruptState {
  is_interrupted: AtomicBool,
  page: Mutex<InterruptPage>,
  /// Set if instances are interrupted by epochs.
  engine: Option<Engine>,
  /// Set if Extism interrupts the instance, once the instance has been linked.
  cancel_handle: OnceLock<CancelHandle>,
}

#[derive(Default)]
struct InterruptPage {
  /// Set while it belongs to an instance.
  address: Option<PageAddress>,
  is_closed: bool,
}

impl Interrupt {
  /// Creates the interrupt of an instance. No code may have run in `store` yet.
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
        // Interruptions of other instances raise the epoch too.
        false => Ok(UpdateDeadline::Continue(1)),
      });
    }
    interrupt
  }

  /// For an instance of the reference runtime. Before [`set_cancel_handle`](Self::set_cancel_handle),
  /// an interruption is only recorded.
  pub fn for_extism() -> Self {
    Self(Arc::default())
  }

  /// Sets the handle that interrupts the instance.
  pub fn set_cancel_handle(&self, cancel_handle: CancelHandle) {
    // Cannot fail: it is called once per instance.
    let _ = self.0.cancel_handle.set(cancel_handle);
  }

  /// Whether the instance has been interrupted.
  pub fn is_interrupted(&self) -> bool {
    self.0.is_interrupted.load(Ordering::SeqCst)
  }

  /// Interrupts the instance: what it runs now, or would run next, traps. May be called again, see
  /// [`needs_repeating`](Self::needs_repeating).
  pub fn interrupt(&self) {
    self.0.is_interrupted.store(true, Ordering::SeqCst);
    if let Some(engine) = &self.0.engine {
      engine.increment_epoch();
      return;
    }
    if let Some(cancel_handle) = self.0.cancel_handle.get() {
      // Fails only while the process exits.
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

  /// Whether a single interruption can be missed and must be repeated. With epochs, an instance that is
  /// just checking its flag because of another interruption may set its next deadline after ours has
  /// passed. And Extism forgets an interruption that comes before the guest's function has started.
  pub fn needs_repeating(&self) -> bool {
    self.0.engine.is_some() || self.0.cancel_handle.get().is_some()
  }

  fn lock(&self) -> MutexGuard<'_, InterruptPage> {
    self.0.page.lock().unwrap_or_else(PoisonError::into_inner)
  }

  /// Sets the address of the instance's interrupt page. Closes the page if the instance is already
  /// interrupted.
  pub fn arm_page(&self, address: NonNull<u8>) {
    let mut page = self.lock();
    let address = PageAddress::new(address);
    if self.is_interrupted() {
      page.is_closed = protect(&address, false);
    }
    page.address = Some(address);
  }

  /// Opens the page and forgets its address. Call this before the memory is freed.
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
