#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>
#include "data/checksum.h"
#include "data/dataset_build.h"
#include "data/jpeg_index.h"
#include "data/pack.h"
#include "data/pack_format.h"
#include "data/pack_h5.h"
#include "data/pack_shrink.h"
#include "data/parallel.h"

/* A block is written when its images have been read: so many of them, or so many bytes. */
enum { BLOCK_IMAGES = 256 };
#define BLOCK_BYTES (INT64_C(64) << 20)
#define KEEP_BYTES  (INT64_C(1) << 20) /* a larger buffer of an image goes back after its block */

typedef struct {
  ii_bytes buffer;
  const uint8_t *bytes; /* into the buffer, a cached pack, or made */
  uint8_t *made;        /* smaller */
  uint8_t *index;       /* for crops, or NULL */
  int64_t n, index_n;
  uint32_t crc, index_crc;
  bool taken;
  bool recoded;   /* here or in the pack it is read from: other bytes than the original file */
  ii_error error; /* it cannot be packed */
  ii_error undecodable; /* it was to be made smaller but cannot */
} item;

typedef struct {
  void *data;
  int64_t n, capacity; /* elements */
} array;

typedef struct {
  const ii_dataset *set;
  const ii_pack_options *o;
  ii_pack_result *result;
  char folder[II_PATH_MAX], stem[II_PATH_MAX]; /* of the path: before the last '/', and its name */
  const char *path;
  uint64_t id;
  bool named; /* the index has its name: the new pack is the pack */
  int lock_fd;
  char lock_path[II_PATH_MAX];

  item *items; /* [BLOCK_IMAGES] */
  int64_t first, total;
  _Atomic int64_t in_flight; /* bytes of the block being read */
  ii_shrinker *shrinkers;    /* [threads], or NULL */
  int threads;

  ii_pack_file shard; /* being written */
  int64_t shard_bytes, shard_images;
  array size, label, crc, index_size, index_crc, names, places, recoded, blocks;

  array shard_names, shard_counts; /* for the index */
} packer;

static ii_status append(array *a, const void *data, int64_t n, size_t element, ii_error *err) {
  II_TRY(ii_dataset_grow(&a->data, &a->capacity, a->n + n, element, err));
  memcpy((char *)a->data + (size_t)a->n * element, data, (size_t)n * element);
  a->n += n;
  return II_OK;
}

/* ---- reading a block -------------------------------------------------------------------------*/

static void read_item(void *context, int thread, int64_t i) {
  packer *p = context;
  item *x = &p->items[i];
  /* what is left out now is first in the next block */
  x->taken = i == 0 || atomic_load(&p->in_flight) < BLOCK_BYTES;
  if (!x->taken) return;
  if (ii_dataset_read(p->set, p->first + i, &x->buffer, &x->bytes, &x->n, &x->error) != II_OK)
    return;
  if (p->shrinkers) {
    int64_t n;
    if (ii_shrink(&p->shrinkers[thread], x->bytes, x->n, p->o->max_side, p->o->quality, &x->made,
                  &n, &x->undecodable) == II_ERR_MEMORY)
      x->error = x->undecodable;
    if (x->made) x->bytes = x->made, x->n = n;
  }
  if (!p->o->no_crop_index && x->error.status == II_OK)
    ii_jpeg_index_make(x->bytes, x->n, &x->index, &x->index_n, &x->error);
  x->recoded = x->made || ii_dataset_is_recoded(p->set, p->first + i);
  x->crc = ii_crc32c(0, x->bytes, x->n);
  x->index_crc = ii_crc32c(0, x->index, x->index_n);
  atomic_fetch_add(&p->in_flight, x->n + x->index_n);
}

static void clear_item(item *x) {
  free(x->made);
  free(x->index);
  if (x->buffer.capacity > KEEP_BYTES) ii_bytes_free(&x->buffer);
  *x = (item){.buffer = x->buffer};
}

static bool tick(void *context, int64_t done) {
  packer *p = context;
  return !p->o->tick || p->o->tick(p->o->context, p->first + done, p->total);
}

/* Reads the images from p->first on; *n of them, at least one, are the next block. */
static ii_status read_block(packer *p, int64_t *n, ii_error *err) {
  const int64_t left = p->total - p->first, wanted = left < BLOCK_IMAGES ? left : BLOCK_IMAGES;
  for (int64_t i = 0; i < BLOCK_IMAGES; i++) clear_item(&p->items[i]);
  atomic_store(&p->in_flight, 0);
  const ii_parallel loop = {p->threads, read_item, tick, p};
  II_TRY(ii_parallel_run(&loop, wanted, err));
  for (*n = 0; *n < wanted && p->items[*n].taken; ++*n)
    if (p->items[*n].error.status != II_OK)
      return ii_error_set(err, p->items[*n].error.status, "%s", p->items[*n].error.text);
  return II_OK;
}

/* ---- writing ---------------------------------------------------------------------------------*/

static ii_status open_new_shard(packer *p, ii_error *err) {
  char name[II_PATH_MAX], path[2 * II_PATH_MAX];
  const int64_t number = p->shard_counts.n;
  if (number == II_PACK_MAX_SHARDS)
    return ii_error_set(err, II_ERR_ARG, "more than %d shards; make them larger",
                        II_PACK_MAX_SHARDS);
  if (snprintf(name, sizeof name, II_PACK_SHARD_NAME, p->stem, (unsigned long long)p->id,
               (long long)number) >= (int)sizeof name)
    return ii_error_set(err, II_ERR_ARG, "the path '%.200s...' is too long", p->path);
  snprintf(path, sizeof path, "%s%s", p->folder, name);
  II_TRY(append(&p->shard_names, name, (int64_t)strlen(name) + 1, 1, err));
  II_TRY(append(&p->shard_counts, &(int64_t){0}, 1, sizeof(int64_t), err));
  p->size.n = p->label.n = p->crc.n = p->index_size.n = p->index_crc.n = p->names.n = 0;
  p->places.n = p->recoded.n = p->blocks.n = 0;
  p->shard_bytes = p->shard_images = 0;
  return ii_pack_h5_create(&p->shard, path, err);
}

static ii_status close_shard(packer *p, ii_error *err) {
  ii_pack_file *f = &p->shard;
  const uint64_t number = (uint64_t)p->shard_counts.n - 1;
  II_TRY(ii_pack_h5_put(f, "size", II_PACK_U32, p->size.data, p->size.n, true, err));
  II_TRY(ii_pack_h5_put(f, "label", II_PACK_I32, p->label.data, p->label.n, true, err));
  II_TRY(ii_pack_h5_put(f, "image_crc32c", II_PACK_U32, p->crc.data, p->crc.n, true, err));
  II_TRY(
      ii_pack_h5_put(f, "index_size", II_PACK_U32, p->index_size.data, p->index_size.n, true, err));
  II_TRY(
      ii_pack_h5_put(f, "index_crc32c", II_PACK_U32, p->index_crc.data, p->index_crc.n, true, err));
  II_TRY(ii_pack_h5_put(f, "names", II_PACK_U8, p->names.data, p->names.n, true, err));
  II_TRY(ii_pack_h5_put(f, "places", II_PACK_F32, p->places.data, p->places.n, true, err));
  II_TRY(ii_pack_h5_put(f, "recoded", II_PACK_U8, p->recoded.data, p->recoded.n, true, err));
  II_TRY(ii_pack_h5_put(f, "block_images", II_PACK_I64, p->blocks.data, p->blocks.n, true, err));
  II_TRY(ii_pack_h5_put_number(f, "version", II_PACK_VERSION, err));
  II_TRY(ii_pack_h5_put_number(f, "id", p->id, err));
  II_TRY(ii_pack_h5_put_number(f, "number", number, err));
  II_TRY(ii_pack_h5_put_number(f, "images", (uint64_t)p->shard_images, err));
  II_TRY(ii_pack_h5_put_number(f, "crc32c", f->crc, err));
  II_TRY(ii_pack_h5_finish(f, err));
  ii_pack_h5_close(f);
  ((int64_t *)p->shard_counts.data)[number] = p->shard_images;
  p->result->shards++;
  return II_OK;
}

static ii_status index_item(packer *p, int64_t i, ii_error *err) {
  const item *x = &p->items[i];
  char name[II_PATH_MAX];
  const uint32_t size = (uint32_t)x->n, index_size = (uint32_t)x->index_n;
  const int64_t sample = p->first + i;
  const int32_t label = ii_dataset_label(p->set, sample);
  const ii_place *place = ii_dataset_place(p->set, sample);
  ii_dataset_name(p->set, sample, name);
  if (x->n > II_PACK_MAX_FILE)
    return ii_error_set(err, II_ERR_FORMAT, "'%s' has %lld bytes; images may have 1 GiB", name,
                        (long long)x->n);
  II_TRY(append(&p->size, &size, 1, sizeof size, err));
  II_TRY(append(&p->label, &label, 1, sizeof label, err));
  II_TRY(append(&p->crc, &x->crc, 1, sizeof x->crc, err));
  II_TRY(append(&p->index_size, &index_size, 1, sizeof index_size, err));
  II_TRY(append(&p->index_crc, &x->index_crc, 1, sizeof x->index_crc, err));
  II_TRY(append(&p->names, name, (int64_t)strlen(name) + 1, 1, err));
  if (place) {
    const float values[3] = {place->month ? (float)place->month : NAN, place->lat, place->lon};
    II_TRY(append(&p->places, values, 3, sizeof *values, err));
  }
  const uint8_t recoded = x->recoded;
  II_TRY(append(&p->recoded, &recoded, 1, 1, err));
  p->result->images++;
  p->result->bytes += x->n;
  p->result->reencoded += x->made != NULL;
  p->result->indexed += x->index != NULL;
  p->result->index_bytes += x->index_n;
  if (x->undecodable.status == II_OK) return II_OK;
  p->result->undecodable++;
  if (p->o->on_bad) p->o->on_bad(p->o->context, name, x->undecodable.text);
  return II_OK;
}

/* Writes the first n items as the next block of the shard. */
static ii_status write_block(packer *p, int64_t n, ii_error *err) {
  int64_t bytes = 0, at = 0;
  char name[32];
  for (int64_t i = 0; i < n; i++) {
    II_TRY(index_item(p, i, err));
    bytes += p->items[i].n + p->items[i].index_n;
  }
  uint8_t *block = malloc((size_t)bytes);
  if (!block) return ii_error_set(err, II_ERR_MEMORY, "no memory for %lld bytes", (long long)bytes);
  for (int64_t i = 0; i < n; i++) {
    const item *x = &p->items[i];
    memcpy(block + at, x->bytes, (size_t)x->n);
    at += x->n;
    if (x->index) memcpy(block + at, x->index, (size_t)x->index_n);
    at += x->index_n;
  }
  snprintf(name, sizeof name, II_PACK_BLOCK, (long long)p->blocks.n);
  ii_status s = ii_pack_h5_put(&p->shard, name, II_PACK_U8, block, bytes, false, err);
  free(block);
  if (s == II_OK) s = append(&p->blocks, &n, 1, sizeof n, err);
  p->shard_bytes += bytes;
  p->shard_images += n;
  return s;
}

static ii_status write_shards(packer *p, ii_error *err) {
  const int64_t limit = p->o->shard_bytes > 0 ? p->o->shard_bytes : INT64_C(4) << 30;
  while (p->first < p->total) {
    int64_t n;
    if (p->shard.id < 0) II_TRY(open_new_shard(p, err));
    II_TRY(read_block(p, &n, err));
    II_TRY(write_block(p, n, err));
    p->first += n;
    if (p->shard_bytes >= limit || p->first == p->total) II_TRY(close_shard(p, err));
  }
  return II_OK;
}

static ii_status put_index(packer *p, ii_pack_file *f, ii_error *err) {
  array classes = {0};
  const int64_t n = ii_dataset_num_classes(p->set);
  ii_status s = II_OK;
  for (int64_t i = 0; s == II_OK && ii_dataset_class_name(p->set, 0) && i < n; i++) {
    const char *name = ii_dataset_class_name(p->set, i);
    s = append(&classes, name, (int64_t)strlen(name) + 1, 1, err);
  }
  if (s == II_OK)
    s = ii_pack_h5_put(f, "class_names", II_PACK_U8, classes.data, classes.n, true, err);
  free(classes.data);
  II_TRY(s);
  II_TRY(ii_pack_h5_put(f, "shard_names", II_PACK_U8, p->shard_names.data, p->shard_names.n, true,
                        err));
  II_TRY(ii_pack_h5_put(f, "shard_images", II_PACK_I64, p->shard_counts.data, p->shard_counts.n,
                        true, err));
  II_TRY(ii_pack_h5_put_number(f, "version", II_PACK_VERSION, err));
  II_TRY(ii_pack_h5_put_number(f, "id", p->id, err));
  II_TRY(ii_pack_h5_put_number(f, "images", (uint64_t)p->total, err));
  II_TRY(ii_pack_h5_put_number(f, "classes", (uint64_t)n, err));
  II_TRY(ii_pack_h5_put_number(f, "shards", (uint64_t)p->shard_counts.n, err));
  II_TRY(ii_pack_h5_put_number(f, "places", ii_dataset_has_meta(p->set), err));
  return ii_pack_h5_put_number(f, "crc32c", f->crc, err);
}

static ii_status sync_folder(const packer *p, ii_error *err) {
  const char *folder = *p->folder ? p->folder : ".";
  int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  bool good = fd >= 0 && fsync(fd) == 0;
  if (!good) ii_error_set(err, II_ERR_IO, "cannot write to '%s': %s", folder, strerror(errno));
  if (fd >= 0) close(fd);
  return good ? II_OK : II_ERR_IO;
}

/* The index under a temporary name, then under its own, over what was there. */
static ii_status write_index(packer *p, ii_error *err) {
  char temporary[II_PATH_MAX + 8];
  ii_pack_file f;
  snprintf(temporary, sizeof temporary, "%s.tmp", p->path);
  II_TRY(sync_folder(p, err)); /* the names of the shards */
  II_TRY(ii_pack_h5_create(&f, temporary, err));
  ii_status s = put_index(p, &f, err);
  if (s == II_OK) s = ii_pack_h5_finish(&f, err);
  ii_pack_h5_close(&f);
  if (s == II_OK && rename(temporary, p->path) != 0)
    s = ii_error_set(err, II_ERR_IO, "cannot rename '%s': %s", temporary, strerror(errno));
  p->named = s == II_OK;
  if (s != II_OK) unlink(temporary);
  return s == II_OK ? sync_folder(p, err) : s;
}

/* ---- around it -------------------------------------------------------------------------------*/

/* Whether the name is that of a shard of a pack of this name: stem-<16 hex>-<digits>.h5. */
static bool is_shard_name(const packer *p, const char *name, uint64_t *id) {
  const size_t n = strlen(p->stem);
  char hex[17], *end;
  if (strncmp(name, p->stem, n) != 0 || name[n] != '-' || strlen(name + n + 1) < 16 + 1 + 5 + 3)
    return false;
  memcpy(hex, name + n + 1, 16);
  hex[16] = 0;
  if (strspn(hex, "0123456789abcdef") != 16 || name[n + 17] != '-') return false;
  *id = strtoull(hex, NULL, 16);
  return strtol(name + n + 18, &end, 10) >= 0 && end >= name + n + 18 + 5 && !strcmp(end, ".h5");
}

/* Removes shards of this name: those of the new pack, or all others. */
static void remove_shards(const packer *p, bool ours) {
  char path[2 * II_PATH_MAX];
  uint64_t id;
  DIR *folder = opendir(*p->folder ? p->folder : ".");
  for (const struct dirent *e; folder && (e = readdir(folder)) != NULL;) {
    if (!is_shard_name(p, e->d_name, &id) || (id == p->id) != ours) continue;
    snprintf(path, sizeof path, "%s%s", p->folder, e->d_name);
    unlink(path);
  }
  if (folder) closedir(folder);
}

/* One process at a time writes a pack of this name. */
static ii_status lock_name(packer *p, ii_error *err) {
  if (snprintf(p->lock_path, sizeof p->lock_path, "%s.lock", p->path) >= (int)sizeof p->lock_path)
    return ii_error_set(err, II_ERR_ARG, "the path '%.200s...' is too long", p->path);
  p->lock_fd = open(p->lock_path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (p->lock_fd < 0)
    return ii_error_set(err, II_ERR_IO, "cannot create '%s': %s", p->lock_path, strerror(errno));
  struct stat st; /* without a name, the process before us has just finished: try again */
  if (flock(p->lock_fd, LOCK_EX | LOCK_NB) == 0 && fstat(p->lock_fd, &st) == 0 && st.st_nlink > 0)
    return II_OK;
  return ii_error_set(err, II_ERR_IO, "'%s' cannot be locked: %s", p->lock_path,
                      "another process is writing this pack");
}

static ii_status prepare(packer *p, ii_error *err) {
  const char *slash = strrchr(p->path, '/'), *name = slash ? slash + 1 : p->path;
  const size_t n = strlen(name), m = (size_t)(name - p->path);
  if (n < 4 || strcmp(name + n - 3, ".h5") != 0)
    return ii_error_set(err, II_ERR_ARG, "the name of a pack ends in .h5, '%.300s' does not",
                        p->path);
  if (strlen(p->path) + 40 > II_PATH_MAX)
    return ii_error_set(err, II_ERR_ARG, "the path '%.200s...' is too long", p->path);
  if (p->o->max_side < 0 || p->o->max_side > 65000 || p->o->quality < 0 || p->o->quality > 100)
    return ii_error_set(err, II_ERR_ARG, "a longest side of %lld pixels with quality %d",
                        (long long)p->o->max_side, p->o->quality);
  snprintf(p->folder, sizeof p->folder, "%.*s", (int)m, p->path);
  snprintf(p->stem, sizeof p->stem, "%.*s", (int)(n - 3), name);
  if (getrandom(&p->id, sizeof p->id, 0) != sizeof p->id)
    return ii_error_set(err, II_ERR_IO, "no random number for the pack: %s", strerror(errno));
  p->items = calloc(BLOCK_IMAGES, sizeof *p->items);
  if (p->o->max_side > 0) p->shrinkers = calloc((size_t)p->threads, sizeof *p->shrinkers);
  if (!p->items || (p->o->max_side > 0 && !p->shrinkers))
    return ii_error_set(err, II_ERR_MEMORY, "no memory for packing");
  for (int i = 0; p->shrinkers && i < p->threads; i++)
    II_TRY(ii_shrinker_init(&p->shrinkers[i], err));
  return lock_name(p, err);
}

static void release(packer *p) {
  array *arrays[] = {&p->size,      &p->label,       &p->crc,         &p->index_size,
                     &p->index_crc, &p->names,       &p->places,      &p->recoded,
                     &p->blocks,    &p->shard_names, &p->shard_counts};
  for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]->data);
  for (int64_t i = 0; p->items && i < BLOCK_IMAGES; i++) {
    clear_item(&p->items[i]);
    ii_bytes_free(&p->items[i].buffer);
  }
  free(p->items);
  for (int i = 0; p->shrinkers && i < p->threads; i++) ii_shrinker_free(&p->shrinkers[i]);
  free(p->shrinkers);
  if (p->lock_fd >= 0) close(p->lock_fd);
}

static ii_status write_all(packer *p, ii_error *err) {
  II_TRY(prepare(p, err));
  ii_status s = write_shards(p, err);
  ii_pack_h5_close(&p->shard);
  if (s == II_OK) s = write_index(p, err);
  if (s == II_OK || !p->named) remove_shards(p, !p->named);
  unlink(p->lock_path);
  return s;
}

ii_status ii_pack_write(const ii_dataset *dataset, const char *path, const ii_pack_options *options,
                        ii_pack_result *result, ii_error *err) {
  ii_pack_options o = *options;
  if (o.quality == 0) o.quality = 90;
  *result = (ii_pack_result){0};
  packer *p = calloc(1, sizeof *p);
  if (!p) return ii_error_set(err, II_ERR_MEMORY, "no memory for packing");
  p->set = dataset, p->path = path, p->o = &o, p->result = result;
  p->threads = o.threads > 0 ? o.threads : ii_parallel_processors();
  p->total = ii_dataset_size(dataset);
  p->shard.id = -1, p->lock_fd = -1;
  ii_status s = write_all(p, err);
  release(p);
  free(p);
  return s;
}
