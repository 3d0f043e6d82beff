/* The memory profile: which accesses of a warp's lanes are one request.
 *
 * The .cu files are compiled with hooks at every access (hooks.cpp) and at every basic block
 * (-fsanitize-coverage=trace-pc). Lanes run one after another here, so each leaves a log of both.
 * When all lanes of a warp meet, or the last has returned, the logs are replayed in lockstep: of
 * the lanes' next entries those with the lowest code address go first, together. Code addresses
 * grow with the source order (-fno-reorder-blocks), so lanes that skipped a branch wait behind it
 * and lanes that left a loop behind the loop, as on a GPU. What has the same address, kind and
 * width in that step is one request. */
#include "kernels/emulate/profile_records.h"

#ifndef II_EMULATE_PROFILE

namespace ii_emu {
void profile_begin(const launch &) {}
void profile_end_block() {}
void profile_atomic(const void *, size_t, const char *, const char *, const void *) {}
void profile_meet(int, uint32_t, bool) {}
void profile_fragment(const void *, size_t, size_t, bool, const void *) {}
void profile_fragment_done() {}
} // namespace ii_emu

#else
#include <stdlib.h>
#include <string.h>

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace ii_emu {
namespace {

/* Kinds of entries after those of accesses. MARK: a basic block began. MEET: some lanes met. */
enum { MARK = II_EMU_KINDS, MEET };

/* key: where it is, code address in the kernel and, inside a function the kernel called, the one
 * there; all lanes go through equal keys together. */
struct entry {
  uint64_t key;
  uint64_t address : 48, bytes : 5, kind : 3, shared : 1, more : 7;
  /* address of MEET: its index in meetings; more: function of an atomic */
};
const uint64_t BLOCKED = UINT64_MAX;

struct lane_log {
  entry *entries;
  size_t count, room;
  uint32_t call; /* where in the kernel the function was called that runs, 0: none does */
  uint32_t depth;
  bool quiet;        /* inside a fragment, which was counted as a whole */
  uint64_t last_key; /* of the last entry before the log was replayed */
};

lane_log logs[1024];
std::vector<uint32_t> meetings[32]; /* of each warp since its last replay: the lanes that met */
uintptr_t base, kernel_start, kernel_bytes;
std::vector<memory_range> shared_ranges; /* static */
bool counting;

inline entry *append(lane_log &l) {
  if (l.count == l.room) {
    l.room = l.room ? 2 * l.room : 256;
    l.entries = (entry *)realloc(l.entries, l.room * sizeof(entry));
    if (!l.entries) {
      report(false, "memory profile", "no memory for the log of a thread with %zu accesses",
             l.count);
      abort();
    }
  }
  return &l.entries[l.count++];
}

inline uint64_t key_of(const lane_log &l, uintptr_t pc) {
  const uint64_t place = (uint32_t)(pc - base);
  return pc - kernel_start < kernel_bytes || !l.call ? place << 32 : (uint64_t)l.call << 32 | place;
}

/* threadIdx and the like, which every kernel reads all the time. */
inline bool is_position(uintptr_t p) {
  return p - (uintptr_t)&threadIdx < sizeof threadIdx ||
         p - (uintptr_t)&blockIdx < sizeof blockIdx || p - (uintptr_t)&blockDim < sizeof blockDim ||
         p - (uintptr_t)&gridDim < sizeof gridDim;
}

/* Whether p is counted: not the thread's own variables and arguments, nor constants. */
inline bool is_counted(uintptr_t p, bool *shared) {
  *shared = false;
  if (p - running.stack < running.stack_end - running.stack || is_position(p)) return false;
  if (p - (uintptr_t)running.l->body < running.l->body->bytes) return false;
  if (p - (uintptr_t)running.dynamic_shared < running.l->shared_bytes) {
    *shared = true;
    return true;
  }
  for (const memory_range &r : shared_ranges) {
    if (p - (uintptr_t)r.start >= r.bytes) continue;
    *shared = true;
    return true;
  }
  return !in_image((const void *)p);
}

/* An access in pieces that a GPU has instructions for: powers of two, aligned, 16 bytes at most. */
void log_access(uintptr_t p, size_t bytes, int kind, uintptr_t pc, uint32_t more) {
  bool shared;
  if (!is_counted(p, &shared)) return;
  lane_log &l = logs[running.thread];
  const uint64_t key = key_of(l, pc);
  while (bytes > 0) {
    size_t part = 16;
    while (part > bytes || p % part) part /= 2;
    entry *const e = append(l);
    e->key = key;
    e->address = p;
    e->bytes = part;
    e->kind = (uint64_t)kind;
    e->shared = shared;
    e->more = more;
    p += part;
    bytes -= part;
  }
}

/* ---- The replay -------------------------------------------------------------------------------*/

struct replay {
  const entry *next[32], *end[32];
  uint64_t key[32]; /* of the next entry; BLOCKED at the end and where others have not come yet */
  const uint32_t *meeting; /* the lanes of each */
  size_t meetings;
  uint32_t *arrived; /* per meeting */
};

inline void set_key(replay &r, int lane) {
  if (r.next[lane] == r.end[lane]) {
    r.key[lane] = BLOCKED;
    return;
  }
  const entry &e = *r.next[lane];
  r.key[lane] = e.key;
  if (e.kind != MEET) return;
  r.key[lane] = BLOCKED;
  r.arrived[e.address] |= 1u << lane;
  const uint32_t all = r.meeting[e.address];
  if (r.arrived[e.address] != all) return;
  for (uint32_t m = all; m; m &= m - 1) {
    const int l = __builtin_ctz(m);
    r.key[l] = r.next[l]->key;
  }
}

inline void advance(replay &r, uint32_t lanes) {
  for (uint32_t m = lanes; m; m &= m - 1) r.next[__builtin_ctz(m)]++;
  for (uint32_t m = lanes; m; m &= m - 1) set_key(r, __builtin_ctz(m));
}

/* The lanes that go next: those with the lowest key, and of these the ones at an access or a basic
 * block before those at a meeting, which has the key of what came before it. 0: none is left. */
inline uint32_t choose(const replay &r) {
  uint64_t low = BLOCKED;
  for (int l = 0; l < 32; l++) low = r.key[l] < low ? r.key[l] : low;
  if (low == BLOCKED) return 0;
  uint32_t here = 0, meet = 0;
  for (int l = 0; l < 32; l++) here |= (uint32_t)(r.key[l] == low) << l;
  if (r.meetings)
    for (uint32_t m = here; m; m &= m - 1) {
      const int l = __builtin_ctz(m);
      if (r.next[l]->kind == MEET) meet |= 1u << l;
    }
  return here == meet ? here : here & ~meet;
}

/* The accesses of `lanes`, which are at one place: one request, or one for each kind and width. */
void count_requests(const replay &r, uint32_t lanes) {
  while (lanes) {
    const entry &e = *r.next[__builtin_ctz(lanes)];
    request q;
    q.kind = (int)e.kind;
    q.bytes = (int)e.bytes;
    q.atomic = (int)e.more;
    q.lanes = 0;
    uint32_t rest = 0;
    for (uint32_t m = lanes; m; m &= m - 1) {
      const int l = __builtin_ctz(m);
      const entry &o = *r.next[l];
      if (o.kind == e.kind && o.bytes == e.bytes && o.shared == e.shared && o.more == e.more)
        q.address[q.lanes++] = o.address;
      else
        rest |= 1u << l;
    }
    if (e.shared)
      profile_shared_request(q);
    else
      profile_device_request(q);
    lanes = rest;
  }
}

void replay_warp(int warp) {
  static std::vector<uint32_t> arrived;
  replay r;
  arrived.assign(meetings[warp].size() + 1, 0);
  r.meetings = meetings[warp].size();
  r.meeting = meetings[warp].data();
  r.arrived = arrived.data();
  for (int l = 0; l < 32; l++) {
    lane_log &log = logs[warp * 32 + l];
    r.next[l] = log.entries;
    r.end[l] = log.entries + log.count;
    if (log.count) log.last_key = log.entries[log.count - 1].key;
    log.count = 0;
  }
  for (int l = 0; l < 32; l++) set_key(r, l);
  for (uint32_t here; (here = choose(r)) != 0;) {
    const int kind = r.next[__builtin_ctz(here)]->kind;
    if (kind != MARK && kind != MEET) count_requests(r, here);
    advance(r, here);
  }
  meetings[warp].clear();
}

} // namespace

void profile_begin(const launch &l) {
  counting = profile_on();
  if (!counting) return;
  base = image_base();
  kernel_start = (uintptr_t)l.kernel;
  kernel_bytes = function_bytes(l.kernel);
  shared_ranges = shared_variables(l.kernel);
  profile_record(l);
}

/* All lanes have returned and their logs were replayed. */
void profile_end_block() {
  if (!counting) return;
  for (lane_log &l : logs) l.call = l.depth = 0, l.last_key = 0;
}

void profile_atomic(const void *p, size_t bytes, const char *function, const char *type,
                    const void *pc) {
  if (!counting || !in_kernel_thread) return;
  const uint32_t index = (uint32_t)profile_atomic_index(function, type, (int)bytes);
  log_access((uintptr_t)p, bytes, II_EMU_ATOMIC, (uintptr_t)pc - 1, index);
}

/* As ldmatrix loads, 16 bytes of a row per lane, eight rows at a time; and as the lanes hold sums,
 * pairs of them in rows l/4 and l/4 + 8. Wider or narrower elements are not in use. */
void profile_fragment(const void *p, size_t row_bytes, size_t pitch, bool store, const void *pc) {
  if (!counting) return;
  const uintptr_t start = (uintptr_t)p, at = (uintptr_t)pc - 1;
  const size_t lane = (size_t)running.thread % 32;
  if (!store) log_access(start + lane % 16 * pitch + lane / 16 * 16, 16, II_EMU_LOAD, at, 0);
  for (size_t part = 0; store && part < row_bytes / 16; part++) {
    const size_t row = lane / 4 + part % 2 * 8, pair = lane % 4 + part / 2 * 4;
    log_access(start + row * pitch + pair * row_bytes / 8, row_bytes / 8, II_EMU_STORE, at, 0);
  }
  logs[running.thread].quiet = true;
}

void profile_fragment_done() {
  logs[running.thread].quiet = false;
}

void profile_meet(int warp, uint32_t lanes, bool all) {
  if (!counting) return;
  if (all) {
    replay_warp(warp);
    return;
  }
  meetings[warp].push_back(lanes);
  for (uint32_t m = lanes; m; m &= m - 1) {
    lane_log &l = logs[warp * 32 + __builtin_ctz(m)];
    const uint64_t before = l.count ? l.entries[l.count - 1].key : l.last_key;
    entry *const e = append(l);
    memset(e, 0, sizeof *e);
    e->key = before;
    e->address = meetings[warp].size() - 1;
    e->kind = MEET;
  }
}

void compiled_access(const void *p, size_t bytes, int action, bool aligned, const void *pc) {
  if (!counting || !in_kernel_thread || logs[running.thread].quiet) return;
  (void)aligned;
  log_access((uintptr_t)p, bytes, action & WRITE ? II_EMU_STORE : II_EMU_LOAD, (uintptr_t)pc - 1,
             0);
}

void compiled_entry(const void *pc) {
  if (!counting || !in_kernel_thread) return;
  lane_log &l = logs[running.thread];
  if (l.depth > 0) {
    l.depth++;
  } else if ((uintptr_t)pc - 1 - kernel_start < kernel_bytes) {
    l.call = (uint32_t)((uintptr_t)pc - 1 - base);
    l.depth = 1;
  }
}

void compiled_exit() {
  if (!counting || !in_kernel_thread) return;
  lane_log &l = logs[running.thread];
  if (l.depth > 0 && --l.depth == 0) l.call = 0;
}

} // namespace ii_emu

extern "C" void __sanitizer_cov_trace_pc(void) {
  using namespace ii_emu;
  const uintptr_t pc = (uintptr_t)__builtin_return_address(0) - 1;
  if (!counting || !in_kernel_thread || pc - kernel_start >= kernel_bytes) return;
  entry *const e = append(logs[running.thread]);
  memset(e, 0, sizeof *e);
  e->key = (uint64_t)(uint32_t)(pc - base) << 32;
  e->kind = MARK;
}
#endif
