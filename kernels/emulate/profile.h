/* The memory profile of the emulated GPU (build with II_EMULATE_PROFILE, docs/emulation.md): what
 * each launch asks of memory, counted access by access, and what of it reaches DRAM by a model of
 * the second-level cache. For tests and benchmarks in such a build; the engine knows nothing of it.
 *
 * An access is what one thread does; a request what a warp does with one instruction, that is the
 * accesses of the lanes that are at the same place together. All counts are exact, and the same in
 * every run. */
#ifndef II_EMULATE_PROFILE_H
#define II_EMULATE_PROFILE_H
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Kinds of accesses, and widths: 1 << w bytes. */
enum { II_EMU_LOAD, II_EMU_STORE, II_EMU_ATOMIC, II_EMU_KINDS };
enum { II_EMU_WIDTHS = 5 };

typedef struct {
  uint64_t accesses[II_EMU_WIDTHS], requests[II_EMU_WIDTHS];
  uint64_t sectors; /* of 32 bytes, that requests touched, each once per request */
  uint64_t lines;   /* of 128 bytes, likewise */
} ii_emu_accesses;

/* One allocation of device memory, during one launch. */
typedef struct {
  uint64_t allocation; /* counted from 1, in order of allocation */
  const void *start;
  size_t bytes; /* of the whole allocation */
  ii_emu_accesses of[II_EMU_KINDS];
  uint64_t dram_read;    /* bytes this launch made the cache fetch */
  uint64_t dram_written; /* bytes this launch wrote last, that have left the cache; until the cache
                            is emptied, part of them is still in it */
} ii_emu_buffer_traffic;

/* Accesses to shared memory. wavefronts: passes that conflicts of banks leave; one per request for
 * widths up to 4 bytes, two for 8, four for 16, when there is none. */
typedef struct {
  uint64_t accesses[II_EMU_WIDTHS], requests[II_EMU_WIDTHS], wavefronts;
} ii_emu_shared_traffic;

/* Atomics to device memory by function: accesses and requests. */
typedef struct {
  const char *function, *type; /* "atomicAdd", "float4" */
  int width;                   /* bytes */
  uint64_t accesses, requests;
} ii_emu_atomic_traffic;

typedef struct {
  const char *name; /* of the kernel as scripts/cuda_gate.sh prints it; or "memset", "memcpy" */
  const char *file; /* where it was launched; NULL for memset and memcpy */
  int line;
  unsigned grid[3], block[3];
  size_t static_shared, dynamic_shared;
  int buffers, atomics;
  const ii_emu_buffer_traffic *buffer;
  const ii_emu_atomic_traffic *atomic;
  ii_emu_shared_traffic shared[II_EMU_KINDS];
} ii_emu_launch_traffic;

/* Begins to count; at the start of the program when II_EMU_PROFILE names a file. */
void ii_emu_profile_start(void);
/* Launches, sets and copies since then. */
int64_t ii_emu_profile_count(void);
/* Number i of them. Valid until the next launch. */
ii_emu_launch_traffic ii_emu_profile_get(int64_t i);
/* Writes everything in the cache back and empties it. */
void ii_emu_profile_empty_cache(void);
/* Forgets all launches so far; the cache keeps its contents. */
void ii_emu_profile_clear(void);
/* Bytes of the cache. */
size_t ii_emu_profile_cache_bytes(void);

#ifdef __cplusplus
}
#endif
#endif
