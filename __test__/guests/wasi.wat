;; What guests do with WASI. Each function returns WASI's error number as its code.
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_close" (func $fd_close (param i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_renumber" (func $fd_renumber (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ_sizes_get (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $environ_get (param i32 i32) (result i32)))
  (import "extism:host/env" "alloc" (func $alloc (param i64) (result i64)))
  (import "extism:host/env" "store_u8" (func $store_u8 (param i64 i32)))
  (import "extism:host/env" "input_length" (func $input_length (result i64)))
  (import "extism:host/env" "input_load_u8" (func $input_load_u8 (param i64) (result i32)))
  (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))

  ;; At 0 two vectors, at 16 a result, at 20 another, from 1024 on bytes.
  (memory (export "memory") 4)

  (func $input
    (local $i i32)
    (if (i64.eqz (call $input_length)) (then (return)))
    (loop $next
      (i32.store8 (i32.add (i32.const 1024) (local.get $i))
        (call $input_load_u8 (i64.extend_i32_u (local.get $i))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br_if $next (i64.lt_u (i64.extend_i32_u (local.get $i)) (call $input_length)))))

  (func $output (param $from i32) (param $length i32)
    (local $block i64) (local $i i32)
    (if (i32.eqz (local.get $length)) (then (return)))
    (local.set $block (call $alloc (i64.extend_i32_u (local.get $length))))
    (loop $next
      (call $store_u8
        (i64.add (local.get $block) (i64.extend_i32_u (local.get $i)))
        (i32.load8_u (i32.add (local.get $from) (local.get $i))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br_if $next (i32.lt_u (local.get $i) (local.get $length))))
    (call $output_set (local.get $block) (i64.extend_i32_u (local.get $length))))

  (func $write (param $descriptor i32) (result i32)
    (local $first i32)
    (call $input)
    ;; In two vectors.
    (local.set $first (i32.div_u (i32.wrap_i64 (call $input_length)) (i32.const 2)))
    (i32.store (i32.const 0) (i32.const 1024))
    (i32.store (i32.const 4) (local.get $first))
    (i32.store (i32.const 8) (i32.add (i32.const 1024) (local.get $first)))
    (i32.store (i32.const 12) (i32.sub (i32.wrap_i64 (call $input_length)) (local.get $first)))
    (call $fd_write (local.get $descriptor) (i32.const 0) (i32.const 2) (i32.const 16)))

  ;; Answers with how many bytes were written, as four bytes.
  (func (export "write_output") (result i32) (local $error i32)
    (local.set $error (call $write (i32.const 1)))
    (call $output (i32.const 16) (i32.const 4))
    (local.get $error))
  (func (export "write_error") (result i32) (call $write (i32.const 2)))
  (func (export "write_file") (result i32) (call $write (i32.const 3)))
  (func (export "write_and_trap") (drop (call $write (i32.const 1))) unreachable)

  (func (export "move_output") (result i32)
    (call $fd_renumber (i32.const 1) (i32.const 3)))
  (func (export "move_onto_output") (result i32)
    (call $fd_renumber (i32.const 3) (i32.const 1)))
  (func (export "close_output") (result i32) (call $fd_close (i32.const 1)))
  (func (export "close_nothing") (result i32) (call $fd_close (i32.const 77)))

  ;; Vectors that lie, or whose bytes do, where no memory is.
  (func (export "bad_vectors") (result i32)
    (call $fd_write (i32.const 1) (i32.const 0x7ffffff0) (i32.const 1) (i32.const 16)))
  (func (export "bad_pointer") (result i32)
    (i32.store (i32.const 0) (i32.const 0x7ffffff0))
    (i32.store (i32.const 4) (i32.const 100))
    (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))
  (func (export "huge_length") (result i32)
    (i32.store (i32.const 0) (i32.const 1024))
    (i32.store (i32.const 4) (i32.const -1))
    (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))
  (func (export "many_vectors") (result i32)
    (call $fd_write (i32.const 1) (i32.const 0) (i32.const -1) (i32.const 16)))
  (func (export "bad_result") (result i32)
    (call $fd_write (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 0x7ffffff0)))

  ;; Opens the file named by the input in the first directory and answers with what it begins with.
  (func (export "read") (result i32) (local $error i32)
    (call $input)
    (local.set $error (call $path_open (i32.const 3) (i32.const 1) (i32.const 1024)
      (i32.wrap_i64 (call $input_length)) (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 16)))
    (if (local.get $error) (then (return (local.get $error))))
    (i32.store (i32.const 0) (i32.const 2048))
    (i32.store (i32.const 4) (i32.const 1000))
    (local.set $error (call $fd_read (i32.load (i32.const 16)) (i32.const 0) (i32.const 1) (i32.const 20)))
    (drop (call $fd_close (i32.load (i32.const 16))))
    (call $output (i32.const 2048) (i32.load (i32.const 20)))
    (local.get $error))

  ;; Makes the file named by the input there, and writes three bytes into it.
  (func (export "make") (result i32) (local $error i32)
    (call $input)
    (local.set $error (call $path_open (i32.const 3) (i32.const 1) (i32.const 1024)
      (i32.wrap_i64 (call $input_length)) (i32.const 1) (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 16)))
    (if (local.get $error) (then (return (local.get $error))))
    (i32.store (i32.const 0) (i32.const 1024))
    (i32.store (i32.const 4) (i32.const 3))
    (call $fd_write (i32.load (i32.const 16)) (i32.const 0) (i32.const 1) (i32.const 20)))

  ;; Answers with its arguments, or its environment: each string with a NUL.
  (func (export "arguments") (result i32) (local $error i32)
    (local.set $error (call $args_sizes_get (i32.const 16) (i32.const 20)))
    (if (local.get $error) (then (return (local.get $error))))
    (local.set $error (call $args_get (i32.const 100) (i32.const 2048)))
    (if (i32.load (i32.const 16))
      (then (call $output (i32.load (i32.const 100)) (i32.load (i32.const 20)))))
    (local.get $error))
  (func (export "environment") (result i32) (local $error i32)
    (local.set $error (call $environ_sizes_get (i32.const 16) (i32.const 20)))
    (if (local.get $error) (then (return (local.get $error))))
    (local.set $error (call $environ_get (i32.const 100) (i32.const 2048)))
    (if (i32.load (i32.const 16))
      (then (call $output (i32.load (i32.const 100)) (i32.load (i32.const 20)))))
    (local.get $error)))
