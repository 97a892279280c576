;; Handles HTTP: a page for GET, 405 for anything else. In WebAssembly text, to be small and to need no
;; toolchain; in other languages, read the input as JSON.
(module
  (import "extism:host/env" "input_load_u8" (func $input_load_u8 (param i64) (result i32)))
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "store_u8" (func $store_u8 (param i64 i32)))
  (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
  (memory 1)
  (data (i32.const 0) "{\"headers\": {\"content-type\": \"text/html; charset=utf-8\", \"set-cookie\": [\"seen=yes; Path=/\", \"theme=dark\"]}, \"body\": \"<h1>Hello</h1>\"}")
  (data (i32.const 256) "{\"status\": 405, \"headers\": {\"allow\": \"GET\"}, \"body\": \"only GET\"}")

  ;; Answers with the text that begins there and ends at a 0.
  (func $answer (param $from i32)
    (local $length i32) (local $block i64) (local $i i32)
    (loop $count
      (if (i32.load8_u (i32.add (local.get $from) (local.get $length)))
        (then
          (local.set $length (i32.add (local.get $length) (i32.const 1)))
          (br $count))))
    (local.set $block (call $alloc (i64.extend_i32_u (local.get $length))))
    (loop $copy
      (call $store_u8
        (i64.add (local.get $block) (i64.extend_i32_u (local.get $i)))
        (i32.load8_u (i32.add (local.get $from) (local.get $i))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br_if $copy (i32.lt_u (local.get $i) (local.get $length))))
    (call $output_set (local.get $block) (i64.extend_i32_u (local.get $length))))

  (func (export "handle") (result i32)
    ;; The input begins with {"method":" and the method.
    (if (i32.eq (call $input_load_u8 (i64.const 11)) (i32.const 71 (; G ;)))
      (then (call $answer (i32.const 0)))
      (else (call $answer (i32.const 256))))
    (i32.const 0)))
