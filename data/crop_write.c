#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include "data/checksum.h"
#include "data/crop_format.h"
#include "data/crop_index.h"
#include "data/dataset_build.h"
#include "data/pack_format.h"
#include "data/pack_h5.h"

/* How far a thread may be ahead of the image that is written next. */
enum { AHEAD = 4096 };
#define AHEAD_BYTES (INT64_C(64) << 20)
#define BLOCK_BYTES (INT64_C(16) << 20) /* a block is written when it has so many */

/* What an image has, until its turn comes. */
typedef struct {
  uint8_t *index; /* NULL: none */
  uint32_t n, file_size, file_crc;
  bool there;
} pending;

typedef struct {
  void *data;
  int64_t n, capacity; /* elements */
} array;

struct ii_crop_writer {
  const ii_dataset *set;
  char path[II_PATH_MAX], temporary[II_PATH_MAX];
  int lock_fd;
  bool finished;
  pthread_mutex_t lock; /* of all below, and of HDF5 */
  pthread_cond_t moved; /* next has grown */
  bool lock_made, moved_made;
  pending ring[AHEAD];
  int64_t next; /* the image that is written next */
  int64_t waiting_bytes;
  ii_error error;
  ii_pack_file file;
  int64_t bytes, block_entries;
  array block, file_size, file_crc, size, crc, names, blocks;
};

static ii_status append(array *a, const void *data, int64_t n, size_t element, ii_error *err) {
  II_TRY(ii_dataset_grow(&a->data, &a->capacity, a->n + n, element, err));
  memcpy((char *)a->data + (size_t)a->n * element, data, (size_t)n * element);
  a->n += n;
  return II_OK;
}

/* ---- images in their order -------------------------------------------------------------------*/

static ii_status write_block(ii_crop_writer *w, ii_error *err) {
  char name[32];
  H5Eset_auto2(H5E_DEFAULT, NULL, NULL); /* a setting of each thread */
  snprintf(name, sizeof name, II_PACK_BLOCK, (long long)w->blocks.n);
  II_TRY(ii_pack_h5_put(&w->file, name, II_PACK_U8, w->block.data, w->block.n, false, err));
  II_TRY(append(&w->blocks, &w->block_entries, 1, sizeof w->block_entries, err));
  w->block.n = w->block_entries = 0;
  return II_OK;
}

static ii_status write_entry(ii_crop_writer *w, const pending *p, ii_error *err) {
  char name[II_PATH_MAX];
  const uint32_t crc = ii_crc32c(0, p->index, p->n);
  ii_dataset_name(w->set, w->next, name);
  II_TRY(append(&w->file_size, &p->file_size, 1, sizeof p->file_size, err));
  II_TRY(append(&w->file_crc, &p->file_crc, 1, sizeof p->file_crc, err));
  II_TRY(append(&w->size, &p->n, 1, sizeof p->n, err));
  II_TRY(append(&w->crc, &crc, 1, sizeof crc, err));
  II_TRY(append(&w->names, name, (int64_t)strlen(name) + 1, 1, err));
  II_TRY(append(&w->block, p->index, p->n, 1, err));
  w->block_entries++;
  w->bytes += p->n;
  return w->block.n >= BLOCK_BYTES ? write_block(w, err) : II_OK;
}

/* Writes as far as the images have come without a gap. After an error it only counts them, so that
 * nobody waits for ever. */
static void go_on(ii_crop_writer *w) {
  for (pending *p; (p = &w->ring[w->next % AHEAD])->there; w->next++) {
    if (p->index && w->error.status == II_OK) write_entry(w, p, &w->error);
    w->waiting_bytes -= p->index ? p->n : 0;
    free(p->index);
    *p = (pending){0};
  }
}

void ii_crop_writer_add(ii_crop_writer *w, int64_t i, const uint8_t *bytes, int64_t n,
                        uint8_t *index, int64_t index_n) {
  pending p = {.there = true};
  if (index_n > 0 && n <= II_PACK_MAX_FILE && index_n <= II_PACK_MAX_FILE)
    p = (pending){index, (uint32_t)index_n, (uint32_t)n, ii_crc32c(0, bytes, n), true};
  else
    free(index);
  pthread_mutex_lock(&w->lock);
  while (i != w->next && (i - w->next >= AHEAD || w->waiting_bytes > AHEAD_BYTES))
    pthread_cond_wait(&w->moved, &w->lock);
  w->ring[i % AHEAD] = p;
  w->waiting_bytes += p.index ? p.n : 0;
  if (i == w->next) {
    go_on(w);
    pthread_cond_broadcast(&w->moved);
  }
  pthread_mutex_unlock(&w->lock);
}

ii_status ii_crop_writer_check(ii_crop_writer *w, ii_error *err) {
  pthread_mutex_lock(&w->lock);
  const ii_error e = w->error;
  pthread_mutex_unlock(&w->lock);
  return e.status == II_OK ? II_OK : ii_error_set(err, e.status, "%s", e.text);
}

/* ---- the file --------------------------------------------------------------------------------*/

/* The temporary file is locked as long as it has this name: a second process that writes the same
 * crop index would mix its bytes with ours. A file system without locks does without. */
static ii_status lock_temporary(ii_crop_writer *w, ii_error *err) {
  struct stat ours, named;
  w->lock_fd = open(w->temporary, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (w->lock_fd < 0)
    return ii_error_set(err, II_ERR_IO, "cannot create '%s': %s", w->temporary, strerror(errno));
  const bool taken = flock(w->lock_fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  if (!taken && fstat(w->lock_fd, &ours) == 0 && stat(w->temporary, &named) == 0 &&
      ours.st_dev == named.st_dev && ours.st_ino == named.st_ino)
    return II_OK;
  close(w->lock_fd);
  w->lock_fd = -1;
  return ii_error_set(err, II_ERR_IO, "another process is writing the crop index '%s'", w->path);
}

static ii_status prepare(ii_crop_writer *w, const char *path, ii_error *err) {
  struct stat there;
  w->lock_made = pthread_mutex_init(&w->lock, NULL) == 0;
  w->moved_made = pthread_cond_init(&w->moved, NULL) == 0;
  if (!w->lock_made || !w->moved_made)
    return ii_error_set(err, II_ERR_MEMORY, "no memory for a crop index");
  if (w->set->packed)
    return ii_error_set(err, II_ERR_ARG,
                        "a crop index is for image files; '%s' is a pack, which has its own",
                        w->set->root);
  snprintf(w->path, sizeof w->path, "%s", path);
  if (snprintf(w->temporary, sizeof w->temporary, "%s.tmp", path) >= (int)sizeof w->temporary)
    return ii_error_set(err, II_ERR_ARG, "the path '%.200s...' is too long", path);
  /* else it would be found out after the last image */
  if (stat(path, &there) == 0 && S_ISDIR(there.st_mode))
    return ii_error_set(err, II_ERR_IO, "cannot write the crop index '%s': it is a folder", path);
  II_TRY(lock_temporary(w, err));
  return ii_pack_h5_create(&w->file, w->temporary, err);
}

ii_status ii_crop_writer_new(const ii_dataset *d, const char *path, ii_crop_writer **writer,
                             ii_error *err) {
  ii_crop_writer *w = calloc(1, sizeof *w);
  *writer = NULL;
  if (!w) return ii_error_set(err, II_ERR_MEMORY, "no memory for a crop index");
  w->set = d;
  w->file.id = -1, w->lock_fd = -1;
  const ii_status s = prepare(w, path, err);
  if (s != II_OK)
    ii_crop_writer_free(w);
  else
    *writer = w;
  return s;
}

static ii_status write_table(ii_crop_writer *w, ii_error *err) {
  ii_pack_file *f = &w->file;
  if (w->block.n > 0) II_TRY(write_block(w, err));
  II_TRY(ii_pack_h5_put(f, "file_size", II_PACK_U32, w->file_size.data, w->size.n, true, err));
  II_TRY(ii_pack_h5_put(f, "file_crc32c", II_PACK_U32, w->file_crc.data, w->size.n, true, err));
  II_TRY(ii_pack_h5_put(f, "size", II_PACK_U32, w->size.data, w->size.n, true, err));
  II_TRY(ii_pack_h5_put(f, "index_crc32c", II_PACK_U32, w->crc.data, w->size.n, true, err));
  II_TRY(ii_pack_h5_put(f, "names", II_PACK_U8, w->names.data, w->names.n, true, err));
  II_TRY(ii_pack_h5_put(f, "block_images", II_PACK_I64, w->blocks.data, w->blocks.n, true, err));
  II_TRY(ii_pack_h5_put_number(f, II_CROP_VERSION_NAME, II_CROP_VERSION, err));
  II_TRY(ii_pack_h5_put_number(f, "images", (uint64_t)ii_dataset_size(w->set), err));
  II_TRY(ii_pack_h5_put_number(f, "entries", (uint64_t)w->size.n, err));
  II_TRY(ii_pack_h5_put_number(f, "crc32c", f->crc, err));
  return ii_pack_h5_finish(f, err);
}

ii_status ii_crop_writer_finish(ii_crop_writer *w, ii_crop_summary *summary, ii_error *err) {
  II_TRY(ii_crop_writer_check(w, err));
  II_ASSERT(w->next == ii_dataset_size(w->set), "%lld of %lld images", (long long)w->next,
            (long long)ii_dataset_size(w->set));
  II_TRY(write_table(w, err));
  if (rename(w->temporary, w->path) != 0)
    return ii_error_set(err, II_ERR_IO, "cannot write '%s': %s", w->path, strerror(errno));
  w->finished = true;
  *summary = (ii_crop_summary){.entries = w->size.n, .bytes = w->bytes};
  return II_OK;
}

void ii_crop_writer_free(ii_crop_writer *w) {
  if (!w) return;
  array *arrays[] = {&w->block, &w->file_size, &w->file_crc, &w->size,
                     &w->crc,   &w->names,     &w->blocks};
  for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]->data);
  for (int i = 0; i < AHEAD; i++) free(w->ring[i].index);
  ii_pack_h5_close(&w->file);
  if (w->lock_fd >= 0) {
    if (!w->finished) unlink(w->temporary);
    close(w->lock_fd);
  }
  if (w->lock_made) pthread_mutex_destroy(&w->lock);
  if (w->moved_made) pthread_cond_destroy(&w->moved);
  free(w);
}
