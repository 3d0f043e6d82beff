/* Bump allocator: many small host structs, dropped all at once. */
#ifndef II_ARENA_H
#define II_ARENA_H
#include <stddef.h>

typedef struct ii_arena ii_arena; /* NULL is an empty arena */

/* Zeroed memory, 16-byte aligned; NULL when the host is out of memory. */
void *ii_arena_bump(ii_arena **arena, size_t bytes);
/* Drops everything but keeps the memory for reuse. */
void ii_arena_reset(ii_arena *arena);
void ii_arena_destroy(ii_arena **arena);

#endif
