/* Tests of the CUDA emulation itself: a case is a small program with a planted bug and its
 * corrected twin. Each runs in a child process under several settings. */
#ifndef II_TEST_EMULATOR_H
#define II_TEST_EMULATOR_H

/* The three ways to build: this file is compiled once for each. */
enum { PLAIN = 1, ASAN = 2, RACE = 4, EVERY = 7 };
#if defined(__SANITIZE_ADDRESS__)
#define BUILD ASAN
#elif defined(__SANITIZE_THREAD__)
#define BUILD RACE
#else
#define BUILD PLAIN
#endif

typedef struct {
  const char *name;
  /* Returns 0 when all results are right. bug: with the planted bug. */
  int (*run)(bool bug);
  const char *settings[4]; /* of the environment, "NAME=value" */
  /* How each build must notice the bug. A report is a text on the standard error stream after which
   * the process dies; %name% in it stands for "file.cu:line" of the line marked /-* name *-/. */
  int wrong;           /* builds in which run() must return nonzero */
  int reported;        /* builds in which there must be a report with: */
  const char *text[3]; /* texts; for builds in which they differ, see asan_text, race_text */
  const char *asan_text, *race_text;
  int by_chance; /* noticed under one of the random seeds at least, not under each */
} emulator_case;

extern const emulator_case kernel_cases[], host_cases[], graph_cases[];
extern const int kernel_case_count, host_case_count, graph_case_count;

/* Every warp operation and barrier against a table; 0 when all are right. */
int warp_tables(void);
/* Intrinsics, atomics and 16-bit functions; 0 when all are right. */
int device_functions(void);
/* Products of matrices by a warp; 0 when all are right. */
int matrix_products(void);
/* Launch order, streams, events, memory; 0 when all are right. */
int runtime_functions(void);
/* Recording and launching of graphs. */
int graph_functions(void);

/* Prints which comparison failed, and counts it. */
#define EXPECT(condition)                                                                          \
  do {                                                                                             \
    if (!(condition)) {                                                                            \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                              \
      failures++;                                                                                  \
    }                                                                                              \
  } while (0)

#endif
