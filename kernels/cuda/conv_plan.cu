/* Plans for dense convolutions: descriptors of the cuDNN backend API. Host code alone.
 *
 * A plan is found thus: tensors, convolution and operation are described, put into a graph of one
 * operation, and the heuristics list engine configurations, best first. Each is asked for its
 * notes (what it does to the numbers) and finalized until one fits. */
#include "kernels/cuda/conv_plan.h"
#include <stdio.h>
#include <string.h>

namespace {

typedef cudnnBackendDescriptor_t descriptor;

/* A plan in the making. The first call that fails ends it: later ones do nothing. */
struct builder {
  const ii_conv_problem *p;
  cudnnHandle_t handle;
  descriptor device;
  ii_conv_plan *plan;
  cudnnStatus_t status;
  const char *what; /* the call that failed */
};

bool failed(builder *b, cudnnStatus_t s, const char *what) {
  if (b->status == CUDNN_STATUS_SUCCESS && s != CUDNN_STATUS_SUCCESS) {
    b->status = s;
    b->what = what;
  }
  return b->status != CUDNN_STATUS_SUCCESS;
}

/* A new descriptor, owned by the plan. */
descriptor create(builder *b, cudnnBackendDescriptorType_t type) {
  descriptor d = NULL;
  if (b->status != CUDNN_STATUS_SUCCESS) return NULL;
  if (b->plan->count == II_CONV_DESCRIPTORS) {
    failed(b, CUDNN_STATUS_BAD_PARAM_OUT_OF_BOUND, "too many descriptors");
    return NULL;
  }
  if (failed(b, cudnnBackendCreateDescriptor(type, &d), "cudnnBackendCreateDescriptor"))
    return NULL;
  b->plan->descriptors[b->plan->count++] = d;
  return d;
}

/* Destroys what was created last, back to a count. */
void drop_to(ii_conv_plan *p, int count) {
  while (p->count > count) cudnnBackendDestroyDescriptor(p->descriptors[--p->count]);
}

void set(builder *b, descriptor d, cudnnBackendAttributeName_t name,
         cudnnBackendAttributeType_t type, int64_t count, const void *values) {
  if (b->status == CUDNN_STATUS_SUCCESS)
    failed(b, cudnnBackendSetAttribute(d, name, type, count, values), "cudnnBackendSetAttribute");
}
void set_descriptor(builder *b, descriptor d, cudnnBackendAttributeName_t name, descriptor value) {
  set(b, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}
void finalize(builder *b, descriptor d, const char *what) {
  if (b->status == CUDNN_STATUS_SUCCESS) failed(b, cudnnBackendFinalize(d), what);
}

cudnnDataType_t data_type(ii_dtype t) {
  return t == II_F16 ? CUDNN_DATA_HALF : t == II_BF16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_FLOAT;
}

/* A tensor of dimensions a,c,h,w (cuDNN's order) that lies in memory as a,h,w,c. */
descriptor tensor(builder *b, int64_t id, ii_dtype dtype, int64_t a, int64_t c, int64_t h,
                  int64_t w) {
  const int64_t dims[4] = {a, c, h, w}, strides[4] = {h * w * c, 1, w * c, c};
  const int64_t alignment = b->p->alignment;
  const cudnnDataType_t type = data_type(dtype);
  descriptor d = create(b, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  set(b, d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id);
  set(b, d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
  set(b, d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
  set(b, d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dims);
  set(b, d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides);
  finalize(b, d, "finalizing a tensor");
  return d;
}

descriptor convolution(builder *b) {
  const ii_conv_problem *p = b->p;
  const int64_t spatial = 2, ones[2] = {1, 1};
  const int64_t stride[2] = {p->stride_h, p->stride_w};
  const int64_t before[2] = {p->pad_h, p->pad_left}, behind[2] = {p->pad_h, p->pad_right};
  const cudnnDataType_t compute = CUDNN_DATA_FLOAT;
  const cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
  descriptor d = create(b, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
  set(b, d, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &spatial);
  set(b, d, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &compute);
  set(b, d, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
  set(b, d, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, before);
  set(b, d, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, behind);
  set(b, d, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, ones);
  set(b, d, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, stride);
  finalize(b, d, "finalizing a convolution");
  return d;
}

/* The names of one direction's operation and of its attributes. */
struct operation_names {
  cudnnBackendDescriptorType_t type;
  cudnnBackendAttributeName_t conv, x, w, y, alpha, beta;
};
const operation_names names[3] = {
    {CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
     CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
     CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
     CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA},
    {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA},
    {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
     CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA}};

descriptor graph(builder *b) {
  const ii_conv_problem *p = b->p;
  const operation_names *n = &names[p->direction];
  const float alpha = 1.0f, beta = p->accumulate ? 1.0f : 0.0f;
  descriptor x = tensor(b, II_CONV_X, p->dtype, p->N, p->C, p->H, p->W);
  descriptor w = tensor(b, II_CONV_W, p->w_dtype, p->O, p->C, p->kh, p->kw);
  descriptor y = tensor(b, II_CONV_Y, p->dtype, p->N, p->O, p->Ho, p->Wo);
  descriptor conv = convolution(b);
  descriptor op = create(b, n->type);
  set_descriptor(b, op, n->conv, conv);
  set_descriptor(b, op, n->x, x);
  set_descriptor(b, op, n->w, w);
  set_descriptor(b, op, n->y, y);
  set(b, op, n->alpha, CUDNN_TYPE_FLOAT, 1, &alpha);
  set(b, op, n->beta, CUDNN_TYPE_FLOAT, 1, &beta);
  finalize(b, op, "finalizing a convolution operation");
  descriptor g = create(b, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  set_descriptor(b, g, CUDNN_ATTR_OPERATIONGRAPH_OPS, op);
  if (b->handle) set(b, g, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &b->handle);
  finalize(b, g, "finalizing an operation graph");
  return g;
}

/* Whether the engine of a configuration computes what the contract asks for. Tensor cores have no
 * fp32: with fp32 operands they stand for TF32. A library newer than its header might have more
 * notes than fit: those of such an engine are not all known. */
bool acceptable(const builder *b, descriptor config) {
  static const cudnnBackendNumericalNote_t refused[] = {
      CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS,
      CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION,
      CUDNN_NUMERICAL_NOTE_FFT,
      CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC,
      CUDNN_NUMERICAL_NOTE_WINOGRAD,
      CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_4x4,
      CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_6x6,
      CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_13x13};
  cudnnBackendNumericalNote_t note[CUDNN_NUMERICAL_NOTE_TYPE_COUNT];
  descriptor engine = NULL;
  int64_t n = 0;
  if (cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINE_DESCRIPTOR, &engine)) return false;
  cudnnStatus_t s = cudnnBackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_ENGINE,
                                             CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &n, &engine);
  if (!s)
    s = cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE,
                                 CUDNN_TYPE_NUMERICAL_NOTE, CUDNN_NUMERICAL_NOTE_TYPE_COUNT, &n,
                                 note);
  bool good = !s && n <= CUDNN_NUMERICAL_NOTE_TYPE_COUNT;
  for (int64_t i = 0; good && i < n; i++)
    for (const cudnnBackendNumericalNote_t bad : refused) good = good && note[i] != bad;
  for (int64_t i = 0; good && b->p->dtype == II_F32 && i < n; i++)
    good = note[i] != CUDNN_NUMERICAL_NOTE_TENSOR_CORE;
  cudnnBackendDestroyDescriptor(engine);
  return good;
}

/* Tries one configuration; false (nothing left behind) when it does not serve. */
bool try_config(builder *b, descriptor config) {
  ii_conv_plan *plan = b->plan;
  const int before = plan->count;
  int64_t n = 0;
  if (!acceptable(b, config)) return false;
  descriptor d = create(b, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
  set_descriptor(b, d, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
  if (b->handle)
    set(b, d, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &b->handle);
  else
    set_descriptor(b, d, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, b->device);
  if (b->status != CUDNN_STATUS_SUCCESS) return false;
  if (cudnnBackendFinalize(d) == CUDNN_STATUS_SUCCESS &&
      cudnnBackendGetAttribute(d, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1, &n,
                               &plan->workspace) == CUDNN_STATUS_SUCCESS &&
      plan->workspace <= II_CONV_WORKSPACE_LIMIT) {
    plan->plan = d;
    return true;
  }
  drop_to(plan, before);
  return false;
}

/* Configurations that are fetched and tried at most, per mode. */
enum { MAX_CONFIGS = 32 };

/* Tries what the heuristics of one mode propose for the graph. */
bool try_mode(builder *b, descriptor graph, cudnnBackendHeurMode_t mode) {
  const int before = b->plan->count;
  descriptor configs[MAX_CONFIGS];
  int64_t made = 0, found = 0;
  descriptor h = create(b, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  set_descriptor(b, h, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
  set(b, h, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
  if (!b->handle) set_descriptor(b, h, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, b->device);
  if (b->status != CUDNN_STATUS_SUCCESS) return false;
  while (made < MAX_CONFIGS && cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR,
                                                            &configs[made]) == CUDNN_STATUS_SUCCESS)
    made++;
  /* an error here says that nothing is supported, which is no error of ours */
  if (cudnnBackendFinalize(h) != CUDNN_STATUS_SUCCESS ||
      cudnnBackendGetAttribute(h, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                               made, &found, configs) != CUDNN_STATUS_SUCCESS)
    found = 0;
  if (found > made) found = made;
  int64_t chosen = 0;
  while (chosen < found && !try_config(b, configs[chosen])) chosen++;
  for (int64_t i = 0; i < made; i++)
    if (i != chosen || chosen == found) cudnnBackendDestroyDescriptor(configs[i]);
  if (chosen == found) {
    drop_to(b->plan, before);
    return false;
  }
  b->plan->descriptors[b->plan->count++] = configs[chosen];
  return true;
}

} // namespace

ii_conv_problem ii_conv_problem_of(const ii_conv2d_args *a, ii_conv_direction direction,
                                   int alignment) {
  ii_conv_problem p;
  p.direction = direction;
  p.dtype = p.w_dtype = a->x_dtype;
  p.accumulate = direction == II_CONV_BWD_DATA && a->acc_gx;
  p.kh = a->kh, p.kw = a->kw, p.stride_h = p.stride_w = a->stride;
  p.pad_h = p.pad_left = p.pad_right = a->pad;
  p.alignment = alignment;
  p.N = a->N, p.H = a->H, p.W = a->W, p.C = a->C, p.O = a->O, p.Ho = a->Ho, p.Wo = a->Wo;
  return p;
}

/* Most channels of a group. With the 2 * 3 taps of a 3x3 window an output costs 480 operations for
 * its 2 bytes then, what an H100's or H200's tensor cores do in the time of those bytes. */
enum { MOST_GROUPED = 40, ALIGNED = 8 };

bool ii_conv_group(const ii_conv2d_args *a, ii_conv_grouping *g) {
  if ((a->x_dtype != II_F16 && a->x_dtype != II_BF16) || a->C <= 0 || a->C % ALIGNED == 0)
    return false;
  if (a->Wo * a->stride != a->W) return false;
  int64_t pixels = a->stride;
  while (pixels * a->C % ALIGNED != 0) pixels += a->stride;
  if (pixels * a->C > MOST_GROUPED || a->W % pixels != 0) return false;
  const int64_t last = pixels - a->stride - a->pad + a->kw - 1; /* column of the last window */
  g->pixels = (int)pixels;
  g->outputs = (int)(pixels / a->stride);
  g->lead = (int)((a->pad + pixels - 1) / pixels);
  g->kw = g->lead + 1 + (int)(last > 0 ? last / pixels : 0);
  return true;
}

ii_conv_problem ii_conv_problem_grouped(const ii_conv2d_args *a, ii_conv_direction direction,
                                        int alignment, const ii_conv_grouping *g) {
  ii_conv_problem p = ii_conv_problem_of(a, direction, alignment);
  p.kw = g->kw;
  p.stride_w = 1;
  p.pad_left = g->lead, p.pad_right = g->kw - 1 - g->lead;
  p.W /= g->pixels, p.C *= g->pixels;
  p.Wo /= g->outputs, p.O *= g->outputs;
  return p;
}

bool ii_conv_problem_equal(const ii_conv_problem *a, const ii_conv_problem *b) {
  return a->direction == b->direction && a->dtype == b->dtype && a->w_dtype == b->w_dtype &&
         a->accumulate == b->accumulate && a->kh == b->kh && a->kw == b->kw &&
         a->stride_h == b->stride_h && a->stride_w == b->stride_w && a->pad_h == b->pad_h &&
         a->pad_left == b->pad_left && a->pad_right == b->pad_right &&
         a->alignment == b->alignment && a->N == b->N && a->H == b->H && a->W == b->W &&
         a->C == b->C && a->O == b->O && a->Ho == b->Ho && a->Wo == b->Wo;
}

int ii_conv_plan_make(const ii_conv_problem *p, cudnnHandle_t handle, descriptor device,
                      ii_conv_plan *out, char *error, size_t size) {
  memset(out, 0, sizeof *out);
  builder b = {p, handle, device, out, CUDNN_STATUS_SUCCESS, NULL};
  descriptor g = graph(&b);
  const cudnnBackendHeurMode_t modes[] = {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK};
  for (const cudnnBackendHeurMode_t mode : modes)
    if (b.status == CUDNN_STATUS_SUCCESS && try_mode(&b, g, mode)) return 0;
  ii_conv_plan_free(out);
  if (b.status == CUDNN_STATUS_SUCCESS) return 0;
  snprintf(error, size, "cuDNN, convolution %dx%d: %s failed: %s", p->kh, p->kw, b.what,
           cudnnGetErrorString(b.status));
  return 1;
}

void ii_conv_plan_free(ii_conv_plan *p) {
  drop_to(p, 0);
  p->plan = NULL;
}

cudnnStatus_t ii_conv_plan_run(const ii_conv_plan *p, cudnnHandle_t handle, const void *x,
                               const void *w, const void *y, void *workspace) {
  const int64_t ids[3] = {II_CONV_X, II_CONV_W, II_CONV_Y};
  const void *pointers[3] = {x, w, y};
  descriptor pack = NULL;
  cudnnStatus_t s = cudnnBackendCreateDescriptor(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack);
  if (s) return s;
  s = cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, 3, ids);
  if (!s)
    s = cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR,
                                 3, pointers);
  if (!s)
    s = cudnnBackendSetAttribute(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1,
                                 &workspace);
  if (!s) s = cudnnBackendFinalize(pack);
  if (!s) s = cudnnBackendExecute(handle, p->plan, pack);
  cudnnBackendDestroyDescriptor(pack);
  return s;
}
