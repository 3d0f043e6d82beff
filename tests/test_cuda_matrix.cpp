/* Matrix products, linear, stacked products and column sums of the CUDA engine against plain double
 * loops: ragged sizes, every type and transpose, misaligned operands, stacks, bias, alpha,
 * accumulation, sums of nothing. Bounds follow from the roundings: one of the result (and of a bias
 * in the result's type) and the inner sum's in fp32 or double. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <math.h>
#include <string.h>
#include <vector>
extern "C" { /* headers that know of C alone */
#include <cmocka.h>
#include "autograd/rng.h"
}
#include "kernels/cuda/engine.h"
#include "kernels/device.h"

namespace {

typedef std::vector<double> numbers;

const int64_t RAGGED[] = {1, 7, 31, 33, 71};
const int RAGGED_COUNT = 5;

ii_kctx engine;
uint64_t stream_number;

/* ---- Numbers on the device --------------------------------------------------------------------*/

double rounded(ii_dtype t, double v) {
  switch (t) {
  case II_F64:
    return v;
  case II_F32:
    return (double)(float)v;
  case II_F16:
    return (double)ii_f16_to_f32(ii_f32_to_f16((float)v));
  default:
    return (double)ii_bf16_to_f32(ii_f32_to_bf16((float)v));
  }
}

/* The largest relative error of one rounding. */
double half_ulp(ii_dtype t) {
  return t == II_F64 ? 0x1p-53 : t == II_F32 ? 0x1p-24 : t == II_F16 ? 0x1p-11 : 0x1p-8;
}

numbers random_numbers(ii_dtype t, int64_t n) {
  ii_rng r = ii_rng_make(7, II_RNG_TEST, stream_number++, 0);
  numbers v((size_t)n);
  for (double &x : v) x = rounded(t, ii_rng_normal(&r));
  return v;
}

/* Elements of a type in device memory, `shift` elements behind the start of the allocation. */
class buffer {
public:
  buffer(ii_dtype t, const numbers &v, int shift) : type_(t), n_(v.size()), shift_(shift) {
    bytes_ = (n_ + (size_t)shift) * ii_dtype_size(t);
    if (ii_device_alloc(&engine, bytes_, &base_)) fail_msg("%s", engine.error);
    std::vector<char> raw(n_ * ii_dtype_size(t));
    for (size_t i = 0; i < n_; i++) store(raw.data(), i, v[i]);
    if (n_ && ii_device_write(&engine, data(), raw.data(), raw.size()))
      fail_msg("%s", engine.error);
  }
  ~buffer() { ii_device_free(&engine, base_, bytes_); }
  buffer(const buffer &) = delete;
  buffer &operator=(const buffer &) = delete;

  void *data() const { return (char *)base_ + (size_t)shift_ * ii_dtype_size(type_); }
  numbers read() const {
    std::vector<char> raw(n_ * ii_dtype_size(type_));
    if (n_ && ii_device_read(&engine, raw.data(), data(), raw.size())) fail_msg("%s", engine.error);
    numbers v(n_);
    for (size_t i = 0; i < n_; i++) v[i] = load(raw.data(), i);
    return v;
  }

private:
  void store(char *raw, size_t i, double v) const {
    const float f = (float)v;
    const uint16_t h = type_ == II_F16 ? ii_f32_to_f16(f) : ii_f32_to_bf16(f);
    const size_t size = ii_dtype_size(type_);
    memcpy(raw + i * size,
           type_ == II_F64   ? (const void *)&v
           : type_ == II_F32 ? &f
                             : (void *)&h,
           size);
  }
  double load(const char *raw, size_t i) const {
    double d;
    float f;
    uint16_t h;
    if (type_ == II_F64) return memcpy(&d, raw + 8 * i, 8), d;
    if (type_ == II_F32) return memcpy(&f, raw + 4 * i, 4), (double)f;
    memcpy(&h, raw + 2 * i, 2);
    return (double)(type_ == II_F16 ? ii_f16_to_f32(h) : ii_bf16_to_f32(h));
  }

  ii_dtype type_;
  size_t n_, bytes_;
  int shift_;
  void *base_ = NULL;
};

numbers nothing(int64_t n) {
  return numbers((size_t)n, NAN);
}

/* ---- The product by its definition ------------------------------------------------------------*/

struct product {
  ii_dtype ab, c;
  int64_t batch, M, N, K;
  bool trans_a, trans_b, accumulate, bias;
  double alpha;
  int shift; /* elements by which operands and result are misaligned */
};

struct wanted {
  numbers value, size; /* the sum and the sum of absolute values */
};

wanted multiply(const product &p, const numbers &a, const numbers &b, const numbers &bias,
                const numbers &before) {
  wanted w = {numbers((size_t)(p.batch * p.M * p.N)), numbers((size_t)(p.batch * p.M * p.N))};
  for (int64_t s = 0; s < p.batch; s++)
    for (int64_t i = 0; i < p.M; i++)
      for (int64_t j = 0; j < p.N; j++) {
        double sum = 0, size = 0;
        for (int64_t k = 0; k < p.K; k++) {
          const int64_t in_a = s * p.M * p.K + (p.trans_a ? k * p.M + i : i * p.K + k);
          const int64_t in_b = s * p.K * p.N + (p.trans_b ? j * p.K + k : k * p.N + j);
          const double v = a[(size_t)in_a] * b[(size_t)in_b];
          sum += v;
          size += fabs(v);
        }
        const size_t at = (size_t)((s * p.M + i) * p.N + j);
        w.value[at] = p.alpha * sum;
        w.size[at] = fabs(p.alpha) * size;
        if (p.bias) w.value[at] += bias[(size_t)j], w.size[at] += fabs(bias[(size_t)j]);
        if (p.accumulate) w.value[at] += before[at], w.size[at] += fabs(before[at]);
      }
  return w;
}

/* Sums of `terms` numbers in `real`, then a rounding to t (three with a bias: its own, and that of
 * the product before the bias where the library has no epilogue). */
void check(const char *what, const numbers &got, const wanted &w, ii_dtype t, int64_t terms) {
  assert_int_equal(got.size(), w.value.size());
  const double sum = half_ulp(ii_dtype_real(t)) * (double)(terms + 3), round = 3 * half_ulp(t);
  const double least = t == II_F16 ? 0x1p-24 : 0;
  for (size_t i = 0; i < got.size(); i++) {
    const double bound = (sum + round) * w.size[i] + least;
    if (!(fabs(got[i] - w.value[i]) <= bound))
      fail_msg("%s: element %zu is %.9g, not %.9g (off by %.3g, bound %.3g)", what, i, got[i],
               w.value[i], fabs(got[i] - w.value[i]), bound);
  }
}

void run_product(const product &p) {
  char what[200];
  snprintf(what, sizeof what, "%s->%s %lld x [%lld,%lld,%lld] ta %d tb %d acc %d bias %d shift %d",
           ii_dtype_name(p.ab), ii_dtype_name(p.c), (long long)p.batch, (long long)p.M,
           (long long)p.N, (long long)p.K, p.trans_a, p.trans_b, p.accumulate, p.bias, p.shift);
  const ii_dtype real = ii_dtype_real(p.ab);
  const numbers a = random_numbers(p.ab, p.batch * p.M * p.K);
  const numbers b = random_numbers(p.ab, p.batch * p.K * p.N);
  const numbers bias = random_numbers(real, p.N);
  const numbers before =
      p.accumulate ? random_numbers(p.c, p.batch * p.M * p.N) : nothing(p.batch * p.M * p.N);
  const buffer da(p.ab, a, p.shift), db(p.ab, b, p.shift), dbias(real, bias, p.shift),
      dc(p.c, before, p.shift);
  ii_cuda_gemm_args g = {};
  g.ab_dtype = p.ab;
  g.c_dtype = p.c;
  g.batch = p.batch;
  g.M = p.M;
  g.N = p.N;
  g.K = p.K;
  g.trans_a = p.trans_a;
  g.trans_b = p.trans_b;
  g.accumulate = p.accumulate;
  g.alpha = p.alpha;
  g.a = da.data();
  g.b = db.data();
  g.bias = p.bias ? dbias.data() : NULL;
  g.c = dc.data();
  if (ii_cuda_gemm(&engine, &g)) fail_msg("%s: %s", what, engine.error);
  check(what, dc.read(), multiply(p, a, b, bias, before), p.c, p.K);
}

const ii_dtype TYPES[][2] = {{II_F64, II_F64},   {II_F32, II_F32}, {II_F16, II_F16},
                             {II_BF16, II_BF16}, {II_F16, II_F32}, {II_BF16, II_F32}};

/* ---- Tests ------------------------------------------------------------------------------------*/

/* Every type, transpose and triple of ragged sizes; the other options go by with the count. */
void ragged_products(void **) {
  int n = 0;
  for (const auto &t : TYPES)
    for (int m = 0; m < RAGGED_COUNT; m++)
      for (int c = 0; c < RAGGED_COUNT; c++)
        for (int i = 0; i < RAGGED_COUNT; i++)
          for (int trans = 0; trans < 4; trans++, n++) {
            product p = {};
            p.ab = t[0];
            p.c = t[1];
            p.batch = n % 5 == 0 ? 3 : 1;
            p.M = RAGGED[m];
            p.N = RAGGED[c];
            p.K = RAGGED[i];
            p.trans_a = trans & 1;
            p.trans_b = trans & 2;
            p.accumulate = n % 3 == 1;
            p.bias = n % 4 < 2;
            p.alpha = n % 2 ? 1 : -0.375;
            p.shift = n % 7 == 3;
            run_product(p);
          }
}

/* Aligned sizes, and inner sums long enough that the library splits them. */
void long_products(void **) {
  for (const auto &t : TYPES)
    for (int option = 0; option < 4; option++) {
      product p = {};
      p.ab = t[0];
      p.c = t[1];
      p.batch = 1 + option / 2;
      p.M = 64;
      p.N = 40;
      p.K = 1536;
      p.trans_a = option & 1;
      p.accumulate = p.bias = option & 2;
      p.alpha = 1;
      run_product(p);
    }
}

/* The same shape at addresses of every alignment: an algorithm for one must not serve another. */
void misaligned_products(void **) {
  for (const auto &t : TYPES)
    for (int shift : {0, 1, 2, 4, 8, 0})
      for (int trans = 0; trans < 4; trans++) {
        product p = {};
        p.ab = t[0];
        p.c = t[1];
        p.batch = 1 + trans % 2;
        p.M = p.N = p.K = 16;
        p.trans_a = trans & 1;
        p.trans_b = trans & 2;
        p.bias = true;
        p.alpha = 1;
        p.shift = shift;
        run_product(p);
      }
}

/* With K = 0 the product is zero; without rows, columns or matrices there is nothing to do. */
void empty_products(void **) {
  const int64_t sizes[][4] = {{1, 7, 5, 0}, {3, 7, 5, 0}, {1, 0, 5, 7},
                              {1, 7, 0, 5}, {0, 7, 5, 3}, {1, 2000, 300, 0}};
  for (const auto &t : TYPES)
    for (const auto &s : sizes)
      for (int option = 0; option < 4; option++) {
        product p = {};
        p.ab = t[0];
        p.c = t[1];
        p.batch = s[0];
        p.M = s[1];
        p.N = s[2];
        p.K = s[3];
        p.accumulate = option & 1;
        p.bias = option & 2;
        p.alpha = 1;
        run_product(p);
      }
}

/* More matrices than one call of the library takes. */
void high_stack(void **) {
  product p = {II_F32, II_F32, 32768 + 5, 2, 3, 2, false, true, false, true, 2, 0};
  run_product(p);
}

/* More shapes than are remembered: the table is emptied, and goes on. */
void many_shapes(void **) {
  for (int64_t m = 1; m <= 70; m++)
    for (int64_t n = 1; n <= 60; n++) {
      product p = {II_F32, II_F32, 1, m, n, 2, false, false, false, false, 1, 0};
      run_product(p);
    }
}

/* What a library may lack: the bias epilogue, any algorithm for a shape, or the will to run the one
 * it named. The emulated one can play that; a real one decides by itself. */
void without_the_library(void **) {
  const char *const settings[][2] = {{"II_EMU_BLAS_EPILOGUES", "0"},
                                     {"II_EMU_BLAS_REFUSES", "ask"},
                                     {"II_EMU_BLAS_REFUSES", "run"}};
  const int64_t sizes[][3] = {{71, 33, 31}, {5, 100, 65}, {64, 32, 96}, {1, 1, 1}};
  const bool emulated = strstr(ii_cuda_engine_name(), "emulated") != NULL;
  const int64_t before = ii_cuda(&engine)->products_refused;
  print_message("cuBLASLt refused %lld products so far\n", (long long)before);
  if (emulated) assert_int_equal(before, 0);
  for (const auto &set : settings) {
    setenv(set[0], set[1], 1);
    ii_matmul_plans_free(ii_cuda(&engine));
    int n = 0;
    for (const auto &t : TYPES)
      for (const auto &s : sizes)
        for (int option = 0; option < 4; option++, n++) {
          product p = {};
          p.ab = t[0];
          p.c = t[1];
          p.batch = 1 + n % 2;
          p.M = s[0];
          p.N = s[1];
          p.K = s[2];
          p.trans_a = option & 1;
          p.trans_b = option & 2;
          p.accumulate = n % 3 == 0;
          p.bias = n % 5 != 0;
          p.alpha = 0.5;
          p.shift = n % 7 == 3;
          run_product(p);
        }
    unsetenv(set[0]);
  }
  if (emulated) assert_true(ii_cuda(&engine)->products_refused > before);
  ii_matmul_plans_free(ii_cuda(&engine));
}

void wrong_types(void **) {
  ii_cuda_gemm_args g = {};
  g.batch = g.M = g.N = g.K = 1;
  g.ab_dtype = II_F32;
  g.c_dtype = II_BF16;
  assert_int_equal(ii_cuda_gemm(&engine, &g), 1);
  assert_non_null(strstr(engine.error, "no product of f32 with a result of bf16"));
  g.ab_dtype = g.c_dtype = II_F32;
  g.M = (int64_t)INT32_MAX + 1;
  assert_int_equal(ii_cuda_gemm(&engine, &g), 1);
  assert_non_null(strstr(engine.error, "use a smaller batch"));
}

void one_linear(ii_dtype t, int64_t rows, int64_t in, int64_t out, bool acc, int shift) {
  const ii_dtype real = ii_dtype_real(t);
  const numbers x = random_numbers(t, rows * in), w = random_numbers(t, out * in),
                b = random_numbers(real, out), gy = random_numbers(t, rows * out);
  const numbers gx0 = acc ? random_numbers(t, rows * in) : nothing(rows * in);
  const numbers gw0 = acc ? random_numbers(real, out * in) : nothing(out * in);
  const numbers gb0 = acc ? random_numbers(real, out) : nothing(out);
  const buffer dx(t, x, shift), dw(t, w, shift), db(real, b, shift), dgy(t, gy, shift),
      y(t, nothing(rows * out), shift), gx(t, gx0, shift), gw(real, gw0, shift),
      gb(real, gb0, shift);
  ii_linear_args a = {};
  a.real = real;
  a.x_dtype = t;
  a.rows = rows;
  a.in = in;
  a.out = out;
  a.x = dx.data();
  a.w = dw.data();
  a.b = db.data();
  a.y = y.data();
  a.gy = dgy.data();
  a.gx = gx.data();
  a.gw = gw.data();
  a.gb = gb.data();
  a.acc_gx = a.acc_gw = a.acc_gb = acc;
  if (ii_cuda_linear_fwd(&engine, &a) || ii_cuda_linear_bwd(&engine, &a))
    fail_msg("%s", engine.error);
  const product forward = {t, t, 1, rows, out, in, false, true, false, true, 1, 0};
  const product by_x = {t, t, 1, rows, in, out, false, false, acc, false, 1, 0};
  const product by_w = {t, real, 1, out, in, rows, true, false, acc, false, 1, 0};
  const product by_b = {t, real, 1, 1, out, rows, false, false, acc, false, 1, 0};
  check("y", y.read(), multiply(forward, x, w, b, nothing(0)), t, in);
  check("gx", gx.read(), multiply(by_x, gy, w, b, gx0), t, out);
  check("gw", gw.read(), multiply(by_w, gy, x, b, gw0), real, rows);
  check("gb", gb.read(), multiply(by_b, numbers((size_t)rows, 1.0), gy, b, gb0), real, rows);
}

void linear_layers(void **) {
  const int64_t sizes[] = {0, 1, 7, 33, 64, 71};
  int n = 0;
  for (ii_dtype t : {II_F64, II_F32, II_F16, II_BF16})
    for (int64_t rows : sizes)
      for (int64_t in : RAGGED)
        for (int64_t out : RAGGED) {
          one_linear(t, rows, in, out, n % 2, n % 5 == 2);
          n++;
        }
}

/* NULL gradients are not computed, and a layer without bias works. */
void linear_parts(void **) {
  const numbers x = random_numbers(II_F32, 7 * 5), w = random_numbers(II_F32, 3 * 5);
  const buffer dx(II_F32, x, 0), dw(II_F32, w, 0), y(II_F32, nothing(21), 0);
  ii_linear_args a = {};
  a.real = a.x_dtype = II_F32;
  a.rows = 7;
  a.in = 5;
  a.out = 3;
  a.x = dx.data();
  a.w = dw.data();
  a.y = y.data();
  a.gy = y.data();
  assert_int_equal(ii_cuda_linear_fwd(&engine, &a), 0);
  assert_int_equal(ii_cuda_linear_bwd(&engine, &a), 0);
  const product p = {II_F32, II_F32, 1, 7, 3, 5, false, true, false, false, 1, 0};
  check("y", y.read(), multiply(p, x, w, x, x), II_F32, 5);
}

void one_stack(ii_dtype t, int64_t batch, int64_t M, int64_t N, int64_t K, bool trans_b, bool acc) {
  const double alpha = 0.3125;
  const numbers a = random_numbers(t, batch * M * K), b = random_numbers(t, batch * K * N),
                gc = random_numbers(t, batch * M * N);
  const numbers ga0 = acc ? random_numbers(t, batch * M * K) : nothing(batch * M * K);
  const numbers gb0 = acc ? random_numbers(t, batch * K * N) : nothing(batch * K * N);
  const buffer da(t, a, 0), db(t, b, 0), dgc(t, gc, 0), c(t, nothing(batch * M * N), 0),
      ga(t, ga0, 0), gb(t, gb0, 0);
  ii_bmm_args m = {};
  m.real = ii_dtype_real(t);
  m.x_dtype = t;
  m.batch = batch;
  m.M = M;
  m.N = N;
  m.K = K;
  m.trans_b = trans_b;
  m.alpha = alpha;
  m.a = da.data();
  m.b = db.data();
  m.c = c.data();
  m.gc = dgc.data();
  m.ga = ga.data();
  m.gb = gb.data();
  m.acc_ga = m.acc_gb = acc;
  if (ii_cuda_bmm_fwd(&engine, &m) || ii_cuda_bmm_bwd(&engine, &m)) fail_msg("%s", engine.error);
  const product forward = {t, t, batch, M, N, K, false, trans_b, false, false, alpha, 0};
  const product by_a = {t, t, batch, M, K, N, false, !trans_b, acc, false, alpha, 0};
  const product by_b = trans_b ? product{t, t, batch, N, K, M, true, false, acc, false, alpha, 0}
                               : product{t, t, batch, K, N, M, true, false, acc, false, alpha, 0};
  check("c", c.read(), multiply(forward, a, b, a, a), t, K);
  check("ga", ga.read(), multiply(by_a, gc, b, a, ga0), t, N);
  check("gb", gb.read(), multiply(by_b, trans_b ? gc : a, trans_b ? a : gc, a, gb0), t, M);
}

void stacked_products(void **) {
  int n = 0;
  for (ii_dtype t : {II_F64, II_F32, II_F16, II_BF16})
    for (int64_t M : RAGGED)
      for (int64_t N : RAGGED)
        for (int64_t K : {(int64_t)1, (int64_t)7, (int64_t)32}) {
          one_stack(t, 1 + n % 4, M, N, K, n % 2, n % 3 == 0);
          n++;
        }
}

void one_sum(ii_dtype t, int64_t rows, int64_t n, bool acc, int shift) {
  const ii_dtype real = ii_dtype_real(t);
  const numbers x = random_numbers(t, rows * n);
  const numbers before = acc ? random_numbers(real, n) : nothing(n);
  const buffer dx(t, x, shift);
  numbers first;
  for (int repeat = 0; repeat < 2; repeat++) {
    const buffer out(real, before, shift);
    if (ii_cuda_column_sums(&engine, real, t, rows, n, dx.data(), out.data(), acc))
      fail_msg("%s", engine.error);
    const numbers got = out.read();
    if (repeat && n) assert_memory_equal(first.data(), got.data(), first.size() * sizeof(double));
    first = got;
  }
  const product p = {t, real, 1, 1, n, rows, false, false, acc, false, 1, 0};
  char what[100];
  snprintf(what, sizeof what, "column sums of %s[%lld,%lld]", ii_dtype_name(t), (long long)rows,
           (long long)n);
  check(what, first, multiply(p, numbers((size_t)rows, 1.0), x, x, before), real, rows);
}

/* Bit for bit the same twice, and right, in one stage and in two, in 16 bytes and alone. */
void sums_of_columns(void **) {
  int n = 0;
  for (ii_dtype t : {II_F64, II_F32, II_F16, II_BF16}) {
    for (int64_t rows : {0, 1, 7, 33, 71, 1025})
      for (int64_t cols : {1, 7, 8, 31, 33, 64, 71, 264, 272}) {
        one_sum(t, rows, cols, n % 2, n % 3 == 1);
        n++;
      }
    one_sum(t, 20011, 8, true, 0);
    one_sum(t, 20011, 3, false, 0);
    one_sum(t, 3, 0, false, 0);
  }
}

/* Sums of one matrix must not see the rows of another that follows in memory. */
void sums_of_integers(void **) {
  const int64_t rows = 4100, n = 40;
  numbers x((size_t)(rows * n)), want((size_t)n, 0.0);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < n; c++) {
      x[(size_t)(r * n + c)] = (double)((r * 7 + c * 3) % 17 - 8);
      want[(size_t)c] += x[(size_t)(r * n + c)];
    }
  for (ii_dtype t : {II_F64, II_F32, II_F16, II_BF16}) {
    const ii_dtype real = ii_dtype_real(t);
    const buffer dx(t, x, 0), out(real, nothing(n), 0);
    assert_int_equal(ii_cuda_column_sums(&engine, real, t, rows, n, dx.data(), out.data(), false),
                     0);
    const numbers got = out.read();
    assert_memory_equal(got.data(), want.data(), (size_t)n * sizeof(double));
  }
}

} // namespace

int main() {
  const int NO_GPU = 77;
  if (ii_cuda_device_count() == 0) {
    printf("no GPU here: skipped\n");
    return NO_GPU;
  }
  ii_engine_options options = {};
  options.device = II_CUDA;
  if (ii_engine_open(&engine, &options)) {
    fprintf(stderr, "%s\n", engine.error);
    return 1;
  }
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(ragged_products),     cmocka_unit_test(long_products),
      cmocka_unit_test(misaligned_products), cmocka_unit_test(empty_products),
      cmocka_unit_test(high_stack),          cmocka_unit_test(many_shapes),
      cmocka_unit_test(without_the_library), cmocka_unit_test(wrong_types),
      cmocka_unit_test(linear_layers),       cmocka_unit_test(linear_parts),
      cmocka_unit_test(stacked_products),    cmocka_unit_test(sums_of_columns),
      cmocka_unit_test(sums_of_integers)};
  const int failed = cmocka_run_group_tests(tests, NULL, NULL);
  ii_engine_close(&engine);
  return failed;
}
