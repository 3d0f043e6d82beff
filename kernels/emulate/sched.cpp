/* Runs the threads of a block on fibers, one warp as far as it can go.
 *
 * A thread is a plain call. Only when it has to wait does another fiber continue with the next
 * thread, so kernels without barriers run as a loop. All sets of threads are one 32-bit mask per
 * warp. Running one warp until every lane waits, instead of round robin, is what makes missing
 * barriers visible: the last warp to reach a barrier goes on through the next phase while the
 * others have not read the last one's data yet. Random seeds also interrupt warps. */
#include "kernels/emulate/emulate_internal.h"
#include "kernels/emulate/emulate_warp_kinds.h"
#include "kernels/emulate/fiber.h"
#include <stdlib.h>
#include <string.h>
#include <mutex>
#include <numeric>
#include <vector>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace ii_emu {

running_kernel running;
__thread bool in_kernel_thread;

dim3 block_index(uint64_t b) {
  const dim3 g = running.l->grid;
  return dim3((unsigned)(b % g.x), (unsigned)(b / g.x % g.y), (unsigned)(b / g.x / g.y));
}

namespace {

struct lane_wait {
  int kind;
  unsigned mask;
  uint64_t value, result;
  int arg;
  const char *file;
  int line;
};

/* Threads of the block by what they can do; each thread that lives is in exactly one of the first
 * four sets or is the running one. */
struct block_state {
  uint32_t unstarted[32], ready[32], in_warp_op[32], at_barrier[32], live[32];
  uint32_t runnable_warps;
  int warps, threads, living, waiting; /* waiting: at the barrier */
  int warp;                            /* the one that runs */
  fiber *of[1024];
  lane_wait op[1024];
  const char *barrier_file;
  int barrier_line, barrier_kind, barrier_count, barrier_result, barrier_thread;
};

block_state S;
fiber host, *current;
ii_emu_body *body;
long seed;
uint64_t random_state;
std::vector<uint3> indices;       /* threadIdx by linear thread */
std::vector<memory_range> shared; /* static variables of the kernel */
std::vector<uint64_t> pair_storage;
std::mutex kernel_lock;

uint32_t random_bits() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return (uint32_t)(random_state >> 16);
}

/* One member of a set that is not empty. */
inline int choose(uint32_t set) {
  if (seed == 0) return __builtin_ctz(set);
  if (seed == -1) return 31 - __builtin_clz(set);
  const int r = (int)(random_bits() & 31);
  return (__builtin_ctz(set >> r | (r ? set << (32 - r) : 0)) + r) & 31;
}

/* The thread that continues; -1 when all wait or none is left. */
inline int pick() {
  uint32_t set = S.unstarted[S.warp] | S.ready[S.warp];
  if (!set || (seed > 0 && (random_bits() & 63) == 0)) {
    S.runnable_warps = 0;
    for (int w = 0; w < S.warps; w++) {
      if (S.unstarted[w] | S.ready[w]) S.runnable_warps |= 1u << w;
    }
    if (!S.runnable_warps) return -1;
    S.warp = choose(S.runnable_warps);
    set = S.unstarted[S.warp] | S.ready[S.warp];
  }
  return S.warp * 32 + choose(set);
}

inline void set_running(int t) {
  running.thread = t;
  threadIdx = indices[(size_t)t];
}

std::string thread_name(int t) {
  const uint3 i = indices[(size_t)t];
  return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
}

/* Nobody can continue: who waits where. */
[[noreturn]] void deadlock() {
  std::string text;
  for (int t = 0; t < S.threads; t++) {
    const uint32_t bit = 1u << t % 32;
    if (!(S.in_warp_op[t / 32] & bit)) continue;
    const lane_wait &o = S.op[t];
    /* One line for all lanes of this warp that wait at the same place. */
    uint32_t same = 0;
    for (int l = 0; l < 32; l++) {
      const lane_wait &p = S.op[t / 32 * 32 + l];
      if (S.in_warp_op[t / 32] >> l & 1 && p.line == o.line && p.file == o.file) same |= 1u << l;
    }
    if (same & (bit - 1)) continue;
    char line[256];
    snprintf(line, sizeof line, "\n  warp %d: lanes %08x wait for lanes %08x at %s:%d", t / 32,
             same, o.mask & S.live[t / 32], o.file, o.line);
    text += line;
  }
  if (S.waiting > 0) {
    text += "\n  " + std::to_string(S.waiting) + " of " + std::to_string(S.living) +
            " threads wait at the barrier " + S.barrier_file + ":" + std::to_string(S.barrier_line);
  }
  running.thread = -1;
  report(false, "deadlock", "no thread of the block can continue%s", text.c_str());
  abort();
}

void fiber_main();

/* The running thread waits; returns when it was chosen again. */
void wait_turn() {
  const int t = running.thread;
  fiber *const mine = current;
  S.of[t] = mine;
  const int next = pick();
  if (next < 0) deadlock();
  const uint32_t bit = 1u << next % 32;
  if (S.unstarted[next / 32] & bit) {
    S.unstarted[next / 32] &= ~bit;
    current = fiber_take(fiber_main);
  } else {
    S.ready[next / 32] &= ~bit;
    current = S.of[next];
  }
  set_running(next);
  running.stack = (uintptr_t)current->stack;
  running.stack_end = running.stack + current->bytes;
  if (current != mine) fiber_switch(mine, current, false);
}

void release_barrier() {
  for (int w = 0; w < S.warps; w++) profile_meet(w, S.live[w], true);
  for (int w = 0; w < S.warps; w++) {
    S.ready[w] |= S.at_barrier[w];
    S.at_barrier[w] = 0;
  }
  S.barrier_result = S.barrier_kind == II_EMU_BAR_AND  ? S.barrier_count == S.waiting
                     : S.barrier_kind == II_EMU_BAR_OR ? S.barrier_count != 0
                                                       : S.barrier_count;
  S.waiting = 0;
  running.barrier = ++running.now;
}

/* ---- Warp operations --------------------------------------------------------------------------*/

uint64_t reduce(int kind, uint64_t a, uint64_t b) {
  switch (kind) {
  case II_EMU_WARP_ADD:
    return a + b;
  case II_EMU_WARP_MIN_S:
    return (int32_t)a < (int32_t)b ? a : b;
  case II_EMU_WARP_MAX_S:
    return (int32_t)a > (int32_t)b ? a : b;
  case II_EMU_WARP_MIN_U:
    return (uint32_t)a < (uint32_t)b ? a : b;
  case II_EMU_WARP_MAX_U:
    return (uint32_t)a > (uint32_t)b ? a : b;
  case II_EMU_WARP_AND:
    return a & b;
  case II_EMU_WARP_OR:
    return a | b;
  default:
    return a ^ b;
  }
}

void order_lanes(int warp, uint32_t lanes) {
  running.now++;
  if (lanes == S.live[warp]) {
    running.warp_sync[warp] = running.now;
    return;
  }
  if (!running.partial_sync[warp]) {
    memset(running.pair_sync[warp * 32], 0, 32 * 32 * sizeof(uint64_t));
    running.partial_sync[warp] = true;
  }
  for (int a = 0; a < 32; a++) {
    if (!(lanes >> a & 1)) continue;
    for (int b = 0; b < 32; b++) {
      if (lanes >> b & 1) running.pair_sync[warp * 32 + a][b] = running.now;
    }
  }
}

/* All of `lanes` are here: the results of all of them. */
void finish_warp_op(int warp, uint32_t lanes, int kind) {
  lane_wait *const op = &S.op[warp * 32];
  uint64_t all = 0;
  bool first = true;
  profile_meet(warp, lanes, lanes == S.live[warp]);
  if (kind == II_EMU_WARP_SYNC) {
    order_lanes(warp, lanes);
    return;
  }
  for (uint32_t m = lanes; m; m &= m - 1) {
    const int l = __builtin_ctz(m);
    if (kind == II_EMU_WARP_SHUFFLE) {
      const int from = op[l].arg;
      op[l].result = lanes >> from & 1 ? op[from].value : ~(uint64_t)0;
    } else if (kind == II_EMU_WARP_BALLOT) {
      all |= op[l].value << l;
    } else if (kind == II_EMU_WARP_MATCH) {
      op[l].result = 0;
      for (int i = 0; i < 32; i++) {
        if (lanes >> i & 1 && op[i].value == op[l].value) op[l].result |= 1u << i;
      }
    } else {
      all = first ? op[l].value : reduce(kind, all, op[l].value);
      first = false;
    }
  }
  if (kind == II_EMU_WARP_SHUFFLE || kind == II_EMU_WARP_MATCH) return;
  for (uint32_t m = lanes; m; m &= m - 1) op[__builtin_ctz(m)].result = all;
}

void check_warp_op(int t, const lane_wait &o) {
  const int warp = t / 32, lane = t % 32;
  if (!(o.mask >> lane & 1)) {
    report(false, "warp operation", "lane %d is not in its own mask %08x\n  at %s:%d", lane, o.mask,
           o.file, o.line);
  }
  uint32_t others = S.in_warp_op[warp];
  for (; others; others &= others - 1) {
    const int l = __builtin_ctz(others);
    const lane_wait &p = S.op[warp * 32 + l];
    if (!(p.mask >> lane & 1) && !(o.mask >> l & 1)) continue; /* another group of lanes */
    if (p.mask == o.mask && p.kind == o.kind && p.line == o.line && p.file == o.file) {
      if (p.mask == 0xffffffffu) return; /* those that wait were compared with each other */
      continue;
    }
    report(false, "warp operation",
           "lanes of one warp meet in different operations:\n  lane %d, mask %08x, at %s:%d\n"
           "  lane %d, mask %08x, at %s:%d",
           l, p.mask, p.file, p.line, lane, o.mask, o.file, o.line);
  }
}

/* A thread returned: those that wait for it need not any more. */
void finish_thread(int t) {
  const int warp = t / 32;
  S.live[warp] &= ~(1u << t % 32);
  S.living--;
  if (!S.live[warp]) profile_meet(warp, 0, true);
  if (S.waiting > 0 && S.waiting == S.living) release_barrier();
  for (uint32_t m = S.in_warp_op[warp]; m;) {
    const lane_wait &o = S.op[warp * 32 + __builtin_ctz(m)];
    const uint32_t lanes = o.mask & S.live[warp];
    m &= ~lanes;
    if ((S.in_warp_op[warp] & lanes) != lanes) continue;
    finish_warp_op(warp, lanes, o.kind);
    S.in_warp_op[warp] &= ~lanes;
    S.ready[warp] |= lanes;
  }
}

/* Calls threads one after another; leaves for a thread that was waiting, or for the host when the
 * block is done. */
__attribute__((no_sanitize_thread)) void fiber_main() {
  fiber_entered();
  for (;;) {
    body->run();
    finish_thread(running.thread);
    const int next = pick();
    if (next < 0 && S.living > 0) deadlock();
    fiber *const mine = current;
    if (next < 0) {
      fiber_give(mine);
      fiber_switch(mine, &host, true);
    }
    const uint32_t bit = 1u << next % 32;
    set_running(next);
    if (S.unstarted[next / 32] & bit) {
      S.unstarted[next / 32] &= ~bit;
      continue;
    }
    S.ready[next / 32] &= ~bit;
    current = S.of[next];
    running.stack = (uintptr_t)current->stack;
    running.stack_end = running.stack + current->bytes;
    fiber_give(mine);
    fiber_switch(mine, current, true);
  }
}

void start_block_state(int threads) {
  S.threads = S.living = threads;
  S.warps = (threads + 31) / 32;
  S.waiting = 0;
  for (int w = 0; w < S.warps; w++) {
    const int left = threads - 32 * w;
    S.live[w] = S.unstarted[w] = left >= 32 ? 0xffffffffu : (1u << left) - 1;
    S.ready[w] = S.in_warp_op[w] = S.at_barrier[w] = 0;
    running.warp_sync[w] = 0;
    running.partial_sync[w] = false;
  }
  S.warp = seed == -1 ? S.warps - 1 : seed == 0 ? 0 : (int)(random_bits() % (unsigned)S.warps);
}

void run_block(const launch &l, uint64_t index) {
  running.block = index;
  const dim3 at = block_index(index);
  blockIdx = uint3{at.x, at.y, at.z};
  running.block_start = ++running.now;
  running.barrier = 0;
  for (const memory_range &r : shared) memset(r.start, 0xFF, r.bytes);
  if (l.shared_bytes) memset(running.dynamic_shared, 0xFF, l.shared_bytes);
  start_block_state((int)(l.block.x * l.block.y * l.block.z));
  const int first = pick();
  S.unstarted[first / 32] &= ~(1u << first % 32);
  set_running(first);
  current = fiber_take(fiber_main);
  running.stack = (uintptr_t)current->stack;
  running.stack_end = running.stack + current->bytes;
  in_kernel_thread = true;
  fiber_switch(&host, current, false);
  running.thread = -1;
  race_end_block();
  profile_end_block();
  in_kernel_thread = false;
}

void start_launch(const launch &l) {
  running.l = &l;
  running.thread = -1;
  running.launch_start = ++running.now;
  seed = get_settings().seed;
  random_state = (uint64_t)seed * 0x9E3779B97F4A7C15u + running.now * 2654435761u + 1;
  blockDim = l.block;
  gridDim = l.grid;
  body = l.body;
  shared = shared_variables(l.kernel);
  pair_storage.resize(1024 * 32);
  running.pair_sync = reinterpret_cast<uint64_t(*)[32]>(pair_storage.data());
  indices.clear();
  for (unsigned z = 0; z < l.block.z; z++) {
    for (unsigned y = 0; y < l.block.y; y++) {
      for (unsigned x = 0; x < l.block.x; x++) indices.push_back(uint3{x, y, z});
    }
  }
}

} // namespace

uint3 thread_index(int linear) {
  return indices[(size_t)linear];
}

void run_kernel(const launch &l) {
  std::lock_guard<std::mutex> hold(kernel_lock);
  start_launch(l);
  profile_begin(l);
  fiber_of_host(&host);
  /* The heap puts guarded bytes around it under AddressSanitizer. */
  void *dynamic = NULL;
  if (l.shared_bytes && posix_memalign(&dynamic, 32, l.shared_bytes)) abort();
  running.dynamic_shared = (char *)dynamic;
  const uint64_t blocks = (uint64_t)l.grid.x * l.grid.y * l.grid.z;
  /* Random order: a walk by a step that has no factor in common with the number of blocks. */
  uint64_t step = 1, at = 0;
  if (seed > 0) {
    step = random_bits() % blocks + 1;
    while (std::gcd(step, blocks) != 1) step++;
    at = random_bits() % blocks;
  }
  for (uint64_t b = 0; b < blocks; b++) {
    run_block(l, seed == 0 ? b : seed == -1 ? blocks - 1 - b : at);
    at = (at + step) % blocks;
  }
  free(dynamic);
  running.dynamic_shared = NULL;
  running.l = NULL;
}

} // namespace ii_emu

using namespace ii_emu;

int ii_emu_barrier(int kind, int predicate, const char *file, int line) {
  const int t = running.thread;
  if (S.waiting == 0) {
    S.barrier_kind = kind;
    S.barrier_file = file;
    S.barrier_line = line;
    S.barrier_count = 0;
    S.barrier_thread = t;
  } else if (S.barrier_line != line || S.barrier_kind != kind ||
             (S.barrier_file != file && strcmp(S.barrier_file, file))) {
    report(false, "barrier divergence",
           "threads of one block wait at different barriers:\n  thread %s at %s:%d\n"
           "  thread %s at %s:%d",
           thread_name(S.barrier_thread).c_str(), S.barrier_file, S.barrier_line,
           thread_name(t).c_str(), file, line);
  }
  S.barrier_count += predicate != 0;
  if (++S.waiting == S.living) {
    release_barrier();
  } else {
    S.at_barrier[t / 32] |= 1u << t % 32;
    wait_turn();
  }
  return S.barrier_result;
}

uint64_t ii_emu_warp(int kind, unsigned mask, uint64_t value, int arg, const char *file, int line) {
  const int t = running.thread, warp = t / 32;
  lane_wait &o = S.op[t];
  o.kind = kind;
  o.mask = mask;
  o.value = value;
  o.arg = arg;
  o.file = file;
  o.line = line;
  check_warp_op(t, o);
  const uint32_t lanes = mask & S.live[warp], bit = 1u << t % 32;
  if (((S.in_warp_op[warp] | bit) & lanes) == lanes) {
    finish_warp_op(warp, lanes, kind);
    S.in_warp_op[warp] &= ~lanes;
    S.ready[warp] |= lanes & ~bit;
  } else {
    S.in_warp_op[warp] |= bit;
    wait_turn();
  }
  return o.result;
}

int ii_emu_lane(void) {
  return running.thread % 32;
}

void *ii_emu_dynamic_shared(void) {
  return running.dynamic_shared;
}

void ii_emu_trap(const char *file, int line) {
  report(false, "trap", "the kernel called __trap at %s:%d", file, line);
  abort();
}

void ii_emu_atomic_access(const void *p, size_t bytes, const char *function, const char *type,
                          const void *pc, const char *file, int line) {
  const size_t align = bytes > 16 ? 16 : bytes;
  if ((uintptr_t)p % align) {
    report(true, "misaligned atomic", "address %p, %zu bytes, at %s:%d", p, bytes, file, line);
  }
  race_atomic(p, bytes, file, line);
  profile_atomic(p, bytes, function, type, pc);
}

void ii_emu_fragment(const void *p, size_t row_bytes, size_t pitch, bool store) {
  profile_fragment(p, row_bytes, pitch, store, __builtin_return_address(0));
}

void ii_emu_fragment_done(void) {
  profile_fragment_done();
}
