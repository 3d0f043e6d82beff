#include "data/jpeg_huffman.h"
#include <string.h>

#define FAST II_HUFFMAN_BITS
#define STOP 128

/* Where coefficient k goes, for 16 interleaved blocks; behind the last one all places are the one
 * that is never read. */
#define N(k) ((k)*II_HUFFMAN_BLOCKS)
#define END  N(64)
#define END8 END, END, END, END, END, END, END, END
static const uint16_t place[192] = {
    N(0),  N(1),  N(8),  N(16), N(9),  N(2),  N(3),  N(10), N(17), N(24), N(32), N(25),
    N(18), N(11), N(4),  N(5),  N(12), N(19), N(26), N(33), N(40), N(48), N(41), N(34),
    N(27), N(20), N(13), N(6),  N(7),  N(14), N(21), N(28), N(35), N(42), N(49), N(56),
    N(57), N(50), N(43), N(36), N(29), N(22), N(15), N(23), N(30), N(37), N(44), N(51),
    N(58), N(59), N(52), N(45), N(38), N(31), N(39), N(46), N(53), N(60), N(61), N(54),
    N(47), N(55), N(62), N(63), END8,  END8,  END8,  END8,  END8,  END8,  END8,  END8,
    END8,  END8,  END8,  END8,  END8,  END8,  END8,  END8};

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
  return (int32_t)((uint32_t)value << 16 | (uint32_t)(zeros + 1) << 8 | (uint32_t)(length + size));
}

static void make_pairs(ii_huffman *t) {
  for (uint32_t i = 0; i < 1u << FAST; i++) {
    uint32_t a = (uint32_t)t->whole[i], length = a & 255, places = a >> 8 & 255;
    uint32_t b = (uint32_t)t->whole[i << length & ((1u << FAST) - 1)];
    bool two = length > 0 && places < STOP && (b & 255) > 0 && length + (b & 255) <= FAST;
    uint64_t further = two ? b >> 8 & 255 : 0, number2 = (two ? b : a) >> 16;
    uint64_t both = length + (two ? b & 255 : 0);
    t->pair[i] = both | places << 8 | further << 16 | (uint64_t)(a >> 16) << 32 | number2 << 48;
  }
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
  if (ac) make_pairs(t);
  return t->made = true;
}

/* ---- bits ---- */

int64_t ii_huffman_unstuff(const uint8_t *from, int64_t n, uint8_t *to, int64_t *marker) {
  int64_t at = 0, out = 0;
  *marker = n;
  while (at < n) {
    const uint8_t *ff = memchr(from + at, 0xff, (size_t)(n - at));
    int64_t run = ff ? ff - from - at : n - at;
    memcpy(to + out, from + at, (size_t)run);
    at += run, out += run;
    if (!ff) break;
    if (at + 1 >= n || from[at + 1] != 0) {
      *marker = at;
      break;
    }
    to[out++] = 0xff;
    at += 2;
  }
  memset(to + out, 0, II_HUFFMAN_BEHIND);
  return out;
}

/* At least 56 bits. What is in `bits` behind the first `count` are the bits that come next, so that
 * to set them again does no harm. */
static inline void refill(ii_bit_reader *r) {
  uint64_t v;
  memcpy(&v, r->p, 8);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  v = __builtin_bswap64(v);
#endif
  r->bits |= v >> r->count;
  r->p += (63 - r->count) >> 3;
  r->count |= 56;
}

static inline void drop(ii_bit_reader *r, int n) {
  r->bits <<= n;
  r->count -= n;
}

int64_t ii_bits_left(const ii_bit_reader *r) {
  return (r->end - r->p) * 8 + r->count;
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

/* The next coefficient, by its symbol: *k moves on to its place, or by STOP where the block ends.
 */
static inline bool long_coefficient(ii_bit_reader *r, const ii_huffman *t, int *k, int *value) {
  int symbol = symbol_of(r, t), size = symbol & 15;
  *value = 0;
  if (symbol < 0) return false;
  if (size == 0 && symbol != 0xf0) {
    *k += STOP;
    return symbol == 0;
  }
  *k += (symbol >> 4) + 1;
  if (size) *value = take_number(r, size);
  return true;
}

/* While so many places are left that the first number of a pair cannot be the last of the block,
 * after which the bits belong to the next block. */
#define PAIRS_UP_TO 46

static inline __attribute__((always_inline)) bool block_of(ii_bit_reader *reader,
                                                           const ii_huffman *dc_table,
                                                           const ii_huffman *ac_table, int *dc,
                                                           int16_t *block) {
  ii_bit_reader r = *reader; /* in registers */
  int diff, k = 0, value;
  if (r.p > r.end + 8) return false;
  if (!difference(&r, dc_table, &diff)) return false;
  *dc += diff;
  if (*dc < -32768 || *dc > 32767) return false;
  if (block) block[0] = (int16_t)*dc;
  while (k <= PAIRS_UP_TO) {
    refill(&r);
    uint64_t entry = ac_table->pair[r.bits >> (64 - FAST)];
    if (entry & 255) {
      drop(&r, entry & 255);
      k += entry >> 8 & 255;
      if (block) block[place[k]] = (int16_t)(entry >> 32);
      k += entry >> 16 & 255;
      if (block) block[place[k]] = (int16_t)(entry >> 48);
    } else {
      if (!long_coefficient(&r, ac_table, &k, &value)) return false;
      if (block) block[place[k]] = (int16_t)value;
    }
  }
  while (k < 63) {
    refill(&r);
    int32_t entry = ac_table->whole[r.bits >> (64 - FAST)];
    value = entry >> 16;
    if (entry & 255) {
      drop(&r, entry & 255);
      k += entry >> 8 & 255;
    } else if (!long_coefficient(&r, ac_table, &k, &value)) {
      return false;
    }
    if (block) block[place[k]] = (int16_t)value;
  }
  *reader = r;
  return k == 63 || k >= STOP;
}

bool ii_huffman_block(ii_bit_reader *r, const ii_huffman *dc_table, const ii_huffman *ac_table,
                      int *dc, int16_t *block) {
  if (block) return block_of(r, dc_table, ac_table, dc, block);
  return block_of(r, dc_table, ac_table, dc, NULL);
}
