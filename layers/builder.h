/* How layers make their parameters: under a dotted prefix, each with its initialisation. */
#ifndef II_BUILDER_H
#define II_BUILDER_H
#include "autograd/param.h"

typedef enum {
  II_INIT_CONSTANT,    /* value */
  II_INIT_UNIFORM,     /* U(-value, value) */
  II_INIT_TRUNC_NORMAL /* N(0, value^2), redrawn outside [-2, 2] (absolute, as timm does) */
} ii_init_kind;

typedef struct {
  ii_init_kind kind;
  double value;
} ii_init;

/* The initialisations of a model's parameters, in the order of its ii_params. */
typedef struct {
  ii_init *at;
  int64_t count, capacity;
} ii_init_list;

typedef struct {
  ii_params *params;
  ii_init_list *inits;
  char prefix[II_PARAM_NAME]; /* "" or "levels.0.blocks.1." */
} ii_builder;

/* A builder whose names continue with the printf-style part and a dot. */
ii_builder ii_builder_sub(const ii_builder *b, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* Adds parameter <prefix><name> (up to 4 dimensions; a size of 0 ends the shape). */
ii_tensor *ii_build(const ii_builder *b, const char *name, ii_init init, int64_t d0, int64_t d1,
                    int64_t d2, int64_t d3);

/* Adds parameter <prefix><name>: rows of a joint parameter (ii_params_join). */
ii_tensor *ii_build_rows(const ii_builder *b, const char *name, ii_init init, ii_tensor *whole,
                         int64_t first, int64_t rows);

/* Adds a one-dimensional buffer, or a scalar one when n is 0. */
ii_tensor *ii_build_buffer(const ii_builder *b, const char *name, int64_t n, double value);

/* Gives every parameter and buffer its initial value. Each is drawn from the stream (seed, hash of
 * its name), so the result does not depend on the order of construction. */
void ii_init_apply(ii_params *p, const ii_init_list *inits, uint64_t seed);

#endif
