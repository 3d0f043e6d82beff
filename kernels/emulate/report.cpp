/* Settings, reports and statistics of the emulation. The reports go to the standard error stream:
 * they are about bugs in kernels, which have no caller who could be told. */
#include "kernels/emulate/emulate_internal.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <map>
#include <mutex>
#include <set>

namespace ii_emu {
namespace {

std::mutex lock;
std::set<std::string> told;
struct kernel_cost {
  uint64_t launches, blocks, threads;
  double milliseconds;
};
std::map<std::string, kernel_cost> costs;

long long number(const char *name, long long otherwise) {
  const char *text = getenv(name);
  if (!text || !*text) return otherwise;
  char *end;
  const long long v = strtoll(text, &end, 10);
  if (*end) { /* a test with a setting that is not what was meant tests nothing */
    fprintf(stderr, "emulated GPU: %s=%s is not a number\n", name, text);
    abort();
  }
  return v;
}

settings read_settings() {
  settings s;
  const char *streams = getenv("II_EMU_STREAMS"), *report = getenv("II_EMU_REPORT");
  s.seed = (long)number("II_EMU_SEED", 0);
  s.streams = STREAMS_EAGER;
  if (streams && !strcmp(streams, "lazy"))
    s.streams = STREAMS_LAZY;
  else if (streams && !strcmp(streams, "random"))
    s.streams = STREAMS_RANDOM;
  else if (streams && *streams && strcmp(streams, "eager")) {
    fprintf(stderr, "emulated GPU: II_EMU_STREAMS is eager, lazy or random, not %s\n", streams);
    abort();
  }
  s.guard = number("II_EMU_GUARD", 0) != 0;
  s.stats = number("II_EMU_STATS", 0) != 0;
  s.keep_going = report && !strcmp(report, "continue");
  s.devices = (int)number("II_EMU_DEVICES", 1);
  s.memory = (size_t)number("II_EMU_MEM_MB", 16 << 10) << 20;
  s.l2_bytes = (size_t)number("II_EMU_L2_MB", 50) << 20;
  return s;
}

void print_costs() {
  fprintf(stderr, "emulated GPU: launches, blocks, threads, milliseconds of each kernel\n");
  for (const auto &c : costs) {
    fprintf(stderr, "%8llu %10llu %12llu %10.1f  %s\n", (unsigned long long)c.second.launches,
            (unsigned long long)c.second.blocks, (unsigned long long)c.second.threads,
            c.second.milliseconds, c.first.c_str());
  }
}

std::string place() {
  if (!running.l || !in_kernel_thread) return "";
  const launch &l = *running.l;
  char text[512];
  const std::string name = function_name(l.kernel);
  const dim3 b = block_index(running.block);
  snprintf(text, sizeof text, "kernel %s, launched at %s:%d\nblock (%u,%u,%u)",
           name.empty() ? l.name.c_str() : name.c_str(), l.file, l.line, b.x, b.y, b.z);
  std::string all = text;
  if (running.thread >= 0) {
    const uint3 t = thread_index(running.thread);
    snprintf(text, sizeof text, " thread (%u,%u,%u)", t.x, t.y, t.z);
    all += text;
  }
  return all + "\n";
}

} // namespace

const settings &get_settings() {
  static const settings s = read_settings();
  return s;
}

void note(const char *fmt, ...) {
  char text[1024];
  va_list args;
  va_start(args, fmt);
  vsnprintf(text, sizeof text, fmt, args);
  va_end(args);
  fprintf(stderr, "emulated GPU: %s\n", text);
}

void report(bool can_continue, const char *title, const char *fmt, ...) {
  static char text[1 << 15];
  std::lock_guard<std::mutex> hold(lock);
  va_list args;
  va_start(args, fmt);
  vsnprintf(text, sizeof text, fmt, args);
  va_end(args);
  const bool stop = !can_continue || !get_settings().keep_going;
  if (!told.insert(std::string(title) + text).second && !stop) return;
  fprintf(stderr, "\n==== emulated GPU: %s ====\n%s%s\n==== end ====\n", title, place().c_str(),
          text);
  if (stop) abort();
}

void count_launch(const launch &l, double milliseconds) {
  std::lock_guard<std::mutex> hold(lock);
  if (costs.empty()) atexit(print_costs);
  kernel_cost &c = costs[l.name];
  const uint64_t blocks = (uint64_t)l.grid.x * l.grid.y * l.grid.z;
  c.launches++;
  c.blocks += blocks;
  c.threads += blocks * l.block.x * l.block.y * l.block.z;
  c.milliseconds += milliseconds;
}

} // namespace ii_emu
