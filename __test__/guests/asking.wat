;; Calls functions of the host with its input, and answers with what they return.
(module
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "length" (func $length (param i64) (result i64)))
  (import "extism:host/env" "store_u8" (func $store_u8 (param i64 i32)))
  (import "extism:host/env" "store_u64" (func $store_u64 (param i64 i64)))
  (import "extism:host/env" "input_length" (func $input_length (result i64)))
  (import "extism:host/env" "input_load_u8" (func $input_load_u8 (param i64) (result i32)))
  (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
  (import "extism:host/env" "var_get" (func $var_get (param i64) (result i64)))
  (import "extism:host/user" "ask" (func $ask (param i64) (result i64)))
  (import "numbers" "mix" (func $mix (param i32 i64 f32 f64) (result f64)))
  (import "numbers" "i32" (func $i32 (param i32) (result i32)))
  (import "numbers" "f32" (func $f32 (param f32) (result f32)))
  (import "numbers" "nothing" (func $nothing))

  (global $count (mut i64) (i64.const 0))

  (func $input (result i64)
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

  (func $output (param $block i64)
    (call $output_set (local.get $block) (call $length (local.get $block))))

  (func (export "ask") (result i32)
    (local $answer i64)
    (local.set $answer (call $ask (call $input)))
    (if (i64.ne (local.get $answer) (i64.const 0))
      (then (call $output (local.get $answer))))
    (i32.const 0))

  ;; Asks as often as the input's first byte says.
  (func (export "ask_often") (result i32)
    (local $left i32)
    (local.set $left (call $input_load_u8 (i64.const 0)))
    (loop $again
      (drop (call $ask (call $input)))
      (local.set $left (i32.sub (local.get $left) (i32.const 1)))
      (br_if $again (local.get $left)))
    (i32.const 0))

  ;; Answers with eight bytes: what `mix` returns, as the bits of a double.
  (func (export "mix") (result i32)
    (local $block i64)
    (local.set $block (call $alloc (i64.const 8)))
    (call $store_u64 (local.get $block)
      (i64.reinterpret_f64
        (call $mix (i32.const -7) (i64.const -9) (f32.const 1.5) (f64.const 2.25))))
    (call $output (local.get $block))
    (call $nothing)
    (i32.const 0))

  (func (export "small_numbers") (result i32)
    (i32.sub
      (call $i32 (i32.const -5))
      (i32.trunc_f32_s (call $f32 (f32.const 2.5)))))

  ;; How often this instance has been asked, as one byte.
  (func (export "count") (result i32)
    (local $block i64)
    (global.set $count (i64.add (global.get $count) (i64.const 1)))
    (local.set $block (call $alloc (i64.const 1)))
    (call $store_u8 (local.get $block) (i32.wrap_i64 (global.get $count)))
    (call $output (local.get $block))
    (i32.const 0))

  ;; The variable named by the input.
  (func (export "variable") (result i32)
    (local $value i64)
    (local.set $value (call $var_get (call $input)))
    (if (i64.ne (local.get $value) (i64.const 0))
      (then (call $output (local.get $value))))
    (i32.const 0)))
