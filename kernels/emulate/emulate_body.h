/* A kernel with its arguments, as launches hand it to the scheduler. */
#ifndef II_EMULATE_BODY_H
#define II_EMULATE_BODY_H
#include <cuda_runtime_api.h>
#include <stddef.h>

struct ii_emu_config {
  const char *name, *file; /* the kernel as it is written at the launch, and where that is */
  int line;
  dim3 grid, block;
  size_t shared_bytes;
  cudaStream_t stream;
};

/* run() is one thread. */
struct ii_emu_body {
  const void *kernel;
  size_t bytes; /* of the whole object: reads of it by a thread are reads of its arguments */
  ii_emu_body(const void *k, size_t n) : kernel(k), bytes(n) {}
  virtual ~ii_emu_body() {}
  virtual void run() = 0;
};

#endif
