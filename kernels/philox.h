/* Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), for host code
 * and kernels alike: the same counter gives the same bits everywhere. */
#ifndef II_PHILOX_H
#define II_PHILOX_H
#include <stdint.h>

#ifdef __CUDACC__
#define II_EVERYWHERE static __host__ __device__ __forceinline__
#else
#define II_EVERYWHERE static inline
#endif

/* out = philox(key, ctr), one block of 128 bits. */
II_EVERYWHERE void ii_philox_block(const uint32_t key[2], const uint32_t ctr[4], uint32_t out[4]) {
  uint32_t k0 = key[0], k1 = key[1];
  uint32_t c0 = ctr[0], c1 = ctr[1], c2 = ctr[2], c3 = ctr[3];
  for (int round = 0; round < 10; round++) {
    const uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
    c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
    c1 = (uint32_t)p1;
    c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c3 = (uint32_t)p0;
    k0 += 0x9E3779B9u; /* golden ratio */
    k1 += 0xBB67AE85u; /* sqrt(3) - 1 */
  }
  out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

/* A stream of blocks: block i has the counter {low(i), high(i), tail[0], tail[1]} (autograd/rng.h
 * makes key and tail from seed, purpose and indices). */
typedef struct {
  uint32_t key[2], tail[2];
} ii_philox_stream;

/* The stream of (seed, purpose, a, b). The identity is mixed by one Philox call, so nearby seeds
 * and indices give unrelated streams: of 128 mixed bits 64 become the key, 64 the tail. */
II_EVERYWHERE ii_philox_stream ii_philox_stream_of(uint64_t seed, uint32_t purpose, uint64_t a,
                                                   uint64_t b) {
  const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
  const uint32_t ctr[4] = {(uint32_t)a, (uint32_t)(a >> 32), (uint32_t)b,
                           (uint32_t)(b >> 32) ^ (purpose << 24)};
  uint32_t id[4];
  ii_philox_block(key, ctr, id);
  ii_philox_stream s;
  s.key[0] = id[0], s.key[1] = id[1], s.tail[0] = id[2], s.tail[1] = id[3];
  return s;
}

/* Number i of the stream's uniform numbers in [0, 1), as an integer of 53 bits (times 2^-53). */
II_EVERYWHERE uint64_t ii_philox_uniform53(const ii_philox_stream *s, uint64_t i) {
  const uint64_t block = i / 2;
  const uint32_t ctr[4] = {(uint32_t)block, (uint32_t)(block >> 32), s->tail[0], s->tail[1]};
  uint32_t out[4];
  ii_philox_block(s->key, ctr, out);
  const uint64_t hi = (i % 2 ? out[2] : out[0]) >> 5, lo = (i % 2 ? out[3] : out[1]) >> 6;
  return hi << 26 | lo;
}

#endif
