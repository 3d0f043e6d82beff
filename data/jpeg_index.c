#include "data/jpeg_index.h"
#include <endian.h>
#include <stdlib.h>
#include <string.h>
#include <jerror.h>
#include "data/decode.h"

#define VERSION    1
#define PIECE      32 /* pixels; see docs/benchmarks/data_cpu.md */
#define HEAD       8  /* bytes in front of the rows */
#define MAX_PIXELS (INT64_C(1) << 26)
#define MAX_SCAN   (INT64_C(1) << 28) /* bytes: bits of it are in 32 bits */
#define MAX_DC     2047               /* of 8-bit pictures; the codes of predictors go up to it */

/* ---- reading ---------------------------------------------------------------------------------*/

static int64_t get_16(const uint8_t *p) {
  return p[0] | p[1] << 8;
}

static int64_t get_32(const uint8_t *p) {
  return get_16(p) | get_16(p + 2) << 16;
}

static int64_t piece_bytes(int components) {
  return 2 + 2 * (int64_t)components;
}

static int64_t row_bytes(int64_t pieces, int components) {
  return 4 + pieces * piece_bytes(components);
}

bool ii_jpeg_index_open(const uint8_t *index, int64_t n, ii_jpeg_index *x) {
  if (n < HEAD || index[0] != VERSION || index[1] == 0 || index[3] != 0) return false;
  if (index[2] != 1 && index[2] != 3) return false;
  *x = (ii_jpeg_index){.rows = get_16(index + 4),
                       .columns = get_16(index + 6),
                       .piece = index[1],
                       .components = index[2],
                       .at = index + HEAD};
  x->pieces = (x->columns + x->piece - 1) / x->piece;
  return x->rows > 0 && x->pieces > 0 &&
         n == HEAD + x->rows * row_bytes(x->pieces, x->components) + 4;
}

ii_jpeg_point ii_jpeg_index_point(const ii_jpeg_index *x, int64_t row, int64_t piece) {
  II_ASSERT(row >= 0 && row < x->rows && piece >= 0 && piece <= x->pieces, "row %lld piece %lld",
            (long long)row, (long long)piece);
  if (piece == x->pieces) row++, piece = 0;
  const int64_t step = piece_bytes(x->components);
  const uint8_t *p = x->at + row * row_bytes(x->pieces, x->components);
  ii_jpeg_point point = {.bit = get_32(p)};
  if (row == x->rows) return point;
  for (p += 4; piece > 0; piece--, p += step) point.bit += get_16(p);
  for (int c = 0; c < x->components; c++) point.dc[c] = (int16_t)get_16(p + 2 + 2 * c);
  return point;
}

/* ---- making ----------------------------------------------------------------------------------*/

/* Of the bits that come next: the length of the code they begin with (0: none), and its symbol. */
typedef struct {
  uint8_t length, symbol;
} code;
enum { CODES = 1 << 16, SHORT = 10, SHORT_CODES = 1 << SHORT };

/* By 16 bits, and once more by 10 for the codes up to that length, nearly all: these stay in the
 * cache. */
typedef struct {
  code all[CODES], brief[SHORT_CODES];
} table;

/* What must survive a longjmp. */
typedef struct {
  struct jpeg_decompress_struct jpeg;
  struct jpeg_error_mgr errors;
  jmp_buf jump;
  bool no_memory;
  table *tables[2 * NUM_HUFF_TBLS]; /* DC then AC tables; NULL if not used */
  uint8_t *data;                    /* the scan without the zero bytes behind 0xff, and 8 more */
  int64_t size;                     /* bytes of it */
  int64_t bit;                      /* next of them */
  int64_t place, escaped;           /* byte of data that was last asked for; how many 0xff before */
  int dc[3];
  uint8_t *index;
  int64_t n;
} maker;

static void give_up(j_common_ptr c) {
  maker *m = c->client_data;
  m->no_memory = c->err->msg_code == JERR_OUT_OF_MEMORY;
  longjmp(m->jump, 1);
}

/* A warning means damage. */
static void on_message(j_common_ptr c, int level) {
  if (level < 0) give_up(c);
}

static void *get_memory(maker *m, int64_t n) {
  void *p = malloc((size_t)n);
  if (p) return p;
  m->no_memory = true;
  longjmp(m->jump, 1);
}

/* Reads the scan's data up to the end of the image; false if another marker comes first. */
static bool read_scan(maker *m) {
  const uint8_t *in = m->jpeg.src->next_input_byte, *end = in + m->jpeg.src->bytes_in_buffer;
  if (end - in > MAX_SCAN) return false;
  m->data = get_memory(m, end - in + 8);
  for (;;) {
    const uint8_t *mark = memchr(in, 0xff, (size_t)(end - in));
    if (!mark || end - mark < 2) return false;
    const bool data = mark[1] == 0;
    const int64_t n = mark - in + data;
    memcpy(m->data + m->size, in, (size_t)n);
    m->size += n;
    in = mark + 2;
    if (data) continue;
    memset(m->data + m->size, 0, 8);
    return mark[1] == JPEG_EOI;
  }
}

/* False if the lengths are not those of a code. */
static bool make_table(maker *m, int i, const JHUFF_TBL *in) {
  if (m->tables[i]) return true;
  table *t = m->tables[i] = get_memory(m, sizeof *t);
  memset(t, 0, sizeof *t);
  int64_t at = 0, k = 0;
  for (int length = 1; length <= 16; length++)
    for (int c = 0; c < in->bits[length]; c++, k++) {
      const int64_t span = CODES >> length;
      if (k >= 256 || at + span >= CODES) return false; /* all ones is no code */
      for (int64_t s = 0; s < span; s++, at++) t->all[at] = (code){(uint8_t)length, in->huffval[k]};
    }
  for (int64_t s = 0; s < SHORT_CODES; s++) {
    const code c = t->all[s << (16 - SHORT)];
    if (c.length <= SHORT) t->brief[s] = c;
  }
  return true;
}

/* A code and the number that follows it, of as many bits as the lowest four of the code's symbol
 * say: those that begin with 0 are negative. Returns the symbol, -1 if there is no such code. Bits
 * behind the data are zeros; that they were used is found at the end. */
static int next(maker *m, const table *t, int *number) {
  if (m->bit >= m->size * 8) return -1;
  uint64_t bits;
  memcpy(&bits, m->data + (m->bit >> 3), sizeof bits);
  bits = be64toh(bits) << (m->bit & 7); /* 57 of them are good, 31 the most that are needed */
  code c = t->brief[bits >> (64 - SHORT)];
  if (!c.length) c = t->all[bits >> 48];
  if (!c.length) return -1;
  const int n = c.symbol & 15;
  const int v = n ? (int)(bits << c.length >> (64 - n)) : 0;
  *number = n && !(v >> (n - 1)) ? v - (1 << n) + 1 : v;
  m->bit += c.length + n;
  return c.symbol;
}

/* The next block against the library's. */
static bool same_block(maker *m, const jpeg_component_info *c, const JCOEF *wanted) {
  static const uint8_t natural[DCTSIZE2] = II_JPEG_ZIGZAG;
  JCOEF found[DCTSIZE2] = {0};
  int number, *dc = &m->dc[c->component_index];
  const int size = next(m, m->tables[c->dc_tbl_no], &number);
  if (size < 0 || size > 15) return false;
  *dc += number;
  if (*dc < -MAX_DC || *dc > MAX_DC) return false;
  found[0] = (JCOEF)*dc;
  for (int k = 1; k < DCTSIZE2; k++) {
    const int symbol = next(m, m->tables[NUM_HUFF_TBLS + c->ac_tbl_no], &number);
    if (symbol == 0) break; /* the block's end */
    const int zeros = symbol >> 4, bits = symbol & 15;
    if (symbol < 0 || (bits == 0 && zeros != 15) || k + zeros >= DCTSIZE2) return false;
    k += zeros;
    found[natural[k]] = (JCOEF)number;
  }
  return memcmp(found, wanted, sizeof found) == 0;
}

/* Where in the file's scan the next bit is. */
static int64_t here(maker *m) {
  for (const int64_t byte = m->bit >> 3; m->place < byte; m->place++)
    m->escaped += m->data[m->place] == 0xff;
  return m->bit + m->escaped * 8;
}

static void put(uint8_t *p, int64_t value, int n) {
  for (int i = 0; i < n; i++) p[i] = (uint8_t)(value >> (8 * i));
}

static bool walk_mcu(maker *m, jvirt_barray_ptr *coefficients, int64_t row, int64_t column) {
  struct jpeg_decompress_struct *j = &m->jpeg;
  for (int i = 0; i < j->num_components; i++) {
    const jpeg_component_info *c = &j->comp_info[i];
    const int h = j->num_components == 1 ? 1 : c->h_samp_factor;
    const int v = j->num_components == 1 ? 1 : c->v_samp_factor;
    JBLOCKARRAY blocks = j->mem->access_virt_barray((j_common_ptr)j, coefficients[i],
                                                    (JDIMENSION)(row * v), (JDIMENSION)v, FALSE);
    for (int y = 0; y < v; y++)
      for (int x = 0; x < h; x++)
        if (!same_block(m, c, blocks[y][column * h + x])) return false;
  }
  return true;
}

/* Goes through the scan and notes the places. */
static bool walk(maker *m, const ii_jpeg_grid *g, int64_t piece, jvirt_barray_ptr *coefficients) {
  const int components = m->jpeg.num_components;
  uint8_t *p = m->index;
  put(p, VERSION, 1), put(p + 1, piece, 1), put(p + 2, components, 1), put(p + 3, 0, 1);
  put(p + 4, g->rows, 2), put(p + 6, g->columns, 2);
  p += HEAD;
  for (int64_t row = 0; row < g->rows; row++) {
    put(p, here(m), 4), p += 4;
    for (int64_t column = 0; column < g->columns; p += piece_bytes(components)) {
      const int64_t begin = here(m);
      for (int c = 0; c < components; c++) put(p + 2 + 2 * c, m->dc[c], 2);
      for (int i = 0; i < piece && column < g->columns; i++, column++)
        if (!walk_mcu(m, coefficients, row, column)) return false;
      if (here(m) - begin > UINT16_MAX) return false;
      put(p, here(m) - begin, 2);
    }
  }
  put(p, here(m), 4);
  return (m->bit + 7) / 8 == m->size; /* nothing is missing and nothing is left */
}

/* May longjmp. False: the file has no index. */
static bool make(maker *m, const uint8_t *bytes, int64_t size) {
  struct jpeg_decompress_struct *j = &m->jpeg;
  ii_jpeg_grid g;
  jpeg_create_decompress(j);
  j->client_data = m;
  jpeg_mem_src(j, bytes, (unsigned long)size);
  jpeg_read_header(j, TRUE);
  if (!ii_jpeg_grid_of(j, &g) || j->image_width > MAX_PIXELS / j->image_height) return false;
  if (!read_scan(m)) return false;
  for (int i = 0; i < j->num_components; i++) {
    const jpeg_component_info *c = &j->comp_info[i];
    if (!make_table(m, c->dc_tbl_no, j->dc_huff_tbl_ptrs[c->dc_tbl_no]) ||
        !make_table(m, NUM_HUFF_TBLS + c->ac_tbl_no, j->ac_huff_tbl_ptrs[c->ac_tbl_no]))
      return false;
  }
  const int64_t piece = PIECE / g.mcu_w, pieces = (g.columns + piece - 1) / piece;
  m->n = HEAD + g.rows * row_bytes(pieces, j->num_components) + 4;
  m->index = get_memory(m, m->n);
  return walk(m, &g, piece, jpeg_read_coefficients(j));
}

ii_status ii_jpeg_index_make(const uint8_t *jpeg, int64_t size, uint8_t **index, int64_t *n,
                             ii_error *err) {
  *index = NULL, *n = 0;
  if (size < 3 || jpeg[0] != 0xff || jpeg[1] != 0xd8 || jpeg[2] != 0xff) return II_OK;
  maker *m = calloc(1, sizeof *m);
  if (!m) return ii_error_set(err, II_ERR_MEMORY, "no memory for a crop index");
  m->jpeg.err = jpeg_std_error(&m->errors);
  m->errors.error_exit = give_up;
  m->errors.emit_message = on_message;
  m->jpeg.client_data = m;
  bool good = setjmp(m->jump) ? false : make(m, jpeg, size);
  if (good)
    *index = m->index, *n = m->n;
  else
    free(m->index);
  jpeg_destroy_decompress(&m->jpeg);
  const bool no_memory = m->no_memory;
  for (int i = 0; i < 2 * NUM_HUFF_TBLS; i++) free(m->tables[i]);
  free(m->data);
  free(m);
  return no_memory ? ii_error_set(err, II_ERR_MEMORY, "no memory for a crop index") : II_OK;
}
