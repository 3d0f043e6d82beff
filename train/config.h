/* The configuration of a run: defaults, .cfg files, command-line overrides, checks, documentation.
 *
 * options.def is the one table of keys; everything here is generated from it. A key is read as
 * cfg.section.name (cfg.model.channels). An ii_config is plain data without pointers: copy it by
 * assignment, free nothing.
 *
 * Order of use: ii_config_load, ii_config_set for each --set, ii_config_check, then read. Errors
 * are one sentence with file and line, and with the nearest known key where a name is unknown.
 * All functions are thread-safe as long as two threads do not write one ii_config. */
#ifndef II_CONFIG_H
#define II_CONFIG_H
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include "autograd/error.h"

#define II_CONFIG_STRING  1024    /* bytes of a string value, with its final 0 */
#define II_CONFIG_LIST    16      /* most elements of a list value */
#define II_CONFIG_CLASSES 1000000 /* most that model.num_classes can be */

typedef struct {
  int64_t count;
  int64_t v[II_CONFIG_LIST]; /* the first count are set, the others 0 */
} ii_int_list;

typedef struct {
  int64_t count;
  double v[II_CONFIG_LIST]; /* the first count are set, the others 0 */
} ii_double_list;

/* The choices of a key with fixed values: ii_<section>_<name>_<choice>, for example
 * cfg.model.core_op == ii_model_core_op_DCNv4. Counted from 0 in the order of the table. */
#define II_SECTION(section, help)
#define II_SECTION_END(section)
#define II_BOOL(section, name, def, help)
#define II_INT(section, name, def, min, max, help)
#define II_DOUBLE(section, name, def, min, max, help)
#define II_STRING(section, name, def, help)
#define II_ENUM2(section, name, def, a, b, help)                                                   \
  enum { ii_##section##_##name##_##a, ii_##section##_##name##_##b };
#define II_ENUM3(section, name, def, a, b, c, help)                                                \
  enum { ii_##section##_##name##_##a, ii_##section##_##name##_##b, ii_##section##_##name##_##c };
#define II_ENUM4(section, name, def, a, b, c, d, help)                                             \
  enum {                                                                                           \
    ii_##section##_##name##_##a,                                                                   \
    ii_##section##_##name##_##b,                                                                   \
    ii_##section##_##name##_##c,                                                                   \
    ii_##section##_##name##_##d                                                                    \
  };
#define II_ENUM5(section, name, def, a, b, c, d, e, help)                                          \
  enum {                                                                                           \
    ii_##section##_##name##_##a,                                                                   \
    ii_##section##_##name##_##b,                                                                   \
    ii_##section##_##name##_##c,                                                                   \
    ii_##section##_##name##_##d,                                                                   \
    ii_##section##_##name##_##e                                                                    \
  };
#define II_INTS(section, name, nmin, nmax, min, max, def, help)
#define II_DOUBLES(section, name, nmin, nmax, min, max, def, help)
#include "train/options.def"
#undef II_SECTION
#undef II_SECTION_END
#undef II_BOOL
#undef II_INT
#undef II_DOUBLE
#undef II_STRING
#undef II_ENUM2
#undef II_ENUM3
#undef II_ENUM4
#undef II_ENUM5
#undef II_INTS
#undef II_DOUBLES

/* struct ii_config { struct { ... } model, data, train; } */
#define II_SECTION(section, help) struct {
#define II_SECTION_END(section)                                                                    \
  }                                                                                                \
  section;
#define II_BOOL(section, name, def, help)                          bool name;
#define II_INT(section, name, def, min, max, help)                 int64_t name;
#define II_DOUBLE(section, name, def, min, max, help)              double name;
#define II_STRING(section, name, def, help)                        char name[II_CONFIG_STRING];
#define II_ENUM2(section, name, def, a, b, help)                   int name;
#define II_ENUM3(section, name, def, a, b, c, help)                int name;
#define II_ENUM4(section, name, def, a, b, c, d, help)             int name;
#define II_ENUM5(section, name, def, a, b, c, d, e, help)          int name;
#define II_INTS(section, name, nmin, nmax, min, max, def, help)    ii_int_list name;
#define II_DOUBLES(section, name, nmin, nmax, min, max, def, help) ii_double_list name;
typedef struct {
#include "train/options.def"
} ii_config;
#undef II_SECTION
#undef II_SECTION_END
#undef II_BOOL
#undef II_INT
#undef II_DOUBLE
#undef II_STRING
#undef II_ENUM2
#undef II_ENUM3
#undef II_ENUM4
#undef II_ENUM5
#undef II_INTS
#undef II_DOUBLES

/* Overwrites *cfg with the defaults of the table. */
void ii_config_default(ii_config *cfg);

/* Overwrites *cfg with the defaults and then with the file called name. A relative name is looked
 * up in the current folder, then in configs/ (beside or above the program's folder, or of the
 * source tree), with and without .cfg. A file may begin with base = "other.cfg": that file is
 * loaded first, from the folder of the file that names it or else from configs/, and overridden key
 * by key. Ranges and types are checked here, combinations of keys in ii_config_check (so that a
 * --set can still repair them). On an error *cfg holds the defaults.
 * Errors: II_ERR_IO no such file, with the places looked at; II_ERR_ARG unknown key, wrong type,
 * out of range; II_ERR_FORMAT not libconfig syntax, a key given twice, a base that leads back to
 * itself. */
ii_status ii_config_load(ii_config *cfg, const char *name, ii_error *err);

/* Overwrites *cfg with the defaults and then with text, the contents of a .cfg file without base
 * (what ii_config_text writes, here or in an older version: keys that were dropped since are passed
 * over). source stands for the file name in errors. Errors as for ii_config_load; on an error *cfg
 * holds the defaults. */
ii_status ii_config_parse_text(ii_config *cfg, const char *text, const char *source, ii_error *err);

/* Overwrites one key with "section.name=value", as in --set. The value is written as in a file;
 * quotes around strings and brackets around lists may be left out. On an error *cfg is unchanged.
 * Errors: II_ERR_ARG. */
ii_status ii_config_set(ii_config *cfg, const char *assignment, ii_error *err);

/* Checks what involves more than one key, or more than a range, of the given configuration (groups
 * that do not divide the width, norms that exclude each other, ...). Errors: II_ERR_ARG. */
ii_status ii_config_check(const ii_config *cfg, ii_error *err);

/* Gives in *text the whole configuration as a .cfg file of every key, to be freed with free();
 * ii_config_parse_text of it gives the same configuration bit for bit. Errors: II_ERR_MEMORY. */
ii_status ii_config_text(const ii_config *cfg, char **text, ii_error *err);

/* The name "section.name" of key number i in the order of the table, written into name (cut to
 * size). False, and an empty name, when there are not so many. */
bool ii_config_key(int64_t i, char *name, size_t size);

/* Writes the value of a key into value as it would stand in a file (cut to size). False when there
 * is no such key. */
bool ii_config_value(const ii_config *cfg, const char *key, char *value, size_t size);

/* Writes all keys with defaults, ranges and help, for a terminal (--help). */
void ii_config_help(FILE *to);

/* Writes docs/config.md: how .cfg files work and a table of all keys. */
void ii_config_markdown(FILE *to);

#endif
