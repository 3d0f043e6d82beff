/* Huffman-coded blocks of baseline JPEG. Inside of the decoder; not for other folders. */
#ifndef II_JPEG_HUFFMAN_H
#define II_JPEG_HUFFMAN_H
#include <stdbool.h>
#include <stdint.h>

enum {
  II_HUFFMAN_BITS = 11,
  II_HUFFMAN_BLOCKS = 16, /* blocks are interleaved in so many lanes */
  II_HUFFMAN_ROWS = 65,   /* coefficients of a block and one that is never read */
  II_HUFFMAN_BEHIND = 512 /* bytes of 0 behind the data */
};

/* One Huffman table. Entries by the next 11 bits: */
typedef struct {
  uint8_t bits[17], values[256]; /* what it was made from */
  bool made;
  /* code and number together: bits 0-7 their length (0: they are longer), 8-15 how many places
   * further the number goes (128: the block ends), 16-31 the number */
  int32_t whole[1 << II_HUFFMAN_BITS];
  /* AC alone: two such pairs where both fit, otherwise the second one says the same again (0 places
   * further): bits 0-7 length together, 8-15 and 16-23 places, 32-47 and 48-63 numbers */
  uint64_t pair[1 << II_HUFFMAN_BITS];
  uint16_t code[1 << II_HUFFMAN_BITS]; /* code alone: length << 8 | symbol; 0: longer */
  int32_t last[18];                    /* longer codes: the highest of each length, */
  int32_t offset[17];                  /* and where its symbol is: values[code + offset] */
} ii_huffman;

/* Makes a table from the numbers of codes of each length (bits[1..16]) and their symbols; ac: for
 * AC coefficients, otherwise DC. False when they make no table. Costs nothing when they are those
 * that it already has. */
bool ii_huffman_make(ii_huffman *t, const uint8_t bits[17], const uint8_t values[256], bool ac);

/* Copies the data up to the next marker without the zeros that follow bytes of 0xff, and
 * II_HUFFMAN_BEHIND zeros. to has room for n + II_HUFFMAN_BEHIND bytes. Returns how many bytes of
 * data it was given; *marker: where in `from` the marker begins, n if there is none. */
int64_t ii_huffman_unstuff(const uint8_t *from, int64_t n, uint8_t *to, int64_t *marker);

typedef struct {
  const uint8_t *p, *end; /* of unstuffed data */
  uint64_t bits;          /* the next ones, from the highest bit on */
  int count;              /* how many of them are there */
} ii_bit_reader;

/* Decodes a block: *dc is the DC coefficient of the one before and becomes that of this one.
 * Coefficient k (in natural order) goes to block[k * II_HUFFMAN_BLOCKS], which must be zero; NULL:
 * nowhere. False: not as it should be. */
bool ii_huffman_block(ii_bit_reader *r, const ii_huffman *dc_table, const ii_huffman *ac_table,
                      int *dc, int16_t *block);

/* Bits that are left; negative when more were used than the data has. */
int64_t ii_bits_left(const ii_bit_reader *r);

#endif
