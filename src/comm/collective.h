// One collective as a value: what queues hold and what error messages describe.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/device/dtype.h"
#include "src/comm/communicator.h"

namespace lathe {

enum class CollectiveKind : uint8_t {
  all_reduce,
  reduce,
  reduce_scatter,
  all_gather,
  gather,
  scatter,
  broadcast,
  send,
  receive,
  copy  // within a rank
};

struct Collective {
  CollectiveKind kind{};
  DType dtype{};
  Reduction op{};  // only for the three that reduce
  int root = -1;   // for send and receive: the other rank; -1: none
  // Elements of one rank's `mine` if the collective has one, otherwise of the tensor.
  int64_t count = 0;
  // Memory to read and to write; for broadcast they are the same. Null if this rank has no such
  // tensor.
  const void* in = nullptr;
  void* out = nullptr;
  const char* what = "";

  size_t bytes() const { return static_cast<size_t>(count) * size_of(dtype); }
  bool between_two() const {
    return kind == CollectiveKind::send || kind == CollectiveKind::receive;
  }
  bool reduces() const { return kind <= CollectiveKind::reduce_scatter; }
};

std::string_view name_of(CollectiveKind kind);

// A communicator that passes every collective to one function, as a value. Checks shapes and types:
// a mismatch on one rank alone is a bug in lathe.
class CollectiveCommunicator : public Communicator {
 public:
  // `queue` is where the collectives run; it may be constructed after this.
  CollectiveCommunicator(int rank, int size, Queue& queue)
      : rank_(rank), size_(size), queue_(queue) {}

  int rank() const final { return rank_; }
  int size() const final { return size_; }
  Ticket all_reduce(const Tensor& out, const Tensor& in, Reduction op, const char* what) final;
  Ticket reduce(const Tensor& out, const Tensor& in, Reduction op, int root,
                const char* what) final;
  Ticket reduce_scatter(const Tensor& mine, const Tensor& all, Reduction op,
                        const char* what) final;
  Ticket all_gather(const Tensor& all, const Tensor& mine, const char* what) final;
  Ticket gather(const Tensor& all, const Tensor& mine, int root, const char* what) final;
  Ticket scatter(const Tensor& mine, const Tensor& all, int root, const char* what) final;
  Ticket broadcast(const Tensor& tensor, int root, const char* what) final;
  Ticket send(const Tensor& tensor, int to, const char* what) final;
  Ticket receive(const Tensor& tensor, int from, const char* what) final;
  Ticket copy(const Tensor& to, const Tensor& from, const char* what) final;
  void after_device() final { queue_.after_device(); }
  void device_after(Ticket ticket) final { queue_.device_after(ticket); }
  Ticket last() const final { return queue_.last(); }
  void wait(Ticket ticket) final { queue_.wait(ticket); }
  void mark(int number) final { queue_.mark(number); }

 protected:
  virtual Ticket call(const Collective& collective) = 0;

 private:
  void check_root(int root) const;
  void check_same(const Tensor& a, const Tensor& b, int64_t times) const;

  const int rank_, size_;
  Queue& queue_;
};

// "all_reduce of 5 fp32 (sum) 'gradients'"
std::string describe(CollectiveKind kind, DType dtype, Reduction op, int root, int64_t count,
                     std::string_view what);
inline std::string describe(const Collective& c) {
  return describe(c.kind, c.dtype, c.op, c.root, c.count, c.what);
}

}  // namespace lathe
