/* How many warps of a kernel a multiprocessor holds, by NVIDIA's rules for compute capability 8.0,
 * 9.0 and 10.0, from the registers that scripts/cuda_gate.sh recorded and the sizes of a launch. */
#ifndef II_BENCH_OCCUPANCY_H
#define II_BENCH_OCCUPANCY_H
#include <stdio.h>
#include <string.h>

enum { OCCUPANCY_ARCHS = 3 };
static const int occupancy_arch[OCCUPANCY_ARCHS] = {80, 90, 100};

/* Registers per thread of a kernel on each architecture, from a table of cuda_gate.sh; 0 when it
 * has no row there. */
static inline int occupancy_registers(const char *table, const char *kernel, int *registers) {
  char line[1024], name[512];
  FILE *f = fopen(table, "r");
  int found = 0;
  while (f && !found && fgets(line, sizeof line, f))
    found = sscanf(line, "%*s %511s %d %d %d", name, &registers[0], &registers[1], &registers[2]) ==
                4 &&
            !strcmp(name, kernel);
  if (f) fclose(f);
  return found;
}

/* Warps that fit one multiprocessor, of 64: blocks of `threads` with `shared` bytes, static and
 * dynamic. Registers are given to warps in units of 256, four warps at a time; a block's shared
 * memory in units of 128 bytes and 1 KiB more for the system. */
static inline int occupancy_warps(int arch, int registers, int threads, size_t shared) {
  const int warps = (threads + 31) / 32, most_warps = 64;
  const size_t memory = (size_t)(arch == 80 ? 164 : 228) << 10;
  const int per_warp = (registers * 32 + 255) / 256 * 256;
  const int by_registers = per_warp ? 65536 / per_warp / 4 * 4 / warps : 32;
  const size_t per_block = (shared + 1024 + 127) / 128 * 128;
  int blocks = most_warps / warps;
  if (blocks > 32) blocks = 32;
  if (blocks > by_registers) blocks = by_registers;
  if ((size_t)blocks > memory / per_block) blocks = (int)(memory / per_block);
  return blocks * warps;
}

#endif
