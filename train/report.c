#include "train/report.h"
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

void ii_say_line(const ii_say *say, ii_say_kind kind, const char *fmt, ...) {
  char line[2048];
  va_list args;
  if (!say || !say->fn) return;
  va_start(args, fmt);
  vsnprintf(line, sizeof line, fmt, args);
  va_end(args);
  say->fn(say->user, kind, line);
}
