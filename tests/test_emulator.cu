/* Death tests of the CUDA emulation: every planted bug must be noticed in the builds that can
 * notice it, under every schedule, and its corrected twin must pass in silence in all of them.
 *
 *   test_emulator          all cases
 *   test_emulator NAME     one case, with the bug, in this process: to look at its report */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <fstream>
#include <sstream>
#include <string>
#include <sys/wait.h>
#include <unistd.h>
#include "test_emulator.h"

static int failed;

struct outcome {
  int code; /* exit status; 1000 + signal */
  std::string text;
};

template <typename F> static outcome in_child(const char *const *settings, int seed, F body) {
  int ends[2];
  outcome o = {-1, ""};
  fflush(NULL);
  if (pipe(ends) != 0) return o;
  const pid_t pid = fork();
  if (pid == 0) {
    dup2(ends[1], 2);
    close(ends[0]);
    close(ends[1]);
    setenv("II_EMU_SEED", std::to_string(seed).c_str(), 1);
    for (int i = 0; settings && i < 4 && settings[i]; i++) putenv(const_cast<char *>(settings[i]));
    exit(body() ? 1 : 0);
  }
  close(ends[1]);
  char buffer[4096];
  for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;) o.text.append(buffer, (size_t)n);
  close(ends[0]);
  int status;
  waitpid(pid, &status, 0);
  o.code = WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  return o;
}

/* "file.cu:line" of the line with the comment %name%, out of the test's own source. */
static std::string place_of(const std::string &mark) {
  for (const char *file : {"test_emulator_kernels.cu", "test_emulator_host.cu"}) {
    std::ifstream in(std::string(II_TEST_SOURCE) + "/" + file);
    std::string line;
    for (int n = 1; std::getline(in, line); n++) {
      if (line.find("/* " + mark + " */") != std::string::npos) {
        return std::string(file) + ":" + std::to_string(n);
      }
    }
  }
  return "no line is marked " + mark;
}

static bool has(const outcome &o, const char *text) {
  if (!text) return true;
  std::string wanted = text;
  if (wanted[0] == '%') wanted = place_of(wanted.substr(1, wanted.size() - 2));
  return o.text.find(wanted) != std::string::npos;
}

static void fail(const emulator_case &c, int seed, const char *why, const outcome &o) {
  printf("FAILED: %s, seed %d: %s (status %d)\n%s\n", c.name, seed, why, o.code, o.text.c_str());
  failed++;
}

/* Whether the bug was noticed the way the table says. */
static bool noticed(const emulator_case &c, const outcome &o) {
  const bool wrong = (c.wrong & BUILD) != 0;
  if (wrong && o.code != 1) return false;
  if (!wrong && o.code == 0) return false;
  for (const char *t : c.text) {
    if (!wrong || !(c.reported & ~BUILD)) {
      if (!has(o, t)) return false;
    }
  }
  if (wrong) return true;
  return has(o, BUILD == ASAN ? c.asan_text : BUILD == RACE ? c.race_text : NULL);
}

static void run_case(const emulator_case &c) {
  int found = 0, tried = 0;
  for (int seed : {0, -1, 1, 2, 3, 4, 5}) {
    const outcome good = in_child(c.settings, seed, [&] { return c.run(false); });
    if (good.code != 0 || !good.text.empty()) fail(c, seed, "the corrected twin fails", good);
    if (!((c.wrong | c.reported) & BUILD)) continue;
    const outcome bad = in_child(c.settings, seed, [&] { return c.run(true); });
    const bool ok = noticed(c, bad);
    tried++;
    found += ok;
    if (!ok && !c.by_chance) fail(c, seed, "the planted bug is not noticed", bad);
  }
  if (tried && !found) {
    printf("FAILED: %s: noticed under no seed\n", c.name);
    failed++;
  }
  printf("%-48s %s\n", c.name, tried ? "noticed" : "not for this build; the twin passes");
}

static void run_check(const char *name, int (*check)(void), const char *const *settings) {
  for (int seed : {0, -1, 1, 2, 3, 4, 5}) {
    const outcome o = in_child(settings, seed, [&] { return check(); });
    if (o.code == 0) continue;
    printf("FAILED: %s, seed %d: status %d\n%s\n", name, seed, o.code, o.text.c_str());
    failed++;
  }
  printf("%-48s done\n", name);
}

/* Reports may also be counted up: the process goes on, and says each thing once. */
static void check_continue() {
  static const char *const go_on[4] = {"II_EMU_REPORT=continue"};
  for (int i = 0; i < kernel_case_count && BUILD == RACE; i++) {
    const emulator_case &c = kernel_cases[i];
    if (strcmp(c.name, "forgotten atomic")) continue;
    const outcome o = in_child(go_on, 0, [&] { return c.run(true); });
    const size_t first = o.text.find("==== emulated GPU: race");
    if (o.code > 1 || first == std::string::npos ||
        o.text.find("earlier read", o.text.find("earlier read") + 1) != std::string::npos) {
      fail(c, 0, "does not go on after a report, or repeats it", o);
    }
  }
}

template <typename F> static void for_all_cases(F f) {
  for (int i = 0; i < kernel_case_count; i++) f(kernel_cases[i]);
  for (int i = 0; i < host_case_count; i++) f(host_cases[i]);
  for (int i = 0; i < graph_case_count; i++) f(graph_cases[i]);
}

int main(int argc, char **argv) {
  if (argc == 2) {
    for_all_cases([&](const emulator_case &c) {
      if (strcmp(c.name, argv[1])) return;
      for (int i = 0; i < 4 && c.settings[i]; i++) putenv(const_cast<char *>(c.settings[i]));
      printf("result %d\n", c.run(true));
    });
    return 0;
  }
  static const char *const eager[4] = {"II_EMU_MEM_MB=8", "II_EMU_DEVICES=2"};
  static const char *const lazy[4] = {"II_EMU_MEM_MB=8", "II_EMU_DEVICES=2", "II_EMU_STREAMS=lazy",
                                      "II_EMU_GUARD=1"};
  static const char *const random[4] = {"II_EMU_MEM_MB=8", "II_EMU_DEVICES=2",
                                        "II_EMU_STREAMS=random"};
  run_check("warp operations and barriers", warp_tables, NULL);
  run_check("device functions", device_functions, NULL);
  run_check("products of matrices by a warp", matrix_products, NULL);
  run_check("runtime, eager streams", runtime_functions, eager);
  run_check("runtime, lazy streams, guarded memory", runtime_functions, lazy);
  run_check("runtime, random streams", runtime_functions, random);
  run_check("graphs, eager streams", graph_functions, eager);
  run_check("graphs, lazy streams, guarded memory", graph_functions, lazy);
  run_check("graphs, random streams", graph_functions, random);
  for_all_cases(run_case);
  check_continue();
  printf("%s: %d failures\n", failed ? "FAILED" : "passed", failed);
  return failed != 0;
}
