/* Versions of NVIDIA's libraries and properties of the GPUs (kernels/about.h). No kernels. */
#include "kernels/about.h"
#include <stdio.h>
#include <string.h>
#include "kernels/cuda/gpu.h"

/* Versions are one number: major * of_major + minor * of_minor + patch. */
static void put(char *text, size_t bytes, int64_t v, int64_t of_major, int64_t of_minor) {
  snprintf(text, bytes, "%d.%d.%d", (int)(v / of_major), (int)(v % of_major / of_minor),
           (int)(v % of_minor));
}

extern "C" int ii_cuda_libraries(ii_library *l) {
  int runtime = 0;
  cudaRuntimeGetVersion(&runtime);
  memset(l, 0, 3 * sizeof *l);
  l[0].name = "CUDA runtime";
  put(l[0].built, sizeof l[0].built, CUDART_VERSION, 1000, 10);
  put(l[0].found, sizeof l[0].found, runtime, 1000, 10);
  l[1].name = "cuBLASLt";
  put(l[1].built, sizeof l[1].built, CUBLAS_VERSION, 10000, 100);
  put(l[1].found, sizeof l[1].found, (int64_t)cublasLtGetVersion(), 10000, 100);
  l[2].name = "cuDNN";
  put(l[2].built, sizeof l[2].built, CUDNN_VERSION, 10000, 100);
  put(l[2].found, sizeof l[2].found, (int64_t)cudnnGetVersion(), 10000, 100);
  return 3;
}

extern "C" void ii_cuda_architectures(char *text, int bytes) {
  text[0] = 0;
#ifdef __CUDA_ARCH_LIST__
  static const int list[] = {__CUDA_ARCH_LIST__};
  for (size_t i = 0, n = 0; i < sizeof list / sizeof *list && n < (size_t)bytes; i++)
    n += (size_t)snprintf(text + n, (size_t)bytes - n, "%ssm_%d", i ? ", " : "", list[i] / 10);
#endif
}

extern "C" int ii_cuda_driver_version(void) {
  int v = 0; /* a failing call leaves it untouched */
  if (cudaDriverGetVersion(&v) != cudaSuccess) cudaGetLastError();
  return v;
}

static int attribute(cudaDeviceAttr a, int index) {
  int v = 0;
  if (cudaDeviceGetAttribute(&v, a, index) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return v;
}

extern "C" int ii_gpu_describe(int index, ii_gpu *g, char *error, int bytes) {
  cudaDeviceProp p;
  size_t free_bytes = 0, total = 0;
  memset(g, 0, sizeof *g);
  cudaError_t code = cudaGetDeviceProperties(&p, index);
  if (code == cudaSuccess) code = cudaSetDevice(index);
  if (code == cudaSuccess) code = cudaMemGetInfo(&free_bytes, &total);
  if (code != cudaSuccess) {
    cudaGetLastError();
    snprintf(error, (size_t)bytes, "GPU %d: %s", index, cudaGetErrorString(code));
    return 1;
  }
  snprintf(g->name, sizeof g->name, "%s", p.name);
  g->free_bytes = (int64_t)free_bytes;
  g->total_bytes = (int64_t)total;
  g->major = p.major;
  g->minor = p.minor;
  g->processors = p.multiProcessorCount;
  g->clock_mhz = attribute(cudaDevAttrClockRate, index) / 1000;
  g->memory_clock_mhz = attribute(cudaDevAttrMemoryClockRate, index) / 1000;
  g->ecc = attribute(cudaDevAttrEccEnabled, index);
  return 0;
}
