/* Where a test finds its files. */
#ifndef II_TEST_FILES_H
#define II_TEST_FILES_H
#include <stdio.h>
#include <stdlib.h>

/* Opens a file of the folder tests for reading, in binary; `name` is relative to it. The variable
 * II_TEST_FILES names another folder, for programs that were carried to another machine; without it
 * the one of the source tree is used. NULL, after a line that names the file, if there is none; the
 * caller closes. */
static inline FILE *open_test_file(const char *name) {
  char path[1024];
  const char *folder = getenv("II_TEST_FILES");
  snprintf(path, sizeof path, "%.700s/%.300s", folder ? folder : II_TEST_DATA, name);
  FILE *f = fopen(path, "rb");
  if (!f) printf("cannot open %s\n", path);
  return f;
}

#endif
