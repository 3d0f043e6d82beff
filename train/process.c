#include "train/process.h"
#include <stdlib.h>
#include <unistd.h>

void ii_process_prepare(char **argv) {
  if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY")) return;
  /* about the length of the gap between two parallel loops */
  if (setenv("GOMP_SPINCOUNT", "2000", 1) != 0) return;
  execv("/proc/self/exe", argv); /* if it fails the program just goes on as it is */
}
