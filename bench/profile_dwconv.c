/* Counts what the depthwise convolution asks of a GPU's memory, without a GPU: the emulator's
 * memory profile (docs/emulation.md) at the shapes of the models' stages.
 *
 *   profile_dwconv [--batch 1] [--dtype f32|f16|bf16]... [--k 3] [--check 1]
 *
 * One JSON object per line, shape, type and direction: bytes from and to DRAM beside the least (in
 * tensors of the image's size: forward 2, backward 3; and weights and their gradients), starting
 * and ending with an empty cache of II_EMU_L2_MB; loads and sectors per 8 channels of an output;
 * passes of shared memory per such 8; the launches. --check 1: exit status 1 when they are more
 * than 1.2 of it for a 3x3 window. With one image the parts of the weights' gradients weigh most.
 */
#include <stdbool.h>
#include "bench/measure_device.h"
#include "kernels/emulate/profile.h"
#include "train/process.h"

#define MOST_DRAM_RATIO 1.2

/* The four stages of T at 224 pixels and of L at 384: side and channels. */
static const int shapes[][2] = {{56, 64},  {28, 128}, {14, 256}, {7, 512},
                                {96, 160}, {48, 320}, {24, 640}, {12, 1280}};

static void fail(const char *why) {
  fprintf(stderr, "profile_dwconv: %s\n", why);
  exit(1);
}

static void *memory(ii_kctx *k, int64_t n, ii_dtype t) {
  void *p;
  const size_t bytes = (size_t)n * ii_dtype_size(t);
  measure_must(k, ii_device_alloc(k, bytes, &p));
  measure_must(k, ii_device_zero(k, p, bytes));
  return p;
}

/* Prints the launches since the last clear; returns DRAM bytes over the least. */
static double print_counts(const ii_dwconv2d_args *a, const char *direction, int tensors) {
  const double elements = (double)(a->N * a->H * a->W * a->C), vectors = elements / 8;
  const double weights = (double)(a->C * (a->k * a->k + 1)) * sizeof(float);
  const double least =
      tensors * elements * (double)ii_dtype_size(a->x_dtype) + (tensors - 1) * weights;
  double read = 0, written = 0, loads = 0, sectors = 0, passes = 0;
  for (int64_t i = 0; i < ii_emu_profile_count(); i++) {
    const ii_emu_launch_traffic l = ii_emu_profile_get(i);
    for (int b = 0; b < l.buffers; b++) {
      read += (double)l.buffer[b].dram_read;
      written += (double)l.buffer[b].dram_written;
      for (int w = 0; w < II_EMU_WIDTHS; w++)
        loads += (double)l.buffer[b].of[II_EMU_LOAD].accesses[w];
      sectors += (double)l.buffer[b].of[II_EMU_LOAD].sectors;
    }
    for (int kind = 0; kind < II_EMU_KINDS; kind++) passes += (double)l.shared[kind].wavefronts;
  }
  printf("{\"op\": \"dwconv2d\", \"shape\": \"%dx%dx%dx%d\", \"k\": %d, \"dtype\": \"%s\", "
         "\"direction\": \"%s\", \"l2_MB\": %.1f",
         (int)a->N, (int)a->H, (int)a->W, (int)a->C, a->k, ii_dtype_name(a->x_dtype), direction,
         (double)ii_emu_profile_cache_bytes() / 1048576);
  printf(", \"least_MB\": %.3f, \"read_MB\": %.3f, \"written_MB\": %.3f, \"dram_ratio\": %.3f",
         least * 1e-6, read * 1e-6, written * 1e-6, (read + written) / least);
  printf(", \"loads_per_8\": %.2f, \"sectors_per_8\": %.2f, \"shared_passes_per_256\": %.2f",
         loads / vectors, sectors / vectors, passes / (vectors / 32));
  printf(", \"kernels\": \"");
  for (int64_t i = 0; i < ii_emu_profile_count(); i++) {
    const ii_emu_launch_traffic l = ii_emu_profile_get(i);
    printf("%s%s: %ux%u blocks of %ux%ux%u", i ? "; " : "", l.name, l.grid[0], l.grid[1],
           l.block[0], l.block[1], l.block[2]);
  }
  printf("\"}\n");
  fflush(stdout);
  return (read + written) / least;
}

static double profile(ii_kctx *k, const ii_dwconv2d_args *a, bool forward) {
  measure_must(k, ii_device_sync(k));
  ii_emu_profile_empty_cache();
  ii_emu_profile_clear();
  measure_must(k, forward ? ii_cuda_dwconv2d_fwd(k, a) : ii_cuda_dwconv2d_bwd(k, a));
  measure_must(k, ii_device_sync(k));
  ii_emu_profile_empty_cache();
  return forward ? print_counts(a, "forward", 2) : print_counts(a, "backward", 3);
}

/* Returns the larger of the two ratios. */
static double run(ii_kctx *k, ii_dtype t, int window, int batch, const int *shape) {
  ii_dwconv2d_args a = {.real = II_F32, .x_dtype = t, .N = batch, .k = window};
  a.H = a.W = shape[0], a.C = shape[1];
  const int64_t n = a.N * a.H * a.W * a.C, weights = a.C * window * window;
  void *image[4], *vector[4];
  for (int i = 0; i < 4; i++) image[i] = memory(k, n, t), vector[i] = memory(k, weights, II_F32);
  a.x = image[0], a.y = image[1], a.gy = image[2], a.gx = image[3];
  a.w = vector[0], a.b = vector[1], a.gw = vector[2], a.gb = vector[3];
  const double fwd = profile(k, &a, true), bwd = profile(k, &a, false);
  for (int i = 0; i < 4; i++) {
    ii_device_free(k, image[i], (size_t)n * ii_dtype_size(t));
    ii_device_free(k, vector[i], (size_t)weights * sizeof(float));
  }
  return fwd > bwd ? fwd : bwd;
}

int main(int argc, char **argv) {
  static const ii_dtype types[] = {II_F32, II_F16, II_BF16};
  bool chosen[3] = {false, false, false}, check = false;
  int batch = 1, window = 3;
  double worst = 0;
  ii_process_prepare(argv);
  for (int i = 1; i < argc; i += 2) {
    if (i + 1 == argc) fail("an option lacks its value");
    bool known = true;
    if (!strcmp(argv[i], "--batch"))
      batch = atoi(argv[i + 1]);
    else if (!strcmp(argv[i], "--k"))
      window = atoi(argv[i + 1]);
    else if (!strcmp(argv[i], "--check"))
      check = atoi(argv[i + 1]) != 0;
    else
      known = false;
    for (int t = 0; t < 3 && !strcmp(argv[i], "--dtype"); t++)
      if (!strcmp(argv[i + 1], ii_dtype_name(types[t]))) chosen[t] = known = true;
    if (!known) fail("unknown option or value; see the head of profile_dwconv.c");
  }
  if (batch < 1 || window < 1 || window % 2 == 0) fail("--batch is at least 1, --k is odd");
  ii_kctx k;
  if (ii_engine_open(&k, &(ii_engine_options){.device = II_CUDA})) fail(k.error);
  ii_emu_profile_start();
  for (int t = 0; t < 3; t++)
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
      if (!chosen[t] && (chosen[0] || chosen[1] || chosen[2])) continue;
      const double ratio = run(&k, types[t], window, batch, shapes[i]);
      worst = ratio > worst ? ratio : worst;
    }
  ii_engine_close(&k);
  if (check && worst > MOST_DRAM_RATIO) fail("more bytes of DRAM than 1.2 of the least");
  return 0;
}
