/* What the engines of this build are made of and run on, for `train --doctor`. */
#ifndef II_ABOUT_H
#define II_ABOUT_H
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  const char *name;
  char built[24], found[24]; /* version at compile time; the one that runs now */
} ii_library;
#define II_LIBRARIES_MAX 8

/* The libraries of the engines; returns how many were stored in l[II_LIBRARIES_MAX]. */
int ii_engine_libraries(ii_library *l);

/* The GPU code in this program into text[bytes]: "sm_80, sm_90, sm_100"; "" without any. */
void ii_cuda_architectures(char *text, int bytes);

/* The CUDA version that the driver serves (13000: 13.0); 0 without a driver or CUDA engine. */
int ii_cuda_driver_version(void);

typedef struct {
  char name[256];
  int64_t free_bytes, total_bytes; /* 0: not told */
  int major, minor;                /* compute capability */
  int processors;                  /* streaming multiprocessors */
  int clock_mhz, memory_clock_mhz; /* highest; 0: not told */
  int ecc;                         /* 1: memory with error correction */
} ii_gpu;

/* Describes GPU `index` below ii_cuda_device_count(). Returns 0, or 1 with a sentence in
 * error[bytes]. */
int ii_gpu_describe(int index, ii_gpu *g, char *error, int bytes);

#ifdef __cplusplus
}
#endif
#endif
