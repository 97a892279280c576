//! Keeps a damaged file from aborting the process.
//!
//! The database panics on some kinds of damage, and a panic can be caught. But a destructor that runs during
//! unwinding may panic too, on a lock that the first panic poisoned, and then Rust aborts. So a thread never
//! starts a second panic's unwinding: the panic hook, which runs before unwinding, reports the failure and
//! then parks the thread forever, with everything it holds. That includes the panic hook itself: replacing
//! the hook afterwards blocks forever too.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;
use std::thread;

/// What a thread does on a second panic, instead of unwinding.
struct Containment {
  give_up: Option<Box<dyn FnOnce()>>,
  /// Panics that are not caught yet.
  panics: u32,
}

thread_local! {
  static CONTAINMENT: RefCell<Option<Containment>> = const { RefCell::new(None) };
}

/// Runs `work`. If a panic occurs on this thread while another unwinds, runs `give_up` and does not return.
/// `work` must catch panics with [`catch`]. `give_up` must not panic, and must not need a lock that the
/// thread may hold.
pub fn contained<T>(give_up: impl FnOnce() + 'static, work: impl FnOnce() -> T) -> T {
  static HOOK: Once = Once::new();
  HOOK.call_once(|| {
    let previous = take_hook();
    set_hook(Box::new(move |panic| {
      give_up_if_second();
      previous(panic);
    }));
  });
  CONTAINMENT.set(Some(Containment {
    give_up: Some(Box::new(give_up)),
    panics: 0,
  }));
  let result = work();
  CONTAINMENT.set(None);
  result
}

/// Catches a panic.
pub fn catch<T>(work: impl FnOnce() -> T) -> thread::Result<T> {
  let result = catch_unwind(AssertUnwindSafe(work));
  CONTAINMENT.with_borrow_mut(|containment| {
    if let Some(containment) = containment {
      containment.panics = 0;
    }
  });
  result
}

fn give_up_if_second() {
  let give_up = CONTAINMENT.try_with(|containment| {
    let mut containment = containment.try_borrow_mut().ok()?;
    let containment = containment.as_mut()?;
    containment.panics += 1;
    match containment.panics {
      1 => None,
      _ => containment.give_up.take(),
    }
  });
  if let Ok(Some(give_up)) = give_up {
    give_up();
    loop {
      thread::park();
    }
  }
}

#[cfg(test)]
mod tests {
  use std::sync::mpsc::channel;
  use std::time::Duration;

  use super::*;

  struct PanicsOnDrop;

  impl Drop for PanicsOnDrop {
    fn drop(&mut self) {
      panic!("the second");
    }
  }

  /// The parked thread keeps the panic hook, for which the test harness waits when it ends, so this runs in a
  /// child process.
  #[test]
  fn a_thread_that_panics_while_unwinding_gives_up_and_the_process_survives() {
    const CHILD: &str = "EXTISM_HOST_TEST_CONTAINMENT";
    if std::env::var_os(CHILD).is_some() {
      std::process::exit(i32::from(!gives_up()));
    }
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    let child = std::process::Command::new(std::env::current_exe().unwrap())
      .args(["--exact", &name])
      .env(CHILD, "1")
      .output()
      .unwrap();
    assert!(child.status.success(), "{child:?}");
  }

  fn gives_up() -> bool {
    let (sender, receiver) = channel();
    thread::spawn(move || {
      let given_up = sender.clone();
      contained(
        move || given_up.send("given up").unwrap(),
        || {
          // Two panics in sequence are not a panic during unwinding.
          drop(catch(|| panic!("the first")));
          drop(catch(|| panic!("another")));
          sender.send("caught").unwrap();
          drop(catch(|| {
            let _guard = PanicsOnDrop;
            panic!("the first");
          }));
          sender.send("survived").unwrap();
        },
      );
    });
    let next = |wait| receiver.recv_timeout(Duration::from_millis(wait));
    next(10_000) == Ok("caught") && next(10_000) == Ok("given up") && next(50).is_err()
  }
}
