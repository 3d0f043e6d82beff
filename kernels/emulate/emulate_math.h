/* Scalar intrinsics that nvcc has built in, for emulate.h. Where the GPU's fast version is less
 * exact (__expf, rsqrtf, ...) these are the exact ones, but for __fdividef: compare with
 * tolerances. */
#ifndef II_EMULATE_MATH_H
#define II_EMULATE_MATH_H

/* glibc declares functions of these names, hence macros. */
#define __expf(x)          expf(x)
#define __logf(x)          logf(x)
#define __sinf(x)          sinf(x)
#define __cosf(x)          cosf(x)
#define __powf(x, y)       powf(x, y)
#define __sincosf(x, s, c) sincosf(x, s, c)
#define __tanf(x)          tanf(x)
#define __exp10f(x)        exp10f(x)
#define __log2f(x)         log2f(x)
#define __log10f(x)        log10f(x)

static inline float rsqrtf(float x) {
  return 1.0f / sqrtf(x);
}
static inline double rsqrt(double x) {
  return 1.0 / sqrt(x);
}
static inline float rcbrtf(float x) {
  return 1.0f / cbrtf(x);
}
static inline float normcdff(float x) {
  return 0.5f * erfcf(-x * 0.70710678118654752f);
}
static inline double normcdf(double x) {
  return 0.5 * erfc(-x * 0.70710678118654752440);
}
static inline float sinpif(float x) {
  return (float)sin(M_PI * (double)x);
}
static inline float cospif(float x) {
  return (float)cos(M_PI * (double)x);
}
static inline double sinpi(double x) {
  return sin(M_PI * x);
}
static inline double cospi(double x) {
  return cos(M_PI * x);
}
static inline void sincospif(float x, float *s, float *c) {
  *s = sinpif(x), *c = cospif(x);
}
static inline float fdividef(float a, float b) {
  return a / b;
}
/* Two units beside the quotient, up or down, which is as far as a GPU's may be; 0 for divisors
 * beyond 2^126. */
static inline float __fdividef(float a, float b) {
  uint32_t bits;
  memcpy(&bits, &b, sizeof bits);
  const float q = fabsf(b) > 0x1p126f && fabsf(b) < INFINITY ? 0 * a : a / b;
  const float to = bits * 2654435761u >> 31 ? INFINITY : -INFINITY;
  return q == 0 || q - q != 0 ? q : nextafterf(nextafterf(q, to), to);
}
static inline float __saturatef(float x) {
  return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f;
}
static inline float __frcp_rn(float x) {
  return 1.0f / x;
}
static inline float __frsqrt_rn(float x) {
  return (float)(1.0 / sqrt((double)x));
}
static inline float __fsqrt_rn(float x) {
  return sqrtf(x);
}
static inline float __fadd_rn(float a, float b) {
  return a + b;
}
/* Rounded down. The sum in double, and what that lost. */
static inline float __fadd_rd(float a, float b) {
  const double s = (double)a + b, part = s - a, lost = (a - (s - part)) + (b - part);
  const float f = (float)s;
  return f > s || (f == s && lost < 0) ? nextafterf(f, -INFINITY) : f;
}
static inline float __fsub_rn(float a, float b) {
  return a - b;
}
static inline float __fmul_rn(float a, float b) {
  return a * b;
}
static inline float __fdiv_rn(float a, float b) {
  return a / b;
}
static inline float __fmaf_rn(float a, float b, float c) {
  return fmaf(a, b, c);
}
static inline double __dadd_rn(double a, double b) {
  return a + b;
}
static inline double __dsub_rn(double a, double b) {
  return a - b;
}
static inline double __dmul_rn(double a, double b) {
  return a * b;
}
static inline double __ddiv_rn(double a, double b) {
  return a / b;
}
static inline double __dsqrt_rn(double x) {
  return sqrt(x);
}
static inline double __drcp_rn(double x) {
  return 1.0 / x;
}
static inline double __fma_rn(double a, double b, double c) {
  return fma(a, b, c);
}

/* ---- Bit patterns -----------------------------------------------------------------------------*/

template <typename To, typename From> static inline To ii_emu_bits(From v) {
  static_assert(sizeof(To) == sizeof(From), "a bit pattern keeps its size");
  To r;
  memcpy(static_cast<void *>(&r), static_cast<const void *>(&v), sizeof r);
  return r;
}
static inline int __float_as_int(float v) {
  return ii_emu_bits<int>(v);
}
static inline unsigned __float_as_uint(float v) {
  return ii_emu_bits<unsigned>(v);
}
static inline float __int_as_float(int v) {
  return ii_emu_bits<float>(v);
}
static inline float __uint_as_float(unsigned v) {
  return ii_emu_bits<float>(v);
}
static inline long long __double_as_longlong(double v) {
  return ii_emu_bits<long long>(v);
}
static inline double __longlong_as_double(long long v) {
  return ii_emu_bits<double>(v);
}
static inline int __double2hiint(double v) {
  return (int)(__double_as_longlong(v) >> 32);
}
static inline int __double2loint(double v) {
  return (int)__double_as_longlong(v);
}
static inline double __hiloint2double(int hi, int lo) {
  return __longlong_as_double((long long)((uint64_t)(unsigned)hi << 32 | (unsigned)lo));
}

/* ---- Conversions: saturating, NaN gives 0, as the GPU's ---------------------------------------*/

template <typename To> static inline To ii_emu_to_integer(double v) {
  const double least = (double)std::numeric_limits<To>::min();
  const double most = (double)std::numeric_limits<To>::max();
  if (v != v) return 0;
  return v <= least  ? std::numeric_limits<To>::min()
         : v >= most ? std::numeric_limits<To>::max()
                     : (To)v;
}
#define II_EMU_CONVERT(from, name, type)                                                           \
  static inline type __##from##2##name##_rn(from v) {                                              \
    return ii_emu_to_integer<type>(rint((double)v));                                               \
  }                                                                                                \
  static inline type __##from##2##name##_rz(from v) {                                              \
    return ii_emu_to_integer<type>(trunc((double)v));                                              \
  }                                                                                                \
  static inline type __##from##2##name##_ru(from v) {                                              \
    return ii_emu_to_integer<type>(ceil((double)v));                                               \
  }                                                                                                \
  static inline type __##from##2##name##_rd(from v) {                                              \
    return ii_emu_to_integer<type>(floor((double)v));                                              \
  }
II_EMU_CONVERT(float, int, int)
II_EMU_CONVERT(float, uint, unsigned)
II_EMU_CONVERT(float, ll, long long)
II_EMU_CONVERT(float, ull, unsigned long long)
II_EMU_CONVERT(double, int, int)
II_EMU_CONVERT(double, uint, unsigned)
II_EMU_CONVERT(double, ll, long long)
II_EMU_CONVERT(double, ull, unsigned long long)
#undef II_EMU_CONVERT
static inline float __int2float_rn(int v) {
  return (float)v;
}
static inline float __uint2float_rn(unsigned v) {
  return (float)v;
}
static inline float __ll2float_rn(long long v) {
  return (float)v;
}
static inline float __ull2float_rn(unsigned long long v) {
  return (float)v;
}
static inline double __int2double_rn(int v) {
  return v;
}
static inline double __uint2double_rn(unsigned v) {
  return v;
}
static inline double __ll2double_rn(long long v) {
  return (double)v;
}
static inline double __ull2double_rn(unsigned long long v) {
  return (double)v;
}
static inline float __double2float_rn(double v) {
  return (float)v;
}

/* ---- Integers ---------------------------------------------------------------------------------*/

static inline int __popc(unsigned v) {
  return __builtin_popcount(v);
}
static inline int __popcll(unsigned long long v) {
  return __builtin_popcountll(v);
}
static inline int __clz(int v) {
  return v ? __builtin_clz((unsigned)v) : 32;
}
static inline int __clzll(long long v) {
  return v ? __builtin_clzll((unsigned long long)v) : 64;
}
static inline int __ffs(int v) {
  return __builtin_ffs(v);
}
static inline int __ffsll(long long v) {
  return __builtin_ffsll(v);
}
static inline unsigned __brev(unsigned v) {
  unsigned r = 0;
  for (int i = 0; i < 32; i++) r |= (v >> i & 1) << (31 - i);
  return r;
}
static inline unsigned long long __brevll(unsigned long long v) {
  return (unsigned long long)__brev((unsigned)v) << 32 | __brev((unsigned)(v >> 32));
}
static inline int __mulhi(int a, int b) {
  return (int)((int64_t)a * b >> 32);
}
static inline unsigned __umulhi(unsigned a, unsigned b) {
  return (unsigned)((uint64_t)a * b >> 32);
}
static inline long long __mul64hi(long long a, long long b) {
  return (long long)((__int128)a * b >> 64);
}
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)a * b >> 64);
}
static inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned n) {
  return (unsigned)((((uint64_t)hi << 32 | lo) << (n & 31)) >> 32);
}
static inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned n) {
  return (unsigned)(((uint64_t)hi << 32 | lo) >> (n & 31));
}
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t all = (uint64_t)b << 32 | a;
  unsigned r = 0;
  for (int i = 0; i < 4; i++) {
    const unsigned s = selector >> 4 * i & 15, byte = (unsigned)(all >> 8 * (s & 7)) & 255;
    r |= (s & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i;
  }
  return r;
}

/* ---- min and max of CUDA: mixed arguments go to the wider or the unsigned type
 * -----------------*/

#define II_EMU_MINMAX(a_type, b_type, type)                                                        \
  static inline type min(a_type a, b_type b) {                                                     \
    const type x = (type)a, y = (type)b;                                                           \
    return y < x ? y : x;                                                                          \
  }                                                                                                \
  static inline type max(a_type a, b_type b) {                                                     \
    const type x = (type)a, y = (type)b;                                                           \
    return x < y ? y : x;                                                                          \
  }
#define II_EMU_MINMAX_MIXED(a_type, b_type, type)                                                  \
  II_EMU_MINMAX(a_type, b_type, type) II_EMU_MINMAX(b_type, a_type, type)
II_EMU_MINMAX(int, int, int)
II_EMU_MINMAX(unsigned, unsigned, unsigned)
II_EMU_MINMAX(long, long, long)
II_EMU_MINMAX(unsigned long, unsigned long, unsigned long)
II_EMU_MINMAX(long long, long long, long long)
II_EMU_MINMAX(unsigned long long, unsigned long long, unsigned long long)
II_EMU_MINMAX_MIXED(int, unsigned, unsigned)
II_EMU_MINMAX_MIXED(long, unsigned long, unsigned long)
II_EMU_MINMAX_MIXED(long long, unsigned long long, unsigned long long)
#undef II_EMU_MINMAX
#undef II_EMU_MINMAX_MIXED
static inline float min(float a, float b) {
  return fminf(a, b);
}
static inline float max(float a, float b) {
  return fmaxf(a, b);
}
static inline double min(double a, double b) {
  return fmin(a, b);
}
static inline double max(double a, double b) {
  return fmax(a, b);
}
static inline double min(float a, double b) {
  return fmin(a, b);
}
static inline double max(float a, double b) {
  return fmax(a, b);
}
static inline double min(double a, float b) {
  return fmin(a, b);
}
static inline double max(double a, float b) {
  return fmax(a, b);
}
static inline unsigned umin(unsigned a, unsigned b) {
  return a < b ? a : b;
}
static inline unsigned umax(unsigned a, unsigned b) {
  return a > b ? a : b;
}
static inline long long llmin(long long a, long long b) {
  return a < b ? a : b;
}
static inline long long llmax(long long a, long long b) {
  return a > b ? a : b;
}

/* ---- Loads and stores of global memory with a cache hint --------------------------------------*/

#define II_EMU_LOAD(name)                                                                          \
  template <typename T> static inline T name(const T *p, II_EMU_SITE) {                            \
    ii_emu_global_access(p, sizeof *p, II_EMU_HERE);                                               \
    return *p;                                                                                     \
  }
#define II_EMU_STORE(name)                                                                         \
  template <typename T> static inline void name(T *p, T v, II_EMU_SITE) {                          \
    ii_emu_global_access(p, sizeof *p, II_EMU_HERE);                                               \
    *p = v;                                                                                        \
  }
II_EMU_LOAD(__ldg)
II_EMU_LOAD(__ldca)
II_EMU_LOAD(__ldcg)
II_EMU_LOAD(__ldcs)
II_EMU_LOAD(__ldlu)
II_EMU_LOAD(__ldcv)
II_EMU_STORE(__stwb)
II_EMU_STORE(__stcg)
II_EMU_STORE(__stcs)
II_EMU_STORE(__stwt)
#undef II_EMU_LOAD
#undef II_EMU_STORE

#endif
