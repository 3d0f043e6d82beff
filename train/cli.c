#include "train/cli.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

ii_cli ii_cli_begin(int argc, char *const *argv, const ii_flag *flags) {
  return (ii_cli){.argc = argc, .at = 1, .argv = argv, .flags = flags};
}

/* Number of single-letter changes between a[n] and the text b (Levenshtein). */
static size_t distance(const char *a, size_t n, const char *b) {
  enum { LONGEST = 64 };
  size_t row[LONGEST + 1], m = strlen(b);
  if (m > LONGEST || n > LONGEST) return LONGEST;
  for (size_t j = 0; j <= m; j++) row[j] = j;
  for (size_t i = 1; i <= n; i++) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= m; j++) {
      size_t best = diagonal + (a[i - 1] != b[j - 1]);
      if (row[j] + 1 < best) best = row[j] + 1;
      if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
      diagonal = row[j];
      row[j] = best;
    }
  }
  return row[m];
}

static ii_status unknown(const ii_cli *c, const char *arg, size_t n, ii_error *err) {
  const ii_flag *nearest = c->flags;
  for (const ii_flag *f = c->flags; f->name; f++)
    if (distance(arg, n, f->name) < distance(arg, n, nearest->name)) nearest = f;
  return ii_error_set(err, II_ERR_ARG,
                      "unknown flag %.*s; the nearest one is %s (--help lists all)",
                      n > 200 ? 200 : (int)n, arg, nearest->name);
}

ii_status ii_cli_next(ii_cli *c, int *flag, const char **value, ii_error *err) {
  *flag = -1;
  *value = NULL;
  if (c->at >= c->argc) return II_OK;
  const char *arg = c->argv[c->at++];
  const size_t n = strcspn(arg, "=");
  if (arg[0] != '-')
    return ii_error_set(err, II_ERR_ARG, "\"%.200s\" is not a flag (--help lists the flags)", arg);
  int i = 0;
  while (c->flags[i].name && (strlen(c->flags[i].name) != n || strncmp(c->flags[i].name, arg, n)))
    i++;
  const ii_flag *f = &c->flags[i];
  if (!f->name) return unknown(c, arg, n, err);
  if (!f->value && arg[n]) return ii_error_set(err, II_ERR_ARG, "%s takes no value", f->name);
  if (f->value && arg[n])
    *value = arg + n + 1;
  else if (f->value && c->at < c->argc)
    *value = c->argv[c->at++];
  if (f->value && !*value)
    return ii_error_set(err, II_ERR_ARG, "%s needs a value: %s %s", f->name, f->name, f->value);
  *flag = i;
  return II_OK;
}

int ii_cli_columns(FILE *terminal) {
  struct winsize size;
  const bool told = ioctl(fileno(terminal), TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return told ? size.ws_col : 80;
}

ii_status ii_cli_flush(FILE *to, ii_error *err) {
  if (fflush(to) == 0 && !ferror(to)) return II_OK;
  return ii_error_set(err, II_ERR_IO, "the result cannot be printed: %s", strerror(errno));
}

void ii_cli_help(const ii_flag *flags, FILE *to) {
  for (const ii_flag *f = flags; f->name; f++) {
    char head[64];
    snprintf(head, sizeof head, "%s%s%s", f->name, f->value ? " " : "", f->value ? f->value : "");
    fprintf(to, "  %-22s %s\n", head, f->help);
  }
}
