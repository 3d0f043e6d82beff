#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "data/checksum.h"
#include "data/dataset_build.h"
#include "data/decode.h"
#include "data/pack.h"
#include "data/pack_cache.h"
#include "data/pack_format.h"
#include "data/pack_h5.h"

static ii_status damaged(const char *path, const char *what, ii_error *err) {
  return ii_error_set(err, II_ERR_FORMAT, "the pack '%s' is damaged (%s); pack the data set again",
                      path, what);
}

/* ---- texts -----------------------------------------------------------------------------------*/

/* A block of names, each with its zero byte. */
typedef struct {
  const char *at, *end;
} text_reader;

static const char *next_text(text_reader *r) {
  const char *name = r->at,
             *zero = r->at < r->end ? memchr(r->at, 0, (size_t)(r->end - r->at)) : NULL;
  if (!zero) return NULL;
  r->at = zero + 1;
  return name;
}

/* ---- the index -------------------------------------------------------------------------------*/

typedef struct {
  uint64_t id, images, classes, shards, places;
  char *shard_names;
  int64_t shard_text;
  int64_t *shard_images;
} pack_index;

static ii_status read_numbers(ii_pack_file *f, pack_index *x, ii_error *err) {
  uint64_t version;
  II_TRY(ii_pack_h5_get_number(f, "version", &version, err));
  if (version != II_PACK_VERSION)
    return ii_error_set(
        err, II_ERR_FORMAT, "'%s' is a pack of version %llu, this program reads version %d: %s",
        f->path, (unsigned long long)version, II_PACK_VERSION,
        version < II_PACK_VERSION ? "pack the data set again" : "a newer program made it");
  II_TRY(ii_pack_h5_get_number(f, "id", &x->id, err));
  II_TRY(ii_pack_h5_get_number(f, "images", &x->images, err));
  II_TRY(ii_pack_h5_get_number(f, "classes", &x->classes, err));
  II_TRY(ii_pack_h5_get_number(f, "shards", &x->shards, err));
  II_TRY(ii_pack_h5_get_number(f, "places", &x->places, err));
  if (x->images == 0 || x->images > INT64_MAX / 64 || x->classes == 0 || x->classes > INT32_MAX ||
      x->shards == 0 || x->shards > II_PACK_MAX_SHARDS || x->places > 1)
    return damaged(f->path, "its numbers make no sense", err);
  return II_OK;
}

static ii_status check_sum(ii_pack_file *f, ii_error *err) {
  uint64_t crc;
  II_TRY(ii_pack_h5_get_number(f, "crc32c", &crc, err));
  return crc == f->crc ? II_OK : damaged(f->path, "its checksum does not match", err);
}

static ii_status read_classes(ii_pack_file *f, ii_dataset *d, ii_error *err) {
  char *text;
  int64_t n;
  II_TRY(ii_pack_h5_get(f, "class_names", II_PACK_U8, (void **)&text, &n, err));
  text_reader r = {text, text + n};
  ii_status s = II_OK;
  for (int64_t i = 0; n > 0 && s == II_OK && i < d->num_classes; i++) {
    const char *name = next_text(&r);
    s = name ? ii_names_add(&d->classes, name, err) : damaged(f->path, "class names", err);
  }
  if (s == II_OK && r.at != r.end) s = damaged(f->path, "class names", err);
  free(text);
  return s;
}

static ii_status read_index_of(ii_pack_file *f, ii_dataset *d, pack_index *x, ii_error *err) {
  int64_t n;
  uint64_t images = 0;
  II_TRY(read_numbers(f, x, err));
  d->num_classes = (int64_t)x->classes;
  II_TRY(read_classes(f, d, err));
  II_TRY(
      ii_pack_h5_get(f, "shard_names", II_PACK_U8, (void **)&x->shard_names, &x->shard_text, err));
  II_TRY(ii_pack_h5_get(f, "shard_images", II_PACK_I64, (void **)&x->shard_images, &n, err));
  II_TRY(check_sum(f, err));
  for (int64_t i = 0; i < n; i++) {
    if (x->shard_images[i] <= 0 || (uint64_t)x->shard_images[i] > x->images)
      return damaged(f->path, "images of the shards", err);
    images += (uint64_t)x->shard_images[i];
  }
  if ((uint64_t)n != x->shards || images != x->images)
    return damaged(f->path, "images of the shards", err);
  return II_OK;
}

static ii_status read_index(const char *path, ii_dataset *d, pack_index *x, ii_error *err) {
  ii_pack_file f;
  II_TRY(ii_pack_h5_open(&f, path, err));
  ii_status s = read_index_of(&f, d, x, err);
  ii_pack_h5_close(&f);
  return s;
}

/* ---- a shard ---------------------------------------------------------------------------------*/

typedef struct {
  uint32_t *size, *crc, *index_size, *index_crc;
  int32_t *label;
  char *names;
  float *places;
  uint8_t *recoded;
  int64_t *block_images;
  int64_t n, text, place_values, blocks;
} shard_index;

static void free_shard_index(shard_index *x) {
  free(x->size);
  free(x->crc);
  free(x->index_size);
  free(x->index_crc);
  free(x->label);
  free(x->names);
  free(x->places);
  free(x->recoded);
  free(x->block_images);
}

static ii_status read_arrays(ii_pack_file *f, shard_index *x, ii_error *err) {
  int64_t n;
  II_TRY(ii_pack_h5_get(f, "size", II_PACK_U32, (void **)&x->size, &x->n, err));
  II_TRY(ii_pack_h5_get(f, "label", II_PACK_I32, (void **)&x->label, &n, err));
  if (n != x->n) return damaged(f->path, "labels", err);
  II_TRY(ii_pack_h5_get(f, "image_crc32c", II_PACK_U32, (void **)&x->crc, &n, err));
  if (n != x->n) return damaged(f->path, "checksums", err);
  II_TRY(ii_pack_h5_get(f, "index_size", II_PACK_U32, (void **)&x->index_size, &n, err));
  if (n != x->n) return damaged(f->path, "crop indexes", err);
  II_TRY(ii_pack_h5_get(f, "index_crc32c", II_PACK_U32, (void **)&x->index_crc, &n, err));
  if (n != x->n) return damaged(f->path, "checksums of crop indexes", err);
  II_TRY(ii_pack_h5_get(f, "names", II_PACK_U8, (void **)&x->names, &x->text, err));
  II_TRY(ii_pack_h5_get(f, "places", II_PACK_F32, (void **)&x->places, &x->place_values, err));
  II_TRY(ii_pack_h5_get(f, "recoded", II_PACK_U8, (void **)&x->recoded, &n, err));
  if (n != x->n) return damaged(f->path, "recoded images", err);
  II_TRY(
      ii_pack_h5_get(f, "block_images", II_PACK_I64, (void **)&x->block_images, &x->blocks, err));
  return check_sum(f, err);
}

static ii_status check_shard(ii_pack_file *f, const pack_index *of, int64_t number,
                             const shard_index *x, ii_error *err) {
  uint64_t version, id, found, images;
  II_TRY(ii_pack_h5_get_number(f, "version", &version, err));
  II_TRY(ii_pack_h5_get_number(f, "id", &id, err));
  II_TRY(ii_pack_h5_get_number(f, "number", &found, err));
  II_TRY(ii_pack_h5_get_number(f, "images", &images, err));
  if (version != II_PACK_VERSION || id != of->id || found != (uint64_t)number)
    return damaged(f->path, "it is a shard of another pack", err);
  if (images != (uint64_t)x->n || x->n != of->shard_images[number])
    return damaged(f->path, "number of images", err);
  if (x->place_values != (of->places ? 3 * x->n : 0)) return damaged(f->path, "places", err);
  return II_OK;
}

static ii_status add_image(ii_dataset *d, const char *path, const shard_index *x, int64_t i,
                           const char *name, int64_t number, int64_t at, ii_error *err) {
  const float *p = x->places + 3 * i;
  ii_place place = {0};
  if (!name || !*name || strlen(d->root) + strlen(name) + 2 > II_PATH_MAX)
    return damaged(path, "names", err);
  if (x->label[i] < 0 || x->label[i] >= d->num_classes) return damaged(path, "labels", err);
  if (x->place_values) {
    if (!(p[0] != p[0] || (p[0] >= 0 && p[0] <= 12))) return damaged(path, "places", err);
    place = (ii_place){p[0] == p[0] ? (int32_t)p[0] : 0, p[1], p[2]};
  }
  ii_packed *k = d->packed;
  k->shard[d->count] = (int32_t)number;
  k->at[d->count] = at;
  k->size[d->count] = x->size[i];
  k->crc[d->count] = x->crc[i];
  k->index_size[d->count] = x->index_size[i];
  k->index_crc[d->count] = x->index_crc[i];
  k->recoded[d->count] = x->recoded[i] != 0;
  return ii_dataset_add(d, name, x->label[i], x->place_values ? &place : NULL, err);
}

/* Walks through the blocks and their images. */
static ii_status add_images(ii_dataset *d, ii_pack_file *f, const shard_index *x, int64_t number,
                            ii_error *err) {
  text_reader names = {x->names, x->names + x->text};
  int64_t i = 0;
  for (int64_t b = 0; b < x->blocks; b++) {
    char block[32];
    int64_t at, left;
    snprintf(block, sizeof block, II_PACK_BLOCK, (long long)b);
    II_TRY(ii_pack_h5_place(f, block, &at, &left, err));
    if (x->block_images[b] <= 0 || x->block_images[b] > x->n - i)
      return damaged(f->path, "blocks", err);
    for (const int64_t end = i + x->block_images[b]; i < end; i++) {
      const int64_t bytes = (int64_t)x->size[i] + x->index_size[i];
      if (x->size[i] == 0 || bytes > left || x->size[i] > II_PACK_MAX_FILE)
        return damaged(f->path, "sizes", err);
      II_TRY(add_image(d, f->path, x, i, next_text(&names), number, at, err));
      at += bytes, left -= bytes;
    }
    if (left != 0) return damaged(f->path, "blocks", err);
  }
  if (i != x->n || names.at != names.end) return damaged(f->path, "blocks", err);
  return II_OK;
}

static ii_status read_shard(ii_dataset *d, const pack_index *of, int64_t number, ii_error *err) {
  ii_shard *shard = &d->packed->shards[number];
  ii_pack_file f;
  shard_index x = {0};
  II_TRY(ii_pack_h5_open(&f, shard->path, err));
  ii_status s = read_arrays(&f, &x, err);
  if (s == II_OK) s = check_shard(&f, of, number, &x, err);
  if (s == II_OK) s = add_images(d, &f, &x, number, err);
  free_shard_index(&x);
  ii_pack_h5_close(&f);
  return s;
}

/* ---- opening ---------------------------------------------------------------------------------*/

static ii_status open_shard(ii_shard *shard, ii_error *err) {
  struct stat st;
  shard->fd = open(shard->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (shard->fd < 0 || fstat(shard->fd, &st) != 0)
    return ii_error_set(err, II_ERR_IO, "cannot open the shard '%s': %s", shard->path,
                        strerror(errno));
  shard->bytes = st.st_size;
  return II_OK;
}

static ii_status make_shards(ii_dataset *d, const pack_index *x, ii_error *err) {
  ii_packed *k = d->packed = calloc(1, sizeof *k);
  if (!k) return ii_error_set(err, II_ERR_MEMORY, "no memory for a pack");
  k->shards = calloc((size_t)x->shards, sizeof *k->shards);
  if (!k->shards) return ii_error_set(err, II_ERR_MEMORY, "no memory for a pack");
  k->shard_count = (int64_t)x->shards;
  for (int64_t i = 0; i < k->shard_count; i++) k->shards[i].fd = k->shards[i].memory_fd = -1;
  const char *slash = strrchr(d->root, '/');
  text_reader names = {x->shard_names, x->shard_names + x->shard_text};
  for (int64_t i = 0; i < k->shard_count; i++) {
    const char *name = next_text(&names);
    if (!name || !*name || strchr(name, '/')) return damaged(d->root, "names of the shards", err);
    if (asprintf(&k->shards[i].path, "%.*s%s", slash ? (int)(slash + 1 - d->root) : 0, d->root,
                 name) < 0) {
      k->shards[i].path = NULL;
      return ii_error_set(err, II_ERR_MEMORY, "no memory for a pack");
    }
    II_TRY(open_shard(&k->shards[i], err));
  }
  return II_OK;
}

/* No more images can be promised than the shards have room for: 21 bytes of numbers each. */
static ii_status make_room(ii_dataset *d, const pack_index *x, ii_error *err) {
  ii_packed *k = d->packed;
  uint64_t bytes = 0, n = x->images;
  for (int64_t i = 0; i < k->shard_count; i++) bytes += (uint64_t)k->shards[i].bytes;
  if (n > bytes / 21) return damaged(d->root, "number of images", err);
  k->shard = malloc(n * sizeof *k->shard);
  k->at = malloc(n * sizeof *k->at);
  k->size = malloc(n * sizeof *k->size);
  k->crc = malloc(n * sizeof *k->crc);
  k->index_size = malloc(n * sizeof *k->index_size);
  k->index_crc = malloc(n * sizeof *k->index_crc);
  k->recoded = malloc(n);
  return k->shard && k->at && k->size && k->crc && k->index_size && k->index_crc && k->recoded
             ? II_OK
             : ii_error_set(err, II_ERR_MEMORY, "no memory for the index of '%s'", d->root);
}

static ii_status build(ii_dataset *d, pack_index *x, const char *path, bool in_memory,
                       ii_error *err) {
  d->root = strdup(path);
  if (!d->root) return ii_error_set(err, II_ERR_MEMORY, "no memory for a data set");
  II_TRY(read_index(path, d, x, err));
  II_TRY(make_shards(d, x, err));
  II_TRY(make_room(d, x, err));
  for (int64_t i = 0; i < d->packed->shard_count; i++) II_TRY(read_shard(d, x, i, err));
  for (int64_t i = 0; in_memory && i < d->packed->shard_count; i++)
    II_TRY(ii_pack_cache_open(&d->packed->shards[i], err));
  return II_OK;
}

ii_status ii_dataset_open_packed(const char *path, bool in_memory, ii_dataset **dataset,
                                 ii_error *err) {
  pack_index x = {0};
  ii_dataset *d = calloc(1, sizeof *d);
  if (!d) return ii_error_set(err, II_ERR_MEMORY, "no memory for a data set");
  ii_status s = build(d, &x, path, in_memory, err);
  free(x.shard_names);
  free(x.shard_images);
  if (s != II_OK)
    ii_dataset_free(d);
  else
    *dataset = d;
  return s;
}

int64_t ii_dataset_recoded(const ii_dataset *d) {
  int64_t n = 0;
  for (int64_t i = 0; i < ii_dataset_size(d); i++) n += ii_dataset_is_recoded(d, i);
  return n;
}

int64_t ii_dataset_packed_indexes(const ii_dataset *d, int64_t *bytes) {
  int64_t n = 0;
  *bytes = 0;
  for (int64_t i = 0; d->packed && i < d->count; i++) {
    n += d->packed->index_size[i] > 0;
    *bytes += d->packed->index_size[i];
  }
  return n;
}

void ii_packed_free(ii_packed *k) {
  if (!k) return;
  for (int64_t i = 0; i < k->shard_count; i++) {
    ii_pack_cache_close(&k->shards[i]);
    if (k->shards[i].fd >= 0) close(k->shards[i].fd);
    free(k->shards[i].path);
  }
  free(k->shards);
  free(k->shard);
  free(k->at);
  free(k->size);
  free(k->crc);
  free(k->index_size);
  free(k->index_crc);
  free(k->recoded);
  free(k);
}

/* ---- reading ---------------------------------------------------------------------------------*/

static ii_status read_at(const ii_shard *shard, int64_t at, ii_bytes *buffer, int64_t n,
                         ii_error *err) {
  buffer->size = 0;
  II_TRY(ii_bytes_reserve(buffer, n, err));
  while (buffer->size < n) {
    ssize_t got = pread(shard->fd, buffer->data + buffer->size, (size_t)(n - buffer->size),
                        at + buffer->size);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0)
      return ii_error_set(err, II_ERR_IO, "cannot read '%s': %s", shard->path,
                          got < 0 ? strerror(errno) : "it became shorter");
    buffer->size += got;
  }
  return II_OK;
}

ii_status ii_packed_read(const ii_dataset *d, int64_t i, ii_bytes *buffer, const uint8_t **bytes,
                         int64_t *n, ii_error *err) {
  const ii_packed *k = d->packed;
  const ii_shard *shard = &k->shards[k->shard[i]];
  const int64_t index_n = k->index_size[i];
  *n = k->size[i];
  if (shard->memory) {
    *bytes = shard->memory + k->at[i];
  } else {
    II_TRY(read_at(shard, k->at[i], buffer, *n + index_n, err));
    *bytes = buffer->data;
  }
  if (ii_crc32c(0, *bytes, *n) == k->crc[i] &&
      ii_crc32c(0, *bytes + *n, index_n) == k->index_crc[i])
    return II_OK;
  return ii_error_set(
      err, II_ERR_FORMAT,
      "'%s' of the pack '%s' is damaged: its checksum does not match; pack it again",
      d->text + d->name_at[i], d->root);
}
