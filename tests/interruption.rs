//! Endless guests end when they are interrupted, whatever they are doing, and no other instance is affected.
//!
//! `INTERRUPTION_ROUNDS` sets how often each kind of guest is interrupted.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use common::{ENDLESS, Ending, INNOCENT, Loaded, Use, World, beside_an_innocent, guest};
use extism_host::plugin::instance::Run;
use extism_host::plugin::interrupt::{Interrupt, Interruptions};

/// The pause between two interruptions of one instance, if one may be missed.
const REPEAT: Duration = Duration::from_millis(1);

/// Initializations that never end.
const ENDLESS_INITIALIZATIONS: [(&str, &str); 3] = [
  (
    "a start function",
    r#"(func $begin (loop $next (br $next))) (start $begin) (func (export "run"))"#,
  ),
  (
    "_initialize",
    r#"(func (export "_initialize") (loop $next (br $next))) (func (export "run"))"#,
  ),
  (
    "a constructor that calls the host",
    r#"(func (export "__wasm_call_ctors") (loop $next (call $tick) (br $next)))
       (func (export "run"))"#,
  ),
];

fn rounds() -> u64 {
  let rounds = std::env::var("INTERRUPTION_ROUNDS").ok();
  rounds.map_or(200, |rounds| rounds.parse().expect("a number"))
}

/// A world with a host function that does nothing, and a guest that imports it.
fn load(body: &str, interruptions: Interruptions) -> Loaded {
  let mut world = World::new();
  world.functions.push(extism_host::host::HostFunction::new(
    "extism:host/user",
    "tick",
    [],
    None,
    |_| Ok(extism_host::host::Answer::Nothing),
  ));
  let text = format!(
    r#"(module {} (import "extism:host/user" "tick" (func $tick)) {} {body})"#,
    common::KERNEL,
    common::LIBRARY
  );
  let wasm = common::wat(&text);
  world.load_with(&[(None, &wasm)], Use::interrupted_by(interruptions))
}

/// Interrupts as the watchdog does: repeatedly while the instance runs, if one interruption may be missed.
fn interrupt_until(interrupt: &Interrupt, has_ended: &AtomicBool) {
  interrupt.interrupt();
  while interrupt.needs_repeating() && !has_ended.load(Ordering::SeqCst) {
    std::thread::sleep(REPEAT);
    interrupt.interrupt();
  }
}

/// Runs the guest and interrupts it after some time, which differs in each round.
fn run_interrupted(plugin: &Loaded, round: u64) -> common::Report {
  let mut instance = plugin.instance();
  let interrupt = instance.interrupt().clone();
  let has_ended = AtomicBool::new(false);
  let has_ended = &has_ended;
  let delay = Duration::from_micros(round * 37 % 1000);
  std::thread::scope(|scope| {
    scope.spawn(move || {
      std::thread::sleep(delay);
      interrupt_until(&interrupt, has_ended);
    });
    let report = plugin.run_instance(&mut instance, &[("run", b"input")]);
    has_ended.store(true, Ordering::SeqCst);
    report
  })
}

/// Runs all rounds on a separate thread, and fails if a round does not end. An instance that ignores its
/// interruption would run for ever.
fn must_end(what: &'static str, round: impl Fn(u64) + Send + 'static) {
  let (sender, ended) = channel();
  let thread = std::thread::spawn(move || {
    for number in 0..rounds() {
      round(number);
      let _ = sender.send(());
    }
  });
  loop {
    match ended.recv_timeout(Duration::from_secs(100)) {
      Ok(()) => {}
      Err(RecvTimeoutError::Timeout) => panic!("{what} goes on"),
      Err(RecvTimeoutError::Disconnected) => break,
    }
  }
  thread
    .join()
    .unwrap_or_else(|_| panic!("{what}: see above"));
}

fn all_end(interruptions: Interruptions) {
  beside_an_innocent(interruptions, || {
    for (name, body) in ENDLESS {
      let plugin = load(body, interruptions);
      must_end(name, move |round| {
        let report = run_interrupted(&plugin, round);
        assert_eq!(report.ending, Ending::Interrupted, "{name}, round {round}");
        assert!(report.results.is_empty());
      });
    }
    for (name, body) in ENDLESS_INITIALIZATIONS {
      let plugin = load(body, interruptions);
      must_end(name, move |round| {
        let report = run_interrupted(&plugin, round);
        assert_eq!(report.ending, Ending::Interrupted, "{name}, round {round}");
        assert!(!report.is_initialized, "{name}, round {round}");
      });
    }
  });
}

#[test]
fn endless_guests_end_by_the_interrupt_page() {
  all_end(Interruptions::Page);
}

#[test]
fn endless_guests_end_by_the_epoch() {
  all_end(Interruptions::Epoch);
}

/// While a host function runs, no guest code does. The guest ends when the function returns.
#[test]
fn an_interruption_during_a_host_function_ends_the_guest_after_it() {
  use extism_host::host::{Answer, HostFunction};

  for interruptions in [Interruptions::Page, Interruptions::Epoch] {
    let mut world = World::new();
    let (interrupts, next_interrupt) = channel::<Interrupt>();
    let next_interrupt = std::sync::Mutex::new(next_interrupt);
    world.functions.push(HostFunction::new(
      "extism:host/user",
      "interrupt",
      [],
      None,
      move |_| {
        let interrupts = next_interrupt.lock().expect("no panic");
        interrupts.recv().expect("the test sends one").interrupt();
        Ok(Answer::Nothing)
      },
    ));
    let wasm = common::wat(&format!(
      r#"(module {} (import "extism:host/user" "interrupt" (func $interrupt)) {}
           (func $after (call $count (i32.const 1)))
           (func (export "run") (call $interrupt) (call $after)))"#,
      common::KERNEL,
      common::LIBRARY
    ));
    let plugin = world.load_with(&[(None, &wasm)], Use::interrupted_by(interruptions));
    for _ in 0..rounds() {
      let mut instance = plugin.instance();
      interrupts
        .send(instance.interrupt().clone())
        .expect("the function waits");
      let report = plugin.run_instance(&mut instance, &[("run", b"")]);
      assert_eq!(report.ending, Ending::Interrupted);
    }
    assert!(world.counts().is_empty());
  }
}

/// An interruption that comes too late, or twice, affects no other instance.
#[test]
fn interrupting_a_dropped_instance_affects_no_other() {
  for interruptions in [Interruptions::Page, Interruptions::Epoch] {
    let plugin = World::new().load_with(
      &[(None, &guest(INNOCENT))],
      Use::interrupted_by(interruptions),
    );
    for _ in 0..rounds() {
      let gone = plugin.instance().interrupt().clone();
      // Its memory is probably at the address of the other one's.
      let mut instance = plugin.instance();
      gone.interrupt();
      gone.interrupt();
      let report = plugin.run_instance(&mut instance, &[("add", &[0; 8]), ("add", &[0; 8])]);
      assert_eq!(report.ending, Ending::Stopped);
      assert_eq!(
        report.results[1].as_deref().expect("it counts"),
        4000_u64.to_le_bytes()
      );
    }
  }
}
