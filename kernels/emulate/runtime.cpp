/* Streams, events and launches of the CUDA runtime.
 *
 * A stream is a queue of closures. Eager streams run each at once on the calling thread. Lazy ones
 * run only what something waits for, as late as CUDA allows: a missing event wait, a host buffer
 * reused too early or a result read too early then gives wrong data every time. With
 * II_EMU_STREAMS=random queues advance by chance, which also runs work earlier than a missing wait
 * would allow. */
#include "kernels/emulate/emulate_internal.h"
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_map>
#include <vector>

namespace ii_emu {
namespace {

struct operation {
  std::function<void()> work;
  bool open; /* whether device memory is open meanwhile */
};

struct queue;
typedef std::shared_ptr<queue> queue_ref;

/* A recording in work; with the lock of the tables. */
struct capture {
  queue *origin;
  std::thread::id owner;
  cudaStreamCaptureMode mode;
  bool failed = false, ended = false;
  graph made;
  std::vector<queue_ref> streams; /* that take part */
};
typedef std::shared_ptr<capture> capture_ref;

struct queue {
  int device;
  bool blocking;            /* waits for the default stream and the default stream for it */
  capture_ref recording;    /* NULL: none; with the lock of the tables, like tips */
  std::vector<size_t> tips; /* the pieces that the next one comes after */
  std::mutex lock;
  std::condition_variable changed;
  std::deque<operation> operations;
  uint64_t queued = 0, done = 0;
  bool busy = false; /* one runs, outside the lock */
  queue(int d, bool b) : device(d), blocking(b) {}
};

struct record {
  queue_ref on; /* NULL: never recorded, or in a capture */
  capture_ref recording;
  std::vector<size_t> tips;
  uint64_t position = 0;
  std::shared_ptr<double> when; /* milliseconds, once it has run */
};
struct event_state {
  unsigned flags;
  record last;
};

/* Order of locks: tables, then a queue. None is held while work runs. */
std::mutex tables;
std::unordered_map<void *, queue_ref> streams;
std::vector<queue_ref> default_streams;
std::unordered_map<void *, std::shared_ptr<event_state>> events;
std::set<capture_ref> captures; /* in work */
uint64_t chance;                /* random numbers; 0: not started */

thread_local int device_of_thread;
thread_local cudaError_t last_error;

double milliseconds() {
  using namespace std::chrono;
  return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

/* The default stream of a device; with the lock of the tables. */
queue_ref default_queue(int device) {
  while ((int)default_streams.size() <= device) {
    default_streams.push_back(std::make_shared<queue>((int)default_streams.size(), true));
  }
  return default_streams[(size_t)device];
}

/* The queue of a stream; NULL when the handle is not a live stream. */
queue_ref find_queue(cudaStream_t stream) {
  std::lock_guard<std::mutex> hold(tables);
  if (stream == NULL || stream == cudaStreamLegacy || stream == cudaStreamPerThread) {
    return default_queue(device_of_thread);
  }
  const auto at = streams.find((void *)stream);
  return at == streams.end() ? NULL : at->second;
}

/* Runs the queue until `position` operations are done, or waits for the thread that does. */
void advance(queue &q, uint64_t position) {
  std::unique_lock<std::mutex> hold(q.lock);
  while (q.done < position) {
    if (q.busy) {
      q.changed.wait(hold);
      continue;
    }
    operation o = std::move(q.operations.front());
    q.operations.pop_front();
    q.busy = true;
    hold.unlock();
    if (o.open) {
      open_memory open;
      o.work();
    } else {
      o.work();
    }
    o.work = nullptr; /* what it held goes before it counts as done */
    hold.lock();
    q.busy = false;
    q.done++;
    q.changed.notify_all();
  }
}
void finish(queue &q) {
  uint64_t all;
  {
    std::lock_guard<std::mutex> hold(q.lock);
    all = q.queued;
  }
  advance(q, all);
}

std::vector<queue_ref> queues_of(int device, bool blocking_only) {
  std::lock_guard<std::mutex> hold(tables);
  std::vector<queue_ref> all;
  for (const auto &s : streams) {
    if (s.second->device == device && (s.second->blocking || !blocking_only)) {
      all.push_back(s.second);
    }
  }
  if ((int)default_streams.size() > device) all.push_back(default_streams[(size_t)device]);
  return all;
}

uint64_t append(queue &q, std::function<void()> work, bool open) {
  std::lock_guard<std::mutex> hold(q.lock);
  q.operations.push_back(operation{std::move(work), open});
  return ++q.queued;
}

/* Work of the default stream comes after all that blocking streams hold, and theirs after its. */
void append_dependencies(const queue_ref &q) {
  if (!q->blocking) return;
  queue_ref first;
  {
    std::lock_guard<std::mutex> hold(tables);
    first = default_queue(q->device);
  }
  for (const queue_ref &other : queues_of(q->device, true)) {
    if (other == q || (q != first && other != first)) continue;
    uint64_t position, done;
    {
      std::lock_guard<std::mutex> hold(other->lock);
      position = other->queued;
      done = other->done;
    }
    if (done < position)
      append(
          *q, [other, position] { advance(*other, position); }, false);
  }
}

/* Half of the time, lets one of the streams that have work go on by up to three pieces. */
void advance_by_chance(int device) {
  std::vector<std::pair<queue_ref, uint64_t>> pending;
  for (const queue_ref &q : queues_of(device, false)) {
    std::lock_guard<std::mutex> hold(q->lock);
    if (q->done < q->queued) pending.push_back({q, q->queued - q->done});
  }
  uint64_t r;
  {
    std::lock_guard<std::mutex> hold(tables);
    if (chance == 0) chance = 88172645463325252u ^ ((uint64_t)get_settings().seed << 20);
    chance ^= chance << 13, chance ^= chance >> 7, chance ^= chance << 17;
    r = chance;
  }
  if (pending.empty() || (r >> 40 & 1)) return;
  const auto &one = pending[(r >> 8) % pending.size()];
  const uint64_t steps = std::min(one.second, 1 + (r >> 20) % 3);
  uint64_t position;
  {
    std::lock_guard<std::mutex> hold(one.first->lock);
    position = std::min(one.first->queued, one.first->done + steps);
  }
  advance(*one.first, position);
}

/* Takes the work into the recording of the stream; false when it is not being recorded. */
bool take_down(const queue_ref &q, std::function<void()> &work) {
  std::lock_guard<std::mutex> hold(tables);
  if (!q->recording) {
    /* work of the default stream would have to wait for a recorded stream, and it for that */
    for (const capture_ref &c : captures)
      for (const queue_ref &s : c->streams)
        if (q->blocking && s->blocking && q->device == s->device && q != s &&
            default_queue(q->device) == q) {
          note("work for the default stream while a stream that waits for it is being recorded");
          c->failed = true;
          last_error = cudaErrorStreamCaptureImplicit;
          return true;
        }
    return false;
  }
  capture &c = *q->recording;
  if (c.failed) {
    last_error = cudaErrorStreamCaptureInvalidated;
    return true;
  }
  c.made.pieces.push_back(graph_piece{std::move(work), q->tips});
  q->tips = {c.made.pieces.size() - 1};
  return true;
}

/* Appends; runs what the mode of the streams says. Returns the position. */
uint64_t push(const queue_ref &q, std::function<void()> work, bool open) {
  if (take_down(q, work)) return 0;
  append_dependencies(q);
  const uint64_t position = append(*q, std::move(work), open);
  if (get_settings().streams == STREAMS_EAGER) advance(*q, position);
  if (get_settings().streams == STREAMS_RANDOM) advance_by_chance(q->device);
  return position;
}

std::shared_ptr<event_state> find_event(cudaEvent_t e) {
  std::lock_guard<std::mutex> hold(tables);
  const auto at = events.find((void *)e);
  return at == events.end() ? NULL : at->second;
}
record last_record(const std::shared_ptr<event_state> &e) {
  std::lock_guard<std::mutex> hold(tables);
  return e->last;
}
/* Fails the recordings in which streams of a device take part, or the given one. */
bool fail_captures(const char *call, int device, const capture_ref &one) {
  std::lock_guard<std::mutex> hold(tables);
  bool any = false;
  for (const capture_ref &c : captures) {
    if (one ? c != one : c->origin->device != device) continue;
    note("%s while a stream is being recorded: the recording fails", call);
    any = c->failed = true;
  }
  if (any) last_error = cudaErrorStreamCaptureUnsupported;
  return any;
}

capture_ref recording_of(const queue_ref &q) {
  std::lock_guard<std::mutex> hold(tables);
  return q->recording;
}

/* An event of a recording cannot be waited for or asked by the host. */
bool refused_for_event(const char *call, const record &r) {
  if (!r.recording) return false;
  fail_captures(call, -1, r.recording);
  set_error(cudaErrorCapturedEvent);
  return true;
}

/* The pieces that come before `tips`, themselves included. */
std::vector<bool> before(const graph &g, const std::vector<size_t> &tips) {
  std::vector<bool> is(g.pieces.size());
  for (const size_t t : tips) is[t] = true;
  for (size_t i = g.pieces.size(); i-- > 0;)
    if (is[i])
      for (const size_t j : g.pieces[i].after) is[j] = true;
  return is;
}

/* Whether every stream's last piece comes before the end of the first stream. */
bool joined(const capture &c) {
  const std::vector<bool> reached = before(c.made, c.origin->tips);
  for (const queue_ref &s : c.streams)
    for (const size_t t : s->tips)
      if (!reached[t]) return false;
  return true;
}

/* s waits for an event of a recording: it takes part from now on. */
cudaError_t wait_recorded(const queue_ref &q, const record &r) {
  std::lock_guard<std::mutex> hold(tables);
  if (r.recording->ended) return set_error(cudaErrorCapturedEvent);
  if (q->recording && q->recording != r.recording) {
    q->recording->failed = r.recording->failed = true;
    return set_error(cudaErrorStreamCaptureMerge);
  }
  if (!q->recording) {
    q->recording = r.recording;
    q->tips.clear();
    r.recording->streams.push_back(q);
  }
  for (const size_t t : r.tips)
    if (std::find(q->tips.begin(), q->tips.end(), t) == q->tips.end()) q->tips.push_back(t);
  return cudaSuccess;
}

bool is_done(const record &r) {
  if (!r.on) return true;
  std::lock_guard<std::mutex> hold(r.on->lock);
  return r.on->done >= r.position;
}

bool within_limits(const ii_emu_config &c) {
  const dim3 g = c.grid, b = c.block;
  return g.x && g.y && g.z && b.x && b.y && b.z && g.x <= 0x7fffffffu && g.y <= 65535 &&
         g.z <= 65535 && b.x <= 1024 && b.y <= 1024 && b.z <= 64 &&
         (uint64_t)b.x * b.y * b.z <= 1024;
}

} // namespace

int current_device() {
  return device_of_thread;
}

int stream_device(cudaStream_t stream) {
  const queue_ref q = find_queue(stream);
  return q ? q->device : -1;
}

cudaError_t set_error(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

void enqueue(cudaStream_t stream, std::function<void()> work) {
  const queue_ref q = find_queue(stream);
  if (!q) {
    report(false, "invalid stream", "work was given to %p, which is no live stream",
           (void *)stream);
    return;
  }
  push(q, std::move(work), true);
}

uint64_t enqueue_and_wait(cudaStream_t stream, std::function<void()> work) {
  const queue_ref q = find_queue(stream);
  if (!q) return 0;
  const uint64_t position = push(q, std::move(work), true);
  advance(*q, position);
  return position;
}

bool refused_in_capture(const char *call) {
  capture_ref mine;
  {
    std::lock_guard<std::mutex> hold(tables);
    for (const capture_ref &c : captures)
      if (c->mode == cudaStreamCaptureModeGlobal ||
          (c->mode == cudaStreamCaptureModeThreadLocal && c->owner == std::this_thread::get_id()))
        mine = c;
  }
  return mine && fail_captures(call, -1, mine);
}

bool refused_on_stream(const char *call, cudaStream_t stream) {
  const queue_ref q = find_queue(stream);
  const capture_ref c = q ? recording_of(q) : NULL;
  return c && fail_captures(call, -1, c);
}

cudaError_t capture_state(cudaStream_t stream) {
  const queue_ref q = find_queue(stream);
  std::lock_guard<std::mutex> hold(tables);
  if (!q || !q->recording || !q->recording->failed) return cudaSuccess;
  return last_error = cudaErrorStreamCaptureInvalidated;
}

void finish_device(int device) {
  for (const queue_ref &q : queues_of(device, false)) finish(*q);
}

} // namespace ii_emu

using namespace ii_emu;

void ii_emu_submit(const ii_emu_config &c, ii_emu_body *body) {
  std::shared_ptr<ii_emu_body> owned(body);
  const queue_ref q = find_queue(c.stream);
  if (!within_limits(c)) {
    note("launch of %s at %s:%d is over the limits: grid (%u,%u,%u), block (%u,%u,%u)", c.name,
         c.file, c.line, c.grid.x, c.grid.y, c.grid.z, c.block.x, c.block.y, c.block.z);
    set_error(cudaErrorInvalidConfiguration);
    return;
  }
  if (c.shared_bytes > dynamic_shared_limit(body->kernel)) {
    note("launch of %s at %s:%d asks for %zu bytes of dynamic shared memory, %zu are allowed (see "
         "cudaFuncAttributeMaxDynamicSharedMemorySize)",
         c.name, c.file, c.line, c.shared_bytes, dynamic_shared_limit(body->kernel));
    set_error(cudaErrorInvalidValue);
    return;
  }
  if (!q || q->device != device_of_thread) {
    note("launch of %s at %s:%d on a stream that is not one of the current device %d", c.name,
         c.file, c.line, device_of_thread);
    set_error(cudaErrorInvalidResourceHandle);
    return;
  }
  push(
      q,
      [c, owned] {
        launch l = {owned->kernel, c.name,  c.file,         c.line,
                    c.grid,        c.block, c.shared_bytes, owned.get()};
        const double start = milliseconds();
        run_kernel(l);
        if (get_settings().stats) count_launch(l, milliseconds() - start);
      },
      true);
}

/* ---- The CUDA runtime -------------------------------------------------------------------------*/

extern "C" {

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int priority) {
  (void)priority;
  const queue_ref q =
      std::make_shared<queue>(device_of_thread, (flags & cudaStreamNonBlocking) == 0);
  std::lock_guard<std::mutex> hold(tables);
  *s = (cudaStream_t)(void *)q.get();
  streams[(void *)*s] = q;
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags) {
  return cudaStreamCreateWithPriority(s, flags, 0);
}
cudaError_t cudaStreamCreate(cudaStream_t *s) {
  return cudaStreamCreateWithPriority(s, 0, 0);
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t s) {
  const queue_ref q = s ? find_queue(s) : NULL;
  if (!q) return set_error(cudaErrorInvalidResourceHandle);
  finish(*q);
  std::lock_guard<std::mutex> hold(tables);
  streams.erase((void *)s);
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t s) {
  const queue_ref q = find_queue(s);
  if (!q) return set_error(cudaErrorInvalidResourceHandle);
  if (refused_on_stream("cudaStreamSynchronize", s)) return cudaErrorStreamCaptureUnsupported;
  finish(*q);
  return cudaSuccess;
}

/* Asking moves a lazy stream on by one piece, or a loop that asks would never end. */
cudaError_t cudaStreamQuery(cudaStream_t s) {
  const queue_ref q = find_queue(s);
  if (!q) return set_error(cudaErrorInvalidResourceHandle);
  if (refused_on_stream("cudaStreamQuery", s)) return cudaErrorStreamCaptureUnsupported;
  uint64_t next, all;
  {
    std::lock_guard<std::mutex> hold(q->lock);
    all = q->queued;
    next = std::min(all, q->done + 1);
  }
  advance(*q, next);
  return next < all ? cudaErrorNotReady : cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags) {
  (void)flags;
  const queue_ref q = find_queue(s);
  const std::shared_ptr<event_state> event = find_event(e);
  if (!q || !event) return set_error(cudaErrorInvalidResourceHandle);
  const record r = last_record(event);
  if (r.recording) return wait_recorded(q, r);
  if (!r.on) return cudaSuccess;
  if (const capture_ref c = recording_of(q)) { /* that work is no part of the graph */
    fail_captures("waiting for an event from before the recording", -1, c);
    return set_error(cudaErrorStreamCaptureIsolation);
  }
  if (r.on == q) return cudaSuccess;
  push(
      q, [r] { advance(*r.on, r.position); }, false);
  return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t fn, void *data) {
  const queue_ref q = find_queue(s);
  if (!q || !fn) return set_error(cudaErrorInvalidResourceHandle);
  push(
      q, [fn, data] { fn(data); }, false);
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void) {
  if (fail_captures("cudaDeviceSynchronize", device_of_thread, NULL))
    return cudaErrorStreamCaptureUnsupported;
  finish_device(device_of_thread);
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags) {
  const std::shared_ptr<event_state> event = std::make_shared<event_state>();
  event->flags = flags;
  std::lock_guard<std::mutex> hold(tables);
  *e = (cudaEvent_t)(void *)event.get();
  events[(void *)*e] = event;
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *e) {
  return cudaEventCreateWithFlags(e, 0);
}

cudaError_t cudaEventDestroy(cudaEvent_t e) {
  std::lock_guard<std::mutex> hold(tables);
  return events.erase((void *)e) ? cudaSuccess : set_error(cudaErrorInvalidResourceHandle);
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
  const queue_ref q = find_queue(s);
  const std::shared_ptr<event_state> event = find_event(e);
  if (!q || !event) return set_error(cudaErrorInvalidResourceHandle);
  record r;
  if (const capture_ref c = recording_of(q)) {
    std::lock_guard<std::mutex> hold(tables);
    r.recording = c;
    r.tips = q->tips;
    event->last = r;
    return c->failed ? last_error = cudaErrorStreamCaptureInvalidated : cudaSuccess;
  }
  r.on = q;
  r.when = std::make_shared<double>(0.0);
  const std::shared_ptr<double> when = r.when;
  r.position = push(
      q, [when] { *when = milliseconds(); }, false);
  std::lock_guard<std::mutex> hold(tables);
  event->last = r;
  return cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned flags) {
  (void)flags;
  return cudaEventRecord(e, s);
}

cudaError_t cudaEventSynchronize(cudaEvent_t e) {
  const std::shared_ptr<event_state> event = find_event(e);
  if (!event) return set_error(cudaErrorInvalidResourceHandle);
  const record r = last_record(event);
  if (refused_for_event("cudaEventSynchronize", r)) return cudaErrorCapturedEvent;
  if (r.on) advance(*r.on, r.position);
  return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t e) {
  const std::shared_ptr<event_state> event = find_event(e);
  if (!event) return set_error(cudaErrorInvalidResourceHandle);
  const record r = last_record(event);
  if (refused_for_event("cudaEventQuery", r)) return cudaErrorCapturedEvent;
  if (is_done(r)) return cudaSuccess;
  uint64_t next;
  {
    std::lock_guard<std::mutex> hold(r.on->lock);
    next = std::min(r.position, r.on->done + 1);
  }
  advance(*r.on, next);
  return is_done(r) ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) {
  const std::shared_ptr<event_state> a = find_event(from), b = find_event(to);
  if (!a || !b || ((a->flags | b->flags) & cudaEventDisableTiming)) {
    return set_error(cudaErrorInvalidResourceHandle);
  }
  const record ra = last_record(a), rb = last_record(b);
  if (!ra.on || !rb.on) return set_error(cudaErrorInvalidResourceHandle);
  if (!is_done(ra) || !is_done(rb)) return cudaErrorNotReady;
  *ms = (float)(*rb.when - *ra.when);
  return cudaSuccess;
}

/* ---- Capture ----------------------------------------------------------------------------------*/

cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode) {
  const queue_ref q = find_queue(s);
  if (!q) return set_error(cudaErrorInvalidResourceHandle);
  std::lock_guard<std::mutex> hold(tables);
  if (q == default_queue(q->device)) return last_error = cudaErrorStreamCaptureUnsupported;
  if (q->recording) return last_error = cudaErrorIllegalState;
  const capture_ref c = std::make_shared<capture>();
  c->origin = q.get();
  c->owner = std::this_thread::get_id();
  c->mode = mode;
  c->streams.push_back(q);
  captures.insert(c);
  q->recording = c;
  q->tips.clear();
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus *status) {
  const queue_ref q = find_queue(s);
  if (!q) return set_error(cudaErrorInvalidResourceHandle);
  std::lock_guard<std::mutex> hold(tables);
  *status = !q->recording          ? cudaStreamCaptureStatusNone
            : q->recording->failed ? cudaStreamCaptureStatusInvalidated
                                   : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *to) {
  const queue_ref q = find_queue(s);
  *to = NULL;
  if (!q) return set_error(cudaErrorInvalidResourceHandle);
  std::unique_lock<std::mutex> hold(tables);
  const capture_ref c = q->recording;
  if (!c) return last_error = cudaErrorIllegalState;
  if (c->origin != q.get()) {
    c->failed = true;
    return last_error = cudaErrorStreamCaptureUnmatched;
  }
  if (c->mode != cudaStreamCaptureModeRelaxed && c->owner != std::this_thread::get_id())
    return last_error = cudaErrorStreamCaptureWrongThread;
  const bool whole = joined(*c);
  for (const queue_ref &one : c->streams) one->recording = NULL;
  c->streams.clear(); /* they hold the capture no more, nor it them */
  c->ended = true;
  captures.erase(c);
  if (c->failed) return last_error = cudaErrorStreamCaptureInvalidated;
  if (!whole) return last_error = cudaErrorStreamCaptureUnjoined;
  hold.unlock();
  *to = add_graph(std::move(c->made));
  return cudaSuccess;
}

/* ---- Devices of the thread, errors ------------------------------------------------------------*/

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= get_settings().devices) return set_error(cudaErrorInvalidDevice);
  device_of_thread = device;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int *device) {
  *device = device_of_thread;
  return cudaSuccess;
}
cudaError_t cudaGetLastError(void) {
  const cudaError_t e = last_error;
  last_error = cudaSuccess;
  return e;
}
cudaError_t cudaPeekAtLastError(void) {
  return last_error;
}

} // extern "C"
