#include "data/checksum.h"
#include <stdbool.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#endif

/* What 4 bits do to the remainder. */
static const uint32_t nibble[16] = {
    0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
    0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9, 0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75};

uint32_t ii_crc32c_plain(uint32_t before, const void *bytes, int64_t n) {
  const uint8_t *p = bytes;
  uint32_t crc = ~before;
  for (int64_t i = 0; i < n; i++) {
    crc ^= p[i];
    crc = crc >> 4 ^ nibble[crc & 15];
    crc = crc >> 4 ^ nibble[crc & 15];
  }
  return ~crc;
}

#if defined(__x86_64__)
enum { LANE = 1024 };

/* One step of the instruction has to wait for the one before; three independent lanes hide that.
 * Their remainders are put together by carry-less products with x^(8 n - 33) mod P, n the bytes
 * that follow a lane: 32 of the missing powers come from the instruction that reduces the product,
 * one from the reflected order of the bits. */
__attribute__((target("sse4.2,pclmul"))) static uint64_t three_lanes(uint64_t crc,
                                                                     const uint8_t *p) {
  const __m128i after = _mm_set_epi64x(0x170076fa, 0xa51b6135); /* 1024, 2048 bytes */
  uint64_t one = 0, two = 0, word[3];
  for (int i = 0; i < LANE; i += 8) {
    memcpy(&word[0], p + i, 8);
    memcpy(&word[1], p + LANE + i, 8);
    memcpy(&word[2], p + 2 * LANE + i, 8);
    crc = _mm_crc32_u64(crc, word[0]);
    one = _mm_crc32_u64(one, word[1]);
    two = _mm_crc32_u64(two, word[2]);
  }
  const __m128i ends = _mm_set_epi64x((long long)one, (long long)crc);
  const __m128i sum = _mm_xor_si128(_mm_clmulepi64_si128(ends, after, 0x00),
                                    _mm_clmulepi64_si128(ends, after, 0x11));
  return _mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(sum)) ^ two;
}

__attribute__((target("sse4.2,pclmul"))) static uint32_t quick(uint32_t before, const uint8_t *p,
                                                               int64_t n) {
  uint64_t crc = (uint32_t)~before, word;
  for (; n >= 3 * LANE; n -= 3 * LANE, p += 3 * LANE) crc = three_lanes(crc, p);
  for (; n >= 8; n -= 8, p += 8) {
    memcpy(&word, p, 8);
    crc = _mm_crc32_u64(crc, word);
  }
  for (; n > 0; n--) crc = _mm_crc32_u8((uint32_t)crc, *p++);
  return ~(uint32_t)crc;
}

uint32_t ii_crc32c(uint32_t before, const void *bytes, int64_t n) {
  const bool has = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul");
  return has ? quick(before, bytes, n) : ii_crc32c_plain(before, bytes, n);
}
#elif defined(__ARM_FEATURE_CRC32)
uint32_t ii_crc32c(uint32_t before, const void *bytes, int64_t n) {
  const uint8_t *p = bytes;
  uint32_t crc = ~before;
  uint64_t word;
  for (; n >= 8; n -= 8, p += 8) {
    memcpy(&word, p, 8);
    crc = __crc32cd(crc, word);
  }
  for (; n > 0; n--) crc = __crc32cb(crc, *p++);
  return ~crc;
}
#else
uint32_t ii_crc32c(uint32_t before, const void *bytes, int64_t n) {
  return ii_crc32c_plain(before, bytes, n);
}
#endif
