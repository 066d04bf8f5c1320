/* One block of working memory, kept from call to call.
 *
 * Fresh memory costs a page fault every 4 KiB, as much time as some kernels take. One block is
 * kept; a second caller at the same time gets memory of its own, which is freed afterwards.
 */
#include <pthread.h>
#include <stdlib.h>

#include "cpu.h"
#include "scratch.h"

/* A larger block is not kept. */
static const size_t MOST_KEPT = (size_t)64 << 20;

/* What lies before the memory that is handed out. */
struct block {
    size_t bytes;
    char filling[64 - sizeof(size_t)];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct block *kept;

void *take_scratch(size_t bytes) {
    struct block *found = NULL;
    pthread_mutex_lock(&lock);
    if (kept && kept->bytes >= bytes) {
        found = kept;
        kept = NULL;
    }
    pthread_mutex_unlock(&lock);
    if (!found) {
        found = aligned_alloc(4096, (size_t)round_up((long)(bytes + sizeof *found), 4096));
        if (!found) return NULL;
        found->bytes = bytes;
    }
    return found + 1;
}

void return_scratch(void *memory) {
    struct block *block = (struct block *)memory - 1, *other = block;
    pthread_mutex_lock(&lock);
    if (block->bytes <= MOST_KEPT && (!kept || kept->bytes < block->bytes)) {
        other = kept;
        kept = block;
    }
    pthread_mutex_unlock(&lock);
    free(other);
}
