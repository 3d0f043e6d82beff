/* Device memory: a best-fit, coalescing pool over large chunks of the engine's memory, one per
 * context.
 *
 * After the first training step every request is served from chunks that are already there, so a
 * warmed-up step asks the system for nothing. Chunks in which nothing is in use are given back only
 * when there is no memory for another one. Blocks are reference-counted; only tape, scope and
 * parameter code retains and releases them. In plan mode the same pool runs without memory behind
 * it and so gives the exact peak of a step that was never executed. Not thread-safe: one per thread
 * of control. */
#ifndef II_POOL_H
#define II_POOL_H
#include "autograd/error.h"
#include "kernels/device.h"
#include <stdint.h>

/* What memory is used for, for reports. */
typedef enum {
  II_MEM_PARAMETERS,
  II_MEM_GRADIENTS, /* of parameters */
  II_MEM_OPTIMIZER, /* moments */
  II_MEM_EMA,
  II_MEM_ACTIVATIONS,
  II_MEM_ACTIVATION_GRADIENTS,
  II_MEM_INPUT,
  II_MEM_CLASSES
} ii_mem_class;

typedef struct ii_block {
  void *data;  /* NULL in plan mode */
  size_t size; /* rounded up to II_POOL_ALIGN */
  int refs;    /* 0: free */
  ii_mem_class use;
  uintptr_t address;            /* position in an imagined address space, the same in every run */
  struct ii_block *prev, *next; /* neighbours in the chunk */
  struct ii_block *free_prev, *free_next; /* list of free blocks */
  struct ii_chunk *chunk;
  struct ii_pool *pool;
} ii_block;

#define II_POOL_ALIGN ((size_t)64)

typedef struct ii_pool {
  ii_kctx *k; /* whose memory; NULL in plan mode */
  bool exact; /* every block is a chunk of its own, given back at once: see ii_device_exact */
  struct ii_chunk *chunks;
  ii_block *free_list, *spare; /* free blocks; unused ii_block structs */
  int64_t reserved;            /* bytes of all chunks */
  int64_t live, peak;          /* bytes in blocks that are in use */
  int64_t live_by_class[II_MEM_CLASSES], peak_by_class[II_MEM_CLASSES]; /* the latter at `peak` */
  bool fixed;             /* no chunk may come or go: what does not fit into those is refused */
  int64_t limit;          /* refuse to reserve more than this; 0: no limit */
  uintptr_t next_address; /* ii_block.address of the next chunk */
} ii_pool;

/* k: the open engine whose memory it is; NULL for a plan: no memory behind the blocks (data stays
 * NULL). */
void ii_pool_init(ii_pool *p, ii_kctx *k);

/* Gives all chunks back to the system. Every block becomes invalid. */
void ii_pool_destroy(ii_pool *p);

/* A block of at least `bytes` (zero gives a valid block), refs = 1, contents undefined. NULL with
 * *err set (II_ERR_MEMORY, saying how much was asked for and how much is in use) when there is
 * none. */
ii_block *ii_pool_alloc(ii_pool *p, size_t bytes, ii_mem_class use, ii_error *err);

void ii_block_retain(ii_block *b);
/* Drops one reference; the last one returns the block to the pool. */
void ii_block_release(ii_block *b);

/* A number that stays the same as long as the blocks in use lie where they lay, and no chunk has
 * come or gone: then the same requests get the same memory, and what is free was free. */
uint64_t ii_pool_layout(const ii_pool *p);

/* Forgets the peak seen so far: it restarts at what is live now. */
void ii_pool_reset_peak(ii_pool *p);

/* "parameters", "gradients", ... as used in reports and JSON. */
const char *ii_mem_class_name(ii_mem_class use);

#endif
