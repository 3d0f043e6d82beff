/* Guarded kernel calls. The linker redirects every ii_cpu_<kernel> that the autograd calls to a
 * wrapper in op_guard.c (see CMakeLists.txt), so that each op test is also a test of its kernels.
 */
#ifndef II_TEST_OP_GUARD_H
#define II_TEST_OP_GUARD_H
#include <stdbool.h>
#include <stdint.h>

/* While on, a call runs on copies of its buffers with 64 guard bytes on both sides, and is checked:
 * nothing outside the outputs is written, outputs that were filled with NaN before are complete, a
 * second run gives the same bits, acc_<gradient> adds to what is there, and each gradient asked for
 * alone is the same. What a kernel must not read according to kernels.h is NULL. Failures fail the
 * running cmocka test. */
void ii_guard_on(bool on);

/* Number of calls of kernel i (order of kernels.def) that were checked since the program began. */
int64_t ii_guard_checked(int kernel);

#endif
