/* A numeric self-test of the kernels of an engine on small fixed problems, for `train --doctor`:
 * a kernel runs on the engine and, with the same inputs, in double precision on the CPU engine.
 *
 * Every kernel has two problems or more. Variant 0: sizes and addresses that allow wide accesses,
 * results overwrite. Variant 1: ragged sizes, pointers aligned to one element only, gradients are
 * added to what is there, and the kernel's other form (DCNv4 instead of v3, evaluation instead of
 * training, GELU after the norm). Variants 2 and 3, as 0, of kernels with further forms (the norm
 * that ends a residual branch, and the one that follows it). Inputs are multiples of 1/4096 in [-2,
 * 2], rounded to their type. */
#ifndef II_SELFTEST_H
#define II_SELFTEST_H
#include "kernels/buffers.h"

enum { II_SELFTEST_VARIANTS = 4 };

/* The largest argument struct. */
typedef union {
#define II_KERNEL(name, args) args name;
#include "kernels/kernels.def"
#undef II_KERNEL
} ii_any_args;

/* Fills *a with sizes and types of a problem: activations of type t, weights and statistics of the
 * type that goes with it; every pointer that the kernel uses is not NULL, and no address. Returns
 * 1; 0 when the kernel has no such variant, or no activations and t is a 16-bit type, so that there
 * is nothing new to test, and for the kernels of the update, which have a test of their own; -1
 * when no problem is known for the kernel. */
int ii_selftest_problem(int kernel, int variant, ii_dtype t, ii_any_args *a);

typedef struct {
  double error; /* greatest difference from double precision, relative to the largest value of the
                   result, over all results; infinite when a kernel failed or left a NaN */
  double bound; /* error may not be greater; of the result for which error/bound is greatest */
} ii_selftest_result;

/* The name of a kernel: "linear_fwd". */
const char *ii_selftest_kernel_name(int kernel);

/* Runs the variants of one kernel for type t on `tested` and compares them with `reference`, an
 * open CPU engine. *r gets the worse of them; r->bound = 0 when there was nothing to test. Returns
 * 0, or nonzero with a sentence in tested->error (a kernel failed, no memory). */
int ii_selftest_run(ii_kctx *tested, ii_kctx *reference, int kernel, ii_dtype t,
                    ii_selftest_result *r);

#endif
