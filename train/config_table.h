/* The rows of options.def as data, for the files config*.c alone. Everybody else: config.h. */
#ifndef II_CONFIG_TABLE_H
#define II_CONFIG_TABLE_H
#include "train/config.h"

typedef enum {
  II_KIND_BOOL,
  II_KIND_INT,
  II_KIND_DOUBLE,
  II_KIND_STRING,
  II_KIND_ENUM,
  II_KIND_INTS,
  II_KIND_DOUBLES
} ii_kind;

typedef struct {
  const char *section, *name, *help;
  ii_kind kind;
  size_t offset;          /* of the value in ii_config */
  const char *def;        /* as written in the table: "5e-4", "4, 4, 18, 4", ... */
  double min, max;        /* of the number, or of each element of a list */
  int64_t nmin, nmax;     /* number of elements of a list */
  const char *choices[6]; /* of an enum; NULL after the last */
} ii_option;

extern const ii_option ii_config_options[]; /* in the order of options.def */
extern const int64_t ii_config_option_count;

/* The row of section.name, or NULL. */
const ii_option *ii_config_find(const char *section, const char *name);

/* The known key nearest to key (which may lack its section or carry a wrong one), written into
 * nearest as "section.name" (cut to size). */
void ii_config_nearest(const char *key, char *nearest, size_t size);

/* Writes what values the option takes: "integer, 1 to 256", "adamw, sgd", ... (cut to size). */
void ii_config_kind_text(const ii_option *option, char *text, size_t size);

/* Whether there is a section of this name. */
bool ii_config_is_section(const char *section);

/* The member of *cfg that option describes. */
void *ii_config_member(ii_config *cfg, const ii_option *option);

#endif
