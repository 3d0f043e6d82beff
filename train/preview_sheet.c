#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "train/label_font.h"
#include "train/preview.h"

enum { GAP = 8, TEXT = 1024 + II_PATH_MAX, MAX_LINES = 64, MAX_PIXELS = 1 << 28 };

static const uint8_t PAPER[3] = {245, 245, 245}, INK[3] = {25, 25, 25};

/* ---- words -----------------------------------------------------------------------------------*/

typedef struct {
  char *out;
  size_t size, used;
} text;

/* A line of its own; what has no room is left out. */
static void line(text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void line(text *t, const char *fmt, ...) {
  va_list args;
  if (t->used && t->used + 1 < t->size) t->out[t->used++] = '\n';
  va_start(args, fmt);
  const int n = vsnprintf(t->out + t->used, t->size - t->used, fmt, args);
  va_end(args);
  t->used += (size_t)n < t->size - t->used ? (size_t)n : t->size - t->used - 1;
}

static const char *filter_name(ii_filter f) {
  return f == II_FILTER_BILINEAR ? "bilinear" : "bicubic";
}

static void box_line(text *t, const char *what, ii_box b, const char *more) {
  line(t, "%s %lldx%lld at %lld,%lld%s%s", what, (long long)b.w, (long long)b.h, (long long)b.left,
       (long long)b.top, *more ? " " : "", more);
}

static bool is_geometric(ii_augment_op op) {
  return op == II_AUG_ROTATE || (op >= II_AUG_SHEAR_X && op <= II_AUG_TRANSLATE_Y);
}

static bool has_argument(ii_augment_op op) {
  return op != II_AUG_AUTO_CONTRAST && op != II_AUG_EQUALIZE && op != II_AUG_INVERT;
}

static void describe_draw(text *t, const ii_preview_cell *c) {
  if (c->plan.window)
    box_line(t, "window", c->plan.resize.box, "");
  else
    box_line(t, "crop", c->plan.resize.box, filter_name(c->plan.resize.filter));
  if (c->plan.resize.mirror) line(t, "mirrored");
  for (int i = 0; i < c->steps.count; i++) {
    const ii_augment_step *s = &c->steps.steps[i];
    const char *filter = is_geometric(s->op) ? filter_name(c->steps.filters[i]) : "";
    if (has_argument(s->op))
      line(t, "%s %.4g%s%s", ii_augment_op_name(s->op), s->arg, *filter ? " " : "", filter);
    else
      line(t, "%s", ii_augment_op_name(s->op));
  }
}

static void describe_batch(text *t, const ii_preview_cell *c) {
  for (int64_t i = 0; i < c->erased; i++) {
    const ii_erase_rect *r = &c->rects[i];
    box_line(t, "erased", (ii_box){r->top, r->left, r->height, r->width}, "");
  }
  const ii_mix *m = &c->mix;
  if (m->lam == 1)
    line(t, "not mixed");
  else
    line(t, "%s %.3f with image %lld", m->cutmix ? "CutMix" : "Mixup", m->lam,
         (long long)c->partner);
  if (m->lam != 1 && m->cutmix)
    box_line(t, "pasted", (ii_box){m->y0, m->x0, m->y1 - m->y0, m->x1 - m->x0}, "");
}

void ii_preview_describe(const ii_preview *p, int64_t row, int64_t column, char *out, size_t size) {
  const ii_preview_cell *c = &p->cells[row * p->columns + column];
  const ii_preview_row *r = &p->row[row];
  const ii_resize_job *job = &c->plan.resize;
  text t = {out, size, 0};
  *out = 0;
  switch (c->kind) {
  case II_PREVIEW_ORIGINAL:
    line(&t, "%s", r->name);
    line(&t, "%lldx%lld", (long long)r->width, (long long)r->height);
    if (r->label >= 0) line(&t, "image %lld label %d", (long long)r->sample, (int)r->label);
    break;
  case II_PREVIEW_EVAL:
    line(&t, "resize %lldx%lld %s", (long long)job->out_w, (long long)job->out_h,
         filter_name(job->filter));
    box_line(&t, "view", job->view, "");
    break;
  case II_PREVIEW_DRAW:
    describe_draw(&t, c);
    break;
  case II_PREVIEW_BATCH:
    describe_batch(&t, c);
    break;
  }
}

void ii_preview_heading(const ii_preview *p, int64_t column, char *out, size_t size) {
  const ii_preview_cell *c = &p->cells[column];
  if (c->kind == II_PREVIEW_ORIGINAL)
    snprintf(out, size, "original");
  else if (c->kind == II_PREVIEW_EVAL)
    snprintf(out, size, "evaluation");
  else
    snprintf(out, size, "epoch %lld%s", (long long)c->epoch,
             c->kind == II_PREVIEW_BATCH ? " in its batch" : "");
}

/* ---- paper -----------------------------------------------------------------------------------*/

typedef struct {
  const ii_preview *p;
  ii_image *sheet;
  int64_t scale; /* of the font */
  bool captions;
} layout;

/* The next line of *s that fits into a cell: its length, *s behind it; -1 at the end. Breaks at
 * spaces, and inside words that are longer than a line. */
static int64_t next_line(const layout *l, const char **s, const char **begin) {
  const int64_t most = l->p->cell / (II_LABEL_WIDTH * l->scale);
  const int64_t width = most < 1 ? 1 : most;
  while (**s == ' ' || **s == '\n') (*s)++;
  if (!**s) return -1;
  *begin = *s;
  int64_t n = (int64_t)strcspn(*s, "\n");
  if (n > width) {
    n = width;
    while (n > 0 && (*s)[n] != ' ') n--;
    if (n == 0) n = width;
  }
  *s += n;
  return n;
}

static int64_t count_lines(const layout *l, const char *words) {
  const char *begin;
  int64_t n = 0;
  while (n < MAX_LINES && next_line(l, &words, &begin) >= 0) n++;
  return n;
}

/* What the captions of a row need, or with row -1 the headings. */
static int64_t caption_height(const layout *l, int64_t row) {
  char words[TEXT];
  int64_t most = 0;
  for (int64_t c = 0; l->captions && c < l->p->columns; c++) {
    if (row < 0)
      ii_preview_heading(l->p, c, words, sizeof words);
    else
      ii_preview_describe(l->p, row, c, words, sizeof words);
    const int64_t n = count_lines(l, words);
    most = n > most ? n : most;
  }
  return most * II_LABEL_HEIGHT * l->scale + (most ? GAP / 2 : 0);
}

static void write_words(const layout *l, const char *words, int64_t x, int64_t y) {
  const char *begin;
  int64_t n;
  for (int64_t i = 0; i < MAX_LINES && (n = next_line(l, &words, &begin)) >= 0; i++)
    ii_label_draw(l->sheet, begin, n, x, y + i * II_LABEL_HEIGHT * l->scale, l->scale, INK);
}

/* Each pixel as a square: what a whole multiple of the size needs. */
static void magnify(const ii_image *from, int64_t times, uint8_t *out) {
  const int64_t w = from->w * times;
  for (int64_t y = 0; y < from->h * times; y++)
    for (int64_t x = 0; x < w; x++)
      memcpy(out + (y * w + x) * 3, from->data + (y / times * from->w + x / times) * 3, 3);
}

/* The picture of a cell at (x, y); `spare` is room for one. */
static ii_status put(const layout *l, ii_resizer *resizer, const ii_preview_cell *c, int64_t x,
                     int64_t y, ii_image *spare, ii_error *err) {
  const ii_image *img = &c->pixels;
  const int64_t side = l->p->cell;
  if (c->kind != II_PREVIEW_ORIGINAL && img->w != side) {
    II_TRY(ii_image_reserve(spare, side, side, err));
    if (side % img->w == 0) {
      magnify(img, side / img->w, spare->data);
    } else {
      const ii_resize_job job = {.src = img,
                                 .box = {0, 0, img->h, img->w},
                                 .filter = II_FILTER_BICUBIC,
                                 .out_w = side,
                                 .out_h = side,
                                 .view = {0, 0, side, side}};
      II_TRY(ii_resize(resizer, &job, spare->data, err));
    }
    img = spare;
  }
  for (int64_t i = 0; i < img->h; i++)
    memcpy(l->sheet->data + ((y + i) * l->sheet->w + x) * 3, img->data + i * img->w * 3,
           (size_t)(img->w * 3));
  return II_OK;
}

/* A colour of its own for the crop of each epoch. */
static const uint8_t *crop_colour(int64_t epoch) {
  static const uint8_t colours[][3] = {{230, 25, 75}, {60, 180, 75},  {255, 200, 25},
                                       {0, 130, 200}, {245, 130, 48}, {145, 30, 180}};
  return colours[epoch % (int64_t)(sizeof colours / sizeof *colours)];
}

/* Outlines where the draws of a row were cut out, in the original at (x, y). */
static void outline_crops(const layout *l, int64_t row, int64_t x, int64_t y) {
  const ii_preview *p = l->p;
  const ii_preview_cell *c = &p->cells[row * p->columns];
  const double sx = (double)c->pixels.w / (double)p->row[row].width;
  const double sy = (double)c->pixels.h / (double)p->row[row].height;
  for (int64_t i = 1; i < p->columns; i++) {
    if (c[i].kind != II_PREVIEW_DRAW) continue;
    const ii_box b = c[i].plan.resize.box;
    const int64_t left = (int64_t)(sx * (double)b.left), top = (int64_t)(sy * (double)b.top);
    int64_t right = (int64_t)(sx * (double)(b.left + b.w)) - 1;
    int64_t bottom = (int64_t)(sy * (double)(b.top + b.h)) - 1;
    right = right < left ? left : right, bottom = bottom < top ? top : bottom;
    for (int64_t v = 0; v < c->pixels.h; v++)
      for (int64_t u = 0; u < c->pixels.w; u++) {
        const bool side = (u == left || u == right) && v >= top && v <= bottom;
        const bool edge = (v == top || v == bottom) && u >= left && u <= right;
        if (side || edge)
          memcpy(l->sheet->data + ((y + v) * l->sheet->w + x + u) * 3, crop_colour(c[i].epoch), 3);
      }
  }
}

/* A mark of that colour over the column of the epoch. */
static void mark_column(const layout *l, int64_t column, int64_t y) {
  const ii_preview_cell *c = &l->p->cells[column];
  if (c->kind != II_PREVIEW_DRAW) return;
  const int64_t x = GAP + column * (l->p->cell + GAP);
  for (int64_t v = y - 3; v < y - 1; v++)
    for (int64_t u = x; u < x + l->p->cell; u++)
      memcpy(l->sheet->data + (v * l->sheet->w + u) * 3, crop_colour(c->epoch), 3);
}

static ii_status fill_sheet(const layout *l, ii_resizer *resizer, ii_box *at, ii_image *spare,
                            ii_error *err) {
  const ii_preview *p = l->p;
  char words[TEXT];
  int64_t y = GAP;
  for (int64_t c = 0; l->captions && c < p->columns; c++) {
    ii_preview_heading(p, c, words, sizeof words);
    write_words(l, words, GAP + c * (p->cell + GAP), y);
  }
  y += caption_height(l, -1);
  for (int64_t c = 0; l->captions && c < p->columns; c++) mark_column(l, c, y);
  for (int64_t r = 0; r < p->rows; r++) {
    for (int64_t c = 0; c < p->columns; c++) {
      const int64_t x = GAP + c * (p->cell + GAP);
      II_TRY(put(l, resizer, &p->cells[r * p->columns + c], x, y, spare, err));
      if (at) at[r * p->columns + c] = (ii_box){y, x, p->cell, p->cell};
      if (!l->captions) continue;
      if (c == 0) outline_crops(l, r, x, y);
      ii_preview_describe(p, r, c, words, sizeof words);
      write_words(l, words, x, y + p->cell + GAP / 2);
    }
    y += p->cell + caption_height(l, r) + GAP;
  }
  return II_OK;
}

ii_status ii_preview_sheet(const ii_preview *p, bool captions, ii_image *sheet, ii_box **at,
                           ii_error *err) {
  const layout l = {p, sheet, p->cell >= 384 ? 2 : 1, captions};
  const int64_t w = GAP + p->columns * (p->cell + GAP);
  int64_t h = GAP + caption_height(&l, -1);
  for (int64_t r = 0; r < p->rows; r++) h += p->cell + caption_height(&l, r) + GAP;
  if (h > MAX_PIXELS / w)
    return ii_error_set(err, II_ERR_ARG,
                        "a sheet of %lld x %lld pixels is too large: take smaller pictures or "
                        "fewer images",
                        (long long)w, (long long)h);
  II_TRY(ii_image_reserve(sheet, w, h, err));
  for (int64_t i = 0; i < w * h * 3; i++) sheet->data[i] = PAPER[i % 3];
  ii_box *places = at ? calloc((size_t)(p->rows * p->columns), sizeof *places) : NULL;
  ii_resizer *resizer = NULL;
  ii_image spare = {0};
  ii_status s = at && !places ? ii_error_set(err, II_ERR_MEMORY, "no memory for the sheet")
                              : ii_resizer_new(&resizer, err);
  if (s == II_OK) s = fill_sheet(&l, resizer, places, &spare, err);
  ii_resizer_free(resizer);
  ii_image_free(&spare);
  if (s != II_OK)
    free(places);
  else if (at)
    *at = places;
  return s;
}
