/* What a function has to look like for XLA to call it: the part of XLA's foreign function interface
 * ("xla/ffi/api/c_api.h", versions 0.1 to 0.3) that xla.c needs.
 *
 * Declared here so that the kernels are built without JAX. The structures may grow at their ends;
 * `struct_size` tells by how much.
 */
#ifndef SFUMATO_XLA_ABI_H
#define SFUMATO_XLA_ABI_H

#include <stddef.h>
#include <stdint.h>

enum { XLA_MAJOR = 0, XLA_MINOR = 3 };
enum { XLA_EXECUTE = 3, XLA_METADATA = 1 };
enum { XLA_FLOAT32 = 11, XLA_BFLOAT16 = 16 };
enum { XLA_RESOURCE_EXHAUSTED = 8, XLA_FAILED_PRECONDITION = 9 };

struct xla_extension {
    size_t struct_size;
    int type;
    struct xla_extension *next;
};

struct xla_version {
    size_t struct_size;
    struct xla_extension *extensions;
    int major, minor;
};

struct xla_buffer {
    size_t struct_size;
    struct xla_extension *extensions;
    int dtype;
    void *data;
    int64_t rank;
    int64_t *dims;
};

/* Arguments and results. */
struct xla_values {
    size_t struct_size;
    struct xla_extension *extensions;
    int64_t size;
    int *types;
    struct xla_buffer **buffers;
};

struct xla_array {
    int dtype;
    size_t size;
    const int64_t *data;
};

struct xla_scalar {
    int dtype;
    const float *value;
};

/* Sorted by name. */
struct xla_attributes {
    size_t struct_size;
    struct xla_extension *extensions;
    int64_t size;
    int *types;
    void **names;
    void **values;
};

struct xla_error_create {
    size_t struct_size;
    struct xla_extension *extensions;
    const char *message;
    int code;
};

struct xla_api {
    size_t struct_size;
    struct xla_extension *extensions;
    struct xla_version version;
    const void *internal;
    void *(*create_error)(struct xla_error_create *);
};

struct xla_frame {
    size_t struct_size;
    struct xla_extension *extensions;
    const struct xla_api *api;
    void *context;
    int stage;
    struct xla_values arguments, results;
    struct xla_attributes attributes;
};

struct xla_metadata {
    size_t struct_size;
    struct xla_version version;
    uint32_t traits;
    int64_t state_type;
};

struct xla_metadata_extension {
    struct xla_extension base;
    struct xla_metadata *metadata;
};

#endif
