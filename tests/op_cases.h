/* What is tested of every op: a list of cases, in op_cases_<family>.c. A case is a description of
 * inputs (drawn at random, always representable in bf16 so that all types see the same numbers) and
 * a function that calls the op; test_ops.c does the rest. */
#ifndef II_TEST_OP_CASES_H
#define II_TEST_OP_CASES_H
#include "autograd/ops.h"
#include "autograd/rng.h"
#include "autograd/tape.h"

#define OP_INPUTS 6

typedef enum {
  IN_NONE = 0, /* not given: NULL */
  IN_ACT,      /* activation: of the compute type, or (mixed) of the real type; differentiated */
  IN_REAL,     /* activation that is always of the real type; differentiated */
  IN_PARAM,    /* parameter with gradient and, under bf16, its bf16 copy */
  IN_CONST,    /* of the real type, not differentiated */
  IN_STATE,    /* a buffer that the op updates, fresh in every run */
  IN_LABELS    /* int32 in [0, classes) */
} op_kind;

typedef enum {
  DRAW_NORMAL = 0, /* N(0,1) * scale */
  DRAW_AWAY,       /* at least 0.1 away from zero: kinks at zero do not meet the step */
  DRAW_SPREAD,     /* all different by at least 1/64 as long as n < 512: maxima stay maxima */
  DRAW_POSITIVE,   /* in [0.5, 1.5) * scale */
  DRAW_SIMPLEX,    /* each row a probability distribution */
  DRAW_OFFSET,     /* sampling offsets; op_case.fix moves them away from pixel centres */
  DRAW_LABELS
} op_draw;

typedef struct {
  op_kind kind;
  op_draw draw;
  int ndim;
  int64_t shape[II_MAX_DIMS];
  double scale; /* 0 means 1 */
} op_input;

/* The last two on CUDA alone. */
typedef enum {
  MODE_F64 = 0,
  MODE_F32,
  MODE_BF16,
  MODE_MIXED, /* bf16, inputs of the real type */
  MODE_F16,
  MODE_MIXED_F16,
  MODE_COUNT
} op_mode;

enum {
  CASE_WHOLE_BATCH = 1,   /* images depend on each other (batch norm, mean losses) */
  CASE_TRAINING = 2,      /* ctx->training */
  CASE_READS_ROUNDED = 4, /* backward reads a rounded output: two more roundings in bf16 */
  CASE_LARGE = 8,         /* large enough for several threads: fewer numeric derivatives */
  CASE_COMPOSITE = 16     /* several ops: op_reference does not know it */
};

typedef struct op_case {
  ii_op op;
  const char *name;
  op_input in[OP_INPUTS];
  ii_tensor *(*call)(ii_ctx *c, ii_tensor *const *in, const struct op_case *k);
  /* corrects drawn inputs; NULL: nothing to correct */
  void (*fix)(const struct op_case *k, double *const *in, ii_rng *r);
  int64_t i[4]; /* what call needs: stride, padding, ... */
  double f[2];
  ii_dcn_geometry dcn;
  unsigned flags;
  double terms; /* longest sum behind one element of result or gradient; 0: below 64 */
} op_case;

typedef struct {
  const op_case *at;
  int count;
} op_case_list;

op_case_list op_cases_matrix(void); /* linear, bmm, conv2d, dwconv2d */
op_case_list op_cases_norm(void);   /* layer and batch norm, softmax, losses */
op_case_list op_cases_simple(void); /* element-wise, shapes, poolings, checkpoint */
op_case_list op_cases_dcn(void);    /* dcnv3, dcnv4 */

int64_t op_input_numel(const op_input *in);

/* Draws all inputs of a case; in[i] is malloc'ed (NULL for IN_NONE). */
void op_draw_inputs(const op_case *k, ii_rng *r, double **in);

/* The engine under test: cpu, or what the variable II_TEST_DEVICE says. */
ii_device op_device(void);
/* The exit status of a test program that cannot run for want of that engine, after saying so; 0
 * when it can. */
int op_device_missing(void);
/* How many of the modes it has. */
op_mode op_modes(void);

/* The context of a mode on that engine (opened on first use); threads 1 or 2. */
ii_ctx *op_ctx(op_mode mode, int threads);
void op_ctx_close_all(void);

/* Results of one run, in double; release with op_result_free. */
typedef struct {
  int64_t n;
  double *out;
  double *grad[OP_INPUTS]; /* NULL: input not differentiated, or forward only */
  double *state[OP_INPUTS];
} op_result;
void op_result_free(op_result *r);

/* Runs the op on the given inputs; with proj (as many as the result has), also the gradients of
 * sum(proj * result). Fails the test on an error, on a leak in the pool. */
op_result op_run(op_mode mode, int threads, const op_case *k, double *const *in,
                 const double *proj);

/* The result by the formulas in plain loops, and the buffers that the op updates (state[i], as in
 * op_result). Returns false when it has no formula for the case. */
bool op_reference(const op_case *k, double *const *in, double *out, double *const *state);

/* A number rounded to bf16. */
double op_round(double v);

#endif
