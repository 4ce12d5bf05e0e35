#include "tools/comm_measure.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "kernels/device/with_type.h"

namespace lathe {

namespace {

// Rank r's value at i: a small integer, so that sums of up to 256 values are exact in every type
// and order.
inline int value_of(int rank, int64_t i, int ranks) {
  const unsigned mask = ranks <= 32 ? 7 : 1;
  const auto x = static_cast<unsigned>(i);
  return static_cast<int>((x * 5 + (x >> 7) + static_cast<unsigned>(rank) * 3) & mask);
}

bool has_blocks(CollectiveKind kind) {
  return kind == CollectiveKind::reduce_scatter || kind == CollectiveKind::all_gather ||
         kind == CollectiveKind::gather || kind == CollectiveKind::scatter;
}

// The least that each link must carry, as a fraction of the whole tensor.
double bus_factor(CollectiveKind kind, int ranks) {
  const double n = ranks;
  if (ranks == 1) return 1;
  if (kind == CollectiveKind::all_reduce) return 2 * (n - 1) / n;
  return has_blocks(kind) ? (n - 1) / n : 1;
}

}  // namespace

CommMeasure::CommMeasure(Device& device, Communicator& comm, Communicator& all, size_t max_bytes)
    : device_(device),
      comm_(comm),
      all_(all),
      bytes_(std::max<size_t>(max_bytes, 4096)),
      send_(device.allocate(bytes_)),
      receive_(device.allocate(bytes_)) {}

CommMeasure::~CommMeasure() {
  device_.release(receive_, bytes_);
  device_.release(send_, bytes_);
}

size_t CommMeasure::bytes(const CommCase& c) const {
  const auto parts = static_cast<size_t>(has_blocks(c.kind) ? comm_.size() : 1);
  return static_cast<size_t>(c.count) * parts * size_of(c.dtype);
}

int64_t CommMeasure::largest_count(CollectiveKind kind, DType dtype, size_t max_bytes) const {
  return static_cast<int64_t>(max_bytes / bytes({.kind = kind, .dtype = dtype, .count = 1}));
}

// In place, the smaller tensor is this rank's part of the larger one.
CommMeasure::Tensors CommMeasure::place(const CommCase& c, bool in_place) const {
  const int64_t n = comm_.size();
  const Tensor whole_in{send_, c.dtype, {c.count * n}}, whole_out{receive_, c.dtype, {c.count * n}};
  const Tensor in{send_, c.dtype, {c.count}}, out{receive_, c.dtype, {c.count}};
  const int64_t first = comm_.rank() * c.count;
  switch (c.kind) {
    case CollectiveKind::reduce_scatter:
    case CollectiveKind::scatter:
      return {whole_in, in_place ? whole_in.rows(first, c.count) : out};
    case CollectiveKind::all_gather:
    case CollectiveKind::gather:
      return {in_place ? whole_out.rows(first, c.count) : in, whole_out};
    case CollectiveKind::broadcast:
      return {in, in};
    default:
      return {in, in_place ? in : out};
  }
}

void CommMeasure::fill(const CommCase& c, const Tensors& tensors) {
  host_.resize(tensors.in.bytes());
  with_type(c.dtype, [&](auto zero) {
    using T = decltype(zero);
    T* const x = reinterpret_cast<T*>(host_.data());
    for (int64_t i = 0; i < tensors.in.elements(); ++i)
      x[i] = static_cast<T>(static_cast<float>(value_of(comm_.rank(), i, comm_.size())));
  });
  if (tensors.in.data != tensors.out.data) device_.zero(tensors.out);
  if (!host_.empty()) device_.upload(tensors.in, host_.data());
}

void CommMeasure::call(const CommCase& c, const Tensors& t) {
  const int next = (comm_.rank() + 1) % comm_.size();
  const int before = (comm_.rank() + comm_.size() - 1) % comm_.size();
  const bool sends_first = comm_.rank() % 2 == 0;
  constexpr const char* kWhat = "commtest";
  switch (c.kind) {
    case CollectiveKind::all_reduce:
      comm_.all_reduce(t.out, t.in, c.op, kWhat);
      break;
    case CollectiveKind::reduce:
      comm_.reduce(t.out, t.in, c.op, c.root, kWhat);
      break;
    case CollectiveKind::reduce_scatter:
      comm_.reduce_scatter(t.out, t.in, c.op, kWhat);
      break;
    case CollectiveKind::all_gather:
      comm_.all_gather(t.out, t.in, kWhat);
      break;
    case CollectiveKind::gather:
      comm_.gather(t.out, t.in, c.root, kWhat);
      break;
    case CollectiveKind::scatter:
      comm_.scatter(t.out, t.in, c.root, kWhat);
      break;
    case CollectiveKind::broadcast:
      comm_.broadcast(t.out, c.root, kWhat);
      break;
    case CollectiveKind::send:  // a ring: each sends to the next and receives from the previous
    case CollectiveKind::receive:
      if (sends_first) comm_.send(t.in, next, kWhat);
      comm_.receive(t.out, before, kWhat);
      if (!sends_first) comm_.send(t.in, next, kWhat);
      break;
    case CollectiveKind::send_receive:
      comm_.send_receive(t.in, next, t.out, before, kWhat);
      break;
    case CollectiveKind::copy:
      comm_.copy(t.out, t.in, kWhat);
      break;
  }
}

int64_t CommMeasure::count_wrong(const CommCase& c, const Tensor& out) {
  const int rank = comm_.rank(), ranks = comm_.size();
  const bool root_only = c.kind == CollectiveKind::reduce || c.kind == CollectiveKind::gather;
  if ((root_only && rank != c.root) || out.elements() == 0) return 0;
  host_.resize(out.bytes());
  device_.download(host_.data(), out);
  const auto count = [&](const auto& expected) {
    return with_type(c.dtype, [&](auto zero) {
      using T = decltype(zero);
      const T* const y = reinterpret_cast<const T*>(host_.data());
      int64_t wrong = 0;
      for (int64_t i = 0; i < out.elements(); ++i)
        wrong += y[i] != static_cast<T>(static_cast<float>(expected(i)));
      return wrong;
    });
  };
  const int64_t first = rank * c.count;
  const auto reduced = [&](int64_t from) {
    return count([&c, ranks, from](int64_t i) {
      int result = value_of(0, from + i, ranks);
      for (int r = 1; r < ranks; ++r) {
        const int x = value_of(r, from + i, ranks);
        result = c.op == Reduction::sum   ? result + x
                 : c.op == Reduction::max ? std::max(result, x)
                                          : std::min(result, x);
      }
      return result;
    });
  };
  const auto copied = [&](int source, int64_t from) {
    return count([=](int64_t i) { return value_of(source, from + i, ranks); });
  };
  switch (c.kind) {
    case CollectiveKind::all_reduce:
    case CollectiveKind::reduce:
      return reduced(0);
    case CollectiveKind::reduce_scatter:
      return reduced(first);
    case CollectiveKind::all_gather:
    case CollectiveKind::gather:
      return count([&c, ranks](int64_t i) {
        return value_of(static_cast<int>(i / c.count), i % c.count, ranks);
      });
    case CollectiveKind::scatter:
      return copied(c.root, first);
    case CollectiveKind::broadcast:
      return copied(c.root, 0);
    case CollectiveKind::send:
    case CollectiveKind::receive:
    case CollectiveKind::send_receive:
      return copied((rank + ranks - 1) % ranks, 0);
    case CollectiveKind::copy:
      return copied(rank, 0);
  }
  return 0;
}

double CommMeasure::slowest(double mine) {
  std::vector<double> all(static_cast<size_t>(all_.size()));
  all_.exchange(all.data(), &mine, sizeof(mine));
  return *std::max_element(all.begin(), all.end());
}

CommResult CommMeasure::run(const CommCase& c, bool in_place, int iterations) {
  const Tensors tensors = place(c, in_place);
  fill(c, tensors);
  comm_.after_device();
  call(c, tensors);
  comm_.device_after(comm_.last());
  const int64_t mine = count_wrong(c, tensors.out);
  CommResult result;
  std::vector<int64_t> all(static_cast<size_t>(all_.size()));
  all_.exchange(all.data(), &mine, sizeof(mine));
  for (const int64_t wrong : all) result.wrong += wrong;
  if (iterations == 0) return result;

  using Clock = std::chrono::steady_clock;
  all_.barrier();
  const Clock::time_point start = Clock::now();
  for (int i = 0; i < iterations; ++i) call(c, tensors);
  comm_.wait(comm_.last());
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  result.microseconds = slowest(seconds) * 1e6 / iterations;
  comm_.device_after(comm_.last());
  result.algorithm_gb_per_s = static_cast<double>(bytes(c)) / result.microseconds * 1e-3;
  result.bus_gb_per_s = result.algorithm_gb_per_s * bus_factor(c.kind, comm_.size());
  return result;
}

}  // namespace lathe
