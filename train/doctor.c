#include "train/doctor.h"
#include <ctype.h>
#include <hdf5.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <jpeglib.h>
#include "kernels/about.h"
#include "kernels/device.h"
#include "kernels/selftest.h"

#define TEXT(x)   #x
#define EXPAND(x) TEXT(x)

/* ---- What there is ----------------------------------------------------------------------------*/

static void line(FILE *to, const char *what, const char *built, const char *found) {
  const char *differs = strcmp(built, found) && *found ? "   (differs)" : "";
  fprintf(to, "  %-14s %-12s %s%s\n", what, built, *found ? found : "not told", differs);
}

static void libraries(FILE *to) {
  fprintf(to, "libraries        built with   running\n");
  unsigned major = 0, minor = 0, patch = 0;
  char found[32] = "";
  if (H5get_libversion(&major, &minor, &patch) >= 0)
    snprintf(found, sizeof found, "%u.%u.%u", major, minor, patch);
  line(to, "HDF5", EXPAND(H5_VERS_MAJOR) "." EXPAND(H5_VERS_MINOR) "." EXPAND(H5_VERS_RELEASE),
       found);
#ifdef LIBJPEG_TURBO_VERSION
  line(to, "libjpeg-turbo", EXPAND(LIBJPEG_TURBO_VERSION), ""); /* has no call that says */
#else
  line(to, "libjpeg", EXPAND(JPEG_LIB_VERSION), "");
#endif
  ii_library l[II_LIBRARIES_MAX];
  const int n = ii_engine_libraries(l);
  for (int i = 0; i < n; i++) line(to, l[i].name, l[i].built, l[i].found);
}

/* The version of NVIDIA's kernel module; "" when it is not loaded. */
static void driver_module(char *text, size_t bytes) {
  FILE *f = fopen("/proc/driver/nvidia/version", "r");
  char words[256] = "";
  text[0] = 0;
  if (!f) return;
  if (fgets(words, sizeof words, f)) {
    char *rest = NULL;
    for (char *w = strtok_r(words, " \t\n", &rest); w && !*text; w = strtok_r(NULL, " \t\n", &rest))
      if (isdigit((unsigned char)*w) && strchr(w, '.')) snprintf(text, bytes, "%s", w);
  }
  fclose(f);
}

static void gpus(FILE *to) {
  char text[256];
  ii_cuda_architectures(text, sizeof text);
  fprintf(to, "GPU code         %s\n", *text ? text : "none");
  const int driver = ii_cuda_driver_version();
  driver_module(text, sizeof text);
  if (driver > 0)
    fprintf(to, "driver           %s%sserves CUDA %d.%d\n", text, *text ? ", " : "", driver / 1000,
            driver % 1000 / 10);
  else
    fprintf(to, "driver           %s\n", *text ? text : "none");
  const int n = ii_cuda_device_count();
  if (n == 0) fprintf(to, "GPUs             none that this program can use\n");
  for (int i = 0; i < n; i++) {
    ii_gpu g;
    if (ii_gpu_describe(i, &g, text, sizeof text)) {
      fprintf(to, "GPU %-12d %s\n", i, text);
      continue;
    }
    fprintf(to, "GPU %-12d %s, %.1f GiB (%.1f free), compute capability %d.%d, %d processors", i,
            g.name, (double)g.total_bytes / 0x1p30, (double)g.free_bytes / 0x1p30, g.major, g.minor,
            g.processors);
    if (g.clock_mhz) fprintf(to, ", %d MHz", g.clock_mhz);
    if (g.memory_clock_mhz) fprintf(to, ", memory %d MHz", g.memory_clock_mhz);
    fprintf(to, "%s\n", g.ecc ? ", ECC" : "");
  }
}

/* ---- The self-test ----------------------------------------------------------------------------*/

enum { TYPES = 4 };
static const ii_dtype types[TYPES] = {II_F32, II_BF16, II_F16, II_F64};

/* Length of a kernel's name without _fwd or _bwd: kernels of one family follow each other. */
static size_t family_length(const char *name) {
  const size_t n = strlen(name);
  return n > 4 && (!strcmp(name + n - 4, "_fwd") || !strcmp(name + n - 4, "_bwd")) ? n - 4 : n;
}

static bool same_family(const char *a, const char *b) {
  const size_t n = family_length(a);
  return n == family_length(b) && !strncmp(a, b, n);
}

/* What the worst kernel of a family did, for each type. */
typedef struct {
  ii_selftest_result worst[TYPES];
  int failures;
} family;

static void test_kernel(ii_kctx *k, ii_kctx *reference, int kernel, int n_types, family *f,
                        FILE *to) {
  for (int t = 0; t < n_types; t++) {
    ii_selftest_result r, *w = &f->worst[t];
    const int failed = ii_selftest_run(k, reference, kernel, types[t], &r);
    if (r.bound == 0) continue;
    if (failed)
      fprintf(to, "  FAILED %s %s: %s\n", ii_selftest_kernel_name(kernel), ii_dtype_name(types[t]),
              k->error);
    else if (!(r.error <= r.bound))
      fprintf(to, "  FAILED %s %s: error %.1e, the bound is %.0e\n",
              ii_selftest_kernel_name(kernel), ii_dtype_name(types[t]), r.error, r.bound);
    if (!(r.error <= r.bound)) f->failures++;
    if (w->bound == 0 || r.error * w->bound > w->error * r.bound) *w = r;
  }
}

static void print_family(const char *name, const family *f, int n_types, FILE *to) {
  fprintf(to, "  %-14.*s", (int)family_length(name), name);
  for (int t = 0; t < n_types; t++) {
    if (f->worst[t].bound > 0)
      fprintf(to, " %11.1e", f->worst[t].error);
    else
      fprintf(to, " %11s", "-");
  }
  fprintf(to, "   %s\n", f->failures ? "FAILED" : "ok");
}

/* Every kernel on one engine; returns the number of failures. */
static int test_engine(ii_kctx *k, ii_kctx *reference, int n_types, const char *engine, FILE *to) {
  int failures = 0, kernels = 0;
  fprintf(to, "\nself-test of %s: worst error relative to the result, against double precision\n",
          engine);
  fprintf(to, "  %-14s", "kernels");
  for (int t = 0; t < n_types; t++) fprintf(to, " %11s", ii_dtype_name(types[t]));
  fprintf(to, "\n");
  for (int i = 0; i < II_K_COUNT;) {
    family f = {0};
    const char *name = ii_selftest_kernel_name(i);
    for (; i < II_K_COUNT && same_family(name, ii_selftest_kernel_name(i)); i++, kernels++)
      test_kernel(k, reference, i, n_types, &f, to);
    print_family(name, &f, n_types, to);
    failures += f.failures;
  }
  if (failures)
    fprintf(to, "%s: %d of the checks of %d kernels FAILED\n", engine, failures, kernels);
  else
    fprintf(to, "%s: all %d kernels passed\n", engine, kernels);
  return failures;
}

static bool test_gpu(int index, ii_kctx *reference, FILE *to) {
  ii_kctx k;
  char name[64];
  const ii_engine_options o = {.device = II_CUDA, .index = index};
  snprintf(name, sizeof name, "%s, GPU %d", ii_cuda_engine_name(), index);
  if (ii_engine_open(&k, &o)) {
    fprintf(to, "\n%s: not tested: %s\n", ii_cuda_device_count() ? name : "cuda", k.error);
    return false;
  }
  const int failures = test_engine(&k, reference, TYPES, name, to);
  ii_engine_close(&k);
  return failures == 0;
}

/* All GPUs. Only their absence is no failure: opening says what is missing. */
static bool test_gpus(ii_kctx *reference, FILE *to) {
  const int n = ii_cuda_device_count();
  bool passed = true;
  for (int i = 0; i < n; i++) passed = test_gpu(i, reference, to) && passed;
  if (n == 0) test_gpu(0, reference, to);
  return passed;
}

ii_status ii_doctor_run(ii_doctor_engines which, int gpu, FILE *to, bool *passed, ii_error *err) {
  const char *cuda = ii_cuda_engine_name();
  *passed = true;
  fprintf(to, "internimage.c %s\nengines          cpu%s%s\n", II_VERSION, *cuda ? ", " : "", cuda);
  libraries(to);
  gpus(to);
  ii_kctx reference, cpu;
  const ii_engine_options o = {.device = II_CPU};
  if (ii_engine_open(&reference, &o))
    return ii_error_set(err, II_ERR_DEVICE, "%s", reference.error);
  if (ii_engine_open(&cpu, &o)) {
    ii_engine_close(&reference);
    return ii_error_set(err, II_ERR_DEVICE, "%s", cpu.error);
  }
  if (which != II_DOCTOR_CUDA) *passed = test_engine(&cpu, &reference, 2, "cpu", to) == 0;
  if (which == II_DOCTOR_CUDA) *passed = test_gpu(gpu, &reference, to);
  if (which == II_DOCTOR_ALL) *passed = test_gpus(&reference, to) && *passed;
  ii_engine_close(&cpu);
  ii_engine_close(&reference);
  return II_OK;
}
