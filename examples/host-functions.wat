;; Asks a host function in JavaScript who the user is, and answers with what the store has for that name.
(module
  (import "extism:host/user" "user" (func $user (result i64)))
  (import "extism:host/user" "hostMemoryGet" (func $host_memory_get (param i64) (result i64)))
  (import "extism:host/env" "length" (func $length (param i64) (result i64)))
  (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
  (func (export "greet") (result i32)
    (local $value i64)
    (local.set $value (call $host_memory_get (call $user)))
    (call $output_set (local.get $value) (call $length (local.get $value)))
    (i32.const 0)))
