/* Counts what the deformable convolution asks of a GPU's memory, without a GPU: the emulator's
 * memory profile (docs/emulation.md) of the CUDA kernels at the published shapes.
 *
 *   profile_dcn [--set paper|tiny|small|base|large] [--shape N] [--batch B] [--most E]
 *               [--only LAYOUT]... [--dtype f32|f16|bf16]... [--sd 0.5] [--check 1]
 *
 * One JSON object per line, shape, layout (dcnv3, dcnv4, dcnv4_joint), type and direction: bytes
 * from and to DRAM beside the least possible (every input read and every result written once),
 * starting and ending with an empty second-level cache of II_EMU_L2_MB; widths of the loads of
 * values; sectors per request; atomics per element of the input; registers, shared memory and warps
 * per multiprocessor of every kernel. --shape N: that one of the set alone, counted from 0; --batch
 * B: instead of the shape's images; --most E: shapes of more than E million elements are left out.
 * --check 1: exit status 1 when a count is over its bound. */
#include <stdbool.h>
#include "bench/dcn_problem.h"
#include "bench/occupancy.h"
#include "kernels/emulate/profile.h"
#include "train/process.h"

/* The bounds of --check. Atomics: the published kernel has 36 per element. */
#define MOST_DRAM_RATIO   1.3
#define REFERENCE_ATOMICS 36.0
#define MOST_ATOMICS      (REFERENCE_ATOMICS / 4)

typedef struct {
  ii_engine_options engine;
  const char *set;
  int shape, batch;
  bool layout[3], dtype[II_DTYPE_COUNT], check;
  double sd, most;
  int over; /* bounds that were not kept */
} options;

static void fail(const char *why) {
  fprintf(stderr, "profile_dcn: %s\n", why);
  exit(1);
}

/* ---- sums over the launches of a direction ---- */

typedef struct {
  double read, written;            /* bytes of DRAM */
  double values[II_EMU_WIDTHS];    /* loads of values by width */
  double gradients[II_EMU_WIDTHS]; /* of the gradient of the output */
  double value_requests, value_sectors;
  double other_loads, requests, sectors; /* all device memory */
  double atomics, shared_atomics, wavefronts;
} totals;

static void add_buffer(totals *t, const ii_emu_buffer_traffic *b, const dcn_problem *p) {
  const ii_emu_accesses *l = &b->of[II_EMU_LOAD];
  t->read += (double)b->dram_read;
  t->written += (double)b->dram_written;
  for (int w = 0; w < II_EMU_WIDTHS; w++) {
    if (b->start == p->x) t->values[w] += (double)l->accesses[w];
    if (b->start == p->x) t->value_requests += (double)l->requests[w];
    if (b->start == p->gy) t->gradients[w] += (double)l->accesses[w];
    if (b->start != p->x && b->start != p->gy) t->other_loads += (double)l->accesses[w];
    t->atomics += (double)b->of[II_EMU_ATOMIC].accesses[w];
    for (int k = 0; k < II_EMU_KINDS; k++) t->requests += (double)b->of[k].requests[w];
  }
  if (b->start == p->x) t->value_sectors += (double)l->sectors;
  for (int k = 0; k < II_EMU_KINDS; k++) t->sectors += (double)b->of[k].sectors;
}

static totals add_up(const dcn_problem *p) {
  totals t = {0};
  for (int64_t i = 0; i < ii_emu_profile_count(); i++) {
    const ii_emu_launch_traffic l = ii_emu_profile_get(i);
    for (int b = 0; b < l.buffers; b++) add_buffer(&t, &l.buffer[b], p);
    for (int k = 0; k < II_EMU_KINDS; k++) t.wavefronts += (double)l.shared[k].wavefronts;
    for (int w = 0; w < II_EMU_WIDTHS; w++)
      t.shared_atomics += (double)l.shared[II_EMU_ATOMIC].accesses[w];
  }
  return t;
}

/* ---- output ---- */

static void print_widths(const char *name, const double *n) {
  printf(", \"%s\": \"", name);
  const char *sep = "";
  for (int w = 0; w < II_EMU_WIDTHS; w++)
    if (n[w] > 0) printf("%s%d B: %.0f", sep, 1 << w, n[w]), sep = ", ";
  printf("\"");
}

/* "name x launches: blocks x threads, registers, shared memory, warps" of kernel i; the launches of
 * the same kernel with the same sizes count as one. Returns whether it was printed. */
static bool print_kernel(int64_t i, const char *sep) {
  const ii_emu_launch_traffic l = ii_emu_profile_get(i);
  int n = 0, r[OCCUPANCY_ARCHS];
  for (int64_t j = 0; j < ii_emu_profile_count(); j++) {
    const ii_emu_launch_traffic o = ii_emu_profile_get(j);
    const bool same = !strcmp(l.name, o.name) && !memcmp(l.grid, o.grid, sizeof l.grid) &&
                      !memcmp(l.block, o.block, sizeof l.block);
    if (same && j < i) return false;
    n += same;
  }
  const int threads = (int)(l.block[0] * l.block[1] * l.block[2]);
  const size_t shared = l.static_shared + l.dynamic_shared;
  printf("%s%s", sep, l.name);
  if (n > 1) printf(" x%d", n);
  if (!l.file) return true; /* memset */
  printf(": %.0f x %d threads, %zu B shared", (double)l.grid[0] * l.grid[1] * l.grid[2], threads,
         shared);
  if (!occupancy_registers(II_REGISTERS, l.name, r)) {
    printf(", registers not recorded");
    return true;
  }
  printf(", registers %d/%d/%d, warps", r[0], r[1], r[2]);
  for (int a = 0; a < OCCUPANCY_ARCHS; a++)
    printf("%s%d", a ? "/" : " ", occupancy_warps(occupancy_arch[a], r[a], threads, shared));
  return true;
}

static void print_result(const dcn_problem *p, const char *direction, double least,
                         const totals *t) {
  const double elements = (double)(p->rows * p->args.C), dram = t->read + t->written;
  printf("{%s, \"direction\": \"%s\", \"l2_MB\": %.1f", p->what, direction,
         (double)ii_emu_profile_cache_bytes() / 1048576);
  printf(", \"least_MB\": %.3f, \"dram_MB\": %.3f, \"dram_ratio\": %.3f", least * 1e-6, dram * 1e-6,
         dram / least);
  printf(", \"read_MB\": %.3f, \"written_MB\": %.3f", t->read * 1e-6, t->written * 1e-6);
  print_widths("value_loads", t->values);
  print_widths("gradient_loads", t->gradients);
  printf(", \"value_sectors_per_request\": %.2f",
         t->value_requests > 0 ? t->value_sectors / t->value_requests : 0);
  printf(", \"other_loads_per_pixel\": %.2f", t->other_loads / (double)p->rows);
  printf(", \"requests\": %.0f, \"sector_MB\": %.3f", t->requests, 32e-6 * t->sectors);
  printf(", \"atomics_per_element\": %.3f, \"reference_atomics_per_element\": %.0f",
         t->atomics / elements, REFERENCE_ATOMICS);
  printf(", \"shared_atomics_per_element\": %.3f, \"shared_wavefronts\": %.0f",
         t->shared_atomics / elements, t->wavefronts);
  printf(", \"kernels\": \"");
  const char *sep = "";
  for (int64_t i = 0; i < ii_emu_profile_count(); i++)
    if (print_kernel(i, sep)) sep = "; ";
  printf("\"}\n");
  fflush(stdout);
}

/* ---- bounds ---- */

static void bound(options *o, bool kept, const dcn_problem *p, const char *direction,
                  const char *what, double is, double most) {
  if (kept) return;
  fprintf(stderr, "profile_dcn: {%s} %s: %s is %.3f, the bound is %.3f\n", p->what, direction, what,
          is, most);
  o->over++;
}

static void check(options *o, const dcn_problem *p, bool forward, double least, const totals *t) {
  const char *direction = forward ? "forward" : "backward";
  const double ratio = (t->read + t->written) / least;
  const double atomics = t->atomics / (double)(p->rows * p->args.C);
  double narrow = 0, loads = 0;
  for (int w = 0; w < II_EMU_WIDTHS; w++) {
    loads += t->values[w];
    if (w < II_EMU_WIDTHS - 1) narrow += t->values[w];
  }
  if (forward)
    bound(o, ratio <= MOST_DRAM_RATIO, p, direction, "DRAM bytes over the least", ratio,
          MOST_DRAM_RATIO);
  if (p->taps) /* otherwise offsets are loaded from the same memory */
    bound(o, narrow == 0 && loads > 0, p, direction, "loads of values below 16 bytes", narrow, 0);
  bound(o, atomics <= (forward ? 0 : MOST_ATOMICS), p, direction, "atomics per element", atomics,
        forward ? 0 : MOST_ATOMICS);
}

/* ---- the program ---- */

static void profile(ii_kctx *k, options *o, const dcn_problem *p, bool forward) {
  const double least = forward ? p->fwd_bytes : p->bwd_bytes;
  measure_must(k, ii_device_sync(k));
  ii_emu_profile_empty_cache();
  ii_emu_profile_clear();
  measure_must(k, forward ? ii_cuda_dcn_fwd(k, &p->args) : ii_cuda_dcn_bwd(k, &p->args));
  measure_must(k, ii_device_sync(k));
  ii_emu_profile_empty_cache();
  const totals t = add_up(p);
  print_result(p, forward ? "forward" : "backward", least, &t);
  if (o->check) check(o, p, forward, least, &t);
}

static void run(ii_kctx *k, options *o) {
  int number = -1;
  for (int i = 0; i < DCN_SHAPES; i++) {
    dcn_shape s = dcn_shapes[i];
    if (strcmp(s.set, o->set) || (++number != o->shape && o->shape >= 0)) continue;
    if (o->batch) s.images = o->batch;
    if ((double)(s.images ? s.images : 8) * s.H * s.W * s.C > 1e6 * o->most) {
      fprintf(stderr, "profile_dcn: left out by --most: %dx%dx%d\n", s.H, s.W, s.C);
      continue;
    }
    for (int t = 0; t < II_DTYPE_COUNT; t++)
      for (int l = 0; l < 3 && o->dtype[t]; l++) {
        if (!o->layout[l]) continue;
        dcn_problem p = dcn_open(k, (dcn_layout)l, (ii_dtype)t, &s, 8, o->sd);
        profile(k, o, &p, true);
        profile(k, o, &p, false);
        dcn_close(k, &p);
      }
  }
}

static void choose(options *o, const char *option, const char *value) {
  static const ii_dtype types[] = {II_F32, II_F16, II_BF16};
  bool known = false;
  for (int l = 0; l < 3 && !strcmp(option, "--only"); l++)
    if (!strcmp(value, dcn_layout_name((dcn_layout)l))) o->layout[l] = known = true;
  for (int t = 0; t < 3 && !strcmp(option, "--dtype"); t++)
    if (!strcmp(value, ii_dtype_name(types[t]))) o->dtype[types[t]] = known = true;
  for (int i = 0; i < DCN_SHAPES && !strcmp(option, "--set"); i++)
    if (!strcmp(value, dcn_shapes[i].set)) o->set = value, known = true;
  if (!known) fail("unknown option or value; see the head of profile_dcn.c");
}

static void parse(options *o, int argc, char **argv) {
  *o =
      (options){.engine = {.device = II_CUDA}, .set = "paper", .shape = -1, .sd = 0.5, .most = 1e6};
  for (int i = 1; i < argc; i += 2) {
    if (i + 1 == argc) fail("an option lacks its value");
    const char *value = argv[i + 1];
    if (!strcmp(argv[i], "--shape"))
      o->shape = atoi(value);
    else if (!strcmp(argv[i], "--batch"))
      o->batch = atoi(value);
    else if (!strcmp(argv[i], "--most"))
      o->most = atof(value);
    else if (!strcmp(argv[i], "--sd"))
      o->sd = atof(value);
    else if (!strcmp(argv[i], "--check"))
      o->check = atoi(value);
    else
      choose(o, argv[i], value);
  }
  if (o->batch < 0 || !(o->sd >= 0)) fail("--batch and --sd are not negative");
  if (!o->dtype[II_F32] && !o->dtype[II_F16] && !o->dtype[II_BF16])
    o->dtype[II_F32] = o->dtype[II_F16] = o->dtype[II_BF16] = true;
  if (!o->layout[DCN_V3] && !o->layout[DCN_V4] && !o->layout[DCN_JOINT])
    o->layout[DCN_V3] = o->layout[DCN_V4] = true;
}

int main(int argc, char **argv) {
  ii_process_prepare(argv);
  options o;
  ii_kctx k;
  parse(&o, argc, argv);
  if (ii_engine_open(&k, &o.engine)) fail(k.error);
  ii_emu_profile_start();
  run(&k, &o);
  ii_engine_close(&k);
  if (o.over) fprintf(stderr, "profile_dcn: %d counts are over their bounds\n", o.over);
  return o.over != 0;
}
