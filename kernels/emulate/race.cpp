/* The race checker: every access of a kernel's thread to device or shared memory is compared with
 * the last ones of other threads to the same bytes.
 *
 * The .cu files are compiled with -fsanitize=thread, but the program is not linked with that
 * library: the functions the compiler calls at each access are in hooks.cpp. Two accesses, at least
 * one of them a write and not both atomic, are ordered when they are of one thread, or a
 * __syncthreads of the block or a __syncwarp of both lanes lies between; blocks of one launch are
 * never ordered. Shuffles order nothing, as in CUDA. A shadow cell per two bytes holds the last
 * writer and two readers, so of several races on one address some may be shown. */
#include "kernels/emulate/emulate_internal.h"

#ifndef II_EMULATE_RACE

namespace ii_emu {
void race_atomic(const void *, size_t, const char *, int) {}
void race_forget(uintptr_t, size_t) {}
void race_end_block() {}
} // namespace ii_emu

#else
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <algorithm>
#include <map>
#include <mutex>
#include <set>
#include <vector>

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace ii_emu {
namespace {

/* One access. stamp: running.now at that time, 0 for none. mask: which of the cell's two bytes. */
struct access {
  uint64_t stamp : 48, thread : 10, mask : 2, atomic : 1;
  uint32_t block;
  uint32_t place; /* code address from the image's base, or index of a site with the top bit set */
};
struct cell {
  access writer, reader, other; /* reader: the last one; other: an earlier one */
};

enum region_kind { REGION_DEVICE, REGION_DYNAMIC, REGION_STATIC };
struct region {
  uintptr_t start, end;
  region_kind kind;
  cell *cells;
};

std::mutex lock; /* of the table: other host threads may free memory meanwhile */
std::map<uintptr_t, region> regions;
region recent[8];
unsigned next_recent;
uint64_t recent_version;
std::vector<std::pair<const char *, int>> sites; /* of atomics */
std::set<std::pair<uint32_t, uint32_t>> told;
/* Reads of shared memory that nobody had written: a race when somebody still does in this block,
 * otherwise a use of nothing. */
struct early_read {
  region r;
  uintptr_t p;
  access now;
};
std::vector<early_read> unwritten;
const uint32_t IS_SITE = 0x80000000u;

size_t cells_bytes(size_t bytes) {
  return (bytes / 2 + 2) * sizeof(cell);
}

region make_region(uintptr_t start, size_t bytes, region_kind kind) {
  std::lock_guard<std::mutex> hold(lock);
  const auto at = regions.find(start);
  if (at != regions.end() && at->second.end == start + bytes && at->second.kind == kind) {
    return at->second;
  }
  void *m = mmap(NULL, cells_bytes(bytes), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (m == MAP_FAILED) {
    report(false, "race checker", "no memory for the shadow of %zu bytes", bytes);
    abort();
  }
  return regions[start] = region{start, start + bytes, kind, (cell *)m};
}

/* Dynamic shared memory is another block of the heap at every launch. */
region dynamic_region() {
  static cell *cells;
  if (!cells) {
    cells = (cell *)mmap(NULL, cells_bytes(256 << 10), PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }
  const uintptr_t start = (uintptr_t)running.dynamic_shared;
  return region{start, start + running.l->shared_bytes, REGION_DYNAMIC, cells};
}

std::string source(uint32_t place) {
  if (place & IS_SITE) {
    const auto &s = sites[place & ~IS_SITE];
    return "\n    " + std::string(s.first) + ":" + std::to_string(s.second);
  }
  return source_of(image_base() + place);
}

std::string what(uintptr_t p, const region &r) {
  char text[256];
  const size_t offset = p - r.start, bytes = r.end - r.start;
  if (r.kind == REGION_STATIC) {
    std::string name;
    uintptr_t start;
    size_t n;
    find_shared((void *)p, &name, &start, &n);
    snprintf(text, sizeof text, "byte %zu of the %zu of __shared__ %s", offset, bytes,
             name.c_str());
  } else {
    snprintf(text, sizeof text, "byte %zu of %zu of %s", offset, bytes,
             r.kind == REGION_DYNAMIC ? "the dynamic shared memory" : "an allocation");
  }
  return text;
}

std::string who(const access &a) {
  const dim3 b = block_index(a.block);
  const uint3 t = thread_index(a.thread);
  char text[128];
  snprintf(text, sizeof text, "block (%u,%u,%u) thread (%u,%u,%u)", b.x, b.y, b.z, t.x, t.y, t.z);
  return text;
}

void conflict(uintptr_t p, const region &r, const access &now, bool writes, const access &before,
              bool wrote) {
  if (!told.insert({now.place, before.place}).second) return;
  report(true, "race",
         "%s\n  %s%s by %s at%s\n  %s%s by %s at%s\n  no __syncthreads or __syncwarp between them",
         what(p, r).c_str(), now.atomic ? "atomic " : "", writes ? "write" : "read",
         who(now).c_str(), source(now.place).c_str(),
         before.atomic ? "earlier atomic " : "earlier ", wrote ? "write" : "read",
         who(before).c_str(), source(before.place).c_str());
}

inline bool ordered(const access &a) {
  if (a.block != (uint32_t)running.block) return false;
  const int t = running.thread, u = (int)a.thread;
  if (u == t || running.barrier > a.stamp) return true;
  if (u / 32 != t / 32) return false;
  const int w = t / 32;
  return running.warp_sync[w] > a.stamp ||
         (running.partial_sync[w] && running.pair_sync[t][u % 32] > a.stamp);
}

/* Keeps in `other` a reader that a later write of the present threads may still conflict with. */
inline void add_reader(cell &c, const access &now) {
  const access last = c.reader;
  c.reader = now;
  if (last.stamp == 0 || (last.thread == now.thread && last.block == now.block)) return;
  const bool farther = last.block != now.block || last.thread / 32 != now.thread / 32;
  const bool stale = c.other.stamp < running.launch_start || ordered(c.other);
  if (farther || stale) c.other = last;
}

inline bool same(const access &a, const access &b) {
  return !memcmp(&a, &b, offsetof(access, place));
}

void touch_cell(cell &c, uintptr_t p, const region &r, const access &now, int action,
                uint64_t since) {
  const bool write = action & WRITE;
  const access &w = c.writer;
  /* The same again, and nobody else meanwhile: a write would have removed the readers. */
  if (write ? same(w, now) && !c.reader.stamp && !c.other.stamp : same(c.reader, now)) return;
  if (w.stamp >= since && (w.mask & now.mask) && !(w.atomic && now.atomic) && !ordered(w)) {
    conflict(p, r, now, write, w, true);
  }
  if (r.kind != REGION_DEVICE && w.stamp < since && (!write || now.atomic) && !(action & COPY)) {
    if (!told.count({now.place, 0})) unwritten.push_back(early_read{r, p, now});
  }
  if (!write) {
    add_reader(c, now);
    return;
  }
  for (const access *a : {&c.reader, &c.other}) {
    if (a->stamp >= since && (a->mask & now.mask) && !ordered(*a)) {
      conflict(p, r, now, true, *a, false);
    }
  }
  c.writer = now;
  c.reader.stamp = c.other.stamp = 0;
}

void touch(const region &r, uintptr_t p, size_t bytes, int action, uint32_t place) {
  const uint64_t since = r.kind == REGION_DEVICE ? running.launch_start : running.block_start;
  const uintptr_t end = p + bytes;
  if (end > r.end) {
    report(true, "access over the end", "%s of %zu bytes at %s by thread %d of the block at%s",
           action & WRITE ? "write" : "read", bytes, what(p, r).c_str(), running.thread,
           source(place).c_str());
    return;
  }
  access now = {};
  now.stamp = running.now;
  now.thread = (uint64_t)running.thread;
  now.atomic = (action & ATOMIC) != 0;
  now.block = (uint32_t)running.block;
  now.place = place;
  for (uintptr_t at = p & ~(uintptr_t)1; at < end; at += 2) {
    cell &c = r.cells[(at - (r.start & ~(uintptr_t)1)) / 2];
    now.mask = (at >= p ? 1u : 0u) | (at + 1 < end ? 2u : 0u);
    touch_cell(c, std::max(at, p), r, now, action, since);
  }
}

/* The region that holds p; false when it is none that is watched. */
bool find_region(uintptr_t p, int action, size_t bytes, uint32_t place, region *out) {
  uintptr_t start;
  size_t n;
  if (in_image((void *)p)) {
    if (!find_shared((void *)p, NULL, &start, &n)) return false;
    *out = make_region(start, n, REGION_STATIC);
    return true;
  }
  const allocation a = find_allocation((void *)p);
  if (a.kind == MEMORY_DEVICE && p < a.address + a.bytes) {
    *out = make_region(a.address, a.bytes, REGION_DEVICE);
    return true;
  }
  if (a.kind == MEMORY_PINNED) return false;
  if (told.insert({place, 1}).second) {
    report(true, "invalid access",
           "%s of %zu bytes at %p, which is neither device memory nor shared memory of the block, "
           "at%s",
           action & WRITE ? "write" : "read", bytes, (void *)p, source(place).c_str());
  }
  return false;
}

/* threadIdx and the like, which every kernel reads all the time. */
inline bool is_position(uintptr_t p) {
  return p - (uintptr_t)&threadIdx < sizeof threadIdx ||
         p - (uintptr_t)&blockIdx < sizeof blockIdx || p - (uintptr_t)&blockDim < sizeof blockDim ||
         p - (uintptr_t)&gridDim < sizeof gridDim;
}

void check(uintptr_t p, size_t bytes, int action, uint32_t place) {
  if (p - running.stack < running.stack_end - running.stack || is_position(p)) return;
  if (p - (uintptr_t)running.l->body < running.l->body->bytes) return;
  if (p - (uintptr_t)running.dynamic_shared < running.l->shared_bytes) {
    touch(dynamic_region(), p, bytes, action, place);
    return;
  }
  if (recent_version != allocations_version()) {
    memset(recent, 0, sizeof recent);
    recent_version = allocations_version();
  }
  for (const region &r : recent) {
    if (p - r.start < r.end - r.start) {
      touch(r, p, bytes, action, place);
      return;
    }
  }
  region r;
  if (!find_region(p, action, bytes, place, &r)) return;
  recent[next_recent++ % 8] = r;
  touch(r, p, bytes, action, place);
}

} // namespace

void compiled_access(const void *p, size_t bytes, int action, bool aligned, const void *pc) {
  if (!in_kernel_thread) return;
  static const uintptr_t base = image_base();
  const uint32_t place = (uint32_t)((uintptr_t)pc - 1 - base);
  if (aligned && (uintptr_t)p % bytes && told.insert({place, 2}).second) {
    report(true, "misaligned access", "%s of %zu bytes at %p, at%s",
           action & WRITE ? "write" : "read", bytes, p, source(place).c_str());
  }
  check((uintptr_t)p, bytes, action, place);
}

void compiled_entry(const void *) {}
void compiled_exit() {}

void race_atomic(const void *p, size_t bytes, const char *file, int line) {
  if (!in_kernel_thread) return;
  size_t i = 0;
  while (i < sites.size() && (sites[i].second != line || sites[i].first != file)) i++;
  if (i == sites.size()) sites.push_back({file, line});
  check((uintptr_t)p, bytes, WRITE | ATOMIC, IS_SITE | (uint32_t)i);
}

void race_end_block() {
  for (const early_read &e : unwritten) {
    const cell &c = e.r.cells[(e.p - (e.r.start & ~(uintptr_t)1)) / 2];
    if (c.writer.stamp >= running.block_start || !told.insert({e.now.place, 0}).second) continue;
    report(true, "uninitialised shared memory", "%s\n  read by %s at%s", what(e.p, e.r).c_str(),
           who(e.now).c_str(), source(e.now.place).c_str());
  }
  unwritten.clear();
}

void race_forget(uintptr_t address, size_t bytes) {
  std::lock_guard<std::mutex> hold(lock);
  const auto at = regions.find(address);
  if (at == regions.end()) return;
  munmap(at->second.cells, cells_bytes(at->second.end - at->second.start));
  regions.erase(at);
  (void)bytes;
}

} // namespace ii_emu
#endif
