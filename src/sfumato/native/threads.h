/* Sharing work among threads: see threads.c. */
#ifndef SFUMATO_THREADS_H
#define SFUMATO_THREADS_H

/* One piece of work. `worker` (below the number of threads) tells whose scratch memory to use; a
 * worker does one task at a time. */
typedef void (*task_function)(void *context, long task, int worker);

/* Do tasks 0 to tasks - 1, each once, in any order, and wait for all of them. */
void run_tasks(int threads, long tasks, task_function function, void *context);

#endif
