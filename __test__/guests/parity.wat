;; What the plugins of the JavaScript SDK's own tests do.
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
  (import "extism:host/env" "var_get" (func $var_get (param i64) (result i64)))
  (import "extism:host/env" "var_set" (func $var_set (param i64 i64)))

  ;; Many compilers give a module as many pages to begin with.
  (memory (export "memory") 17)
  (data (i32.const 0) "Some error message")
  (data (i32.const 32) "thing")

  (func $text (param $address i32) (param $length i32) (result i64)
    (local $block i64) (local $i i32)
    (local.set $block (call $alloc (i64.extend_i32_u (local.get $length))))
    (loop $next
      (call $store_u8
        (i64.add (local.get $block) (i64.extend_i32_u (local.get $i)))
        (i32.load8_u (i32.add (local.get $address) (local.get $i))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $i) (local.get $length))))
    (local.get $block))
  (func $output (param $block i64)
    (call $output_set (local.get $block) (call $length (local.get $block))))

  ;; How many vowels the input has, in one digit.
  (func (export "count_vowels") (result i32)
    (local $i i64) (local $letter i32) (local $count i32) (local $block i64)
    (block $end
      (loop $next
        (br_if $end (i64.ge_u (local.get $i) (call $input_length)))
        (local.set $letter (i32.or (call $input_load_u8 (local.get $i)) (i32.const 0x20)))
        (if (i32.or (i32.eq (local.get $letter) (i32.const 97))
            (i32.or (i32.eq (local.get $letter) (i32.const 101))
            (i32.or (i32.eq (local.get $letter) (i32.const 105))
            (i32.or (i32.eq (local.get $letter) (i32.const 111))
                    (i32.eq (local.get $letter) (i32.const 117))))))
          (then (local.set $count (i32.add (local.get $count) (i32.const 1)))))
        (local.set $i (i64.add (local.get $i) (i64.const 1)))
        (br $next)))
    (local.set $block (call $alloc (i64.const 1)))
    (call $store_u8 (local.get $block) (i32.add (local.get $count) (i32.const 48)))
    (call $output (local.get $block))
    (i32.const 0))

  ;; The input, by its offset.
  (func (export "input_offset") (result i32)
    (call $output_set (call $input_offset) (call $input_length))
    (i32.const 0))

  (func (export "run_test") (result i32)
    (call $output (call $text (i32.const 32) (i32.const 5)))
    (i32.const 0))

  ;; A block of five pages.
  (func (export "alloc_memory") (result i32)
    (drop (call $alloc (i64.const 327680)))
    (i32.const 0))

  (func (export "do_error") (result i32)
    (call $error_set (call $text (i32.const 0) (i32.const 18)))
    (i32.const 1))

  (func (export "get_config") (result i32)
    (call $output (call $config_get (call $text (i32.const 32) (i32.const 5))))
    (i32.const 0))

  (func (export "set_var") (result i32)
    (call $var_set (call $text (i32.const 32) (i32.const 5)) (call $input_offset))
    (i32.const 0))
  (func (export "get_var") (result i32)
    (call $output (call $var_get (call $text (i32.const 32) (i32.const 5))))
    (i32.const 0))

  (func (export "loop_forever") (result i32) (loop $again (br $again)) (i32.const 0)))
