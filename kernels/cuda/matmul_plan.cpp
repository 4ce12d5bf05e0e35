#include "kernels/cuda/matmul_plan.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <sstream>

namespace lathe::cuda {

namespace {

uint64_t checksum(const std::string& shape, const std::string& plan) {
  const std::string both = shape + "\t" + plan;
  return XXH3_64bits(both.data(), both.size());
}

}  // namespace

size_t alignment_of(const void* pointer, size_t most) {
  return size_t{1} << std::countr_zero(reinterpret_cast<uintptr_t>(pointer) | most);
}

MatmulKey::MatmulKey(const MatmulArgs& args, const MatmulOptions& options)
    : m(args.m),
      n(args.n),
      k(args.k),
      ldc(args.ldc),
      lda(args.lda),
      ldb(args.ldb),
      transpose_a(args.transpose_a),
      transpose_b(args.transpose_b),
      accumulate(args.accumulate),
      input(args.input),
      output(args.output),
      bias(args.bias && alignment_of(args.bias, kLeastAlignment) == kLeastAlignment),
      align_c(alignment_of(args.c, options.alignment)),
      align_a(alignment_of(args.a, options.alignment)),
      align_b(alignment_of(args.b, options.alignment)) {}

size_t MatmulKeyHash::operator()(const MatmulKey& key) const {
  uint64_t hash = 0xcbf29ce484222325;
  const auto bits = [](size_t value) { return static_cast<int64_t>(value); };
  for (int64_t word :
       {key.m, key.n, key.k, key.ldc, key.lda, key.ldb,
        int64_t{key.transpose_a} | int64_t{key.transpose_b} << 1 | int64_t{key.bias} << 2 |
            int64_t{key.accumulate} << 3 | static_cast<int64_t>(key.input) << 8 |
            static_cast<int64_t>(key.output) << 12 | bits(key.align_c) << 16 |
            bits(key.align_a) << 28 | bits(key.align_b) << 40}) {
    hash = (hash ^ static_cast<uint64_t>(word)) * 0x9e3779b97f4a7c15;
    hash ^= hash >> 29;
  }
  return hash;
}

std::string to_string(const MatmulKey& key, bool tf32) {
  return fmt::format("{}{} to {} m {} n {} k {} {}{} ld {} {} {} align {} {} {}{}{}",
                     name_of(key.input), tf32 && key.input == DType::fp32 ? " (tf32)" : "",
                     name_of(key.output), key.m, key.n, key.k, key.transpose_a ? "t" : "n",
                     key.transpose_b ? "t" : "n", key.ldc, key.lda, key.ldb, key.align_c,
                     key.align_a, key.align_b, key.bias ? " bias" : "",
                     key.accumulate ? " added" : "");
}

std::string plan_text(const std::string& shape, const MatmulChoice& choice, size_t version) {
  std::string text = fmt::format("{} {}", version, choice.fused ? "fused" : "separate");
  for (uint64_t word : choice.algorithm.data) text += fmt::format(" {:016x}", word);
  return fmt::format("{} {:016x}", text, checksum(shape, text));
}

std::optional<MatmulChoice> read_plan(const std::string& shape, const std::string& text,
                                      size_t version) {
  MatmulChoice choice;
  std::istringstream stream(text);
  size_t made_by = 0;
  std::string fused;
  if (!(stream >> made_by >> fused) || made_by != version) return {};
  choice.fused = fused == "fused";
  for (uint64_t& word : choice.algorithm.data)
    if (!(stream >> std::hex >> word)) return {};
  // Accept only text that is written back exactly as it was read.
  if (text != plan_text(shape, choice, version)) return {};
  return choice;
}

}  // namespace lathe::cuda
