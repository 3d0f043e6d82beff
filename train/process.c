#include "train/process.h"
#include <limits.h>
#include <stdlib.h>
#include <unistd.h>

void ii_process_prepare(char **argv) {
  if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY")) return;
  /* about the length of the gap between two parallel loops */
  if (setenv("GOMP_SPINCOUNT", "2000", 1) != 0) return;
  /* by its real path: started as /proc/self/exe the process would be called "exe" */
  char path[PATH_MAX];
  ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
  if (n <= 0) return;
  path[n] = 0;
  execv(path, argv); /* if it fails the program just goes on as it is */
}
