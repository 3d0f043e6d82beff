/* The validation images of ImageNet-1K as they are downloaded: all in one folder, their classes in
 * a file apart. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "data/mat_synsets.h"

#define MAT "/meta.mat"
#define IDS "/ILSVRC2012_validation_ground_truth.txt"

/* One image: its file and what names its class. */
typedef struct {
  char *file, *wnid;
} truth;

typedef struct {
  truth *v;
  int64_t n, capacity;
} truths;

static ii_status add(truths *t, const char *file, const char *wnid, ii_error *err) {
  II_TRY(ii_dataset_grow(&t->v, &t->capacity, t->n + 1, sizeof *t->v, err));
  truth x = {strdup(file), strdup(wnid)};
  if (!x.file || !x.wnid) {
    free(x.file);
    free(x.wnid);
    return ii_error_set(err, II_ERR_MEMORY, "no memory for class names");
  }
  t->v[t->n++] = x;
  return II_OK;
}

static void free_truths(truths *t) {
  for (int64_t i = 0; i < t->n; i++) {
    free(t->v[i].file);
    free(t->v[i].wnid);
  }
  free(t->v);
}

static bool is_wnid(const char *s) {
  return s[0] == 'n' && strlen(s) == 9 && strspn(s + 1, "0123456789") == 8;
}

/* `file wnid` with any of space, tab and comma between, as in "ILSVRC2012_val_00000001,n01751748
 * 111 108 425 274" of LOC_val_solution.csv; the ending of the file's name may be missing. */
static ii_status add_pair(truths *t, char *line, const char *path, int64_t number, ii_error *err) {
  char *save = NULL, *file = strtok_r(line, " \t,\r\n", &save);
  char *wnid = file ? strtok_r(NULL, " \t,\r\n", &save) : NULL, name[II_PATH_MAX];
  if (!file || (number == 1 && wnid && !strcmp(wnid, "PredictionString"))) return II_OK;
  if (!wnid || !is_wnid(wnid) || strlen(file) > 1000)
    return ii_error_set(err, II_ERR_FORMAT, "%s:%lld: expected a file and a synset like n01440764",
                        path, (long long)number);
  snprintf(name, sizeof name, "%s%s", file, strchr(file, '.') ? "" : ".JPEG");
  return add(t, name, wnid, err);
}

/* A line of the development kit's file: the id of the synset of the next image. */
static ii_status add_id(truths *t, char *line, const ii_names *synsets, const char *path,
                        int64_t number, ii_error *err) {
  char *end, name[64];
  const long id = strtol(line, &end, 10);
  if (end == line || id < 1 || id > synsets->count || end[strspn(end, " \r\n")])
    return ii_error_set(err, II_ERR_FORMAT, "%s:%lld: expected a synset's number in 1..%lld", path,
                        (long long)number, (long long)synsets->count);
  snprintf(name, sizeof name, "ILSVRC2012_val_%08lld.JPEG", (long long)number);
  return add(t, name, synsets->names[id - 1], err);
}

/* Reads pairs, or with synsets given, ids. */
static ii_status read_lines(truths *t, const char *path, const ii_names *synsets, ii_error *err) {
  FILE *f = fopen(path, "r");
  if (!f) return ii_error_set(err, II_ERR_IO, "cannot open '%s': %s", path, strerror(errno));
  char *line = NULL;
  size_t size = 0;
  ii_status s = II_OK;
  for (int64_t number = 1; s == II_OK && getline(&line, &size, f) >= 0; number++)
    s = synsets ? add_id(t, line, synsets, path, number, err)
                : add_pair(t, line, path, number, err);
  if (s == II_OK && ferror(f))
    s = ii_error_set(err, II_ERR_IO, "cannot read '%s': %s", path, strerror(errno));
  free(line);
  fclose(f);
  if (s == II_OK && t->n == 0) s = ii_error_set(err, II_ERR_FORMAT, "'%s' names no image", path);
  return s;
}

static ii_status read_kit(truths *t, const char *folder, ii_error *err) {
  char path[II_PATH_MAX];
  ii_names synsets = {0};
  snprintf(path, sizeof path, "%s" MAT, folder);
  ii_status s = ii_mat_synsets(path, &synsets, err);
  snprintf(path, sizeof path, "%s" IDS, folder);
  if (s == II_OK) s = read_lines(t, path, &synsets, err);
  ii_names_free(&synsets);
  return s;
}

static int by_bytes(const void *a, const void *b) {
  return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The classes are the synsets that occur, in byte order, as in a folder tree of them. */
static ii_status make_classes(ii_dataset *d, const truths *t, ii_error *err) {
  const char **all = malloc((size_t)t->n * sizeof *all);
  if (!all) return ii_error_set(err, II_ERR_MEMORY, "no memory for class names");
  for (int64_t i = 0; i < t->n; i++) all[i] = t->v[i].wnid;
  qsort(all, (size_t)t->n, sizeof *all, by_bytes);
  ii_status s = II_OK;
  for (int64_t i = 0; s == II_OK && i < t->n; i++)
    if (i == 0 || strcmp(all[i], all[i - 1]) != 0) s = ii_names_add(&d->classes, all[i], err);
  free(all);
  d->num_classes = d->classes.count;
  return s;
}

static ii_status add_images(ii_dataset *d, const truths *t, ii_error *err) {
  for (int64_t i = 0; i < t->n; i++) {
    char *const *at = bsearch(&t->v[i].wnid, d->classes.names, (size_t)d->classes.count,
                              sizeof *d->classes.names, by_bytes);
    if (strlen(d->root) + strlen(t->v[i].file) + 2 > II_PATH_MAX)
      return ii_error_set(err, II_ERR_FORMAT, "the path '%.200s...' is too long", d->root);
    II_TRY(ii_dataset_add(d, t->v[i].file, (int32_t)(at - d->classes.names), NULL, err));
  }
  return II_OK;
}

static ii_status build(ii_dataset *d, const char *dir, const char *truth_path, ii_error *err) {
  struct stat st;
  truths t = {0};
  d->root = strdup(dir);
  if (!d->root) return ii_error_set(err, II_ERR_MEMORY, "no memory for a data set");
  const bool kit = stat(truth_path, &st) == 0 && S_ISDIR(st.st_mode);
  ii_status s = kit ? read_kit(&t, truth_path, err) : read_lines(&t, truth_path, NULL, err);
  if (s == II_OK) s = make_classes(d, &t, err);
  if (s == II_OK) s = add_images(d, &t, err);
  free_truths(&t);
  return s;
}

ii_status ii_dataset_open_imagenet_val(const char *dir, const char *truth_path,
                                       ii_dataset **dataset, ii_error *err) {
  ii_dataset *d = calloc(1, sizeof *d);
  if (!d) return ii_error_set(err, II_ERR_MEMORY, "no memory for a data set");
  ii_status s = build(d, dir, truth_path, err);
  if (s != II_OK)
    ii_dataset_free(d);
  else
    *dataset = d;
  return s;
}

bool ii_imagenet_find_truth(const char *root, char *out) {
  static const char *const places[] = {"ILSVRC2012_devkit_t12/data" IDS, "devkit/data" IDS,
                                       "data" IDS, "LOC_val_solution.csv", "val_truth.txt"};
  struct stat st;
  for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
    if (snprintf(out, II_PATH_MAX, "%s/%s", root, places[i]) >= II_PATH_MAX) return false;
    if (stat(out, &st) != 0 || !S_ISREG(st.st_mode)) continue;
    char *ids = strstr(out, IDS);
    if (ids) *ids = 0; /* the folder, for meta.mat is needed too */
    return true;
  }
  return false;
}
