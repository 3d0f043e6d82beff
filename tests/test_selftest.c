/* The self-test of `train --doctor` passes on the engines of this machine and sees planted faults:
 * the linker sends some kernels of the CPU engine through functions that spoil their fp32 results.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "kernels/device.h"
#include "kernels/selftest.h"

static enum { SOUND, LAST_VALUE, UNWRITTEN, LOST_SUM, WRONG_INDEX, FAILS } fault;

int __real_ii_cpu_gelu_fwd(ii_kctx *k, const ii_eltwise_args *a);
int __wrap_ii_cpu_gelu_fwd(ii_kctx *k, const ii_eltwise_args *a);
int __wrap_ii_cpu_gelu_fwd(ii_kctx *k, const ii_eltwise_args *a) {
  const int status = __real_ii_cpu_gelu_fwd(k, a);
  if (status || a->x_dtype != II_F32) return status;
  float *y = a->y;
  if (fault == LAST_VALUE) y[a->n - 1] *= 1.001f;
  if (fault == UNWRITTEN) memset(&y[a->n - 1], 0xff, sizeof *y);
  if (fault == FAILS) strcpy(k->error, "planted");
  return fault == FAILS;
}

int __real_ii_cpu_linear_bwd(ii_kctx *k, const ii_linear_args *a);
int __wrap_ii_cpu_linear_bwd(ii_kctx *k, const ii_linear_args *a);
int __wrap_ii_cpu_linear_bwd(ii_kctx *k, const ii_linear_args *a) {
  ii_linear_args b = *a;
  if (fault == LOST_SUM && a->x_dtype == II_F32) b.acc_gb = false; /* overwrites, never adds */
  return __real_ii_cpu_linear_bwd(k, &b);
}

int __real_ii_cpu_max_pool2d_fwd(ii_kctx *k, const ii_pool2d_args *a);
int __wrap_ii_cpu_max_pool2d_fwd(ii_kctx *k, const ii_pool2d_args *a);
int __wrap_ii_cpu_max_pool2d_fwd(ii_kctx *k, const ii_pool2d_args *a) {
  const int status = __real_ii_cpu_max_pool2d_fwd(k, a);
  if (!status && fault == WRONG_INDEX && a->x_dtype == II_F32) a->argmax[3]++;
  return status;
}

static ii_kctx tested, reference;

static int setup(void **state) {
  const ii_engine_options o = {.device = II_CPU, .threads = 1};
  return ii_engine_open(&tested, &o) || ii_engine_open(&reference, &o);
}

static int teardown(void **state) {
  ii_engine_close(&tested);
  ii_engine_close(&reference);
  return 0;
}

static bool passes(int kernel, ii_dtype t) {
  ii_selftest_result r;
  const int status = ii_selftest_run(&tested, &reference, kernel, t, &r);
  return status == 0 && r.error <= r.bound;
}

static void check_all(ii_kctx *k, const ii_dtype *types, int n) {
  for (int kernel = 0; kernel < II_K_COUNT; kernel++)
    for (int i = 0; i < n; i++) {
      ii_selftest_result r;
      if (ii_selftest_run(k, &reference, kernel, types[i], &r))
        fail_msg("%s %s: %s", ii_selftest_kernel_name(kernel), ii_dtype_name(types[i]), k->error);
      if (!(r.error <= r.bound))
        fail_msg("%s %s: error %g, bound %g", ii_selftest_kernel_name(kernel),
                 ii_dtype_name(types[i]), r.error, r.bound);
      if (types[i] == II_F32) assert_true(r.bound > 0); /* something was compared */
    }
}

static void every_kernel_of_the_cpu_engine(void **state) {
  static const ii_dtype types[] = {II_F32, II_BF16, II_F64};
  check_all(&tested, types, 3);
}

static void every_kernel_of_the_cuda_engine(void **state) {
  static const ii_dtype types[] = {II_F32, II_BF16, II_F16, II_F64};
  ii_kctx k;
  if (ii_cuda_device_count() == 0) skip();
  if (ii_engine_open(&k, &(ii_engine_options){.device = II_CUDA})) fail_msg("%s", k.error);
  check_all(&k, types, 4);
  ii_engine_close(&k);
}

static void planted_faults_are_seen(void **state) {
  static const struct {
    int kernel, fault;
  } planted[] = {{II_K_gelu_fwd, LAST_VALUE},
                 {II_K_gelu_fwd, UNWRITTEN},
                 {II_K_gelu_fwd, FAILS},
                 {II_K_linear_bwd, LOST_SUM},
                 {II_K_max_pool2d_fwd, WRONG_INDEX}};
  for (size_t i = 0; i < sizeof planted / sizeof *planted; i++) {
    fault = SOUND;
    assert_true(passes(planted[i].kernel, II_F32));
    fault = planted[i].fault;
    if (passes(planted[i].kernel, II_F32)) fail_msg("fault %d was not seen", (int)fault);
    assert_true(passes(planted[i].kernel, II_BF16)); /* spoils fp32 alone */
  }
  fault = SOUND;
}

static void the_doctor_answers(void **state) {
  const char *bin = getenv("II_BIN_DIR"); /* the programs were carried to another machine */
  char line[512], doctor[800], command[1024];
  bool all = false, hdf5 = false;
  snprintf(doctor, sizeof doctor, "%.700s/train --doctor", bin ? bin : II_BIN);
  FILE *f = popen(doctor, "r");
  assert_non_null(f);
  while (fgets(line, sizeof line, f)) {
    all |= !strncmp(line, "cpu: all ", 9);
    hdf5 |= strstr(line, "HDF5 ") != NULL;
  }
  assert_int_equal(pclose(f), 0);
  assert_true(all && hdf5);
  snprintf(command, sizeof command, "%s --device cuda >/dev/null", doctor);
  const int status = system(command);
  assert_int_equal(status == 0, ii_cuda_device_count() > 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_kernel_of_the_cpu_engine),
      cmocka_unit_test(every_kernel_of_the_cuda_engine),
      cmocka_unit_test(planted_faults_are_seen),
      cmocka_unit_test(the_doctor_answers),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
