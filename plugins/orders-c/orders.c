// Sells a product: what a plugin does with a database and a broker, in C. What it needs of Extism is declared here, as the C
// PDK does. plugins/build.sh builds it with these packages of Debian:
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
IMPORT("extism:host/env", "free") void free_block(uint64_t offset);
IMPORT("extism:host/env", "length") uint64_t length_of(uint64_t offset);
IMPORT("extism:host/env", "load_u8") uint8_t load(uint64_t offset);
IMPORT("extism:host/env", "store_u8") void store(uint64_t offset, uint8_t byte);
IMPORT("extism:host/env", "output_set") void set_output(uint64_t offset, uint64_t length);
IMPORT("extism:host/user", "hostQuery") uint64_t host_query(uint64_t request);
IMPORT("extism:host/user", "hostExecute") uint64_t host_execute(uint64_t request);
IMPORT("extism:host/user", "hostPublish") uint64_t host_publish(uint64_t request);
IMPORT("extism:host/user", "hostRequest") uint64_t host_request(uint64_t request);

static uint64_t block(const char *text) {
  size_t length = strlen(text);
  uint64_t offset = allocate(length);
  for (size_t i = 0; i < length; i++) store(offset + i, text[i]);
  return offset;
}

// Gives a request to a function of the host, and returns the reply. A reply that begins with {"error" is a failure.
static char *call(uint64_t (*function)(uint64_t), const char *request) {
  uint64_t given = block(request);
  uint64_t offset = function(given);
  size_t length = length_of(offset);
  char *reply = calloc(length + 1, 1);
  for (size_t i = 0; i < length; i++) reply[i] = load(offset + i);
  free_block(given);
  free_block(offset);
  return reply;
}

EXPORT("order") int32_t order(void) {
  char input[16] = "";
  for (uint64_t i = 0; i < input_length() && i < sizeof input - 1; i++) input[i] = input_load(i);
  int id = atoi(input);

  char request[4096];
  snprintf(request, sizeof request, "{\"connection\":\"db\",\"statement\":\"productById\",\"params\":[%d]}", id);
  char *found = call(host_query, request);
  // A message, and its answer, are what follows the first line.
  snprintf(request, sizeof request, "{\"connection\":\"events\",\"subject\":\"stock.%d\"}\nhow many?", id);
  char *stock = call(host_request, request);
  char *line_end = strchr(stock, '\n');
  snprintf(request, sizeof request, "{\"connection\":\"db\",\"statement\":\"sell\",\"params\":[%d]}", id);
  char *sold = call(host_execute, request);
  snprintf(request, sizeof request, "{\"connection\":\"events\",\"subject\":\"orders.new\"}\n%s", found);
  char *published = call(host_publish, request);
  snprintf(request, sizeof request, "{\"connection\":\"events\",\"subject\":\"invoices.new\"}\n%s", found);
  char *refused = call(host_publish, request);

  char output[8192];
  int length = snprintf(output, sizeof output, "%s\n%s\n%s\n%s\n%s", found, line_end ? line_end + 1 : "", sold, published, refused);
  set_output(block(output), length);
  free(found);
  free(stock);
  free(sold);
  free(published);
  free(refused);
  return 0;
}
