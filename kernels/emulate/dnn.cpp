/* Stand-in of the cuDNN calls the CUDA engine makes, behind NVIDIA's own headers: the part of the
 * backend API that describes one convolution, finds engines for it and runs a plan.
 *
 * A descriptor is its type and a map from attributes to values. Attributes are checked when they
 * are set (type, count, finalized descriptors alone), shapes when a descriptor is finalized, memory
 * when a plan runs: an answer the library would give as a status is a status here, and what would
 * give wrong numbers or a broken GPU (operands outside device memory, less aligned than promised,
 * no workspace) is reported.
 *
 * The heuristics propose, before engines that serve, some that a careful caller must pass over: one
 * whose sums change their order from call to call, one that shortens fp32 operands as TF32 does,
 * one with a huge workspace, one that no plan can be made of, one with more notes than the header
 * has. They compute what they announce.
 * There is no engine for an fp32 gradient of 16-bit weights, as in cuDNN 9.19.
 * II_EMU_DNN_PLANS=0 makes a library that has no engine for anything, II_EMU_DNN_REFUSES=run one
 * that will not run the plans it made. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>
#include "kernels/emulate/dnn_conv.h"
#include "kernels/emulate/emulate_internal.h"

struct cudnnContext {
  int device;
  cudaStream_t stream;
};

namespace {

using ii_emu::dnn_convolution;
using ii_emu::dnn_tensor;

struct node;
typedef std::shared_ptr<node> node_ref;

struct value {
  cudnnBackendAttributeType_t type;
  int64_t count;
  std::string bytes;           /* of plain values */
  std::vector<node_ref> nodes; /* of descriptors */
};

struct node {
  cudnnBackendDescriptorType_t type;
  bool finalized;
  std::map<int, value> values;
  int engine; /* ENGINE and ENGINECFG: an index of the table of engines */
};

/* What a cudnnBackendDescriptor_t points to. Copies share the node. */
struct descriptor {
  node_ref content;
};

std::mutex lock;
std::set<descriptor *> live; /* so that a descriptor destroyed too early is no crash */

thread_local std::string last_error;

__attribute__((format(printf, 2, 3))) cudnnStatus_t refuse(cudnnStatus_t status, const char *fmt,
                                                           ...) {
  char text[256];
  va_list args;
  va_start(args, fmt);
  vsnprintf(text, sizeof text, fmt, args);
  va_end(args);
  last_error = text;
  return status;
}

node *find(cudnnBackendDescriptor_t d) {
  std::lock_guard<std::mutex> hold(lock);
  descriptor *p = static_cast<descriptor *>(d);
  return live.count(p) ? p->content.get() : NULL;
}
node_ref find_ref(cudnnBackendDescriptor_t d) {
  std::lock_guard<std::mutex> hold(lock);
  descriptor *p = static_cast<descriptor *>(d);
  return live.count(p) ? p->content : node_ref();
}

/* ---- Attributes -------------------------------------------------------------------------------*/

struct attribute {
  cudnnBackendDescriptorType_t owner;
  cudnnBackendAttributeName_t name;
  cudnnBackendAttributeType_t type;
  int64_t count;
  bool required;
};

#define OPERATION(owner, prefix, x, w, y)                                                          \
  {owner, prefix##_CONV_DESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, true},                             \
      {owner, prefix##_##x, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, true},                               \
      {owner, prefix##_##w, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, true},                               \
      {owner, prefix##_##y, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, true},                               \
      {owner, prefix##_ALPHA, CUDNN_TYPE_FLOAT, 1, true}, {                                        \
    owner, prefix##_BETA, CUDNN_TYPE_FLOAT, 1, true                                                \
  }

const attribute ATTRIBUTES[] = {
    {CUDNN_BACKEND_TENSOR_DESCRIPTOR, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, true},
    {CUDNN_BACKEND_TENSOR_DESCRIPTOR, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, true},
    {CUDNN_BACKEND_TENSOR_DESCRIPTOR, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, true},
    {CUDNN_BACKEND_TENSOR_DESCRIPTOR, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, true},
    {CUDNN_BACKEND_TENSOR_DESCRIPTOR, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, true},
    {CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1,
     true},
    {CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE,
     1, true},
    {CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR, CUDNN_ATTR_CONVOLUTION_CONV_MODE,
     CUDNN_TYPE_CONVOLUTION_MODE, 1, true},
    {CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2,
     true},
    {CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64,
     2, true},
    {CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2,
     true},
    {CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64,
     2, true},
    OPERATION(CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
              CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD, X, W, Y),
    OPERATION(CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA, DX, W, DY),
    OPERATION(CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
              CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER, X, DW, DY),
    {CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, CUDNN_ATTR_OPERATIONGRAPH_OPS,
     CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, true},
    {CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE,
     1, true},
    {CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH,
     CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, true},
    {CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1,
     true},
    {CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG,
     CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, true},
    {CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE,
     1, true},
    {CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, 3,
     true},
    {CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS,
     CUDNN_TYPE_VOID_PTR, 3, true},
    {CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR,
     1, false}};

size_t type_bytes(cudnnBackendAttributeType_t type) {
  switch (type) {
  case CUDNN_TYPE_INT64:
  case CUDNN_TYPE_HANDLE:
  case CUDNN_TYPE_VOID_PTR:
    return 8;
  default:
    return 4; /* enumerations, float */
  }
}

const attribute *find_attribute(cudnnBackendDescriptorType_t owner, int name) {
  for (const attribute &a : ATTRIBUTES)
    if (a.owner == owner && a.name == name) return &a;
  return NULL;
}

/* Plain values of an attribute that is known to be there. */
template <typename T> void get(const node &n, int name, T *out) {
  const value &v = n.values.at(name);
  memcpy(out, v.bytes.data(), v.bytes.size());
}
template <typename T> T get(const node &n, int name) {
  T v;
  memcpy(&v, n.values.at(name).bytes.data(), sizeof v);
  return v;
}
const node &get_node(const node &n, int name) {
  return *n.values.at(name).nodes[0];
}

/* ---- Finalizing -------------------------------------------------------------------------------*/

cudnnStatus_t check_tensor(const node &n) {
  int64_t dims[4], strides[4];
  get(n, CUDNN_ATTR_TENSOR_DIMENSIONS, dims);
  get(n, CUDNN_ATTR_TENSOR_STRIDES, strides);
  const int64_t alignment = get<int64_t>(n, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT);
  for (int i = 0; i < 4; i++)
    if (dims[i] < 1 || strides[i] < 1)
      return refuse(CUDNN_STATUS_BAD_PARAM, "tensor: dimension %d is %lld, stride %lld", i,
                    (long long)dims[i], (long long)strides[i]);
  const int64_t size = ii_emu::dnn_type_size(get<cudnnDataType_t>(n, CUDNN_ATTR_TENSOR_DATA_TYPE));
  if (!size) return refuse(CUDNN_STATUS_NOT_SUPPORTED_DATA_TYPE, "tensor: no such type here");
  if (alignment < size || (alignment & (alignment - 1)))
    return refuse(CUDNN_STATUS_BAD_PARAM, "tensor: alignment of %lld bytes", (long long)alignment);
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t check_convolution(const node &n) {
  if (get<int64_t>(n, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS) != 2 ||
      get<cudnnConvolutionMode_t>(n, CUDNN_ATTR_CONVOLUTION_CONV_MODE) != CUDNN_CROSS_CORRELATION ||
      get<cudnnDataType_t>(n, CUDNN_ATTR_CONVOLUTION_COMP_TYPE) != CUDNN_DATA_FLOAT)
    return refuse(CUDNN_STATUS_NOT_SUPPORTED,
                  "convolution: only 2-D correlations with fp32 sums are emulated");
  int64_t stride[2], dilation[2], pad[2], post[2];
  get(n, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, stride);
  get(n, CUDNN_ATTR_CONVOLUTION_DILATIONS, dilation);
  get(n, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, pad);
  get(n, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, post);
  for (int i = 0; i < 2; i++)
    if (stride[i] < 1 || dilation[i] < 1 || pad[i] < 0 || post[i] < 0)
      return refuse(CUDNN_STATUS_BAD_PARAM, "convolution: stride, dilation or padding");
  return CUDNN_STATUS_SUCCESS;
}

dnn_tensor tensor_of(const node &n) {
  dnn_tensor t;
  t.type = get<cudnnDataType_t>(n, CUDNN_ATTR_TENSOR_DATA_TYPE);
  t.id = get<int64_t>(n, CUDNN_ATTR_TENSOR_UNIQUE_ID);
  t.alignment = get<int64_t>(n, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT);
  get(n, CUDNN_ATTR_TENSOR_DIMENSIONS, t.dims);
  get(n, CUDNN_ATTR_TENSOR_STRIDES, t.strides);
  return t;
}

/* The operation behind a finalized or complete operation descriptor. */
dnn_convolution convolution_of(const node &n) {
  static const int names[3][6] = {
      {CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
       CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
       CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
       CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA},
      {CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA},
      {CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA}};
  dnn_convolution c;
  c.direction = n.type == CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR
                    ? ii_emu::DNN_FORWARD
                : n.type == CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR
                    ? ii_emu::DNN_BACKWARD_DATA
                    : ii_emu::DNN_BACKWARD_FILTER;
  const int(&name)[6] = names[c.direction];
  const node &conv = get_node(n, name[0]);
  c.x = tensor_of(get_node(n, name[1]));
  c.w = tensor_of(get_node(n, name[2]));
  c.y = tensor_of(get_node(n, name[3]));
  c.alpha = get<float>(n, name[4]);
  c.beta = get<float>(n, name[5]);
  get(conv, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, c.stride);
  get(conv, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, c.pad);
  get(conv, CUDNN_ATTR_CONVOLUTION_DILATIONS, c.dilation);
  c.rounds_inputs = c.backwards = false;
  return c;
}

cudnnStatus_t check_operation(const node &n) {
  const dnn_convolution c = convolution_of(n);
  int64_t post[2];
  for (const auto &v : n.values)
    for (const node_ref &child : v.second.nodes)
      if (child->type == CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR)
        get(*child, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, post);
  if (c.x.dims[0] != c.y.dims[0] || c.x.dims[1] != c.w.dims[1] || c.y.dims[1] != c.w.dims[0])
    return refuse(CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH, "convolution: images or channels");
  for (int i = 0; i < 2; i++) {
    const int64_t window = c.dilation[i] * (c.w.dims[2 + i] - 1) + 1;
    const int64_t room = c.x.dims[2 + i] + c.pad[i] + post[i] - window;
    if (room < 0 || c.y.dims[2 + i] != room / c.stride[i] + 1)
      return refuse(CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH, "convolution: output size %lld",
                    (long long)c.y.dims[2 + i]);
  }
  if (c.x.id == c.w.id || c.x.id == c.y.id || c.w.id == c.y.id)
    return refuse(CUDNN_STATUS_BAD_PARAM_DUPLICATED_ENTRIES, "convolution: equal ids of tensors");
  return CUDNN_STATUS_SUCCESS;
}

/* ---- Engines ----------------------------------------------------------------------------------*/

struct engine {
  std::vector<cudnnBackendNumericalNote_t> notes;
  int64_t workspace; /* bytes */
  bool fp32_only, has_plan;
};
const engine ENGINES[] = {
    {{CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC}, 0, false, true},
    {{CUDNN_NUMERICAL_NOTE_TENSOR_CORE, CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS}, 0, true, true},
    {{}, (int64_t)1 << 40, false, true},
    {{}, 0, false, false},
    /* notes that this header does not know */
    {std::vector<cudnnBackendNumericalNote_t>(
         100, static_cast<cudnnBackendNumericalNote_t>(CUDNN_NUMERICAL_NOTE_TYPE_COUNT)),
     0, false, true},
    {{}, 4096, false, true}};
enum { ENGINE_COUNT = 6, UNORDERED = 0, SHORTENING = 1 };

/* Which engines know the graph's operation. */
std::vector<int> engines_for(const node &graph) {
  const dnn_convolution c = convolution_of(get_node(graph, CUDNN_ATTR_OPERATIONGRAPH_OPS));
  std::vector<int> found;
  const char *plans = getenv("II_EMU_DNN_PLANS");
  if (plans && strcmp(plans, "0") == 0) return found;
  if (c.x.type != c.y.type || c.x.type != c.w.type) return found;
  for (const dnn_tensor *t : {&c.x, &c.w, &c.y})
    /* NHWC alone; the matrix units' engines move 16 bytes at a time */
    if (t->strides[1] != 1 || (t->type != CUDNN_DATA_FLOAT && t->alignment < 16)) return found;
  for (int i = 0; i < ENGINE_COUNT; i++)
    if (!ENGINES[i].fp32_only || c.x.type == CUDNN_DATA_FLOAT) found.push_back(i);
  return found;
}

const node &operation_of_plan(const node &plan) {
  const node &config = get_node(plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG);
  return get_node(get_node(config, CUDNN_ATTR_ENGINE_OPERATION_GRAPH),
                  CUDNN_ATTR_OPERATIONGRAPH_OPS);
}
const engine &engine_of_plan(const node &plan) {
  return ENGINES[get_node(plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG).engine];
}

cudnnStatus_t check(const node &n) {
  for (const attribute &a : ATTRIBUTES)
    if (a.owner == n.type && a.required && !n.values.count(a.name))
      return refuse(CUDNN_STATUS_BAD_PARAM, "attribute %d of descriptor type %d is not set",
                    (int)a.name, (int)n.type);
  switch (n.type) {
  case CUDNN_BACKEND_TENSOR_DESCRIPTOR:
    return check_tensor(n);
  case CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR:
    return check_convolution(n);
  case CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR:
  case CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR:
  case CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR:
    return check_operation(n);
  case CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR:
    if (engines_for(get_node(n, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH)).empty())
      return refuse(CUDNN_STATUS_NOT_SUPPORTED, "no engine for this operation");
    return CUDNN_STATUS_SUCCESS;
  case CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR:
    if (!engine_of_plan(n).has_plan)
      return refuse(CUDNN_STATUS_NOT_SUPPORTED, "this engine has no plan for the operation");
    return CUDNN_STATUS_SUCCESS;
  default:
    return CUDNN_STATUS_SUCCESS;
  }
}

/* ---- Reading ----------------------------------------------------------------------------------*/

cudnnStatus_t give(int64_t have, int64_t room, int64_t *count, const void *from, size_t bytes,
                   void *to) {
  if (count) *count = have;
  if (to && have > 0) memcpy(to, from, static_cast<size_t>(have < room ? have : room) * bytes);
  return CUDNN_STATUS_SUCCESS;
}

/* Makes the caller's descriptor a finalized one of the type it was created for. */
cudnnStatus_t fill(cudnnBackendDescriptor_t d, cudnnBackendDescriptorType_t type, int which,
                   const node_ref &graph) {
  node *n = find(d);
  if (!n || n->type != type)
    return refuse(CUDNN_STATUS_BAD_PARAM_DESCRIPTOR_TYPE, "reading into a wrong descriptor");
  n->engine = which;
  n->finalized = true;
  if (graph) n->values[CUDNN_ATTR_ENGINE_OPERATION_GRAPH].nodes = {graph};
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t read_results(const node &heuristics, int64_t room, int64_t *count,
                           cudnnBackendDescriptor_t *out) {
  const node_ref graph = heuristics.values.at(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH).nodes[0];
  const std::vector<int> found = engines_for(*graph);
  const int64_t n = (int64_t)found.size() < room ? (int64_t)found.size() : room;
  for (int64_t i = 0; i < n; i++) {
    const cudnnStatus_t s =
        fill(out[i], CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, found[static_cast<size_t>(i)], graph);
    if (s) return s;
  }
  if (count) *count = n;
  return CUDNN_STATUS_SUCCESS;
}

/* ---- Running ----------------------------------------------------------------------------------*/

void check_operand(const dnn_tensor &t, const char *name, void *p) {
  const size_t bytes = static_cast<size_t>(ii_emu::dnn_tensor_bytes(t));
  if (!ii_emu::in_device(p, bytes))
    ii_emu::report(true, "tensor outside device memory",
                   "cuDNN convolution: %s, %zu bytes at %p, does not lie in one allocation", name,
                   bytes, p);
  if (reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(t.alignment) != 0)
    ii_emu::report(true, "misaligned tensor",
                   "cuDNN convolution: %s at %p, but the plan was made for multiples of %lld bytes",
                   name, p, (long long)t.alignment);
}

/* The result, the operands and the workspace are apart. */
void check_apart(const dnn_convolution &c, void *x, void *w, void *y, void *workspace,
                 size_t workspace_bytes) {
  struct range {
    const char *name, *begin;
    size_t bytes;
  };
  const range ranges[4] = {
      {"x", static_cast<char *>(x), static_cast<size_t>(ii_emu::dnn_tensor_bytes(c.x))},
      {"w", static_cast<char *>(w), static_cast<size_t>(ii_emu::dnn_tensor_bytes(c.w))},
      {"y", static_cast<char *>(y), static_cast<size_t>(ii_emu::dnn_tensor_bytes(c.y))},
      {"the workspace", static_cast<char *>(workspace), workspace_bytes}};
  const int result = c.direction == ii_emu::DNN_FORWARD         ? 2
                     : c.direction == ii_emu::DNN_BACKWARD_DATA ? 0
                                                                : 1;
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < i; j++)
      if ((i == result || j == result || i == 3) && ranges[i].bytes && ranges[j].bytes &&
          ranges[i].begin < ranges[j].begin + ranges[j].bytes &&
          ranges[j].begin < ranges[i].begin + ranges[i].bytes)
        ii_emu::report(true, "overlapping tensors", "cuDNN convolution: %s overlaps %s",
                       ranges[j].name, ranges[i].name);
}

/* Pointers of the pack by the tensors' ids; NULL when one is missing. */
void *operand(const node &pack, int64_t id) {
  int64_t ids[3];
  void *pointers[3];
  get(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, ids);
  get(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, pointers);
  for (int i = 0; i < 3; i++)
    if (ids[i] == id) return pointers[i];
  return NULL;
}

cudnnStatus_t check_workspace(const engine &e, void *workspace) {
  const size_t bytes = static_cast<size_t>(e.workspace);
  if (bytes == 0) return CUDNN_STATUS_SUCCESS;
  if (!workspace) return refuse(CUDNN_STATUS_BAD_PARAM_NULL_POINTER, "the plan needs a workspace");
  if (!ii_emu::in_device(workspace, bytes))
    ii_emu::report(true, "workspace outside device memory",
                   "cuDNN convolution: %zu bytes at %p do not lie in one allocation", bytes,
                   workspace);
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t run(cudnnHandle_t handle, const node &plan, const node &pack) {
  static int calls; /* only for the engine without order; races do not matter there */
  const engine &e = engine_of_plan(plan);
  dnn_convolution c = convolution_of(operation_of_plan(plan));
  void *x = operand(pack, c.x.id), *w = operand(pack, c.w.id), *y = operand(pack, c.y.id);
  if (!x || !w || !y)
    return refuse(CUDNN_STATUS_BAD_PARAM, "variant pack: a tensor of the graph is missing");
  check_operand(c.x, "x", x);
  check_operand(c.w, "w", w);
  check_operand(c.y, "y", y);
  void *workspace = NULL;
  if (pack.values.count(CUDNN_ATTR_VARIANT_PACK_WORKSPACE))
    workspace = get<void *>(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE);
  const cudnnStatus_t s = check_workspace(e, workspace);
  if (s) return s;
  const char *refuses = getenv("II_EMU_DNN_REFUSES");
  if (refuses && strcmp(refuses, "run") == 0)
    return refuse(CUDNN_STATUS_NOT_SUPPORTED_SHAPE, "the plan does not run");
  const size_t bytes = static_cast<size_t>(e.workspace);
  check_apart(c, x, w, y, workspace, bytes);
  c.rounds_inputs = &e == &ENGINES[SHORTENING];
  c.backwards = &e == &ENGINES[UNORDERED] && calls++ % 2;
  ii_emu::enqueue(handle->stream, [c, x, w, y, workspace, bytes]() {
    if (bytes) memset(workspace, 0xff, bytes);
    ii_emu::dnn_convolve(c, x, w, y);
  });
  return CUDNN_STATUS_SUCCESS;
}

} // namespace

/* ---- The library's functions ------------------------------------------------------------------*/

size_t cudnnGetVersion(void) {
  return CUDNN_VERSION;
}

const char *cudnnGetErrorString(cudnnStatus_t status) {
  switch (CUDNN_STATUS_CATEGORY(status)) {
  case 0:
    return "CUDNN_STATUS_SUCCESS";
  case 1000:
    return "CUDNN_STATUS_NOT_INITIALIZED";
  case 2000:
    return "CUDNN_STATUS_BAD_PARAM";
  case 3000:
    return "CUDNN_STATUS_NOT_SUPPORTED";
  case 4000:
    return "CUDNN_STATUS_INTERNAL_ERROR";
  default:
    return "CUDNN_STATUS_EXECUTION_FAILED";
  }
}

void cudnnGetLastErrorString(char *message, size_t max_size) {
  if (max_size) snprintf(message, max_size, "%s", last_error.c_str());
  last_error.clear();
}

cudnnStatus_t cudnnCreate(cudnnHandle_t *handle) {
  if (!handle) return CUDNN_STATUS_BAD_PARAM_NULL_POINTER;
  if (ii_emu::get_settings().devices == 0) return CUDNN_STATUS_NOT_INITIALIZED;
  *handle = new cudnnContext{ii_emu::current_device(), NULL};
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnDestroy(cudnnHandle_t handle) {
  delete handle;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
  if (!handle) return CUDNN_STATUS_BAD_PARAM_NULL_POINTER;
  if (ii_emu::stream_device(stream) != handle->device)
    return refuse(CUDNN_STATUS_BAD_PARAM_STREAM_MISMATCH, "stream of another device");
  handle->stream = stream;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type,
                                           cudnnBackendDescriptor_t *out) {
  if (!out) return CUDNN_STATUS_BAD_PARAM_NULL_POINTER;
  descriptor *d = new descriptor{std::make_shared<node>()};
  d->content->type = type;
  d->content->finalized = false;
  d->content->engine = -1;
  std::lock_guard<std::mutex> hold(lock);
  live.insert(d);
  *out = d;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t d) {
  std::lock_guard<std::mutex> hold(lock);
  if (!live.erase(static_cast<descriptor *>(d))) {
    ii_emu::report(true, "descriptor destroyed twice", "cudnnBackendDestroyDescriptor(%p)", d);
    return CUDNN_STATUS_BAD_PARAM;
  }
  delete static_cast<descriptor *>(d);
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t count,
                                       const void *values) {
  node *n = find(d);
  if (!n || !values) return refuse(CUDNN_STATUS_BAD_PARAM_NULL_POINTER, "no descriptor, no value");
  if (n->finalized) return refuse(CUDNN_STATUS_BAD_PARAM, "the descriptor is finalized");
  const attribute *a = find_attribute(n->type, name);
  if (!a)
    return refuse(CUDNN_STATUS_NOT_SUPPORTED, "attribute %d of descriptor type %d is not emulated",
                  (int)name, (int)n->type);
  if (a->type != type)
    return refuse(CUDNN_STATUS_BAD_PARAM_ATTRIBUTE_TYPE, "type of %d", (int)name);
  if (a->count != count)
    return refuse(CUDNN_STATUS_BAD_PARAM_SIZE_INSUFFICIENT,
                  "attribute %d takes %lld values, not %lld", (int)name, (long long)a->count,
                  (long long)count);
  value v = {type, count, "", {}};
  if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR) {
    for (int64_t i = 0; i < count; i++) {
      const node_ref child = find_ref(static_cast<const cudnnBackendDescriptor_t *>(values)[i]);
      if (!child || !child->finalized)
        return refuse(CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED, "attribute %d", (int)name);
      v.nodes.push_back(child);
    }
  } else {
    v.bytes.assign(static_cast<const char *>(values),
                   static_cast<size_t>(count) * type_bytes(type));
  }
  n->values[name] = v;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t d) {
  node *n = find(d);
  if (!n) return refuse(CUDNN_STATUS_BAD_PARAM_NULL_POINTER, "no descriptor");
  const cudnnStatus_t s = check(*n);
  if (s == CUDNN_STATUS_SUCCESS) n->finalized = true;
  return s;
}

cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t const d,
                                       cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t room,
                                       int64_t *count, void *out) {
  const node *n = find(d);
  if (!n || !n->finalized) return refuse(CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED, "reading");
  if (n->type == CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR && name == CUDNN_ATTR_ENGINEHEUR_RESULTS &&
      type == CUDNN_TYPE_BACKEND_DESCRIPTOR)
    return read_results(*n, room, count, static_cast<cudnnBackendDescriptor_t *>(out));
  if (n->type == CUDNN_BACKEND_ENGINECFG_DESCRIPTOR && name == CUDNN_ATTR_ENGINECFG_ENGINE &&
      type == CUDNN_TYPE_BACKEND_DESCRIPTOR && room >= 1) {
    if (count) *count = 1;
    return fill(*static_cast<cudnnBackendDescriptor_t *>(out), CUDNN_BACKEND_ENGINE_DESCRIPTOR,
                n->engine, node_ref());
  }
  if (n->type == CUDNN_BACKEND_ENGINE_DESCRIPTOR && name == CUDNN_ATTR_ENGINE_NUMERICAL_NOTE &&
      type == CUDNN_TYPE_NUMERICAL_NOTE)
    return give((int64_t)ENGINES[n->engine].notes.size(), room, count,
                ENGINES[n->engine].notes.data(), sizeof(cudnnBackendNumericalNote_t), out);
  if (n->type == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR &&
      name == CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE && type == CUDNN_TYPE_INT64)
    return give(1, room, count, &engine_of_plan(*n).workspace, sizeof(int64_t), out);
  return refuse(CUDNN_STATUS_NOT_SUPPORTED, "reading attribute %d is not emulated", (int)name);
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan,
                                  cudnnBackendDescriptor_t pack) {
  const node *p = find(plan), *v = find(pack);
  if (!handle || !p || !v) return refuse(CUDNN_STATUS_BAD_PARAM_NULL_POINTER, "executing");
  if (p->type != CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR ||
      v->type != CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)
    return refuse(CUDNN_STATUS_BAD_PARAM_DESCRIPTOR_TYPE, "executing");
  if (!p->finalized || !v->finalized)
    return refuse(CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED, "executing");
  return run(handle, *p, *v);
}
