#include "data/parallel.h"
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int ii_parallel_processors(void) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  long n = sysconf(_SC_NPROCESSORS_ONLN); /* more processors than the set has room for */
  return n < 1 ? 1 : n > 1024 ? 1024 : (int)n;
}

typedef struct {
  const ii_parallel *p;
  int64_t n;
  _Atomic int64_t next, done;
  atomic_bool stop;
  pthread_mutex_t lock;
  pthread_cond_t changed;
  int running; /* under the lock */
} loop;

typedef struct {
  loop *l;
  int index;
  pthread_t id;
} hand;

static void *run(void *arg) {
  hand *h = arg;
  loop *l = h->l;
  while (!atomic_load(&l->stop)) {
    int64_t i = atomic_fetch_add(&l->next, 1);
    if (i >= l->n) break;
    l->p->work(l->p->context, h->index, i);
    atomic_fetch_add(&l->done, 1);
  }
  pthread_mutex_lock(&l->lock);
  l->running--;
  pthread_cond_signal(&l->changed);
  pthread_mutex_unlock(&l->lock);
  return NULL;
}

/* Waits for the end of the workers and reports on the way. */
static void watch(loop *l) {
  pthread_mutex_lock(&l->lock);
  while (l->running > 0) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 250000000;
    if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
    pthread_cond_timedwait(&l->changed, &l->lock, &until);
    if (!l->p->tick || atomic_load(&l->stop) || l->running == 0) continue;
    pthread_mutex_unlock(&l->lock);
    if (!l->p->tick(l->p->context, atomic_load(&l->done))) atomic_store(&l->stop, true);
    pthread_mutex_lock(&l->lock);
  }
  pthread_mutex_unlock(&l->lock);
}

static int start(loop *l, hand *hands, int threads) {
  sigset_t all, before; /* signals go to the thread that called us */
  int started = 0;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_mutex_lock(&l->lock);
  while (started < threads) {
    hands[started] = (hand){.l = l, .index = started};
    if (pthread_create(&hands[started].id, NULL, run, &hands[started]) != 0) break;
    started++;
  }
  l->running = started;
  pthread_mutex_unlock(&l->lock);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return started;
}

ii_status ii_parallel_run(const ii_parallel *p, int64_t n, ii_error *err) {
  II_ASSERT(p->threads > 0, "%d threads", p->threads);
  loop l = {.p = p, .n = n, .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
  hand *hands = calloc((size_t)p->threads, sizeof *hands);
  if (!hands) return ii_error_set(err, II_ERR_MEMORY, "no memory for threads");
  int started = start(&l, hands, p->threads);
  watch(&l);
  for (int i = 0; i < started; i++) pthread_join(hands[i].id, NULL);
  free(hands);
  pthread_mutex_destroy(&l.lock);
  pthread_cond_destroy(&l.changed);
  if (started == 0) return ii_error_set(err, II_ERR_IO, "cannot start a thread");
  if (p->tick && !p->tick(p->context, atomic_load(&l.done))) atomic_store(&l.stop, true);
  if (atomic_load(&l.stop)) return ii_error_set(err, II_ERR_INTERRUPTED, "stopped on request");
  return II_OK;
}
