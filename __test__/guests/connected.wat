;; Each function passes its input to the host function of that name, and answers with the reply.
(module
  (import "extism:host/env" "length" (func $length (param i64) (result i64)))
  (import "extism:host/env" "input_offset" (func $input (result i64)))
  (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
  (import "extism:host/user" "hostPublish" (func $publish (param i64) (result i64)))
  (import "extism:host/user" "hostRequest" (func $request (param i64) (result i64)))
  (import "extism:host/user" "hostQuery" (func $query (param i64) (result i64)))
  (import "extism:host/user" "hostExecute" (func $execute (param i64) (result i64)))

  (func $output (param $block i64)
    (call $output_set (local.get $block) (call $length (local.get $block))))

  (func (export "publish") (call $output (call $publish (call $input))))
  (func (export "request") (call $output (call $request (call $input))))
  (func (export "query") (call $output (call $query (call $input))))
  (func (export "execute") (call $output (call $execute (call $input)))))
