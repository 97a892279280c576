;; One function for each way in which a call can go.
(module
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "length" (func $length (param i64) (result i64)))
  (import "extism:host/env" "load_u8" (func $load_u8 (param i64) (result i32)))
  (import "extism:host/env" "store_u8" (func $store_u8 (param i64 i32)))
  (import "extism:host/env" "input_offset" (func $input_offset (result i64)))
  (import "extism:host/env" "input_length" (func $input_length (result i64)))
  (import "extism:host/env" "input_load_u8" (func $input_load_u8 (param i64) (result i32)))
  (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
  (import "extism:host/env" "error_set" (func $error_set (param i64)))
  (import "extism:host/env" "config_get" (func $config_get (param i64) (result i64)))
  (import "extism:host/user" "hostMemoryGet" (func $user_get (param i64) (result i64)))
  (import "env" "hostMemoryGet" (func $env_get (param i64) (result i64)))

  (memory 1)
  (global $count (mut i32) (i32.const 0))

  ;; A copy of the input in a block of its own.
  (func $copy_of_input (result i64)
    (local $block i64) (local $i i64)
    (if (i64.eqz (call $input_length)) (then (return (i64.const 0))))
    (local.set $block (call $alloc (call $input_length)))
    (loop $next
      (call $store_u8
        (i64.add (local.get $block) (local.get $i))
        (call $input_load_u8 (local.get $i)))
      (local.set $i (i64.add (local.get $i) (i64.const 1)))
      (br_if $next (i64.lt_u (local.get $i) (call $input_length))))
    (local.get $block))

  (func $output_block (param $block i64)
    (call $output_set (local.get $block) (call $length (local.get $block))))

  (func (export "echo") (result i32)
    (call $output_set (call $input_offset) (call $input_length))
    (i32.const 0))
  (func (export "echo_without_result")
    (call $output_set (call $input_offset) (call $input_length)))
  (func (export "silent") (result i32) (i32.const 0))
  (func (export "read_store") (result i32)
    (call $output_block (call $user_get (call $copy_of_input)))
    (i32.const 0))
  (func (export "read_store_by_env") (result i32)
    (call $output_block (call $env_get (call $copy_of_input)))
    (i32.const 0))
  (func (export "read_config") (result i32)
    (call $output_block (call $config_get (call $copy_of_input)))
    (i32.const 0))

  ;; How often it has been called, in one byte: the state of an instance.
  (func (export "count") (result i32)
    (local $block i64)
    (global.set $count (i32.add (global.get $count) (i32.const 1)))
    (local.set $block (call $alloc (i64.const 1)))
    (call $store_u8 (local.get $block) (global.get $count))
    (call $output_block (local.get $block))
    (i32.const 0))

  ;; The input is the error's message.
  (func (export "fail") (result i32)
    (call $error_set (call $copy_of_input))
    (i32.const 1))
  (func (export "return_three") (result i32) (i32.const 3))
  (func (export "trap") (result i32) unreachable)
  (func (export "divide_by_zero") (result i32) (i32.div_u (i32.const 1) (i32.const 0)))
  (func $recurse (export "recurse") (result i32) (i32.add (call $recurse) (i32.const 1)))
  (func (export "loop_for_ever") (result i32) (loop $again (br $again)) (i32.const 0))
  (func (export "grow_for_ever") (result i32)
    (loop $again (br_if $again (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))
    (i32.const 0))

  ;; Computes for a while: 2^24 rounds for each unit of the first byte of the input.
  (func (export "compute") (result i32)
    (local $i i64)
    (local.set $i (i64.shl (i64.extend_i32_u (call $input_load_u8 (i64.const 0))) (i64.const 24)))
    (loop $again
      (local.set $i (i64.sub (local.get $i) (i64.const 1)))
      (br_if $again (i64.gt_s (local.get $i) (i64.const 0))))
    (i32.const 0))

  (func (export "takes_an_argument") (param i32) (result i32) (local.get 0)))
