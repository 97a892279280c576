//! How a host function that waits learns that nobody waits for it any more.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Whether the call that a host function is part of has been interrupted: its time is over, its
/// caller has given it up, or the plugin is going away. There is one for each instance, which takes no
/// further call after that.
///
/// A host function that waits has it [`watch`](Self::watch)ed and returns when it is canceled. One that
/// does not costs its plugin a thread until it returns by itself.
#[derive(Default)]
pub struct Interruption(Mutex<State>);

#[derive(Default)]
struct State {
  is_canceled: bool,
  /// A thread waits for one thing at a time.
  wake: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl Interruption {
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

  /// Calls `wake` when it is canceled, on the thread that cancels, or at once where it has; not any more
  /// once what is returned has been dropped. `wake` should do no more than to wake who waits: the
  /// plugin may be locked.
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

  fn lock(&self) -> MutexGuard<'_, State> {
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
