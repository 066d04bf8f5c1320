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

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static void *kept;
static size_t kept_bytes;

void *take_scratch(size_t bytes) {
    void *found = NULL;
    bytes = (size_t)round_up((long)bytes, 4096);
    pthread_mutex_lock(&lock);
    if (kept_bytes >= bytes) {
        found = kept;
        kept = NULL;
        kept_bytes = 0;
    }
    pthread_mutex_unlock(&lock);
    return found ? found : aligned_alloc(4096, bytes);
}

void return_scratch(void *block, size_t bytes) {
    bytes = (size_t)round_up((long)bytes, 4096);
    pthread_mutex_lock(&lock);
    if (bytes > kept_bytes && bytes <= MOST_KEPT) {
        void *smaller_one = kept;
        kept = block;
        kept_bytes = bytes;
        block = smaller_one;
    }
    pthread_mutex_unlock(&lock);
    free(block);
}
