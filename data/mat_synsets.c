/* MATLAB 5 files ("MAT-File Format", The MathWorks): after 128 bytes of header come elements, each
 * a type, a number of bytes and data padded to 8 bytes; short ones have all that in 8 bytes. A
 * matrix element consists of elements: flags, dimensions, name, and then what its class asks for.
 */
#include "data/mat_synsets.h"
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum { INT8 = 1, UINT8, INT16, UINT16, INT32, UINT32, SINGLE, DOUBLE = 9, MATRIX = 14, COMPRESSED };
enum { UTF8 = 16, CLASS_STRUCT = 2, IDS = 1000, HEADER = 128 };

typedef struct {
  const uint8_t *at, *end;
} span;

typedef struct {
  uint32_t type;
  span data;
} element;

static uint32_t u32(const uint8_t *p) {
  return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Takes the next element off the front. */
static bool next(span *s, element *e) {
  if (s->end - s->at < 8) return false;
  uint32_t type = u32(s->at), n = u32(s->at + 4);
  if (type >> 16) { /* short form: size and type share the first word */
    n = type >> 16;
    e->type = type & 0xffff;
    e->data = (span){s->at + 4, s->at + 4 + n};
    s->at += 8;
    return n <= 4;
  }
  const int64_t left = s->end - s->at - 8;
  int64_t whole = type == COMPRESSED ? n : ((int64_t)n + 7) / 8 * 8;
  if (n > left) return false;
  if (whole > left) whole = left;
  e->type = type;
  e->data = (span){s->at + 8, s->at + 8 + n};
  s->at += 8 + whole;
  return true;
}

/* The first number of a numeric element. */
static bool number(const element *e, double *out) {
  const int64_t n = e->data.end - e->data.at;
  const uint8_t *p = e->data.at;
  switch (e->type) {
  case INT8:
    return n >= 1 ? *out = (int8_t)p[0], true : false;
  case UINT8:
    return n >= 1 ? *out = p[0], true : false;
  case INT16:
    return n >= 2 ? *out = (int16_t)(p[0] | p[1] << 8), true : false;
  case UINT16:
    return n >= 2 ? *out = p[0] | p[1] << 8, true : false;
  case INT32:
    return n >= 4 ? *out = (int32_t)u32(p), true : false;
  case UINT32:
    return n >= 4 ? *out = u32(p), true : false;
  case DOUBLE:
    if (n < 8) return false;
    uint64_t bits = (uint64_t)u32(p) | (uint64_t)u32(p + 4) << 32;
    memcpy(out, &bits, sizeof *out);
    return true;
  default:
    return false;
  }
}

/* The characters of a text element, as far as there is room. */
static bool text(const element *e, char *out, int64_t size) {
  const int64_t step = e->type == UINT16 ? 2 : 1, n = (e->data.end - e->data.at) / step;
  if (e->type != UINT16 && e->type != UTF8 && e->type != UINT8 && e->type != INT8) return false;
  if (n >= size) return false;
  for (int64_t i = 0; i < n; i++) out[i] = (char)e->data.at[i * step];
  out[n] = 0;
  return true;
}

/* Skips flags, dimensions and name of a matrix; *s is then at its content. */
static bool open_matrix(const element *e, span *s, uint32_t *class, int64_t *count) {
  element flags, dims, name;
  *s = e->data;
  if (e->type != MATRIX || !next(s, &flags) || !next(s, &dims) || !next(s, &name)) return false;
  if (flags.data.end - flags.data.at < 4) return false;
  *class = u32(flags.data.at) & 0xff;
  *count = 1;
  for (const uint8_t *p = dims.data.at; p + 4 <= dims.data.end; p += 4) {
    const uint32_t d = u32(p);
    if (d > 1000000 || *count > 1000000) return false;
    *count *= d;
  }
  return true;
}

/* The value of a field of one element of the array. */
static bool read_field(const element *e, const char *field, double *id, char wnid[16]) {
  span s;
  element value;
  uint32_t class;
  int64_t count;
  const bool is_id = !strcmp(field, "ILSVRC2012_ID"), is_wnid = !strcmp(field, "WNID");
  if (!is_id && !is_wnid) return true;
  if (!open_matrix(e, &s, &class, &count) || !next(&s, &value)) return false;
  return is_id ? number(&value, id) : text(&value, wnid, 16);
}

static bool read_structures(span s, int64_t count, char (*wnids)[16]) {
  element length, fields, e;
  double name_size;
  if (!next(&s, &length) || !number(&length, &name_size) || !next(&s, &fields)) return false;
  const int64_t size = (int64_t)name_size, bytes = fields.data.end - fields.data.at;
  if (size < 1 || size > 64 || bytes % size != 0) return false;
  for (int64_t i = 0; i < count; i++) {
    double id = 0;
    char wnid[16] = "";
    for (int64_t k = 0; k < bytes / size; k++) {
      char field[65] = "";
      memcpy(field, fields.data.at + k * size, (size_t)size);
      if (!next(&s, &e) || !read_field(&e, field, &id, wnid)) return false;
    }
    if (id >= 1 && id <= IDS && *wnid) memcpy(wnids[(int)id - 1], wnid, 16);
  }
  return true;
}

/* Unpacks a compressed element; new memory. */
static uint8_t *inflate_all(span s, int64_t *n) {
  z_stream z = {0};
  int64_t room = 1 << 20;
  const int64_t most = INT64_C(256) << 20;
  uint8_t *out = malloc((size_t)room);
  if (!out || inflateInit(&z) != Z_OK) return free(out), NULL;
  z.next_in = (Bytef *)s.at, z.avail_in = (uInt)(s.end - s.at);
  int rc = Z_OK;
  *n = 0;
  while (rc == Z_OK) {
    if (*n == room) {
      uint8_t *more = room < most ? realloc(out, (size_t)(room *= 2)) : NULL;
      if (!more) break;
      out = more;
    }
    z.next_out = out + *n, z.avail_out = (uInt)(room - *n);
    rc = inflate(&z, Z_NO_FLUSH);
    *n = room - z.avail_out;
  }
  inflateEnd(&z);
  return rc == Z_STREAM_END ? out : (free(out), NULL);
}

static bool read_element(const element *e, char (*wnids)[16], bool *found) {
  span s;
  uint32_t class;
  int64_t count, n;
  if (e->type == COMPRESSED) {
    element inner;
    uint8_t *bytes = inflate_all(e->data, &n);
    span packed = {bytes, bytes + (bytes ? n : 0)};
    bool good = bytes && next(&packed, &inner) && inner.type != COMPRESSED &&
                read_element(&inner, wnids, found);
    free(bytes);
    return good;
  }
  if (!open_matrix(e, &s, &class, &count)) return false;
  if (class != CLASS_STRUCT) return true; /* another variable */
  *found = true;
  return read_structures(s, count, wnids);
}

static bool read_file(const ii_bytes *file, char (*wnids)[16]) {
  span s = {file->data + HEADER, file->data + file->size};
  element e;
  bool found = false;
  if (file->size < HEADER || memcmp(file->data + HEADER - 2, "IM", 2) != 0) return false;
  while (!found && next(&s, &e))
    if (!read_element(&e, wnids, &found)) return false;
  for (int i = 0; i < IDS; i++)
    if (!*wnids[i]) return false;
  return true;
}

ii_status ii_mat_synsets(const char *path, ii_names *names, ii_error *err) {
  ii_bytes file = {0};
  II_TRY(ii_bytes_read(&file, path, err));
  char(*wnids)[16] = calloc(IDS, sizeof *wnids);
  ii_status s = wnids ? II_OK : ii_error_set(err, II_ERR_MEMORY, "no memory for synsets");
  if (s == II_OK && !read_file(&file, wnids))
    s = ii_error_set(err, II_ERR_FORMAT,
                     "'%s' is not the meta.mat of ImageNet's development kit with its 1000 synsets",
                     path);
  for (int i = 0; s == II_OK && i < IDS; i++) s = ii_names_add(names, wnids[i], err);
  free(wnids);
  ii_bytes_free(&file);
  return s;
}
