/* The folder of a run: finding, pruning and linking checkpoints. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "train/checkpoint.h"

static const char BEST[] = "best.h5";

void ii_checkpoint_path(const char *dir, int64_t step, char out[II_RUN_PATH]) {
  snprintf(out, II_RUN_PATH, "%s/checkpoint-%09" PRId64 ".h5", dir, step);
}

void ii_checkpoint_best_path(const char *dir, char out[II_RUN_PATH]) {
  snprintf(out, II_RUN_PATH, "%s/%s", dir, BEST);
}

/* The step in a file name as ii_checkpoint_path makes it, plus `end`; -1 for any other name. */
static int64_t step_in_name(const char *name, const char *end) {
  static const char start[] = "checkpoint-";
  const size_t n = sizeof start - 1;
  if (strncmp(name, start, n) != 0) return -1;
  const char *digits = name + n;
  size_t count = strspn(digits, "0123456789");
  if (count < 9 || count > 18 || strncmp(digits + count, ".h5", 3) != 0 ||
      strcmp(digits + count + 3, end) != 0)
    return -1;
  return (int64_t)strtoll(digits, NULL, 10);
}

static int newest_first(const void *a, const void *b) {
  const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
  return (x < y) - (x > y);
}

/* The steps of all checkpoints in dir, newest first. A missing folder has none. */
static ii_status list_steps(const char *dir, int64_t **steps, int64_t *count, ii_error *err) {
  *steps = NULL;
  *count = 0;
  DIR *d = opendir(dir);
  if (!d && errno == ENOENT) return II_OK;
  if (!d) return ii_error_set(err, II_ERR_IO, "%s cannot be listed: %s", dir, strerror(errno));
  int64_t capacity = 0;
  ii_status s = II_OK;
  for (struct dirent *e; s == II_OK && (e = readdir(d)) != NULL;) {
    int64_t step = step_in_name(e->d_name, "");
    if (step < 0) continue;
    if (*count == capacity) {
      capacity = 2 * capacity + 16;
      int64_t *more = realloc(*steps, (size_t)capacity * sizeof *more);
      if (!more)
        s = ii_error_set(err, II_ERR_MEMORY, "out of memory for the list of %s", dir);
      else
        *steps = more;
    }
    if (s == II_OK) (*steps)[(*count)++] = step;
  }
  closedir(d);
  if (*count) qsort(*steps, (size_t)*count, sizeof **steps, newest_first);
  return s;
}

ii_status ii_checkpoint_find(const char *dir, char ***paths, int64_t *count, ii_error *err) {
  int64_t *steps = NULL, n = 0;
  char best[II_RUN_PATH];
  ii_status s = list_steps(dir, &steps, &n, err);
  ii_checkpoint_best_path(dir, best);
  bool with_best = access(best, F_OK) == 0;
  size_t total = (size_t)n + with_best;
  char **out = s == II_OK ? malloc((total + 1) * (sizeof(char *) + II_RUN_PATH)) : NULL;
  if (out) {
    char *text = (char *)(out + total + 1);
    for (size_t i = 0; i < total; i++) {
      out[i] = text + i * II_RUN_PATH;
      if (i < (size_t)n)
        ii_checkpoint_path(dir, steps[i], out[i]);
      else
        strcpy(out[i], best);
    }
    out[total] = NULL;
    *paths = out;
    *count = (int64_t)total;
  } else if (s == II_OK) {
    s = ii_error_set(err, II_ERR_MEMORY, "out of memory for the list of %s", dir);
  }
  free(steps);
  return s;
}

ii_status ii_checkpoint_open_newest(const char *dir, ii_h5 **file,
                                    void (*skipped)(void *user, const char *why), void *user,
                                    ii_error *err) {
  char **paths = NULL;
  int64_t count = 0;
  *file = NULL;
  II_TRY(ii_checkpoint_find(dir, &paths, &count, err));
  for (int64_t i = 0; i < count && !*file; i++) {
    ii_error why = {0};
    ii_train_state state;
    if (ii_h5_open(paths[i], file, &why) == II_OK &&
        ii_checkpoint_state(*file, &state, &why) == II_OK)
      break;
    ii_h5_close(*file);
    *file = NULL;
    if (skipped) skipped(user, why.text);
  }
  free(paths);
  return II_OK;
}

static ii_status remove_file(const char *path, ii_error *err) {
  if (unlink(path) == 0 || errno == ENOENT) return II_OK;
  return ii_error_set(err, II_ERR_IO, "%s cannot be removed: %s", path, strerror(errno));
}

/* What writes that were killed left behind. */
static ii_status remove_temporary(const char *dir, ii_error *err) {
  char path[II_RUN_PATH];
  DIR *d = opendir(dir);
  if (!d) return ii_error_set(err, II_ERR_IO, "%s cannot be listed: %s", dir, strerror(errno));
  ii_status s = II_OK;
  for (struct dirent *e; s == II_OK && (e = readdir(d)) != NULL;) {
    if (step_in_name(e->d_name, ".tmp") < 0 && strcmp(e->d_name, "best.h5.tmp") != 0) continue;
    snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
    s = remove_file(path, err);
  }
  closedir(d);
  return s;
}

ii_status ii_checkpoint_prune(const char *dir, int64_t step, int64_t keep, ii_error *err) {
  int64_t *steps = NULL, n = 0, kept = 0;
  char path[II_RUN_PATH];
  ii_status s = list_steps(dir, &steps, &n, err);
  for (int64_t i = 0; i < n && s == II_OK; i++) {
    if (steps[i] <= step && kept++ < keep) continue;
    ii_checkpoint_path(dir, steps[i], path);
    s = remove_file(path, err);
  }
  free(steps);
  return s == II_OK ? remove_temporary(dir, err) : s;
}

static ii_status copy_bytes(int in, int out, const char *to, ii_error *err) {
  char buffer[1 << 16];
  for (ssize_t n; (n = read(in, buffer, sizeof buffer)) != 0;) {
    if (n < 0 && errno == EINTR) continue;
    for (ssize_t at = 0, w; n > 0 && at < n; at += w)
      if ((w = write(out, buffer + at, (size_t)(n - at))) < 0) {
        if (errno != EINTR) n = -1;
        w = 0;
      }
    if (n < 0) return ii_error_set(err, II_ERR_IO, "%s cannot be written: %s", to, strerror(errno));
  }
  if (fsync(out) == 0) return II_OK;
  return ii_error_set(err, II_ERR_IO, "%s cannot be written: %s", to, strerror(errno));
}

static ii_status copy_file(const char *from, const char *to, ii_error *err) {
  int in = open(from, O_RDONLY | O_CLOEXEC);
  int out = in < 0 ? -1 : open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  ii_status s = II_OK;
  if (out < 0)
    s = ii_error_set(err, II_ERR_IO, "%s cannot be copied to %s: %s", from, to, strerror(errno));
  else
    s = copy_bytes(in, out, to, err);
  if (in >= 0) close(in);
  if (out >= 0 && close(out) != 0 && s == II_OK)
    s = ii_error_set(err, II_ERR_IO, "%s cannot be written: %s", to, strerror(errno));
  return s;
}

ii_status ii_checkpoint_link(const char *from, const char *to, ii_error *err) {
  char temporary[II_RUN_PATH + 8];
  snprintf(temporary, sizeof temporary, "%s.tmp", to);
  II_TRY(remove_file(temporary, err));
  if (link(from, temporary) != 0) II_TRY(copy_file(from, temporary, err));
  if (rename(temporary, to) != 0) {
    unlink(temporary);
    return ii_error_set(err, II_ERR_IO, "%s cannot be renamed to %s: %s", temporary, to,
                        strerror(errno));
  }
  /* if both are names of one file already, rename leaves the temporary one */
  return remove_file(temporary, err);
}
