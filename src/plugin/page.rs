//! Opens and closes interrupt pages.

use std::ptr::NonNull;

/// How much of the interrupt memory is closed. The checks load its first byte.
#[cfg(unix)]
const CLOSED: usize = 4096;

/// The address of an interrupt page.
pub struct PageAddress(NonNull<u8>);

// SAFETY: it is only passed to `mprotect`, which any thread may call, under the lock of the `InterruptPage`
// that contains it.
unsafe impl Send for PageAddress {}

impl PageAddress {
  /// `address` must be the interrupt memory of an instance, until
  /// [`Interrupt::disarm`](super::interrupt::Interrupt::disarm).
  pub fn new(address: NonNull<u8>) -> Self {
    Self(address)
  }
}

/// Opens or closes a page. Returns whether that succeeded.
#[cfg(unix)]
pub fn protect(address: &PageAddress, is_open: bool) -> bool {
  use rustix::mm::{MprotectFlags, mprotect};

  let flags = match is_open {
    true => MprotectFlags::READ | MprotectFlags::WRITE,
    false => MprotectFlags::empty(),
  };
  // SAFETY: the address is that of the interrupt memory of an instance that exists: `disarm` removes it under
  // the lock that we hold, before the memory is freed. Only the checks in the instance's own code access the
  // page, and Wasmtime turns their faults into traps; the host never touches it. The memory cannot move or
  // shrink, because its maximum is one page.
  unsafe { mprotect(address.0.as_ptr().cast(), CLOSED, flags) }.is_ok()
}

#[cfg(not(unix))]
pub fn protect(_: &PageAddress, _: bool) -> bool {
  false
}
