;; Calls one of the functions for stores, and says what it returns.
;;
;; The input is the arguments: for each a byte, 0 for a number and 1 for bytes, then eight bytes with the
;; number or the length, and then the bytes. The output is the result in eight bytes and, where that is the
;; offset of a block, the bytes of the block.
(module
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "free" (func $free (param i64)))
  (import "extism:host/env" "length" (func $length (param i64) (result i64)))
  (import "extism:host/env" "load_u8" (func $load_u8 (param i64) (result i32)))
  (import "extism:host/env" "store_u8" (func $store_u8 (param i64 i32)))
  (import "extism:host/env" "store_u64" (func $store_u64 (param i64 i64)))
  (import "extism:host/env" "input_load_u8" (func $input_load_u8 (param i64) (result i32)))
  (import "extism:host/env" "input_load_u64" (func $input_load_u64 (param i64) (result i64)))
  (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
  (import "extism:host/user" "hostMemoryGet" (func $memory_get (param i64) (result i64)))
  (import "extism:host/user" "hostStoreGet" (func $get (param i64) (result i64)))
  (import "extism:host/user" "hostStoreSet" (func $set (param i64 i64 i64) (result i64)))
  (import "extism:host/user" "hostStoreDelete" (func $delete (param i64) (result i64)))
  (import "extism:host/user" "hostStoreExists" (func $exists (param i64) (result i64)))
  (import "extism:host/user" "hostStoreKeys" (func $keys (param i64 i64 i64) (result i64)))
  (import "extism:host/user" "hostStoreIncrement" (func $increment (param i64 i64) (result i64)))
  (import "extism:host/user" "hostStoreCompareAndSwap" (func $swap (param i64 i64 i64 i64) (result i64)))
  (import "extism:host/user" "hostStoreGetMany" (func $get_many (param i64) (result i64)))

  ;; Where the next argument begins.
  (global $at (mut i64) (i64.const 0))

  (func $argument (result i64)
    (local $number i64) (local $block i64) (local $i i64) (local $from i64)
    (local.set $number (call $input_load_u64 (i64.add (global.get $at) (i64.const 1))))
    (local.set $from (i64.add (global.get $at) (i64.const 9)))
    (if (i32.eqz (call $input_load_u8 (global.get $at)))
      (then
        (global.set $at (local.get $from))
        (return (local.get $number))))
    (global.set $at (i64.add (local.get $from) (local.get $number)))
    (if (i64.eqz (local.get $number)) (then (return (i64.const 0))))
    (local.set $block (call $alloc (local.get $number)))
    (loop $next
      (call $store_u8
        (i64.add (local.get $block) (local.get $i))
        (call $input_load_u8 (i64.add (local.get $from) (local.get $i))))
      (local.set $i (i64.add (local.get $i) (i64.const 1)))
      (br_if $next (i64.lt_u (local.get $i) (local.get $number))))
    (local.get $block))

  ;; A number is the answer.
  (func $number (param $result i64) (result i32)
    (local $answer i64)
    (global.set $at (i64.const 0))
    (local.set $answer (call $alloc (i64.const 8)))
    (call $store_u64 (local.get $answer) (local.get $result))
    (call $output_set (local.get $answer) (i64.const 8))
    (i32.const 0))

  ;; A block is, or a number that says why not.
  (func $block (param $result i64) (result i32)
    (local $answer i64) (local $length i64) (local $i i64)
    (if (i64.le_s (local.get $result) (i64.const 0)) (then (return (call $number (local.get $result)))))
    (global.set $at (i64.const 0))
    (local.set $length (call $length (local.get $result)))
    (local.set $answer (call $alloc (i64.add (local.get $length) (i64.const 8))))
    (call $store_u64 (local.get $answer) (local.get $result))
    (loop $next
      (call $store_u8
        (i64.add (i64.add (local.get $answer) (i64.const 8)) (local.get $i))
        (call $load_u8 (i64.add (local.get $result) (local.get $i))))
      (local.set $i (i64.add (local.get $i) (i64.const 1)))
      (br_if $next (i64.lt_u (local.get $i) (local.get $length))))
    (call $output_set (local.get $answer) (i64.add (local.get $length) (i64.const 8)))
    (i32.const 0))

  (func (export "hostMemoryGet") (result i32)
    (call $block (call $memory_get (call $argument))))
  (func (export "get") (result i32)
    (call $block (call $get (call $argument))))
  (func (export "set") (result i32)
    (call $number (call $set (call $argument) (call $argument) (call $argument))))
  (func (export "delete") (result i32)
    (call $number (call $delete (call $argument))))
  (func (export "exists") (result i32)
    (call $number (call $exists (call $argument))))
  (func (export "keys") (result i32)
    (call $block (call $keys (call $argument) (call $argument) (call $argument))))
  (func (export "increment") (result i32)
    (call $block (call $increment (call $argument) (call $argument))))
  (func (export "compareAndSwap") (result i32)
    (call $number (call $swap (call $argument) (call $argument) (call $argument) (call $argument))))
  (func (export "getMany") (result i32)
    (call $block (call $get_many (call $argument))))

  ;; Adds 1 to a number, that many times.
  (func (export "incrementOften") (result i32)
    (local $key i64) (local $left i64) (local $result i64)
    (local.set $key (call $argument))
    (local.set $left (call $argument))
    (loop $next
      (local.set $result (call $increment (local.get $key) (i64.const 1)))
      (if (i64.lt_s (local.get $result) (i64.const 0)) (then (return (call $number (local.get $result)))))
      (call $free (local.get $result))
      (local.set $left (i64.sub (local.get $left) (i64.const 1)))
      (br_if $next (i64.ne (local.get $left) (i64.const 0))))
    (call $number (i64.const 0))))
