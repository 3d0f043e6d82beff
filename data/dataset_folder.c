#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <stdio.h>
#include <sys/stat.h>
#include "data/class_list.h"

static int by_bytes(const void *a, const void *b) {
  return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool is_image_name(const char *name) {
  static const char *const endings[] = {".jpg", ".jpeg", ".jpe", ".jfif", ".png"};
  const char *dot = strrchr(name, '.');
  for (size_t i = 0; dot && i < sizeof endings / sizeof *endings; i++)
    if (strcasecmp(dot, endings[i]) == 0) return true;
  return false;
}

typedef enum { KIND_FOLDER, KIND_FILE, KIND_OTHER } entry_kind;

/* What dir/entry is; symbolic links count as what they point to. d_type spares a system call for
 * each file where the file system tells it. */
static entry_kind kind_of(const char *dir, const struct dirent *entry) {
  if (entry->d_type == DT_REG) return KIND_FILE;
  if (entry->d_type == DT_DIR) return KIND_FOLDER;
  char path[II_PATH_MAX];
  struct stat st;
  int n = snprintf(path, sizeof path, "%s/%s", dir, entry->d_name);
  if (n >= (int)sizeof path || stat(path, &st) != 0) return KIND_OTHER;
  return S_ISREG(st.st_mode) ? KIND_FILE : S_ISDIR(st.st_mode) ? KIND_FOLDER : KIND_OTHER;
}

static ii_status ignore(ii_dataset *d, const char *dir, const char *name, ii_error *err) {
  if (d->ignored++ > 0) return II_OK;
  if (asprintf(&d->ignored_first, "%s/%s", dir, name) < 0) {
    d->ignored_first = NULL;
    return ii_error_set(err, II_ERR_MEMORY, "no memory for file names");
  }
  return II_OK;
}

/* Collects the names of the wanted kind in dir, sorted; counts the rest as ignored. */
static ii_status list_open(ii_dataset *d, DIR *stream, const char *dir, bool folders, ii_names *out,
                           ii_error *err) {
  for (;;) {
    errno = 0;
    const struct dirent *entry = readdir(stream);
    if (!entry) break;
    if (entry->d_name[0] == '.') continue;
    entry_kind kind = kind_of(dir, entry);
    bool wanted = folders ? kind == KIND_FOLDER : kind == KIND_FILE && is_image_name(entry->d_name);
    II_TRY(wanted ? ii_names_add(out, entry->d_name, err) : ignore(d, dir, entry->d_name, err));
  }
  if (errno)
    return ii_error_set(err, II_ERR_IO, "cannot read the folder '%s': %s", dir, strerror(errno));
  if (out->count > 0) qsort(out->names, (size_t)out->count, sizeof *out->names, by_bytes);
  return II_OK;
}

static ii_status list(ii_dataset *d, const char *dir, bool folders, ii_names *out, ii_error *err) {
  DIR *stream = opendir(dir);
  if (!stream)
    return ii_error_set(err, II_ERR_IO, "cannot open the folder '%s': %s", dir, strerror(errno));
  ii_status status = list_open(d, stream, dir, folders, out, err);
  closedir(stream);
  return status;
}

static ii_status add_files(ii_dataset *d, int32_t label, const char *dir, const ii_names *files,
                           ii_error *err) {
  if (files->count == 0)
    return ii_error_set(err, II_ERR_FORMAT,
                        "the class folder '%s' has no images (.jpg, .jpeg, .jpe, .jfif or .png); "
                        "remove it or fill it",
                        dir);
  for (int64_t i = 0; i < files->count; i++) {
    if (strlen(dir) + strlen(files->names[i]) + 2 > II_PATH_MAX)
      return ii_error_set(err, II_ERR_FORMAT, "the path '%.200s...' is too long", files->names[i]);
    II_TRY(ii_dataset_add(d, files->names[i], label, NULL, err));
  }
  return II_OK;
}

static ii_status add_class(ii_dataset *d, int32_t label, ii_error *err) {
  char dir[II_PATH_MAX];
  if (snprintf(dir, sizeof dir, "%s/%s", d->root, d->classes.names[label]) >= (int)sizeof dir)
    return ii_error_set(err, II_ERR_FORMAT, "the path '%.200s...' is too long", d->root);
  ii_names files = {0};
  ii_status status = list(d, dir, false, &files, err);
  if (status == II_OK) status = add_files(d, label, dir, &files, err);
  ii_names_free(&files);
  return status;
}

static ii_status add_listed_class(ii_dataset *d, ii_names *found, int32_t c, ii_error *err) {
  const char *name = d->classes.names[c];
  char **at = found->count ? bsearch(&name, found->names, (size_t)found->count,
                                     sizeof *found->names, by_bytes)
                           : NULL;
  return at ? add_class(d, c, err) : II_OK;
}

/* Sub-folders that are not on the list; both in byte order. */
static ii_status ignore_others(ii_dataset *d, const ii_names *found, ii_error *err) {
  const size_t n = (size_t)d->classes.count;
  ii_status s = II_OK;
  char **sorted = malloc(n * sizeof *sorted);
  if (!sorted) return ii_error_set(err, II_ERR_MEMORY, "no memory for class names");
  memcpy(sorted, d->classes.names, n * sizeof *sorted);
  qsort(sorted, n, sizeof *sorted, by_bytes);
  for (int64_t i = 0; s == II_OK && i < found->count; i++)
    if (!bsearch(&found->names[i], sorted, n, sizeof *sorted, by_bytes))
      s = ignore(d, d->root, found->names[i], err);
  free(sorted);
  return s;
}

static ii_status add_listed_classes(ii_dataset *d, const char *class_list, ii_error *err) {
  ii_names found = {0};
  ii_status s = ii_class_list_read(class_list, &d->classes, err);
  d->num_classes = d->classes.count;
  if (s == II_OK) s = list(d, d->root, true, &found, err);
  if (s == II_OK) s = ignore_others(d, &found, err);
  for (int32_t c = 0; s == II_OK && c < (int32_t)d->num_classes; c++)
    s = add_listed_class(d, &found, c, err);
  ii_names_free(&found);
  if (s == II_OK && d->count == 0)
    s = ii_error_set(err, II_ERR_FORMAT, "none of the classes of '%s' has a folder in '%s'",
                     class_list, d->root);
  return s;
}

static ii_status add_all_classes(ii_dataset *d, ii_error *err) {
  II_TRY(list(d, d->root, true, &d->classes, err));
  if (d->classes.count == 0)
    return ii_error_set(err, II_ERR_FORMAT,
                        "the folder '%s' has no sub-folders; it needs one for each class", d->root);
  if (d->classes.count > INT32_MAX)
    return ii_error_set(err, II_ERR_FORMAT, "too many classes in '%s'", d->root);
  d->num_classes = d->classes.count;
  for (int32_t c = 0; c < (int32_t)d->num_classes; c++) II_TRY(add_class(d, c, err));
  return II_OK;
}

ii_status ii_dataset_open_folder(const char *dir, const char *class_list, ii_dataset **dataset,
                                 ii_error *err) {
  ii_dataset *d = calloc(1, sizeof *d);
  if (d) d->root = strdup(dir);
  if (!d || !d->root) {
    ii_dataset_free(d);
    return ii_error_set(err, II_ERR_MEMORY, "no memory for a data set");
  }
  d->in_class_folders = true;
  ii_status status = class_list ? add_listed_classes(d, class_list, err) : add_all_classes(d, err);
  if (status != II_OK)
    ii_dataset_free(d);
  else
    *dataset = d;
  return status;
}
