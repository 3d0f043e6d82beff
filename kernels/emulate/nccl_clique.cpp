/* A segment of shared memory per communicator, named by the unique id and unlinked as soon as all
 * ranks have it: one place per rank (who it is, how often it has met the others, what it was asked)
 * and two pieces of data per rank. No locks: a rank only writes its own place, publishes by raising
 * its phase, and waits until all have reached its phase; so a rank that dies leaves nothing locked.
 * Calls and pieces alternate between two copies: to overwrite one, a rank must have met the others
 * after they were done with it. */
#include "kernels/emulate/nccl_clique.h"
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

namespace ii_emu {

namespace {

const int MAX_RANKS = 64;
const uint32_t READY = 0x4c43434eu;
const double DEFAULT_TIMEOUT = 300;

enum place_state { EMPTY, TAKEN, JOINED, LEFT, ABORTED };

const char *const KINDS[] = {"ncclAllReduce", "ncclBroadcast", "ncclReduce", "ncclReduceScatter",
                             "ncclAllGather"};

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double timeout() {
  const char *s = getenv("II_EMU_NCCL_TIMEOUT");
  const double seconds = s ? atof(s) : 0;
  return seconds > 0 ? seconds : DEFAULT_TIMEOUT;
}

/* A process that has ended, be it that its parent has not noticed yet. */
bool has_ended(int pid) {
  char path[64], text[512];
  snprintf(path, sizeof path, "/proc/%d/stat", pid);
  FILE *f = fopen(path, "r");
  if (!f) return true;
  const size_t n = fread(text, 1, sizeof text - 1, f);
  fclose(f);
  text[n] = 0;
  const char *name_end = strrchr(text, ')');
  return name_end && strlen(name_end) > 2 && (name_end[2] == 'Z' || name_end[2] == 'X');
}

std::string describe(const collective &c) {
  char text[160];
  snprintf(text, sizeof text, "%s of %llu elements of type %d, operation %d, root %d",
           KINDS[c.kind], (unsigned long long)c.count, c.type, c.op, c.root);
  return text;
}

bool same(const collective &a, const collective &b) {
  return a.kind == b.kind && a.type == b.type && a.op == b.op && a.root == b.root &&
         a.count == b.count;
}

} // namespace

struct clique_memory {
  std::atomic<uint32_t> ready;
  std::atomic<int32_t> ranks, joined;
  struct place {
    std::atomic<int32_t> state;
    int32_t pid, device;
    std::atomic<uint64_t> phase;
    collective call[2];
  } places[MAX_RANKS];
};

static_assert(std::atomic<uint64_t>::is_always_lock_free, "shared between processes");

static size_t header_bytes() {
  return (sizeof(clique_memory) + 4095) / 4096 * 4096;
}

clique::clique(const ncclUniqueId &id, int ranks, int rank, int device)
    : ranks_(ranks), rank_(rank), device_(device), memory_(NULL), mine_(NULL), bytes_(0), phase_(0),
      calls_(0), error_(ncclSuccess) {
  char hex[2 * 16 + 1];
  for (int i = 0; i < 16; i++) snprintf(hex + 2 * i, 3, "%02x", (unsigned char)id.internal[i]);
  name_ = std::string("/ii_emu_nccl_") + hex;
}

clique::~clique() {
  if (!memory_) return;
  int32_t joined = JOINED;
  if (mine_) mine_->compare_exchange_strong(joined, LEFT);
  munmap(memory_, bytes_);
}

std::string clique::message() const {
  std::lock_guard<std::mutex> hold(lock_);
  return message_;
}

ncclResult_t clique::fail(ncclResult_t error, const char *fmt, ...) {
  char text[512];
  va_list args;
  va_start(args, fmt);
  vsnprintf(text, sizeof text, fmt, args);
  va_end(args);
  std::lock_guard<std::mutex> hold(lock_);
  if (error_.load() == ncclSuccess) {
    message_ = text;
    error_.store(error);
  }
  return error_.load();
}

/* The first rank makes the segment, the others find it; a fresh segment is all zeros. */
ncclResult_t clique::open_memory() {
  bytes_ = header_bytes() + (size_t)ranks_ * 2 * PIECE;
  const double end = now() + timeout();
  bool first = true;
  int fd = shm_open(name_.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
  if (fd < 0 && errno == EEXIST) {
    first = false;
    fd = shm_open(name_.c_str(), O_RDWR, 0600);
  }
  if (fd < 0) return fail(ncclSystemError, "shm_open of %s: %s", name_.c_str(), strerror(errno));
  if (first && ftruncate(fd, (off_t)bytes_) != 0) {
    close(fd);
    return fail(ncclSystemError, "%zu bytes of shared memory: %s", bytes_, strerror(errno));
  }
  struct stat info = {};
  while (fstat(fd, &info) == 0 && (size_t)info.st_size < header_bytes() && now() < end) usleep(200);
  if ((size_t)info.st_size != bytes_) {
    close(fd);
    return fail(ncclInvalidArgument, "rank %d was started with %d ranks, an other one not", rank_,
                ranks_);
  }
  void *p = mmap(NULL, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (p == MAP_FAILED) return fail(ncclSystemError, "mmap: %s", strerror(errno));
  memory_ = static_cast<clique_memory *>(p);
  if (first) {
    memory_->ranks.store(ranks_);
    memory_->ready.store(READY);
  }
  while (memory_->ready.load() != READY && now() < end) usleep(200);
  return ncclSuccess;
}

ncclResult_t clique::take_place() {
  clique_memory::place &mine = memory_->places[rank_];
  int32_t empty = EMPTY;
  if (!mine.state.compare_exchange_strong(empty, TAKEN))
    return fail(ncclInvalidUsage, "two ranks of one communicator are number %d", rank_);
  mine_ = &mine.state;
  mine.pid = getpid();
  mine.device = device_;
  mine.state.store(JOINED);
  if (memory_->joined.fetch_add(1) + 1 == ranks_) shm_unlink(name_.c_str());
  return ncclSuccess;
}

ncclResult_t clique::join() {
  if (ranks_ < 1 || ranks_ > MAX_RANKS || rank_ < 0 || rank_ >= ranks_)
    return fail(ncclInvalidArgument, "rank %d of %d: the emulation takes ranks 0 to %d", rank_,
                ranks_, MAX_RANKS - 1);
  if (open_memory() != ncclSuccess || take_place() != ncclSuccess) return error();
  if (meet("ncclCommInitRank") != ncclSuccess) {
    shm_unlink(name_.c_str());
    return error();
  }
  for (int a = 0; a < ranks_; a++)
    for (int b = 0; b < a; b++) {
      const clique_memory::place &x = memory_->places[a], &y = memory_->places[b];
      if (x.pid == y.pid && x.device == y.device)
        return fail(ncclInvalidUsage, "ranks %d and %d both use GPU %d (II_EMU_DEVICES=n makes n)",
                    b, a, x.device);
    }
  return ncclSuccess;
}

void clique::give_up() {
  if (mine_) mine_->store(ABORTED);
}

ncclResult_t clique::wait_for(int r, uint64_t phase, const char *what) {
  const clique_memory::place &other = memory_->places[r];
  const double start = now(), limit = timeout();
  double next_look = start + 0.02;
  for (int turn = 0; other.phase.load() < phase; turn++) {
    const int32_t state = other.state.load();
    if (mine_->load() == ABORTED)
      return fail(ncclInternalError, "%s: the communicator was aborted on rank %d", what, rank_);
    if ((state == LEFT || state == ABORTED) && other.phase.load() < phase)
      return fail(ncclRemoteError, "%s: rank %d waits for rank %d, which has %s", what, rank_, r,
                  state == LEFT ? "left the communicator" : "aborted it");
    if (now() > next_look) {
      if (state == JOINED && has_ended(other.pid) && other.phase.load() < phase)
        return fail(ncclRemoteError, "%s: rank %d waits for rank %d, whose process %d has ended",
                    what, rank_, r, other.pid);
      if (now() - start > limit)
        return fail(ncclRemoteError,
                    "%s: rank %d has waited %.0f s for rank %d (II_EMU_NCCL_TIMEOUT)", what, rank_,
                    limit, r);
      next_look = now() + 0.02;
    }
    usleep(turn < 100 ? 0 : 100);
  }
  return ncclSuccess;
}

ncclResult_t clique::meet(const char *what) {
  if (error() != ncclSuccess) return error();
  memory_->places[rank_].phase.store(++phase_);
  for (int r = 0; r < ranks_; r++)
    if (wait_for(r, phase_, what) != ncclSuccess) return error();
  return ncclSuccess;
}

ncclResult_t clique::agree(const collective &c) {
  if (error() != ncclSuccess) return error();
  const int copy = (int)(calls_++ % 2);
  memory_->places[rank_].call[copy] = c;
  if (meet(KINDS[c.kind]) != ncclSuccess) return error();
  for (int r = 1; r < ranks_; r++) {
    const collective &first = memory_->places[0].call[copy], &other = memory_->places[r].call[copy];
    if (!same(first, other))
      return fail(ncclInvalidUsage,
                  "the ranks were called differently: rank 0 with %s, rank %d "
                  "with %s",
                  describe(first).c_str(), r, describe(other).c_str());
  }
  return ncclSuccess;
}

/* The copy of a piece is chosen by the phase that makes it visible. */
static char *piece(clique_memory *m, int rank, uint64_t phase) {
  return reinterpret_cast<char *>(m) + header_bytes() +
         ((size_t)rank * 2 + phase % 2) * clique::PIECE;
}

char *clique::my_piece() {
  return piece(memory_, rank_, phase_ + 1);
}
ncclResult_t clique::show() {
  return meet("the exchange of data");
}
const char *clique::piece_of(int r) const {
  return piece(memory_, r, phase_);
}

} // namespace ii_emu
