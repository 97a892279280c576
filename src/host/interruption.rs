//! How a host function that waits learns that nobody waits for it any more.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Whether the call that a host function is part of has been interrupted: its time is over, its
/// caller has given it up, or the plugin is going away. There is one for each instance, which takes no
/// further call after that.
///
/// A host function that waits has it [`watch`](Self::watch)ed and returns when it strikes. One that
/// does not costs its plugin a thread until it returns by itself.
#[derive(Default)]
pub struct Interruption(Mutex<State>);

#[derive(Default)]
struct State {
  has_struck: bool,
  /// A thread waits for one thing at a time.
  wake: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl Interruption {
  /// Interrupts. Any thread.
  pub fn strike(&self) {
    let mut state = self.lock();
    state.has_struck = true;
    let wake = state.wake.take();
    drop(state);
    if let Some(wake) = wake {
      wake();
    }
  }

  /// Whether it has struck.
  pub fn has_struck(&self) -> bool {
    self.lock().has_struck
  }

  /// Calls `wake` when it strikes, on the thread that strikes, or at once where it has; not any more
  /// once what is returned has been dropped. `wake` should do no more than to wake who waits: the
  /// plugin may be locked.
  pub fn watch(&self, wake: impl Fn() + Send + Sync + 'static) -> Watch<'_> {
    let mut state = self.lock();
    if state.has_struck {
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
