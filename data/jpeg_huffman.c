#include "data/jpeg_huffman.h"
#include <string.h>

#define FAST II_HUFFMAN_BITS
#define STOP 255

static const uint8_t natural[64] = {0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,
                                    12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28,
                                    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
                                    58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};

/* ---- tables ---- */

/* The number that `size` bits stand for: the lower half of them are the negative ones. */
static inline int number(uint32_t bits, int size) {
  return (int)bits - (bits < 1u << (size - 1) ? (1 << size) - 1 : 0);
}

/* The entry of `whole` for a code of `length` bits and the bits that follow it. */
static int32_t whole_entry(int symbol, int length, uint32_t index, bool ac) {
  int size = ac ? symbol & 15 : symbol, zeros = ac ? symbol >> 4 : 0;
  if (length + size > FAST) return 0;
  if (ac && size == 0 && zeros != 15) return symbol == 0 ? length | STOP << 8 : 0;
  int value = 0;
  if (size > 0) value = number(index >> (FAST - length - size) & ((1u << size) - 1), size);
  return (int32_t)((uint32_t)value << 16 | (uint32_t)zeros << 8 | (uint32_t)(length + size));
}

bool ii_huffman_make(ii_huffman *t, const uint8_t bits[17], const uint8_t values[256], bool ac) {
  if (t->made && memcmp(t->bits + 1, bits + 1, 16) == 0 && memcmp(t->values, values, 256) == 0)
    return true;
  t->made = false;
  memset(t->whole, 0, sizeof t->whole);
  memset(t->code, 0, sizeof t->code);
  int32_t code = 0, used = 0;
  for (int length = 1; length <= 16; length++, code <<= 1) {
    t->offset[length] = used - code;
    for (int i = 0; i < bits[length]; i++, code++, used++) {
      if (used >= 256 || code >= 1 << length) return false;
      int symbol = values[used];
      if (!ac && symbol > 11) return false;
      if (length > FAST) continue;
      uint32_t from = (uint32_t)code << (FAST - length), n = 1u << (FAST - length);
      for (uint32_t k = from; k < from + n; k++) {
        t->code[k] = (uint16_t)(length << 8 | symbol);
        t->whole[k] = whole_entry(symbol, length, k, ac);
      }
    }
    t->last[length] = bits[length] ? code - 1 : -1;
  }
  memcpy(t->bits, bits, 17);
  memcpy(t->values, values, 256);
  return t->made = true;
}

/* ---- bits ---- */

/* Byte by byte: 0xff is followed by a 0 that does not count; anything else is a marker, the end. */
static void refill_slowly(ii_bit_reader *r) {
  while (r->count <= 56) {
    uint64_t byte = 0;
    if (r->p < r->end && (r->p[0] != 0xff || (r->p + 1 < r->end && r->p[1] == 0))) {
      byte = r->p[0];
      r->p += byte == 0xff ? 2 : 1;
    } else {
      r->made_up += 8;
      r->ran_out |= r->end - r->p < 2;
    }
    r->bits |= byte << (56 - r->count);
    r->count += 8;
  }
}

/* At least 56 bits. */
static inline void refill(ii_bit_reader *r) {
  if (r->end - r->p >= 8 && r->count <= 56) {
    uint64_t v;
    memcpy(&v, r->p, 8);
    uint64_t inverse = ~v;
    if (((inverse - 0x0101010101010101u) & v & 0x8080808080808080u) == 0) { /* no byte is 0xff */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
      v = __builtin_bswap64(v);
#endif
      r->bits |= v >> r->count;
      r->p += (63 - r->count) >> 3;
      r->count |= 56;
      return;
    }
  }
  refill_slowly(r);
}

static inline void drop(ii_bit_reader *r, int n) {
  r->bits <<= n;
  r->count -= n;
}

bool ii_bits_ended(ii_bit_reader *r) {
  refill_slowly(r);
  return r->ran_out || r->count < r->made_up;
}

bool ii_bits_restart(ii_bit_reader *r, int n) {
  /* the reader has taken whole bytes up to the marker; fewer than 8 bits, all 1, may be left */
  if (ii_bits_ended(r) || r->made_up == 0 || r->count - r->made_up >= 8) return false;
  if (r->end - r->p < 2 || r->p[0] != 0xff || r->p[1] != 0xd0 + n) return false;
  r->p += 2;
  r->bits = 0, r->count = r->made_up = 0;
  return true;
}

/* ---- blocks ---- */

/* The next symbol, by its code alone; -1: there is no such code. */
static inline int symbol_of(ii_bit_reader *r, const ii_huffman *t) {
  int entry = t->code[r->bits >> (64 - FAST)];
  if (entry) {
    drop(r, entry >> 8);
    return entry & 255;
  }
  for (int length = FAST + 1; length <= 16; length++) {
    int32_t code = (int32_t)(r->bits >> (64 - length));
    if (code > t->last[length]) continue;
    drop(r, length);
    int32_t at = code + t->offset[length];
    return at >= 0 && at < 256 ? t->values[at] : -1;
  }
  return -1;
}

static inline int take_number(ii_bit_reader *r, int size) {
  uint32_t bits = (uint32_t)(r->bits >> (64 - size));
  drop(r, size);
  return number(bits, size);
}

static inline bool difference(ii_bit_reader *r, const ii_huffman *t, int *out) {
  refill(r);
  int32_t entry = t->whole[r->bits >> (64 - FAST)];
  if (entry & 255) {
    drop(r, entry & 255);
    *out = entry >> 16;
    return true;
  }
  int size = symbol_of(r, t);
  if (size < 0) return false;
  *out = size ? take_number(r, size) : 0;
  return true;
}

/* The coefficient at or after *k: number and place by symbol; *k = 64: the block ends. */
static bool long_coefficient(ii_bit_reader *r, const ii_huffman *t, int *k, int *value) {
  int symbol = symbol_of(r, t);
  if (symbol < 0) return false;
  int size = symbol & 15;
  *value = 0;
  if (size == 0 && symbol != 0xf0) {
    *k = 64;
    return symbol == 0;
  }
  *k += symbol >> 4;
  if (size) *value = take_number(r, size);
  return *k < 64;
}

static inline __attribute__((always_inline)) bool block_of(ii_bit_reader *reader,
                                                           const ii_huffman *dc_table,
                                                           const ii_huffman *ac_table, int *dc,
                                                           int16_t *block) {
  ii_bit_reader r = *reader; /* in registers */
  int diff;
  if (!difference(&r, dc_table, &diff)) return false;
  *dc += diff;
  if (*dc < -32768 || *dc > 32767) return false;
  if (block) block[0] = (int16_t)*dc;
  for (int k = 1; k < 64; k++) {
    if (r.count < 32) refill(&r);
    int32_t entry = ac_table->whole[r.bits >> (64 - FAST)];
    int value = entry >> 16;
    if (entry & 255) {
      drop(&r, entry & 255);
      k += entry >> 8 & 255;
      if (k > 63) {
        if (k < STOP) return false;
        break;
      }
    } else {
      if (!long_coefficient(&r, ac_table, &k, &value)) return false;
      if (k > 63) break;
    }
    if (block) block[natural[k] * II_HUFFMAN_BLOCKS] = (int16_t)value;
  }
  *reader = r;
  return true;
}

bool ii_huffman_block(ii_bit_reader *r, const ii_huffman *dc_table, const ii_huffman *ac_table,
                      int *dc, int16_t *block) {
  if (block) return block_of(r, dc_table, ac_table, dc, block);
  return block_of(r, dc_table, ac_table, dc, NULL);
}
