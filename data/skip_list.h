/* Skip lists: which images of a data set cannot be used, as found by `scan`. A text file, one image
 * per line: name, size in bytes, CRC-32C in 8 hexadecimal digits, reason, separated by tabs; lines
 * that begin with '#' are comments. The name is that of ii_dataset_name.
 * After a line that is II_SKIP_ESCAPES, names and reasons have \\ for a backslash, \t for a tab, \n
 * and \r for line ends, \# for a '#' at the beginning. Lists without that line are older: every
 * character in them stands for itself. */
#ifndef II_SKIP_LIST_H
#define II_SKIP_LIST_H
#include <stdio.h>
#include "data/dataset.h"

#define II_SKIP_ESCAPES "# escapes: \\\\ \\t \\n \\r \\#"

/* Writes text to f as it stands in a list with II_SKIP_ESCAPES. */
void ii_skip_write_text(FILE *f, const char *text);

typedef struct {
  int64_t listed;  /* lines */
  int64_t skipped; /* images left out */
  int64_t changed; /* images on the list with other bytes than then: they are kept */
  int64_t unknown; /* lines without an image in the data set */
} ii_skip_result;

/* Leaves the listed images out of the data set, as long as their bytes are still those that were
 * scanned. Before the data set is used, and once. Errors: II_ERR_IO, II_ERR_FORMAT (with the line;
 * or if no image would remain), II_ERR_MEMORY. */
ii_status ii_dataset_skip(ii_dataset *dataset, const char *path, ii_error *err);

/* What the skip list of the data set did; all 0 without one. Belongs to the data set. */
const ii_skip_result *ii_dataset_skip_result(const ii_dataset *dataset);

#endif
