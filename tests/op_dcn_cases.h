/* Shared by the DCN cases of test_ops.c and by test_ops_dcn.c. */
#ifndef II_TEST_OP_DCN_CASES_H
#define II_TEST_OP_DCN_CASES_H
#include "op_cases.h"

/* Sampling position of a tap along an axis (0: x, 1: y) relative to wo*stride - pad, by the formula
 * of kernels/kernels.h. */
double op_dcn_position(const ii_dcn_geometry *g, int axis, int tap, double delta);

/* For op_case.fix. */
void op_dcn_fix_offsets(const op_case *k, double *const *in, ii_rng *r);

#endif
