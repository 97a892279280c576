//! Keeps a guest's trap a trap, whatever signal handlers the program adds or removes.
//!
//! Wasmtime turns SIGSEGV, SIGILL and SIGFPE from compiled code into traps. The program can displace
//! its handlers: `process.on('SIGSEGV')` installs libuv's handler and chains to nobody, and removing
//! that listener leaves `SIG_DFL`. So a handler of ours stands in front and decides:
//!
//! * a fault on a thread that is inside a guest goes to Wasmtime;
//! * anything else, and any fault that Wasmtime declines, goes to the handler that ours displaced.
//!
//! # How to use it
//!
//! Call [`ensure_installed`] before the first [`wasmtime::Engine`] of the process, on the JavaScript
//! thread if possible, then after each change of a listener and whenever an instance starts. Hold
//! an [`enter_guest`] scope around every call that can run compiled code: calling a function or
//! instantiating a module. Do not hold it across an `await`.
//!
//! A host function needs nothing: Wasmtime looks at the program counter, declines faults outside
//! compiled code, and ours passes them on.
//!
//! # Listeners that come and go
//!
//! libuv would install `SIG_DFL` when the last listener of a signal is removed, and a trap before our
//! handler is back would end the process. So [`listeners_changed`] first makes libuv keep its handler for
//! ever (`libuv`), behind ours. What we do not give to Wasmtime goes to libuv's handler only while
//! JavaScript has listeners, and else to what libuv's displaced.
//!
//! # What it cannot do
//!
//! From the moment another handler is installed until ours is back, a trap goes to that handler. A
//! handler that returns only delays the trap. If native code installs `SIG_DFL`, a trap until the next
//! instance starts ends the process. A listener that native code adds to libuv itself hears these signals
//! only while JavaScript has listeners too.
//!
//! # Why there are layers
//!
//! A crash reporter that displaces our handler remembers it as "the previous one" and calls it for
//! what it does not handle itself. If that same handler then chained to the reporter, the two would
//! call each other for ever. So each handler found in front of ours is covered by a *layer*: a new
//! entry point that chains to it, while the older entry points keep chaining to what they displaced.

#[cfg(unix)]
mod libuv;

#[cfg(unix)]
pub use unix::{GuestScope, ensure_installed, enter_guest, listeners_changed};

#[cfg(not(unix))]
pub use elsewhere::{GuestScope, ensure_installed, enter_guest, listeners_changed};

/// Other systems report faults in another way, which signal handlers do not touch.
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

  /// As many foreign handlers as one signal can have in front of ours, one after the other.
  const LAYERS: usize = 8;

  /// Entry points, one for each layer. Their addresses differ because each passes another number.
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

  /// How Wasmtime installs its handlers.
  const RUNTIME_FLAGS: c_int = libc::SA_SIGINFO | libc::SA_NODEFER | libc::SA_ONSTACK;

  /// SA_RESTART because libuv has it: a system call that a signal interrupts starts again. Without
  /// SA_NODEFER, so that a flood of signals from outside cannot pile up on the signal stack; a fault
  /// in a handler ends the process with or without it.
  const OUR_FLAGS: c_int = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;

  static SEGV: Watched = Watched::new(libc::SIGSEGV, "SIGSEGV");
  static ILL: Watched = Watched::new(libc::SIGILL, "SIGILL");
  static FPE: Watched = Watched::new(libc::SIGFPE, "SIGFPE");
  static BUS: Watched = Watched::new(libc::SIGBUS, "SIGBUS");
  static WATCHED: [&Watched; 4] = [&SEGV, &ILL, &FPE, &BUS];

  /// `SIG_DFL`, as an action to chain to.
  static DEFAULT: sigaction = {
    // SAFETY: all fields are integers, arrays of integers or an optional function, for which zero
    // is a value; a zero handler is SIG_DFL.
    unsafe { mem::zeroed() }
  };

  /// The address of libuv's handler, if it stays for ever; else 0.
  static LIBUV: AtomicUsize = AtomicUsize::new(0);

  /// Whether the first installation is over. Handlers never take this lock.
  static IS_PREPARED: Mutex<bool> = Mutex::new(false);

  /// Puts our handlers in front for the signals that Wasmtime uses, if they are not there already.
  ///
  /// Costs one system call per signal when nothing has changed. The first call makes a
  /// [`wasmtime::Engine`], which is what makes Wasmtime install its handlers, once per process; it
  /// must come before any other engine, so that what Wasmtime declines comes back to us. The
  /// engines of the process must leave `Config::macos_use_mach_ports` at its default: with Mach
  /// ports no signals are involved, and this does nothing.
  pub fn ensure_installed() {
    let mut is_prepared = IS_PREPARED.lock().unwrap_or_else(PoisonError::into_inner);
    if !*is_prepared {
      *is_prepared = prepare();
    }
    for watched in WATCHED {
      watched.put_back();
    }
  }

  /// Puts our handlers in front, as [`ensure_installed`], and says for which signals JavaScript has
  /// listeners now. Only JavaScript's main thread may call it.
  pub fn listeners_changed(listened: &[String]) {
    static IS_KEPT: AtomicBool = AtomicBool::new(false);
    // Another thread may be making the first engine.
    let preparing = IS_PREPARED.lock().unwrap_or_else(PoisonError::into_inner);
    for watched in WATCHED {
      let is_listened = listened.iter().any(|name| name == watched.name);
      watched.is_listened.store(is_listened, Ordering::Release);
    }
    if !IS_KEPT.swap(true, Ordering::AcqRel) {
      let found = WATCHED.map(|watched| watched.current());
      let handler = libuv::listen(WATCHED.map(|watched| watched.signal));
      for (watched, found) in WATCHED.into_iter().zip(found) {
        let found = found.map(|found| watched.behind(found));
        // If JavaScript has listeners already, the default action is what libuv would leave.
        if let Some(found) = found.filter(|found| Some(found.sa_sigaction) != handler) {
          watched.before_libuv.store(leak(found), Ordering::Release);
        }
      }
      // From now on they are told apart.
      LIBUV.store(handler.unwrap_or(0), Ordering::Release);
    }
    drop(preparing);
    ensure_installed();
  }

  /// Marks this thread as inside a guest until the returned scope is dropped. Scopes nest.
  #[inline]
  pub fn enter_guest() -> GuestScope {
    GuestScope::new(INSIDE)
  }

  /// Restores what the thread was before, when dropped. Must be dropped in reverse order of creation.
  #[must_use = "the scope ends when this is dropped"]
  pub struct GuestScope {
    outer: usize,
    // The mark belongs to one thread.
    _not_send: PhantomData<*const ()>,
  }

  impl GuestScope {
    #[inline]
    fn new(place: usize) -> Self {
      let outer = thread_place();
      set_thread_place(place);
      GuestScope {
        outer,
        _not_send: PhantomData,
      }
    }
  }

  impl Drop for GuestScope {
    #[inline]
    fn drop(&mut self) {
      set_thread_place(self.outer);
    }
  }

  // Where a thread is. A pthread key and not `thread_local!`: in a library that was loaded at run
  // time, the first access to the latter allocates, and a handler may run on any thread. Reading a
  // key never allocates (POSIX does not promise that, but glibc, musl and the BSDs do it so), and
  // writing allocates at most the first time on a thread, which `enter_guest` does.
  const OUTSIDE: usize = 0;
  const INSIDE: usize = 1;
  /// Inside, and Wasmtime's handler looks at a fault.
  const ASKING: usize = 2;
  /// Inside, and Wasmtime's handler has declined that fault.
  const DECLINED: usize = 3;

  /// The key plus one; 0 until it exists.
  static KEY: AtomicUsize = AtomicUsize::new(0);

  #[inline]
  fn key() -> Option<libc::pthread_key_t> {
    let key = KEY.load(Ordering::Relaxed).checked_sub(1)?;
    Some(key as libc::pthread_key_t)
  }

  #[inline]
  fn thread_place() -> usize {
    let Some(key) = key() else { return OUTSIDE };
    // SAFETY: the key was created and is never deleted.
    unsafe { libc::pthread_getspecific(key) }.addr()
  }

  #[inline]
  fn set_thread_place(place: usize) {
    if let Some(key) = key() {
      // SAFETY: the key was created and is never deleted. The value is a number, which nobody
      // dereferences: the key has no destructor.
      unsafe { libc::pthread_setspecific(key, ptr::without_provenance(place)) };
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

  /// Keeps this library loaded until the process ends: Node unloads addons when the worker thread
  /// that loaded them ends, but a handler must stay where it is.
  fn pin_library() {
    #[cfg(any(all(target_os = "linux", target_env = "gnu"), target_vendor = "apple"))]
    {
      let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
      // SAFETY: `info` is valid for writes, and the address is only looked up.
      let is_known =
        unsafe { libc::dladdr(address(on_signal::<0>) as *const c_void, info.as_mut_ptr()) } != 0;
      // SAFETY: all fields are integers and pointers, for which the zeroes that it had are values.
      let name = unsafe { info.assume_init() }.dli_fname;
      if is_known && !name.is_null() {
        // SAFETY: the name is a string of the loader's that lives while this library is loaded. With
        // RTLD_NOLOAD nothing is loaded and so no initialiser runs. The handle is kept for ever.
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

  /// Installs the handlers for the first time. False if that failed and must be tried again; then
  /// everything is as it was.
  fn prepare() -> bool {
    if !create_key() {
      return false;
    }
    pin_library();
    // Wasmtime must find `on_declined`, so that what it declines comes back to us.
    let found = WATCHED.map(|watched| watched.install_first(on_declined));
    let is_installed = install_runtime_handlers();
    for (watched, found) in WATCHED.into_iter().zip(found) {
      if let Some(found) = found {
        watched.cover_runtime(&found);
      }
    }
    // Never twice over our own handlers, even if the engine failed after Wasmtime installed its own.
    is_installed || WATCHED.iter().any(|watched| watched.is_covered())
  }

  /// Makes Wasmtime install its handlers, unless it has.
  fn install_runtime_handlers() -> bool {
    let mut config = Config::new();
    // An engine that does not compile costs less.
    config.enable_compiler(false);
    Engine::new(&config).is_ok()
  }

  /// A signal, and whom to ask about it.
  struct Watched {
    signal: c_int,
    name: &'static str,
    /// Whether JavaScript has listeners. It counts as having some until it has said.
    is_listened: AtomicBool,
    /// What libuv's handler displaced; null for SIG_DFL. Never freed.
    before_libuv: AtomicPtr<sigaction>,
    /// Wasmtime's action; null if Wasmtime does not use the signal. Never freed.
    runtime: AtomicPtr<sigaction>,
    /// What each layer displaced; null if the layer is not in use. Never freed: a handler may read
    /// it at any time.
    displaced: [AtomicPtr<sigaction>; LAYERS],
  }

  impl Watched {
    const fn new(signal: c_int, name: &'static str) -> Self {
      Watched {
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
      // SAFETY: a null action changes nothing, and the other one is valid for writes.
      let result = unsafe { libc::sigaction(self.signal, ptr::null(), action.as_mut_ptr()) };
      // SAFETY: `sigaction` has filled it, as it did not fail.
      (result == 0).then(|| unsafe { action.assume_init() })
    }

    /// Installs `action` and returns the one before.
    ///
    /// # Safety
    ///
    /// The action must have been in force before, or its handler must be one of ours.
    unsafe fn exchange(&self, action: &sigaction) -> Option<sigaction> {
      let mut before = MaybeUninit::uninit();
      // SAFETY: both point to actions; the caller vouches for the new handler.
      let result = unsafe { libc::sigaction(self.signal, action, before.as_mut_ptr()) };
      // SAFETY: `sigaction` has filled it, as it did not fail.
      (result == 0).then(|| unsafe { before.assume_init() })
    }

    /// Installs one of our handlers and returns the action before.
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

    /// Installs `handler` with layer 0 below it, and returns what that layer displaced.
    fn install_first(&self, handler: Handler) -> Option<sigaction> {
      // Before the handler, which may be called at once.
      self.displaced[0].store(leak(self.current()?), Ordering::Release);
      let found = self.install(handler)?;
      self.displaced[0].store(leak(found), Ordering::Release);
      Some(found)
    }

    /// Covers Wasmtime's handler with layer 0, if it is there now; else puts `found` back.
    fn cover_runtime(&self, found: &sigaction) {
      let Some(current) = self.current() else {
        return;
      };
      let runtime = if current.sa_sigaction == address(on_declined) {
        // Wasmtime does not use this signal, or had installed its handlers before. Then we have just
        // displaced them, and what it declines does not come back to us. To take another's handler
        // with the same flags for it does no harm: layer 0 chains to it all the same.
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

    fn put_back(&self) {
      let runtime = self.runtime.load(Ordering::Acquire);
      if runtime.is_null() {
        return;
      }
      let Some(mut found) = self.current() else {
        return;
      };
      // Another thread can install a handler between our look and our installation, so the one that
      // was displaced in fact decides whether the layer is right.
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

    /// What an action chains to if it is one of ours; else the action.
    fn behind(&self, action: sigaction) -> sigaction {
      let is_it = |entry_point: &Handler| address(*entry_point) == action.sa_sigaction;
      let layer = ENTRY_POINTS.iter().position(is_it);
      let displaced = layer.map(|layer| self.displaced[layer].load(Ordering::Acquire));
      displaced.map_or(action, |displaced| {
        // SAFETY: it was leaked, is static or null.
        unsafe { displaced.as_ref() }.map_or(DEFAULT, |displaced| *displaced)
      })
    }

    /// Where the action is to which a layer chains now. Runs in a handler.
    fn chained(&self, layer: usize) -> &AtomicPtr<sigaction> {
      let displaced = &self.displaced[layer];
      // SAFETY: it was leaked, is static or null.
      let action = unsafe { displaced.load(Ordering::Acquire).as_ref() };
      let libuv = LIBUV.load(Ordering::Acquire);
      let is_libuv = libuv != 0 && action.is_some_and(|action| action.sa_sigaction == libuv);
      match is_libuv && !self.is_listened.load(Ordering::Acquire) {
        true => &self.before_libuv,
        false => displaced,
      }
    }

    /// The layer that chains to `action`: one that does already, or a new one.
    fn layer_over(&self, action: sigaction) -> usize {
      let chains_to = |displaced: &AtomicPtr<sigaction>| {
        let displaced = displaced.load(Ordering::Acquire);
        // SAFETY: it was leaked or is static.
        !displaced.is_null() && is_same(unsafe { &*displaced }, &action)
      };
      let existing = self.displaced.iter().position(chains_to);
      // Without SA_SIGINFO it cannot chain to ours, which needs all three arguments. So libuv's
      // handler and SIG_DFL, which come and go, have one layer each.
      if let Some(layer) = existing
        && action.sa_flags & libc::SA_SIGINFO == 0
      {
        return layer;
      }
      // It may chain to the layer that was in front when it was installed, so it needs one above.
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

  // From here on: what runs in a handler. It neither allocates nor locks nor panics.

  /// # Safety
  ///
  /// Only for the kernel, or for a handler that passes on the arguments it got from the kernel.
  unsafe extern "C" fn on_signal<const LAYER: usize>(
    signal: c_int,
    info: *mut siginfo_t,
    context: *mut c_void,
  ) {
    // SAFETY: as for this function.
    unsafe { dispatch(LAYER, signal, info, context) }
  }

  /// # Safety
  ///
  /// As for [`on_signal`].
  unsafe fn dispatch(layer: usize, signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let Some(watched) = Watched::of(signal) else {
      return;
    };
    let runtime = watched.runtime.load(Ordering::Acquire);
    // SAFETY: the caller vouches for `info`.
    if !runtime.is_null() && thread_place() == INSIDE && unsafe { is_fault(info) } {
      set_thread_place(ASKING);
      // SAFETY: `runtime` was leaked, and its handler takes the kernel's arguments, which these
      // are. Wasmtime's returns if it made a trap of the fault (then the context leads to where the
      // guest was called), and after the handler it displaced has returned.
      unsafe { call(&*runtime, signal, info, context) };
      let has_declined = thread_place() == DECLINED;
      set_thread_place(INSIDE);
      if !has_declined {
        return;
      }
    }
    // SAFETY: as for this function.
    unsafe { chain(watched, layer, signal, info, context) }
  }

  /// What Wasmtime calls if a fault is not one of compiled code.
  ///
  /// # Safety
  ///
  /// As for [`on_signal`].
  unsafe extern "C" fn on_declined(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    if thread_place() == ASKING {
      // `dispatch`, which called Wasmtime, knows the layer to chain to.
      set_thread_place(DECLINED);
    } else if let Some(watched) = Watched::of(signal) {
      // SAFETY: as for this function.
      unsafe { chain(watched, 0, signal, info, context) }
    }
  }

  /// Whether the processor reports a fault of this thread; false if somebody sent the signal.
  ///
  /// # Safety
  ///
  /// `info` must be what the kernel passed to a handler, or null.
  unsafe fn is_fault(info: *const siginfo_t) -> bool {
    // SAFETY: the caller vouches for it.
    let code = unsafe { info.as_ref() }.map_or(0, |info| info.si_code);
    // Linux has codes of 0 and less for what was sent, other systems from SI_USER, 0x10001, on too.
    code > 0 && (cfg!(any(target_os = "linux", target_os = "android")) || code < 0x10001)
  }

  /// Does what would have happened if that layer had not displaced its action, and libuv came and went.
  ///
  /// # Safety
  ///
  /// As for [`on_signal`].
  unsafe fn chain(
    watched: &Watched,
    layer: usize,
    signal: c_int,
    info: *mut siginfo_t,
    context: *mut c_void,
  ) {
    let displaced = watched.chained(layer);
    let action = displaced.load(Ordering::Acquire);
    // SAFETY: it was leaked, is static or null.
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
        // As soon as the handler returns, what was raised arrives, and a fault comes again.
      }
      _ => {
        if action.sa_flags & libc::SA_RESETHAND != 0 {
          displaced.store((&raw const DEFAULT).cast_mut(), Ordering::Release);
        }
        // As the kernel does. libuv's handler takes a lock, so no other signal may interrupt it.
        let mut before = MaybeUninit::uninit();
        // SAFETY: the mask is valid for reads, `before` for writes; it is read only if it was filled.
        let is_masked =
          unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &action.sa_mask, before.as_mut_ptr()) }
            == 0;
        if action.sa_flags & libc::SA_NODEFER != 0 {
          unblock(signal);
        }
        // SAFETY: it is the action that was in force, neither SIG_DFL nor SIG_IGN, and the arguments
        // are the kernel's.
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
      // SAFETY: it takes the signal's number only.
      unsafe { handler(signal) }
    }
  }
}
