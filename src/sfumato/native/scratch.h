/* Working memory that calls hand on to each other: see scratch.c. */
#ifndef SFUMATO_SCRATCH_H
#define SFUMATO_SCRATCH_H

#include <stddef.h>

/* At least `bytes`, from an address that is a multiple of 64, with any contents; NULL when there
 * is no memory. */
void *take_scratch(size_t bytes);
void return_scratch(void *memory);

/* The next `bytes` of such memory, again from a multiple of 64 on. */
static inline void *take_piece(char **free, size_t bytes) {
    char *start = *free;
    *free += (bytes + 63) / 64 * 64;
    return start;
}

#endif
