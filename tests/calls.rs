//! Guests that return, and guests that end in other ways.

mod common;

use std::time::Duration;

use common::{Ending, Use, World, guest, wat};
use extism_host::abi::ValueType;
use extism_host::host::{Answer, HostFunction, HostFunctionError};
use extism_host::plugin::instance::{CallError, Run};
use extism_host::plugin::interrupt::Interruptions;

const ECHO: &str = r#"
    (func (export "echo") (result i32)
      (call $output_set (call $input_offset) (call $input_length))
      (i32.const 0))
"#;

#[test]
fn echoes() {
  let echo = guest(ECHO);
  let report = World::new().run(
    &[(None, &echo)],
    &[
      ("echo", b"one"),
      ("echo", b""),
      ("echo", &[b'x'; 500_000]),
      ("echo", b"four"),
    ],
  );
  assert_eq!(report.ending, Ending::Stopped);
  assert!(report.is_initialized);
  assert_eq!(report.outputs(), ["one", "", &"x".repeat(500_000), "four"]);
}

#[test]
fn echoes_byte_by_byte_and_word_by_word() {
  let echo = guest(
    r#"
        (func (export "bytes") (result i32) (local $to i64) (local $index i64)
          (local.set $to (call $alloc (call $input_length)))
          (block $end (loop $next
            (br_if $end (i64.ge_u (local.get $index) (call $input_length)))
            (call $store_u8 (i64.add (local.get $to) (local.get $index))
              (call $load_u8 (i64.add (call $input_offset) (local.get $index))))
            (local.set $index (i64.add (local.get $index) (i64.const 1)))
            (br $next)))
          (call $output_set (local.get $to) (call $input_length))
          (i32.const 0))
        (func (export "words") (result i32) (local $to i64) (local $index i64)
          (local.set $to (call $alloc (call $input_length)))
          (block $end (loop $next
            (br_if $end (i64.ge_u (local.get $index) (call $input_length)))
            (call $store_u64 (i64.add (local.get $to) (local.get $index))
              (call $input_load_u64 (local.get $index)))
            (local.set $index (i64.add (local.get $index) (i64.const 8)))
            (br $next)))
          (call $output_set (local.get $to) (call $input_length))
          (i32.const 0))"#,
  );
  let report = World::new().run(
    &[(None, &echo)],
    &[("bytes", b"any length"), ("words", b"two words & more")],
  );
  assert_eq!(report.outputs(), ["any length", "two words & more"]);
}

/// The article's plugin, with its imports as TinyGo and the PDK of 2023 write them.
#[test]
fn says_hello() {
  let hello = wat(
    r#"(module
        (import "env" "extism_input_length" (func $input_length (result i64)))
        (import "env" "extism_input_load_u8" (func $input_load_u8 (param i64) (result i32)))
        (import "env" "extism_alloc" (func $alloc (param i64) (result i64)))
        (import "env" "extism_length" (func $length (param i64) (result i64)))
        (import "env" "extism_load_u8" (func $load_u8 (param i64) (result i32)))
        (import "env" "extism_store_u8" (func $store_u8 (param i64 i32)))
        (import "env" "extism_output_set" (func $output_set (param i64 i64)))
        (import "env" "hostMemoryGet" (func $get (param i64) (result i64)))
        (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 2)
        (data (i32.const 0) "hello")
        (data (i32.const 16) "message")
        (data (i32.const 32) "\f0\9f\91\8b Hello ")
        (data (i32.const 64) "\nkey: hello, value: ")
        (data (i32.const 96) "\nkey: message, value: ")
        (global $end (mut i32) (i32.const 1024))
        (func $key (param $address i32) (param $length i32) (result i64)
          (local $offset i64) (local $index i32)
          (local.set $offset (call $alloc (i64.extend_i32_u (local.get $length))))
          (loop $next
            (call $store_u8
              (i64.add (local.get $offset) (i64.extend_i32_u (local.get $index)))
              (i32.load8_u (i32.add (local.get $address) (local.get $index))))
            (local.set $index (i32.add (local.get $index) (i32.const 1)))
            (br_if $next (i32.lt_u (local.get $index) (local.get $length))))
          (local.get $offset))
        (func $put (param $byte i32)
          (i32.store8 (global.get $end) (local.get $byte))
          (global.set $end (i32.add (global.get $end) (i32.const 1))))
        (func $text (param $address i32) (param $length i32)
          (memory.copy (global.get $end) (local.get $address) (local.get $length))
          (global.set $end (i32.add (global.get $end) (local.get $length))))
        (func $load (param $offset i64) (local $index i64)
          (block $end (loop $next
            (br_if $end (i64.ge_u (local.get $index) (call $length (local.get $offset))))
            (call $put (call $load_u8 (i64.add (local.get $offset) (local.get $index))))
            (local.set $index (i64.add (local.get $index) (i64.const 1)))
            (br $next))))
        (func (export "_start"))
        (func (export "say_hello") (result i32) (local $index i64) (local $offset i64)
          (global.set $end (i32.const 1024))
          (call $text (i32.const 32) (i32.const 11))
          (block $end (loop $next
            (br_if $end (i64.ge_u (local.get $index) (call $input_length)))
            (call $put (call $input_load_u8 (local.get $index)))
            (local.set $index (i64.add (local.get $index) (i64.const 1)))
            (br $next)))
          (call $text (i32.const 64) (i32.const 20))
          (call $load (call $get (call $key (i32.const 0) (i32.const 5))))
          (call $text (i32.const 96) (i32.const 22))
          (call $load (call $get (call $key (i32.const 16) (i32.const 7))))
          (local.set $offset (call $key (i32.const 1024)
            (i32.sub (global.get $end) (i32.const 1024))))
          (call $output_set (local.get $offset) (call $length (local.get $offset)))
          (i32.const 0)))"#,
  );
  let report = World::new().run(
    &[(None, &hello)],
    &[("say_hello", b"Jane Doe"), ("say_hello", b"Bob")],
  );
  assert_eq!(report.ending, Ending::Stopped);
  assert_eq!(
    report.outputs()[0],
    "👋 Hello Jane Doe\nkey: hello, value: 👋 Hello World 🌍\nkey: message, value: I 💜 Extism 😍"
  );
  assert!(report.outputs()[1].starts_with("👋 Hello Bob\n"));
}

#[test]
fn a_store_answers() {
  let store = guest(
    r#"(func (export "get") (result i32)
             (call $output (call $host_memory_get (call $input_offset)))
             (i32.const 0))"#,
  );
  let report = World::new().run(
    &[(None, &store)],
    &[
      ("get", b"message"),
      ("get", b"no such key"),
      ("get", b"empty"),
      ("get", b"\xff\xfe"),
      ("get", b""),
      ("get", b"large"),
    ],
  );
  let outputs = report.outputs();
  assert_eq!(outputs[..5], ["I 💜 Extism 😍", "", "", "", ""]);
  assert_eq!(outputs[5].len(), 300_000);
  assert_eq!(report.ending, Ending::Stopped);
}

#[test]
fn built_in_functions_answer() {
  let world = World::new();
  let guest = guest(
    r#"(data (i32.const 0) "colornamevalue")
           (func (export "config") (result i32)
             (call $output (call $config_get (call $block (i32.const 0) (i32.const 5))))
             (call $output_set (i64.const 0) (i64.const 0))
             (call $output (call $config_get (call $block (i32.const 0) (i32.const 5))))
             (i32.const 0))
           (func (export "missing") (result i32)
             (i32.wrap_i64 (call $config_get (call $block (i32.const 5) (i32.const 4)))))
           (func (export "set")
             (call $var_set
               (call $block (i32.const 5) (i32.const 4))
               (call $block (i32.const 9) (i32.const 5))))
           (func (export "get")
             (call $output (call $var_get (call $block (i32.const 5) (i32.const 4)))))
           (func (export "remove")
             (call $var_set (call $block (i32.const 5) (i32.const 4)) (i64.const 0)))
           (func (export "log")
             (call $log_debug (call $block (i32.const 0) (i32.const 5)))
             (call $log_warn (call $block (i32.const 0) (i32.const 5))))
           (func (export "level") (result i32) (call $get_log_level))
           (func (export "status") (result i32)
             (i32.add (call $http_status_code) (i32.wrap_i64 (call $http_headers))))
           (func (export "request")
             (drop (call $http_request (call $block (i32.const 0) (i32.const 5)) (i64.const 0))))"#,
  );
  let report = world.run(
    &[(None, &guest)],
    &[
      ("config", b""),
      ("missing", b""),
      ("get", b""),
      ("set", b""),
      ("get", b""),
      ("remove", b""),
      ("get", b""),
      ("log", b""),
      ("level", b""),
      ("status", b""),
      ("request", b""),
    ],
  );
  assert_eq!(
    report.outputs(),
    [
      "blue",
      "",
      "",
      "",
      "value",
      "",
      "",
      "",
      "error: the plugin returned the code 2",
      ""
    ]
  );
  assert_eq!(
    report.ending,
    Ending::HostFunction(HostFunctionError::new(
      "http_request: the request is not a JSON object {url, method?, headers?}: \
       expected value at line 1 column 1"
    ))
  );
  assert_eq!(
    *world.lines.0.lock().unwrap(),
    [(extism_host::host::log::Level::Warn, "color".to_owned())]
  );
}

#[test]
fn codes_and_messages_are_errors() {
  let guest = guest(
    r#"(data (i32.const 0) "timeoutoom")
           (func (export "code") (result i32)
             (call $output (call $input_offset))
             (i32.const 7))
           (func (export "timeout") (result i32)
             (call $error_set (call $block (i32.const 0) (i32.const 7)))
             (i32.const 0))
           (func (export "oom") (result i32)
             (call $error_set (call $block (i32.const 7) (i32.const 3)))
             (i32.const 1))
           (func (export "void") (call $output (call $input_offset)))
           (func (export "withdrawn") (result i32)
             (call $error_set (call $block (i32.const 7) (i32.const 3)))
             (call $error_set (i64.const 0))
             (call $output (call $input_offset))
             (i32.const 0))"#,
  );
  let report = World::new().run(
    &[(None, &guest)],
    &[
      ("code", b"x"),
      ("timeout", b"x"),
      ("oom", b"x"),
      ("void", b"fine"),
      ("withdrawn", b"fine"),
    ],
  );
  let failed = |code, message: Option<&str>| CallError::Failed {
    code,
    message: message.map(str::to_owned),
  };
  assert_eq!(*report.error(0), failed(7, None));
  assert_eq!(*report.error(1), failed(0, Some("timeout")));
  assert_eq!(*report.error(2), failed(1, Some("oom")));
  assert_eq!(report.outputs()[3..], ["fine", "fine"]);
  assert_eq!(report.ending, Ending::Stopped);
}

#[test]
fn long_outputs_are_refused() {
  let echo = guest(ECHO);
  let report = World::new().run(
    &[(None, &echo)],
    &[("echo", &vec![0; (1 << 20) + 1]), ("echo", b"ok")],
  );
  assert_eq!(
    *report.error(0),
    CallError::OutputTooLarge {
      length: (1 << 20) + 1,
      limit: 1 << 20
    }
  );
  assert_eq!(report.outputs()[1], "ok");
}

#[test]
fn long_messages_are_cut_between_two_characters() {
  let fail = guest(
    r#"(func (export "fail") (result i32)
         (call $error_set (call $input_offset)) (i32.const 1))"#,
  );
  let longest = "x".repeat(64 << 10);
  let cut =
    |kept: &str, length: usize| format!("error: {kept}... (cut: the message has {length} bytes)");
  // Each has three bytes, and 65,536 is not a multiple of 3.
  let hearts = "❤".repeat(1 << 16);
  let report = World::new().run(
    &[(None, &fail)],
    &[
      ("fail", longest.as_bytes()),
      ("fail", format!("{longest}x").as_bytes()),
      ("fail", hearts.as_bytes()),
      // Each becomes a character of three bytes.
      ("fail", &[0xff; 30_000]),
      ("fail", b"short"),
    ],
  );
  assert_eq!(
    report.outputs(),
    [
      format!("error: {longest}"),
      cut(&longest, longest.len() + 1),
      cut(&"❤".repeat((64 << 10) / 3), hearts.len()),
      cut(&"\u{fffd}".repeat((64 << 10) / 3 - 1), 30_000),
      "error: short".to_owned(),
    ]
  );
}

#[test]
fn nothing_of_a_call_is_left_for_the_next() {
  let guest = guest(
    r#"(func (export "peek") (result i32)
             (call $output (call $alloc (i64.const 64)))
             (i32.const 0))"#,
  );
  let report = World::new().run(&[(None, &guest)], &[("peek", &[b's'; 200]), ("peek", b"")]);
  assert_eq!(report.outputs()[1], "\0".repeat(64));
}

#[test]
fn initialization_runs_once_in_order() {
  let all = |extra: &str| {
    guest(&format!(
      r#"(func $begin (call $count (i32.const 1)))
               (start $begin)
               (func (export "_initialize") (call $count (i32.const 2)))
               (func (export "__wasm_call_ctors") (call $count (i32.const 3)))
               (func (export "_start") (call $count (i32.const 5)))
               (func (export "run") (call $count (i32.const 9)))
               {extra}"#
    ))
  };
  let calls: [(&str, &[u8]); 2] = [("run", b""), ("run", b"")];

  let world = World::new();
  world.run(&[(None, &all(""))], &calls);
  assert_eq!(world.counts(), [1, 2, 9, 9]);

  let world = World::new();
  let haskell = all(
    r#"(func (export "hs_init") (param i32 i32) (result i32)
             (call $count (i32.add (i32.const 4) (i32.add (local.get 0) (local.get 1))))
             (i32.const 3))"#,
  );
  world.run(&[(None, &haskell)], &calls);
  assert_eq!(world.counts(), [1, 2, 4, 9, 9]);

  let world = World::new();
  let c = guest(
    r#"(func (export "__wasm_call_ctors") (call $count (i32.const 3)))
           (func (export "run") (call $count (i32.const 9)))"#,
  );
  world.run(&[(None, &c)], &calls);
  assert_eq!(world.counts(), [3, 9, 9]);
}

#[test]
fn initialization_may_call_the_host() {
  let body = r#"
        (data (i32.const 0) "hello")
        (global $value (mut i64) (i64.const 0))
        (func $begin
          (global.set $value (call $length
            (call $host_memory_get (call $block (i32.const 0) (i32.const 5))))))
        (func (export "run") (result i32) (i32.wrap_i64 (global.get $value)))"#;
  for how in ["(start $begin)", r#"(export "_initialize" (func $begin))"#] {
    let report = World::new().run(&[(None, &guest(&format!("{body} {how}")))], &[("run", b"")]);
    assert_eq!(
      *report.error(0),
      CallError::Failed {
        code: "👋 Hello World 🌍".len() as i32,
        message: None
      }
    );
  }
}

#[test]
fn initialization_may_fail() {
  for (body, ending) in [
    ("(unreachable)", None),
    (
      "(drop (call $http_request (i64.const 0) (i64.const 0)))",
      Some(Ending::HostFunction(HostFunctionError::new(
        "http_request: the request is not a JSON object {url, method?, headers?}: \
         EOF while parsing a value at line 1 column 0",
      ))),
    ),
  ] {
    let guest = guest(&format!(
      r#"(func $begin {body}) (start $begin) (func (export "run"))"#
    ));
    let report = World::new().run(&[(None, &guest)], &[("run", b"")]);
    assert_eq!((report.is_initialized, report.taken), (false, 0));
    match ending {
      Some(ending) => assert_eq!(report.ending, ending),
      None => assert!(report.is_trapped(), "{:?}", report.ending),
    }
  }
}

/// Interrupts a new instance shortly after it has started to run these calls.
fn interrupted(
  body: &str,
  calls: &[(&str, &[u8])],
  interruptions: Interruptions,
) -> common::Report {
  let plugin = World::new().load_with(&[(None, &guest(body))], Use::interrupted_by(interruptions));
  let mut instance = plugin.instance();
  let interrupt = instance.interrupt().clone();
  std::thread::spawn(move || {
    std::thread::sleep(Duration::from_millis(50));
    interrupt.interrupt();
  });
  plugin.run_instance(&mut instance, calls)
}

#[test]
fn an_endless_initialization_is_interrupted() {
  for interruptions in [Interruptions::Page, Interruptions::Epoch] {
    let body = r#"(func $begin (loop (br 0))) (start $begin) (func (export "run"))"#;
    let report = interrupted(body, &[("run", b"")], interruptions);
    assert_eq!(report.ending, Ending::Interrupted);
    assert!(!report.is_initialized);
  }
}

#[test]
fn an_instance_that_is_interrupted_before_it_starts_runs_no_guest_code() {
  for interruptions in [Interruptions::Page, Interruptions::Epoch] {
    let world = World::new();
    let guest = guest(
      r#"(func $begin (call $count (i32.const 1))) (start $begin)
         (func (export "run") (call $count (i32.const 2)))"#,
    );
    let plugin = world.load_with(&[(None, &guest)], Use::interrupted_by(interruptions));
    let mut instance = plugin.instance();
    instance.interrupt().interrupt();
    let report = plugin.run_instance(&mut instance, &[("run", b"")]);
    assert_eq!(report.ending, Ending::Interrupted);
    assert!(world.counts().is_empty());
  }
}

#[test]
fn endings_are_distinguished() {
  let text = |body: &str| {
    guest(&format!(
      r#"(func $run (export "run") (result i32) {body})"#
    ))
  };

  let report = World::new().run(&[(None, &text("(unreachable)"))], &[("run", b"")]);
  assert_eq!(
    report.ending,
    Ending::Trapped("wasm trap: wasm `unreachable` instruction executed".to_owned())
  );
  assert_eq!((report.taken, report.results.len()), (1, 0));

  let report = World::new().run(&[(None, &text("(call $run)"))], &[("run", b"")]);
  assert_eq!(
    report.ending,
    Ending::Trapped("wasm trap: call stack exhausted".to_owned())
  );

  let report = World::new().run(
    &[(
      None,
      &text("(loop (drop (memory.grow (i32.const 100))) (br 0)) (unreachable)"),
    )],
    &[("run", b"")],
  );
  assert_eq!(report.ending, Ending::OutOfMemory);

  let report = World::new().run(
    &[(
      None,
      &text("(loop (drop (call $alloc (i64.const 1000000))) (br 0)) (unreachable)"),
    )],
    &[("run", b"")],
  );
  assert_eq!(report.ending, Ending::OutOfMemory);
}

#[test]
fn an_endless_loop_is_interrupted() {
  for interruptions in [Interruptions::Page, Interruptions::Epoch] {
    let body = r#"(func (export "run") (loop (br 0)))"#;
    let report = interrupted(body, &[("run", b"")], interruptions);
    assert_eq!(report.ending, Ending::Interrupted);
    assert_eq!((report.is_initialized, report.taken), (true, 1));
    assert!(report.results.is_empty());
  }
}

#[test]
fn each_call_gets_its_own_fuel() {
  let guest = wat(
    r#"(module
         (func $spin (param $left i32)
           (loop $next
             (local.set $left (i32.sub (local.get $left) (i32.const 1)))
             (br_if $next (local.get $left))))
         (func (export "short") (call $spin (i32.const 1000)))
         (func (export "endless") (loop (br 0))))"#,
  );
  let fuel = Use {
    fuel: Some(10_000),
    ..Use::default()
  };
  let plugin = World::new().load_with(&[(None, &guest)], fuel);
  // Together they use more fuel than one call has.
  let short: (&str, &[u8]) = ("short", b"");
  let report = plugin.run(&[short; 10]);
  assert_eq!((report.ending, report.results.len()), (Ending::Stopped, 10));
  let report = plugin.run(&[("short", b""), ("endless", b"")]);
  assert_eq!(
    (report.ending, report.results.len()),
    (Ending::OutOfFuel, 1)
  );
}

#[test]
fn a_guest_may_exit() {
  let guest = wat(&format!(
    r#"(module {} (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
             {} (func (export "run")
             (call $output (call $input_offset))
             (call $exit (i32.wrap_i64 (call $input_length)))))"#,
    common::KERNEL,
    common::LIBRARY
  ));
  let report = World::new().run(&[(None, &guest)], &[("run", b"")]);
  assert_eq!(report.ending, Ending::Exited);
  assert_eq!(report.outputs(), [""]);

  let report = World::new().run(&[(None, &guest)], &[("run", b"abc")]);
  assert_eq!(report.ending, Ending::Exited);
  assert_eq!(
    *report.error(0),
    CallError::Failed {
      code: 3,
      message: None
    }
  );
}

#[test]
fn a_command_runs_once() {
  let guest = wat(&format!(
    r#"(module {} (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
             {} (func (export "_start")
             (call $output (call $input_offset))
             (if (i64.ne (call $input_length) (i64.const 0)) (then (call $exit (i32.const 0))))))"#,
    common::KERNEL,
    common::LIBRARY
  ));
  let report = World::new().run(&[(None, &guest)], &[("_start", b""), ("_start", b"")]);
  assert_eq!((report.ending, report.taken), (Ending::Exited, 1));

  let report = World::new().run(&[(None, &guest)], &[("_start", b"abc")]);
  assert_eq!(report.outputs(), ["abc"]);
  assert_eq!(report.ending, Ending::Exited);
}

#[test]
fn host_functions_may_fail_and_panic() {
  let mut world = World::new();
  world.functions.push(HostFunction::new(
    "extism:host/user",
    "fail",
    [],
    None,
    |_| Err(HostFunctionError::new("timeout")),
  ));
  world
    .functions
    .push(HostFunction::new("custom", "panic", [], None, |_| {
      panic!("no {}", "good")
    }));
  world.functions.push(HostFunction::new(
    "custom",
    "wrong",
    [ValueType::F64],
    Some(ValueType::I32),
    |_| Ok(Answer::I64(1)),
  ));
  let run = |import: &str, call: &str| {
    let guest = wat(&format!(
      r#"(module (import {import}) (func (export "run") {call}))"#
    ));
    world.run(&[(None, &guest)], &[("run", b"")]).ending
  };
  assert_eq!(
    run(r#""env" "fail" (func)"#, "(call 0)"),
    Ending::HostFunction(HostFunctionError::new("timeout"))
  );
  assert_eq!(
    run(r#""custom" "panic" (func)"#, "(call 0)"),
    Ending::Panicked("no good".to_owned())
  );
  assert_eq!(
    run(
      r#""custom" "wrong" (func (param f64) (result i32))"#,
      "(drop (call 0 (f64.const 1)))"
    ),
    Ending::HostFunction(HostFunctionError::new(
      r#"the host function "custom" "wrong" returned an i64, but its type is (f64) -> (i32)"#
    ))
  );
}

#[test]
fn modules_link_in_the_order_of_their_dependencies() {
  let world = World::new();
  let step = |number: i32, imports: &str| {
    wat(&format!(
      r#"(module {imports}
                 (import "extism:host/user" "count" (func $count (param i32)))
                 (memory (export "memory") 1 10)
                 (table (export "table") 1 funcref)
                 (global (export "global") i32 (i32.const {number}))
                 (func $begin (call $count (i32.const {number})))
                 (start $begin)
                 (func (export "_start"))
                 (func (export "value") (result i32) (i32.const {number})))"#
    ))
  };
  // Names that have a meaning elsewhere, and an order that is not the dependency order.
  let main = step(
    4,
    r#"(import "extism:host/user" "value" (func $value (result i32)))
           (import "env" "value" (func (result i32)))
           (import "env" "memory" (memory 1 10))
           (import "env" "table" (table 1 funcref))
           (import "env" "global" (global i32))
           (export "linked" (func $value))"#,
  );
  let user = step(3, r#"(import "env" "value" (func (result i32)))"#);
  let env = step(2, r#"(import "a" "value" (func (result i32)))"#);
  let a = step(1, "");
  let report = world.run(
    &[
      (Some("extism:host/user"), &user),
      (Some("a"), &a),
      (Some("env"), &env),
      (None, &main),
    ],
    &[("linked", b""), ("value", b"")],
  );
  assert_eq!(world.counts(), [1, 2, 3, 4]);
  assert_eq!(
    report.outputs(),
    [
      "error: the plugin returned the code 3",
      "error: the plugin returned the code 4"
    ]
  );
  assert_eq!(report.ending, Ending::Stopped);
}

#[test]
fn memories_reach_their_maximum() {
  let guest = wat(
    r#"(module (memory 1 3)
             (func (export "grow") (result i32) (memory.grow (i32.const 2))))"#,
  );
  let report = World::new().run(&[(None, &guest)], &[("grow", b"")]);
  // Growing returns the old size.
  assert_eq!(report.outputs(), ["error: the plugin returned the code 1"]);
  assert_eq!(report.ending, Ending::Stopped);
}

#[test]
fn tables_are_limited() {
  let guest = wat(
    r#"(module (table 10 funcref) (table 10 externref)
             (func $grow (export "grow") (result i32)
               (drop (table.grow 0 (ref.null func) (i32.const 1000)))
               (i32.add
                 (table.grow 0 (ref.null func) (i32.const 1))
                 (table.grow 1 (ref.null extern) (i32.const 1000)))))"#,
  );
  let limits = Use {
    table_elements: 1000,
    ..Use::default()
  };
  let report = World::new().run_with(&[(None, &guest)], &[("grow", b"")], limits);
  assert_eq!(report.outputs(), ["error: the plugin returned the code -2"]);
}

#[test]
fn vars_are_shared_and_limited() {
  let guest = guest(
    r#"(data (i32.const 0) "k")
           (func (export "set")
             (call $var_set (call $block (i32.const 0) (i32.const 1)) (call $input_offset)))
           (func (export "get")
             (call $output (call $var_get (call $block (i32.const 0) (i32.const 1)))))"#,
  );
  let world = World::new();
  let large = vec![b'v'; 4000];
  let report = world.run(
    &[(None, &guest)],
    &[("set", &large), ("set", &large), ("set", &large)],
  );
  assert_eq!(report.ending, Ending::Stopped);
  let report = world.run(&[(None, &guest)], &[("get", b""), ("set", &[b'v'; 4097])]);
  assert_eq!(report.outputs()[0].len(), 4000);
  assert_eq!(
    report.ending,
    Ending::HostFunction(HostFunctionError::new(
      "var memory limit exceeded: 4097 bytes requested, 4096 allowed"
    ))
  );
}

#[test]
fn live_blocks_have_a_limit_together() {
  // Two pages: the input, the guest's blocks, and the results of host functions.
  let guest = guest(
    r#"(global $block (mut i64) (i64.const 0))
           (func (export "alloc")
             (global.set $block (call $alloc (call $input_load_u64 (i64.const 0)))))
           (func (export "alloc_and_free") (local $count i32)
             (loop $again
               (call $free (call $alloc (i64.const 100000)))
               (local.set $count (i32.add (local.get $count) (i32.const 1)))
               (br_if $again (i32.lt_u (local.get $count) (i32.const 1000)))))
           (func (export "free_twice") (local $block i64)
             (local.set $block (call $alloc (i64.const 100000)))
             (call $free (local.get $block))
             (call $free (local.get $block))
             (call $free (i64.const 12345))
             (drop (call $alloc (i64.const 131073))))
           (func (export "keep") (loop (drop (call $alloc (i64.const 1))) (br 0)))
           (data (i32.const 0) "large")
           (func (export "ask")
             (drop (call $host_memory_get (call $block (i32.const 0) (i32.const 5)))))"#,
  );
  let plugin = World::new().load_with(&[(None, &guest)], Use::growing_by(2));
  let bytes = |number: u64| number.to_le_bytes();
  let (fits, too_much) = (bytes(2 * 65536 - 8), bytes(2 * 65536 - 7));
  // Each call starts with no blocks.
  let report = plugin.run(&[
    ("alloc", &fits),
    ("alloc", &fits),
    ("alloc_and_free", b""),
    ("alloc", &fits),
  ]);
  assert_eq!((report.ending, report.results.len()), (Ending::Stopped, 4));
  let long = vec![0; 2 * 65536 + 1];
  for (export, input) in [
    ("alloc", &too_much[..]),
    ("free_twice", b""),
    ("keep", b""),
    ("ask", b""),
    ("alloc", &long),
  ] {
    let report = plugin.run(&[(export, input)]);
    assert_eq!(report.ending, Ending::OutOfMemory, "{export}");
    assert!(report.results.is_empty(), "{export}");
  }
}

#[test]
fn memories_may_grow_by_the_limit_regardless_of_their_initial_size() {
  let guest = wat(
    r#"(module (memory 100) (memory $other 17)
             (func (export "grow") (result i32)
               (drop (memory.grow (i32.const 1)))
               (drop (memory.grow $other (i32.const 1)))
               (i32.const 0))
             (func (export "grow_more") (result i32) (memory.grow (i32.const 3))))"#,
  );
  let plugin = World::new().load_with(&[(None, &guest)], Use::growing_by(2));
  assert_eq!(plugin.run(&[("grow", b"")]).ending, Ending::Stopped);
  assert_eq!(
    plugin.run(&[("grow_more", b"")]).ending,
    Ending::OutOfMemory
  );
}

/// Garbage-collected objects are in a memory of their own, which counts towards the limit like
/// the others.
#[test]
fn garbage_is_limited() {
  let list = wat(
    r#"(module
             (type $bytes (array (mut i8)))
             (type $cell (struct (field (ref null $cell)) (field (ref $bytes))))
             (global $list (mut (ref null $cell)) (ref.null $cell))
             (func (export "keep")
               (loop $next
                 (global.set $list (struct.new $cell
                   (global.get $list)
                   (array.new_default $bytes (i32.const 100000))))
                 (br $next)))
             (func (export "large")
               (drop (array.new_default $bytes (i32.const -1)))))"#,
  );
  for export in ["keep", "large"] {
    let report = World::new().run(&[(None, &list)], &[(export, b"")]);
    assert_eq!(report.ending, Ending::OutOfMemory, "{export}");
  }
}
