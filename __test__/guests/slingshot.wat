;; Each function passes its input to slingshot's host function of that name, and answers with the reply. They are imported from
;; `env`, as TinyGo and Rust import the functions that slingshot's PDKs declare.
(module
  (import "extism:host/env" "length" (func $length (param i64) (result i64)))
  (import "extism:host/env" "input_offset" (func $input (result i64)))
  (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
  (import "env" "hostInitNatsConnection" (func $hostInitNatsConnection (param i64) (result i64)))
  (import "env" "hostNatsPublish" (func $hostNatsPublish (param i64) (result i64)))
  (import "env" "hostInitRedisClient" (func $hostInitRedisClient (param i64) (result i64)))
  (import "env" "hostRedisGet" (func $hostRedisGet (param i64) (result i64)))
  (import "env" "hostRedisSet" (func $hostRedisSet (param i64) (result i64)))
  (import "env" "hostRedisDel" (func $hostRedisDel (param i64) (result i64)))
  (import "env" "hostRedisFilter" (func $hostRedisFilter (param i64) (result i64)))
  (import "env" "hostRedisPublish" (func $hostRedisPublish (param i64) (result i64)))

  (func $output (param $block i64)
    (call $output_set (local.get $block) (call $length (local.get $block))))

  (func (export "hostInitNatsConnection") (call $output (call $hostInitNatsConnection (call $input))))
  (func (export "hostNatsPublish") (call $output (call $hostNatsPublish (call $input))))
  (func (export "hostInitRedisClient") (call $output (call $hostInitRedisClient (call $input))))
  (func (export "hostRedisGet") (call $output (call $hostRedisGet (call $input))))
  (func (export "hostRedisSet") (call $output (call $hostRedisSet (call $input))))
  (func (export "hostRedisDel") (call $output (call $hostRedisDel (call $input))))
  (func (export "hostRedisFilter") (call $output (call $hostRedisFilter (call $input))))
  (func (export "hostRedisPublish") (call $output (call $hostRedisPublish (call $input)))))
