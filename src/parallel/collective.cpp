#include "src/parallel/collective.h"

namespace lathe {

std::string_view name_of(CollectiveKind kind) {
  constexpr std::string_view kNames[] = {"all_reduce", "reduce", "reduce_scatter",
                                         "all_gather", "gather", "scatter",
                                         "broadcast",  "send",   "receive"};
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

void CollectiveCalls::check_root(int root) const {
  LATHE_CHECK(root >= 0 && root < size_, "there is no rank {} among {}", root, size_);
}

void CollectiveCalls::check_same(const Tensor& a, const Tensor& b, int64_t times) const {
  LATHE_CHECK(a.dtype == b.dtype, "{} and {}", name_of(a.dtype), name_of(b.dtype));
  LATHE_CHECK(a.elements() == b.elements() * times, "{} elements are not {} x {}", a.elements(),
              times, b.elements());
}

Collective CollectiveCalls::all_reduce(const Tensor& out, const Tensor& in, Reduction op,
                                       const char* what) const {
  check_same(out, in, 1);
  return {CollectiveKind::all_reduce, in.dtype, op, -1, in.elements(), in.data, out.data, what};
}

Collective CollectiveCalls::reduce(const Tensor& out, const Tensor& in, Reduction op, int root,
                                   const char* what) const {
  check_root(root);
  if (rank_ == root) check_same(out, in, 1);
  void* const to = rank_ == root ? out.data : nullptr;
  return {CollectiveKind::reduce, in.dtype, op, root, in.elements(), in.data, to, what};
}

Collective CollectiveCalls::reduce_scatter(const Tensor& mine, const Tensor& all, Reduction op,
                                           const char* what) const {
  check_same(all, mine, size_);
  return {CollectiveKind::reduce_scatter,
          mine.dtype,
          op,
          -1,
          mine.elements(),
          all.data,
          mine.data,
          what};
}

Collective CollectiveCalls::all_gather(const Tensor& all, const Tensor& mine,
                                       const char* what) const {
  check_same(all, mine, size_);
  return {
      CollectiveKind::all_gather, mine.dtype, {}, -1, mine.elements(), mine.data, all.data, what};
}

Collective CollectiveCalls::gather(const Tensor& all, const Tensor& mine, int root,
                                   const char* what) const {
  check_root(root);
  if (rank_ == root) check_same(all, mine, size_);
  void* const to = rank_ == root ? all.data : nullptr;
  return {CollectiveKind::gather, mine.dtype, {}, root, mine.elements(), mine.data, to, what};
}

Collective CollectiveCalls::scatter(const Tensor& mine, const Tensor& all, int root,
                                    const char* what) const {
  check_root(root);
  if (rank_ == root) check_same(all, mine, size_);
  const void* const from = rank_ == root ? all.data : nullptr;
  return {CollectiveKind::scatter, mine.dtype, {}, root, mine.elements(), from, mine.data, what};
}

Collective CollectiveCalls::broadcast(const Tensor& tensor, int root, const char* what) const {
  check_root(root);
  return {CollectiveKind::broadcast, tensor.dtype, {},          root,
          tensor.elements(),         tensor.data,  tensor.data, what};
}

Collective CollectiveCalls::send(const Tensor& tensor, int to, const char* what) const {
  check_root(to);
  LATHE_CHECK(to != rank_, "rank {} sends to itself", to);
  return {CollectiveKind::send, tensor.dtype, {},      to,
          tensor.elements(),    tensor.data,  nullptr, what};
}

Collective CollectiveCalls::receive(const Tensor& tensor, int from, const char* what) const {
  check_root(from);
  LATHE_CHECK(from != rank_, "rank {} receives from itself", from);
  return {CollectiveKind::receive, tensor.dtype, {},          from,
          tensor.elements(),       nullptr,      tensor.data, what};
}

}  // namespace lathe
