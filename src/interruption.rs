//! How a thread that waits for others learns that the guest's call has ended meanwhile.
//!
//! A call ends early when its deadline passes, its caller aborts it, or its plugin is dropped. What a
//! guest waits for then, HTTP, a store, a function in JavaScript or WASI's clock, must stop waiting too,
//! or it costs the plugin a thread until it returns by itself.

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

/// Whether the call that an instance runs has been interrupted. Each instance has one, and takes no
/// further call after that.
///
/// A host function that waits [`watch`](Self::watch)es it, and returns when it is canceled.
#[derive(Default)]
pub struct Interruption(Mutex<InterruptionState>);

#[derive(Default)]
struct InterruptionState {
  is_canceled: bool,
  /// A thread waits for one thing at a time.
  wake: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl Interruption {
  /// The interruption of the instance that this thread runs; `None` on other threads.
  pub fn current() -> Option<Arc<Self>> {
    CURRENT.with_borrow(Option::clone)
  }

  /// Makes it the [`current`](Self::current) one of this thread until the scope is dropped.
  pub fn enter(self: &Arc<Self>) -> Scope {
    let outer = CURRENT.replace(Some(Arc::clone(self)));
    Scope {
      outer,
      _not_send: PhantomData,
    }
  }

  /// Interrupts. Any thread.
  pub fn cancel(&self) {
    let mut state = self.lock();
    state.is_canceled = true;
    let wake = state.wake.take();
    drop(state);
    if let Some(wake) = wake {
      wake();
    }
  }

  /// Whether it has been canceled.
  pub fn is_canceled(&self) -> bool {
    self.lock().is_canceled
  }

  /// Calls `wake` on the thread that cancels, or at once if it has been canceled already, until the
  /// [`Watch`] is dropped. `wake` should only wake the waiting thread: the plugin may be locked.
  pub fn watch(&self, wake: impl Fn() + Send + Sync + 'static) -> Watch<'_> {
    let mut state = self.lock();
    if state.is_canceled {
      drop(state);
      wake();
    } else {
      state.wake = Some(Arc::new(wake));
    }
    Watch(self)
  }

  /// Waits for `future`; `None` if it is canceled first. Then the future is dropped.
  pub async fn wait_for<T>(&self, future: impl Future<Output = T>) -> Option<T> {
    let canceled = Arc::new(Notify::new());
    let notify = Arc::clone(&canceled);
    let _watch = self.watch(move || notify.notify_one());
    match select(pin!(canceled.notified()), pin!(future)).await {
      Either::Left(_) => None,
      Either::Right((output, _)) => Some(output),
    }
  }

  /// The same on this thread.
  pub fn block_on<T>(&self, runtime: &Runtime, future: impl Future<Output = T>) -> Option<T> {
    runtime.block_on(self.wait_for(future))
  }

  /// Sleeps on this thread; false if it is canceled before the time is over.
  pub fn sleep(&self, time: Duration) -> bool {
    let (wake, woken) = sync_channel(1);
    let _watch = self.watch(move || {
      // Whoever has been woken already needs no second time.
      let _ = wake.try_send(());
    });
    woken.recv_timeout(time).is_err()
  }

  fn lock(&self) -> MutexGuard<'_, InterruptionState> {
    self.0.lock().unwrap_or_else(PoisonError::into_inner)
  }
}

/// An [`Interruption`] is watched for as long as this lives.
#[must_use]
pub struct Watch<'a>(&'a Interruption);

impl Drop for Watch<'_> {
  fn drop(&mut self) {
    self.0.lock().wake = None;
  }
}

/// An [`Interruption`] is its thread's for as long as this lives.
#[must_use]
pub struct Scope {
  outer: Option<Arc<Interruption>>,
  /// It belongs to one thread.
  _not_send: PhantomData<*const ()>,
}

impl Drop for Scope {
  fn drop(&mut self) {
    CURRENT.set(self.outer.take());
  }
}
