/* Shared by the files of the self-test (kernels/selftest.h). */
#ifndef II_SELFTEST_PRIV_H
#define II_SELFTEST_PRIV_H
#include "kernels/selftest.h"

/* Element i of an array of type t, and its new value. */
double ii_selftest_get(ii_dtype t, const void *p, int64_t i);
void ii_selftest_set(ii_dtype t, void *p, int64_t i, double v);

/* Input i of the field number `field`: a hash, so that it depends on nothing else. Multiples of
 * 1/4096 in [-2, 2], positive ones in [0.5, 1.5]: sampling positions are exact in fp32, and
 * products need more bits than TF32 keeps. II_I32: a class in [0, 7). */
double ii_selftest_draw(int64_t field, int64_t i, ii_dtype t, bool positive);

/* The bound for a result of type t: 16-bit results are rounded once, of sums in fp32; the rest is
 * what those sums and the GPU's approximations of exp and erf lose. */
double ii_selftest_bound(ii_dtype t);

/* Calls the kernel of k's engine. */
int ii_selftest_call(ii_kctx *k, int kernel, const ii_any_args *a);

/* Keeps in *r the result that comes nearest to its bound, or exceeds it most. */
void ii_selftest_worse(ii_selftest_result *r, double error, double bound);

/* The kernels of the update, which work on tables in device memory: tested as one update with its
 * loss, of which each kernel's own results are compared. As ii_selftest_run for one variant. */
bool ii_selftest_is_update(int kernel);
int ii_selftest_update(ii_kctx *tested, ii_kctx *reference, int kernel, int variant, ii_dtype t,
                       ii_selftest_result *r);

#endif
