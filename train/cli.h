/* Command lines of the programs: flags with and without a value, nothing positional. */
#ifndef II_CLI_H
#define II_CLI_H
#include <stdio.h>
#include "autograd/error.h"

typedef struct {
  const char *name;  /* "--config" */
  const char *value; /* what stands for its value in help: "NAME"; NULL: takes none */
  const char *help;
} ii_flag;

typedef struct {
  int argc, at;
  char *const *argv;
  const ii_flag *flags; /* ends with name NULL */
} ii_cli;

/* Starts behind the program's name. */
ii_cli ii_cli_begin(int argc, char *const *argv, const ii_flag *flags);

/* The next flag: its place in flags is stored in *flag (-1: no more), its value in *value (from
 * "--flag VALUE" or "--flag=VALUE"). Errors (II_ERR_ARG): unknown flag, with the nearest known one;
 * a missing or superfluous value; anything that is not a flag. */
ii_status ii_cli_next(ii_cli *cli, int *flag, const char **value, ii_error *err);

/* Columns of the terminal behind a stream; 80 when it does not say. */
int ii_cli_columns(FILE *terminal);

/* Makes sure that what was printed has got there. Errors: II_ERR_IO. */
ii_status ii_cli_flush(FILE *to, ii_error *err);

/* Prints the flags and their help. */
void ii_cli_help(const ii_flag *flags, FILE *to);

#endif
