#include "data/pack_cache.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define FOLDER "/dev/shm"
#define PREFIX "ii-pack-"

/* What follows the shard's bytes once all of them are there. */
static const char done_mark[16] = "ii-pack complete";

static ii_status name_of(const ii_shard *shard, char *out, size_t size, ii_error *err) {
  struct stat st;
  if (fstat(shard->fd, &st) != 0)
    return ii_error_set(err, II_ERR_IO, "cannot look at '%s': %s", shard->path, strerror(errno));
  snprintf(out, size, FOLDER "/" PREFIX "%ld-%llx-%llx-%llx-%llx.%09ld", (long)getuid(),
           (unsigned long long)st.st_dev, (unsigned long long)st.st_ino,
           (unsigned long long)st.st_size, (unsigned long long)st.st_mtim.tv_sec,
           (long)st.st_mtim.tv_nsec);
  return II_OK;
}

static int lock(int fd, int how) {
  int rc;
  do rc = flock(fd, how);
  while (rc != 0 && errno == EINTR);
  return rc;
}

/* Whether the name still belongs to the open file: its last user may have removed it. */
static bool is_linked(int fd, const char *path) {
  struct stat a, b;
  return fstat(fd, &a) == 0 && stat(path, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/* Removes copies that no process holds. */
static void sweep(void) {
  char path[512], own[64];
  DIR *folder = opendir(FOLDER);
  snprintf(own, sizeof own, PREFIX "%ld-", (long)getuid());
  for (const struct dirent *e; folder && (e = readdir(folder)) != NULL;) {
    if (strncmp(e->d_name, own, strlen(own)) != 0) continue;
    snprintf(path, sizeof path, FOLDER "/%.400s", e->d_name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) continue;
    if (flock(fd, LOCK_EX | LOCK_NB) == 0 && is_linked(fd, path)) unlink(path);
    close(fd);
  }
  if (folder) closedir(folder);
}

static ii_status copy(const ii_shard *shard, int to, ii_error *err) {
  enum { STEP = 4 << 20 };
  const int64_t whole = shard->bytes + (int64_t)sizeof done_mark;
  /* all at once: later a lack of memory would be a signal instead of an error */
  int rc = posix_fallocate(to, 0, whole);
  if (rc != 0)
    return ii_error_set(err, II_ERR_MEMORY,
                        "no room in " FOLDER " for the %.1f GB of the shard '%s' (%s); switch "
                        "data.in_memory off or make " FOLDER " larger",
                        (double)whole * 1e-9, shard->path, strerror(rc));
  char *buffer = malloc(STEP);
  if (!buffer) return ii_error_set(err, II_ERR_MEMORY, "no memory to copy '%s'", shard->path);
  ii_status s = II_OK;
  for (int64_t at = 0; s == II_OK && at < shard->bytes;) {
    const int64_t left = shard->bytes - at;
    ssize_t got = pread(shard->fd, buffer, left < STEP ? (size_t)left : STEP, at);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0 || pwrite(to, buffer, (size_t)got, at) != got)
      s = ii_error_set(err, II_ERR_IO, "cannot copy '%s' to " FOLDER ": %s", shard->path,
                       got < 0 ? strerror(errno) : "it became shorter or there is no room");
    else
      at += got;
  }
  free(buffer);
  if (s == II_OK && pwrite(to, done_mark, sizeof done_mark, shard->bytes) != sizeof done_mark)
    s = ii_error_set(err, II_ERR_IO, "cannot copy '%s' to " FOLDER, shard->path);
  return s;
}

static bool is_complete(const ii_shard *shard, int fd) {
  char mark[sizeof done_mark];
  return pread(fd, mark, sizeof mark, shard->bytes) == sizeof mark &&
         memcmp(mark, done_mark, sizeof mark) == 0;
}

/* The open file of that name: complete and under a shared lock, or to be filled and under the
 * exclusive one; -1 with an error. Nobody waits for the exclusive lock: those who use a finished
 * copy never give their shared ones up. */
static int open_locked(const ii_shard *shard, const char *path, bool *fill, ii_error *err) {
  for (;;) {
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || lock(fd, LOCK_SH) != 0) {
      ii_error_set(err, II_ERR_IO, "cannot open '%s': %s", path, strerror(errno));
      if (fd >= 0) close(fd);
      return -1;
    }
    *fill = !is_complete(shard, fd);
    bool locked = !*fill || flock(fd, LOCK_EX | LOCK_NB) == 0;
    /* changing the kind of a lock gives it up for a moment: look again */
    if (locked && *fill) *fill = !is_complete(shard, fd);
    if (locked && is_linked(fd, path)) return fd;
    close(fd);
    usleep(2000);
  }
}

ii_status ii_pack_cache_open(ii_shard *shard, ii_error *err) {
  char path[512];
  bool fill;
  II_TRY(name_of(shard, path, sizeof path, err));
  int fd = open_locked(shard, path, &fill, err);
  if (fd < 0) return err->status;
  if (fill) {
    sweep();
    ii_status s = copy(shard, fd, err);
    if (s != II_OK) {
      unlink(path);
      close(fd);
      return s;
    }
  }
  lock(fd, LOCK_SH);
  void *p = mmap(NULL, (size_t)shard->bytes, PROT_READ, MAP_SHARED, fd, 0);
  if (p == MAP_FAILED) {
    close(fd);
    return ii_error_set(err, II_ERR_MEMORY, "cannot map '%s': %s", path, strerror(errno));
  }
  shard->memory = p;
  shard->memory_fd = fd;
  return II_OK;
}

void ii_pack_cache_close(ii_shard *shard) {
  char path[512];
  ii_error none = {0};
  if (!shard->memory) return;
  munmap((void *)shard->memory, (size_t)shard->bytes);
  if (name_of(shard, path, sizeof path, &none) == II_OK &&
      flock(shard->memory_fd, LOCK_EX | LOCK_NB) == 0 && is_linked(shard->memory_fd, path))
    unlink(path);
  close(shard->memory_fd);
  shard->memory = NULL;
  shard->memory_fd = -1;
}
