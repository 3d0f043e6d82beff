/* Barriers and warp operations for emulate.h. Every call names its place in the source, because
 * threads that wait for each other at different places are the bug that is looked for. */
#ifndef II_EMULATE_WARP_H
#define II_EMULATE_WARP_H

#include "kernels/emulate/emulate_warp_kinds.h"

static inline void __syncthreads(II_EMU_SITE) {
  ii_emu_barrier(II_EMU_BAR_PLAIN, 0, II_EMU_HERE);
}
static inline int __syncthreads_count(int p, II_EMU_SITE) {
  return ii_emu_barrier(II_EMU_BAR_COUNT, p, II_EMU_HERE);
}
static inline int __syncthreads_and(int p, II_EMU_SITE) {
  return ii_emu_barrier(II_EMU_BAR_AND, p, II_EMU_HERE);
}
static inline int __syncthreads_or(int p, II_EMU_SITE) {
  return ii_emu_barrier(II_EMU_BAR_OR, p, II_EMU_HERE);
}

static inline void __syncwarp(unsigned mask = 0xffffffffu, II_EMU_SITE) {
  ii_emu_warp(II_EMU_WARP_SYNC, mask, 0, 0, II_EMU_HERE);
}

template <typename T>
static inline T ii_emu_shuffle(unsigned mask, T v, int lane, const char *file, int line) {
  static_assert(sizeof(T) <= 8, "a shuffle moves up to 8 bytes");
  uint64_t bits = 0;
  memcpy(static_cast<void *>(&bits), static_cast<const void *>(&v), sizeof v);
  bits = ii_emu_warp(II_EMU_WARP_SHUFFLE, mask, bits, lane, file, line);
  memcpy(static_cast<void *>(&v), static_cast<const void *>(&bits), sizeof v);
  return v;
}
template <typename T>
static inline T __shfl_sync(unsigned mask, T v, int src, int width = 32, II_EMU_SITE) {
  const int first = ii_emu_lane() & ~(width - 1);
  return ii_emu_shuffle(mask, v, first + (src & (width - 1)), II_EMU_HERE);
}
template <typename T>
static inline T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, II_EMU_SITE) {
  const int lane = ii_emu_lane(), first = lane & ~(width - 1), src = lane - (int)delta;
  return ii_emu_shuffle(mask, v, src < first ? lane : src, II_EMU_HERE);
}
template <typename T>
static inline T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, II_EMU_SITE) {
  const int lane = ii_emu_lane(), last = lane | (width - 1), src = lane + (int)delta;
  return ii_emu_shuffle(mask, v, src > last ? lane : src, II_EMU_HERE);
}
/* A lane of a later segment cannot be read, one of an earlier segment can. */
template <typename T>
static inline T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32, II_EMU_SITE) {
  const int lane = ii_emu_lane(), last = lane | (width - 1), src = lane ^ bits;
  return ii_emu_shuffle(mask, v, src > last ? lane : src, II_EMU_HERE);
}

static inline unsigned __ballot_sync(unsigned mask, int p, II_EMU_SITE) {
  return (unsigned)ii_emu_warp(II_EMU_WARP_BALLOT, mask, p != 0, 0, II_EMU_HERE);
}
static inline int __any_sync(unsigned mask, int p, II_EMU_SITE) {
  return ii_emu_warp(II_EMU_WARP_BALLOT, mask, p != 0, 0, II_EMU_HERE) != 0;
}
static inline int __all_sync(unsigned mask, int p, II_EMU_SITE) {
  return ii_emu_warp(II_EMU_WARP_BALLOT, mask, p == 0, 0, II_EMU_HERE) == 0;
}
template <typename T> static inline unsigned __match_any_sync(unsigned mask, T v, II_EMU_SITE) {
  uint64_t bits = 0;
  memcpy(static_cast<void *>(&bits), static_cast<const void *>(&v), sizeof v);
  return (unsigned)ii_emu_warp(II_EMU_WARP_MATCH, mask, bits, 0, II_EMU_HERE);
}

#define II_EMU_REDUCE(name, type, kind)                                                            \
  static inline type name(unsigned mask, type v, II_EMU_SITE) {                                    \
    return (type)ii_emu_warp(kind, mask, (uint64_t)(int64_t)v, 0, II_EMU_HERE);                    \
  }
II_EMU_REDUCE(__reduce_add_sync, int, II_EMU_WARP_ADD)
II_EMU_REDUCE(__reduce_add_sync, unsigned, II_EMU_WARP_ADD)
II_EMU_REDUCE(__reduce_min_sync, int, II_EMU_WARP_MIN_S)
II_EMU_REDUCE(__reduce_min_sync, unsigned, II_EMU_WARP_MIN_U)
II_EMU_REDUCE(__reduce_max_sync, int, II_EMU_WARP_MAX_S)
II_EMU_REDUCE(__reduce_max_sync, unsigned, II_EMU_WARP_MAX_U)
II_EMU_REDUCE(__reduce_and_sync, unsigned, II_EMU_WARP_AND)
II_EMU_REDUCE(__reduce_or_sync, unsigned, II_EMU_WARP_OR)
II_EMU_REDUCE(__reduce_xor_sync, unsigned, II_EMU_WARP_XOR)
#undef II_EMU_REDUCE

static inline void __threadfence(void) {}
static inline void __threadfence_block(void) {}
static inline void __threadfence_system(void) {}
[[noreturn]] static inline void __trap(II_EMU_SITE) {
  ii_emu_trap(II_EMU_HERE);
}

#endif
