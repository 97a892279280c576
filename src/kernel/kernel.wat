;; The guest's side of Extism's memory.
;;
;; It guarantees one property:
;;
;;     every byte that a guest reads or writes here lies in a live block.
;;
;; The blocks are in the first memory. The second contains the block table and the state of the
;; call. No guest instruction can address the second memory, so a guest cannot forge a block header.
;; The host allocates and frees blocks (mod.rs); this module checks accesses and copies. Both use
;; the layout below, and a test compares the offsets here with the constants there.
;;
;; A call that no correct guest makes (a write outside a block, an output outside a block) traps
;; with `unreachable`. A call that a correct guest may make by mistake (the length of a block that
;; does not exist) returns zero.
(module $kernel
  (memory $blocks (export "blocks") 1)
  (memory $table (export "table") 1)

  ;; The table begins with the state of the call:
  ;;     0  u32  number of entries
  ;;     8  u64  start of the block that was used last   (a cache, so that copying byte by byte does
  ;;    16  u64  its length; 0 for none                   not search the table for each byte)
  ;;    24  u64  input: offset,  32  u64  length
  ;;    40  u64  output: offset, 48  u64  length
  ;;    56  u64  error: offset
  ;;    64  u32  whether an output was set
  ;; Entries of 16 bytes follow from 128: start, length (0 if the block was freed), capacity, next
  ;; free entry; all u32. They are sorted by start and do not overlap.

  (func $start_of (param $index i32) (result i64)
    (i64.load32_u $table offset=128 (i32.shl (local.get $index) (i32.const 4))))

  (func $length_of (param $index i32) (result i64)
    (i64.load32_u $table offset=132 (i32.shl (local.get $index) (i32.const 4))))

  ;; The index of the last entry that starts at or before $address; -1 if there is none.
  (func $index_of (param $address i64) (result i32)
    (local $low i32) (local $high i32) (local $middle i32)
    (local.set $high (i32.load $table (i32.const 0)))
    (block $found
      (loop $halve
        (br_if $found (i32.ge_u (local.get $low) (local.get $high)))
        (local.set $middle
          (i32.shr_u (i32.add (local.get $low) (local.get $high)) (i32.const 1)))
        (if (i64.le_u (call $start_of (local.get $middle)) (local.get $address))
          (then (local.set $low (i32.add (local.get $middle) (i32.const 1))))
          (else (local.set $high (local.get $middle))))
        (br $halve)))
    (i32.sub (local.get $low) (i32.const 1)))

  ;; Whether the $size bytes from $address are in the block used last. $size is not 0. For an
  ;; address before the block, the subtraction wraps to a value above any length.
  (func $in_last (param $address i64) (param $size i64) (result i32)
    (local $length i64)
    (local.set $length (i64.load $table (i32.const 16)))
    (if (i64.gt_u (local.get $size) (local.get $length)) (then (return (i32.const 0))))
    (i64.le_u
      (i64.sub (local.get $address) (i64.load $table (i32.const 8)))
      (i64.sub (local.get $length) (local.get $size))))

  ;; Traps unless the $size bytes from $address are in one live block. $size is not 0.
  (func $search (param $address i64) (param $size i64)
    (local $index i32)
    (local.set $index (call $index_of (local.get $address)))
    (if (i32.lt_s (local.get $index) (i32.const 0)) (then (unreachable)))
    (i64.store $table (i32.const 8) (call $start_of (local.get $index)))
    (i64.store $table (i32.const 16) (call $length_of (local.get $index)))
    (if (i32.eqz (call $in_last (local.get $address) (local.get $size)))
      (then (unreachable))))

  (func $check (param $address i64) (param $size i64)
    (if (call $in_last (local.get $address) (local.get $size)) (then (return)))
    (call $search (local.get $address) (local.get $size)))

  ;; The length of the live block that starts at $offset, or 0 if there is none.
  (func $length (export "length") (export "length_unsafe") (param $offset i64) (result i64)
    (local $index i32)
    (local.set $index (call $index_of (local.get $offset)))
    (if (i32.lt_s (local.get $index) (i32.const 0)) (then (return (i64.const 0))))
    (if (i64.ne (call $start_of (local.get $index)) (local.get $offset))
      (then (return (i64.const 0))))
    (call $length_of (local.get $index)))

  ;; ---------------------------------------------------------------------------------------------
  ;; Access to blocks. A checked address is below 2³², because every block is.
  ;; ---------------------------------------------------------------------------------------------

  (func (export "load_u8") (param $address i64) (result i32)
    (if (i64.ge_u
          (i64.sub (local.get $address) (i64.load $table (i32.const 8)))
          (i64.load $table (i32.const 16)))
      (then (call $search (local.get $address) (i64.const 1))))
    (i32.load8_u $blocks (i32.wrap_i64 (local.get $address))))

  (func (export "load_u64") (param $address i64) (result i64)
    (call $check (local.get $address) (i64.const 8))
    (i64.load $blocks (i32.wrap_i64 (local.get $address))))

  (func (export "store_u8") (param $address i64) (param $value i32)
    (if (i64.ge_u
          (i64.sub (local.get $address) (i64.load $table (i32.const 8)))
          (i64.load $table (i32.const 16)))
      (then (call $search (local.get $address) (i64.const 1))))
    (i32.store8 $blocks (i32.wrap_i64 (local.get $address)) (local.get $value)))

  (func (export "store_u64") (param $address i64) (param $value i64)
    (call $check (local.get $address) (i64.const 8))
    (i64.store $blocks (i32.wrap_i64 (local.get $address)) (local.get $value)))

  ;; ---------------------------------------------------------------------------------------------
  ;; Input, output, error
  ;; ---------------------------------------------------------------------------------------------

  (func (export "input_offset") (result i64) (i64.load $table (i32.const 24)))
  (func (export "input_length") (result i64) (i64.load $table (i32.const 32)))

  ;; Past the end there are zeros, as in Extism's kernel. The input's block is never freed, so an
  ;; index within its length is in a live block.
  (func (export "input_load_u8") (param $index i64) (result i32)
    (if (i64.ge_u (local.get $index) (i64.load $table (i32.const 32)))
      (then (return (i32.const 0))))
    (i32.load8_u $blocks
      (i32.wrap_i64 (i64.add (i64.load $table (i32.const 24)) (local.get $index)))))

  (func (export "input_load_u64") (param $index i64) (result i64)
    (local $length i64)
    (local.set $length (i64.load $table (i32.const 32)))
    (if (i64.lt_u (local.get $length) (i64.const 8)) (then (return (i64.const 0))))
    (if (i64.gt_u (local.get $index) (i64.sub (local.get $length) (i64.const 8)))
      (then (return (i64.const 0))))
    (i64.load $blocks
      (i32.wrap_i64 (i64.add (i64.load $table (i32.const 24)) (local.get $index)))))

  (func (export "output_set") (param $offset i64) (param $length i64)
    (i32.store $table (i32.const 64) (i32.const 1))
    (if (i64.eqz (local.get $length))
      (then
        ;; An empty output; its offset does not matter.
        (i64.store $table (i32.const 40) (i64.const 0))
        (i64.store $table (i32.const 48) (i64.const 0))
        (return)))
    (call $check (local.get $offset) (local.get $length))
    (i64.store $table (i32.const 40) (local.get $offset))
    (i64.store $table (i32.const 48) (local.get $length)))

  (func (export "output_offset") (result i64) (i64.load $table (i32.const 40)))
  (func (export "output_length") (result i64) (i64.load $table (i32.const 48)))

  (func (export "error_set") (param $offset i64)
    (if (i64.ne (local.get $offset) (i64.const 0))
      (then
        (if (i64.eqz (call $length (local.get $offset))) (then (unreachable)))))
    (i64.store $table (i32.const 56) (local.get $offset)))

  (func (export "error_get") (result i64) (i64.load $table (i32.const 56)))

  ;; ---------------------------------------------------------------------------------------------
  ;; Functions that guests may import but only the host uses
  ;; ---------------------------------------------------------------------------------------------

  ;; The host resets between calls and sets the input. When a guest calls these, nothing happens.
  (func (export "reset"))
  (func (export "input_set") (param i64 i64))

  (func (export "memory_bytes") (result i64)
    (i64.shl (i64.extend_i32_u (memory.size $blocks)) (i64.const 16)))
)
