// Shared by the tests of operations: the device under test, deterministic values, tensors between
// canaries, workspaces that are poisoned before and checked after, and finite differences.
#pragma once

#include <gtest/gtest.h>
#include <sanitizer/asan_interface.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/ops.h"
#include "kernels/philox.h"
#include "tests/tolerance.h"

namespace lathe::testing {

// The device whose float and bf16 operations a binary tests, linked from device_cpu.cpp or
// device_cuda.cpp. One source thus compares the CPU with double, and a GPU with the CPU's double.
Device& device_under_test();
// Host memory with a twin in the memory of the device under test, which may be the same memory; not
// initialised. run() copies an operation's operands to the twin and back.
void* allocate_visible(size_t bytes);
void release_visible(void* memory) noexcept;
// twin_of returns the twin of an address in such memory, and any other address unchanged. The
// copies are between the blocks that hold these addresses and their twins.
void* twin_of(void* address);
void copy_to_device(const std::vector<void*>& addresses);
void copy_to_host(const std::vector<void*>& addresses);
// Under AddressSanitizer, later copies of a block copy only these bytes: the rest is poisoned and
// must not be read or written.
void copy_only(void* first, size_t bytes);
// Whether operations check tokens, targets and segments before they run, and throw if one is out of
// bounds. A GPU would have to wait for such a check; it sets that row to NaN instead.
bool looks_at_values();

inline Device& cpu() {
  static const std::unique_ptr<Device> device = make_cpu_device();
  return *device;
}
// double, the reference, is always the CPU's.
template <typename T>
Device& device_of() {
  return std::is_same_v<T, double> ? cpu() : device_under_test();
}
template <typename T>
const Ops& ops() {
  return device_of<T>().ops(dtype_of<T>);
}

// Value `index` of a stream of numbers in [-1, 1).
inline double random_value(uint64_t stream, uint64_t index) {
  const auto words = philox4x32_10({static_cast<uint32_t>(index), 0, 0, 77}, PhiloxKey(stream));
  return static_cast<double>(words[0]) / 2147483648.0 - 1.0;
}
template <typename T>
std::vector<T> random_values(int64_t count, uint64_t stream, double scale = 1) {
  std::vector<T> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<T>(static_cast<Accumulator<T>>(scale * random_value(stream, i)));
  return values;
}
inline std::vector<int32_t> random_tokens(int64_t count, uint64_t stream, int64_t vocabulary) {
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (size_t i = 0; i < tokens.size(); ++i)
    tokens[i] =
        static_cast<int32_t>((random_value(stream, i) + 1) / 2 * static_cast<double>(vocabulary));
  return tokens;
}
template <typename To, typename From>
std::vector<To> converted(const std::vector<From>& values) {
  std::vector<To> result(values.size());
  for (size_t i = 0; i < values.size(); ++i)
    result[i] = static_cast<To>(static_cast<Accumulator<To>>(values[i]));
  return result;
}

struct ReleaseVisible {
  void operator()(void* memory) const { release_visible(memory); }
};

// An operation's arguments as the device sees them: pointers into visible memory become pointers
// into its twin, to which the values are copied. The destructor waits for the device and copies the
// values back.
template <typename Args>
class OnDevice {
 public:
  OnDevice(const Args& args, const Tensor& workspace) : there{args, workspace} {
    static_assert(std::is_trivially_copyable_v<Both> && sizeof(Both) % sizeof(void*) == 0);
    __builtin_clear_padding(&there);  // stale bytes there must not look like a pointer
    void* words[sizeof(Both) / sizeof(void*)];
    std::memcpy(words, &there, sizeof(there));
    for (void*& word : words) {
      void* const twin = twin_of(word);
      if (twin == word) continue;
      here_.push_back(word);
      word = twin;
    }
    std::memcpy(static_cast<void*>(&there), words, sizeof(there));
    copy_to_device(here_);
  }
  ~OnDevice() {
    device_under_test().synchronize();
    copy_to_host(here_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

  struct Both {
    Args args;
    Tensor workspace;
  } there;

 private:
  std::vector<void*> here_;
};

// A value whose address operations receive.
template <typename T>
class Visible {
 public:
  explicit Visible(const T& value = T()) : memory_(new (allocate_visible(sizeof(T))) T(value)) {}
  T* get() const { return memory_.get(); }
  T* operator->() const { return memory_.get(); }
  T& operator*() const { return *memory_; }

 private:
  static_assert(std::is_trivially_copyable_v<T>);
  std::unique_ptr<T, ReleaseVisible> memory_;
};

// A tensor with memory of its own between two canaries. The destructor checks them; under
// AddressSanitizer they must not even be read.
template <typename T>
class Buffer {
 public:
  // Filled with NaN (or -1), so that a read of an unwritten element shows.
  explicit Buffer(Shape shape) : Buffer(shape, garbage(shape.elements())) {}
  Buffer(Shape shape, const std::vector<T>& values) : count_(values.size()) {
    EXPECT_EQ(shape.elements(), static_cast<int64_t>(count_));
    const size_t bytes = 2 * kCanary + (count_ * sizeof(T) + 63) / 64 * 64 + kRoom;
    memory_.reset(static_cast<unsigned char*>(allocate_visible(bytes)));
    std::memset(memory_.get(), kPattern, bytes);
    tensor = Tensor{memory_.get() + kCanary, dtype_of<T>, shape};
    if (count_) std::memcpy(tensor.data, values.data(), count_ * sizeof(T));
    guard();
  }
  Buffer(Buffer&&) = default;
  ~Buffer() {
    if (!memory_) return;
    unguard();
    const unsigned char* before = static_cast<unsigned char*>(tensor.data) - kCanary;
    const unsigned char* after = before + kCanary + count_ * sizeof(T);
    for (size_t i = 0; i < kCanary; ++i) {
      EXPECT_EQ(before[i], kPattern) << "written before the tensor";
      EXPECT_EQ(after[i], kPattern) << "written after the tensor";
      if (before[i] != kPattern || after[i] != kPattern) break;
    }
  }

  // Moves the values so that only elements are aligned, not vectors of them.
  void misalign() {
    static_assert(sizeof(T) <= kRoom);
    unguard();
    auto* const from = static_cast<unsigned char*>(tensor.data);
    std::memmove(from + sizeof(T), from, count_ * sizeof(T));
    std::memset(from, kPattern, sizeof(T));
    tensor.data = from + sizeof(T);
    guard();
  }

  T* data() const { return static_cast<T*>(tensor.data); }
  std::vector<T> values() const { return std::vector<T>(data(), data() + count_); }
  Tensor tensor;

 private:
  static std::vector<T> garbage(int64_t count) {
    T value;
    std::memset(&value, 0xff, sizeof(T));  // NaN in every floating type
    return std::vector<T>(static_cast<size_t>(count), value);
  }
  // Guards the device's memory, which is the host's if the device has none.
  void guard() const {
    copy_only(tensor.data, count_ * sizeof(T));
    const auto* data = static_cast<const unsigned char*>(twin_of(tensor.data));
    ASAN_POISON_MEMORY_REGION(data - kCanary, kCanary);
    ASAN_POISON_MEMORY_REGION(data + count_ * sizeof(T), kCanary);
  }
  void unguard() const {
    const auto* data = static_cast<const unsigned char*>(twin_of(tensor.data));
    ASAN_UNPOISON_MEMORY_REGION(data - kCanary, 2 * kCanary + count_ * sizeof(T));
  }
  static constexpr size_t kCanary = 256, kRoom = 64;  // room to move in
  static constexpr unsigned char kPattern = 0xa5;
  size_t count_;
  std::unique_ptr<unsigned char[], ReleaseVisible> memory_;
};

template <typename... Buffers>
void misalign(Buffers&... buffers) {
  (buffers.misalign(), ...);
}

// A poisoned workspace of exactly the bytes that an operation requests.
template <typename Args>
Buffer<uint8_t> workspace_for(const Ops& table, const Args& args) {
  return Buffer<uint8_t>(Shape{static_cast<int64_t>(table.workspace_bytes(args))});
}

// Runs an operation of the CPU's table, or of the table of the device under test, and waits for it.
template <typename Args>
void run(const Ops& table, const Args& args, const Tensor& workspace) {
  if (&table == &cpu().ops(table.dtype())) return table.run(args, workspace);
  const OnDevice<Args> on(args, workspace);
  table.run(on.there.args, on.there.workspace);
}
template <typename Args>
void run(const Ops& table, const Args& args) {
  const Buffer<uint8_t> workspace = workspace_for(table, args);
  run(table, args, workspace.tensor);
}

// EXPECTs that `gradient` is the derivative of `loss` by `x` (memory that loss reads), by central
// differences at up to `most` elements spread over it.
inline void expect_gradient(const Buffer<double>& x, const std::vector<double>& gradient,
                            const std::function<double()>& loss, const std::string& what,
                            size_t most = 12) {
  ASSERT_EQ(static_cast<size_t>(x.tensor.elements()), gradient.size()) << what;
  double magnitude = 1e-3;
  for (double g : gradient) magnitude = std::max(magnitude, std::fabs(g));
  const size_t stride = std::max<size_t>(1, gradient.size() / most);
  constexpr double kStep = 1e-5;  // error h^2 f''' / 6 + eps f / h: some 1e-10 either way
  for (size_t i = 0; i < gradient.size(); i += stride) {
    const double saved = x.data()[i];
    x.data()[i] = saved + kStep;
    const double above = loss();
    x.data()[i] = saved - kStep;
    const double below = loss();
    x.data()[i] = saved;
    const double difference = (above - below) / (2 * kStep);
    EXPECT_NEAR(gradient[i], difference, 2e-7 * magnitude + 1e-8) << what << " element " << i;
  }
}

// The sum of a_i b_i.
inline double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

template <typename T>
void expect_same_bits(const std::vector<T>& a, const std::vector<T>& b, const std::string& what) {
  ASSERT_EQ(a.size(), b.size()) << what;
  EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(T)), 0) << what;
}

// EXPECTs, by the tolerance rule, that `sums` are the column sums of what an operation has stored.
template <typename T>
void expect_column_sums(const std::vector<Accumulator<T>>& sums, const std::vector<T>& stored,
                        const std::string& what) {
  using A = Accumulator<T>;
  std::vector<A> plain(sums.size());
  std::vector<long double> exact(sums.size());
  for (size_t i = 0; i < stored.size(); ++i) {
    plain[i % sums.size()] += static_cast<A>(stored[i]);
    exact[i % sums.size()] += static_cast<A>(stored[i]);
  }
  expect_close<A>(sums, std::vector<double>(exact.begin(), exact.end()), plain, what);
}

// Whether the definition of Dropout keeps an element.
inline bool is_kept(const Dropout& dropout, uint64_t element) {
  const uint64_t group = element / 4;
  const auto words =
      philox4x32_10({static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32),
                     dropout.layer * 8 + static_cast<uint32_t>(dropout.site), dropout.inputs->step},
                    PhiloxKey(dropout.inputs->seed));
  return static_cast<double>(words[element % 4]) >= static_cast<double>(dropout.p) * 4294967296.0;
}

}  // namespace lathe::testing
