//! Opens and closes interrupt pages.

use std::ptr::NonNull;

/// How much of the interrupt memory is closed: the load reads its first byte.
#[cfg(unix)]
const CLOSED: usize = 4096;

/// The address of an interrupt page.
pub struct Address(NonNull<u8>);

// SAFETY: it is only ever handed to `mprotect`, which any thread may call, under the lock of the `Page`
// that it is in.
unsafe impl Send for Address {}

impl Address {
  /// Of the interrupt memory of an instance, until [`Interrupt::disarm`](super::interrupt::Interrupt::disarm).
  pub fn new(address: NonNull<u8>) -> Self {
    Self(address)
  }
}

/// Opens or closes a page; whether that could be done.
#[cfg(unix)]
pub fn protect(address: &Address, is_open: bool) -> bool {
  use rustix::mm::{MprotectFlags, mprotect};

  let flags = match is_open {
    true => MprotectFlags::READ | MprotectFlags::WRITE,
    false => MprotectFlags::empty(),
  };
  // SAFETY: the address is that of the interrupt memory of an instance that exists: `disarm` forgets it
  // under the lock that we hold, before the memory is given back. Nobody reads or writes the page but
  // the checks in the instance's own code, of which Wasmtime makes a trap; the host never touches it,
  // and the memory cannot move or shrink, as its maximum is one page.
  unsafe { mprotect(address.0.as_ptr().cast(), CLOSED, flags) }.is_ok()
}

#[cfg(not(unix))]
pub fn protect(_: &Address, _: bool) -> bool {
  false
}
