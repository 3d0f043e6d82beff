/* The bump arena for host structs that live until the tape is reset. */
#include "autograd/arena.h"
#include <stdlib.h>
#include <string.h>

#define ARENA_CHUNK ((size_t)256 << 10)

struct ii_arena {
  struct ii_arena *next; /* chunks that are full, or spare ones after a reset */
  size_t used, size;
  _Alignas(16) char bytes[];
};

static void *bump(ii_arena *a, size_t n) {
  void *p = a->bytes + a->used;
  a->used += n;
  memset(p, 0, n);
  return p;
}

void *ii_arena_bump(ii_arena **arena, size_t bytes) {
  size_t n = (bytes + 15) & ~(size_t)15;
  for (ii_arena *a = *arena; a; a = a->next)
    if (a->size - a->used >= n) return bump(a, n);
  size_t size = n > ARENA_CHUNK ? n : ARENA_CHUNK;
  ii_arena *a = malloc(sizeof *a + size);
  if (!a) return NULL;
  a->size = size;
  a->used = 0;
  a->next = *arena;
  *arena = a;
  return bump(a, n);
}

void ii_arena_reset(ii_arena *arena) {
  for (ii_arena *a = arena; a; a = a->next) a->used = 0;
}

void ii_arena_destroy(ii_arena **arena) {
  while (*arena) {
    ii_arena *a = *arena;
    *arena = a->next;
    free(a);
  }
}
