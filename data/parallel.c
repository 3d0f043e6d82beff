#include "data/parallel.h"
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ---- how many processors there are -----------------------------------------------------------*/

enum { PATH_SIZE = 4096 };

static bool read_text(const char *path, char *text, size_t size) {
  FILE *f = fopen(path, "r");
  if (!f) return false;
  const size_t n = fread(text, 1, size - 1, f);
  fclose(f);
  text[n] = 0;
  return true;
}

/* The grant of one group, in a folder; 0: none. */
static double grant_of(const char *folder, bool v2) {
  char path[PATH_SIZE + 24], text[64];
  double quota = 0, period = 0;
  snprintf(path, sizeof path, v2 ? "%s/cpu.max" : "%s/cpu.cfs_quota_us", folder);
  if (!read_text(path, text, sizeof text)) return 0;
  if (v2) return sscanf(text, "%lf %lf", &quota, &period) == 2 && period > 0 ? quota / period : 0;
  quota = atof(text); /* -1: no limit */
  snprintf(path, sizeof path, "%s/cpu.cfs_period_us", folder);
  if (!read_text(path, text, sizeof text)) return 0;
  period = atof(text);
  return quota > 0 && period > 0 ? quota / period : 0;
}

/* The least grant of a group and of those around it. In a container the group may be named as it is
 * seen from outside, where only the outermost folder exists: that is then the container's. */
static double least_grant(const char *mount, const char *group, bool v2) {
  char folder[PATH_SIZE];
  double least = 0;
  if (snprintf(folder, sizeof folder, "%s%s", mount, strstr(group, "/..") ? "" : group) >=
      PATH_SIZE)
    return 0;
  for (;;) {
    const double grant = grant_of(folder, v2);
    if (grant > 0 && (least == 0 || grant < least)) least = grant;
    if (strlen(folder) <= strlen(mount)) return least;
    *strrchr(folder, '/') = 0;
  }
}

/* Whether a comma-separated list has the word. */
static bool listed(const char *list, const char *word) {
  const size_t n = strlen(word);
  for (const char *p = list; p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL)
    if (!strncmp(p, word, n) && (!p[n] || p[n] == ',')) return true;
  return false;
}

double ii_parallel_quota(const char *root) {
  char path[PATH_SIZE], mount[PATH_SIZE / 2], text[PATH_SIZE * 2], *save = NULL;
  double least = 0;
  snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
  if (!read_text(path, text, sizeof text)) return 0;
  for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
    /* number:controllers:group; version 2 has the number 0 and no controllers */
    char *kinds = strchr(line, ':'), *group = kinds ? strchr(kinds + 1, ':') : NULL;
    if (!group) continue;
    *kinds++ = 0, *group++ = 0;
    const bool v2 = !*kinds;
    if (!v2 && !listed(kinds, "cpu")) continue;
    /* version 1 is mounted under its controllers' names, with links for the single ones */
    snprintf(mount, sizeof mount, "%s/sys/fs/cgroup%s", root, v2 ? "" : "/cpu");
    const double grant = least_grant(mount, group, v2);
    if (grant > 0 && (least == 0 || grant < least)) least = grant;
  }
  return least;
}

int ii_parallel_processors(void) {
  cpu_set_t set;
  long n = sysconf(_SC_NPROCESSORS_ONLN); /* more processors than the set has room for */
  if (sched_getaffinity(0, sizeof set, &set) == 0) n = CPU_COUNT(&set);
  const double quota = ceil(ii_parallel_quota(""));
  if (quota > 0 && quota < (double)n) n = (long)quota;
  return n < 1 ? 1 : n > 1024 ? 1024 : (int)n;
}

/* ---- the loop --------------------------------------------------------------------------------*/

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
