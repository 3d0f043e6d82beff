/* Parameters and buffers of a model: one ordered list with the official state-dict names. */
#ifndef II_PARAM_H
#define II_PARAM_H
#include "autograd/ctx.h"

#define II_PARAM_NAME 128

typedef struct {
  char name[II_PARAM_NAME]; /* e.g. levels.0.blocks.0.dcn.offset.weight */
  ii_tensor *value; /* type real, the official shape; value->grad and, under mixed precision,
                       value->low belong to it */
  bool buffer;      /* running statistics: saved and averaged, never differentiated or optimised */
} ii_param;

typedef struct {
  ii_ctx *ctx;
  ii_param *at;
  int64_t count, capacity;
  ii_joint *joints; /* owned */
} ii_params;

void ii_params_init(ii_params *p, ii_ctx *c);
/* Frees all parameters and ends the step (ii_tape_reset); before ii_ctx_close. */
void ii_params_destroy(ii_params *p);

/* Adds a parameter (zero-filled, needs_grad, with gradient memory; a bf16 copy when the context
 * computes in bf16 and ndim > 1) and returns its value tensor. Names are unique (asserted). */
ii_tensor *ii_params_add(ii_params *p, const char *name, int ndim, const int64_t *shape);
/* Adds a buffer: no gradient. */
ii_tensor *ii_params_add_buffer(ii_params *p, const char *name, int ndim, const int64_t *shape);

/* A joint parameter: a matrix [rows,in] or a vector [rows] whose rows will be those of several
 * parameters, so that one product computes what all of them do. It is no parameter itself: it has
 * no name, is not listed, counted or saved. Ops take it like a parameter; the gradient that they
 * give it is that of its parts, of those that are trainable. Rows that no part takes are zero for
 * ever: they pad the rows to a number that suits the engine. Owned by *p. */
ii_tensor *ii_params_join(ii_params *p, int ndim, const int64_t *shape);
/* Adds the parameter `name`: rows [first, first + rows) of a joint parameter, which share its
 * memory: value, gradient and 16-bit copy. In all else it is as one of ii_params_add. Parts do not
 * overlap, and are II_JOINT_PARTS at most. */
ii_tensor *ii_params_add_rows(ii_params *p, const char *name, ii_tensor *whole, int64_t first,
                              int64_t rows);

/* NULL when there is none of that name. */
ii_param *ii_params_find(const ii_params *p, const char *name);

/* Number of elements of all parameters, without buffers. */
int64_t ii_params_numel(const ii_params *p);

/* Marks all gradients as empty: the next backward overwrites them. */
void ii_params_zero_grad(ii_params *p);

/* Refreshes the bf16 copies after values were changed from outside the optimizer (initialisation,
 * loading). */
void ii_params_refresh_low(ii_params *p);

/* Switches gradients of one parameter on or off (frozen stages); off frees its gradient memory (of
 * a joint parameter when all of its parts are off). */
void ii_param_set_trainable(ii_params *p, ii_param *param, bool trainable);

#endif
