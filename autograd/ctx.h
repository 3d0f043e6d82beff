/* The context: one device, its memory, the tape, the random position, and the sticky error. All
 * state of a training process hangs on it; it is passed to every op and owned by one thread.
 *
 * Sticky error: the first op that fails records its sentence in ctx->err; every later op returns
 * tensors of the right shape and does nothing, so layer code needs no checks. The trainer looks at
 * ctx->err once per phase. */
#ifndef II_CTX_H
#define II_CTX_H
#include "autograd/error.h"
#include "autograd/pool.h"
#include "autograd/tensor.h"
#include "kernels/kernels.h"

struct ii_node;
struct ii_profile;

typedef struct ii_ctx {
  ii_kctx k;
  ii_error err;
  ii_pool pool;
  ii_dtype real; /* type of parameters, statistics, losses: II_F32, or II_F64 for reference runs */
  ii_dtype compute; /* type that matmul, convolution and DCN run in: real, or II_BF16 or (CUDA)
                       II_F16 under mixed precision; the residual stream, norms and losses stay in
                       `real` */
  bool plan;        /* allocate, do not compute */
  bool training;    /* drop path active, batch norm on batch statistics */
  bool recording;   /* ops record tape nodes */
  bool recomputing; /* inside the backward of a checkpoint */

  /* random position of drop path: (seed, step, number of the draw within the step) */
  uint64_t seed, step;
  uint64_t draw;
  const int64_t *step_at; /* where the step stands in the engine's memory, instead of `step`: for
                             steps that are recorded; NULL: nowhere */

  /* multiply-adds of the forward passes so far: matmul and convolution, and the DCN core counted
   * as the authors do, 5*Ho*Wo*K*C */
  int64_t macs, dcn_macs;

  struct ii_node *tape; /* newest node */
  struct ii_arena *arena;
  ii_block **owned; /* stack of the blocks that scopes own */
  int64_t n_owned, cap_owned;
  ii_tensor *tensors;         /* all tensors since the last reset that may hold a gradient */
  struct ii_profile *profile; /* NULL: off */
} ii_ctx;

typedef struct {
  ii_device device;
  int index;        /* CUDA: which GPU */
  int threads;      /* CPU: 0 means as many as this process may use */
  ii_dtype real;    /* II_F32 or II_F64 */
  ii_dtype compute; /* = real, or with II_F32 also II_BF16 or (CUDA) II_F16 */
  bool plan;        /* of any device, on any machine */
  uint64_t seed;
} ii_ctx_options;

/* Opens a context. On failure returns NULL and fills *err (no such engine, no memory). */
ii_ctx *ii_ctx_open(const ii_ctx_options *o, ii_error *err);
void ii_ctx_close(ii_ctx *c);

static inline bool ii_ok(const ii_ctx *c) {
  return c->err.status == II_OK;
}

/* Parses "cpu", "cuda" (the first GPU) or "cuda:1" (GPUs count from 0). Returns II_ERR_ARG for
 * anything else. */
ii_status ii_device_parse(const char *s, ii_device *out, int *index, ii_error *err);

/* ---- Scopes -------------------------------------------------------------------------------------
 * Every op result belongs to the innermost scope. Ending a scope drops the results that nobody
 * keeps: not those in `keep`, not those a tape node saved. Forgetting a scope costs memory, never
 * correctness. */
typedef int64_t ii_scope;
ii_scope ii_scope_begin(ii_ctx *c);
/* keep[n] stay alive and now belong to the enclosing scope. */
void ii_scope_end(ii_ctx *c, ii_scope s, ii_tensor *const *keep, int n);
/* The usual form: ends the scope and returns its one result. */
ii_tensor *ii_scope_return(ii_ctx *c, ii_scope s, ii_tensor *result);

/* ---- Profile --------------------------------------------------------------------------------- */
typedef struct ii_profile {
  double seconds[64];
  int64_t calls[64];
} ii_profile;
/* Name of kernel i of a profile (the order of kernels.def), NULL past the last one. */
const char *ii_profile_name(int i);

#endif
