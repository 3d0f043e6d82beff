#include "autograd/error.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

ii_status ii_error_set(ii_error *err, ii_status status, const char *fmt, ...) {
  if (!err || err->status != II_OK) return status;
  err->status = status;
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(err->text, sizeof err->text, fmt, ap);
  va_end(ap);
  return status;
}

ii_status ii_error_prefix(ii_error *err, const char *fmt, ...) {
  char head[II_ERROR_TEXT / 2], old[II_ERROR_TEXT];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(head, sizeof head, fmt, ap);
  va_end(ap);
  memcpy(old, err->text, sizeof old);
  int n = snprintf(err->text, sizeof err->text, "%s: ", head);
  /* the tail is cut when the two do not fit: the place matters more than the last words */
  snprintf(err->text + n, sizeof err->text - (size_t)n, "%.*s", (int)(sizeof err->text) - n - 1,
           old);
  return err->status;
}

void ii_error_clear(ii_error *err) {
  err->status = II_OK;
  err->text[0] = 0;
}

void ii_assert_fail(const char *file, int line, const char *expr, const char *fmt, ...) {
  fprintf(stderr, "%s:%d: internal error: %s is false: ", file, line, expr);
  va_list ap;
  va_start(ap, fmt);
  vfprintf(stderr, fmt, ap);
  va_end(ap);
  fputc('\n', stderr);
  abort();
}
