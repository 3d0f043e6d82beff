#include "data/crop_index.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "data/checksum.h"
#include "data/crop_format.h"
#include "data/dataset_build.h"
#include "data/decode.h"
#include "data/pack_format.h"
#include "data/pack_h5.h"

/* What the file has for an image. */
typedef struct {
  int64_t at;   /* in the file */
  uint32_t n;   /* bytes of the index; 0: none */
  uint32_t crc; /* of the index */
  uint32_t file_size, file_crc;
} entry;

struct ii_crop_index {
  int fd;
  int64_t indexed; /* images with an entry */
  entry *of;       /* [images of the data set] */
};

/* ---- the table of the file -------------------------------------------------------------------*/

typedef struct {
  uint32_t *file_size, *file_crc, *size, *crc; /* [n] */
  char *names;
  int64_t n, text;
  int64_t *block_images; /* [blocks] */
  int64_t blocks;
  const char **name; /* [n]: in names */
  int64_t *at;       /* [n] */
} table;

static void free_table(table *t) {
  free(t->file_size);
  free(t->file_crc);
  free(t->size);
  free(t->crc);
  free(t->names);
  free(t->block_images);
  free(t->name);
  free(t->at);
}

static ii_status damaged(const ii_pack_file *f, const char *what, ii_error *err) {
  return ii_error_set(err, II_ERR_FORMAT, "'%s': %s", f->path, what);
}

static ii_status read_arrays(ii_pack_file *f, table *t, ii_error *err) {
  uint64_t version, entries, crc;
  int64_t n[4];
  II_TRY(ii_pack_h5_get_number(f, II_CROP_VERSION_NAME, &version, err));
  if (version != II_CROP_VERSION) return damaged(f, "another version", err);
  II_TRY(ii_pack_h5_get(f, "file_size", II_PACK_U32, (void **)&t->file_size, &n[0], err));
  II_TRY(ii_pack_h5_get(f, "file_crc32c", II_PACK_U32, (void **)&t->file_crc, &n[1], err));
  II_TRY(ii_pack_h5_get(f, "size", II_PACK_U32, (void **)&t->size, &n[2], err));
  II_TRY(ii_pack_h5_get(f, "index_crc32c", II_PACK_U32, (void **)&t->crc, &n[3], err));
  II_TRY(ii_pack_h5_get(f, "names", II_PACK_U8, (void **)&t->names, &t->text, err));
  II_TRY(
      ii_pack_h5_get(f, "block_images", II_PACK_I64, (void **)&t->block_images, &t->blocks, err));
  II_TRY(ii_pack_h5_get_number(f, "entries", &entries, err));
  II_TRY(ii_pack_h5_get_number(f, "crc32c", &crc, err));
  t->n = n[0];
  for (int i = 1; i < 4; i++)
    if (n[i] != t->n) return damaged(f, "arrays", err);
  if (crc != f->crc || entries != (uint64_t)t->n || t->n >= UINT32_MAX)
    return damaged(f, "checksum", err);
  return II_OK;
}

/* Where each index is; names and places must come out even. */
static ii_status place(ii_pack_file *f, table *t, ii_error *err) {
  int64_t i = 0, text = 0;
  t->name = malloc((size_t)t->n * sizeof *t->name + 1);
  t->at = malloc((size_t)t->n * sizeof *t->at + 1);
  if (!t->name || !t->at)
    return ii_error_set(err, II_ERR_MEMORY, "no memory for the crop index '%s'", f->path);
  for (int64_t b = 0; b < t->blocks; b++) {
    char block[32];
    int64_t at, left;
    snprintf(block, sizeof block, II_PACK_BLOCK, (long long)b);
    II_TRY(ii_pack_h5_place(f, block, &at, &left, err));
    if (t->block_images[b] <= 0 || t->block_images[b] > t->n - i) return damaged(f, "blocks", err);
    for (const int64_t end = i + t->block_images[b]; i < end; i++) {
      const char *zero = memchr(t->names + text, 0, (size_t)(t->text - text));
      if (t->size[i] == 0 || t->size[i] > left || !zero) return damaged(f, "sizes", err);
      t->name[i] = t->names + text;
      text = zero + 1 - t->names;
      t->at[i] = at;
      at += t->size[i], left -= t->size[i];
    }
    if (left != 0) return damaged(f, "blocks", err);
  }
  return i == t->n && text == t->text ? II_OK : damaged(f, "blocks", err);
}

/* Whatever is wrong inside the file: one sentence. */
static ii_status read_table(const char *path, table *t, ii_error *err) {
  ii_pack_file f;
  ii_error inner = {0};
  ii_status s = ii_pack_h5_open(&f, path, &inner);
  if (s == II_OK) {
    s = read_arrays(&f, t, &inner);
    if (s == II_OK) s = place(&f, t, &inner);
    ii_pack_h5_close(&f);
  }
  if (s == II_ERR_FORMAT)
    return ii_error_set(err, s,
                        "the crop index '%s' is damaged, cut off, of another version or no crop "
                        "index; make it again with scan --crop-index",
                        path);
  return s == II_OK ? s : ii_error_set(err, s, "%s", inner.text);
}

/* ---- which entry is for which image ----------------------------------------------------------*/

/* A hash table of the names: places hold the number of an entry + 1, or 0. */
typedef struct {
  const table *t;
  uint32_t *places;
  uint64_t mask;
} finder;

static uint64_t place_of(const finder *f, const char *name) {
  return ii_crc32c(0, name, (int64_t)strlen(name)) & f->mask;
}

/* The entry of that name, or -1. Of equal names the first. */
static int64_t find(const finder *f, const char *name) {
  for (uint64_t i = place_of(f, name); f->places[i]; i = (i + 1) & f->mask)
    if (!strcmp(f->t->name[f->places[i] - 1], name)) return f->places[i] - 1;
  return -1;
}

static ii_status make_finder(finder *f, const table *t, ii_error *err) {
  uint64_t room = 16;
  while (room < 2 * (uint64_t)t->n) room *= 2;
  *f = (finder){t, calloc(room, sizeof *f->places), room - 1};
  if (!f->places) return ii_error_set(err, II_ERR_MEMORY, "no memory for a crop index");
  for (int64_t k = 0; k < t->n; k++) {
    uint64_t i = place_of(f, t->name[k]);
    while (f->places[i]) i = (i + 1) & f->mask;
    f->places[i] = (uint32_t)k + 1;
  }
  return II_OK;
}

static ii_status match(const ii_dataset *d, const table *t, const char *path, ii_crop_index *x,
                       ii_error *err) {
  char name[II_PATH_MAX];
  finder f;
  const int64_t images = ii_dataset_size(d);
  x->of = calloc((size_t)images, sizeof *x->of);
  if (!x->of) return ii_error_set(err, II_ERR_MEMORY, "no memory for the crop index '%s'", path);
  II_TRY(make_finder(&f, t, err));
  for (int64_t i = 0; i < images; i++) {
    ii_dataset_name(d, i, name);
    const int64_t k = find(&f, name);
    if (k < 0) continue;
    x->of[i] = (entry){t->at[k], t->size[k], t->crc[k], t->file_size[k], t->file_crc[k]};
    x->indexed++;
  }
  free(f.places);
  if (x->indexed > 0) return II_OK;
  if (t->n == 0)
    return ii_error_set(err, II_ERR_FORMAT,
                        "the crop index '%s' is of no image: the data set it was made for has no "
                        "baseline JPEG files; go on without it",
                        path);
  ii_dataset_name(d, 0, name);
  return ii_error_set(err, II_ERR_FORMAT,
                      "the crop index '%s' has nothing for any of the %lld images, the first of "
                      "which is '%.300s'; its %lld entries begin with '%.300s': was it made for "
                      "another data set?",
                      path, (long long)images, name, (long long)t->n, t->name[0]);
}

static ii_status build(const ii_dataset *d, const char *path, table *t, ii_crop_index *x,
                       ii_error *err) {
  if (d->packed)
    return ii_error_set(err, II_ERR_ARG,
                        "a crop index is for image files; '%s' is a pack, which has its own",
                        d->root);
  II_TRY(read_table(path, t, err));
  x->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (x->fd < 0) return ii_error_set(err, II_ERR_IO, "cannot open '%s': %s", path, strerror(errno));
  return match(d, t, path, x, err);
}

ii_status ii_dataset_use_crop_index(ii_dataset *d, const char *path, ii_error *err) {
  table t = {0};
  II_ASSERT(!d->crops, "a second crop index, '%s'", path);
  ii_crop_index *x = calloc(1, sizeof *x);
  if (!x) return ii_error_set(err, II_ERR_MEMORY, "no memory for a crop index");
  x->fd = -1;
  const ii_status s = build(d, path, &t, x, err);
  free_table(&t);
  if (s != II_OK)
    ii_crop_index_free(x);
  else
    d->crops = x;
  return s;
}

void ii_crop_index_free(ii_crop_index *x) {
  if (!x) return;
  if (x->fd >= 0) close(x->fd);
  free(x->of);
  free(x);
}

int64_t ii_dataset_crop_indexed(const ii_dataset *d) {
  return d->crops ? d->crops->indexed : 0;
}

/* ---- one image -------------------------------------------------------------------------------*/

static bool read_entry(const ii_crop_index *x, const entry *e, ii_bytes *buffer) {
  ii_error none = {0};
  buffer->size = 0;
  if (ii_bytes_reserve(buffer, e->n, &none) != II_OK) return false;
  while (buffer->size < e->n) {
    const ssize_t got = pread(x->fd, buffer->data + buffer->size, (size_t)(e->n - buffer->size),
                              e->at + buffer->size);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    buffer->size += got;
  }
  return ii_crc32c(0, buffer->data, buffer->size) == e->crc;
}

ii_crop_index_state ii_dataset_crop_index(const ii_dataset *d, int64_t i, const uint8_t *bytes,
                                          int64_t n, ii_bytes *buffer) {
  const ii_crop_index *x = d->crops;
  if (!x || x->of[i].n == 0) return II_CROP_INDEX_NONE;
  const entry *e = &x->of[i];
  if (n != e->file_size || ii_crc32c(0, bytes, n) != e->file_crc) return II_CROP_INDEX_STALE;
  return read_entry(x, e, buffer) ? II_CROP_INDEX_FOUND : II_CROP_INDEX_DAMAGED;
}
