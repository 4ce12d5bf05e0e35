#include "src/comm/collective.h"

#include <algorithm>

#include "src/comm/make_communicator.h"

namespace lathe {

std::string_view name_of(CollectiveKind kind) {
  constexpr std::string_view kNames[] = {
      "all_reduce", "reduce", "reduce_scatter", "all_gather",   "gather", "scatter",
      "broadcast",  "send",   "receive",        "send_receive", "copy"};
  const auto index = static_cast<size_t>(kind);
  return index < std::size(kNames) ? kNames[index] : "?";
}

std::string describe(CollectiveKind kind, DType dtype, Reduction op, int root, int64_t count,
                     std::string_view what) {
  constexpr std::string_view kOps[] = {" (sum)", " (max)", " (min)"};
  std::string text = fmt::format("{} of {} {}", name_of(kind), count, name_of(dtype));
  if (kind <= CollectiveKind::reduce_scatter) text += kOps[static_cast<size_t>(op) % 3];
  if (kind == CollectiveKind::send || kind == CollectiveKind::send_receive) {
    text += fmt::format(" to {}", root);
  } else if (kind == CollectiveKind::receive) {
    text += fmt::format(" from {}", root);
  } else if (root >= 0) {
    text += fmt::format(" with root {}", root);
  }
  return what.empty() ? text : text + fmt::format(" '{}'", what);
}

std::optional<Collective> Collective::sent_part() const {
  if (kind == CollectiveKind::receive) return {};
  Collective part = *this;
  part.kind = CollectiveKind::send;
  part.out = nullptr;
  return part;
}

std::optional<Collective> Collective::received_part() const {
  if (kind == CollectiveKind::send) return {};
  if (kind == CollectiveKind::receive) return *this;
  return Collective{.kind = CollectiveKind::receive,
                    .dtype = received_dtype,
                    .root = from,
                    .count = received_count,
                    .out = out,
                    .what = what};
}

Collective joined(const std::optional<Collective>& sent,
                  const std::optional<Collective>& received) {
  if (!sent || !received) return sent ? *sent : received.value();
  Collective both = *sent;
  both.kind = CollectiveKind::send_receive;
  both.out = received->out;
  both.from = received->root;
  both.received_count = received->count;
  both.received_dtype = received->dtype;
  return both;
}

std::string describe(const Collective& c) {
  if (c.kind != CollectiveKind::send_receive)
    return describe(c.kind, c.dtype, c.op, c.root, c.count, c.what);
  return fmt::format("{}, and {} {} from {}",
                     describe(c.kind, c.dtype, c.op, c.root, c.count, c.what), c.received_count,
                     name_of(c.received_dtype), c.from);
}

Collective translated(Collective c, const RankGroup& group) {
  c.root = group.of_job(c.root);
  c.from = group.of_job(c.from);
  return c;
}

void CollectiveCommunicator::check_root(int root) const {
  LATHE_CHECK(root >= 0 && root < size(), "there is no rank {} among {}", root, size());
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
  if (rank() == root) check_same(out, in, 1);
  return call({.kind = CollectiveKind::reduce,
               .dtype = in.dtype,
               .op = op,
               .root = root,
               .count = in.elements(),
               .in = in.data,
               .out = rank() == root ? out.data : nullptr,
               .what = what});
}

Ticket CollectiveCommunicator::reduce_scatter(const Tensor& mine, const Tensor& all, Reduction op,
                                              const char* what) {
  check_same(all, mine, size());
  return call({.kind = CollectiveKind::reduce_scatter,
               .dtype = mine.dtype,
               .op = op,
               .count = mine.elements(),
               .in = all.data,
               .out = mine.data,
               .what = what});
}

Ticket CollectiveCommunicator::all_gather(const Tensor& all, const Tensor& mine, const char* what) {
  check_same(all, mine, size());
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
  if (rank() == root) check_same(all, mine, size());
  return call({.kind = CollectiveKind::gather,
               .dtype = mine.dtype,
               .root = root,
               .count = mine.elements(),
               .in = mine.data,
               .out = rank() == root ? all.data : nullptr,
               .what = what});
}

Ticket CollectiveCommunicator::scatter(const Tensor& mine, const Tensor& all, int root,
                                       const char* what) {
  check_root(root);
  if (rank() == root) check_same(all, mine, size());
  return call({.kind = CollectiveKind::scatter,
               .dtype = mine.dtype,
               .root = root,
               .count = mine.elements(),
               .in = rank() == root ? all.data : nullptr,
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
  LATHE_CHECK(to != rank(), "rank {} sends to itself", to);
  return call({.kind = CollectiveKind::send,
               .dtype = tensor.dtype,
               .root = to,
               .count = tensor.elements(),
               .in = tensor.data,
               .what = what});
}

Ticket CollectiveCommunicator::receive(const Tensor& tensor, int from, const char* what) {
  check_root(from);
  LATHE_CHECK(from != rank(), "rank {} receives from itself", from);
  return call({.kind = CollectiveKind::receive,
               .dtype = tensor.dtype,
               .root = from,
               .count = tensor.elements(),
               .out = tensor.data,
               .what = what});
}

Ticket CollectiveCommunicator::send_receive(const Tensor& sent, int to, const Tensor& received,
                                            int from, const char* what) {
  check_root(to);
  check_root(from);
  LATHE_CHECK(to != rank() && from != rank(), "rank {} communicates with itself", rank());
  return call({.kind = CollectiveKind::send_receive,
               .dtype = sent.dtype,
               .root = to,
               .count = sent.elements(),
               .in = sent.data,
               .out = received.data,
               .what = what,
               .from = from,
               .received_count = received.elements(),
               .received_dtype = received.dtype});
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

std::unique_ptr<Communicator> CollectiveCommunicator::split(int color, int key, int size,
                                                            const char* name) {
  LATHE_CHECK(color >= -1 && *name != '\0');
  struct Wish {
    int color, key, size, rank;  // of the job
  };
  const Wish mine{color, key, size, group_.of_job(rank())};
  std::vector<Wish> wishes(static_cast<size_t>(this->size()));
  exchange(wishes.data(), &mine, sizeof(mine));
  bool any = false;                  // group of several ranks
  for (const Wish& wish : wishes) {  // the same checks on all ranks, so that all fail
    const auto with_color = std::ranges::count(wishes, wish.color, &Wish::color);
    LATHE_CHECK(wish.color < 0 || wish.size == with_color,
                "split into {}: {} ranks gave color {}, and {} were expected", name, with_color,
                wish.color, wish.size);
    any = any || (wish.color >= 0 && with_color > 1);
  }
  std::erase_if(wishes, [color](const Wish& wish) { return color < 0 || wish.color != color; });
  std::ranges::stable_sort(wishes, {}, &Wish::key);
  RankGroup part{.name = name};
  for (const Wish& wish : wishes) {
    if (wish.rank == mine.rank) part.rank = part.size();
    part.ranks.push_back(wish.rank);
  }
  std::unique_ptr<Communicator> made = any ? make_part(color, key, part) : nullptr;
  if (color < 0) return nullptr;
  return part.size() == 1 ? make_self_communicator(device_) : std::move(made);
}

}  // namespace lathe
