// A plugin in C, for __test__/toolchains.test.js. What it needs of Extism is declared here, as the C PDK does.
// plugins/build.sh builds it with these packages of Debian:
// clang-14=1:14.0.6-12 libclang-rt-14-dev-wasm32=1:14.0.6-12 lld-14=1:14.0.6-12 wasi-libc=0.0~git20220510.9886d3d-2
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define IMPORT(module, name) __attribute__((import_module(module), import_name(name)))
#define EXPORT(name) __attribute__((export_name(name)))

IMPORT("extism:host/env", "input_length") uint64_t input_length(void);
IMPORT("extism:host/env", "input_load_u8") uint8_t input_load(uint64_t index);
IMPORT("extism:host/env", "alloc") uint64_t allocate(uint64_t length);
IMPORT("extism:host/env", "length") uint64_t length_of(uint64_t offset);
IMPORT("extism:host/env", "load_u8") uint8_t load(uint64_t offset);
IMPORT("extism:host/env", "store_u8") void store(uint64_t offset, uint8_t byte);
IMPORT("extism:host/env", "output_set") void set_output(uint64_t offset, uint64_t length);
IMPORT("extism:host/user", "hostMemoryGet") uint64_t host_memory_get(uint64_t key);

static char *last;

// Runs before anything else, where the host calls constructors.
__attribute__((constructor)) static void begin(void) { last = strdup("nothing"); }

static char *input(void) {
  size_t length = input_length();
  char *text = calloc(length + 1, 1);
  for (size_t i = 0; i < length; i++) text[i] = input_load(i);
  return text;
}

static char *text_at(uint64_t offset) {
  size_t length = length_of(offset);
  char *text = calloc(length + 1, 1);
  for (size_t i = 0; i < length; i++) text[i] = load(offset + i);
  return text;
}

static uint64_t block(const char *text) {
  size_t length = strlen(text);
  uint64_t offset = allocate(length);
  for (size_t i = 0; i < length; i++) store(offset + i, text[i]);
  return offset;
}

EXPORT("greet") int32_t greet(void) {
  char *key = input();
  char *value = text_at(host_memory_get(block(key)));
  size_t size = snprintf(NULL, 0, "%s, after %s", value, last) + 1;
  char *answer = malloc(size);
  snprintf(answer, size, "%s, after %s", value, last);
  set_output(block(answer), size - 1);
  free(answer);
  free(value);
  free(last);
  last = key;
  return 0;
}
