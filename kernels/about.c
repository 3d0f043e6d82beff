#include "kernels/about.h"
#include <oneapi/dnnl/dnnl.h>
#include <stdio.h>
#include <string.h>

#if II_HAVE_CUDA
int ii_cuda_libraries(ii_library *l); /* kernels/cuda/about.cu */
#else
static int ii_cuda_libraries(ii_library *l) {
  (void)l;
  return 0;
}

void ii_cuda_architectures(char *text, int bytes) {
  if (bytes > 0) text[0] = 0;
}

int ii_cuda_driver_version(void) {
  return 0;
}

int ii_gpu_describe(int index, ii_gpu *g, char *error, int bytes) {
  memset(g, 0, sizeof *g);
  snprintf(error, (size_t)bytes, "GPU %d: this build has no CUDA engine", index);
  return 1;
}
#endif

int ii_engine_libraries(ii_library *l) {
  const dnnl_version_t *v = dnnl_version();
  l[0] = (ii_library){.name = "oneDNN"};
  snprintf(l[0].built, sizeof l[0].built, "%d.%d.%d", DNNL_VERSION_MAJOR, DNNL_VERSION_MINOR,
           DNNL_VERSION_PATCH);
  snprintf(l[0].found, sizeof l[0].found, "%d.%d.%d", v->major, v->minor, v->patch);
  return 1 + ii_cuda_libraries(l + 1);
}
