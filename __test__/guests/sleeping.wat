;; Sleeps in WASI for 5 s.
(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "extism:host/env" "input_offset" (func $input_offset (result i64)))
  (import "extism:host/env" "input_length" (func $input_length (result i64)))
  (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
  (memory (export "memory") 1)
  (func (export "sleep")
    ;; A subscription to the monotonic clock.
    (i32.store (i32.const 16) (i32.const 1))
    (i64.store (i32.const 24) (i64.const 5000000000))
    (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128))))
  ;; Sleeps for 10 ms; 0 if it is told what it should be.
  (func (export "nap") (result i32)
    (i64.store (i32.const 0) (i64.const 7))
    (i32.store (i32.const 16) (i32.const 1))
    (i64.store (i32.const 24) (i64.const 10000000))
    (i32.or
      (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128))
      (i32.or
        (i32.ne (i32.load (i32.const 128)) (i32.const 1))
        (i32.or (i64.ne (i64.load (i32.const 64)) (i64.const 7)) (i64.ne (i64.load (i32.const 72)) (i64.const 0))))))
  ;; Sleeps without a place for the event; 0 if that is refused as a fault.
  (func (export "fault") (result i32)
    (i32.ne (call $poll (i32.const 0) (i32.const 65530) (i32.const 1) (i32.const 128)) (i32.const 21)))
  (func (export "echo")
    (call $output_set (call $input_offset) (call $input_length))))
