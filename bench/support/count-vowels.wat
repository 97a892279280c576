;; The SDKs' example: counts the vowels of the input, and answers {"count": n}, where n has at most
;; two digits. It reads as Extism's PDKs do: eight bytes at a time, then one by one.
(module
  (import "extism:host/env" "input_length" (func $input_length (result i64)))
  (import "extism:host/env" "input_load_u64" (func $input_load_u64 (param i64) (result i64)))
  (import "extism:host/env" "input_load_u8" (func $input_load_u8 (param i64) (result i32)))
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "store_u64" (func $store_u64 (param i64 i64)))
  (import "extism:host/env" "store_u8" (func $store_u8 (param i64 i32)))
  (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))

  (memory 1)
  (data (i32.const 0) "{\"count\": 00}")

  ;; 1 for a vowel, else 0. Letters differ from their capitals in bit 5.
  (func $is_vowel (param $byte i32) (result i32)
    (local.set $byte (i32.or (local.get $byte) (i32.const 32)))
    (i32.or
      (i32.or
        (i32.or
          (i32.eq (local.get $byte) (i32.const 97))
          (i32.eq (local.get $byte) (i32.const 101)))
        (i32.or
          (i32.eq (local.get $byte) (i32.const 105))
          (i32.eq (local.get $byte) (i32.const 111))))
      (i32.eq (local.get $byte) (i32.const 117))))

  (func (export "count_vowels") (result i32)
    (local $length i64) (local $i i64) (local $word i64) (local $count i32) (local $block i64)
    (local.set $length (call $input_length))

    ;; The input is copied to 64…, as a PDK does before the plugin's author sees it.
    (block $words_read
      (loop $next
        (br_if $words_read (i64.gt_u (i64.add (local.get $i) (i64.const 8)) (local.get $length)))
        (i64.store offset=64 (i32.wrap_i64 (local.get $i)) (call $input_load_u64 (local.get $i)))
        (local.set $i (i64.add (local.get $i) (i64.const 8)))
        (br $next)))
    (block $bytes_read
      (loop $next
        (br_if $bytes_read (i64.ge_u (local.get $i) (local.get $length)))
        (i32.store8 offset=64 (i32.wrap_i64 (local.get $i)) (call $input_load_u8 (local.get $i)))
        (local.set $i (i64.add (local.get $i) (i64.const 1)))
        (br $next)))

    (local.set $i (i64.const 0))
    (block $counted
      (loop $next
        (br_if $counted (i64.ge_u (local.get $i) (local.get $length)))
        (local.set $count (i32.add (local.get $count)
          (call $is_vowel (i32.load8_u offset=64 (i32.wrap_i64 (local.get $i))))))
        (local.set $i (i64.add (local.get $i) (i64.const 1)))
        (br $next)))

    ;; {"count": dd} is 13 bytes: one word of 8, then 5 bytes.
    (i32.store8 (i32.const 10) (i32.add (i32.const 48) (i32.div_u (local.get $count) (i32.const 10))))
    (i32.store8 (i32.const 11) (i32.add (i32.const 48) (i32.rem_u (local.get $count) (i32.const 10))))
    (local.set $block (call $alloc (i64.const 13)))
    (call $store_u64 (local.get $block) (i64.load (i32.const 0)))
    (local.set $i (i64.const 8))
    (loop $next
      (call $store_u8
        (i64.add (local.get $block) (local.get $i))
        (i32.load8_u (i32.wrap_i64 (local.get $i))))
      (local.set $i (i64.add (local.get $i) (i64.const 1)))
      (br_if $next (i64.lt_u (local.get $i) (i64.const 13))))
    (call $output_set (local.get $block) (i64.const 13))
    (i32.const 0)))
