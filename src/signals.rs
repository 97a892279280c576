//! Makes sure that a guest's trap stays an error, whatever signal handlers the program adds or removes.
//!
//! Wasmtime turns SIGSEGV, SIGILL and SIGFPE from compiled code into traps. The program can displace
//! Wasmtime's handlers: `process.on('SIGSEGV')` installs libuv's handler, which chains to nobody, and
//! removing that listener leaves `SIG_DFL`. So we put a handler of our own in front, which decides:
//!
//! * a fault on a thread that is inside a guest goes to Wasmtime;
//! * anything else, and any fault that Wasmtime declines, goes to the handler that ours displaced.
//!
//! # How to use it
//!
//! Call [`ensure_installed`] before the first [`wasmtime::Engine`] of the process, on the JavaScript
//! thread if possible, then after each change of a listener and whenever an instance starts. Hold an
//! [`enter_guest`] scope around every call that can run compiled code: calling a function or
//! instantiating a module. Do not hold it across an `await`.
//!
//! Host functions need no special care: Wasmtime inspects the program counter and declines faults outside
//! compiled code, and our handler passes those on.
//!
//! # Listeners that come and go
//!
//! libuv would install `SIG_DFL` when the last listener of a signal is removed, and a trap before our
//! handler is back would end the process. So [`listeners_changed`] first makes libuv keep its handler
//! permanently (`libuv`), behind ours. A signal that is not for Wasmtime goes to libuv's handler only
//! while JavaScript has listeners, and otherwise to the handler that libuv's displaced.
//!
//! # Limitations
//!
//! From the moment another handler is installed until ours is back, a trap goes to that handler. A
//! handler that returns only delays the trap. If native code installs `SIG_DFL`, a trap before the next
//! instance starts ends the process. A listener that native code adds to libuv itself receives these
//! signals only while JavaScript has listeners too.
//!
//! # Why there are layers
//!
//! A crash reporter that displaces our handler remembers it as "the previous one" and calls it for
//! signals that it does not handle itself. If that same handler then chained to the reporter, the two
//! would call each other forever. So each handler found in front of ours is covered by a *layer*: a new
//! entry point that chains to it, while the older entry points keep chaining to what they displaced.

#[cfg(unix)]
mod libuv;

#[cfg(unix)]
pub use unix::{GuestScope, ensure_installed, enter_guest, listeners_changed};

#[cfg(not(unix))]
pub use elsewhere::{GuestScope, ensure_installed, enter_guest, listeners_changed};

/// Other systems report faults in another way, which signal handlers do not affect.
#[cfg(not(unix))]
mod elsewhere {
  use std::marker::PhantomData;

  /// Does nothing on this system.
  #[must_use = "the scope ends when this is dropped"]
  pub struct GuestScope(PhantomData<*const ()>);

  /// Does nothing on this system.
  pub fn ensure_installed() {}

  /// Does nothing on this system.
  pub fn listeners_changed(_: &[String]) {}

  /// Does nothing on this system.
  #[inline]
  pub fn enter_guest() -> GuestScope {
    GuestScope(PhantomData)
  }
}

#[cfg(unix)]
mod unix {
  use std::marker::PhantomData;
  use std::mem::{self, MaybeUninit};
  use std::ptr;
  use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
  use std::sync::{Mutex, PoisonError};

  use libc::{c_int, c_void, sigaction, siginfo_t};
  use wasmtime::{Config, Engine};

  use super::libuv;

  type Handler = unsafe extern "C" fn(c_int, *mut siginfo_t, *mut c_void);
  type PlainHandler = unsafe extern "C" fn(c_int);

  /// How many foreign handlers can be stacked in front of ours per signal.
  const LAYERS: usize = 8;

  /// One entry point per layer. Their addresses differ because each has another const parameter.
  static ENTRY_POINTS: [Handler; LAYERS] = [
    on_signal::<0>,
    on_signal::<1>,
    on_signal::<2>,
    on_signal::<3>,
    on_signal::<4>,
    on_signal::<5>,
    on_signal::<6>,
    on_signal::<7>,
  ];

  /// The flags with which Wasmtime installs its handlers.
  const RUNTIME_FLAGS: c_int = libc::SA_SIGINFO | libc::SA_NODEFER | libc::SA_ONSTACK;

  /// SA_RESTART because libuv sets it: interrupted system calls restart. No SA_NODEFER, so that a flood
  /// of external signals cannot pile up on the signal stack; a fault in a handler ends the process with
  /// or without it.
  const OUR_FLAGS: c_int = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;

  static SEGV: WatchedSignal = WatchedSignal::new(libc::SIGSEGV, "SIGSEGV");
  static ILL: WatchedSignal = WatchedSignal::new(libc::SIGILL, "SIGILL");
  static FPE: WatchedSignal = WatchedSignal::new(libc::SIGFPE, "SIGFPE");
  static BUS: WatchedSignal = WatchedSignal::new(libc::SIGBUS, "SIGBUS");
  static WATCHED: [&WatchedSignal; 4] = [&SEGV, &ILL, &FPE, &BUS];

  /// `SIG_DFL`, as an action to chain to.
  static DEFAULT: sigaction = {
    // SAFETY: all fields are integers, arrays of integers or an optional function, and zero is a valid
    // value for each. A zero handler is SIG_DFL.
    unsafe { mem::zeroed() }
  };

  /// The address of libuv's handler, if it stays installed permanently; else 0.
  static LIBUV: AtomicUsize = AtomicUsize::new(0);

  /// Whether the first installation has completed. Handlers never take this lock.
  static IS_PREPARED: Mutex<bool> = Mutex::new(false);

  /// Installs our handlers in front for the signals that Wasmtime uses, unless they are there already.
  ///
  /// Costs one system call per signal when nothing has changed. The first call creates a
  /// [`wasmtime::Engine`], which makes Wasmtime install its handlers, once per process. It must come
  /// before any other engine, so that faults that Wasmtime declines come back to us. The engines of the
  /// process must leave `Config::macos_use_mach_ports` at its default: with Mach ports no signals are
  /// involved, and this does nothing.
  pub fn ensure_installed() {
    let mut is_prepared = IS_PREPARED.lock().unwrap_or_else(PoisonError::into_inner);
    if !*is_prepared {
      *is_prepared = prepare();
    }
    for watched in WATCHED {
      watched.reinstall();
    }
  }

  /// Records for which signals JavaScript has listeners now, and installs our handlers in front, as
  /// [`ensure_installed`] does. Only JavaScript's main thread may call it.
  pub fn listeners_changed(listened: &[String]) {
    static IS_KEPT: AtomicBool = AtomicBool::new(false);
    // Another thread may be creating the first engine.
    let preparing = IS_PREPARED.lock().unwrap_or_else(PoisonError::into_inner);
    for watched in WATCHED {
      let is_listened = listened.iter().any(|name| name == watched.name);
      watched.is_listened.store(is_listened, Ordering::Release);
    }
    if !IS_KEPT.swap(true, Ordering::AcqRel) {
      let found = WATCHED.map(|watched| watched.current());
      let handler = libuv::listen(WATCHED.map(|watched| watched.signal));
      for (watched, found) in WATCHED.into_iter().zip(found) {
        let found = found.map(|found| watched.action_behind(found));
        // If JavaScript has listeners already, libuv would leave the default action.
        if let Some(found) = found.filter(|found| Some(found.sa_sigaction) != handler) {
          watched.before_libuv.store(leak(found), Ordering::Release);
        }
      }
      // From now on `chained` treats libuv's handler specially.
      LIBUV.store(handler.unwrap_or(0), Ordering::Release);
    }
    drop(preparing);
    ensure_installed();
  }

  /// Marks this thread as inside a guest until the returned scope is dropped. Scopes nest.
  #[inline]
  pub fn enter_guest() -> GuestScope {
    GuestScope::new(IN_GUEST)
  }

  /// Restores the thread's previous state when dropped. Scopes must be dropped in reverse order of
  /// creation.
  #[must_use = "the scope ends when this is dropped"]
  pub struct GuestScope {
    outer: usize,
    // The mark belongs to one thread.
    _not_send: PhantomData<*const ()>,
  }

  impl GuestScope {
    #[inline]
    fn new(state: usize) -> Self {
      let outer = thread_state();
      set_thread_state(state);
      GuestScope {
        outer,
        _not_send: PhantomData,
      }
    }
  }

  impl Drop for GuestScope {
    #[inline]
    fn drop(&mut self) {
      set_thread_state(self.outer);
    }
  }

  // The state of a thread. A pthread key and not `thread_local!`: in a library that was loaded at run
  // time, the first access to the latter allocates, and a handler may run on any thread. Reading a key
  // never allocates (POSIX does not promise that, but glibc, musl and the BSDs behave so), and writing
  // allocates at most the first time on a thread, which `enter_guest` does.
  const OUTSIDE: usize = 0;
  const IN_GUEST: usize = 1;
  /// Inside a guest, while Wasmtime's handler inspects a fault.
  const IN_RUNTIME_HANDLER: usize = 2;
  /// Inside a guest, after Wasmtime's handler has declined the fault.
  const DECLINED: usize = 3;

  /// The key plus one; 0 until it exists.
  static KEY: AtomicUsize = AtomicUsize::new(0);

  #[inline]
  fn key() -> Option<libc::pthread_key_t> {
    let key = KEY.load(Ordering::Relaxed).checked_sub(1)?;
    Some(key as libc::pthread_key_t)
  }

  #[inline]
  fn thread_state() -> usize {
    let Some(key) = key() else { return OUTSIDE };
    // SAFETY: the key was created and is never deleted.
    unsafe { libc::pthread_getspecific(key) }.addr()
  }

  #[inline]
  fn set_thread_state(state: usize) {
    if let Some(key) = key() {
      // SAFETY: the key was created and is never deleted. The value is a number that is never
      // dereferenced: the key has no destructor.
      unsafe { libc::pthread_setspecific(key, ptr::without_provenance(state)) };
    }
  }

  fn create_key() -> bool {
    if key().is_some() {
      return true;
    }
    let mut key = 0;
    // SAFETY: `key` is valid for writes, and without a destructor no code runs later.
    let is_created = unsafe { libc::pthread_key_create(&mut key, None) } == 0;
    if is_created {
      KEY.store(key as usize + 1, Ordering::Relaxed);
    }
    is_created
  }

  /// Keeps this library loaded until the process ends. Node unloads an addon when the worker thread that
  /// loaded it ends, but a handler's code must stay in memory.
  fn pin_library() {
    #[cfg(any(all(target_os = "linux", target_env = "gnu"), target_vendor = "apple"))]
    {
      let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
      // SAFETY: `info` is valid for writes, and the address is only looked up.
      let is_known =
        unsafe { libc::dladdr(address(on_signal::<0>) as *const c_void, info.as_mut_ptr()) } != 0;
      // SAFETY: all fields are integers and pointers, and it was zeroed, which is a valid value for each.
      let name = unsafe { info.assume_init() }.dli_fname;
      if is_known && !name.is_null() {
        // SAFETY: the name is a string of the loader's that lives while this library is loaded. With
        // RTLD_NOLOAD nothing is loaded and so no initialiser runs. The handle is never closed.
        unsafe {
          libc::dlopen(
            name,
            libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE,
          )
        };
      }
    }
  }

  fn address(handler: Handler) -> usize {
    handler as usize
  }

  /// Installs the handlers for the first time. Returns false if that failed and must be tried again; then
  /// it has changed nothing.
  fn prepare() -> bool {
    if !create_key() {
      return false;
    }
    pin_library();
    // Wasmtime must displace `on_declined`, so that faults it declines come back to us.
    let found = WATCHED.map(|watched| watched.install_first(on_declined));
    let is_installed = install_runtime_handlers();
    for (watched, found) in WATCHED.into_iter().zip(found) {
      if let Some(found) = found {
        watched.cover_runtime(&found);
      }
    }
    // Never install twice over our own handlers, even if the engine failed after Wasmtime installed its
    // own.
    is_installed || WATCHED.iter().any(|watched| watched.is_covered())
  }

  /// Makes Wasmtime install its handlers, unless it has done so already.
  fn install_runtime_handlers() -> bool {
    let mut config = Config::new();
    // An engine without a compiler is cheaper.
    config.enable_compiler(false);
    Engine::new(&config).is_ok()
  }

  /// A signal and the handlers that it may be passed to.
  struct WatchedSignal {
    signal: c_int,
    name: &'static str,
    /// Whether JavaScript has listeners. Assumed until `listeners_changed` reports it.
    is_listened: AtomicBool,
    /// What libuv's handler displaced; null for SIG_DFL. Never freed.
    before_libuv: AtomicPtr<sigaction>,
    /// Wasmtime's action; null if Wasmtime does not use the signal. Never freed.
    runtime: AtomicPtr<sigaction>,
    /// The action that each layer displaced; null if the layer is unused. Never freed: a handler may read
    /// it at any time.
    displaced: [AtomicPtr<sigaction>; LAYERS],
  }

  impl WatchedSignal {
    const fn new(signal: c_int, name: &'static str) -> Self {
      WatchedSignal {
        signal,
        name,
        is_listened: AtomicBool::new(true),
        before_libuv: AtomicPtr::new(ptr::null_mut()),
        runtime: AtomicPtr::new(ptr::null_mut()),
        displaced: [const { AtomicPtr::new(ptr::null_mut()) }; LAYERS],
      }
    }

    fn of(signal: c_int) -> Option<&'static Self> {
      match signal {
        libc::SIGSEGV => Some(&SEGV),
        libc::SIGILL => Some(&ILL),
        libc::SIGFPE => Some(&FPE),
        libc::SIGBUS => Some(&BUS),
        _ => None,
      }
    }

    fn current(&self) -> Option<sigaction> {
      let mut action = MaybeUninit::uninit();
      // SAFETY: a null action changes nothing, and `action` is valid for writes.
      let result = unsafe { libc::sigaction(self.signal, ptr::null(), action.as_mut_ptr()) };
      // SAFETY: `sigaction` did not fail, so it has filled `action`.
      (result == 0).then(|| unsafe { action.assume_init() })
    }

    /// Installs `action` and returns the previous one.
    ///
    /// # Safety
    ///
    /// The action must have been in force before, or its handler must be one of ours.
    unsafe fn exchange(&self, action: &sigaction) -> Option<sigaction> {
      let mut before = MaybeUninit::uninit();
      // SAFETY: both point to actions; the caller vouches for the new handler.
      let result = unsafe { libc::sigaction(self.signal, action, before.as_mut_ptr()) };
      // SAFETY: `sigaction` did not fail, so it has filled `before`.
      (result == 0).then(|| unsafe { before.assume_init() })
    }

    /// Installs one of our handlers and returns the previous action.
    fn install(&self, handler: Handler) -> Option<sigaction> {
      let mut action = DEFAULT;
      action.sa_sigaction = address(handler);
      action.sa_flags = OUR_FLAGS;
      // SAFETY: the mask is valid for writes.
      unsafe { libc::sigemptyset(&mut action.sa_mask) };
      // SAFETY: the handler is one of ours, has the signature that SA_SIGINFO asks for, and stays
      // loaded: see `pin_library`.
      unsafe { self.exchange(&action) }
    }

    /// Installs `handler` with layer 0 below it, and returns the action that layer 0 displaced.
    fn install_first(&self, handler: Handler) -> Option<sigaction> {
      // Stored before the handler is installed, because it may be called at once.
      self.displaced[0].store(leak(self.current()?), Ordering::Release);
      let found = self.install(handler)?;
      self.displaced[0].store(leak(found), Ordering::Release);
      Some(found)
    }

    /// Covers Wasmtime's handler with layer 0, if Wasmtime has just installed it; else puts `found` back.
    fn cover_runtime(&self, found: &sigaction) {
      let Some(current) = self.current() else {
        return;
      };
      let runtime = if current.sa_sigaction == address(on_declined) {
        // Wasmtime does not use this signal, or it had installed its handlers before. In the second case
        // we have just displaced them, and what Wasmtime declines does not come back to us. If `found` is
        // in fact another handler with the same flags, no harm is done: layer 0 chains to it all the
        // same.
        // SAFETY: it was in force before.
        unsafe { self.exchange(found) };
        found
      } else {
        &current
      };
      if is_runtime(runtime) {
        self.runtime.store(leak(*runtime), Ordering::Release);
        self.install(on_signal::<0>);
      }
    }

    fn is_covered(&self) -> bool {
      !self.runtime.load(Ordering::Acquire).is_null()
    }

    fn reinstall(&self) {
      let runtime = self.runtime.load(Ordering::Acquire);
      if runtime.is_null() {
        return;
      }
      let Some(mut found) = self.current() else {
        return;
      };
      // Another thread can install a handler between our check and our installation, so the action that
      // was actually displaced decides whether the layer is right.
      for _ in 0..LAYERS {
        if is_ours(&found) {
          return;
        }
        // SAFETY: it was leaked.
        let layer = if is_same(&found, unsafe { &*runtime }) {
          0
        } else {
          self.layer_over(found)
        };
        let Some(displaced) = self.install(ENTRY_POINTS[layer]) else {
          return;
        };
        if is_same(&displaced, &found) {
          return;
        }
        found = displaced;
      }
    }

    /// The action that `action` chains to if it is one of ours; else `action` itself.
    fn action_behind(&self, action: sigaction) -> sigaction {
      let matches = |entry_point: &Handler| address(*entry_point) == action.sa_sigaction;
      let layer = ENTRY_POINTS.iter().position(matches);
      let displaced = layer.map(|layer| self.displaced[layer].load(Ordering::Acquire));
      displaced.map_or(action, |displaced| {
        // SAFETY: it was leaked, is static, or is null.
        unsafe { displaced.as_ref() }.map_or(DEFAULT, |displaced| *displaced)
      })
    }

    /// The slot of the action that a layer chains to now. Runs in a handler.
    fn chained(&self, layer: usize) -> &AtomicPtr<sigaction> {
      let displaced = &self.displaced[layer];
      // SAFETY: it was leaked, is static, or is null.
      let action = unsafe { displaced.load(Ordering::Acquire).as_ref() };
      let libuv = LIBUV.load(Ordering::Acquire);
      let is_libuv = libuv != 0 && action.is_some_and(|action| action.sa_sigaction == libuv);
      match is_libuv && !self.is_listened.load(Ordering::Acquire) {
        true => &self.before_libuv,
        false => displaced,
      }
    }

    /// The layer that chains to `action`: an existing one, or a new one.
    fn layer_over(&self, action: sigaction) -> usize {
      let chains_to = |displaced: &AtomicPtr<sigaction>| {
        let displaced = displaced.load(Ordering::Acquire);
        // SAFETY: it was leaked or is static.
        !displaced.is_null() && is_same(unsafe { &*displaced }, &action)
      };
      let existing = self.displaced.iter().position(chains_to);
      // Without SA_SIGINFO it cannot chain to ours, which needs all three arguments. So libuv's handler
      // and SIG_DFL, which come and go, need only one layer each.
      if let Some(layer) = existing
        && action.sa_flags & libc::SA_SIGINFO == 0
      {
        return layer;
      }
      // It may chain to the layer that was in front when it was installed, so it needs a new layer above.
      let free = self
        .displaced
        .iter()
        .position(|displaced| displaced.load(Ordering::Acquire).is_null());
      let layer = match (free, existing) {
        (Some(free), _) => free,
        (None, Some(existing)) => return existing,
        (None, None) => LAYERS - 1,
      };
      self.displaced[layer].store(leak(action), Ordering::Release);
      layer
    }
  }

  fn leak(action: sigaction) -> *mut sigaction {
    Box::into_raw(Box::new(action))
  }

  fn is_same(one: &sigaction, other: &sigaction) -> bool {
    one.sa_sigaction == other.sa_sigaction && one.sa_flags == other.sa_flags
  }

  fn is_ours(action: &sigaction) -> bool {
    ENTRY_POINTS
      .iter()
      .any(|&entry_point| address(entry_point) == action.sa_sigaction)
  }

  fn is_runtime(action: &sigaction) -> bool {
    let flags = libc::SA_SIGINFO
      | libc::SA_NODEFER
      | libc::SA_ONSTACK
      | libc::SA_RESTART
      | libc::SA_RESETHAND;
    action.sa_flags & flags == RUNTIME_FLAGS && !is_ours(action)
  }

  // The functions from here on run in a handler. They must not allocate, lock or panic.

  /// # Safety
  ///
  /// Must be called by the kernel, or by a handler that passes on the arguments it got from the kernel.
  unsafe extern "C" fn on_signal<const LAYER: usize>(
    signal: c_int,
    info: *mut siginfo_t,
    context: *mut c_void,
  ) {
    // SAFETY: the caller keeps this function's contract, which is the same.
    unsafe { dispatch(LAYER, signal, info, context) }
  }

  /// # Safety
  ///
  /// As for [`on_signal`].
  unsafe fn dispatch(layer: usize, signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let Some(watched) = WatchedSignal::of(signal) else {
      return;
    };
    let runtime = watched.runtime.load(Ordering::Acquire);
    // SAFETY: the caller vouches for `info`.
    if !runtime.is_null() && thread_state() == IN_GUEST && unsafe { is_fault(info) } {
      set_thread_state(IN_RUNTIME_HANDLER);
      // SAFETY: `runtime` was leaked, and its handler takes the kernel's arguments, which these are.
      // Wasmtime's handler returns after it has turned the fault into a trap (then the context leads back
      // to where the guest was called), or after the handler that it displaced has returned.
      unsafe { call(&*runtime, signal, info, context) };
      let has_declined = thread_state() == DECLINED;
      set_thread_state(IN_GUEST);
      if !has_declined {
        return;
      }
    }
    // SAFETY: the caller keeps this function's contract, which is the same.
    unsafe { chain(watched, layer, signal, info, context) }
  }

  /// Wasmtime calls this for a fault outside compiled code.
  ///
  /// # Safety
  ///
  /// As for [`on_signal`].
  unsafe extern "C" fn on_declined(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    if thread_state() == IN_RUNTIME_HANDLER {
      // `dispatch` called Wasmtime's handler, and knows which layer to chain to.
      set_thread_state(DECLINED);
    } else if let Some(watched) = WatchedSignal::of(signal) {
      // SAFETY: the caller keeps this function's contract, which is the same.
      unsafe { chain(watched, 0, signal, info, context) }
    }
  }

  /// Whether the signal reports a processor fault of this thread; false if somebody sent it.
  ///
  /// # Safety
  ///
  /// `info` must be what the kernel passed to a handler, or null.
  unsafe fn is_fault(info: *const siginfo_t) -> bool {
    // SAFETY: the caller vouches for it.
    let code = unsafe { info.as_ref() }.map_or(0, |info| info.si_code);
    // Codes of sent signals: 0 and below on Linux; on other systems also SI_USER (0x10001) and above.
    code > 0 && (cfg!(any(target_os = "linux", target_os = "android")) || code < 0x10001)
  }

  /// Does what would have happened if that layer had never displaced its action, and if libuv installed
  /// and removed its handler as usual.
  ///
  /// # Safety
  ///
  /// As for [`on_signal`].
  unsafe fn chain(
    watched: &WatchedSignal,
    layer: usize,
    signal: c_int,
    info: *mut siginfo_t,
    context: *mut c_void,
  ) {
    let displaced = watched.chained(layer);
    let action = displaced.load(Ordering::Acquire);
    // SAFETY: it was leaked, is static, or is null.
    let action = unsafe { action.as_ref() }.unwrap_or(&DEFAULT);
    // SAFETY: the caller vouches for `info`.
    let is_fault = unsafe { is_fault(info) };
    match action.sa_sigaction {
      // The kernel does not let a process ignore a fault.
      libc::SIG_IGN if !is_fault => {}
      libc::SIG_IGN | libc::SIG_DFL => {
        // SAFETY: the default action needs no handler.
        unsafe { libc::sigaction(signal, &DEFAULT, ptr::null_mut()) };
        if !is_fault {
          // SAFETY: no memory is involved.
          unsafe { libc::raise(signal) };
        }
        // When the handler returns, the raised signal arrives, or the fault occurs again.
      }
      _ => {
        if action.sa_flags & libc::SA_RESETHAND != 0 {
          displaced.store((&raw const DEFAULT).cast_mut(), Ordering::Release);
        }
        // Mask signals as the kernel would. libuv's handler takes a lock, so no other signal may
        // interrupt it.
        let mut before = MaybeUninit::uninit();
        // SAFETY: the mask is valid for reads, `before` for writes; it is read only if it was filled.
        let is_masked =
          unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &action.sa_mask, before.as_mut_ptr()) }
            == 0;
        if action.sa_flags & libc::SA_NODEFER != 0 {
          unblock(signal);
        }
        // SAFETY: this action was in force and is neither SIG_DFL nor SIG_IGN, and the arguments are the
        // kernel's.
        unsafe { call(action, signal, info, context) };
        if is_masked {
          // SAFETY: `pthread_sigmask` has filled `before`.
          unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut()) };
        }
      }
    }
  }

  fn unblock(signal: c_int) {
    let mut only = MaybeUninit::uninit();
    // SAFETY: `sigemptyset` fills the set, which is valid for reads and writes.
    unsafe {
      libc::sigemptyset(only.as_mut_ptr());
      libc::sigaddset(only.as_mut_ptr(), signal);
      libc::pthread_sigmask(libc::SIG_UNBLOCK, only.as_ptr(), ptr::null_mut());
    }
  }

  /// Calls the handler of an action as the kernel would.
  ///
  /// # Safety
  ///
  /// The action must have been in force for this signal with a handler, not SIG_DFL or SIG_IGN, and
  /// the arguments must be those that the kernel passed to a handler.
  unsafe fn call(action: &sigaction, signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    if action.sa_flags & libc::SA_SIGINFO != 0 {
      // SAFETY: whoever installed it with SA_SIGINFO vouched for this signature to the kernel.
      let handler = unsafe { mem::transmute::<usize, Handler>(action.sa_sigaction) };
      // SAFETY: the arguments are the kernel's.
      unsafe { handler(signal, info, context) }
    } else {
      // SAFETY: whoever installed it without SA_SIGINFO vouched for this signature to the kernel.
      let handler = unsafe { mem::transmute::<usize, PlainHandler>(action.sa_sigaction) };
      // SAFETY: the handler takes only the signal's number.
      unsafe { handler(signal) }
    }
  }
}
