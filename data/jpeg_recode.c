#include "data/jpeg_recode.h"
#include <stdlib.h>
#include <string.h>
#include <jerror.h>
#include "data/decode.h"

#define MAX_PIXELS (INT64_C(1) << 26) /* the coefficients of a picture are all in memory */
#define MAX_SCANS  100                /* as the decoder */
#define ROOM       65536              /* bytes that a recoded file may have above twice the old */

/* What must survive a longjmp. */
typedef struct {
  struct jpeg_decompress_struct in, back;
  struct jpeg_compress_struct out;
  struct jpeg_error_mgr errors;
  struct jpeg_progress_mgr progress;
  struct jpeg_destination_mgr to;
  jmp_buf jump;
  bool no_memory;
  uint8_t *bytes; /* [room] */
  size_t room;
} recoder;

static void give_up(j_common_ptr c) {
  recoder *r = c->client_data;
  r->no_memory = c->err->msg_code == JERR_OUT_OF_MEMORY;
  longjmp(r->jump, 1);
}

/* A warning means damage: what it looks like is up to the decoder, which has to see that file. */
static void on_message(j_common_ptr c, int level) {
  if (level < 0) give_up(c);
}

static void watch_scans(j_common_ptr c) {
  if (((j_decompress_ptr)c)->input_scan_number > MAX_SCANS) give_up(c);
}

static void begin_output(j_compress_ptr c) {
  recoder *r = c->client_data;
  c->dest->next_output_byte = r->bytes, c->dest->free_in_buffer = r->room;
}

/* So much longer than the file: not worth it. */
static boolean no_room(j_compress_ptr c) {
  give_up((j_common_ptr)c);
  return FALSE;
}

static void end_output(j_compress_ptr c) {}

static void open_reader(recoder *r, struct jpeg_decompress_struct *j, const uint8_t *bytes,
                        size_t n) {
  jpeg_create_decompress(j);
  j->client_data = r;
  j->progress = &r->progress;
  jpeg_mem_src(j, bytes, n);
  jpeg_read_header(j, TRUE);
}

/* Whether every bit of every coefficient is there: the library smooths over what is missing. */
static bool complete(const struct jpeg_decompress_struct *j) {
  for (int c = 0; j->coef_bits && c < j->num_components; c++)
    for (int k = 0; k < DCTSIZE2; k++)
      if (j->coef_bits[c][k] != 0) return false;
  return true;
}

/* MCUs between restart markers: few, as a part of the picture is read in whole pieces; but each
 * marker costs two or three bytes. */
static unsigned piece(const struct jpeg_decompress_struct *j) {
  int64_t mcu = j->num_components == 1 ? DCTSIZE : DCTSIZE * j->max_h_samp_factor;
  int64_t mcus = (j->image_width + mcu - 1) / mcu;
  return mcus % 2 == 0 ? 2 : mcus % 3 == 0 ? 3 : 1;
}

static bool same_tables(const struct jpeg_decompress_struct *a,
                        const struct jpeg_decompress_struct *b) {
  if (a->image_width != b->image_width || a->image_height != b->image_height ||
      a->num_components != b->num_components || a->jpeg_color_space != b->jpeg_color_space)
    return false;
  for (int c = 0; c < a->num_components; c++) {
    const jpeg_component_info *x = &a->comp_info[c], *y = &b->comp_info[c];
    if (x->h_samp_factor != y->h_samp_factor || x->v_samp_factor != y->v_samp_factor ||
        x->width_in_blocks != y->width_in_blocks || x->height_in_blocks != y->height_in_blocks)
      return false;
    if (!x->quant_table || !y->quant_table ||
        memcmp(x->quant_table->quantval, y->quant_table->quantval,
               sizeof x->quant_table->quantval) != 0)
      return false;
  }
  return true;
}

static bool same_coefficients(recoder *r, jvirt_barray_ptr *a, jvirt_barray_ptr *b) {
  for (int c = 0; c < r->in.num_components; c++) {
    const jpeg_component_info *info = &r->in.comp_info[c];
    for (JDIMENSION y = 0; y < info->height_in_blocks; y++) {
      JBLOCKARRAY x = r->in.mem->access_virt_barray((j_common_ptr)&r->in, a[c], y, 1, FALSE);
      JBLOCKARRAY z = r->back.mem->access_virt_barray((j_common_ptr)&r->back, b[c], y, 1, FALSE);
      if (memcmp(x[0], z[0], info->width_in_blocks * sizeof(JBLOCK)) != 0) return false;
    }
  }
  return true;
}

/* May longjmp. False: keep the file as it is. */
static bool recode(recoder *r, const uint8_t *bytes, int64_t size) {
  open_reader(r, &r->in, bytes, (size_t)size);
  if ((r->in.num_components != 1 && r->in.num_components != 3) ||
      r->in.image_width > MAX_PIXELS / r->in.image_height)
    return false;
  jvirt_barray_ptr *from = jpeg_read_coefficients(&r->in);
  if (!complete(&r->in)) return false;
  jpeg_create_compress(&r->out);
  r->out.client_data = r;
  r->out.dest = &r->to;
  jpeg_copy_critical_parameters(&r->in, &r->out);
  r->out.optimize_coding = TRUE; /* what it saves is more than what the markers cost */
  r->out.restart_interval = piece(&r->in);
  jpeg_write_coefficients(&r->out, from);
  jpeg_finish_compress(&r->out);
  open_reader(r, &r->back, r->bytes, r->room - r->to.free_in_buffer);
  jvirt_barray_ptr *to = jpeg_read_coefficients(&r->back);
  return same_tables(&r->in, &r->back) && same_coefficients(r, from, to);
}

static bool try_recode(recoder *r, const uint8_t *bytes, int64_t size) {
  jpeg_std_error(&r->errors);
  r->errors.error_exit = give_up;
  r->errors.emit_message = on_message;
  r->progress.progress_monitor = watch_scans;
  r->to = (struct jpeg_destination_mgr){.init_destination = begin_output,
                                        .empty_output_buffer = no_room,
                                        .term_destination = end_output};
  r->in.err = r->back.err = r->out.err = &r->errors;
  r->in.client_data = r->back.client_data = r->out.client_data = r;
  bool good = setjmp(r->jump) ? false : recode(r, bytes, size);
  jpeg_destroy_decompress(&r->in);
  jpeg_destroy_decompress(&r->back);
  jpeg_destroy_compress(&r->out);
  return good;
}

ii_status ii_jpeg_recode(const uint8_t *bytes, int64_t size, uint8_t **out, int64_t *n,
                         ii_error *err) {
  *out = NULL;
  if (size < 3 || bytes[0] != 0xff || bytes[1] != 0xd8 || bytes[2] != 0xff) return II_OK;
  recoder *r = calloc(1, sizeof *r);
  if (!r) return ii_error_set(err, II_ERR_MEMORY, "no memory to recode an image");
  r->room = (size_t)size * 2 + ROOM;
  r->bytes = malloc(r->room);
  r->no_memory = !r->bytes;
  if (r->bytes && try_recode(r, bytes, size))
    *out = r->bytes, *n = (int64_t)(r->room - r->to.free_in_buffer);
  else
    free(r->bytes);
  ii_status status = II_OK;
  if (r->no_memory) status = ii_error_set(err, II_ERR_MEMORY, "no memory to recode an image");
  free(r);
  const int orientation = *out ? ii_exif_orientation(bytes, size) : 1;
  if (orientation == 1) return status;
  status = ii_jpeg_add_orientation(out, n, orientation, err);
  if (status != II_OK) {
    free(*out);
    *out = NULL;
  }
  return status;
}

ii_status ii_jpeg_add_orientation(uint8_t **jpeg, int64_t *n, int orientation, ii_error *err) {
  /* APP1; TIFF header; a directory of one entry: orientation, 1 short; no more directories */
  const uint8_t exif[] = {0xff,
                          0xe1,
                          0,
                          34,
                          'E',
                          'x',
                          'i',
                          'f',
                          0,
                          0,
                          'I',
                          'I',
                          42,
                          0,
                          8,
                          0,
                          0,
                          0,
                          1,
                          0,
                          0x12,
                          0x01,
                          3,
                          0,
                          1,
                          0,
                          0,
                          0,
                          (uint8_t)orientation,
                          0,
                          0,
                          0,
                          0,
                          0,
                          0,
                          0};
  uint8_t *more = malloc((size_t)*n + sizeof exif);
  if (!more) return ii_error_set(err, II_ERR_MEMORY, "no memory for an image");
  memcpy(more, *jpeg, 2);
  memcpy(more + 2, exif, sizeof exif);
  memcpy(more + 2 + sizeof exif, *jpeg + 2, (size_t)*n - 2);
  free(*jpeg);
  *jpeg = more, *n += (int64_t)sizeof exif;
  return II_OK;
}
