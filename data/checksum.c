#include "data/checksum.h"
#include <string.h>
#if defined(__x86_64__)
#include <nmmintrin.h>
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
__attribute__((target("sse4.2"))) static uint32_t quick(uint32_t before, const uint8_t *p,
                                                        int64_t n) {
  uint64_t crc = (uint32_t)~before, word;
  for (; n >= 8; n -= 8, p += 8) {
    memcpy(&word, p, 8);
    crc = _mm_crc32_u64(crc, word);
  }
  for (; n > 0; n--) crc = _mm_crc32_u8((uint32_t)crc, *p++);
  return ~(uint32_t)crc;
}

uint32_t ii_crc32c(uint32_t before, const void *bytes, int64_t n) {
  return __builtin_cpu_supports("sse4.2") ? quick(before, bytes, n)
                                          : ii_crc32c_plain(before, bytes, n);
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
