;; What a trigger calls.
(module
  (import "extism:host/env" "input_offset" (func $input (result i64)))
  (import "extism:host/env" "input_length" (func $input_length (result i64)))
  (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))

  ;; Answers with its input.
  (func (export "echo") (call $output_set (call $input) (call $input_length)))
  ;; Answers with nothing.
  (func (export "silent"))
  (func (export "trap") unreachable)
  ;; Traps at each third call. The instance is replaced then, so the count starts again.
  (global $calls (mut i32) (i32.const 0))
  (func (export "unreliable")
    (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
    (if (i32.eq (global.get $calls) (i32.const 3)) (then unreachable)))
  (func (export "endless") (loop $again (br $again))))
