/* Why not libjpeg-turbo alone: most of its time goes into Huffman decoding symbol by symbol, and a
 * crop throws much of the result away. Here a table gives code and number of most coefficients in
 * one step, blocks outside of the part are only passed over, and the inverse DCT turns 16 blocks at
 * a time, one per vector lane.
 *
 * Every rounding is that of libjpeg's exact integer methods (Loeffler, Ligtenberg and Moschytz DCT
 * with 13-bit constants; triangle filter for the colours; 16-bit fixed-point YCbCr to RGB), so the
 * pixels are the same. Additions are unsigned: what hostile files make overflow is defined. */
#include "data/jpeg_fast.h"
#include <stdlib.h>
#include <string.h>
#include "data/jpeg_huffman.h"
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define LANES II_HUFFMAN_BLOCKS

/* Blocks of one component waiting for their DCT, and where their pixels go. */
typedef struct {
  int16_t coefficients[64 * LANES];
  uint8_t *to[LANES];
  int count;
} block_batch;

typedef struct {
  int h, v;        /* blocks per MCU */
  int64_t w, rows; /* size of the whole component in samples */
  uint8_t *plane;  /* the decoded region */
  int64_t stride;
  int64_t left, top;  /* of the region, in samples */
  uint16_t quant[64]; /* natural order */
  const ii_huffman *dc_table, *ac_table;
  int dc;
  block_batch *batch;
} component;

struct ii_jpeg_fast {
  ii_huffman dc[NUM_HUFF_TBLS], ac[NUM_HUFF_TBLS];
  component components[3];
  block_batch batches[3];
  uint8_t *planes, *rows;
  int64_t plane_capacity, row_capacity;
};

ii_status ii_jpeg_fast_new(ii_jpeg_fast **fast, ii_error *err) {
  *fast = calloc(1, sizeof **fast);
  if (!*fast) return ii_error_set(err, II_ERR_MEMORY, "no memory for an image decoder");
  return II_OK;
}

void ii_jpeg_fast_free(ii_jpeg_fast *f) {
  if (!f) return;
  free(f->planes);
  free(f->rows);
  free(f);
}

/* ---- inverse DCT ---- */

#define DESCALE(x, n) ((uint32_t)((int32_t)((x) + (1u << ((n)-1))) >> (n)))

/* Eight values with `shift` fractional bits more than the result, as in libjpeg's ISLOW method. The
 * constants are cosines with 13 fractional bits. */
static inline void dct_1d(const uint32_t in[8], uint32_t out[8], int shift) {
  uint32_t z1 = (in[2] + in[6]) * 4433u;
  uint32_t t2 = z1 - in[6] * 15137u, t3 = z1 + in[2] * 6270u;
  uint32_t t0 = (in[0] + in[4]) << 13, t1 = (in[0] - in[4]) << 13;
  uint32_t e0 = t0 + t3, e3 = t0 - t3, e1 = t1 + t2, e2 = t1 - t2;
  uint32_t a = in[7], b = in[5], c = in[3], d = in[1];
  uint32_t z5 = (a + c + b + d) * 9633u;
  uint32_t y1 = (a + d) * 7373u, y2 = (b + c) * 20995u;
  uint32_t y3 = z5 - (a + c) * 16069u, y4 = z5 - (b + d) * 3196u;
  a = a * 2446u - y1 + y3, b = b * 16819u - y2 + y4;
  c = c * 25172u - y2 + y3, d = d * 12299u - y1 + y4;
  out[0] = DESCALE(e0 + d, shift), out[7] = DESCALE(e0 - d, shift);
  out[1] = DESCALE(e1 + c, shift), out[6] = DESCALE(e1 - c, shift);
  out[2] = DESCALE(e2 + b, shift), out[5] = DESCALE(e2 - b, shift);
  out[3] = DESCALE(e3 + a, shift), out[4] = DESCALE(e3 - a, shift);
}

/* LANES blocks: columns, then rows, then a byte each: [64, LANES]. */
static void dct(const int16_t *restrict in, const uint16_t *restrict quant, uint8_t *restrict out) {
  uint32_t middle[64 * LANES];
  for (int x = 0; x < 8; x++)
    for (int l = 0; l < LANES; l++) {
      uint32_t v[8], r[8];
      for (int y = 0; y < 8; y++) v[y] = (uint32_t)in[(y * 8 + x) * LANES + l] * quant[y * 8 + x];
      dct_1d(v, r, 11);
      for (int y = 0; y < 8; y++) middle[(y * 8 + x) * LANES + l] = r[y];
    }
  for (int y = 0; y < 8; y++)
    for (int l = 0; l < LANES; l++) {
      uint32_t v[8], r[8];
      for (int x = 0; x < 8; x++) v[x] = middle[(y * 8 + x) * LANES + l];
      dct_1d(v, r, 18);
      for (int x = 0; x < 8; x++) {
        int32_t p = (int32_t)r[x] + 128;
        out[(y * 8 + x) * LANES + l] = (uint8_t)(p < 0 ? 0 : p > 255 ? 255 : p);
      }
    }
}

/* Row y of the blocks in px [64, LANES] to the places of the blocks. */
static void scatter_row(const uint8_t *px, int y, uint8_t *const to[LANES], int n, int64_t stride) {
#ifdef __AVX2__
  __m128i a[8], b[8];
  for (int x = 0; x < 8; x++) a[x] = _mm_loadu_si128((const __m128i *)(px + (y * 8 + x) * LANES));
  for (int x = 0; x < 4; x++) {
    b[x] = _mm_unpacklo_epi8(a[2 * x], a[2 * x + 1]);
    b[x + 4] = _mm_unpackhi_epi8(a[2 * x], a[2 * x + 1]);
  }
  for (int half = 0; half < 2; half++) { /* blocks 0-7, 8-15 */
    const __m128i *s = b + half * 4;
    __m128i c0 = _mm_unpacklo_epi16(s[0], s[1]), c1 = _mm_unpackhi_epi16(s[0], s[1]);
    __m128i c2 = _mm_unpacklo_epi16(s[2], s[3]), c3 = _mm_unpackhi_epi16(s[2], s[3]);
    a[half * 4] = _mm_unpacklo_epi32(c0, c2), a[half * 4 + 1] = _mm_unpackhi_epi32(c0, c2);
    a[half * 4 + 2] = _mm_unpacklo_epi32(c1, c3), a[half * 4 + 3] = _mm_unpackhi_epi32(c1, c3);
  }
  for (int l = 0; l < n; l++) {
    __m128i v = l % 2 ? _mm_unpackhi_epi64(a[l / 2], a[l / 2]) : a[l / 2];
    _mm_storel_epi64((__m128i *)(to[l] + y * stride), v);
  }
#else
  for (int l = 0; l < n; l++)
    for (int x = 0; x < 8; x++) to[l][y * stride + x] = px[(y * 8 + x) * LANES + l];
#endif
}

static void flush(component *c) {
  uint8_t px[64 * LANES];
  block_batch *b = c->batch;
  if (b->count == 0) return;
  dct(b->coefficients, c->quant, px);
  for (int y = 0; y < 8; y++) scatter_row(px, y, b->to, b->count, c->stride);
  memset(b->coefficients, 0, sizeof b->coefficients);
  b->count = 0;
}

/* ---- entropy-coded data ---- */

/* What is decoded, in MCUs: columns x0..x1 - 1 of rows y0..y1 - 1, of `across` columns in all. */
typedef struct {
  int64_t x0, x1, y0, y1, across;
  int restart; /* MCUs between restart markers; 0: none */
} mcu_range;

static bool mcu_blocks(ii_bit_reader *r, component *c, int64_t x, int64_t y, bool wanted) {
  for (int v = 0; v < c->v; v++)
    for (int h = 0; h < c->h; h++) {
      int16_t *block = NULL;
      if (wanted) {
        block_batch *b = c->batch;
        if (b->count == LANES) flush(c);
        block = b->coefficients + b->count;
        b->to[b->count++] =
            c->plane + ((y * c->v + v) * 8 - c->top) * c->stride + (x * c->h + h) * 8 - c->left;
      }
      if (!ii_huffman_block(r, c->dc_table, c->ac_table, &c->dc, block)) return false;
    }
  return true;
}

static bool scan(ii_jpeg_fast *f, int components, const mcu_range *m, ii_bit_reader *r) {
  int64_t mcu = 0;
  for (int64_t y = 0; y < m->y1; y++) {
    for (int64_t x = 0; x < m->across; x++, mcu++) {
      bool wanted = y >= m->y0 && x >= m->x0 && x < m->x1;
      if (m->restart > 0 && mcu > 0 && mcu % m->restart == 0) {
        if (!ii_bits_restart(r, (int)((mcu / m->restart - 1) % 8))) return false;
        for (int c = 0; c < components; c++) f->components[c].dc = 0;
      }
      for (int c = 0; c < components; c++)
        if (!mcu_blocks(r, &f->components[c], x, y, wanted)) return false;
    }
    if (ii_bits_ended(r)) return false;
  }
  for (int c = 0; c < components; c++) flush(&f->components[c]);
  return true;
}

/* ---- from planes to pixels ---- */

/* n colour samples from x on, of row y of the picture's resolution; sums is working memory. Samples
 * lie between pixels; each pixel takes 3/4 of the nearer and 1/4 of the further one, along both
 * axes where both are halved; edges are repeated. */
static void upsample(const component *c, bool half_x, bool half_y, int64_t x, int64_t n, int64_t y,
                     uint16_t *restrict sums, uint8_t *restrict out) {
  int64_t row = half_y ? y / 2 : y, first = x / 2, last = (x + n - 1) / 2;
  const uint8_t *near = c->plane + (row - c->top) * c->stride - c->left;
  if (!half_x) {
    memcpy(out, near + x, (size_t)n);
    return;
  }
  int64_t other = !half_y ? row : y % 2 ? row + 1 : row - 1;
  other = other < 0 ? 0 : other >= c->rows ? c->rows - 1 : other;
  const uint8_t *far = c->plane + (other - c->top) * c->stride - c->left;
  int64_t from = first > 0 ? first - 1 : 0, to = last + 1 < c->w ? last + 1 : c->w - 1;
  /* sums[i] belongs to sample first - 1 + i */
  uint16_t *s = sums + (from - (first - 1));
  int64_t count = to - from + 1;
  for (int64_t i = 0; i < count; i++)
    s[i] = half_y ? (uint16_t)(3 * near[from + i] + far[from + i]) : near[from + i];
  if (from == first) sums[0] = s[0];
  if (to == last) s[count] = s[count - 1];
  int add_left = half_y ? 8 : 1, add_right = half_y ? 7 : 2, shift = half_y ? 4 : 2;
  int64_t pairs = last - first + 1;
  for (int64_t i = 0; i < pairs; i++) {
    out[2 * i] = (uint8_t)((3 * sums[i + 1] + sums[i] + add_left) >> shift);
    out[2 * i + 1] = (uint8_t)((3 * sums[i + 1] + sums[i + 2] + add_right) >> shift);
  }
}

static inline uint8_t clip(int v) {
  return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

/* Three rows of n bytes to pixels. */
static void interleave(const uint8_t *r, const uint8_t *g, const uint8_t *b, int64_t n,
                       uint8_t *out) {
  for (int64_t x = 0; x < n; x++) out[3 * x] = r[x], out[3 * x + 1] = g[x], out[3 * x + 2] = b[x];
}

/* In place: Y, Cb, Cr become R, G, B. */
static void to_rgb(uint8_t *restrict a, uint8_t *restrict b, uint8_t *restrict c, int64_t n) {
  for (int64_t x = 0; x < n; x++) {
    int y = a[x], cb = b[x] - 128, cr = c[x] - 128;
    a[x] = clip(y + ((91881 * cr + 32768) >> 16));
    b[x] = clip(y + ((-22554 * cb - 46802 * cr + 32768) >> 16));
    c[x] = clip(y + ((116130 * cb + 32768) >> 16));
  }
}

static void write_pixels(ii_jpeg_fast *f, int components, ii_box part, int64_t row_bytes,
                         uint8_t *out) {
  component *luma = &f->components[0];
  bool half_x = luma->h == 2, half_y = luma->v == 2;
  uint8_t *rows[3] = {f->rows, f->rows + row_bytes, f->rows + 2 * row_bytes};
  uint16_t *sums = (uint16_t *)(f->rows + 3 * row_bytes);
  for (int64_t y = part.top; y < part.top + part.h; y++, out += part.w * 3) {
    const uint8_t *in = luma->plane + (y - luma->top) * luma->stride + part.left - luma->left;
    if (components == 1) {
      interleave(in, in, in, part.w, out);
      continue;
    }
    /* colours come in pairs of pixels: half of the first one may not be wanted */
    int64_t skip = half_x ? part.left % 2 : 0;
    memcpy(rows[0] + skip, in, (size_t)part.w);
    for (int c = 1; c < 3; c++)
      upsample(&f->components[c], half_x, half_y, part.left, part.w, y, sums, rows[c]);
    to_rgb(rows[0] + skip, rows[1] + skip, rows[2] + skip, part.w);
    interleave(rows[0] + skip, rows[1] + skip, rows[2] + skip, part.w, out);
  }
}

/* ---- set-up ---- */

static bool known_kind(const struct jpeg_decompress_struct *j) {
  const jpeg_component_info *c = j->comp_info;
  if (j->progressive_mode || j->arith_code || j->data_precision != 8) return false;
  if (j->comps_in_scan != j->num_components || j->Ss != 0 || j->Se != 63 || j->Ah || j->Al)
    return false;
  if (j->image_width < 32 || j->image_height < 32) return false; /* nothing to win */
  if (j->num_components == 1) return j->jpeg_color_space == JCS_GRAYSCALE;
  if (j->num_components != 3 || j->jpeg_color_space != JCS_YCbCr) return false;
  for (int i = 1; i < 3; i++)
    if (c[i].h_samp_factor != 1 || c[i].v_samp_factor != 1) return false;
  return (c[0].h_samp_factor == 1 && c[0].v_samp_factor == 1) ||
         (c[0].h_samp_factor == 2 && c[0].v_samp_factor <= 2);
}

static bool tables(ii_jpeg_fast *f, const struct jpeg_decompress_struct *j) {
  for (int i = 0; i < j->num_components; i++) {
    const jpeg_component_info *info = j->cur_comp_info[i];
    component *c = &f->components[i];
    if (info != &j->comp_info[i]) return false; /* in another order */
    int dc = info->dc_tbl_no, ac = info->ac_tbl_no, q = info->quant_tbl_no;
    if (dc < 0 || dc >= NUM_HUFF_TBLS || ac < 0 || ac >= NUM_HUFF_TBLS || q < 0 ||
        q >= NUM_QUANT_TBLS || !j->dc_huff_tbl_ptrs[dc] || !j->ac_huff_tbl_ptrs[ac] ||
        !j->quant_tbl_ptrs[q])
      return false;
    const JHUFF_TBL *d = j->dc_huff_tbl_ptrs[dc], *a = j->ac_huff_tbl_ptrs[ac];
    if (!ii_huffman_make(&f->dc[dc], d->bits, d->huffval, false) ||
        !ii_huffman_make(&f->ac[ac], a->bits, a->huffval, true))
      return false;
    c->dc_table = &f->dc[dc], c->ac_table = &f->ac[ac];
    memcpy(c->quant, j->quant_tbl_ptrs[q]->quantval, sizeof c->quant);
    c->dc = 0;
  }
  return true;
}

static bool grow(uint8_t **p, int64_t *capacity, int64_t bytes) {
  if (bytes <= *capacity) return true;
  free(*p);
  *p = calloc(1, (size_t)bytes);
  *capacity = *p ? bytes : 0;
  return *p != NULL;
}

/* The MCUs that the part needs, and planes for them. */
static bool layout(ii_jpeg_fast *f, const struct jpeg_decompress_struct *j, ii_box part,
                   mcu_range *m) {
  int n = j->num_components, h = n == 1 ? 1 : j->comp_info[0].h_samp_factor;
  int v = n == 1 ? 1 : j->comp_info[0].v_samp_factor;
  int64_t w = j->image_width, rows = j->image_height, bytes = 0;
  int64_t down = (rows + 8 * v - 1) / (8 * v);
  int64_t margin = 2; /* pixels that upsampling looks further */
  m->across = (w + 8 * h - 1) / (8 * h);
  m->restart = (int)j->restart_interval;
  m->x0 = (part.left > margin ? part.left - margin : 0) / (8 * h);
  m->y0 = (part.top > margin ? part.top - margin : 0) / (8 * v);
  m->x1 = (part.left + part.w - 1 + margin) / (8 * h) + 1;
  m->y1 = (part.top + part.h - 1 + margin) / (8 * v) + 1;
  if (m->x1 > m->across) m->x1 = m->across;
  if (m->y1 > down) m->y1 = down;
  for (int i = 0; i < n; i++) {
    component *c = &f->components[i];
    c->h = i == 0 ? h : 1, c->v = i == 0 ? v : 1;
    c->w = i == 0 || h == 1 ? w : (w + 1) / 2, c->rows = i == 0 || v == 1 ? rows : (rows + 1) / 2;
    c->left = m->x0 * c->h * 8, c->top = m->y0 * c->v * 8;
    c->stride = (m->x1 - m->x0) * c->h * 8;
    c->batch = &f->batches[i];
    bytes += c->stride * (m->y1 - m->y0) * c->v * 8;
  }
  if (!grow(&f->planes, &f->plane_capacity, bytes)) return false;
  uint8_t *at = f->planes;
  for (int i = 0; i < n; i++) {
    component *c = &f->components[i];
    c->plane = at;
    at += c->stride * (m->y1 - m->y0) * c->v * 8;
  }
  return true;
}

bool ii_jpeg_fast_decode(ii_jpeg_fast *f, const struct jpeg_decompress_struct *j, ii_box part,
                         ii_image *img) {
  int64_t row_bytes = (part.w + 64) / 16 * 16;
  mcu_range m;
  if (!known_kind(j) || !tables(f, j) || !layout(f, j, part, &m)) return false;
  if (!grow(&f->rows, &f->row_capacity, row_bytes * 5)) return false;
  if (ii_image_reserve(img, part.w, part.h, NULL) != II_OK) return false;
  ii_bit_reader r = {.p = j->src->next_input_byte,
                     .end = j->src->next_input_byte + j->src->bytes_in_buffer};
  for (int i = 0; i < 3; i++) {
    if (f->batches[i].count > 0) /* of a file that was given up */
      memset(f->batches[i].coefficients, 0, sizeof f->batches[i].coefficients);
    f->batches[i].count = 0;
  }
  if (!scan(f, j->num_components, &m, &r)) return false;
  write_pixels(f, j->num_components, part, row_bytes, img->data);
  return true;
}
