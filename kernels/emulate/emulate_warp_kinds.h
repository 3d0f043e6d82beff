/* What a barrier or a warp operation does; between the device functions and the scheduler. */
#ifndef II_EMULATE_WARP_KINDS_H
#define II_EMULATE_WARP_KINDS_H
#include <stddef.h>
#include <stdint.h>

enum { II_EMU_BAR_PLAIN, II_EMU_BAR_COUNT, II_EMU_BAR_AND, II_EMU_BAR_OR };

enum {
  II_EMU_WARP_SYNC,
  II_EMU_WARP_SHUFFLE, /* arg: the lane to read */
  II_EMU_WARP_BALLOT,
  II_EMU_WARP_MATCH,
  II_EMU_WARP_ADD,
  II_EMU_WARP_MIN_S,
  II_EMU_WARP_MAX_S,
  II_EMU_WARP_MIN_U,
  II_EMU_WARP_MAX_U,
  II_EMU_WARP_AND,
  II_EMU_WARP_OR,
  II_EMU_WARP_XOR
};

/* Waits until all threads of the block that have not returned are here. The result is that of the
 * __syncthreads_... function that `kind` names. */
int ii_emu_barrier(int kind, int predicate, const char *file, int line);
/* Waits for the lanes of `mask` that have not returned; the operation's result for this lane. A
 * shuffle from a lane outside them gives all ones. */
uint64_t ii_emu_warp(int kind, unsigned mask, uint64_t value, int arg, const char *file, int line);
/* Lane of the running thread. */
int ii_emu_lane(void);
/* Ends the process with a report. */
[[noreturn]] void ii_emu_trap(const char *file, int line);
/* Reports an address that is not global memory or not a multiple of `bytes`: what is named so is an
 * instruction for global memory, which faults on a shared or local variable. */
void ii_emu_global_access(const void *p, size_t bytes, const char *file, int line);
/* Reports a misaligned address; tells the race checker and the memory profile. function, type: as
 * in CUDA; pc: an address in the kernel that belongs to this call. */
void ii_emu_atomic_access(const void *p, size_t bytes, const char *function, const char *type,
                          const void *pc, const char *file, int line);
/* The lane's part of a fragment of a matrix, 16 rows of row_bytes that are `pitch` bytes apart, is
 * read or written until ii_emu_fragment_done: the memory profile counts it as the hardware moves
 * fragments, not by the elements. */
void ii_emu_fragment(const void *p, size_t row_bytes, size_t pitch, bool store);
void ii_emu_fragment_done(void);
/* Dynamic shared memory of the running block: 32-byte aligned, of exactly the launch's size. */
void *ii_emu_dynamic_shared(void);

#endif
