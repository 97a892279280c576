// QuickJS as a plugin, for bench/compute.js: `run` evaluates a script, its input, and answers with the result as text.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "quickjs.h"

#define KERNEL(name) __attribute__((import_module("extism:host/env"), import_name(name)))

KERNEL("input_length") uint64_t input_length(void);
KERNEL("input_load_u8") uint8_t input_load_u8(uint64_t index);
KERNEL("input_load_u64") uint64_t input_load_u64(uint64_t index);
KERNEL("alloc") uint64_t kernel_alloc(uint64_t length);
KERNEL("store_u8") void store_u8(uint64_t offset, uint8_t byte);
KERNEL("store_u64") void store_u64(uint64_t offset, uint64_t word);
KERNEL("output_set") void output_set(uint64_t offset, uint64_t length);
KERNEL("error_set") void error_set(uint64_t offset);

static JSContext *context;

static char *read_input(size_t length) {
  char *text = malloc(length + 1);
  size_t i = 0;
  for (; i + 8 <= length; i += 8) {
    uint64_t word = input_load_u64(i);
    memcpy(text + i, &word, 8);
  }
  for (; i < length; i++) text[i] = input_load_u8(i);
  text[length] = 0;
  return text;
}

static uint64_t copy_to_block(const char *text, size_t length) {
  uint64_t offset = kernel_alloc(length);
  size_t i = 0;
  for (; i + 8 <= length; i += 8) {
    uint64_t word;
    memcpy(&word, text + i, 8);
    store_u64(offset + i, word);
  }
  for (; i < length; i++) store_u8(offset + i, text[i]);
  return offset;
}

__attribute__((export_name("run"))) int32_t run(void) {
  // Not in a constructor: the JavaScript SDK calls none of C.
  if (!context) context = JS_NewContext(JS_NewRuntime());
  size_t length = input_length();
  char *script = read_input(length);
  JSValue result = JS_Eval(context, script, length, "input", JS_EVAL_TYPE_GLOBAL);
  free(script);
  int32_t has_failed = JS_IsException(result);
  if (has_failed) result = JS_GetException(context);
  const char *text = JS_ToCStringLen(context, &length, result);
  uint64_t block = copy_to_block(text, length);
  if (has_failed) error_set(block); else output_set(block, length);
  JS_FreeCString(context, text);
  JS_FreeValue(context, result);
  return has_failed;
}
