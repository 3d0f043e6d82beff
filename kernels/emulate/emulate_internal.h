/* What the files of kernels/emulate share: settings, reports, streams, memory, the running kernel.
 * For the stand-ins of cuBLASLt, cuDNN and NCCL too: they validate a call, then enqueue() a closure
 * that does the work on host pointers. Never included by anything outside this folder. */
#ifndef II_EMULATE_INTERNAL_H
#define II_EMULATE_INTERNAL_H
#include <cuda_runtime_api.h>
#include <stdint.h>
#include <functional>
#include <string>
#include <vector>
#include "kernels/emulate/emulate_body.h"

namespace ii_emu {

/* ---- Settings: the environment, read once -----------------------------------------------------*/

enum stream_mode { STREAMS_EAGER, STREAMS_LAZY, STREAMS_RANDOM };
struct settings {
  long seed;           /* II_EMU_SEED: 0 forward, -1 reverse, other random */
  stream_mode streams; /* II_EMU_STREAMS=eager|lazy|random */
  bool guard;          /* II_EMU_GUARD=1 */
  bool stats;          /* II_EMU_STATS=1 */
  bool keep_going;     /* II_EMU_REPORT=continue */
  int devices;         /* II_EMU_DEVICES, default 1 */
  size_t memory;       /* II_EMU_MEM_MB in bytes, default 16 GiB per device */
  size_t l2_bytes;     /* II_EMU_L2_MB in bytes, default 50 MiB: the memory profile's cache */
};
const settings &get_settings();

/* ---- Streams (runtime.cpp) --------------------------------------------------------------------*/

/* Appends work to a stream (0 and the constants of the runtime included) of the current device. It
 * runs at once, or with lazy streams when something waits for it, with device memory open, and
 * never while another piece of the same stream runs. The calling thread may be any. It may block
 * (a collective waits for other ranks) but must not call the CUDA runtime. */
void enqueue(cudaStream_t stream, std::function<void()> work);
/* The same, and returns when it has run. 0: no such stream. */
uint64_t enqueue_and_wait(cudaStream_t stream, std::function<void()> work);
/* Runs all that the streams of a device hold. */
void finish_device(int device);
/* The calling thread's current device, and the device a stream belongs to. */
int current_device();
int stream_device(cudaStream_t stream);
/* Sets the calling thread's last error, unless it is cudaSuccess; returns it. */
cudaError_t set_error(cudaError_t error);

/* ---- Graphs (graph.cpp) and their capture (runtime.cpp) ---------------------------------------*/

/* What was recorded from one call: it runs at each launch, after the pieces `after`. */
struct graph_piece {
  std::function<void()> work;
  std::vector<size_t> after; /* indices, each below its own */
};
struct graph {
  std::vector<graph_piece> pieces;
};
/* Takes it over and gives its handle. */
cudaGraph_t add_graph(graph &&g);
/* Notes, fails the capture and returns true when the calling thread is recording and the call is
 * one of those that are refused then: they wait, or change memory that other streams may use. */
bool refused_in_capture(const char *call);
/* The same for a call that a stream which is being recorded cannot take. */
bool refused_on_stream(const char *call, cudaStream_t stream);
/* cudaSuccess, or cudaErrorStreamCaptureInvalidated for a stream whose recording has failed. */
cudaError_t capture_state(cudaStream_t stream);

/* ---- Memory (memory.cpp) ----------------------------------------------------------------------*/

enum memory_kind { MEMORY_NONE, MEMORY_DEVICE, MEMORY_PINNED };
struct allocation {
  memory_kind kind;
  uintptr_t address;
  size_t bytes;
  int device;
};
/* The live allocation that holds p; kind is MEMORY_NONE when there is none. */
allocation find_allocation(const void *p);
/* Whether [p, p+bytes) lies in one live allocation of device memory. Zero bytes always do. */
bool in_device(const void *p, size_t bytes);
/* Increases with every change of the table of allocations. */
uint64_t allocations_version();

/* Opens all device memory to the host for its lifetime, where II_EMU_GUARD closes it. */
class open_memory {
public:
  open_memory();
  ~open_memory();
  open_memory(const open_memory &) = delete;
  open_memory &operator=(const open_memory &) = delete;
};

/* ---- Reports (report.cpp) ---------------------------------------------------------------------*/

/* Prints "==== emulated GPU: <title> ====", the running kernel with block and thread if there is
 * one, and the text; ends the process, unless II_EMU_REPORT=continue and `can_continue`. The same
 * text is printed once. */
void report(bool can_continue, const char *title, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* A line about an error code that the caller of the runtime is about to get. */
void note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

struct launch;
/* For II_EMU_STATS. */
void count_launch(const launch &l, double milliseconds);

/* ---- The program's symbols (shared_memory.cpp) ------------------------------------------------*/

/* Demangled name of a kernel; "" when the program is stripped. */
std::string function_name(const void *function);
/* Bytes of static shared memory that the kernel itself declares. */
size_t static_shared_bytes(const void *kernel);
/* The static shared variables that the kernel itself declares. */
struct memory_range {
  void *start;
  size_t bytes;
};
std::vector<memory_range> shared_variables(const void *kernel);
/* The static shared variable at p: name, start and size; false when it is none. */
bool find_shared(const void *p, std::string *name, uintptr_t *start, size_t *bytes);
/* Bytes of code of a function, 0 when unknown. */
size_t function_bytes(const void *function);
/* Whether p lies in the program's own image (code, constants, variables). */
bool in_image(const void *p);
uintptr_t image_base();
/* "function at file:line" of a code address, on a new line for it and for each function it was
 * inlined into (runs addr2line). */
std::string source_of(uintptr_t pc);

/* Bytes of dynamic shared memory a launch may ask for (device.cpp). */
size_t dynamic_shared_limit(const void *kernel);

/* ---- Kernels (sched.cpp) ----------------------------------------------------------------------*/

struct launch {
  const void *kernel;
  std::string name;
  const char *file;
  int line;
  dim3 grid, block;
  size_t shared_bytes;
  ii_emu_body *body;
};
/* Runs all blocks on the calling thread; one kernel at a time in the process. */
void run_kernel(const launch &l);

/* State of the running kernel that reports and the race checker read. `now` counts barriers and
 * launches: an access is stamped with it, and two accesses of different threads are ordered when a
 * synchronisation of both came between their stamps. */
struct running_kernel {
  const launch *l; /* NULL: none */
  int thread;      /* linear index in the block; -1 outside threads */
  uint64_t block;  /* linear */
  uint64_t now, launch_start, block_start, barrier;
  uint64_t warp_sync[32];    /* the last __syncwarp of all 32 lanes, per warp */
  uint64_t (*pair_sync)[32]; /* [1024][32]: the last one of this pair of lanes of a warp */
  bool partial_sync[32];     /* pair_sync of the warp is in use */
  char *dynamic_shared;
  uintptr_t stack, stack_end; /* of the running thread */
};
extern running_kernel running;
/* True on the host thread that is inside a kernel's thread right now. */
extern __thread bool in_kernel_thread;
uint3 thread_index(int linear);
dim3 block_index(uint64_t linear);

/* ---- Race checker (race.cpp); without II_EMULATE_RACE these do nothing ------------------------*/

void race_atomic(const void *p, size_t bytes, const char *file, int line);
void race_forget(uintptr_t address, size_t bytes); /* an allocation came or went */
void race_end_block();

/* ---- Memory profile (profile*.cpp); without II_EMULATE_PROFILE these do nothing ---------------*/

void profile_allocated(const void *p, size_t bytes);
void profile_freed(const void *p);
void profile_set(void *p, size_t bytes);
void profile_copy(void *to, const void *from, size_t bytes);
void profile_begin(const launch &l);
void profile_end_block();
/* An atomic of the running thread, at code address pc of the kernel. */
void profile_atomic(const void *p, size_t bytes, const char *function, const char *type,
                    const void *pc);
/* See ii_emu_fragment. */
void profile_fragment(const void *p, size_t row_bytes, size_t pitch, bool store, const void *pc);
void profile_fragment_done();
/* The lanes of a warp met; all: none of the others lives. Before they go on. */
void profile_meet(int warp, uint32_t lanes, bool all);

/* ---- What the compiler's instrumentation calls (hooks.cpp); race.cpp or profile.cpp has them --*/

/* What an access does. COPY: of a structure, some of whose members may never have been needed. */
enum access_kind { READ = 0, WRITE = 1, ATOMIC = 2, COPY = 4 };
/* aligned: to `bytes`, says the type. pc: the return address of the hook. */
void compiled_access(const void *p, size_t bytes, int action, bool aligned, const void *pc);
/* A function that kernels may call begins; pc: where it will return to. It ends. */
void compiled_entry(const void *pc);
void compiled_exit();

} // namespace ii_emu

#endif
