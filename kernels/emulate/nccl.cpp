/* Stand-in of NCCL behind its own header: collectives between ranks that are threads or processes
 * of this machine (nccl_clique.cpp), run on streams as the library's are.
 *
 * All ranks must be asked for the same (collective, count, type, operation, root): where NCCL would
 * hang or exchange garbage, every rank gets ncclInvalidUsage and a sentence (ncclGetLastError). A
 * rank that died, left, aborted or does not come within II_EMU_NCCL_TIMEOUT seconds (300) is
 * ncclRemoteError. Errors are returned by the call when streams are eager, else by
 * ncclCommGetAsyncError and every later call; results are filled with 0xFF then.
 * Sums of 16-bit types run in float in the order of ranks and are rounded once; NCCL's own order
 * and roundings are different ones. Not here: ncclSend and ncclRecv. */
#include <nccl.h>
#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <algorithm>
#include <functional>
#include <memory>
#include <thread>
#include <vector>
#include "kernels/dtype.h"
#include "kernels/emulate/emulate_internal.h"
#include "kernels/emulate/nccl_clique.h"

using ii_emu::clique;
using ii_emu::collective;

struct ncclComm {
  std::shared_ptr<clique> members; /* queued work holds on to it, too */
};

namespace {

enum { ALL_REDUCE, BROADCAST, REDUCE, REDUCE_SCATTER, ALL_GATHER };

thread_local std::string last_message;

ncclResult_t refuse(ncclResult_t error, const std::string &message) {
  last_message = message;
  return error;
}

ncclResult_t result_of(const clique &c) {
  if (c.error() != ncclSuccess) last_message = c.message();
  return c.error();
}

size_t type_bytes(int32_t type) {
  switch (type) {
  case ncclInt8:
  case ncclUint8:
    return 1;
  case ncclFloat16:
  case ncclBfloat16:
    return 2;
  case ncclInt32:
  case ncclUint32:
  case ncclFloat32:
    return 4;
  case ncclInt64:
  case ncclUint64:
  case ncclFloat64:
    return 8;
  default:
    return 0;
  }
}

/* ---- Reductions -------------------------------------------------------------------------------*/

/* How elements of storage type S are read into and written from the accumulator A. */
struct as_half {
  typedef uint16_t S;
  typedef float A;
  static A up(S v) { return ii_f16_to_f32(v); }
  static S down(A v) { return ii_f32_to_f16(v); }
};
struct as_bfloat {
  typedef uint16_t S;
  typedef float A;
  static A up(S v) { return ii_bf16_to_f32(v); }
  static S down(A v) { return ii_f32_to_bf16(v); }
};
template <typename T> struct as_is {
  typedef T S;
  typedef T A;
  static A up(S v) { return v; }
  static S down(A v) { return v; }
};

template <typename A> A combine(int32_t op, A a, A b) {
  switch (op) {
  case ncclProd:
    return a * b;
  case ncclMax:
    return a < b ? b : a;
  case ncclMin:
    return b < a ? b : a;
  default:
    return a + b;
  }
}

/* out[n] = the pieces of all ranks, combined in the order of ranks. */
template <typename T> void combine_pieces(const clique &c, int32_t op, size_t n, void *out) {
  typename T::S *to = static_cast<typename T::S *>(out);
  for (size_t i = 0; i < n; i++) {
    typename T::A v = T::up(reinterpret_cast<const typename T::S *>(c.piece_of(0))[i]);
    for (int r = 1; r < c.ranks(); r++)
      v = combine(op, v, T::up(reinterpret_cast<const typename T::S *>(c.piece_of(r))[i]));
    if (op == ncclAvg) v /= (typename T::A)c.ranks();
    to[i] = T::down(v);
  }
}

bool can_reduce(int32_t type) {
  return type == ncclFloat32 || type == ncclFloat64 || type == ncclFloat16 ||
         type == ncclBfloat16 || type == ncclInt32 || type == ncclInt64;
}

void reduce_pieces(const clique &c, const collective &call, size_t n, void *out) {
  switch (call.type) {
  case ncclFloat16:
    combine_pieces<as_half>(c, call.op, n, out);
    break;
  case ncclBfloat16:
    combine_pieces<as_bfloat>(c, call.op, n, out);
    break;
  case ncclFloat32:
    combine_pieces<as_is<float>>(c, call.op, n, out);
    break;
  case ncclFloat64:
    combine_pieces<as_is<double>>(c, call.op, n, out);
    break;
  case ncclInt32:
    combine_pieces<as_is<int32_t>>(c, call.op, n, out);
    break;
  default:
    combine_pieces<as_is<int64_t>>(c, call.op, n, out);
  }
}

/* ---- Collectives ------------------------------------------------------------------------------*/

/* One rank's call with its buffers. */
struct task {
  std::shared_ptr<clique> members;
  collective call;
  const char *send;
  char *recv;
  size_t send_bytes, recv_bytes; /* 0: not used by this rank */
};

/* The bytes [at, at+n) of this call, which all ranks run through together. */
ncclResult_t exchange_piece(const task &t, size_t at, size_t n) {
  clique &c = *t.members;
  const size_t total = t.call.count * type_bytes(t.call.type);
  const size_t elements = n / type_bytes(t.call.type);
  const int32_t root = t.call.root;
  switch (t.call.kind) {
  case REDUCE_SCATTER: /* each rank's part in turn */
    for (int r = 0; r < c.ranks(); r++) {
      memcpy(c.my_piece(), t.send + (size_t)r * total + at, n);
      if (c.show() != ncclSuccess) return c.error();
      if (r == c.rank()) reduce_pieces(c, t.call, elements, t.recv + at);
    }
    return ncclSuccess;
  case BROADCAST:
    if (c.rank() == root) memcpy(c.my_piece(), t.send + at, n);
    if (c.show() != ncclSuccess) return c.error();
    memcpy(t.recv + at, c.piece_of(root), n);
    return ncclSuccess;
  default:
    memcpy(c.my_piece(), t.send + at, n);
    if (c.show() != ncclSuccess) return c.error();
    if (t.call.kind == ALL_GATHER)
      for (int r = 0; r < c.ranks(); r++) memcpy(t.recv + (size_t)r * total + at, c.piece_of(r), n);
    else if (t.call.kind == ALL_REDUCE || c.rank() == root)
      reduce_pieces(c, t.call, elements, t.recv + at);
    return ncclSuccess;
  }
}

void run_task(const task &t) {
  const size_t total = t.call.count * type_bytes(t.call.type);
  ncclResult_t result = t.members->agree(t.call);
  for (size_t at = 0; at < total && result == ncclSuccess; at += clique::PIECE)
    result = exchange_piece(t, at, std::min<size_t>(clique::PIECE, total - at));
  if (result != ncclSuccess && t.recv_bytes) memset(t.recv, 0xFF, t.recv_bytes);
}

/* ---- Groups: calls wait for ncclGroupEnd, which runs those of different communicators at the same
 * time, so that one thread can hold several ranks ----------------------------------------------*/

struct job {
  const void *owner; /* jobs of one owner run in order */
  int device;
  cudaStream_t stream;
  bool waits; /* for the stream, when other owners run beside it */
  std::function<ncclResult_t()> run;
};
thread_local int group_depth;
thread_local std::vector<job> group;

ncclResult_t run_or_keep(job j) {
  if (group_depth == 0) return j.run();
  group.push_back(std::move(j));
  return ncclSuccess;
}

/* Runs one owner's jobs on a thread of its own. Lazy streams are waited for here: the thread that
 * waits for them later could only wait for one rank at a time. */
void run_jobs(const std::vector<job> &jobs, ncclResult_t *result, std::string *message) {
  for (const job &j : jobs) {
    cudaSetDevice(j.device);
    const ncclResult_t r = j.run();
    if (j.waits) cudaStreamSynchronize(j.stream);
    if (*result != ncclSuccess || r == ncclSuccess) continue;
    *result = r;
    *message = last_message;
  }
}

ncclResult_t run_group(const std::vector<job> &jobs) {
  std::vector<std::vector<job>> owners;
  for (const job &j : jobs) {
    auto at = std::find_if(owners.begin(), owners.end(),
                           [&](const std::vector<job> &o) { return o.front().owner == j.owner; });
    if (at == owners.end()) at = owners.insert(at, std::vector<job>());
    at->push_back(j);
  }
  ncclResult_t result = ncclSuccess;
  if (owners.size() == 1) {
    for (const job &j : jobs) {
      const ncclResult_t r = j.run();
      if (result == ncclSuccess) result = r;
    }
    return result;
  }
  std::vector<ncclResult_t> results(owners.size(), ncclSuccess);
  std::vector<std::string> messages(owners.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < owners.size(); i++)
    threads.emplace_back(run_jobs, std::cref(owners[i]), &results[i], &messages[i]);
  for (std::thread &t : threads) t.join();
  for (size_t i = 0; i < owners.size() && result == ncclSuccess; i++)
    if (results[i] != ncclSuccess) result = refuse(results[i], messages[i]);
  return result;
}

/* ---- Checks -----------------------------------------------------------------------------------*/

bool in_device(const char *function, const char *what, const void *p, size_t bytes) {
  if (ii_emu::in_device(p, bytes)) return true;
  ii_emu::report(true, "buffer outside device memory",
                 "%s: the %s buffer at %p, %zu bytes, is not inside one live allocation", function,
                 what, p, bytes);
  return false;
}

/* In place means that a rank's own part is where its result belongs; any other overlap is wrong. */
bool buffers_fit(const char *function, const task &t) {
  if (t.send_bytes && !in_device(function, "send", t.send, t.send_bytes)) return false;
  if (t.recv_bytes && !in_device(function, "receive", t.recv, t.recv_bytes)) return false;
  if (!t.send_bytes || !t.recv_bytes) return true;
  const size_t part = t.call.count * type_bytes(t.call.type) * (size_t)t.members->rank();
  const char *send = t.send, *recv = t.recv;
  const bool in_place = t.call.kind == ALL_GATHER       ? send == recv + part
                        : t.call.kind == REDUCE_SCATTER ? recv == send + part
                                                        : send == recv;
  if (in_place || send >= recv + t.recv_bytes || recv >= send + t.send_bytes) return true;
  ii_emu::report(true, "overlapping buffers", "%s: send and receive buffers overlap", function);
  return false;
}

ncclResult_t submit(const char *function, ncclComm_t comm, cudaStream_t stream, int kind,
                    const void *send, void *recv, size_t count, int type, int op, int root) {
  if (!comm) return refuse(ncclInvalidArgument, std::string(function) + ": no communicator");
  const std::shared_ptr<clique> c = comm->members;
  if (c->error() != ncclSuccess) return result_of(*c);
  const size_t part = count * type_bytes(type), all = part * (size_t)c->ranks();
  if (!type_bytes(type) || op < ncclSum || op > ncclAvg || root < 0 || root >= c->ranks())
    return refuse(ncclInvalidArgument, std::string(function) + ": unknown type, operation or root");
  const bool reduces = kind != BROADCAST && kind != ALL_GATHER, is_root = c->rank() == root;
  if (reduces && !can_reduce(type))
    return refuse(ncclInvalidArgument, std::string(function) +
                                           ": the emulation reduces float16, "
                                           "bfloat16, float32, float64, int32 and int64 only");
  const collective call = {kind, type, op, root, count};
  task t = {c, call, static_cast<const char *>(send), static_cast<char *>(recv), part, part};
  if (kind == BROADCAST && !is_root) t.send_bytes = 0;
  if (kind == REDUCE && !is_root) t.recv_bytes = 0;
  if (kind == REDUCE_SCATTER) t.send_bytes = all;
  if (kind == ALL_GATHER) t.recv_bytes = all;
  if (!buffers_fit(function, t)) return refuse(ncclInvalidArgument, "bad buffers");
  return run_or_keep(job{c.get(), c->device(), stream, true, [t, stream] {
                           ii_emu::enqueue(stream, [t] { run_task(t); });
                           return result_of(*t.members);
                         }});
}

ncclResult_t join(ncclComm_t *comm, int ranks, const ncclUniqueId &id, int rank, int device) {
  auto c = std::make_shared<clique>(id, ranks, rank, device);
  *comm = NULL;
  if (c->join() == ncclSuccess) {
    *comm = new ncclComm{c};
    return ncclSuccess;
  }
  c->give_up();
  return result_of(*c);
}

} // namespace

/* ---- The library's functions ------------------------------------------------------------------*/

ncclResult_t ncclGetVersion(int *version) {
  if (!version) return refuse(ncclInvalidArgument, "ncclGetVersion: no place for the version");
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
  if (!id) return refuse(ncclInvalidArgument, "ncclGetUniqueId: no place for the id");
  const int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
  const ssize_t n = fd < 0 ? -1 : read(fd, id->internal, sizeof id->internal);
  if (fd >= 0) close(fd);
  if (n != (ssize_t)sizeof id->internal)
    return refuse(ncclSystemError, "ncclGetUniqueId: /dev/urandom cannot be read");
  return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank) {
  if (!comm) return refuse(ncclInvalidArgument, "ncclCommInitRank: no place for the communicator");
  const int device = ii_emu::current_device();
  return run_or_keep(
      job{comm, device, NULL, false, [=] { return join(comm, ranks, id, rank, device); }});
}

ncclResult_t ncclCommInitAll(ncclComm_t *comms, int ranks, const int *devices) {
  ncclUniqueId id;
  if (!comms || ranks < 1) return refuse(ncclInvalidArgument, "ncclCommInitAll: no communicators");
  const ncclResult_t result = ncclGetUniqueId(&id);
  if (result != ncclSuccess) return result;
  std::vector<job> jobs;
  for (int r = 0; r < ranks; r++) {
    const int device = devices ? devices[r] : r;
    jobs.push_back(
        job{comms + r, device, NULL, false, [=] { return join(comms + r, ranks, id, r, device); }});
  }
  return run_group(jobs);
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  if (!comm) return ncclSuccess;
  delete comm;
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  if (!comm) return ncclSuccess;
  comm->members->give_up();
  delete comm;
  return ncclSuccess;
}

ncclResult_t ncclCommCount(const ncclComm_t comm, int *count) {
  if (!comm || !count) return refuse(ncclInvalidArgument, "ncclCommCount: NULL argument");
  *count = comm->members->ranks();
  return ncclSuccess;
}

ncclResult_t ncclCommUserRank(const ncclComm_t comm, int *rank) {
  if (!comm || !rank) return refuse(ncclInvalidArgument, "ncclCommUserRank: NULL argument");
  *rank = comm->members->rank();
  return ncclSuccess;
}

ncclResult_t ncclCommCuDevice(const ncclComm_t comm, int *device) {
  if (!comm || !device) return refuse(ncclInvalidArgument, "ncclCommCuDevice: NULL argument");
  *device = comm->members->device();
  return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error) {
  if (!comm || !error) return refuse(ncclInvalidArgument, "ncclCommGetAsyncError: NULL argument");
  *error = result_of(*comm->members);
  return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result) {
  switch (result) {
  case ncclSuccess:
    return "no error";
  case ncclUnhandledCudaError:
    return "unhandled cuda error";
  case ncclSystemError:
    return "unhandled system error";
  case ncclInternalError:
    return "internal error";
  case ncclInvalidArgument:
    return "invalid argument";
  case ncclInvalidUsage:
    return "invalid usage";
  case ncclRemoteError:
    return "remote process exited or there was a network error";
  case ncclInProgress:
    return "NCCL operation in progress";
  default:
    return "unknown result code";
  }
}

const char *ncclGetLastError(ncclComm_t comm) {
  if (comm && comm->members->error() != ncclSuccess) last_message = comm->members->message();
  return last_message.c_str();
}

ncclResult_t ncclAllReduce(const void *send, void *recv, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  return submit("ncclAllReduce", comm, stream, ALL_REDUCE, send, recv, count, type, op, 0);
}

ncclResult_t ncclBroadcast(const void *send, void *recv, size_t count, ncclDataType_t type,
                           int root, ncclComm_t comm, cudaStream_t stream) {
  return submit("ncclBroadcast", comm, stream, BROADCAST, send, recv, count, type, ncclSum, root);
}

ncclResult_t ncclReduce(const void *send, void *recv, size_t count, ncclDataType_t type,
                        ncclRedOp_t op, int root, ncclComm_t comm, cudaStream_t stream) {
  return submit("ncclReduce", comm, stream, REDUCE, send, recv, count, type, op, root);
}

ncclResult_t ncclReduceScatter(const void *send, void *recv, size_t count, ncclDataType_t type,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  return submit("ncclReduceScatter", comm, stream, REDUCE_SCATTER, send, recv, count, type, op, 0);
}

ncclResult_t ncclAllGather(const void *send, void *recv, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream) {
  return submit("ncclAllGather", comm, stream, ALL_GATHER, send, recv, count, type, ncclSum, 0);
}

ncclResult_t ncclGroupStart() {
  group_depth++;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
  if (group_depth == 0) return refuse(ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
  if (--group_depth > 0) return ncclSuccess;
  const std::vector<job> jobs = std::move(group);
  group.clear();
  return run_group(jobs);
}
