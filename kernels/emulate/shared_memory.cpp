/* Finds the __shared__ variables of the program, from its own symbol table.
 *
 * The shim makes them local statics, which have mangled names _ZZ<function>E<variable> after an
 * STT_FILE symbol *.cu, with address and size. No attribute would do: gcc ignores a section on
 * statics of templates. Needs a program that is not stripped and not built with LTO; kernels stand
 * in an anonymous namespace, without which AddressSanitizer does not guard their statics. */
#include "kernels/emulate/emulate_internal.h"
#include <cxxabi.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <algorithm>
#include <map>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace ii_emu {
namespace {

struct variable {
  uintptr_t address;
  size_t bytes;
  std::string name; /* mangled */
};

struct program {
  uintptr_t base, low, high; /* where it is loaded */
  std::vector<variable> shared;
  std::unordered_multimap<uintptr_t, std::string> functions; /* of *.cu files, mangled */
  std::unordered_map<uintptr_t, size_t> sizes;               /* of those functions */
};

std::mutex lock;
std::map<const void *, std::vector<const variable *>> of_kernel;

int find_range(dl_phdr_info *info, size_t, void *out) {
  program *p = (program *)out;
  p->base = info->dlpi_addr;
  p->low = UINTPTR_MAX;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr) &h = info->dlpi_phdr[i];
    if (h.p_type != PT_LOAD) continue;
    p->low = std::min(p->low, (uintptr_t)(p->base + h.p_vaddr));
    p->high = std::max(p->high, (uintptr_t)(p->base + h.p_vaddr + h.p_memsz));
  }
  return 1; /* the first is the program */
}

void read_symbols(program &p, const char *file, const ElfW(Shdr) * sections, int count,
                  const ElfW(Shdr) & table) {
  const ElfW(Sym) *symbol = (const ElfW(Sym) *)(file + table.sh_offset);
  const char *names = file + sections[table.sh_link].sh_offset;
  bool device_file = false;
  for (size_t i = 0; i < table.sh_size / sizeof *symbol; i++) {
    const ElfW(Sym) &s = symbol[i];
    const char *name = names + s.st_name;
    const int type = ELF64_ST_TYPE(s.st_info);
    if (type == STT_FILE) {
      const size_t n = strlen(name);
      device_file = n > 3 && !strcmp(name + n - 3, ".cu");
    }
    if (s.st_shndx == SHN_UNDEF || s.st_shndx >= count) continue;
    const uintptr_t address = p.base + s.st_value;
    const bool local = ELF64_ST_BIND(s.st_info) == STB_LOCAL;
    const bool writable = (sections[s.st_shndx].sh_flags & SHF_WRITE) != 0;
    if (type == STT_FUNC && (device_file || !local)) {
      p.functions.insert({address, name});
      p.sizes[address] = s.st_size;
    }
    if (type == STT_OBJECT && (device_file || !local) && writable && !strncmp(name, "_ZZ", 3)) {
      p.shared.push_back(variable{address, s.st_size, name});
    }
  }
}

program read_program() {
  program p = program();
  dl_iterate_phdr(find_range, &p);
  const int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
  struct stat status;
  if (fd < 0 || fstat(fd, &status) != 0) return p;
  void *m = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
  close(fd);
  if (m == MAP_FAILED) return p;
  const char *file = (const char *)m;
  const ElfW(Ehdr) *header = (const ElfW(Ehdr) *)file;
  const ElfW(Shdr) *sections = (const ElfW(Shdr) *)(file + header->e_shoff);
  for (int i = 0; i < header->e_shnum; i++) {
    if (sections[i].sh_type == SHT_SYMTAB) {
      read_symbols(p, file, sections, header->e_shnum, sections[i]);
    }
  }
  munmap(m, (size_t)status.st_size);
  std::sort(p.shared.begin(), p.shared.end(),
            [](const variable &a, const variable &b) { return a.address < b.address; });
  return p;
}

const program &this_program() {
  static const program p = read_program();
  return p;
}

std::string demangle(const std::string &name) {
  int status;
  char *text = abi::__cxa_demangle(name.c_str(), NULL, NULL, &status);
  const std::string result = status == 0 ? text : name;
  free(text);
  return result;
}

/* The variables a kernel declares itself. */
const std::vector<const variable *> &variables_of(const void *kernel) {
  std::lock_guard<std::mutex> hold(lock);
  const auto known = of_kernel.find(kernel);
  if (known != of_kernel.end()) return known->second;
  std::vector<const variable *> found;
  const program &p = this_program();
  const auto names = p.functions.equal_range((uintptr_t)kernel);
  for (auto n = names.first; n != names.second; ++n) {
    if (n->second.compare(0, 2, "_Z")) continue;
    const std::string owner = "_ZZ" + n->second.substr(2) + "E";
    for (const variable &v : p.shared) {
      if (!v.name.compare(0, owner.size(), owner)) found.push_back(&v);
    }
  }
  return of_kernel[kernel] = found;
}

} // namespace

std::string function_name(const void *function) {
  const program &p = this_program();
  const auto at = p.functions.find((uintptr_t)function);
  if (at == p.functions.end()) return "";
  std::string name = demangle(at->second);
  const char *const noise = "(anonymous namespace)::";
  for (size_t i; (i = name.find(noise)) != std::string::npos;) name.erase(i, strlen(noise));
  return name;
}

size_t static_shared_bytes(const void *kernel) {
  size_t sum = 0;
  for (const variable *v : variables_of(kernel)) sum += v->bytes;
  return sum;
}

std::vector<memory_range> shared_variables(const void *kernel) {
  std::vector<memory_range> all;
  for (const variable *v : variables_of(kernel)) {
    all.push_back(memory_range{(void *)v->address, v->bytes});
  }
  return all;
}

bool find_shared(const void *p, std::string *name, uintptr_t *start, size_t *bytes) {
  const std::vector<variable> &all = this_program().shared;
  auto at = std::upper_bound(all.begin(), all.end(), (uintptr_t)p,
                             [](uintptr_t a, const variable &v) { return a < v.address; });
  if (at == all.begin()) return false;
  --at;
  if ((uintptr_t)p - at->address >= at->bytes) return false;
  if (name) *name = demangle(at->name).substr(demangle(at->name).rfind("::") + 2);
  *start = at->address;
  *bytes = at->bytes;
  return true;
}

size_t function_bytes(const void *function) {
  const auto at = this_program().sizes.find((uintptr_t)function);
  return at == this_program().sizes.end() ? 0 : at->second;
}

bool in_image(const void *p) {
  const program &image = this_program();
  return (uintptr_t)p >= image.low && (uintptr_t)p < image.high;
}

uintptr_t image_base() {
  return this_program().base;
}

std::string source_of(uintptr_t pc) {
  char path[4096], command[4400], line[1024];
  const ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
  if (n <= 0) return "?";
  path[n] = 0;
  snprintf(command, sizeof command, "addr2line -Cfipe '%s' 0x%zx 2>/dev/null", path,
           (size_t)(pc - image_base()));
  std::string all;
  FILE *f = popen(command, "r");
  while (f && fgets(line, sizeof line, f)) {
    std::string text = line;
    if (!text.empty() && text.back() == '\n') text.pop_back();
    /* Helpers that were inlined are listed from the innermost; the shim's own are of no interest.
     */
    if (text.find("kernels/emulate/emulate") == std::string::npos) all += "\n    " + text;
  }
  if (f) pclose(f);
  return all.empty() ? "?" : all;
}

} // namespace ii_emu
