/* JPEG through libjpeg-turbo. Its errors arrive by longjmp; its warnings are ignored, as Pillow
 * ignores them. */
#include "data/decode.h"
#include <stdlib.h>
#include <string.h>
#include <jerror.h>

/* A progressive file repeats passes over the whole picture; real ones have about ten. A hostile one
 * could otherwise keep a thread busy for hours with a few kilobytes. */
#define MAX_SCANS 100

/* The library's upsampling of colours goes wrong on partial rows of one or two colour samples, each
 * of which is up to 4 pixels wide. */
#define MIN_COLUMNS 16

static void fail(j_common_ptr c) {
  ii_decoder *d = c->client_data;
  char text[JMSG_LENGTH_MAX];
  c->err->format_message(c, text);
  snprintf(d->message, sizeof d->message, "damaged JPEG: %s", text);
  d->status = c->err->msg_code == JERR_OUT_OF_MEMORY ? II_ERR_MEMORY : II_ERR_FORMAT;
  longjmp(d->jump, 1);
}

static void fail_with(ii_decoder *d, const char *message) {
  snprintf(d->message, sizeof d->message, "%s", message);
  d->status = II_ERR_FORMAT;
  longjmp(d->jump, 1);
}

static void ignore_message(j_common_ptr c, int level) {}
static void ignore_output(j_common_ptr c) {}
static void source_init(j_decompress_ptr j) {}
static void source_end(j_decompress_ptr j) {}

static boolean source_fill(j_decompress_ptr j) {
  static const JOCTET end_of_image[2] = {0xff, JPEG_EOI};
  ii_decoder *d = j->client_data;
  d->ended = true;
  if (!d->options.allow_truncated) fail_with(d, "truncated JPEG: the file ends early");
  j->src->next_input_byte = end_of_image;
  j->src->bytes_in_buffer = 2;
  return TRUE;
}

static void source_skip(j_decompress_ptr j, long n) {
  if (n <= 0) return;
  size_t left = j->src->bytes_in_buffer, skip = (size_t)n < left ? (size_t)n : left;
  j->src->next_input_byte += skip;
  j->src->bytes_in_buffer -= skip;
}

static void watch_scans(j_common_ptr c) {
  if (((j_decompress_ptr)c)->input_scan_number > MAX_SCANS)
    fail_with(c->client_data, "damaged JPEG: more than 100 scans");
}

static ii_status report(ii_decoder *d, ii_error *err) {
  return ii_error_set(err, d->status, "%s", d->message);
}

/* A decompressor as if nothing had been read before: the library keeps the tables of one picture
 * for the next, so that a damaged file without tables of its own would look different after
 * different files. May longjmp. */
static void renew(ii_decoder *d) {
  jpeg_destroy_decompress(&d->jpeg);
  jpeg_create_decompress(&d->jpeg);
  d->jpeg.client_data = d; /* creation may have cleared it */
  d->jpeg.src = &d->jpeg_src;
  d->jpeg.progress = &d->jpeg_progress;
}

ii_status ii_decode_jpeg_open(ii_decoder *d, ii_error *err) {
  d->jpeg.err = jpeg_std_error(&d->jpeg_err);
  d->jpeg_err.error_exit = fail;
  d->jpeg_err.emit_message = ignore_message;
  d->jpeg_err.output_message = ignore_output;
  d->jpeg.client_data = d;
  if (setjmp(d->jump)) {
    jpeg_destroy_decompress(&d->jpeg);
    return report(d, err);
  }
  d->jpeg_src = (struct jpeg_source_mgr){.init_source = source_init,
                                         .fill_input_buffer = source_fill,
                                         .skip_input_data = source_skip,
                                         .resync_to_restart = jpeg_resync_to_restart,
                                         .term_source = source_end};
  d->jpeg_progress.progress_monitor = watch_scans;
  renew(d);
  return II_OK;
}

void ii_decode_jpeg_close(ii_decoder *d) {
  jpeg_destroy_decompress(&d->jpeg);
}

/* round(a * b / 255), exactly */
static inline int mul_div_255(int a, int b) {
  int t = a * b + 128;
  return ((t >> 8) + t) >> 8;
}

static inline uint8_t clip8(int v) {
  return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

/* Stored CMYK is taken as inverted, whatever the file says (Pillow's rawmode "CMYK;I"); then
 * R = (255 - K) - (255 - K) C / 255, and so on. */
static void cmyk_to_rgb(const uint8_t *in, uint8_t *out, int64_t w) {
  for (int64_t x = 0; x < w; x++, in += 4, out += 3) {
    int white = in[3]; /* 255 - K with K = 255 - stored */
    for (int c = 0; c < 3; c++) out[c] = clip8(white - mul_div_255(255 - in[c], white));
  }
}

static void read_rows(ii_decoder *d) {
  struct jpeg_decompress_struct *j = &d->jpeg;
  int64_t stride = d->at.w * 3;
  bool cmyk = j->out_color_space == JCS_CMYK;
  for (int64_t y = 0; y < d->at.h; y++) {
    uint8_t *out = d->img->data + y * stride;
    JSAMPROW row = cmyk ? d->cmyk.data : out;
    if (jpeg_read_scanlines(j, &row, 1) != 1) fail_with(d, "damaged JPEG: a row is missing");
    if (cmyk) cmyk_to_rgb(row, out, d->at.w);
  }
}

/* Whether the library will smooth over what a progressive file has not said (yet), with a look at
 * pixels further away than a partial decode keeps. */
static bool smoothed(const ii_decoder *d) {
  const struct jpeg_decompress_struct *j = &d->jpeg;
  if (!j->coef_bits) return false; /* not progressive */
  if (d->ended) return true;
  for (int c = 0; c < j->num_components; c++)
    for (int k = 0; k < DCTSIZE2; k++)
      if (j->coef_bits[c][k] != 0) return true;
  return false;
}

/* Narrows the decoding to the columns of d->part and passes over the rows above it. Upsampling of
 * the colours looks one pixel to the left and right, so one more is asked for on both sides, but
 * none that is hidden: the border of what is asked for counts as one of the picture. Rows are right
 * as they are. */
static void narrow(ii_decoder *d) {
  struct jpeg_decompress_struct *j = &d->jpeg;
  ii_box part = d->part, *at = &d->at;
  *at = (ii_box){0, 0, j->output_height, j->output_width};
  if (smoothed(d)) return;
  int64_t from = part.left > d->hidden ? part.left - 1 : d->hidden;
  int64_t to = part.left + part.w < at->w ? part.left + part.w + 1 : at->w;
  if (to - from < MIN_COLUMNS) to = from + MIN_COLUMNS < at->w ? from + MIN_COLUMNS : at->w;
  if (to - from < MIN_COLUMNS) from = to - MIN_COLUMNS;
  if (from < d->hidden) from = d->hidden;
  JDIMENSION left = (JDIMENSION)from, width = (JDIMENSION)(to - from);
  if (width < j->output_width) {
    jpeg_crop_scanline(j, &left, &width);
    at->left = left, at->w = width;
  }
  at->top = part.top, at->h = part.h;
  if (part.top > 0 && jpeg_skip_scanlines(j, (JDIMENSION)part.top) != (JDIMENSION)part.top)
    fail_with(d, "damaged JPEG: rows are missing");
}

static ii_status check_kind(const ii_decoder *d, ii_error *err) {
  const struct jpeg_decompress_struct *j = &d->jpeg;
  II_TRY(ii_decode_check_size(d, j->image_width, j->image_height, err));
  if (j->num_components != 1 && j->num_components != 3 && j->num_components != 4)
    return ii_error_set(err, II_ERR_FORMAT, "a JPEG with %d colour components is not supported",
                        j->num_components);
  return II_OK;
}

static void read_header(ii_decoder *d, const uint8_t *bytes, int64_t n) {
  renew(d);
  d->jpeg_src.next_input_byte = bytes;
  d->jpeg_src.bytes_in_buffer = (size_t)n;
  jpeg_read_header(&d->jpeg, TRUE);
}

ii_status ii_decode_jpeg_header(ii_decoder *d, int64_t *w, int64_t *h, ii_error *err) {
  struct jpeg_decompress_struct *j = &d->jpeg;
  if (setjmp(d->jump)) {
    jpeg_abort_decompress(j); /* also gives back what the library took for this image */
    return report(d, err);
  }
  read_header(d, d->bytes, d->n);
  *w = j->image_width, *h = j->image_height;
  return check_kind(d, err);
}

/* Between narrowing and the pixels: the parts that may fail with an ii_error of their own. */
static ii_status reserve(ii_decoder *d, ii_error *err) {
  if (d->jpeg.out_color_space == JCS_CMYK) II_TRY(ii_bytes_reserve(&d->cmyk, d->at.w * 4, err));
  return ii_image_reserve(d->img, d->at.w, d->at.h, err);
}

/* From now on a part of the picture is the picture. */
static void continue_with_cut(ii_decoder *d, ii_box box) {
  J_COLOR_SPACE space = d->jpeg.jpeg_color_space; /* the markers that told it were left out */
  read_header(d, d->cut.data, d->cut.size);
  d->jpeg.jpeg_color_space = space;
  d->part.left -= box.left, d->part.top -= box.top;
}

ii_status ii_decode_jpeg_pixels(ii_decoder *d, ii_error *err) {
  struct jpeg_decompress_struct *j = &d->jpeg;
  ii_box cut;
  d->hidden = 0;
  II_TRY(ii_decode_jpeg_cut(d, &cut, err));
  if (setjmp(d->jump)) {
    jpeg_abort_decompress(j);
    return report(d, err);
  }
  if (cut.h > 0) continue_with_cut(d, cut);
  j->out_color_space = j->num_components == 4 ? JCS_CMYK : JCS_RGB;
  j->dct_method = JDCT_ISLOW;
  j->do_fancy_upsampling = TRUE;
  jpeg_start_decompress(j);
  narrow(d);
  ii_status status = reserve(d, err);
  if (status == II_OK) read_rows(d);
  d->at.left += cut.left, d->at.top += cut.top;
  /* not jpeg_finish_decompress: what comes after the last row is of no interest */
  jpeg_abort_decompress(j);
  return status;
}
