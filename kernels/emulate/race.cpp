#include "emulate_internal.h"
namespace ii_emu {
void race_atomic(const void *, size_t, const char *, int) {}
void race_forget(uintptr_t, size_t) {}
}
