;; The guard: all that a guest sees of Extism's kernel.
;;
;; It keeps one property:
;;
;;     every offset and length that the host reads or writes lies in a block that is live.
;;
;; The kernel keeps the headers of its blocks in the memory that `store_u8` writes, and believes
;; what it reads there. So the guard keeps a list of its own, in a memory that nobody else can
;; reach, and believes only that. Three rules follow from it, and everything below serves them:
;;
;;   1. Only the guard allocates and frees in the kernel. (The host never does: it hands its bytes
;;      to a module that asks the guard for a block first.)
;;   2. A guest reads and writes through the guard, inside live blocks only.
;;   3. Input, output and error are kept here and not in the kernel, whose own are always empty:
;;      what Extism reads by itself after a call is nothing.
;;
;; A call that no honest guest makes (a write outside a block, an output that is not in one) is
;; `unreachable`: the trap ends the instance, and the host makes another. A call that an honest
;; guest may make by mistake (to free twice, to ask for the length of nothing) does nothing or
;; returns zero, as it does in the kernel.
;;
;; Exports whose name begins with `control.` are for the driver and the gate. The preparation maps
;; the imports of a guest by a fixed table in which these names do not occur.
(module $guard
  (import "extism:host/env" "alloc" (func $kernel_alloc (param i64) (result i64)))
  (import "extism:host/env" "free" (func $kernel_free (param i64)))
  (import "extism:host/env" "reset" (func $kernel_reset))
  (import "extism:host/env" "memory_bytes" (func $kernel_memory_bytes (result i64)))
  (import "extism:host/env" "load_u8" (func $kernel_load_u8 (param i64) (result i32)))
  (import "extism:host/env" "load_u64" (func $kernel_load_u64 (param i64) (result i64)))
  (import "extism:host/env" "store_u8" (func $kernel_store_u8 (param i64 i32)))
  (import "extism:host/env" "store_u64" (func $kernel_store_u64 (param i64 i64)))
  ;; Ends the run as out of memory. It does not return.
  (import "extism-host:host" "out_of_memory" (func $out_of_memory))

  ;; The list of live blocks: entries of eight bytes (start, then length, both u32), sorted by
  ;; start, disjoint, from address 0. It is not exported.
  (memory $list 1)
  ;; How many entries the list has.
  (global $count (mut i32) (i32.const 0))

  ;; How many bytes the live blocks have together, and how many they may have. Before the driver has
  ;; set the limit, there can be no block.
  (global $live (mut i64) (i64.const 0))
  (global $live_limit (mut i64) (i64.const 0))

  ;; The block that was used last, so that a guest that copies byte by byte is not searched for
  ;; byte by byte. A length of 0 means none. It is forgotten whenever a block is freed.
  (global $last_start (mut i64) (i64.const 0))
  (global $last_length (mut i64) (i64.const 0))

  ;; Where input, output and error are. Each is (0, 0) or lies in a live block: it is checked when
  ;; it is set, and `free` leaves such a block alone.
  (global $input_offset (mut i64) (i64.const 0))
  (global $input_length (mut i64) (i64.const 0))
  (global $output_offset (mut i64) (i64.const 0))
  (global $output_length (mut i64) (i64.const 0))
  (global $error_offset (mut i64) (i64.const 0))

  ;; The largest block. The kernel computes sizes in 32 bits in some places and in 64 in others;
  ;; below this limit the two agree. The memory limit of the instance is reached long before.
  (global $largest_block i64 (i64.const 0x7fffffff))

  ;; ---------------------------------------------------------------------------------------------
  ;; The list
  ;; ---------------------------------------------------------------------------------------------

  (func $start_of (param $index i32) (result i64)
    (i64.load32_u (i32.shl (local.get $index) (i32.const 3))))

  (func $length_of (param $index i32) (result i64)
    (i64.load32_u offset=4 (i32.shl (local.get $index) (i32.const 3))))

  ;; The index of the last block that starts at or before $address; -1 where there is none.
  (func $index_of (param $address i64) (result i32)
    (local $low i32) (local $high i32) (local $middle i32)
    (local.set $high (global.get $count))
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

  ;; The index of the live block that starts exactly at $address, else -1.
  (func $block_at (param $address i64) (result i32)
    (local $index i32)
    (local.set $index (call $index_of (local.get $address)))
    (if (i32.lt_s (local.get $index) (i32.const 0)) (then (return (i32.const -1))))
    (if (i64.ne (call $start_of (local.get $index)) (local.get $address))
      (then (return (i32.const -1))))
    (local.get $index))

  ;; Whether the $size bytes from $address lie in the block used last. $size is not 0.
  ;; An address before the block makes the subtraction wrap to a value above any length.
  (func $in_last (param $address i64) (param $size i64) (result i32)
    (if (i64.gt_u (local.get $size) (global.get $last_length)) (then (return (i32.const 0))))
    (i64.le_u
      (i64.sub (local.get $address) (global.get $last_start))
      (i64.sub (global.get $last_length) (local.get $size))))

  ;; Traps unless the $size bytes from $address lie in one live block. $size is not 0.
  (func $check (param $address i64) (param $size i64)
    (local $index i32)
    (if (call $in_last (local.get $address) (local.get $size)) (then (return)))
    (local.set $index (call $index_of (local.get $address)))
    (if (i32.lt_s (local.get $index) (i32.const 0)) (then (unreachable)))
    (global.set $last_start (call $start_of (local.get $index)))
    (global.set $last_length (call $length_of (local.get $index)))
    (if (i32.eqz (call $in_last (local.get $address) (local.get $size)))
      (then (unreachable))))

  ;; Enters a block that the kernel has just made. That it lies in the memory of the kernel, and
  ;; meets no other block, is checked and not believed.
  (func $enter (param $start i64) (param $length i64)
    (local $index i32) (local $address i32)
    ;; Inside the memory. What the kernel calls its bytes are those after its root, which is 64
    ;; long; together they are whole pages, and the memory has as many and 15 more. (Both numbers
    ;; are below 2^32 here, so the sum does not wrap.)
    (if (i64.gt_u (local.get $start) (i64.const 0xffffffff)) (then (unreachable)))
    (if (i64.gt_u
          (i64.add (local.get $start) (local.get $length))
          (i64.add (call $kernel_memory_bytes) (i64.const 64)))
      (then (unreachable)))
    ;; After the block before it ...
    (local.set $index (call $index_of (local.get $start)))
    (if (i32.ge_s (local.get $index) (i32.const 0))
      (then
        (if (i64.gt_u
              (i64.add (call $start_of (local.get $index)) (call $length_of (local.get $index)))
              (local.get $start))
          (then (unreachable)))))
    ;; ... and before the block after it.
    (local.set $index (i32.add (local.get $index) (i32.const 1)))
    (if (i32.lt_u (local.get $index) (global.get $count))
      (then
        (if (i64.gt_u
              (i64.add (local.get $start) (local.get $length))
              (call $start_of (local.get $index)))
          (then (unreachable)))))
    ;; Room for one entry more.
    (if (i32.ge_u
          (global.get $count)
          (i32.shl (memory.size) (i32.const 13)))
      (then
        (if (i32.eq (memory.grow (i32.const 1)) (i32.const -1)) (then (unreachable)))))
    (local.set $address (i32.shl (local.get $index) (i32.const 3)))
    (memory.copy
      (i32.add (local.get $address) (i32.const 8))
      (local.get $address)
      (i32.shl (i32.sub (global.get $count) (local.get $index)) (i32.const 3)))
    (i64.store32 (local.get $address) (local.get $start))
    (i64.store32 offset=4 (local.get $address) (local.get $length))
    (global.set $count (i32.add (global.get $count) (i32.const 1)))
    (global.set $live (i64.add (global.get $live) (local.get $length)))
    (global.set $last_start (local.get $start))
    (global.set $last_length (local.get $length)))

  ;; ---------------------------------------------------------------------------------------------
  ;; Blocks
  ;; ---------------------------------------------------------------------------------------------

  ;; A new block of $size bytes; 0 where there can be none, as the kernel's contract has it: no
  ;; bytes, or more than any memory has (a negative number is such a size). A block for which the
  ;; limit of live bytes leaves no room ends the run: few guests look whether there is a block.
  (func $alloc (export "alloc") (param $size i64) (result i64)
    (local $start i64)
    (if (i64.eqz (local.get $size)) (then (return (i64.const 0))))
    (if (i64.gt_u (local.get $size) (global.get $largest_block)) (then (return (i64.const 0))))
    ;; Blocks are disjoint and lie below 2^32, so the sum does not wrap.
    (if (i64.gt_u (i64.add (global.get $live) (local.get $size)) (global.get $live_limit))
      (then (call $out_of_memory) (unreachable)))
    (local.set $start (call $kernel_alloc (local.get $size)))
    (if (i64.eqz (local.get $start)) (then (return (i64.const 0))))
    (call $enter (local.get $start) (local.get $size))
    (local.get $start))

  ;; Frees a block. What is not the start of a live block is ignored. So is a block that holds
  ;; input, output or error: the host will read it when the call has ended.
  (func (export "free") (param $start i64)
    (local $index i32) (local $address i32) (local $length i64)
    (local.set $index (call $block_at (local.get $start)))
    (if (i32.lt_s (local.get $index) (i32.const 0)) (then (return)))
    (local.set $length (call $length_of (local.get $index)))
    (if (i64.eq (local.get $start) (global.get $error_offset)) (then (return)))
    (if (call $holds (local.get $start) (local.get $length) (global.get $input_offset))
      (then (return)))
    (if (call $holds (local.get $start) (local.get $length) (global.get $output_offset))
      (then (return)))
    ;; Out of the list before it is out of the kernel: no moment at which the list names a block
    ;; that the kernel may give away.
    (local.set $address (i32.shl (local.get $index) (i32.const 3)))
    (global.set $count (i32.sub (global.get $count) (i32.const 1)))
    (global.set $live (i64.sub (global.get $live) (local.get $length)))
    (memory.copy
      (local.get $address)
      (i32.add (local.get $address) (i32.const 8))
      (i32.shl (i32.sub (global.get $count) (local.get $index)) (i32.const 3)))
    (global.set $last_length (i64.const 0))
    (call $kernel_free (local.get $start)))

  ;; Whether $address lies in the block. (No block starts at 0, so an offset of 0 is in none.)
  (func $holds (param $start i64) (param $length i64) (param $address i64) (result i32)
    (i64.lt_u (i64.sub (local.get $address) (local.get $start)) (local.get $length)))

  ;; The length of the live block that starts at $start, else 0. The gate asks this for every
  ;; argument that may be an offset, so the host has offset and length from here together.
  (func $length (export "length") (param $start i64) (result i64)
    (local $index i32)
    (local.set $index (call $block_at (local.get $start)))
    (if (i32.lt_s (local.get $index) (i32.const 0)) (then (return (i64.const 0))))
    (call $length_of (local.get $index)))

  ;; In the kernel this one believes the bytes before the offset. Here both are the same.
  (func (export "length_unsafe") (param $start i64) (result i64)
    (call $length (local.get $start)))

  ;; ---------------------------------------------------------------------------------------------
  ;; Bytes
  ;; ---------------------------------------------------------------------------------------------

  (func (export "load_u8") (param $address i64) (result i32)
    (if (i64.ge_u (i64.sub (local.get $address) (global.get $last_start)) (global.get $last_length))
      (then (call $check (local.get $address) (i64.const 1))))
    (call $kernel_load_u8 (local.get $address)))

  (func (export "load_u64") (param $address i64) (result i64)
    (call $check (local.get $address) (i64.const 8))
    (call $kernel_load_u64 (local.get $address)))

  (func (export "store_u8") (param $address i64) (param $value i32)
    (if (i64.ge_u (i64.sub (local.get $address) (global.get $last_start)) (global.get $last_length))
      (then (call $check (local.get $address) (i64.const 1))))
    (call $kernel_store_u8 (local.get $address) (local.get $value)))

  (func (export "store_u64") (param $address i64) (param $value i64)
    (call $check (local.get $address) (i64.const 8))
    (call $kernel_store_u64 (local.get $address) (local.get $value)))

  ;; ---------------------------------------------------------------------------------------------
  ;; Input, output, error
  ;; ---------------------------------------------------------------------------------------------

  (func (export "input_length") (result i64) (global.get $input_length))
  (func (export "input_offset") (result i64) (global.get $input_offset))

  ;; Past the end there are zeros, as in the kernel.
  (func (export "input_load_u8") (param $index i64) (result i32)
    (if (i64.ge_u (local.get $index) (global.get $input_length))
      (then (return (i32.const 0))))
    (call $kernel_load_u8 (i64.add (global.get $input_offset) (local.get $index))))

  (func (export "input_load_u64") (param $index i64) (result i64)
    (if (i64.lt_u (global.get $input_length) (i64.const 8)) (then (return (i64.const 0))))
    (if (i64.gt_u
          (local.get $index)
          (i64.sub (global.get $input_length) (i64.const 8)))
      (then (return (i64.const 0))))
    (call $kernel_load_u64 (i64.add (global.get $input_offset) (local.get $index))))

  (func (export "output_set") (param $offset i64) (param $length i64)
    (if (i64.eqz (local.get $length))
      (then
        ;; An empty output. Where it was meant to be does not matter.
        (global.set $output_offset (i64.const 0))
        (global.set $output_length (i64.const 0))
        (return)))
    (call $check (local.get $offset) (local.get $length))
    (global.set $output_offset (local.get $offset))
    (global.set $output_length (local.get $length)))

  (func (export "output_length") (result i64) (global.get $output_length))
  (func (export "output_offset") (result i64) (global.get $output_offset))

  (func (export "error_set") (param $offset i64)
    (if (i64.ne (local.get $offset) (i64.const 0))
      (then
        (if (i32.lt_s (call $block_at (local.get $offset)) (i32.const 0))
          (then (unreachable)))))
    (global.set $error_offset (local.get $offset)))

  (func (export "error_get") (result i64) (global.get $error_offset))

  ;; ---------------------------------------------------------------------------------------------
  ;; What a guest may import and has no business with
  ;; ---------------------------------------------------------------------------------------------

  ;; The driver resets, between two calls; the driver sets the input. From a guest: nothing happens.
  (func (export "reset"))
  (func (export "input_set") (param i64 i64))

  (func (export "memory_bytes") (result i64) (call $kernel_memory_bytes))

  ;; ---------------------------------------------------------------------------------------------
  ;; For the driver
  ;; ---------------------------------------------------------------------------------------------

  ;; How many bytes the live blocks may have together. The driver sets it once, before anything of the
  ;; guest runs.
  (func (export "control.limit") (param $bytes i64)
    (global.set $live_limit (local.get $bytes)))

  ;; Ends every block, and input, output and error with them. The kernel overwrites with zeros what
  ;; was used, so nothing of one call is left for the next.
  (func (export "control.reset")
    (global.set $count (i32.const 0))
    (global.set $live (i64.const 0))
    (global.set $last_length (i64.const 0))
    (global.set $input_offset (i64.const 0))
    (global.set $input_length (i64.const 0))
    (global.set $output_offset (i64.const 0))
    (global.set $output_length (i64.const 0))
    (global.set $error_offset (i64.const 0))
    (call $kernel_reset))

  ;; Makes the block of the next input and returns where it is: 0 when $length is 0.
  (func (export "control.input") (param $length i64) (result i64)
    (global.set $input_offset (call $control_alloc (local.get $length)))
    (global.set $input_length (local.get $length))
    (global.get $input_offset))

  ;; A block that the host is going to fill. Unlike a guest, the host cannot be told that there is
  ;; no room: it has the bytes already.
  (func $control_alloc (export "control.alloc") (param $length i64) (result i64)
    (local $start i64)
    (if (i64.eqz (local.get $length)) (then (return (i64.const 0))))
    (local.set $start (call $alloc (local.get $length)))
    (if (i64.eqz (local.get $start)) (then (unreachable)))
    (local.get $start))

  (func (export "control.error_length") (result i64)
    (call $length (global.get $error_offset)))
)
