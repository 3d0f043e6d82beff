/* CUDA C++ for a plain host compiler: included before everything else when a .cu file is compiled
 * for the emulated engine (g++ -x c++ -include kernels/emulate/emulate.h). NVIDIA's own headers
 * supply types, enumerations, prototypes and the host side of the 16-bit types; this file and the
 * ones it includes supply what nvcc has built in. What the emulation proves and what it does not is
 * in docs/emulation.md.
 *
 * A thread of the GPU is called as an ordinary function; sched.cpp gives it a stack of its own only
 * if it has to wait (barrier, warp operation). */
#ifndef II_EMULATE_H
#define II_EMULATE_H
#define II_EMULATE 1

/* Before NVIDIA's headers, which leave a definition alone that is there already. A shared variable
 * is one static object: blocks run one after another. */
#define __shared__   static
#define __constant__ static

/* The device functions below replace names of glibc by macros, so its headers must come first. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <type_traits>
#include <cuda_runtime.h>
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include "kernels/emulate/emulate_body.h"
#undef __launch_bounds__
#define __launch_bounds__(...)

/* Position of the running thread; sched.cpp sets them at every change of thread. Not const, or the
 * compiler would keep a value over a barrier. */
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
static constexpr int warpSize = 32;

/* Where in the source a barrier, a warp operation or an atomic stands: defaulted last arguments. */
#define II_EMU_SITE const char *file_ = __builtin_FILE(), int line_ = __builtin_LINE()
#define II_EMU_HERE file_, line_

/* ---- Launches ---------------------------------------------------------------------------------*/

/* Checks the limits of a launch and queues it, or sets the last error. Takes over `body`. */
void ii_emu_submit(const ii_emu_config &config, ii_emu_body *body);

template <typename... P> struct ii_emu_call final : ii_emu_body {
  void (*entry)(P...);
  std::tuple<P...> values;
  ii_emu_call(void (*k)(P...), const P &...v)
      : ii_emu_body(reinterpret_cast<const void *>(k), sizeof(*this)), entry(k), values(v...) {}
  void run() override { std::apply(entry, values); } /* a copy per thread, as on the GPU */
};

template <typename... P> struct ii_emu_launcher {
  void (*entry)(P...);
  /* Arguments are converted as in a call, so that types nvcc would refuse are refused here. */
  void operator()(const ii_emu_config &c, P... values) const {
    ii_emu_submit(c, new ii_emu_call<P...>(entry, values...));
  }
};
template <typename... P> static inline ii_emu_launcher<P...> ii_emu_launcher_of(void (*k)(P...)) {
  return ii_emu_launcher<P...>{k};
}
static inline ii_emu_config ii_emu_config_of(const char *name, const char *file, int line,
                                             dim3 grid, dim3 block, size_t shared_bytes,
                                             cudaStream_t stream) {
  return ii_emu_config{name, file, line, grid, block, shared_bytes, stream};
}

/* kernel<<<grid, block, smem, stream>>>(...); a template with several arguments in parentheses. */
#define II_EMU_LAUNCH(kernel, grid, block, smem, stream, ...)                                      \
  ii_emu_launcher_of(kernel)(ii_emu_config_of(#kernel, __FILE__, __LINE__, grid, block, smem,      \
                                              stream) __VA_OPT__(, ) __VA_ARGS__)

/* Forms of the runtime's functions that take a kernel as it is; only nvcc sees NVIDIA's. */
template <typename... P>
static inline cudaError_t cudaFuncSetAttribute(void (*k)(P...), cudaFuncAttribute a, int value) {
  return ::cudaFuncSetAttribute(reinterpret_cast<const void *>(k), a, value);
}
template <typename... P>
static inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *to, void (*k)(P...)) {
  return ::cudaFuncGetAttributes(to, reinterpret_cast<const void *>(k));
}
template <typename... P>
static inline cudaError_t
cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void (*k)(P...), int threads,
                                              size_t shared) {
  return ::cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, reinterpret_cast<const void *>(k),
                                                         threads, shared);
}

#define II_EMU_SHARED(type, name) type *name = static_cast<type *>(ii_emu_dynamic_shared())

#include "kernels/emulate/emulate_warp.h"
#include "kernels/emulate/emulate_math.h"
#include "kernels/emulate/emulate_half.h"
#include "kernels/emulate/emulate_atomic.h"
#include "kernels/emulate/emulate_mma.h"

#endif
