/* Errors: two kinds, kept apart.
 *
 * - What the outside world causes (files, configs, data, memory, devices) is an ii_error: a status
 *   code and one sentence that says what happened, where, and what to do. Functions that can fail
 *   return an ii_status and fill the ii_error they are given. Nothing here prints or exits.
 * - What only a programmer can cause is II_ASSERT: always compiled in; it prints the expression,
 *   the values given and the place, and aborts. */
#ifndef II_ERROR_H
#define II_ERROR_H
#include <stdbool.h>
#include <stddef.h>

typedef enum {
  II_OK = 0,
  II_ERR_ARG,         /* a value from a user that cannot be used */
  II_ERR_IO,          /* a file or folder that cannot be read or written */
  II_ERR_FORMAT,      /* a file that is damaged or not what it should be */
  II_ERR_MEMORY,      /* no memory left, on the host or the device */
  II_ERR_DEVICE,      /* the device or one of its libraries failed */
  II_ERR_UNSUPPORTED, /* a combination that this build or engine does not have */
  II_ERR_INTERRUPTED  /* stopped on request */
} ii_status;

#define II_ERROR_TEXT 1024

typedef struct {
  ii_status status;
  char text[II_ERROR_TEXT]; /* one sentence, no newline; empty when status is II_OK */
} ii_error;

/* Fills *err (may be NULL) with status and the printf-style sentence, unless it already holds an
 * error: the first cause is the one that is kept. Returns status. */
ii_status ii_error_set(ii_error *err, ii_status status, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "prefix: " in front of the sentence in *err, to say where. Returns err->status. */
ii_status ii_error_prefix(ii_error *err, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* Empties *err. */
void ii_error_clear(ii_error *err);

/* Prints the place and the formatted values to stderr and aborts; use II_ASSERT. */
void ii_assert_fail(const char *file, int line, const char *expr, const char *fmt, ...)
    __attribute__((format(printf, 4, 5), noreturn));

/* II_ASSERT(cond, "format with values", ...): a programmer error when cond is false. */
#define II_ASSERT(cond, ...)                                                                       \
  do {                                                                                             \
    if (!(cond)) ii_assert_fail(__FILE__, __LINE__, #cond, __VA_ARGS__);                           \
  } while (0)

/* Returns from the calling function with the status of expr when that is not II_OK. */
#define II_TRY(expr)                                                                               \
  do {                                                                                             \
    ii_status ii_try_ = (expr);                                                                    \
    if (ii_try_ != II_OK) return ii_try_;                                                          \
  } while (0)

#endif
