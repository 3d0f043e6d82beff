/* cuDNN has a plan for every dense convolution of every recipe in configs/, on every architecture
 * we ship code for: checked by the real library without a GPU, through descriptions of devices, and
 * by the code that makes the plans of the CUDA engine.
 *
 * The convolutions come from the product: each recipe's model runs in plan mode (shapes alone) at
 * its image size and batch, and the tape says what was convolved. 1x1 convolutions of stride 1 are
 * matrix products in the engine and never meet cuDNN. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "autograd/tape.h"
#include "kernels/cuda/conv_plan.h"
#include "train/setup.h"

/* ---- The recipes' convolutions ----------------------------------------------------------------
 */

enum { MAX_SHAPES = 512 };
static ii_conv2d_args shapes[MAX_SHAPES];
static char shape_recipe[MAX_SHAPES][64]; /* the first that has it */
static int shape_count, recipes, pointwise;

static bool same_shape(const ii_conv2d_args *a, const ii_conv2d_args *b) {
  const ii_conv_problem p = ii_conv_problem_of(a, II_CONV_FWD, 16);
  const ii_conv_problem q = ii_conv_problem_of(b, II_CONV_FWD, 16);
  return ii_conv_problem_equal(&p, &q);
}

static void add_shape(const ii_conv2d_args *a, const char *recipe) {
  if (a->kh == 1 && a->kw == 1 && a->stride == 1 && a->pad == 0) {
    pointwise++;
    return;
  }
  for (int i = 0; i < shape_count; i++)
    if (same_shape(&shapes[i], a)) return;
  assert_true(shape_count < MAX_SHAPES);
  shapes[shape_count] = *a;
  snprintf(shape_recipe[shape_count++], sizeof shape_recipe[0], "%s", recipe);
}

/* Runs the model of a recipe forward in plan mode and collects its convolutions. */
static void collect(const char *recipe) {
  ii_error err = {0};
  ii_config cfg;
  if (ii_config_load(&cfg, recipe, &err)) fail_msg("%s: %s", recipe, err.text);
  if (cfg.model.num_classes == 0) cfg.model.num_classes = 1000; /* the data would say */
  if (ii_config_check(&cfg, &err)) fail_msg("%s: %s", recipe, err.text);
  ii_ctx *c = ii_ctx_open(&(ii_ctx_options){.device = II_CPU, .threads = 1, .plan = true}, &err);
  if (!c) fail_msg("%s", err.text);
  const ii_model_config m = ii_setup_model(&cfg);
  ii_model *model = ii_model_create(c, &m, &err);
  if (!model) fail_msg("%s: %s", recipe, err.text);
  const int64_t n = cfg.data.batch_size, size = cfg.data.img_size;
  ii_tensor *meta = NULL;
  c->training = c->recording = true;
  if (cfg.model.meta_dims.count) meta = ii_tensor_new(c, II_F32, 2, (int64_t[]){n, II_META_VALUES});
  ii_tensor *x = ii_tensor_new(c, II_F32, 4, (int64_t[]){n, size, size, 3});
  ii_model_forward(model, x, meta, NULL);
  int found = 0;
  for (const ii_node *node = c->tape; node; node = node->prev)
    if (node->op == II_OP_conv2d) add_shape(node->args, recipe), found++;
  if (!ii_ok(c)) fail_msg("%s: %s", recipe, c->err.text);
  /* two in the stem, one between two stages */
  if (found < 1 + (int)cfg.model.depths.count)
    fail_msg("%s: only %d convolutions on the tape", recipe, found);
  recipes++;
  ii_tape_reset(c);
  ii_model_destroy(model);
  ii_ctx_close(c);
}

static int collect_all(void **state) {
  DIR *dir = opendir(II_SOURCE_CONFIGS);
  assert_non_null(dir);
  for (struct dirent *e; (e = readdir(dir));) {
    const char *dot = strrchr(e->d_name, '.');
    /* base_*.cfg hold what recipes share */
    if (dot && strcmp(dot, ".cfg") == 0 && strncmp(e->d_name, "base_", 5) != 0) collect(e->d_name);
  }
  closedir(dir);
  printf("%d recipes: %d different convolutions, and %d that are matrix products\n", recipes,
         shape_count, pointwise);
  return 0;
}

/* ---- Devices ----------------------------------------------------------------------------------
 */

typedef struct {
  const char *name;
  int version, processors, shared_bytes, core_khz, memory_khz;
  long long cache_bytes, memory_bytes;
} gpu;
/* A100 SXM 40 GB, H100 SXM 80 GB, B200: what cudaGetDeviceProperties says of them. */
static const gpu gpus[] = {
    {"sm_80", 800, 108, 166912, 1410000, 1215000, 41943040, 42298834944},
    {"sm_90", 900, 132, 232448, 1980000, 2619000, 52428800, 85028831232},
    {"sm_100", 1000, 148, 232448, 1965000, 3996000, 132644864, 191503138816}};

static cudnnBackendDescriptor_t describe(const gpu *g) {
  char json[1024];
  snprintf(json, sizeof json,
           "{\"deviceName\":\"%s\",\"cudaDeviceId\":0,\"deviceVer\":%d,\"driverVer\":13000,"
           "\"isTccDriver\":0,\"l2CacheSize\":%lld,\"maxBlockSize\":[1024,1024,64],"
           "\"maxCtasPerSM\":32,\"maxGridSize\":[2147483647,65535,65535],"
           "\"maxRegistersPerSM\":65536,\"maxSharedMemoryPerBlock\":49152,"
           "\"maxSharedMemoryPerBlockOptin\":%d,\"maxThreadsPerBlock\":1024,"
           "\"maxThreadsPerSM\":2048,\"memClockRateKHz\":%d,\"multiProcessorCount\":%d,"
           "\"pciDeviceId\":0,\"regsPerBlock\":65536,\"reservedSharedMemoryPerBlock\":1024,"
           "\"smClockRateKHz\":%d,\"supportCoopLaunch\":1,\"totalGlobalMem\":%lld,"
           "\"warpSize\":32}",
           g->name, g->version, g->cache_bytes, g->shared_bytes, g->memory_khz, g->processors,
           g->core_khz, g->memory_bytes);
  cudnnBackendDescriptor_t d;
  char text[512] = "";
  cudnnStatus_t s = cudnnBackendCreateDescriptor(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &d);
  if (!s)
    s = cudnnBackendSetAttribute(d, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
                                 (int64_t)strlen(json) + 1, json);
  if (!s) s = cudnnBackendFinalize(d);
  cudnnGetLastErrorString(text, sizeof text);
  if (s) fail_msg("%s cannot be described to cuDNN: %s %s", g->name, cudnnGetErrorString(s), text);
  return d;
}

/* ---- Tests ------------------------------------------------------------------------------------
 */

static const char *const direction_name[] = {"forward", "gradient of x", "gradient of w"};

/* Makes the plan and drops it again; returns its workspace, or -1 when there is none. */
static int64_t workspace_of(const ii_conv_problem *p, cudnnBackendDescriptor_t device) {
  char error[512];
  ii_conv_plan plan;
  if (ii_conv_plan_make(p, NULL, device, &plan, error, sizeof error)) fail_msg("%s", error);
  const int64_t workspace = plan.plan ? plan.workspace : -1;
  ii_conv_plan_free(&plan);
  return workspace;
}

/* All directions and types of one convolution; returns the largest workspace. */
static int64_t check_shape(int i, const gpu *g, cudnnBackendDescriptor_t device, int *plans) {
  static const ii_dtype types[] = {II_F32, II_F16, II_BF16};
  int64_t largest = 0;
  ii_conv2d_args a = shapes[i];
  for (int t = 0; t < 3; t++)
    for (int way = 0; way < 4; way++) { /* the fourth: gradient of x, added */
      a.x_dtype = types[t];
      a.acc_gx = way == 3;
      const ii_conv_direction direction = way == 3 ? II_CONV_BWD_DATA : (ii_conv_direction)way;
      const ii_conv_problem p = ii_conv_problem_of(&a, direction, 16);
      const int64_t bytes = workspace_of(&p, device);
      if (bytes < 0 || bytes > II_CONV_WORKSPACE_LIMIT)
        fail_msg("%s, %s: cuDNN has no plan for %dx%d, stride %d, %lldx%lldx%lldx%lld to %lld "
                 "channels, %s, %s",
                 g->name, shape_recipe[i], p.kh, p.kw, p.stride_h, (long long)p.N, (long long)p.H,
                 (long long)p.W, (long long)p.C, (long long)p.O, ii_dtype_name(p.dtype),
                 direction_name[direction]);
      largest = bytes > largest ? bytes : largest;
      (*plans)++;
    }
  return largest;
}

static void test_every_convolution_has_plans(void **state) {
  for (size_t g = 0; g < sizeof gpus / sizeof *gpus; g++) {
    cudnnBackendDescriptor_t device = describe(&gpus[g]);
    int64_t largest = 0;
    int plans = 0;
    for (int i = 0; i < shape_count; i++) {
      const int64_t bytes = check_shape(i, &gpus[g], device, &plans);
      largest = bytes > largest ? bytes : largest;
    }
    printf("%s: %d plans, workspace up to %.1f MiB (limit %.0f)\n", gpus[g].name, plans,
           (double)largest / 0x1p20, (double)II_CONV_WORKSPACE_LIMIT / 0x1p20);
    cudnnBackendDestroyDescriptor(device);
  }
}

/* Few channels: the stem's convolution is computed with pixels in groups, in both 16-bit types, by
 * plans that need no copy of the images. On the images as they are cuDNN copies them to 8 channels
 * for the filter gradient, which is why. */
static void test_stems_are_grouped(void **state) {
  for (size_t g = 0; g < sizeof gpus / sizeof *gpus; g++) {
    cudnnBackendDescriptor_t device = describe(&gpus[g]);
    int64_t largest = 0, copies = 0;
    int stems = 0;
    for (int i = 0; i < shape_count; i++)
      for (int t = 0; t < 2; t++)
        for (int way = 0; way < 3; way += 2) {
          ii_conv2d_args a = shapes[i];
          ii_conv_grouping group;
          a.x_dtype = t ? II_BF16 : II_F16;
          assert_int_equal(ii_conv_group(&a, &group), a.C == 3);
          if (a.C != 3) continue;
          ii_conv_problem p = ii_conv_problem_grouped(&a, (ii_conv_direction)way, 16, &group);
          const int64_t bytes = workspace_of(&p, device);
          if (bytes < 0)
            fail_msg("%s, %s, %s: cuDNN has no plan for groups of %d pixels", gpus[g].name,
                     shape_recipe[i], direction_name[way], group.pixels);
          largest = bytes > largest ? bytes : largest;
          p = ii_conv_problem_of(&a, (ii_conv_direction)way, 16);
          const int64_t whole = workspace_of(&p, device);
          copies = whole > copies ? whole : copies;
          stems++;
        }
    printf("%s: %d plans for stems, workspace up to %.1f MiB, on images as they are %.1f\n",
           gpus[g].name, stems, (double)largest / 0x1p20, (double)copies / 0x1p20);
    assert_true(stems > 0 && largest < copies / 4);
    cudnnBackendDestroyDescriptor(device);
  }
}

/* The check above can fail: cuDNN refuses a wrong output shape, and has nothing for an fp32
 * gradient of bf16 weights, which is why the engine takes a bf16 one and widens it. */
static void test_refusals(void **state) {
  cudnnBackendDescriptor_t device = describe(&gpus[1]);
  char error[512] = "";
  ii_conv_plan plan;
  ii_conv2d_args a = shapes[0];
  a.x_dtype = II_BF16;
  ii_conv_problem p = ii_conv_problem_of(&a, II_CONV_BWD_FILTER, 16);
  p.w_dtype = II_F32;
  assert_int_equal(workspace_of(&p, device), -1);
  p = ii_conv_problem_of(&a, II_CONV_FWD, 16);
  p.Ho++;
  assert_int_equal(ii_conv_plan_make(&p, NULL, device, &plan, error, sizeof error), 1);
  assert_non_null(strstr(error, "BAD_PARAM"));
  assert_null(plan.plan);
  assert_int_equal(plan.count, 0);
  cudnnBackendDestroyDescriptor(device);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_convolution_has_plans),
                                     cmocka_unit_test(test_stems_are_grouped),
                                     cmocka_unit_test(test_refusals)};
  return cmocka_run_group_tests(tests, collect_all, NULL);
}
