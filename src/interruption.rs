//! Wakes a thread that waits on behalf of a guest when the guest's call ends early.
//!
//! A call ends early when its deadline passes, its caller aborts it, or its plugin is dropped. Whatever
//! the guest waits for at that moment (HTTP, a store, a JavaScript function, WASI's clock) must stop
//! waiting too. Otherwise the plugin loses a thread until the wait returns by itself.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::pin::pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::future::{Either, select};
use tokio::runtime::Runtime;
use tokio::sync::Notify;

use crate::sync::{Mutex, MutexGuard, sync_channel};

thread_local! {
  /// The interruption of the instance that this thread runs.
  static CURRENT: RefCell<Option<Arc<Interruption>>> = const { RefCell::new(None) };
}

/// Whether the call of an instance has been canceled. Each instance has one of these, and serves no
/// further call once it is canceled.
///
/// A host function that waits must [`watch`](Self::watch) it, and return when it is canceled.
#[derive(Default)]
pub struct Interruption(Mutex<InterruptionState>);

#[derive(Default)]
struct InterruptionState {
  is_canceled: bool,
  /// Only one, because a thread waits for one thing at a time.
  wake: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl Interruption {
  /// The interruption of the instance that this thread runs; `None` on other threads.
  pub fn current() -> Option<Arc<Self>> {
    CURRENT.with_borrow(Option::clone)
  }

  /// Makes this the thread's [`current`](Self::current) interruption until the scope is dropped.
  pub fn enter(self: &Arc<Self>) -> InterruptionScope {
    let outer = CURRENT.replace(Some(Arc::clone(self)));
    InterruptionScope {
      outer,
      _not_send: PhantomData,
    }
  }

  /// Cancels the call. May be called on any thread.
  pub fn cancel(&self) {
    let mut state = self.lock();
    state.is_canceled = true;
    let wake = state.wake.take();
    drop(state);
    if let Some(wake) = wake {
      wake();
    }
  }

  /// Whether the call has been canceled.
  pub fn is_canceled(&self) -> bool {
    self.lock().is_canceled
  }

  /// Calls `wake` once on cancellation, on the canceling thread, or at once if already canceled.
  /// Dropping the [`CancelWatch`] unregisters it. `wake` should only wake the waiting thread: the plugin
  /// may be locked.
  pub fn watch(&self, wake: impl Fn() + Send + Sync + 'static) -> CancelWatch<'_> {
    let mut state = self.lock();
    if state.is_canceled {
      drop(state);
      wake();
    } else {
      state.wake = Some(Arc::new(wake));
    }
    CancelWatch(self)
  }

  /// Waits for `future`. Returns `None`, and drops the future, if the call is canceled first.
  pub async fn wait_for<T>(&self, future: impl Future<Output = T>) -> Option<T> {
    let canceled = Arc::new(Notify::new());
    let notify = Arc::clone(&canceled);
    let _watch = self.watch(move || notify.notify_one());
    match select(pin!(canceled.notified()), pin!(future)).await {
      Either::Left(_) => None,
      Either::Right((output, _)) => Some(output),
    }
  }

  /// Like [`wait_for`](Self::wait_for), but blocks this thread.
  pub fn block_on<T>(&self, runtime: &Runtime, future: impl Future<Output = T>) -> Option<T> {
    runtime.block_on(self.wait_for(future))
  }

  /// Sleeps on this thread. Returns false if the call is canceled before `time` has passed.
  pub fn sleep(&self, time: Duration) -> bool {
    let (wake, woken) = sync_channel(1);
    let _watch = self.watch(move || {
      // A full channel means that the thread has been woken already.
      let _ = wake.try_send(());
    });
    woken.recv_timeout(time).is_err()
  }

  fn lock(&self) -> MutexGuard<'_, InterruptionState> {
    self.0.lock().unwrap_or_else(PoisonError::into_inner)
  }
}

/// Watches an [`Interruption`] until it is dropped.
#[must_use]
pub struct CancelWatch<'a>(&'a Interruption);

impl Drop for CancelWatch<'_> {
  fn drop(&mut self) {
    self.0.lock().wake = None;
  }
}

/// Makes an [`Interruption`] the thread's current one until it is dropped.
#[must_use]
pub struct InterruptionScope {
  outer: Option<Arc<Interruption>>,
  /// The scope belongs to one thread.
  _not_send: PhantomData<*const ()>,
}

impl Drop for InterruptionScope {
  fn drop(&mut self) {
    CURRENT.set(self.outer.take());
  }
}
