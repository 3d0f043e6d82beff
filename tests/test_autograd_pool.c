/* The memory pool: placing, coalescing, accounting, limits, and plans. */
#include "autograd/pool.h"
#include "autograd/rng.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static ii_kctx cpu; /* memory of the CPU engine needs nothing to be open */

#define KIB ((size_t)1024)
#define MIB (KIB * KIB)

static ii_block *take(ii_pool *p, size_t bytes) {
  ii_error err = {0};
  ii_block *b = ii_pool_alloc(p, bytes, II_MEM_ACTIVATIONS, &err);
  if (!b) fail_msg("%s", err.text);
  assert_true(b->size >= bytes && b->refs == 1);
  return b;
}

static void neighbours_join(void **state) {
  ii_pool p;
  ii_pool_init(&p, &cpu);
  ii_block *b[3];
  for (int i = 0; i < 3; i++) b[i] = take(&p, 8 * MIB);
  uintptr_t first = b[0]->address;
  assert_true(b[1]->address == first + 8 * MIB && b[2]->address == first + 16 * MIB);
  /* in every order of release the three and the rest of the chunk are one block again */
  static const int orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2},
                                   {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
  for (int o = 0; o < 6; o++) {
    for (int i = 0; i < 3; i++) ii_block_release(b[orders[o][i]]);
    assert_int_equal(p.live, 0);
    ii_block *all = take(&p, 32 * MIB);
    assert_true(all->address == first);
    ii_block_release(all);
    for (int i = 0; i < 3; i++) b[i] = take(&p, 8 * MIB);
  }
  assert_int_equal(p.reserved, 32 * MIB);
  for (int i = 0; i < 3; i++) ii_block_release(b[i]);
  ii_pool_destroy(&p);
}

static void best_fit(void **state) {
  ii_pool p;
  ii_pool_init(&p, &cpu);
  static const size_t sizes[] = {128, 64, 96, 64, 96}; /* KiB of the holes */
  ii_block *hole[5], *wall[5];
  for (int i = 0; i < 5; i++) {
    hole[i] = take(&p, sizes[i] * KIB);
    wall[i] = take(&p, KIB);
  }
  uintptr_t at[5];
  for (int i = 0; i < 5; i++) {
    at[i] = hole[i]->address;
    ii_block_release(hole[i]);
  }
  ii_block *x = take(&p, 90 * KIB); /* the smallest that is large enough, the lower of two */
  assert_true(x->address == at[2]);
  ii_block *y = take(&p, 96 * KIB);
  assert_true(y->address == at[4]);
  ii_block *z = take(&p, 100 * KIB);
  assert_true(z->address == at[0]);
  ii_block_release(x);
  ii_block_release(y);
  ii_block_release(z);
  for (int i = 0; i < 5; i++) ii_block_release(wall[i]);
  assert_int_equal(p.live, 0);
  ii_pool_destroy(&p);
}

static void references_and_accounts(void **state) {
  ii_pool p;
  ii_error err = {0};
  ii_pool_init(&p, &cpu);
  ii_block *a = ii_pool_alloc(&p, 1000, II_MEM_PARAMETERS, &err);
  ii_block *b = ii_pool_alloc(&p, 0, II_MEM_INPUT, &err);
  assert_non_null(a);
  assert_non_null(b);
  assert_true((uintptr_t)a->data % II_POOL_ALIGN == 0 && (uintptr_t)b->data % II_POOL_ALIGN == 0);
  assert_int_equal(p.live_by_class[II_MEM_PARAMETERS], 1024);
  ii_block_retain(a);
  ii_block_release(a);
  assert_int_equal(a->refs, 1);
  assert_int_equal(p.live, 1024 + (int64_t)b->size);
  int64_t peak = p.peak;
  ii_block_release(a);
  ii_block_release(b);
  assert_int_equal(p.live, 0);
  assert_int_equal(p.peak, peak);
  assert_int_equal(p.peak_by_class[II_MEM_PARAMETERS], 1024);
  ii_pool_reset_peak(&p);
  assert_int_equal(p.peak, 0);
  assert_int_equal(p.peak_by_class[II_MEM_PARAMETERS], 0);
  ii_pool_destroy(&p);
}

static void limit(void **state) {
  for (int plan = 0; plan < 2; plan++) {
    ii_pool p;
    ii_error err = {0};
    ii_pool_init(&p, plan ? NULL : &cpu);
    p.limit = 48 * MIB;
    ii_block *a = ii_pool_alloc(&p, 20 * MIB, II_MEM_ACTIVATIONS, &err);
    assert_non_null(a);
    assert_null(ii_pool_alloc(&p, 40 * MIB, II_MEM_ACTIVATIONS, &err));
    assert_int_equal(err.status, II_ERR_MEMORY);
    assert_non_null(strstr(err.text, "40.0 MiB"));
    assert_non_null(strstr(err.text, "20.0 MiB"));
    assert_true(p.reserved <= p.limit);
    ii_error_clear(&err);
    ii_block *b = ii_pool_alloc(&p, 12 * MIB, II_MEM_ACTIVATIONS, &err); /* it goes on working */
    assert_non_null(b);
    ii_block_release(a);
    ii_block_release(b);
    ii_pool_destroy(&p);
  }
}

/* What fits below the limit is given, also when a chunk of the usual size does not. */
static void limit_is_used_up(void **state) {
  ii_pool p;
  ii_error err = {0};
  ii_pool_init(&p, NULL);
  p.limit = 40 * MIB;
  ii_block *a = ii_pool_alloc(&p, 32 * MIB, II_MEM_ACTIVATIONS, &err);
  ii_block *b = ii_pool_alloc(&p, 7 * MIB, II_MEM_ACTIVATIONS, &err);
  assert_non_null(a);
  if (!b) fail_msg("%s", err.text);
  ii_pool_destroy(&p);
}

/* Chunks that are too small for what is asked for, and in which nothing is in use, make room. */
static void free_chunks_make_room(void **state) {
  for (int plan = 0; plan < 2; plan++) {
    ii_pool p;
    ii_error err = {0};
    ii_pool_init(&p, plan ? NULL : &cpu);
    p.limit = 110 * MIB;
    ii_block *a[3];
    for (int i = 0; i < 3; i++) {
      a[i] = ii_pool_alloc(&p, 32 * MIB, II_MEM_ACTIVATIONS, &err);
      assert_non_null(a[i]);
    }
    assert_int_equal(p.reserved, 96 * MIB);
    ii_block_release(a[0]);
    ii_block_release(a[2]);
    ii_block *b = ii_pool_alloc(&p, 70 * MIB, II_MEM_ACTIVATIONS, &err);
    if (!b) fail_msg("%s", err.text);
    if (b->data) memset(b->data, 1, 70 * MIB);
    if (!plan) memset(a[1]->data, 1, 32 * MIB);
    assert_int_equal(p.reserved, 102 * MIB);
    assert_true(b->address != a[1]->address);
    assert_null(ii_pool_alloc(&p, 20 * MIB, II_MEM_ACTIVATIONS, &err)); /* nothing left to drop */
    ii_block_release(a[1]);
    ii_block_release(b);
    assert_int_equal(p.live, 0);
    ii_pool_destroy(&p);
  }
}

enum { SLOTS = 60, ROUNDS = 4000 };

static void fill(ii_block *b, size_t bytes, int slot) {
  if (b->data) memset(b->data, slot + 1, bytes);
}

static void check(const ii_block *b, size_t bytes, int slot) {
  const unsigned char *v = b->data;
  for (size_t i = 0; v && i < bytes; i += 1 + bytes / 50) assert_int_equal(v[i], slot + 1);
  if (v && bytes) assert_int_equal(v[bytes - 1], slot + 1);
}

/* The same random requests to a real pool and to a plan: blocks do not overlap, and every number
 * and place is the same. */
static void random_requests_in_plan_and_reality(void **state) {
  ii_pool real, plan;
  ii_pool_init(&real, &cpu);
  ii_pool_init(&plan, NULL);
  ii_block *a[SLOTS] = {0}, *b[SLOTS] = {0};
  size_t bytes[SLOTS];
  ii_error err = {0};
  ii_rng r = ii_rng_make(3, II_RNG_TEST, 0, 0);
  for (int round = 0; round < ROUNDS; round++) {
    int i = (int)ii_rng_below(&r, SLOTS);
    if (a[i]) {
      check(a[i], bytes[i], i);
      ii_block_release(a[i]);
      ii_block_release(b[i]);
      a[i] = b[i] = NULL;
    } else {
      bytes[i] = (size_t)ii_rng_below(&r, (uint64_t)1 << ii_rng_below(&r, 23));
      ii_mem_class use = (ii_mem_class)ii_rng_below(&r, II_MEM_CLASSES);
      a[i] = ii_pool_alloc(&real, bytes[i], use, &err);
      b[i] = ii_pool_alloc(&plan, bytes[i], use, &err);
      assert_true(a[i] && b[i] && !b[i]->data);
      assert_true(a[i]->address == b[i]->address);
      fill(a[i], bytes[i], i);
    }
    assert_int_equal(real.live, plan.live);
  }
  assert_int_equal(real.peak, plan.peak);
  assert_int_equal(real.reserved, plan.reserved);
  assert_memory_equal(real.peak_by_class, plan.peak_by_class, sizeof real.peak_by_class);
  assert_true(real.reserved >= real.peak);
  for (int i = 0; i < SLOTS; i++)
    if (a[i]) {
      check(a[i], bytes[i], i);
      ii_block_release(a[i]);
      ii_block_release(b[i]);
    }
  assert_int_equal(real.live, 0);
  for (int c = 0; c < II_MEM_CLASSES; c++) assert_int_equal(real.live_by_class[c], 0);
  ii_pool_destroy(&real);
  ii_pool_destroy(&plan);
}

/* What was taken and given back leaves the layout as it was, in any order, and the same requests
 * get the same memory; what stays changes it, and so does a chunk. */
static void layout(void **state) {
  static const size_t sizes[] = {3 * KIB, 500 * KIB, 64, 5 * MIB};
  ii_pool p;
  ii_pool_init(&p, &cpu);
  ii_block *kept = take(&p, 10 * KIB), *b[4];
  const uint64_t at_first = ii_pool_layout(&p);
  const void *where[4];
  for (int turn = 0; turn < 4; turn++) {
    for (int i = 0; i < 4; i++) {
      b[i] = take(&p, sizes[i]);
      if (turn == 0) where[i] = b[i]->data;
      assert_ptr_equal(b[i]->data, where[i]);
      assert_true(ii_pool_layout(&p) != at_first);
    }
    for (int i = 0; i < 4; i++) ii_block_release(b[(turn % 2 ? i : 3 - i) ^ turn / 2]);
    assert_true(ii_pool_layout(&p) == at_first);
  }
  ii_block *more = take(&p, 40 * MIB); /* another chunk, which stays */
  ii_block_release(more);
  assert_true(ii_pool_layout(&p) != at_first);
  ii_block_release(kept);
  ii_pool_destroy(&p);
}

static void fixed_chunks(void **state) {
  ii_error err = {0};
  ii_pool p;
  ii_pool_init(&p, &cpu);
  ii_block_release(take(&p, MIB));
  const int64_t reserved = p.reserved;
  p.fixed = true;
  ii_block_release(take(&p, 32 * MIB));
  assert_null(
      ii_pool_alloc(&p, 33 * MIB, II_MEM_ACTIVATIONS, &err)); /* nor is the free one dropped */
  assert_int_equal(err.status, II_ERR_MEMORY);
  assert_int_equal(p.reserved, reserved);
  p.fixed = false;
  ii_block_release(take(&p, 33 * MIB));
  ii_pool_destroy(&p);
}

static void class_names_differ(void **state) {
  for (int i = 0; i < II_MEM_CLASSES; i++)
    for (int j = 0; j < i; j++)
      assert_string_not_equal(ii_mem_class_name((ii_mem_class)i),
                              ii_mem_class_name((ii_mem_class)j));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(neighbours_join),
      cmocka_unit_test(best_fit),
      cmocka_unit_test(references_and_accounts),
      cmocka_unit_test(limit),
      cmocka_unit_test(limit_is_used_up),
      cmocka_unit_test(free_chunks_make_room),
      cmocka_unit_test(random_requests_in_plan_and_reality),
      cmocka_unit_test(layout),
      cmocka_unit_test(fixed_chunks),
      cmocka_unit_test(class_names_differ),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
