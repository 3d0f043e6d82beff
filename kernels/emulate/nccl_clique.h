/* The ranks of one communicator of the NCCL stand-in: they meet in shared memory, whether they are
 * threads or processes of this machine. */
#ifndef II_EMULATE_NCCL_CLIQUE_H
#define II_EMULATE_NCCL_CLIQUE_H
#include <nccl.h>
#include <stdint.h>
#include <atomic>
#include <mutex>
#include <string>

namespace ii_emu {

/* What a rank was asked to do; all ranks of a communicator must be asked the same. */
struct collective {
  int32_t kind, type, op, root;
  uint64_t count;
};

struct clique_memory;

class clique {
public:
  static constexpr size_t PIECE = 256 << 10; /* bytes that a rank shows the others at a time */

  clique(const ncclUniqueId &id, int ranks, int rank, int device);
  ~clique();
  clique(const clique &) = delete;
  clique &operator=(const clique &) = delete;

  /* Joins the others; returns when all are there, or an error. Once. */
  ncclResult_t join();
  /* Tells the others that this rank has given up; what it waits for itself ends with an error.
   * Going out of existence tells them that it will not come again. */
  void give_up();
  /* Shows `c` to the others and compares what they show. */
  ncclResult_t agree(const collective &c);
  /* Where this rank puts its next piece; show() makes it visible to all and waits for theirs, which
   * piece_of() then reads until the next show(). */
  char *my_piece();
  ncclResult_t show();
  const char *piece_of(int r) const;

  int ranks() const { return ranks_; }
  int rank() const { return rank_; }
  int device() const { return device_; }
  /* The first error of this rank, for ever. */
  ncclResult_t error() const { return error_.load(); }
  std::string message() const;
  ncclResult_t fail(ncclResult_t error, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

private:
  ncclResult_t open_memory();
  ncclResult_t take_place();
  ncclResult_t wait_for(int r, uint64_t phase, const char *what);
  ncclResult_t meet(const char *what);

  std::string name_;
  int ranks_, rank_, device_;
  clique_memory *memory_;
  std::atomic<int32_t> *mine_; /* state of this rank's place; NULL until it has one */
  size_t bytes_;
  uint64_t phase_; /* how often this rank has met the others */
  uint64_t calls_;
  std::atomic<ncclResult_t> error_;
  mutable std::mutex lock_;
  std::string message_;
};

} // namespace ii_emu

#endif
