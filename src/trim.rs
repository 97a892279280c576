//! Returns memory to the operating system after a burst of large calls.
//!
//! glibc keeps the memory of freed large buffers, Node's and ours: 600 MB after 600 calls with 1 MB each. Its
//! `malloc_trim` returns all of it in about 50 ms. Another allocator for this library would leave Node's
//! half, and mimalloc's thread-local storage does not fit into a library that is loaded at run time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Delays before the two trims: the first comes soon, the second after JavaScript has had time to collect the
/// outputs. A burst during these delays does not schedule another trim.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(9)];

static IS_PENDING: AtomicBool = AtomicBool::new(false);

/// Schedules the trims on a new thread.
pub fn schedule() {
  if !cfg!(all(target_os = "linux", target_env = "gnu")) || IS_PENDING.swap(true, Ordering::Relaxed)
  {
    return;
  }
  let trim = || {
    for pause in PAUSES {
      thread::sleep(pause);
      trim();
    }
    IS_PENDING.store(false, Ordering::Relaxed);
  };
  let started = thread::Builder::new()
    .name("extism-trim".to_owned())
    .spawn(trim);
  if started.is_err() {
    IS_PENDING.store(false, Ordering::Relaxed);
  }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn trim() {
  // SAFETY: `malloc_trim` takes glibc's own locks, and touches only memory that is free.
  unsafe {
    libc::malloc_trim(0);
  }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn trim() {}
