/* A smaller JPEG cut out of a larger one, without decoding anything.
 *
 * At a restart marker the entropy coding of a baseline JPEG begins anew: what is between two of
 * them, a segment, can be read without what is before. So where a whole number of segments makes up
 * a row of MCUs (the squares of 8 or 16 pixels that a scan consists of), the segments that a part
 * of the picture touches, with the same tables and a smaller width and height in front of them, are
 * a JPEG of that part. `pack create --crop-friendly` makes such files.
 *
 * Damage: the markers are counted and their numbers compared from the scan's beginning on. A scan
 * whose markers are not in order is left to the library, which has its ways to find its place
 * again. What is wrong inside of a segment does not reach beyond it, in the library as here. */
#include <string.h>
#include "data/decode.h"

#define HEADER_BYTES 4096 /* more than all markers in front of the scan */
#define MIN_COLUMNS  16   /* of narrower colours the library's upsampling is another */

typedef struct {
  uint8_t *at;
} writer;

static void put(writer *w, int byte) {
  *w->at++ = (uint8_t)byte;
}

static void put_16(writer *w, int value) {
  put(w, value >> 8);
  put(w, value & 255);
}

static void put_quantisers(writer *w, const struct jpeg_decompress_struct *j) {
  /* of each place of the zigzag the place in rows */
  static const uint8_t natural[DCTSIZE2] = {
      0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
      41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
      30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};
  for (int i = 0; i < NUM_QUANT_TBLS; i++) {
    if (!j->quant_tbl_ptrs[i]) continue;
    put_16(w, 0xffdb);
    put_16(w, 2 + 1 + 2 * DCTSIZE2);
    put(w, 0x10 | i);
    for (int k = 0; k < DCTSIZE2; k++) put_16(w, j->quant_tbl_ptrs[i]->quantval[natural[k]]);
  }
}

static void put_codes(writer *w, const JHUFF_TBL *table, int kind_and_number) {
  int n = 0;
  if (!table) return;
  for (int i = 1; i <= 16; i++) n += table->bits[i];
  put_16(w, 0xffc4);
  put_16(w, 2 + 1 + 16 + n);
  put(w, kind_and_number);
  memcpy(w->at, table->bits + 1, 16);
  memcpy(w->at + 16, table->huffval, (size_t)n);
  w->at += 16 + n;
}

/* All markers up to the scan of a picture of w x h pixels. Components are numbered anew, as the
 * colour space is known already. */
static void put_header(writer *out, const struct jpeg_decompress_struct *j, int64_t w, int64_t h) {
  put_16(out, 0xffd8);
  put_quantisers(out, j);
  for (int i = 0; i < NUM_HUFF_TBLS; i++) {
    put_codes(out, j->dc_huff_tbl_ptrs[i], i);
    put_codes(out, j->ac_huff_tbl_ptrs[i], 0x10 | i);
  }
  put_16(out, 0xffdd);
  put_16(out, 4);
  put_16(out, (int)j->restart_interval);
  put_16(out, 0xffc1);
  put_16(out, 8 + 3 * j->num_components);
  put(out, 8);
  put_16(out, (int)h);
  put_16(out, (int)w);
  put(out, j->num_components);
  for (int i = 0; i < j->num_components; i++) {
    const jpeg_component_info *c = &j->comp_info[i];
    put(out, i + 1);
    put(out, c->h_samp_factor << 4 | c->v_samp_factor);
    put(out, c->quant_tbl_no);
  }
  put_16(out, 0xffda);
  put_16(out, 6 + 2 * j->comps_in_scan);
  put(out, j->comps_in_scan);
  for (int i = 0; i < j->comps_in_scan; i++) {
    const jpeg_component_info *c = j->cur_comp_info[i];
    put(out, c->component_index + 1);
    put(out, c->dc_tbl_no << 4 | c->ac_tbl_no);
  }
  put(out, 0), put(out, DCTSIZE2 - 1), put(out, 0);
}

/* What is cut, in segments: those of the rows row..row_end-1, in each of them first..end-1 of
 * `across`. */
typedef struct {
  int64_t mcu_w, mcu_h; /* pixels */
  int64_t rows, across; /* of the whole picture */
  int64_t row, row_end, first, end;
} plan;

static bool can_be_cut(const struct jpeg_decompress_struct *j) {
  if (j->progressive_mode || j->arith_code || j->restart_interval == 0) return false;
  if (j->comps_in_scan != j->num_components) return false;
  /* newer libraries also read 12 bits per value, and lossless files, which say other things here */
  if (j->data_precision != 8 || j->Ss != 0 || j->Se != DCTSIZE2 - 1 || j->Ah != 0 || j->Al != 0)
    return false;
  for (int i = 0; i < j->num_components; i++) {
    const jpeg_component_info *c = &j->comp_info[i];
    if (c->quant_tbl_no < 0 || c->quant_tbl_no >= NUM_QUANT_TBLS || c->dc_tbl_no >= NUM_HUFF_TBLS ||
        c->ac_tbl_no >= NUM_HUFF_TBLS)
      return false;
    if (!j->quant_tbl_ptrs[c->quant_tbl_no] || !j->dc_huff_tbl_ptrs[c->dc_tbl_no] ||
        !j->ac_huff_tbl_ptrs[c->ac_tbl_no])
      return false;
  }
  return true;
}

/* Upsampling of colours looks at most one pixel further. */
static plan make_plan(const struct jpeg_decompress_struct *j, ii_box part) {
  bool one = j->num_components == 1; /* then an MCU is a block, whatever the factors */
  plan p = {.mcu_w = one ? DCTSIZE : DCTSIZE * j->max_h_samp_factor,
            .mcu_h = one ? DCTSIZE : DCTSIZE * j->max_v_samp_factor};
  int64_t w = j->image_width, h = j->image_height, mcus = (w + p.mcu_w - 1) / p.mcu_w;
  int64_t each = j->restart_interval;
  if (mcus % each != 0) return (plan){0};
  p.across = mcus / each;
  p.rows = (h + p.mcu_h - 1) / p.mcu_h;
  int64_t left = part.left - 1, right = part.left + part.w + 1, step = each * p.mcu_w;
  int64_t top = part.top - 1, bottom = part.top + part.h + 1;
  if (right > w) right = w;
  if (bottom > h) bottom = h;
  p.first = left < 0 ? 0 : left / step;
  p.end = (right + step - 1) / step;
  while (p.first > 0 && right - p.first * step < MIN_COLUMNS) p.first--;
  p.row = top < 0 ? 0 : top / p.mcu_h;
  p.row_end = (bottom + p.mcu_h - 1) / p.mcu_h;
  return p;
}

/* Copies the segments and numbers them anew; false if the markers are not what they should be. */
static bool put_segments(writer *out, const plan *p, const uint8_t *in, const uint8_t *end) {
  int64_t k = 0, wanted = 0, total = p->rows * p->across;
  for (int64_t row = 0; row < p->row_end; row++)
    for (int64_t i = 0; i < p->across; i++, k++) {
      const uint8_t *from = in, *to;
      do {
        to = memchr(in, 0xff, (size_t)(end - in));
        if (!to || end - to < 2) return false;
        in = to + 2;
      } while (to[1] == 0); /* a byte of data that is 0xff */
      if (to[1] != (k == total - 1 ? JPEG_EOI : JPEG_RST0 + k % 8)) return false;
      if (row < p->row || i < p->first || i >= p->end) continue;
      if (wanted > 0) put_16(out, 0xff00 | (int)(JPEG_RST0 + (wanted - 1) % 8));
      memcpy(out->at, from, (size_t)(to - from));
      out->at += to - from;
      wanted++;
      if (row == p->row_end - 1 && i == p->end - 1) break;
    }
  put_16(out, 0xff00 | JPEG_EOI);
  return true;
}

ii_status ii_decode_jpeg_cut(ii_decoder *d, ii_box *box, ii_error *err) {
  const struct jpeg_decompress_struct *j = &d->jpeg;
  *box = (ii_box){0};
  if (d->ended || !can_be_cut(j)) return II_OK;
  plan p = make_plan(j, d->part);
  /* when nothing would be passed over, there is no point in it */
  if ((p.row_end - p.row) * (p.end - p.first) >= p.row_end * p.across) return II_OK;
  const uint8_t *scan = j->src->next_input_byte, *end = scan + j->src->bytes_in_buffer;
  II_TRY(ii_bytes_reserve(&d->cut, end - scan + HEADER_BYTES, err));
  int64_t left = p.first * (int64_t)j->restart_interval * p.mcu_w, top = p.row * p.mcu_h;
  int64_t right = p.end * (int64_t)j->restart_interval * p.mcu_w, bottom = p.row_end * p.mcu_h;
  if (right > j->image_width) right = j->image_width;
  if (bottom > j->image_height) bottom = j->image_height;
  writer out = {d->cut.data};
  put_header(&out, j, right - left, bottom - top);
  if (!put_segments(&out, &p, scan, end)) return II_OK;
  d->cut.size = out.at - d->cut.data;
  *box = (ii_box){.top = top, .left = left, .h = bottom - top, .w = right - left};
  return II_OK;
}
