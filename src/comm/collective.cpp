#include "src/comm/collective.h"

namespace lathe {

std::string_view name_of(CollectiveKind kind) {
  constexpr std::string_view kNames[] = {"all_reduce", "reduce",  "reduce_scatter", "all_gather",
                                         "gather",     "scatter", "broadcast",      "send",
                                         "receive",    "copy"};
  const auto index = static_cast<size_t>(kind);
  return index < std::size(kNames) ? kNames[index] : "?";
}

std::string describe(CollectiveKind kind, DType dtype, Reduction op, int root, int64_t count,
                     std::string_view what) {
  constexpr std::string_view kOps[] = {" (sum)", " (max)", " (min)"};
  std::string text = fmt::format("{} of {} {}", name_of(kind), count, name_of(dtype));
  if (kind <= CollectiveKind::reduce_scatter) text += kOps[static_cast<size_t>(op) % 3];
  if (kind == CollectiveKind::send) {
    text += fmt::format(" to {}", root);
  } else if (kind == CollectiveKind::receive) {
    text += fmt::format(" from {}", root);
  } else if (root >= 0) {
    text += fmt::format(" with root {}", root);
  }
  return what.empty() ? text : text + fmt::format(" '{}'", what);
}

void CollectiveCommunicator::check_root(int root) const {
  LATHE_CHECK(root >= 0 && root < size_, "there is no rank {} among {}", root, size_);
}

// a has `times` as many elements as b.
void CollectiveCommunicator::check_same(const Tensor& a, const Tensor& b, int64_t times) const {
  LATHE_CHECK(a.dtype == b.dtype, "{} and {}", name_of(a.dtype), name_of(b.dtype));
  LATHE_CHECK(a.elements() == b.elements() * times, "{} elements are not {} x {}", a.elements(),
              times, b.elements());
}

Ticket CollectiveCommunicator::all_reduce(const Tensor& out, const Tensor& in, Reduction op,
                                          const char* what) {
  check_same(out, in, 1);
  return call({.kind = CollectiveKind::all_reduce,
               .dtype = in.dtype,
               .op = op,
               .count = in.elements(),
               .in = in.data,
               .out = out.data,
               .what = what});
}

Ticket CollectiveCommunicator::reduce(const Tensor& out, const Tensor& in, Reduction op, int root,
                                      const char* what) {
  check_root(root);
  if (rank_ == root) check_same(out, in, 1);
  return call({.kind = CollectiveKind::reduce,
               .dtype = in.dtype,
               .op = op,
               .root = root,
               .count = in.elements(),
               .in = in.data,
               .out = rank_ == root ? out.data : nullptr,
               .what = what});
}

Ticket CollectiveCommunicator::reduce_scatter(const Tensor& mine, const Tensor& all, Reduction op,
                                              const char* what) {
  check_same(all, mine, size_);
  return call({.kind = CollectiveKind::reduce_scatter,
               .dtype = mine.dtype,
               .op = op,
               .count = mine.elements(),
               .in = all.data,
               .out = mine.data,
               .what = what});
}

Ticket CollectiveCommunicator::all_gather(const Tensor& all, const Tensor& mine, const char* what) {
  check_same(all, mine, size_);
  return call({.kind = CollectiveKind::all_gather,
               .dtype = mine.dtype,
               .count = mine.elements(),
               .in = mine.data,
               .out = all.data,
               .what = what});
}

Ticket CollectiveCommunicator::gather(const Tensor& all, const Tensor& mine, int root,
                                      const char* what) {
  check_root(root);
  if (rank_ == root) check_same(all, mine, size_);
  return call({.kind = CollectiveKind::gather,
               .dtype = mine.dtype,
               .root = root,
               .count = mine.elements(),
               .in = mine.data,
               .out = rank_ == root ? all.data : nullptr,
               .what = what});
}

Ticket CollectiveCommunicator::scatter(const Tensor& mine, const Tensor& all, int root,
                                       const char* what) {
  check_root(root);
  if (rank_ == root) check_same(all, mine, size_);
  return call({.kind = CollectiveKind::scatter,
               .dtype = mine.dtype,
               .root = root,
               .count = mine.elements(),
               .in = rank_ == root ? all.data : nullptr,
               .out = mine.data,
               .what = what});
}

Ticket CollectiveCommunicator::broadcast(const Tensor& tensor, int root, const char* what) {
  check_root(root);
  return call({.kind = CollectiveKind::broadcast,
               .dtype = tensor.dtype,
               .root = root,
               .count = tensor.elements(),
               .in = tensor.data,
               .out = tensor.data,
               .what = what});
}

Ticket CollectiveCommunicator::send(const Tensor& tensor, int to, const char* what) {
  check_root(to);
  LATHE_CHECK(to != rank_, "rank {} sends to itself", to);
  return call({.kind = CollectiveKind::send,
               .dtype = tensor.dtype,
               .root = to,
               .count = tensor.elements(),
               .in = tensor.data,
               .what = what});
}

Ticket CollectiveCommunicator::receive(const Tensor& tensor, int from, const char* what) {
  check_root(from);
  LATHE_CHECK(from != rank_, "rank {} receives from itself", from);
  return call({.kind = CollectiveKind::receive,
               .dtype = tensor.dtype,
               .root = from,
               .count = tensor.elements(),
               .out = tensor.data,
               .what = what});
}

Ticket CollectiveCommunicator::copy(const Tensor& to, const Tensor& from, const char* what) {
  check_same(to, from, 1);
  return call({.kind = CollectiveKind::copy,
               .dtype = from.dtype,
               .count = from.elements(),
               .in = from.data,
               .out = to.data,
               .what = what});
}

}  // namespace lathe
