//! A trap stays an error, whatever handlers others install, and others receive the signals that are
//! not a guest's.
//!
//! Handlers belong to the process, so each scenario runs in its own process: this program again,
//! with an environment variable that names the scenario.

#![cfg(target_os = "linux")]

use std::env;
use std::io::{BufRead, BufReader};
use std::mem;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use extism_host::signals::{ensure_installed, enter_guest};
use libc::{SIGFPE, SIGILL, SIGSEGV, c_int, c_void, sigaction, siginfo_t};
use wasmtime::{Caller, Engine, Instance, Linker, Module, Store, Trap};

const SCENARIO: &str = "SIGNALS_SCENARIO";
const SIGNALS: [c_int; 3] = [SIGSEGV, SIGILL, SIGFPE];

// ---- scenarios, each in a child process ----

/// All scenarios. Each returns if everything is as expected.
const SCENARIOS: &[(&str, fn())] = &[
  ("nothing else", traps_stay_traps),
  ("displaced before", || {
    displace_all(plain(note));
    traps_stay_traps();
    assert_eq!(notes(), 0);
  }),
  ("displaced after", || {
    traps_stay_traps();
    displace_all(plain(note));
    traps_stay_traps();
    assert_eq!(notes(), 0);
  }),
  ("displaced in between, and default left behind", || {
    for _ in 0..1_000 {
      displace_all(plain(note));
      ensure_installed();
      displace_all(default());
      ensure_installed();
    }
    traps_stay_traps();
    displace_all(plain(note));
    traps_stay_traps();
    displace_all(default());
    traps_stay_traps();
    assert_eq!(notes(), 0);
  }),
  ("ignored", || {
    displace_all(with(libc::SIG_IGN, 0));
    traps_stay_traps();
    // SAFETY: no memory is involved.
    unsafe { libc::kill(libc::getpid(), SIGSEGV) };
    traps_stay_traps();
  }),
  ("a library displaces again and again", || {
    for _ in 0..20 {
      displace_all(informed(note_informed));
      traps_stay_traps();
    }
    raise_on_this_thread(SIGSEGV);
    assert_eq!(notes(), 1);
  }),
  ("nested", || {
    ensure_installed();
    let mut outer = Guest::new();
    for _ in 0..3 {
      displace_all(plain(note));
      ensure_installed();
      assert_eq!(outer.trap("nested"), Trap::UnreachableCodeReached);
    }
    traps_stay_traps();
  }),
  ("a host function faults", || {
    repair_faults();
    let mut guest = Guest::new();
    guest.call("fault").expect("the reporter has repaired it");
    assert_eq!(notes(), 1);
    traps_stay_traps();
    assert_eq!(notes(), 1);
  }),
  (
    "a host function faults, and default was left behind",
    || {
      displace_all(default());
      ensure_installed();
      let _ = Guest::new().call("fault");
    },
  ),
  ("another thread faults", || {
    repair_faults();
    thread::spawn(fault).join().unwrap();
    assert_eq!(notes(), 1);
    traps_stay_traps();
  }),
  ("another thread faults, and default was left behind", || {
    traps_stay_traps();
    displace_all(default());
    ensure_installed();
    thread::spawn(fault).join().unwrap();
  }),
  ("another thread faults, ignored", || {
    displace_all(with(libc::SIG_IGN, 0));
    ensure_installed();
    thread::spawn(fault).join().unwrap();
  }),
  ("sent from outside", || {
    displace_all(plain(note));
    traps_stay_traps();
    println!("ready");
    wait_for_notes(1);
    traps_stay_traps();
  }),
  ("sent from outside, and default was left behind", || {
    traps_stay_traps();
    displace_all(default());
    ensure_installed();
    println!("ready");
    thread::sleep(Duration::from_secs(60));
  }),
  ("sent to a thread inside a guest", || {
    displace_all(plain(note));
    ensure_installed();
    let mut guest = Guest::new();
    for signal in SIGNALS {
      guest.store.data_mut().signal = signal;
      let before = notes();
      // Arrives both in host functions and in compiled code: the other thread sends all the time.
      // SAFETY: has no preconditions.
      let thread = unsafe { libc::pthread_self() };
      let is_over = AtomicBool::new(false);
      thread::scope(|scope| {
        scope.spawn(|| {
          while !is_over.load(Ordering::Relaxed) {
            // SAFETY: the thread lives until this scope ends.
            unsafe { libc::pthread_kill(thread, signal) };
          }
        });
        for _ in 0..20 {
          guest
            .call("spin")
            .expect("a signal that was sent is not a trap");
          assert_eq!(guest.trap("unreachable"), Trap::UnreachableCodeReached);
          assert_eq!(guest.trap("out of bounds"), Trap::MemoryOutOfBounds);
        }
        is_over.store(true, Ordering::Relaxed);
      });
      assert!(notes() > before);
    }
  }),
  ("a reporter chains to what it displaced", || {
    repair_faults();
    for expected in 1..4 {
      let mut before = default();
      // SAFETY: `chaining` has the signature that SA_SIGINFO asks for.
      unsafe { sigaction(SIGSEGV, &informed(chaining), &mut before) };
      BEFORE.store(Box::into_raw(Box::new(before)), Ordering::Relaxed);
      ensure_installed();
      ensure_installed();
      let chained = CHAINED.load(Ordering::Relaxed);
      thread::spawn(fault).join().unwrap();
      assert_eq!(notes(), expected);
      assert_eq!(CHAINED.load(Ordering::Relaxed), chained + 1);
      traps_stay_traps();
      // What a reporter does when it is uninstalled.
      // SAFETY: it was in force.
      unsafe { sigaction(SIGSEGV, &before, ptr::null_mut()) };
    }
  }),
  ("a reporter takes itself away when it is called", || {
    traps_stay_traps();
    displace_all(default());
    ensure_installed();
    let mut before = default();
    // SAFETY: `leaving` has the signature that SA_SIGINFO asks for.
    unsafe { sigaction(SIGSEGV, &informed(leaving), &mut before) };
    BEFORE.store(Box::into_raw(Box::new(before)), Ordering::Relaxed);
    traps_stay_traps();
    thread::spawn(fault).join().unwrap();
  }),
  ("a handler for one signal only", || {
    displace_all(with(plain(note).sa_sigaction, libc::SA_RESETHAND));
    traps_stay_traps();
    raise_on_this_thread(SIGSEGV);
    assert_eq!(notes(), 1);
    traps_stay_traps();
    raise_on_this_thread(SIGSEGV);
  }),
  ("the mask of a displaced handler", || {
    let mut action = plain(note_mask);
    // SAFETY: the mask is valid for writes.
    unsafe { libc::sigaddset(&mut action.sa_mask, libc::SIGINT) };
    displace_all(action);
    ensure_installed();
    raise_on_this_thread(SIGSEGV);
    assert_eq!(notes(), 1);
    assert!(!is_blocked(libc::SIGINT) && !is_blocked(SIGSEGV));
  }),
  ("many threads trap while handlers come and go", || {
    ensure_installed();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
      for _ in 0..3 {
        scope.spawn(|| {
          let mut guest = Guest::new();
          while !is_over.load(Ordering::Relaxed) {
            assert_eq!(guest.trap("unreachable"), Trap::UnreachableCodeReached);
            assert_eq!(guest.trap("out of bounds"), Trap::MemoryOutOfBounds);
          }
        });
      }
      for _ in 0..2 {
        scope.spawn(|| {
          while !is_over.load(Ordering::Relaxed) {
            // Not the default action: a trap before our handler is back would end the process.
            displace_all(plain(note));
            ensure_installed();
            displace_all(informed(note_informed));
            ensure_installed();
          }
        });
      }
      thread::sleep(Duration::from_secs(2));
      is_over.store(true, Ordering::Relaxed);
    });
    traps_stay_traps();
  }),
  ("without ours", || {
    let mut guest = Guest::new();
    displace_all(plain(give_up));
    guest.trap("unreachable");
  }),
  ("Wasmtime was first", || {
    let mut guest = Guest::new();
    assert_eq!(guest.trap("unreachable"), Trap::UnreachableCodeReached);
    ensure_installed();
    displace_all(plain(note));
    traps_stay_traps();
    raise_on_this_thread(SIGSEGV);
    assert_eq!(notes(), 1);
    displace_all(default());
    traps_stay_traps();
    thread::spawn(fault).join().unwrap();
  }),
  ("measure", measure),
];

#[test]
fn scenario() {
  let Ok(name) = env::var(SCENARIO) else { return };
  let (_, play) = SCENARIOS.iter().find(|(known, _)| *known == name).unwrap();
  play();
}

// ---- the tests ----

fn start(name: &str) -> std::process::Child {
  assert!(SCENARIOS.iter().any(|(known, _)| *known == name), "{name}");
  Command::new(env::current_exe().unwrap())
    .args(["--exact", "scenario", "--nocapture"])
    .env(SCENARIO, name)
    .stdout(Stdio::piped())
    .spawn()
    .unwrap()
}

/// Waits up to 60 s for a child to exit.
fn end_of(mut child: std::process::Child) -> ExitStatus {
  let end = Instant::now() + Duration::from_secs(60);
  while Instant::now() < end {
    if let Some(status) = child.try_wait().unwrap() {
      return status;
    }
    thread::sleep(Duration::from_millis(10));
  }
  child.kill().unwrap();
  panic!("it hangs");
}

fn succeeds(name: &str) {
  let status = end_of(start(name));
  assert!(status.success(), "{name}: {status}");
}

fn dies_of(name: &str, signal: c_int) {
  assert_eq!(end_of(start(name)).signal(), Some(signal), "{name}");
}

/// Starts a scenario and sends it a signal when it is ready.
fn send(name: &str, signal: c_int) -> ExitStatus {
  let mut child = start(name);
  let output = BufReader::new(child.stdout.take().unwrap());
  // Keep reading to the end, so that the child's writes do not fail.
  let mut lines = output.lines().map(Result::unwrap);
  assert!(lines.any(|line| line.ends_with("ready")));
  let id = c_int::try_from(child.id()).unwrap();
  // SAFETY: no memory is involved.
  assert_eq!(unsafe { libc::kill(id, signal) }, 0);
  lines.for_each(drop);
  end_of(child)
}

#[test]
fn a_trap_stays_a_trap() {
  for name in [
    "nothing else",
    "displaced before",
    "displaced after",
    "displaced in between, and default left behind",
    "ignored",
    "a library displaces again and again",
    "nested",
    "many threads trap while handlers come and go",
  ] {
    succeeds(name);
  }
}

#[test]
fn without_our_handler_a_trap_is_an_endless_loop() {
  assert_eq!(end_of(start("without ours")).code(), Some(77));
}

#[test]
fn faults_outside_guests_go_to_other_handlers() {
  for name in [
    "a host function faults",
    "another thread faults",
    "a reporter chains to what it displaced",
    "the mask of a displaced handler",
  ] {
    succeeds(name);
  }
}

#[test]
fn a_fault_that_nobody_handles_ends_the_process() {
  for name in [
    "a host function faults, and default was left behind",
    "another thread faults, and default was left behind",
    "another thread faults, ignored",
    "a reporter takes itself away when it is called",
    "a handler for one signal only",
    "Wasmtime was first",
  ] {
    dies_of(name, SIGSEGV);
  }
}

#[test]
fn a_sent_signal_goes_to_the_programs_handler() {
  succeeds("sent to a thread inside a guest");
  for signal in SIGNALS {
    let status = send("sent from outside", signal);
    assert!(status.success(), "{status}");
    let status = send("sent from outside, and default was left behind", signal);
    assert_eq!(status.signal(), Some(signal));
  }
}

// ---- handlers of others ----

static NOTES: AtomicUsize = AtomicUsize::new(0);
static CHAINED: AtomicUsize = AtomicUsize::new(0);
static PAGE: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
static BEFORE: AtomicPtr<sigaction> = AtomicPtr::new(ptr::null_mut());

fn notes() -> usize {
  NOTES.load(Ordering::Relaxed)
}

fn wait_for_notes(count: usize) {
  while notes() < count {
    thread::sleep(Duration::from_millis(1));
  }
}

extern "C" fn note(_: c_int) {
  NOTES.fetch_add(1, Ordering::Relaxed);
}

extern "C" fn note_informed(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
  NOTES.fetch_add(1, Ordering::Relaxed);
}

extern "C" fn note_mask(signal: c_int) {
  if is_blocked(libc::SIGINT) && is_blocked(signal) && !is_blocked(libc::SIGTERM) {
    NOTES.fetch_add(1, Ordering::Relaxed);
  }
}

extern "C" fn give_up(_: c_int) {
  if NOTES.fetch_add(1, Ordering::Relaxed) == 1_000 {
    // SAFETY: may be called in a handler.
    unsafe { libc::_exit(77) }
  }
}

/// Makes the page that `fault` reads accessible.
extern "C" fn repair(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
  NOTES.fetch_add(1, Ordering::Relaxed);
  // SAFETY: the page is one of its own.
  unsafe { libc::mprotect(PAGE.load(Ordering::Relaxed), 4096, libc::PROT_READ) };
}

extern "C" fn chaining(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
  CHAINED.fetch_add(1, Ordering::Relaxed);
  // SAFETY: `BEFORE` was leaked.
  let before = unsafe { *BEFORE.load(Ordering::Relaxed) };
  assert_ne!(before.sa_flags & libc::SA_SIGINFO, 0);
  // SAFETY: it was installed with SA_SIGINFO.
  let before = unsafe {
    mem::transmute::<usize, extern "C" fn(c_int, *mut siginfo_t, *mut c_void)>(before.sa_sigaction)
  };
  before(signal, info, context);
}

extern "C" fn leaving(signal: c_int, _: *mut siginfo_t, _: *mut c_void) {
  // SAFETY: `BEFORE` was leaked, and was in force.
  unsafe { sigaction(signal, BEFORE.load(Ordering::Relaxed), ptr::null_mut()) };
}

fn with(handler: usize, flags: c_int) -> sigaction {
  // SAFETY: zero is a value for all its fields.
  let mut action: sigaction = unsafe { mem::zeroed() };
  action.sa_sigaction = handler;
  action.sa_flags = flags;
  action
}

fn default() -> sigaction {
  with(libc::SIG_DFL, 0)
}

fn plain(handler: extern "C" fn(c_int)) -> sigaction {
  with(handler as usize, libc::SA_RESTART)
}

fn informed(handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void)) -> sigaction {
  with(handler as usize, libc::SA_SIGINFO | libc::SA_ONSTACK)
}

fn displace_all(action: sigaction) {
  for signal in SIGNALS {
    // SAFETY: the handlers of this file have the signature that their flags ask for.
    assert_eq!(unsafe { sigaction(signal, &action, ptr::null_mut()) }, 0);
  }
}

fn repair_faults() {
  displace_all(informed(repair));
  ensure_installed();
}

fn is_blocked(signal: c_int) -> bool {
  // SAFETY: zero is a value for a set of signals, and it is valid for writes.
  unsafe {
    let mut mask = mem::zeroed();
    libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), &mut mask);
    libc::sigismember(&mask, signal) == 1
  }
}

fn raise_on_this_thread(signal: c_int) {
  // SAFETY: no memory is involved.
  assert_eq!(unsafe { libc::raise(signal) }, 0);
}

/// Reads an inaccessible page.
fn fault() {
  // SAFETY: a new mapping that nothing else uses. The fault is intended: either the handler makes
  // the page readable, or the process ends.
  unsafe {
    let page = libc::mmap(
      ptr::null_mut(),
      4096,
      libc::PROT_NONE,
      libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
      -1,
      0,
    );
    assert_ne!(page, libc::MAP_FAILED);
    PAGE.store(page, Ordering::Relaxed);
    assert_eq!(page.cast::<u8>().read_volatile(), 0);
  }
}

// ---- guests ----

struct State {
  signal: c_int,
}

struct Guest {
  store: Store<State>,
  instance: Instance,
}

impl Guest {
  fn new() -> Guest {
    let engine = Engine::default();
    let module = Module::new(
      &engine,
      r#"(module
        (import "host" "fault" (func $fault))
        (import "host" "trap another" (func $nested))
        (memory 1)
        (global $count (mut i32) (i32.const 0))
        (func (export "unreachable") unreachable)
        (func (export "divide by zero") (drop (i32.div_s (i32.const 1) (global.get $count))))
        (func (export "out of bounds") (drop (i32.load (i32.const -8))))
        (func $recurse (export "recurse") (call $recurse) (call $recurse))
        (func (export "fault") (call $fault))
        (func (export "nested") (call $nested) unreachable)
        (func (export "nothing"))
        (func (export "spin") (local $left i32)
          (local.set $left (i32.const 1000000))
          (loop $again
            (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 1)))
            (br_if $again (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))))"#,
    )
    .unwrap();
    let mut linker = Linker::<State>::new(&engine);
    linker.func_wrap("host", "fault", fault).unwrap();
    linker
      .func_wrap("host", "trap another", |_: Caller<'_, State>| {
        Guest::new().trap_all();
      })
      .unwrap();
    let mut store = Store::new(&engine, State { signal: 0 });
    let instance = linker.instantiate(&mut store, &module).unwrap();
    Guest { store, instance }
  }

  fn call(&mut self, name: &str) -> wasmtime::Result<()> {
    let function = self
      .instance
      .get_typed_func::<(), ()>(&mut self.store, name)?;
    let _inside = enter_guest();
    function.call(&mut self.store, ())
  }

  fn trap(&mut self, name: &str) -> Trap {
    *self.call(name).unwrap_err().downcast_ref().unwrap()
  }

  fn trap_all(&mut self) {
    for _ in 0..3 {
      assert_eq!(self.trap("unreachable"), Trap::UnreachableCodeReached);
      assert_eq!(self.trap("divide by zero"), Trap::IntegerDivisionByZero);
      assert_eq!(self.trap("out of bounds"), Trap::MemoryOutOfBounds);
      assert_eq!(self.trap("recurse"), Trap::StackOverflow);
      self.call("nothing").unwrap();
    }
  }
}

fn traps_stay_traps() {
  ensure_installed();
  Guest::new().trap_all();
  thread::spawn(|| Guest::new().trap_all()).join().unwrap();
}

// ---- how long it takes ----

fn measure() {
  fn time(what: &str, count: u32, mut run: impl FnMut()) {
    let best = (0..10)
      .map(|_| {
        let start = Instant::now();
        (0..count).for_each(|_| run());
        start.elapsed().as_nanos() / u128::from(count)
      })
      .min();
    let start = Instant::now();
    (0..count).for_each(|_| run());
    println!(
      "{what}: best {best:?} ns, last {:.2} ns",
      start.elapsed().as_nanos() as f64 / f64::from(count)
    );
  }
  let start = Instant::now();
  ensure_installed();
  println!("first ensure_installed: {:?}", start.elapsed());
  time(
    "ensure_installed, nothing changed",
    10_000,
    ensure_installed,
  );
  time("ensure_installed, all displaced", 1_000, || {
    displace_all(plain(note));
    ensure_installed();
  });
  time("enter_guest and drop", 10_000_000, || {
    drop(std::hint::black_box(enter_guest()))
  });
  let mut guest = Guest::new();
  let nothing = guest
    .instance
    .get_typed_func::<(), ()>(&mut guest.store, "nothing")
    .unwrap();
  time("call without a scope", 1_000_000, || {
    nothing.call(&mut guest.store, ()).unwrap()
  });
  time("call in a scope", 1_000_000, || {
    let _inside = enter_guest();
    nothing.call(&mut guest.store, ()).unwrap();
  });
  let unreachable = guest
    .instance
    .get_typed_func::<(), ()>(&mut guest.store, "unreachable")
    .unwrap();
  time("trap", 10_000, || {
    let _inside = enter_guest();
    unreachable.call(&mut guest.store, ()).unwrap_err();
  });
}
