/* Planted: a comparison of signed with unsigned in the host's part, which only the host compiler
 * warns about. */
#include "kernels/cuda/gpu.h"

extern "C" int gate_host_warning(int a, unsigned b) {
  return a < b;
}
