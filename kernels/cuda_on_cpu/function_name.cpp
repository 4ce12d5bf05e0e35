// Names of kernels for messages, from the program's own symbol table: kernels are local to their
// files, so the dynamic linker does not know them.
#include <cxxabi.h>
#include <elf.h>
#include <fmt/format.h>
#include <link.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <vector>

#include "kernels/cuda_on_cpu/block.h"

namespace lathe::cuda_on_cpu {

namespace {

uintptr_t load_address() {
  uintptr_t address = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* result) {
        *static_cast<uintptr_t*>(result) = info->dlpi_addr;
        return 1;  // the first is the program
      },
      &address);
  return address;
}

std::map<uintptr_t, FunctionSymbol> read_symbols() {
  std::ifstream file("/proc/self/exe", std::ios::binary);
  const std::vector<char> elf{std::istreambuf_iterator<char>(file), {}};
  std::map<uintptr_t, FunctionSymbol> names;
  if (elf.size() < sizeof(Elf64_Ehdr)) return names;
  const auto* header = reinterpret_cast<const Elf64_Ehdr*>(elf.data());
  const auto* sections = reinterpret_cast<const Elf64_Shdr*>(elf.data() + header->e_shoff);
  for (int i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    const auto* symbols = reinterpret_cast<const Elf64_Sym*>(elf.data() + sections[i].sh_offset);
    const char* strings = elf.data() + sections[sections[i].sh_link].sh_offset;
    std::string source;  // precedes the symbols local to it
    for (size_t s = 0; s < sections[i].sh_size / sizeof(Elf64_Sym); ++s) {
      const bool local = ELF64_ST_BIND(symbols[s].st_info) == STB_LOCAL;
      if (ELF64_ST_TYPE(symbols[s].st_info) == STT_FILE) source = strings + symbols[s].st_name;
      if (ELF64_ST_TYPE(symbols[s].st_info) == STT_FUNC)
        names[symbols[s].st_value] = {strings + symbols[s].st_name, local ? source : ""};
    }
  }
  return names;
}

std::string demangled(const std::string& name) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> text(
      abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status), std::free);
  std::string result = status == 0 ? text.get() : name;
  if (const size_t arguments = result.find('('); arguments != std::string::npos) {
    // "(anonymous namespace)::kernel<...>(int, ...)" to "kernel<...>"
    const std::string anonymous = "(anonymous namespace)::";
    for (size_t at; (at = result.find(anonymous)) != std::string::npos;)
      result.erase(at, anonymous.size());
    result = result.substr(0, result.find('('));
  }
  return result;
}

}  // namespace

FunctionSymbol function_symbol(const void* function) {
  static const std::map<uintptr_t, FunctionSymbol> names = read_symbols();
  const auto found = names.find(reinterpret_cast<uintptr_t>(function) - load_address());
  return found == names.end() ? FunctionSymbol{fmt::format("{}", function), ""} : found->second;
}

std::string function_name(const void* function) {
  return demangled(function_symbol(function).name);
}

}  // namespace lathe::cuda_on_cpu
