/* How library code talks: it hands finished lines to a callback; programs decide what to print. */
#ifndef II_REPORT_H
#define II_REPORT_H

typedef enum {
  II_SAY_NOTE,     /* a line of its own */
  II_SAY_WARNING,  /* something to look at */
  II_SAY_PROGRESS, /* the state now: a terminal may overwrite it with the next one */
  II_SAY_PULSE     /* like progress, but so frequent that only terminals show it */
} ii_say_kind;

/* Without a line end. line is valid during the call. */
typedef void (*ii_say_fn)(void *user, ii_say_kind kind, const char *line);

typedef struct {
  ii_say_fn fn; /* NULL: silent */
  void *user;
} ii_say;

void ii_say_line(const ii_say *say, ii_say_kind kind, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#endif
