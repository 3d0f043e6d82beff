/* Between the two halves of the memory profile: profile.cpp finds out which accesses of a warp are
 * one request, profile_records.cpp counts requests. */
#ifndef II_EMULATE_PROFILE_RECORDS_H
#define II_EMULATE_PROFILE_RECORDS_H
#include "kernels/emulate/emulate_internal.h"
#include "kernels/emulate/profile.h"

namespace ii_emu {

/* The accesses of some lanes of a warp that are done at once. */
struct request {
  int kind;   /* II_EMU_LOAD, ... */
  int bytes;  /* per lane: 1, 2, 4, 8 or 16 */
  int atomic; /* index from profile_atomic_index */
  int lanes;
  uintptr_t address[32];
};

/* Whether launches are counted. */
bool profile_on();
/* A new record, for the launch that begins; requests belong to the last one. */
void profile_record(const launch &l);
void profile_device_request(const request &r);
void profile_shared_request(const request &r);
/* A number for the atomic function; the texts must live on. */
int profile_atomic_index(const char *function, const char *type, int width);

} // namespace ii_emu

#endif
