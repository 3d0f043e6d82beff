#include "emulate_internal.h"
namespace ii_emu {
std::string function_name(const void *) { return ""; }
size_t static_shared_bytes(const void *) { return 0; }
void poison_static_shared(const void *) {}
bool find_shared(const void *, std::string *, uintptr_t *, size_t *) { return false; }
bool in_image(const void *) { return false; }
std::string source_of(uintptr_t) { return ""; }
}
