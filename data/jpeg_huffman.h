/* Huffman-coded blocks of baseline JPEG. Inside of the decoder; not for other folders. */
#ifndef II_JPEG_HUFFMAN_H
#define II_JPEG_HUFFMAN_H
#include <stdbool.h>
#include <stdint.h>

enum { II_HUFFMAN_BITS = 11, II_HUFFMAN_BLOCKS = 16 };

/* One Huffman table. Entries by the next 11 bits: */
typedef struct {
  uint8_t bits[17], values[256]; /* what it was made from */
  bool made;
  /* code and number together: bits 0-7 their length (0: they are longer), 8-15 zeros before (255:
   * the block ends), 16-31 the number */
  int32_t whole[1 << II_HUFFMAN_BITS];
  uint16_t code[1 << II_HUFFMAN_BITS]; /* code alone: length << 8 | symbol; 0: longer */
  int32_t last[18];                    /* longer codes: the highest of each length, */
  int32_t offset[17];                  /* and where its symbol is: values[code + offset] */
} ii_huffman;

/* Makes a table from the numbers of codes of each length (bits[1..16]) and their symbols; ac: for
 * AC coefficients, otherwise DC. False when they make no table. Costs nothing when they are those
 * that it already has. */
bool ii_huffman_make(ii_huffman *t, const uint8_t bits[17], const uint8_t values[256], bool ac);

typedef struct {
  const uint8_t *p, *end;
  uint64_t bits; /* the next ones, from the highest bit on */
  int count;     /* how many of them are there, */
  int made_up;   /* and how many of those come after the end of the data */
  bool ran_out;  /* which is that of the file, without a marker */
} ii_bit_reader;

/* Decodes a block: *dc is the DC coefficient of the one before and becomes that of this one.
 * Coefficient k (in natural order) goes to block[k * II_HUFFMAN_BLOCKS], which must be zero; NULL:
 * nowhere. False: not as it should be. */
bool ii_huffman_block(ii_bit_reader *r, const ii_huffman *dc_table, const ii_huffman *ac_table,
                      int *dc, int16_t *block);

/* Whether bits were used that the data does not have, or the file has run out at the next bits. */
bool ii_bits_ended(ii_bit_reader *r);

/* Passes over the restart marker number n (0..7), which must be next. False: it is not. */
bool ii_bits_restart(ii_bit_reader *r, int n);

#endif
