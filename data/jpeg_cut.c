/* A smaller JPEG cut out of a larger one, without decoding anything.
 *
 * What a scan codes for a square of the picture (an MCU: 8 or 16 pixels wide) can be read only from
 * its beginning on, because nobody knows where a later one begins, and because of each colour the
 * first coefficient (DC) is coded as a difference to the one before. A crop index (jpeg_index.h)
 * says both for every few squares. So the bits of the squares that a part of the picture needs are
 * copied, row for row, into a scan of a smaller width and height. Before each row there is one
 * square more that is made up: its differences lead from the DC values where the last row ended to
 * those where this one begins. Its length is chosen such that the row's data begins at the bit of a
 * byte where it had begun: then all bytes but the first and the last can be copied as they are. The
 * made-up squares are left of the part and are never shown.
 *
 * Restart markers would set the DC values too, but libjpeg-turbo decodes scans that have them in
 * its slower way. */
#include <string.h>
#include "data/decode.h"
#include "data/jpeg_index.h"

#define HEADER_BYTES 4096 /* more than all markers in front of the scan */
#define SQUARE_BYTES 128  /* more than a square that is made up: 10 blocks of 44 bits, stuffed */
#define MIN_COLUMNS  16   /* of narrower colours the library's upsampling is another */
/* Bytes behind the picture's end that let the library take its faster way to the last square: it
 * asks for 512 per block. */
#define TAIL (512 * D_MAX_BLOCKS_IN_MCU + 64)

enum { MAX_CATEGORY = 12, ANY_SIZE = 10 };

/* ---- bits and bytes --------------------------------------------------------------------------*/

typedef struct {
  uint8_t *at;
  uint64_t bits; /* the lowest n of it are still to be written */
  int n;
} writer;

static void put(writer *w, int byte) {
  *w->at++ = (uint8_t)byte;
}

static void put_16(writer *w, int value) {
  put(w, value >> 8);
  put(w, value & 255);
}

/* n <= 32 bits of the scan */
static void put_bits(writer *w, uint32_t value, int n) {
  w->bits = w->bits << n | value;
  for (w->n += n; w->n >= 8; w->n -= 8) {
    const int byte = w->bits >> (w->n - 8) & 255;
    put(w, byte);
    if (byte == 255) put(w, 0);
  }
}

/* ---- codes -----------------------------------------------------------------------------------*/

typedef struct {
  uint16_t bits;
  uint8_t length; /* 0: there is none */
} code;

/* A table of the file, with more codes behind its own. */
typedef struct {
  uint8_t lengths[17], symbols[256];
  int count, next; /* next: the first free code of 16 bits */
  code codes[256]; /* of each symbol */
} table;

/* False if the lengths are not those of a code. */
static bool read_table(table *t, const JHUFF_TBL *in) {
  memset(t, 0, sizeof *t);
  memcpy(t->lengths, in->bits, sizeof t->lengths);
  memcpy(t->symbols, in->huffval, sizeof t->symbols);
  for (int length = 1; length <= 16; length++)
    for (int i = 0; i < t->lengths[length]; i++, t->next += 1 << (16 - length)) {
      if (t->count == 256 || t->next >= 0xffff) return false;
      const uint8_t symbol = t->symbols[t->count++];
      t->codes[symbol] = (code){(uint16_t)(t->next >> (16 - length)), (uint8_t)length};
    }
  return t->next <= 0xffff; /* the code of all ones is never used */
}

/* Gives a symbol that the file has no code for one of 16 bits, if there is one left. No other code
 * becomes different. */
static void add_code(table *t, int symbol) {
  if (t->codes[symbol].length || t->count == 256 || t->next >= 0xffff || t->lengths[16] == 255)
    return;
  t->codes[symbol] = (code){(uint16_t)t->next++, 16};
  t->symbols[t->count++] = (uint8_t)symbol;
  t->lengths[16]++;
}

/* Coefficients (of any value but zero, in the lowest places) that have together with their codes a
 * length of i bits more than a multiple of 8: [i], as symbols; 0: none. */
static void find_fillers(table *t, uint8_t fillers[8]) {
  memset(fillers, 0, 8);
  for (int i = 0; i < t->count; i++) {
    const int symbol = t->symbols[i], size = symbol & 15;
    if (size > 0 && size <= ANY_SIZE)
      fillers[(t->codes[symbol].length + size) & 7] = (uint8_t)symbol;
  }
  for (int i = 1; i < 8; i++)
    for (int zeros = 0; zeros < 16 && !fillers[i]; zeros++) {
      const int symbol = zeros << 4 | i; /* i bits behind a code of 16 */
      if (t->codes[symbol].length) continue;
      add_code(t, symbol);
      if (!t->codes[symbol].length) return;
      fillers[i] = (uint8_t)symbol;
    }
}

/* ---- the header ------------------------------------------------------------------------------*/

typedef struct {
  const struct jpeg_decompress_struct *jpeg;
  table dc[NUM_HUFF_TBLS], ac[NUM_HUFF_TBLS]; /* those in use */
  bool used_dc[NUM_HUFF_TBLS], used_ac[NUM_HUFF_TBLS];
  uint8_t fillers[8]; /* of the last component's table */
} coder;

static bool open_coder(coder *c, const struct jpeg_decompress_struct *j) {
  memset(c->used_dc, 0, sizeof c->used_dc);
  memset(c->used_ac, 0, sizeof c->used_ac);
  c->jpeg = j;
  for (int i = 0; i < j->num_components; i++) {
    const int dc = j->comp_info[i].dc_tbl_no, ac = j->comp_info[i].ac_tbl_no;
    if (!c->used_dc[dc]) {
      c->used_dc[dc] = true;
      if (!read_table(&c->dc[dc], j->dc_huff_tbl_ptrs[dc])) return false;
      for (int k = 0; k <= MAX_CATEGORY; k++) add_code(&c->dc[dc], k);
    }
    if (!c->used_ac[ac]) {
      c->used_ac[ac] = true;
      if (!read_table(&c->ac[ac], j->ac_huff_tbl_ptrs[ac])) return false;
      add_code(&c->ac[ac], 0); /* the block's end */
    }
    if (i == j->num_components - 1) find_fillers(&c->ac[ac], c->fillers);
  }
  return true;
}

static void put_quantisers(writer *w, const struct jpeg_decompress_struct *j) {
  static const uint8_t natural[DCTSIZE2] = II_JPEG_ZIGZAG;
  for (int i = 0; i < NUM_QUANT_TBLS; i++) {
    if (!j->quant_tbl_ptrs[i]) continue;
    put_16(w, 0xffdb);
    put_16(w, 2 + 1 + 2 * DCTSIZE2);
    put(w, 0x10 | i);
    for (int k = 0; k < DCTSIZE2; k++) put_16(w, j->quant_tbl_ptrs[i]->quantval[natural[k]]);
  }
}

static void put_codes(writer *w, const table *t, int kind_and_number) {
  put_16(w, 0xffc4);
  put_16(w, 2 + 1 + 16 + t->count);
  put(w, kind_and_number);
  memcpy(w->at, t->lengths + 1, 16);
  memcpy(w->at + 16, t->symbols, (size_t)t->count);
  w->at += 16 + t->count;
}

/* All markers up to the scan of a picture of w x h pixels. Components are numbered anew, as the
 * colour space is known already. */
static void put_header(writer *out, const coder *c, int64_t w, int64_t h) {
  const struct jpeg_decompress_struct *j = c->jpeg;
  put_16(out, 0xffd8);
  put_quantisers(out, j);
  for (int i = 0; i < NUM_HUFF_TBLS; i++) {
    if (c->used_dc[i]) put_codes(out, &c->dc[i], i);
    if (c->used_ac[i]) put_codes(out, &c->ac[i], 0x10 | i);
  }
  put_16(out, 0xffc1);
  put_16(out, 8 + 3 * j->num_components);
  put(out, 8);
  put_16(out, (int)h);
  put_16(out, (int)w);
  put(out, j->num_components);
  for (int i = 0; i < j->num_components; i++) {
    const jpeg_component_info *k = &j->comp_info[i];
    put(out, i + 1);
    put(out, k->h_samp_factor << 4 | k->v_samp_factor);
    put(out, k->quant_tbl_no);
  }
  put_16(out, 0xffda);
  put_16(out, 6 + 2 * j->num_components);
  put(out, j->num_components);
  for (int i = 0; i < j->num_components; i++) {
    put(out, i + 1);
    put(out, j->comp_info[i].dc_tbl_no << 4 | j->comp_info[i].ac_tbl_no);
  }
  put(out, 0), put(out, DCTSIZE2 - 1), put(out, 0);
}

/* ---- the scan --------------------------------------------------------------------------------*/

static bool put_code(writer *w, const table *t, int symbol) {
  const code c = t->codes[symbol];
  put_bits(w, c.bits, c.length);
  return c.length > 0;
}

static bool put_difference(writer *w, const table *t, int value) {
  const int size = value < 0 ? -value : value;
  int category = 0;
  while (size >> category) category++;
  if (category > MAX_CATEGORY || !put_code(w, t, category)) return false;
  /* of a negative number, the bits of the one below */
  put_bits(w, (uint32_t)(value < 0 ? value - 1 : value) & ((1u << category) - 1), category);
  return true;
}

/* A square that leads from some DC values to others and ends at bit `phase` (0..7) of a byte. */
static bool put_square(writer *w, const coder *c, const int from[3], const int to[3], int phase) {
  const int components = c->jpeg->num_components;
  for (int i = 0; i < components; i++) {
    const jpeg_component_info *k = &c->jpeg->comp_info[i];
    const table *dc = &c->dc[k->dc_tbl_no], *ac = &c->ac[k->ac_tbl_no];
    const int blocks = components == 1 ? 1 : k->h_samp_factor * k->v_samp_factor;
    for (int b = 0; b < blocks; b++) {
      if (!put_difference(w, dc, b == 0 ? to[i] - from[i] : 0)) return false;
      const int missing = (phase - w->n - ac->codes[0].length) & 7;
      if (i == components - 1 && b == blocks - 1 && missing > 0) {
        const uint8_t symbol = c->fillers[missing];
        if (!symbol || !put_code(w, ac, symbol)) return false;
        put_bits(w, 0, symbol & 15);
      }
      if (!put_code(w, ac, 0)) return false;
    }
  }
  return true;
}

/* Copies the bits from..to of the scan to where the writer is at the same bit of a byte. */
static bool put_data(writer *w, const uint8_t *scan, int64_t from, int64_t to, int64_t *room) {
  const uint8_t *p = scan + (from >> 3), *q = scan + (to >> 3);
  const int begin = (int)(from & 7), end = (int)(to & 7);
  if (p == q) {
    if (end > begin) put_bits(w, (*p & (0xffu >> begin)) >> (8 - end), end - begin);
    return true;
  }
  if (begin > 0) {
    put_bits(w, *p & (0xffu >> begin), 8 - begin);
    p += *p == 0xff ? 2 : 1; /* with the zero behind it */
  }
  const int64_t n = q - p;
  if (n < 0 || n > *room) return false;
  memcpy(w->at, p, (size_t)n);
  w->at += n, *room -= n;
  if (end > 0) put_bits(w, *q >> (8 - end), end);
  return true;
}

/* What is cut, in MCUs: the rows row..row_end-1, and in each of them the pieces first..end-1. */
typedef struct {
  ii_jpeg_grid grid;
  int64_t row, row_end, first, end;
} plan;

/* False if the index is not one of this scan. */
static bool put_scan(writer *w, const coder *c, const plan *p, const ii_jpeg_index *x,
                     const uint8_t *scan, int64_t size) {
  ii_jpeg_point before = {0};
  int64_t room = size;
  for (int64_t row = p->row; row < p->row_end; row++) {
    const ii_jpeg_point from = ii_jpeg_index_point(x, row, p->first);
    const ii_jpeg_point to = ii_jpeg_index_point(x, row, p->end);
    if (to.bit < from.bit || to.bit > size * 8) return false;
    if (!put_square(w, c, before.dc, from.dc, (int)(from.bit & 7))) return false;
    if (!put_data(w, scan, from.bit, to.bit, &room)) return false;
    before = to;
  }
  if (w->n > 0) put_bits(w, 0xffu >> w->n, 8 - w->n);
  put_16(w, 0xff00 | JPEG_EOI);
  memset(w->at, 0, TAIL);
  w->at += TAIL;
  return true;
}

/* ---- around it -------------------------------------------------------------------------------*/

bool ii_jpeg_grid_of(const struct jpeg_decompress_struct *j, ii_jpeg_grid *g) {
  if (j->num_components != 1 && j->num_components != 3) return false;
  if (j->progressive_mode || j->arith_code || j->restart_interval != 0) return false;
  if (j->comps_in_scan != j->num_components) return false;
  /* newer libraries also read 12 bits per value, and lossless files, which say other things here */
  if (j->data_precision != 8 || j->Ss != 0 || j->Se != DCTSIZE2 - 1 || j->Ah != 0 || j->Al != 0)
    return false;
  int blocks = 0; /* of a square */
  for (int i = 0; i < j->num_components; i++) {
    const jpeg_component_info *c = &j->comp_info[i];
    if (j->cur_comp_info[i] != c) return false;
    blocks += c->h_samp_factor * c->v_samp_factor;
    if (c->quant_tbl_no < 0 || c->quant_tbl_no >= NUM_QUANT_TBLS || c->dc_tbl_no < 0 ||
        c->dc_tbl_no >= NUM_HUFF_TBLS || c->ac_tbl_no < 0 || c->ac_tbl_no >= NUM_HUFF_TBLS)
      return false;
    if (!j->quant_tbl_ptrs[c->quant_tbl_no] || !j->dc_huff_tbl_ptrs[c->dc_tbl_no] ||
        !j->ac_huff_tbl_ptrs[c->ac_tbl_no])
      return false;
  }
  const bool one = j->num_components == 1; /* then an MCU is a block, whatever the factors */
  /* the library looks at this only when it begins to decode */
  if (!one && blocks > D_MAX_BLOCKS_IN_MCU) return false;
  g->mcu_w = one ? DCTSIZE : DCTSIZE * j->max_h_samp_factor;
  g->mcu_h = one ? DCTSIZE : DCTSIZE * j->max_v_samp_factor;
  g->columns = (j->image_width + g->mcu_w - 1) / g->mcu_w;
  g->rows = (j->image_height + g->mcu_h - 1) / g->mcu_h;
  return true;
}

/* Upsampling of colours looks at most one pixel further. False if nothing would be gained. */
static bool make_plan(plan *p, const ii_jpeg_index *x, const struct jpeg_decompress_struct *j,
                      ii_box part) {
  const ii_jpeg_grid *g = &p->grid;
  const int64_t w = j->image_width, h = j->image_height, step = x->piece * g->mcu_w;
  int64_t left = part.left - 1, right = part.left + part.w + 1;
  int64_t top = part.top - 1, bottom = part.top + part.h + 1;
  if (right > w) right = w;
  if (bottom > h) bottom = h;
  p->first = left < 0 ? 0 : left / step;
  p->end = (right + step - 1) / step;
  while (p->first > 0 && right - p->first * step < MIN_COLUMNS) p->first--;
  p->row = top < 0 ? 0 : top / g->mcu_h;
  p->row_end = (bottom + g->mcu_h - 1) / g->mcu_h;
  if (right - p->first * step < MIN_COLUMNS || w + g->mcu_w > JPEG_MAX_DIMENSION) return false;
  return (p->row_end - p->row) * ((p->end - p->first) * x->piece + 1) < p->row_end * g->columns;
}

ii_status ii_decode_jpeg_cut(ii_decoder *d, ii_box *box, ii_error *err) {
  const struct jpeg_decompress_struct *j = &d->jpeg;
  ii_jpeg_index x;
  plan p;
  *box = (ii_box){0};
  if (!d->index || d->ended || !ii_jpeg_index_open(d->index, d->index_size, &x)) return II_OK;
  if (!ii_jpeg_grid_of(j, &p.grid) || x.components != j->num_components || x.rows != p.grid.rows ||
      x.columns != p.grid.columns || !make_plan(&p, &x, j, d->part))
    return II_OK;
  coder c;
  if (!open_coder(&c, j)) return II_OK;
  const uint8_t *scan = j->src->next_input_byte;
  const int64_t size = (int64_t)j->src->bytes_in_buffer;
  II_TRY(ii_bytes_reserve(&d->cut, size + HEADER_BYTES + (x.rows + 1) * SQUARE_BYTES + TAIL, err));
  int64_t left = p.first * x.piece * p.grid.mcu_w, top = p.row * p.grid.mcu_h;
  int64_t right = p.end * x.piece * p.grid.mcu_w, bottom = p.row_end * p.grid.mcu_h;
  if (right > j->image_width) right = j->image_width;
  if (bottom > j->image_height) bottom = j->image_height;
  left -= p.grid.mcu_w; /* the squares that are made up */
  writer out = {.at = d->cut.data};
  put_header(&out, &c, right - left, bottom - top);
  if (!put_scan(&out, &c, &p, &x, scan, size)) return II_OK;
  d->cut.size = out.at - d->cut.data;
  d->hidden = p.grid.mcu_w;
  *box = (ii_box){.top = top, .left = left, .h = bottom - top, .w = right - left};
  return II_OK;
}
