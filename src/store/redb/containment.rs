//! Keeps a damaged file from ending the process.
//!
//! The database panics over some of what it finds, and a panic can be caught. But a destructor that runs while the
//! stack unwinds may panic too, over a lock that the first panic has poisoned, and then Rust aborts. So a thread
//! does not survive a second panic: the panic hook, which comes before any unwinding, has it say what must be
//! said, and then it sleeps forever, with all that it holds. That includes the panic hook: whoever wants to replace it
//! afterwards waits forever, too.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;
use std::thread;

/// What a thread does instead of unwinding a second time.
struct Containment {
  give_up: Option<Box<dyn FnOnce()>>,
  /// Panics that have not been caught yet.
  panics: u32,
}

thread_local! {
  static CONTAINMENT: RefCell<Option<Containment>> = const { RefCell::new(None) };
}

/// Does something in which a panic while another unwinds, on this thread, runs `give_up` and does not return.
/// Panics must be caught by [`catch`]. `give_up` must neither panic nor need a lock that the thread may hold.
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

  /// The thread keeps the panic hook, and the test harness waits for that at its end: so this is a process of its own.
  #[test]
  fn a_thread_that_panics_while_it_unwinds_gives_up_and_the_process_goes_on() {
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
          // One after the other is not one while the other unwinds.
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
