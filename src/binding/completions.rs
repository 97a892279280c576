//! The way back to the event loop: finished calls gather in a list, and the loop is woken once for
//! all that are there when it gets to them.

use std::cell::Cell;
use std::sync::{Arc, Mutex, PoisonError};

use napi::bindgen_prelude::{Array, ArrayBuffer, Function};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi::{Env, Status};
use napi_derive::napi;

use super::silence_panics;
use crate::Result;

/// Calls a JavaScript function without arguments; weak, so that it alone keeps no process alive.
type Wake = ThreadsafeFunction<(), (), (), Status, false, true>;

/// Finished calls that JavaScript has not seen yet.
pub struct Finished {
  /// The calls in the order in which they ended. The event loop has been woken for them if and
  /// only if there are any, so only the one who adds the first wakes it.
  list: Mutex<Vec<(f64, Result<Vec<u8>>)>>,
  wake: Wake,
}

impl Finished {
  /// Adds the result of the call that JavaScript numbered `call`. Any thread.
  pub fn push(&self, call: f64, result: Result<Vec<u8>>) {
    let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
    list.push((call, result));
    let is_first = list.len() == 1;
    drop(list);
    if is_first {
      // Fails only when the environment is going away, and nobody waits any more.
      self.wake.call((), ThreadsafeFunctionCallMode::NonBlocking);
    }
  }
}

/// One JavaScript thread's end of the way back.
#[napi]
pub struct Completions {
  finished: Arc<Finished>,
  /// Whether `finished.wake` keeps the process alive.
  ///
  /// In a cell: napi takes `&mut self` for a borrow that excludes all others, and `open_plugin` borrows
  /// this for as long as a plugin is being opened.
  is_referenced: Cell<bool>,
}

#[napi]
impl Completions {
  /// `settle` is called, on this thread, when `take` has something to give.
  #[napi(constructor, catch_unwind)]
  pub fn new(settle: Function<'_, (), ()>) -> napi::Result<Self> {
    silence_panics();
    let wake = settle
      .build_threadsafe_function::<()>()
      .callee_handled::<false>()
      .weak::<true>()
      .build()?;
    Ok(Self {
      finished: Arc::new(Finished {
        list: Mutex::default(),
        wake,
      }),
      is_referenced: Cell::new(false),
    })
  }

  /// Takes all finished calls as a flat list of three items each: the call's number; the error's
  /// code, or `null`; the output as an ArrayBuffer (`null` where it is empty), or the error's
  /// message.
  #[napi(catch_unwind, ts_return_type = "unknown[]")]
  pub fn take<'env>(&self, env: &'env Env) -> napi::Result<Array<'env>> {
    let list = std::mem::take(
      &mut *self
        .finished
        .list
        .lock()
        .unwrap_or_else(PoisonError::into_inner),
    );
    let mut items = env.create_array(list.len() as u32 * 3)?;
    for (position, (call, result)) in list.into_iter().enumerate() {
      let index = position as u32 * 3;
      items.set(index, call)?;
      match result {
        Ok(output) => {
          items.set(index + 1, napi::bindgen_prelude::Null)?;
          match output.is_empty() {
            true => items.set(index + 2, napi::bindgen_prelude::Null)?,
            false => items.set(index + 2, ArrayBuffer::copy_from(env, output)?)?,
          }
        }
        Err(error) => {
          items.set(index + 1, error.code.as_str())?;
          items.set(index + 2, error.message)?;
        }
      }
    }
    Ok(items)
  }

  /// Keeps the process alive, or lets it go. `index.js` calls it when the first call starts to
  /// wait and when the last has been settled.
  #[napi(catch_unwind)]
  pub fn keep_alive(&self, env: Env, alive: bool) -> napi::Result<()> {
    if alive == self.is_referenced.get() {
      return Ok(());
    }
    let raw = self.finished.wake.raw();
    // SAFETY: this is the thread of `env`, which made the function (`Completions` is a JavaScript
    // object of it), and `finished` holds a reference to the function, so it has not been freed.
    let status = unsafe {
      match alive {
        true => napi::sys::napi_ref_threadsafe_function(env.raw(), raw),
        false => napi::sys::napi_unref_threadsafe_function(env.raw(), raw),
      }
    };
    napi::check_status!(status)?;
    self.is_referenced.set(alive);
    Ok(())
  }
}

impl Completions {
  /// The end that worker threads push to.
  pub fn finished(&self) -> Arc<Finished> {
    Arc::clone(&self.finished)
  }
}
