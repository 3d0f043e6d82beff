/* The records of the memory profile: requests, sets and copies are counted per launch and
 * allocation and go through the model of the second-level cache. Written as JSON lines at the end
 * of the process to the file that II_EMU_PROFILE names. */
#include "kernels/emulate/profile_records.h"

#ifndef II_EMULATE_PROFILE

namespace ii_emu {
void profile_allocated(const void *, size_t) {}
void profile_freed(const void *) {}
void profile_set(void *, size_t) {}
void profile_copy(void *, const void *, size_t) {}
} // namespace ii_emu

#else
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include "kernels/emulate/profile_cache.h"

namespace ii_emu {
namespace {

struct region {
  uint64_t number;
  uintptr_t start;
  size_t bytes;
  cached_range cached;
};

struct record {
  std::string name, file;
  ii_emu_launch_traffic traffic;
  std::vector<ii_emu_buffer_traffic> buffers;
  std::vector<ii_emu_atomic_traffic> atomics;
  std::vector<int> atomic_index;
};

struct atomic_function {
  const char *function, *type;
  int width;
};

struct book : cache_listener {
  std::mutex lock;
  std::map<uintptr_t, std::unique_ptr<region>> regions; /* by address */
  uint64_t allocations = 0;
  std::vector<std::unique_ptr<record>> records;
  uint32_t cleared = 0; /* records that are gone; owners count them too */
  std::vector<atomic_function> functions;
  std::unique_ptr<sector_cache> cache;
  size_t cache_bytes = 0;
  bool on = false;
  uint32_t target = 0; /* number of the record that requests belong to */
  region *last = NULL; /* the region that was found last, and its place in that record */
  uint32_t last_buffer = 0;

  record &at(uint32_t number) { return *records[number - cleared]; }

  ii_emu_buffer_traffic *owner(cache_owner who) {
    return who.record < cleared ? NULL : &at(who.record).buffers[who.buffer];
  }
  void fetched(cache_owner who) override {
    if (ii_emu_buffer_traffic *b = owner(who)) b->dram_read += 32;
  }
  void written(cache_owner who) override {
    if (ii_emu_buffer_traffic *b = owner(who)) b->dram_written += 32;
  }
};

book &B() {
  static book *const b = new book; /* never destroyed: the report is written at exit */
  return *b;
}

/* "dcn_fwd<half,8,4>" of "void dcn_fwd<__half, 8, 4>(args)", as scripts/cuda_gate.sh names kernels.
 */
std::string short_name(std::string s) {
  static const char *const names[][2] = {{"__nv_bfloat16", "bf16"}, {"__half", "half"}};
  for (const auto &n : names) {
    for (size_t i; (i = s.find(n[0])) != std::string::npos;) s.replace(i, strlen(n[0]), n[1]);
  }
  size_t start = 0, end = s.size();
  int depth = 0;
  for (size_t i = 0; i < end; i++) {
    if (s[i] == '<') depth++;
    if (s[i] == '>') depth--;
    if (s[i] == ' ' && depth == 0) start = i + 1;
    if (s[i] == '(' && depth == 0) end = i;
  }
  s = s.substr(start, end - start);
  s.erase(std::remove(s.begin(), s.end(), ' '), s.end());
  return s;
}

record &add_record(const std::string &name) {
  book &b = B();
  b.records.push_back(std::make_unique<record>());
  b.records.back()->name = name;
  b.target = b.cleared + (uint32_t)b.records.size() - 1;
  b.last = NULL;
  return *b.records.back();
}

region *find(uintptr_t p) {
  book &b = B();
  auto at = b.regions.upper_bound(p);
  if (at == b.regions.begin()) return NULL;
  --at;
  return p - at->first < at->second->bytes ? at->second.get() : NULL;
}

/* The region of p and its place in the last record; NULL: not device memory. */
region *locate(uintptr_t p, uint32_t *buffer) {
  book &b = B();
  if (b.last && p - b.last->start < b.last->bytes) {
    *buffer = b.last_buffer;
    return b.last;
  }
  region *r = find(p);
  if (!r) return NULL;
  std::vector<ii_emu_buffer_traffic> &all = b.at(b.target).buffers;
  size_t i = 0;
  while (i < all.size() && all[i].allocation != r->number) i++;
  if (i == all.size()) {
    ii_emu_buffer_traffic t = {};
    t.allocation = r->number;
    t.start = (const void *)r->start;
    t.bytes = r->bytes;
    all.push_back(t);
  }
  b.last = r;
  *buffer = b.last_buffer = (uint32_t)i;
  return r;
}

/* Which bytes of the sectors a request touches. */
struct touched {
  size_t sector;
  uint32_t mask;
};
int sectors_of(const request &r, int from, int to, uintptr_t start, touched *out) {
  int n = 0;
  for (int i = from; i < to; i++) {
    uintptr_t p = r.address[i] - start;
    for (int left = r.bytes; left > 0;) {
      const int at = (int)(p % 32), part = left < 32 - at ? left : 32 - at;
      const uint32_t mask = (part == 32 ? 0xffffffffu : (1u << part) - 1) << at;
      if (n > 0 && out[n - 1].sector == p / 32)
        out[n - 1].mask |= mask;
      else
        out[n++] = touched{p / 32, mask};
      p += (uintptr_t)part;
      left -= part;
    }
  }
  for (int i = 1; i < n; i++) {
    if (out[i].sector > out[i - 1].sector) continue;
    std::sort(out, out + n, [](const touched &a, const touched &b) { return a.sector < b.sector; });
    int m = 0;
    for (int k = 1; k < n; k++) {
      if (out[k].sector == out[m].sector)
        out[m].mask |= out[k].mask;
      else
        out[++m] = out[k];
    }
    return m + 1;
  }
  return n;
}

int width_index(int bytes) {
  return __builtin_ctz((unsigned)bytes);
}

/* Lanes [from,to) of a request, which are in one allocation. */
void count_in_region(const request &r, int from, int to, region &in, uint32_t buffer) {
  book &b = B();
  touched sector[64];
  const int n = sectors_of(r, from, to, in.start, sector), w = width_index(r.bytes);
  ii_emu_accesses &a = b.at(b.target).buffers[buffer].of[r.kind];
  a.accesses[w] += (uint64_t)(to - from);
  a.requests[w]++;
  a.sectors += (uint64_t)n;
  const cache_owner who = {B().target, buffer};
  size_t line = SIZE_MAX;
  for (int i = 0; i < n; i++) {
    if (sector[i].sector / 4 != line) a.lines++;
    line = sector[i].sector / 4;
    if (r.kind == II_EMU_LOAD)
      b.cache->load(in.cached, sector[i].sector, sector[i].mask, who);
    else if (r.kind == II_EMU_STORE)
      b.cache->store(in.cached, sector[i].sector, sector[i].mask, who);
    else
      b.cache->update(in.cached, sector[i].sector, who);
  }
}

void count_atomic(const request &r) {
  record &to = B().at(B().target);
  size_t i = 0;
  while (i < to.atomics.size() && to.atomic_index[i] != r.atomic) i++;
  if (i == to.atomics.size()) {
    const atomic_function &f = B().functions[(size_t)r.atomic];
    to.atomics.push_back(ii_emu_atomic_traffic{f.function, f.type, f.width, 0, 0});
    to.atomic_index.push_back(r.atomic);
  }
  to.atomics[i].accesses += (uint64_t)r.lanes;
  to.atomics[i].requests++;
}

/* Passes of a request to shared memory: 32 banks of 4 bytes; wide accesses are done by 16 or 8
 * lanes at a time, lanes that want the same word share it. */
int wavefronts_of(const request &r) {
  const int together = r.bytes <= 4 ? 32 : 128 / r.bytes, words = r.bytes <= 4 ? 1 : r.bytes / 4;
  int all = 0;
  for (int first = 0; first < r.lanes; first += together) {
    uintptr_t seen[128];
    int n = 0, most = 0, in_bank[32] = {0};
    for (int i = first; i < r.lanes && i < first + together; i++) {
      for (int w = 0; w < words; w++) {
        const uintptr_t word = r.address[i] / 4 + (uintptr_t)w;
        if (std::find(seen, seen + n, word) != seen + n) continue;
        seen[n++] = word;
        most = std::max(most, ++in_bank[word % 32]);
      }
    }
    all += most;
  }
  return all;
}

/* A record for a set or a copy, which may come between the requests of another host thread's
 * kernel. */
class aside {
public:
  explicit aside(const char *name) : hold(B().lock), before(B().target) { add_record(name); }
  ~aside() {
    B().target = before;
    B().last = NULL;
  }
  aside(const aside &) = delete;
  aside &operator=(const aside &) = delete;

private:
  std::lock_guard<std::mutex> hold;
  uint32_t before;
};

/* A range that is read or written whole, by nobody's threads. */
void whole_range(const void *p, size_t bytes, bool store) {
  if (bytes == 0) return;
  uint32_t buffer;
  region *in = locate((uintptr_t)p, &buffer);
  if (!in) return;
  const cache_owner who = {B().target, buffer};
  const size_t from = (uintptr_t)p - in->start, end = from + bytes;
  for (size_t s = from / 32; s * 32 < end; s++) {
    const size_t first = std::max(from, s * 32) - s * 32,
                 last = std::min(end, s * 32 + 32) - s * 32;
    const uint32_t high = last == 32 ? 0xffffffffu : (1u << last) - 1;
    const uint32_t mask = high & ~((1u << first) - 1);
    if (store)
      B().cache->store(in->cached, s, mask, who);
    else
      B().cache->load(in->cached, s, mask, who);
  }
}

/* ---- The report -------------------------------------------------------------------------------*/

void print_widths(FILE *f, const char *name, const uint64_t *n) {
  fprintf(f, "\"%s\": [%llu, %llu, %llu, %llu, %llu]", name, (unsigned long long)n[0],
          (unsigned long long)n[1], (unsigned long long)n[2], (unsigned long long)n[3],
          (unsigned long long)n[4]);
}

const char *const kinds[II_EMU_KINDS] = {"load", "store", "atomic"};

void print_buffer(FILE *f, const ii_emu_buffer_traffic &b) {
  fprintf(f, "{\"allocation\": %llu, \"bytes\": %zu, \"dram_read\": %llu, \"dram_written\": %llu",
          (unsigned long long)b.allocation, b.bytes, (unsigned long long)b.dram_read,
          (unsigned long long)b.dram_written);
  for (int k = 0; k < II_EMU_KINDS; k++) {
    const ii_emu_accesses &a = b.of[k];
    if (!a.lines) continue;
    fprintf(f, ", \"%s\": {", kinds[k]);
    print_widths(f, "accesses", a.accesses);
    fputs(", ", f);
    print_widths(f, "requests", a.requests);
    fprintf(f, ", \"sectors\": %llu, \"lines\": %llu}", (unsigned long long)a.sectors,
            (unsigned long long)a.lines);
  }
  fputs("}", f);
}

void print_record(FILE *f, int64_t i) {
  const ii_emu_launch_traffic t = ii_emu_profile_get(i);
  uint64_t read = 0, written = 0;
  for (int b = 0; b < t.buffers; b++) {
    read += t.buffer[b].dram_read;
    written += t.buffer[b].dram_written;
  }
  fprintf(f, "{\"launch\": %lld, \"name\": \"%s\"", (long long)i, t.name);
  if (t.file) {
    fprintf(f,
            ", \"at\": \"%s:%d\", \"grid\": [%u, %u, %u], \"block\": [%u, %u, %u], "
            "\"static_shared\": %zu, \"dynamic_shared\": %zu",
            t.file, t.line, t.grid[0], t.grid[1], t.grid[2], t.block[0], t.block[1], t.block[2],
            t.static_shared, t.dynamic_shared);
  }
  fprintf(f, ", \"dram_read\": %llu, \"dram_written\": %llu", (unsigned long long)read,
          (unsigned long long)written);
  for (int k = 0; k < II_EMU_KINDS; k++) {
    const ii_emu_shared_traffic &s = t.shared[k];
    if (!s.wavefronts) continue;
    fprintf(f, ", \"shared_%s\": {", kinds[k]);
    print_widths(f, "accesses", s.accesses);
    fputs(", ", f);
    print_widths(f, "requests", s.requests);
    fprintf(f, ", \"wavefronts\": %llu}", (unsigned long long)s.wavefronts);
  }
  if (t.atomics) fputs(", \"atomics\": [", f);
  for (int a = 0; a < t.atomics; a++) {
    fprintf(f,
            "%s{\"function\": \"%s\", \"type\": \"%s\", \"accesses\": %llu, \"requests\": %llu}%s",
            a ? ", " : "", t.atomic[a].function, t.atomic[a].type,
            (unsigned long long)t.atomic[a].accesses, (unsigned long long)t.atomic[a].requests,
            a + 1 == t.atomics ? "]" : "");
  }
  fputs(", \"buffers\": [", f);
  for (int b = 0; b < t.buffers; b++) {
    if (b) fputs(", ", f);
    print_buffer(f, t.buffer[b]);
  }
  fputs("]}\n", f);
}

void write_report() {
  const char *path = getenv("II_EMU_PROFILE");
  FILE *f = fopen(path, "w");
  if (!f) {
    note("II_EMU_PROFILE: the file %s cannot be written", path);
    return;
  }
  ii_emu_profile_empty_cache();
  for (int64_t i = 0; i < ii_emu_profile_count(); i++) print_record(f, i);
  if (fclose(f)) note("II_EMU_PROFILE: the file %s could not be written whole", path);
}

void start() {
  book &b = B();
  if (b.on) return;
  b.cache_bytes = get_settings().l2_bytes;
  b.cache = std::make_unique<sector_cache>(b.cache_bytes, &b);
  b.on = true;
}

/* Before main: allocations are followed from the first one on in any case. */
struct at_start {
  at_start() {
    const char *path = getenv("II_EMU_PROFILE");
    if (!path || !*path) return;
    start();
    atexit(write_report);
  }
} started;

} // namespace

bool profile_on() {
  return B().on;
}

void profile_record(const launch &l) {
  book &b = B();
  std::lock_guard<std::mutex> hold(b.lock);
  const std::string full = function_name(l.kernel);
  record &r = add_record(full.empty() ? l.name : short_name(full));
  ii_emu_launch_traffic &t = r.traffic;
  r.file = l.file;
  t.line = l.line;
  const unsigned grid[3] = {l.grid.x, l.grid.y, l.grid.z};
  const unsigned block[3] = {l.block.x, l.block.y, l.block.z};
  memcpy(t.grid, grid, sizeof grid);
  memcpy(t.block, block, sizeof block);
  t.static_shared = static_shared_bytes(l.kernel);
  t.dynamic_shared = l.shared_bytes;
}

void profile_device_request(const request &r) {
  book &b = B();
  std::lock_guard<std::mutex> hold(b.lock);
  if (r.kind == II_EMU_ATOMIC) count_atomic(r);
  for (int from = 0; from < r.lanes;) {
    uint32_t buffer;
    region *in = locate(r.address[from], &buffer);
    int to = from + 1;
    while (to < r.lanes && (in ? r.address[to] - in->start < in->bytes : !find(r.address[to])))
      to++;
    if (in) count_in_region(r, from, to, *in, buffer);
    from = to;
  }
}

void profile_shared_request(const request &r) {
  book &b = B();
  std::lock_guard<std::mutex> hold(b.lock);
  ii_emu_shared_traffic &s = b.at(b.target).traffic.shared[r.kind];
  const int w = width_index(r.bytes);
  s.accesses[w] += (uint64_t)r.lanes;
  s.requests[w]++;
  s.wavefronts += (uint64_t)wavefronts_of(r);
}

int profile_atomic_index(const char *function, const char *type, int width) {
  book &b = B();
  std::lock_guard<std::mutex> hold(b.lock);
  size_t i = 0;
  while (i < b.functions.size() &&
         (strcmp(b.functions[i].function, function) || strcmp(b.functions[i].type, type)))
    i++;
  if (i == b.functions.size()) b.functions.push_back(atomic_function{function, type, width});
  return (int)i;
}

void profile_allocated(const void *p, size_t bytes) {
  book &b = B();
  std::lock_guard<std::mutex> hold(b.lock);
  std::unique_ptr<region> r = std::make_unique<region>();
  r->number = ++b.allocations;
  r->start = (uintptr_t)p;
  r->bytes = bytes;
  r->cached.sectors = bytes / 32 + 1;
  void *m = mmap(NULL, r->cached.sectors * sizeof(uint32_t), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (m == MAP_FAILED) {
    report(false, "memory profile", "no memory for the table of %zu bytes", bytes);
    abort();
  }
  r->cached.nodes = (uint32_t *)m;
  b.regions[r->start] = std::move(r);
}

void profile_freed(const void *p) {
  book &b = B();
  std::lock_guard<std::mutex> hold(b.lock);
  const auto at = b.regions.find((uintptr_t)p);
  if (at == b.regions.end()) return;
  region &r = *at->second;
  if (b.on) b.cache->leave(r.cached);
  munmap(r.cached.nodes, r.cached.sectors * sizeof(uint32_t));
  b.last = NULL;
  b.regions.erase(at);
}

void profile_set(void *p, size_t bytes) {
  if (!B().on) return;
  const aside record("memset");
  whole_range(p, bytes, true);
}

void profile_copy(void *to, const void *from, size_t bytes) {
  if (!B().on) return;
  const aside record("memcpy");
  whole_range(from, bytes, false);
  whole_range(to, bytes, true);
}

} // namespace ii_emu

using namespace ii_emu;

extern "C" {

void ii_emu_profile_start(void) {
  std::lock_guard<std::mutex> hold(B().lock);
  start();
}

int64_t ii_emu_profile_count(void) {
  return (int64_t)B().records.size();
}

ii_emu_launch_traffic ii_emu_profile_get(int64_t i) {
  const record &r = *B().records[(size_t)i];
  ii_emu_launch_traffic t = r.traffic;
  t.name = r.name.c_str();
  t.file = r.file.empty() ? NULL : r.file.c_str();
  t.buffers = (int)r.buffers.size();
  t.buffer = r.buffers.data();
  t.atomics = (int)r.atomics.size();
  t.atomic = r.atomics.data();
  return t;
}

void ii_emu_profile_empty_cache(void) {
  std::lock_guard<std::mutex> hold(B().lock);
  if (B().on) B().cache->empty();
}

void ii_emu_profile_clear(void) {
  book &b = B();
  std::lock_guard<std::mutex> hold(b.lock);
  b.cleared += (uint32_t)b.records.size();
  b.records.clear();
  b.last = NULL;
}

size_t ii_emu_profile_cache_bytes(void) {
  return B().cache_bytes;
}

} // extern "C"
#endif
