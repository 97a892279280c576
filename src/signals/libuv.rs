//! Keeps libuv from removing its signal handlers.
//!
//! libuv installs its handler for the first listener of a signal, and `SIG_DFL` after the last one is
//! removed. We add a permanent listener of our own, in an event loop that never runs, so libuv changes
//! nothing when JavaScript's listeners come and go.

use std::ffi::CStr;
use std::mem::{self, MaybeUninit};
use std::ptr;

use libc::{c_int, c_void, sigaction};

/// `UV_SIGNAL` of libuv's `uv_handle_type`, which is part of its ABI.
const UV_SIGNAL: c_int = 16;

/// A signal that does no harm: its default action is to be ignored.
const HARMLESS: c_int = libc::SIGURG;

type Size = unsafe extern "C" fn() -> usize;
type HandleSize = unsafe extern "C" fn(c_int) -> usize;
type Init = unsafe extern "C" fn(*mut c_void) -> c_int;
type SignalInit = unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int;
type SignalCallback = unsafe extern "C" fn(*mut c_void, c_int);
type SignalStart = unsafe extern "C" fn(*mut c_void, SignalCallback, c_int) -> c_int;
type SignalStop = unsafe extern "C" fn(*mut c_void) -> c_int;

/// An event loop that never runs. What libuv writes to its pipe for each signal fills the pipe, and is
/// dropped after that. Nothing of the loop is ever freed.
struct Loop {
  memory: *mut c_void,
  handle_size: usize,
  signal_init: SignalInit,
  signal_start: SignalStart,
  signal_stop: SignalStop,
}

/// Listens for these signals forever. Returns the address of libuv's handler, or `None` in a program
/// without libuv.
pub fn listen(signals: impl IntoIterator<Item = c_int>) -> Option<usize> {
  let own = Loop::new()?;
  let handler = own.handler()?;
  for signal in signals {
    // If this fails for a signal, libuv installs and removes its handler for it as before.
    own.start(signal);
  }
  Some(handler)
}

impl Loop {
  fn new() -> Option<Self> {
    // SAFETY: these are libuv's functions with the types of its headers.
    let (size, init, handle_size, signal_init, signal_start, signal_stop) = unsafe {
      (
        mem::transmute::<*mut c_void, Size>(symbol(c"uv_loop_size")?),
        mem::transmute::<*mut c_void, Init>(symbol(c"uv_loop_init")?),
        mem::transmute::<*mut c_void, HandleSize>(symbol(c"uv_handle_size")?),
        mem::transmute::<*mut c_void, SignalInit>(symbol(c"uv_signal_init")?),
        mem::transmute::<*mut c_void, SignalStart>(symbol(c"uv_signal_start")?),
        mem::transmute::<*mut c_void, SignalStop>(symbol(c"uv_signal_stop")?),
      )
    };
    // SAFETY: these functions take no pointers, and may be called at any time.
    let (size, handle_size) = unsafe { (size(), handle_size(UV_SIGNAL)) };
    let memory = leak(size);
    // SAFETY: the memory has the size that libuv gave, is aligned for any type, and is never freed.
    let is_made = unsafe { init(memory) } == 0;
    is_made.then_some(Self {
      memory,
      handle_size,
      signal_init,
      signal_start,
      signal_stop,
    })
  }

  /// Starts a listener and returns its handle.
  fn start(&self, signal: c_int) -> Option<*mut c_void> {
    unsafe extern "C" fn ignore(_: *mut c_void, _: c_int) {}
    let handle = leak(self.handle_size);
    // SAFETY: loop and handle are never freed, the handle has the size that libuv gave, and no other
    // thread uses this loop. libuv locks what all loops share.
    let is_started = unsafe {
      (self.signal_init)(self.memory, handle) == 0
        && (self.signal_start)(handle, ignore, signal) == 0
    };
    is_started.then_some(handle)
  }

  /// The address of libuv's handler, which is the same for all signals.
  fn handler(&self) -> Option<usize> {
    let before = current(HARMLESS)?;
    let handle = self.start(HARMLESS)?;
    let handler = current(HARMLESS)?.sa_sigaction;
    // SAFETY: the handle was started and is never freed. `before` was in force until then; it is put
    // back because libuv leaves SIG_DFL if nobody else listens.
    unsafe {
      (self.signal_stop)(handle);
      libc::sigaction(HARMLESS, &before, ptr::null_mut());
    }
    Some(handler)
  }
}

fn symbol(name: &CStr) -> Option<*mut c_void> {
  // SAFETY: the name is a NUL-terminated string.
  let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
  (!found.is_null()).then_some(found)
}

fn current(signal: c_int) -> Option<sigaction> {
  let mut action = MaybeUninit::uninit();
  // SAFETY: a null action changes nothing, and `action` is valid for writes.
  let result = unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) };
  // SAFETY: `sigaction` did not fail, so it has filled `action`.
  (result == 0).then(|| unsafe { action.assume_init() })
}

/// Allocates zeroed memory that is aligned for any type and never freed.
fn leak(bytes: usize) -> *mut c_void {
  let memory = vec![0_u128; bytes.div_ceil(size_of::<u128>())];
  Vec::leak(memory).as_mut_ptr().cast()
}
