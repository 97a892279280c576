;; Sends HTTP requests. The input is the request's JSON in one line; what follows the line is its body.
(module
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "length" (func $length (param i64) (result i64)))
  (import "extism:host/env" "store_u8" (func $store_u8 (param i64 i32)))
  (import "extism:host/env" "input_length" (func $input_length (result i64)))
  (import "extism:host/env" "input_load_u8" (func $input_load_u8 (param i64) (result i32)))
  (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
  (import "extism:host/env" "http_request" (func $http_request (param i64 i64) (result i64)))
  (import "extism:host/env" "http_status_code" (func $http_status_code (result i32)))
  (import "extism:host/env" "http_headers" (func $http_headers (result i64)))

  ;; A block with the bytes of the input from one place to another; 0 where there are none.
  (func $part_of_input (param $from i64) (param $to i64) (result i64)
    (local $block i64) (local $i i64)
    (if (i64.ge_u (local.get $from) (local.get $to)) (then (return (i64.const 0))))
    (local.set $block (call $alloc (i64.sub (local.get $to) (local.get $from))))
    (loop $next
      (call $store_u8
        (i64.add (local.get $block) (local.get $i))
        (call $input_load_u8 (i64.add (local.get $from) (local.get $i))))
      (local.set $i (i64.add (local.get $i) (i64.const 1)))
      (br_if $next (i64.lt_u (local.get $i) (i64.sub (local.get $to) (local.get $from)))))
    (local.get $block))

  (func $request (result i64)
    (local $end i64)
    (block $found
      (loop $next
        (br_if $found (i64.ge_u (local.get $end) (call $input_length)))
        (br_if $found (i32.eq (call $input_load_u8 (local.get $end)) (i32.const 10)))
        (local.set $end (i64.add (local.get $end) (i64.const 1)))
        (br $next)))
    (call $http_request
      (call $part_of_input (i64.const 0) (local.get $end))
      (call $part_of_input (i64.add (local.get $end) (i64.const 1)) (call $input_length))))

  (func $output_block (param $block i64)
    (call $output_set (local.get $block) (call $length (local.get $block))))

  ;; The status in two bytes.
  (func $output_status
    (local $block i64)
    (local.set $block (call $alloc (i64.const 2)))
    (call $store_u8 (local.get $block) (i32.and (call $http_status_code) (i32.const 255)))
    (call $store_u8
      (i64.add (local.get $block) (i64.const 1))
      (i32.shr_u (call $http_status_code) (i32.const 8)))
    (call $output_block (local.get $block)))

  ;; Each sends the request, and its output is what the name says.
  (func (export "body") (call $output_block (call $request)))
  (func (export "status") (drop (call $request)) (call $output_status))
  (func (export "headers") (drop (call $request)) (call $output_block (call $http_headers)))

  ;; These send none.
  (func (export "last_status") (call $output_status))
  (func (export "last_headers") (call $output_block (call $http_headers))))
