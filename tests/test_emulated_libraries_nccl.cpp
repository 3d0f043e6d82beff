/* The stand-in of NCCL: collectives of thread and process ranks against their definition, and what
 * becomes of ranks that disagree, die, leave, abort or do not come. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
extern "C" {
#include <cmocka.h>
}
#include <cuda_runtime_api.h>
#include <nccl.h>
#include <atomic>
#include <functional>
#include <string>
#include <thread>
#include <vector>
#include "emulated_death.h"
#include "kernels/dtype.h"

namespace {

typedef std::vector<double> numbers;

/* Failures of ranks are exceptions: cmocka's jumps know one thread and one process. */
void require(bool ok, const char *what, int rank, const char *detail) {
  if (ok) return;
  char text[600];
  snprintf(text, sizeof text, "rank %d: %s: %s", rank, what, detail);
  throw std::string(text);
}

/* ---- A rank -----------------------------------------------------------------------------------*/

struct rank {
  int number, count;
  ncclComm_t comm = NULL;
  cudaStream_t stream = NULL;

  rank(int n, int c, int device) : number(n), count(c) {
    check(cudaSetDevice(device) == cudaSuccess, "cudaSetDevice");
    check(cudaStreamCreate(&stream) == cudaSuccess, "cudaStreamCreate");
  }
  ~rank() {
    ncclCommDestroy(comm);
    cudaStreamDestroy(stream);
  }
  rank(const rank &) = delete;
  rank &operator=(const rank &) = delete;

  void check(bool ok, const char *what) const { require(ok, what, number, ncclGetLastError(comm)); }
  void join(const ncclUniqueId &id) {
    check(ncclCommInitRank(&comm, count, id, number) == ncclSuccess, "ncclCommInitRank");
  }
  /* The result of a collective once it has run. */
  ncclResult_t finish(ncclResult_t at_once) {
    ncclResult_t later = ncclSuccess;
    check(cudaStreamSynchronize(stream) == cudaSuccess, "cudaStreamSynchronize");
    check(ncclCommGetAsyncError(comm, &later) == ncclSuccess, "ncclCommGetAsyncError");
    check(at_once == ncclSuccess || at_once == later, "the errors differ");
    return later;
  }
};

/* ---- Typed numbers on the device --------------------------------------------------------------*/

size_t bytes_of(ncclDataType_t t) {
  return t == ncclFloat64 ? 8 : t == ncclFloat16 || t == ncclBfloat16 ? 2 : 4;
}

void store(ncclDataType_t t, char *p, double v) {
  const float f = (float)v;
  const int32_t n = (int32_t)v;
  const uint16_t h = t == ncclFloat16 ? ii_f32_to_f16(f) : ii_f32_to_bf16(f);
  const void *from = t == ncclFloat64   ? (const void *)&v
                     : t == ncclFloat32 ? (const void *)&f
                     : t == ncclInt32   ? (const void *)&n
                                        : (const void *)&h;
  memcpy(p, from, bytes_of(t));
}

double load(ncclDataType_t t, const char *p) {
  double d;
  float f;
  int32_t n;
  uint16_t h;
  switch (t) {
  case ncclFloat64:
    return memcpy(&d, p, 8), d;
  case ncclFloat32:
    return memcpy(&f, p, 4), (double)f;
  case ncclInt32:
    return memcpy(&n, p, 4), (double)n;
  default:
    memcpy(&h, p, 2);
    return (double)(t == ncclFloat16 ? ii_f16_to_f32(h) : ii_bf16_to_f32(h));
  }
}

class buffer {
public:
  buffer(const rank &r, ncclDataType_t t, size_t n) : r_(r), t_(t), n_(n) {
    r.check(cudaMalloc(&data, n * bytes_of(t)) == cudaSuccess, "cudaMalloc");
  }
  ~buffer() { cudaFree(data); }
  buffer(const buffer &) = delete;
  buffer &operator=(const buffer &) = delete;
  void write(const std::function<double(size_t)> &value) {
    std::vector<char> raw(n_ * bytes_of(t_));
    for (size_t i = 0; i < n_; i++) store(t_, &raw[i * bytes_of(t_)], value(i));
    r_.check(cudaMemcpy(data, raw.data(), raw.size(), cudaMemcpyHostToDevice) == cudaSuccess,
             "cudaMemcpy");
  }
  void expect(const char *what, const std::function<double(size_t)> &value) {
    std::vector<char> raw(n_ * bytes_of(t_));
    r_.check(cudaMemcpy(raw.data(), data, raw.size(), cudaMemcpyDeviceToHost) == cudaSuccess,
             "cudaMemcpy");
    for (size_t i = 0; i < n_; i++) {
      char text[200];
      const double got = load(t_, &raw[i * bytes_of(t_)]), want = value(i);
      snprintf(text, sizeof text, "type %d, element %zu is %g, not %g", t_, i, got, want);
      require(got == want, what, r_.number, text);
    }
  }
  void *data = NULL;

private:
  const rank &r_;
  ncclDataType_t t_;
  size_t n_;
};

/* Whole numbers whose sums and products every type holds exactly. */
double sample(int rank, size_t i) {
  return (double)((i * 7 + (size_t)rank * 3) % 4) - 1;
}

double combined(ncclRedOp_t op, int ranks, size_t i) {
  double v = sample(0, i);
  for (int r = 1; r < ranks; r++) {
    const double x = sample(r, i);
    v = op == ncclProd  ? v * x
        : op == ncclMax ? (x > v ? x : v)
        : op == ncclMin ? (x < v ? x : v)
                        : v + x;
  }
  return op == ncclAvg ? v / ranks : v;
}

void all_collectives(rank &r, ncclDataType_t t, size_t n) {
  const int last = r.count - 1;
  const size_t all = n * (size_t)r.count, size = bytes_of(t);
  buffer mine(r, t, n), result(r, t, n), many(r, t, all), gathered(r, t, all);
  const auto own = [&](size_t i) { return sample(r.number, i); };
  mine.write(own);
  for (ncclRedOp_t op : {ncclSum, ncclProd, ncclMax, ncclMin, ncclAvg}) {
    if (op == ncclAvg && t == ncclInt32) continue; /* would have to be rounded */
    r.check(r.finish(ncclAllReduce(mine.data, result.data, n, t, op, r.comm, r.stream)) ==
                ncclSuccess,
            "ncclAllReduce");
    result.expect("ncclAllReduce", [&](size_t i) { return combined(op, r.count, i); });
  }
  r.check(r.finish(ncclBroadcast(mine.data, result.data, n, t, last, r.comm, r.stream)) ==
              ncclSuccess,
          "ncclBroadcast");
  result.expect("ncclBroadcast", [&](size_t i) { return sample(last, i); });
  result.write([](size_t) { return -77; });
  r.check(r.finish(ncclReduce(mine.data, result.data, n, t, ncclSum, last, r.comm, r.stream)) ==
              ncclSuccess,
          "ncclReduce");
  result.expect("ncclReduce",
                [&](size_t i) { return r.number == last ? combined(ncclSum, r.count, i) : -77; });
  r.check(r.finish(ncclAllGather(mine.data, gathered.data, n, t, r.comm, r.stream)) == ncclSuccess,
          "ncclAllGather");
  gathered.expect("ncclAllGather", [&](size_t i) { return sample((int)(i / n), i % n); });
  many.write(own);
  r.check(r.finish(ncclReduceScatter(many.data, result.data, n, t, ncclSum, r.comm, r.stream)) ==
              ncclSuccess,
          "ncclReduceScatter");
  const auto scattered = [&](size_t i) {
    return combined(ncclSum, r.count, (size_t)r.number * n + i);
  };
  result.expect("ncclReduceScatter", scattered);
  /* in place */
  char *part = (char *)many.data + (size_t)r.number * n * size;
  r.check(r.finish(ncclReduceScatter(many.data, part, n, t, ncclSum, r.comm, r.stream)) ==
              ncclSuccess,
          "ncclReduceScatter in place");
  r.check(r.finish(ncclAllGather(part, many.data, n, t, r.comm, r.stream)) == ncclSuccess,
          "ncclAllGather in place");
  many.expect("ncclAllGather in place", [&](size_t i) { return combined(ncclSum, r.count, i); });
  r.check(r.finish(ncclAllReduce(mine.data, mine.data, n, t, ncclSum, r.comm, r.stream)) ==
              ncclSuccess,
          "ncclAllReduce in place");
  mine.expect("ncclAllReduce in place", [&](size_t i) { return combined(ncclSum, r.count, i); });
}

void everything(rank &r) {
  int count = 0, number = -1, device = -1;
  r.check(ncclCommCount(r.comm, &count) == ncclSuccess && count == r.count, "ncclCommCount");
  r.check(ncclCommUserRank(r.comm, &number) == ncclSuccess && number == r.number,
          "ncclCommUserRank");
  r.check(ncclCommCuDevice(r.comm, &device) == ncclSuccess, "ncclCommCuDevice");
  for (ncclDataType_t t : {ncclFloat32, ncclFloat16, ncclBfloat16, ncclFloat64, ncclInt32})
    all_collectives(r, t, 71);
  all_collectives(r, ncclFloat32, 150001); /* several pieces, the last not full */
  buffer b(r, ncclFloat32, 1);
  r.check(r.finish(ncclAllReduce(b.data, b.data, 0, ncclFloat32, ncclSum, r.comm, r.stream)) ==
              ncclSuccess,
          "nothing");
}

/* ---- Ranks as threads and as processes --------------------------------------------------------*/

ncclUniqueId new_id() {
  ncclUniqueId id;
  assert_int_equal(ncclGetUniqueId(&id), ncclSuccess);
  return id;
}

bool segment_exists(const ncclUniqueId &id) {
  std::string path = "/dev/shm/ii_emu_nccl_";
  char hex[3];
  for (int i = 0; i < 16; i++) {
    snprintf(hex, sizeof hex, "%02x", (unsigned char)id.internal[i]);
    path += hex;
  }
  return access(path.c_str(), F_OK) == 0;
}

/* Runs one rank; "" or what went wrong. */
std::string attempt(int number, int count, int device, const std::function<void(rank &)> &code) {
  try {
    rank r(number, count, device);
    code(r);
    return "";
  } catch (const std::string &s) {
    return s;
  }
}

void as_threads(int count, const std::function<void(rank &)> &code) {
  std::vector<std::string> errors((size_t)count);
  std::vector<std::thread> threads;
  for (int i = 0; i < count; i++)
    threads.emplace_back([&, i] { errors[(size_t)i] = attempt(i, count, i, code); });
  for (std::thread &t : threads) t.join();
  for (const std::string &e : errors)
    if (!e.empty()) fail_msg("%s", e.c_str());
}

void as_processes(int count, const std::function<void(rank &)> &code) {
  std::vector<pid_t> children;
  int failed = 0, status;
  fflush(NULL);
  for (int i = 0; i < count; i++) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(120);
      const std::string error = attempt(i, count, 0, code);
      if (!error.empty()) fprintf(stderr, "%s\n", error.c_str());
      _exit(error.empty() ? 0 : 1);
    }
    children.push_back(child);
  }
  for (pid_t child : children) {
    waitpid(child, &status, 0);
    failed += status != 0;
  }
  assert_int_equal(failed, 0);
}

void two_threads(void **) {
  const ncclUniqueId id = new_id();
  as_threads(2, [&](rank &r) {
    r.join(id);
    everything(r);
  });
  assert_false(segment_exists(id));
}

void four_processes(void **) {
  const ncclUniqueId id = new_id();
  as_processes(4, [&](rank &r) {
    r.join(id);
    everything(r);
  });
  assert_false(segment_exists(id));
}

void one_rank(void **) {
  const ncclUniqueId id = new_id();
  as_threads(1, [&](rank &r) {
    r.join(id);
    everything(r);
  });
}

/* One thread with two ranks needs groups. */
void groups(void **) {
  ncclComm_t comms[2];
  cudaStream_t streams[2];
  float *x[2], got;
  const int devices[2] = {1, 0};
  assert_int_equal(ncclCommInitAll(comms, 2, devices), ncclSuccess);
  for (int i = 0; i < 2; i++) {
    const float value = (float)(i + 1);
    int device = -1;
    assert_int_equal(ncclCommCuDevice(comms[i], &device), ncclSuccess);
    assert_int_equal(device, devices[i]);
    assert_int_equal(cudaSetDevice(devices[i]), cudaSuccess);
    assert_int_equal(cudaStreamCreate(&streams[i]), cudaSuccess);
    assert_int_equal(cudaMalloc((void **)&x[i], sizeof value), cudaSuccess);
    assert_int_equal(cudaMemcpy(x[i], &value, sizeof value, cudaMemcpyHostToDevice), cudaSuccess);
  }
  assert_int_equal(ncclGroupStart(), ncclSuccess);
  for (int i = 0; i < 2; i++)
    for (int twice = 0; twice < 2; twice++)
      assert_int_equal(ncclAllReduce(x[i], x[i], 1, ncclFloat32, ncclSum, comms[i], streams[i]),
                       ncclSuccess);
  assert_int_equal(ncclGroupEnd(), ncclSuccess);
  for (int i = 0; i < 2; i++) {
    assert_int_equal(cudaStreamSynchronize(streams[i]), cudaSuccess);
    assert_int_equal(cudaMemcpy(&got, x[i], sizeof got, cudaMemcpyDeviceToHost), cudaSuccess);
    assert_float_equal(got, 6, 0); /* 1+2 = 3 on both, then 3+3 */
    cudaFree(x[i]);
    cudaStreamDestroy(streams[i]);
    ncclCommDestroy(comms[i]);
  }
  assert_int_equal(ncclGroupEnd(), ncclInvalidUsage);
  cudaSetDevice(0);
}

/* ---- Trouble ----------------------------------------------------------------------------------*/

/* The rank's call must end in `error` with a sentence that contains `words`. */
void expect_error(rank &r, ncclResult_t at_once, ncclResult_t error, const char *words) {
  const ncclResult_t got = r.finish(at_once);
  require(got == error, ncclGetErrorString(got), r.number, ncclGetLastError(r.comm));
  require(strstr(ncclGetLastError(r.comm), words) != NULL, words, r.number,
          ncclGetLastError(r.comm));
}

/* Ranks that were called differently all hear of it, and the results are no numbers. */
void disagreement(void **) {
  for (int what = 0; what < 5; what++) {
    const ncclUniqueId id = new_id();
    as_threads(2, [&](rank &r) {
      r.join(id);
      const bool odd = r.number == 1;
      buffer b(r, ncclFloat32, 8);
      b.write([](size_t) { return 1; });
      const size_t n = odd && what == 0 ? 4 : 2;
      const ncclDataType_t t = odd && what == 1 ? ncclInt32 : ncclFloat32;
      const ncclRedOp_t op = odd && what == 2 ? ncclMax : ncclSum;
      const int root = odd && what == 3 ? 1 : 0;
      const ncclResult_t at_once =
          what == 3          ? ncclBroadcast(b.data, b.data, n, t, root, r.comm, r.stream)
          : odd && what == 4 ? ncclReduce(b.data, b.data, n, t, op, 1, r.comm, r.stream)
                             : ncclAllReduce(b.data, b.data, n, t, op, r.comm, r.stream);
      expect_error(r, at_once, ncclInvalidUsage, "the ranks were called differently: rank 0 with");
      float got = 0;
      cudaMemcpy(&got, b.data, sizeof got, cudaMemcpyDeviceToHost);
      r.check(got != got, "a failed result must be NaN");
      r.check(ncclAllReduce(b.data, b.data, 1, ncclFloat32, ncclSum, r.comm, r.stream) ==
                  ncclInvalidUsage,
              "the communicator must stay broken");
    });
  }
}

/* A process that ends without a word. */
void dead_peer(void **) {
  const ncclUniqueId id = new_id();
  as_processes(2, [&](rank &r) {
    r.join(id);
    if (r.number == 1) _exit(0);
    buffer b(r, ncclFloat32, 8);
    expect_error(r, ncclAllReduce(b.data, b.data, 8, ncclFloat32, ncclSum, r.comm, r.stream),
                 ncclRemoteError, "has ended");
  });
}

void absent_peer(void **) {
  setenv("II_EMU_NCCL_TIMEOUT", "0.5", 1);
  const ncclUniqueId id = new_id();
  std::atomic<bool> over{false};
  as_threads(2, [&](rank &r) {
    r.join(id);
    if (r.number == 1) { /* is there, and takes no part */
      while (!over) usleep(1000);
      return;
    }
    struct at_end { /* also when an expectation fails */
      std::atomic<bool> &flag;
      ~at_end() { flag = true; }
    } end{over};
    buffer b(r, ncclFloat32, 8);
    expect_error(r, ncclAllReduce(b.data, b.data, 8, ncclFloat32, ncclSum, r.comm, r.stream),
                 ncclRemoteError, "for rank 1 (II_EMU_NCCL_TIMEOUT)");
  });
  unsetenv("II_EMU_NCCL_TIMEOUT");
}

/* One rank leaves, or aborts, while the other waits for it. */
void leaving_peer(void **) {
  for (int abort = 0; abort < 2; abort++) {
    const ncclUniqueId id = new_id();
    as_threads(2, [&](rank &r) {
      r.join(id);
      if (r.number == 1) {
        usleep(100000);
        if (abort)
          ncclCommAbort(r.comm);
        else
          ncclCommDestroy(r.comm);
        r.comm = NULL;
        return;
      }
      buffer b(r, ncclFloat32, 8);
      expect_error(r, ncclAllReduce(b.data, b.data, 8, ncclFloat32, ncclSum, r.comm, r.stream),
                   ncclRemoteError, abort ? "has aborted it" : "has left the communicator");
    });
  }
}

void wrong_starts(void **) {
  setenv("II_EMU_NCCL_TIMEOUT", "2", 1);
  ncclUniqueId id = new_id();
  ncclComm_t comm;
  assert_int_equal(ncclCommInitRank(&comm, 2, id, 2), ncclInvalidArgument);
  assert_int_equal(ncclCommInitRank(&comm, 65, id, 0), ncclInvalidArgument);
  const int same_gpu[] = {1, 1};
  ncclComm_t comms[2];
  assert_int_equal(ncclCommInitAll(comms, 2, same_gpu), ncclInvalidUsage);
  assert_non_null(strstr(ncclGetLastError(NULL), "both use GPU 1"));
  as_threads(2, [&](rank &r) { /* both are rank 0: one is refused, the other waits in vain */
                               const ncclResult_t got = ncclCommInitRank(&r.comm, 2, id, 0);
                               require(got == ncclInvalidUsage || got == ncclRemoteError,
                                       "same number", r.number, ncclGetErrorString(got));
  });
  assert_false(segment_exists(id));
  id = new_id();
  as_threads(2, [&](rank &r) { /* one believes in three ranks */
                               const ncclResult_t got =
                                   ncclCommInitRank(&r.comm, 2 + r.number, id, r.number);
                               require(got == ncclInvalidArgument || got == ncclRemoteError,
                                       "ranks differ", r.number, ncclGetErrorString(got));
  });
  assert_false(segment_exists(id));
  unsetenv("II_EMU_NCCL_TIMEOUT");
}

void wrong_calls(void **) {
  const ncclUniqueId id = new_id();
  as_threads(1, [&](rank &r) {
    r.join(id);
    buffer b(r, ncclFloat32, 8);
    float host[8];
    const auto reduce = [&](void *from, void *to) {
      ncclAllReduce(from, to, 8, ncclFloat32, ncclSum, r.comm, r.stream);
    };
    r.check(ncclAllReduce(b.data, b.data, 8, ncclFloat8e4m3, ncclSum, r.comm, r.stream) ==
                ncclInvalidArgument,
            "fp8");
    r.check(ncclAllReduce(b.data, b.data, 8, ncclFloat32, ncclSum, NULL, r.stream) ==
                ncclInvalidArgument,
            "no communicator");
    r.check(ncclBroadcast(b.data, b.data, 8, ncclFloat32, 1, r.comm, r.stream) ==
                ncclInvalidArgument,
            "root");
    const std::string outside = report_of([&] { reduce(host, b.data); });
    const std::string behind = report_of([&] { reduce(b.data, (char *)b.data + 4); });
    r.check(outside.find("the send buffer") != std::string::npos, "host memory");
    r.check(behind.find("the receive buffer") != std::string::npos, "past the end");
    buffer twice(r, ncclFloat32, 16);
    const std::string overlap = report_of([&] { reduce(twice.data, (char *)twice.data + 16); });
    r.check(overlap.find("buffers overlap") != std::string::npos, "overlap");
  });
}

} // namespace

int main() {
  setenv("II_EMU_DEVICES", "2", 1);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(two_threads),  cmocka_unit_test(four_processes),
      cmocka_unit_test(one_rank),     cmocka_unit_test(groups),
      cmocka_unit_test(disagreement), cmocka_unit_test(dead_peer),
      cmocka_unit_test(absent_peer),  cmocka_unit_test(leaving_peer),
      cmocka_unit_test(wrong_starts), cmocka_unit_test(wrong_calls)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
