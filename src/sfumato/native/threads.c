/* A team of threads that takes tasks one after the other.
 *
 * torch's own OpenMP team is used where torch is in the process: two teams of as many threads as
 * there are processors would wait for each other. Nothing is linked: GNU OpenMP's entry is looked
 * up among what the process has loaded. Without one, plain threads are started for the call.
 *
 * Tasks are handed out by a counter, not in equal shares, since on a desktop one processor is
 * often busy with something else.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>

#include "threads.h"

enum { MOST_THREADS = 1024 };

struct team {
    atomic_long next;
    atomic_int workers;
    long tasks;
    task_function function;
    void *context;
};

static void work(void *argument) {
    struct team *team = argument;
    int worker = atomic_fetch_add(&team->workers, 1);
    for (long task; (task = atomic_fetch_add(&team->next, 1)) < team->tasks;)
        team->function(team->context, task, worker);
}

static void *work_in_thread(void *argument) {
    work(argument);
    return NULL;
}

static void with_threads(int threads, struct team *team) {
    pthread_t started[MOST_THREADS];
    int count = 0;
    while (count < threads - 1 &&
           pthread_create(&started[count], NULL, work_in_thread, team) == 0)
        count++;
    work(team);
    while (count > 0) pthread_join(started[--count], NULL);
}

typedef void (*gnu_parallel)(void (*)(void *), void *, unsigned, unsigned);

void run_tasks(int threads, long tasks, task_function function, void *context) {
    if (threads > tasks) threads = (int)tasks;
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    if (threads <= 1) {
        for (long task = 0; task < tasks; task++) function(context, task, 0);
        return;
    }
    struct team team = {.tasks = tasks, .function = function, .context = context};
    /* Asked anew each time: torch may be imported after the first call. */
    gnu_parallel parallel;
    *(void **)&parallel = dlsym(RTLD_DEFAULT, "GOMP_parallel");
    if (parallel)
        parallel(work, &team, (unsigned)threads, 0);
    else
        with_threads(threads, &team);
}
