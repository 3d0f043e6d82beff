#include "autograd/pool.h"
#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n)   ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

#define CHUNK_MIN ((size_t)32 << 20)
#define HUGE_PAGE ((size_t)2 << 20)

typedef struct ii_chunk {
  struct ii_chunk *next, *prev;
  ii_block *first;
  void *memory;
  size_t size;
} ii_chunk;

static size_t round_up(size_t n, size_t to) {
  return (n + to - 1) / to * to;
}

/* Memory that the sanitizer's tools know: free blocks are marked, so that a use after release is
 * seen. */
static void mark_free(const ii_pool *p, const void *data, size_t bytes) {
  if (data && p->k->device == II_CPU) ASAN_POISON_MEMORY_REGION(data, bytes);
}

static void mark_used(const ii_pool *p, const void *data, size_t bytes) {
  if (data && p->k->device == II_CPU) ASAN_UNPOISON_MEMORY_REGION(data, bytes);
}

void ii_pool_init(ii_pool *p, ii_kctx *k) {
  memset(p, 0, sizeof *p);
  p->k = k;
  p->exact = k && ii_device_exact(k);
}

static void free_list_add(ii_pool *p, ii_block *b) {
  b->free_prev = NULL;
  b->free_next = p->free_list;
  if (p->free_list) p->free_list->free_prev = b;
  p->free_list = b;
}

static void free_list_remove(ii_pool *p, ii_block *b) {
  if (b->free_prev)
    b->free_prev->free_next = b->free_next;
  else
    p->free_list = b->free_next;
  if (b->free_next) b->free_next->free_prev = b->free_prev;
  b->free_prev = b->free_next = NULL;
}

static ii_block *block_struct(ii_pool *p) {
  ii_block *b = p->spare;
  if (b)
    p->spare = b->free_next;
  else
    b = malloc(sizeof *b);
  if (b) *b = (ii_block){.pool = p};
  return b;
}

static void block_recycle(ii_pool *p, ii_block *b) {
  b->free_next = p->spare;
  p->spare = b;
}

/* Gives the chunk of a free block that fills it back to the engine. */
static void drop_chunk(ii_pool *p, ii_block *b) {
  ii_chunk *c = b->chunk;
  if (c->next) c->next->prev = c->prev;
  *(c->prev ? &c->prev->next : &p->chunks) = c->next;
  p->reserved -= (int64_t)c->size;
  mark_used(p, c->memory, c->size);
  if (c->memory) ii_device_free(p->k, c->memory, c->size);
  block_recycle(p, b);
  free(c);
}

/* Drops the chunks in which nothing is in use. False when there was none. */
static bool drop_free_chunks(ii_pool *p) {
  bool dropped = false;
  if (p->fixed) return false;
  for (ii_block *b = p->free_list, *next; b; b = next) {
    next = b->free_next;
    if (b->prev || b->next) continue;
    free_list_remove(p, b);
    drop_chunk(p, b);
    dropped = true;
  }
  return dropped;
}

/* Memory for a chunk of *size bytes, or of `least` where there is not as much. False when there is
 * not even that. *memory stays NULL in plan mode. */
static bool reserve(ii_pool *p, size_t least, size_t *size, void **memory) {
  if (p->fixed) return false;
  if (p->limit && p->reserved + (int64_t)*size > p->limit) *size = least;
  if (p->limit && p->reserved + (int64_t)*size > p->limit) return false;
  if (!p->k || !ii_device_alloc(p->k, *size, memory)) return true;
  if (*size <= least) return false;
  *size = least; /* a GPU may have room for this block, but not for a whole chunk */
  return !ii_device_alloc(p->k, *size, memory);
}

/* Adds a chunk for at least `bytes`, as one free block. */
static ii_block *add_chunk(ii_pool *p, size_t bytes, ii_error *err) {
  const size_t least = p->exact ? bytes : round_up(bytes, HUGE_PAGE);
  const size_t most = p->exact || least > CHUNK_MIN ? least : CHUNK_MIN;
  size_t size = most;
  ii_chunk *c = calloc(1, sizeof *c);
  ii_block *b = block_struct(p);
  void *memory = NULL;
  bool there = c && b && reserve(p, least, &size, &memory);
  if (c && b && !there && drop_free_chunks(p)) { /* each of them too small, but together? */
    size = most;
    there = reserve(p, least, &size, &memory);
  }
  if (!there) {
    free(c);
    if (b) block_recycle(p, b);
    ii_error_set(err, II_ERR_MEMORY,
                 "out of memory: %.1f MiB more are needed while %.1f MiB are in use; use a smaller "
                 "batch or image, or switch model.checkpoint on",
                 (double)bytes / 0x1p20, (double)p->live / 0x1p20);
    return NULL;
  }
  c->memory = memory;
  c->size = size;
  c->first = b;
  c->next = p->chunks;
  if (p->chunks) p->chunks->prev = c;
  p->chunks = c;
  b->chunk = c;
  b->data = memory;
  b->size = round_up(size, II_POOL_ALIGN);
  /* not the real address: a run places its blocks as its plan did, and as every other run does */
  b->address = p->next_address;
  p->next_address += b->size;
  p->reserved += (int64_t)size;
  mark_free(p, memory, size);
  free_list_add(p, b);
  return b;
}

void ii_pool_destroy(ii_pool *p) {
  while (p->chunks) {
    ii_chunk *c = p->chunks;
    p->chunks = c->next;
    for (ii_block *b = c->first, *next; b; b = next) {
      next = b->next;
      free(b);
    }
    if (c->memory) {
      mark_used(p, c->memory, c->size);
      ii_device_free(p->k, c->memory, c->size);
    }
    free(c);
  }
  while (p->spare) {
    ii_block *b = p->spare;
    p->spare = b->free_next;
    free(b);
  }
  memset(p, 0, sizeof *p);
}

/* Best fit; among equal sizes the lowest address, which keeps long-lived blocks together. */
static ii_block *best_fit(ii_pool *p, size_t size) {
  ii_block *best = NULL;
  for (ii_block *b = p->free_list; b; b = b->free_next) {
    if (b->size < size) continue;
    if (!best || b->size < best->size || (b->size == best->size && b->address < best->address))
      best = b;
  }
  return best;
}

ii_block *ii_pool_alloc(ii_pool *p, size_t bytes, ii_mem_class use, ii_error *err) {
  size_t size = round_up(bytes ? bytes : 1, II_POOL_ALIGN);
  ii_block *b = p->exact ? NULL : best_fit(p, size);
  if (!b) b = add_chunk(p, p->exact && bytes ? bytes : size, err);
  if (!b) return NULL;
  if (b->size > size) { /* split: the rest stays free */
    ii_block *rest = block_struct(p);
    if (!rest) {
      ii_error_set(err, II_ERR_MEMORY, "out of host memory");
      return NULL;
    }
    rest->data = b->data ? (char *)b->data + size : NULL;
    rest->address = b->address + size;
    rest->chunk = b->chunk;
    rest->size = b->size - size;
    rest->prev = b;
    rest->next = b->next;
    if (b->next) b->next->prev = rest;
    b->next = rest;
    b->size = size;
    free_list_add(p, rest);
  }
  free_list_remove(p, b);
  b->refs = 1;
  b->use = use;
  p->live += (int64_t)size;
  p->live_by_class[use] += (int64_t)size;
  if (p->live > p->peak) {
    p->peak = p->live;
    memcpy(p->peak_by_class, p->live_by_class, sizeof p->peak_by_class);
  }
  /* exactly what was asked for is accessible, so that sanitizers see an overrun of one byte */
  mark_used(p, b->data, bytes);
  return b;
}

void ii_block_retain(ii_block *b) {
  II_ASSERT(b->refs > 0, "refs %d", b->refs);
  b->refs++;
}

/* Joins b with its free right neighbour. */
static void join_next(ii_pool *p, ii_block *b) {
  ii_block *n = b->next;
  b->size += n->size;
  b->next = n->next;
  if (n->next) n->next->prev = b;
  block_recycle(p, n);
}

void ii_block_release(ii_block *b) {
  II_ASSERT(b->refs > 0, "refs %d", b->refs);
  if (--b->refs > 0) return;
  ii_pool *p = b->pool;
  p->live -= (int64_t)b->size;
  p->live_by_class[b->use] -= (int64_t)b->size;
  if (p->exact) {
    drop_chunk(p, b);
    return;
  }
  mark_free(p, b->data, b->size);
  if (b->next && b->next->refs == 0) {
    free_list_remove(p, b->next);
    join_next(p, b);
  }
  if (b->prev && b->prev->refs == 0) {
    b = b->prev; /* is in the free list already */
    join_next(p, b);
  } else {
    free_list_add(p, b);
  }
}

static uint64_t mix_in(uint64_t hash, uint64_t v) {
  hash = (hash ^ v) * 0x9E3779B97F4A7C15u;
  return hash ^ hash >> 29;
}

uint64_t ii_pool_layout(const ii_pool *p) {
  uint64_t hash = 1;
  for (const ii_chunk *c = p->chunks; c; c = c->next) {
    hash = mix_in(mix_in(hash, (uintptr_t)c->memory), c->size);
    for (const ii_block *b = c->first; b; b = b->next)
      if (b->refs) hash = mix_in(mix_in(hash, (uintptr_t)b->data), b->size);
  }
  return hash;
}

void ii_pool_reset_peak(ii_pool *p) {
  p->peak = p->live;
  memcpy(p->peak_by_class, p->live_by_class, sizeof p->peak_by_class);
}

const char *ii_mem_class_name(ii_mem_class use) {
  static const char *const names[II_MEM_CLASSES] = {
      "parameters",           "gradients", "optimizer", "ema", "activations",
      "activation_gradients", "input"};
  return names[use];
}
