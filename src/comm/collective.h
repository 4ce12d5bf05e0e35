// One collective as a value: what queues hold and what error messages describe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "kernels/device/dtype.h"
#include "src/comm/communicator.h"
#include "src/comm/rank_group.h"

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
  send_receive,
  copy  // within a rank
};

struct Collective {
  CollectiveKind kind{};
  DType dtype{};
  Reduction op{};  // only for the three that reduce
  int root = -1;   // for send, receive and send_receive: the rank to or from; -1: none
  // Elements of one rank's `mine` if the collective has one, otherwise of the tensor.
  int64_t count = 0;
  // Memory to read and to write; for broadcast they are the same. Null if this rank has no such
  // tensor.
  const void* in = nullptr;
  void* out = nullptr;
  const char* what = "";
  // Of send_receive: what comes from which rank.
  int from = -1;
  int64_t received_count = 0;
  DType received_dtype{};

  size_t bytes() const { return static_cast<size_t>(count) * size_of(dtype); }
  size_t received_bytes() const {
    return static_cast<size_t>(received_count) * size_of(received_dtype);
  }
  bool between_two() const {
    return kind == CollectiveKind::send || kind == CollectiveKind::receive ||
           kind == CollectiveKind::send_receive;
  }
  // The halves of a send_receive, or this as the one that it is.
  std::optional<Collective> sent_part() const;
  std::optional<Collective> received_part() const;
  bool reduces() const { return kind <= CollectiveKind::reduce_scatter; }
};

std::string_view name_of(CollectiveKind kind);

// A send and a receive as one collective; one of them may be absent.
Collective joined(const std::optional<Collective>& sent, const std::optional<Collective>& received);

// A communicator that passes every collective to one function, as a value. Checks shapes and types:
// a mismatch on one rank alone is a bug in lathe.
class CollectiveCommunicator : public Communicator {
 public:
  // `queue` is where the collectives run; it may be constructed after this.
  CollectiveCommunicator(RankGroup group, Device& device, Queue& queue)
      : device_(device), group_(std::move(group)), queue_(queue) {}

  int rank() const final { return group_.rank; }
  int size() const final { return group_.size(); }
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
  Ticket send_receive(const Tensor& sent, int to, const Tensor& received, int from,
                      const char* what) final;
  Ticket copy(const Tensor& to, const Tensor& from, const char* what) final;
  void after_device() final { queue_.after_device(); }
  void device_after(Ticket ticket) final { queue_.device_after(ticket); }
  Ticket last() const final { return queue_.last(); }
  void wait(Ticket ticket) final { queue_.wait(ticket); }
  void mark(int number) final { queue_.mark(number); }
  std::unique_ptr<Communicator> split(int color, int key, int size, const char* name) final;

 protected:
  virtual Ticket call(const Collective& collective) = 0;
  // Called on all ranks of this communicator. `part`: this rank's group; with fewer than two ranks
  // the result is not used.
  virtual std::unique_ptr<Communicator> make_part(int color, int key, const RankGroup& part) = 0;
  const RankGroup& group() const { return group_; }

  Device& device_;

 private:
  void check_root(int root) const;
  void check_same(const Tensor& a, const Tensor& b, int64_t times) const;

  const RankGroup group_;
  Queue& queue_;
};

// "all_reduce of 5 fp32 (sum) 'gradients'". The ranks in it are those of the job, if a caller has
// translated them (translated()).
std::string describe(CollectiveKind kind, DType dtype, Reduction op, int root, int64_t count,
                     std::string_view what);
std::string describe(const Collective& c);
// The same with ranks of the job in place of ranks of the group.
Collective translated(Collective c, const RankGroup& group);

}  // namespace lathe
