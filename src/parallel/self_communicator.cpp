// One rank: a collective is a copy in the device's own line, so there is no order to be made.
#include <cstring>

#include "src/parallel/collective.h"
#include "src/parallel/make_communicator.h"

namespace lathe {

namespace {

class SelfCommunicator final : public Communicator {
 public:
  explicit SelfCommunicator(Device& device) : device_(device) {}

  std::string_view kind() const override { return "self"; }
  int rank() const override { return 0; }
  int size() const override { return 1; }

  Ticket all_reduce(const Tensor& out, const Tensor& in, Reduction op, const char* what) override {
    return copy(calls_.all_reduce(out, in, op, what));
  }
  Ticket reduce(const Tensor& out, const Tensor& in, Reduction op, int root,
                const char* what) override {
    return copy(calls_.reduce(out, in, op, root, what));
  }
  Ticket reduce_scatter(const Tensor& mine, const Tensor& all, Reduction op,
                        const char* what) override {
    return copy(calls_.reduce_scatter(mine, all, op, what));
  }
  Ticket all_gather(const Tensor& all, const Tensor& mine, const char* what) override {
    return copy(calls_.all_gather(all, mine, what));
  }
  Ticket gather(const Tensor& all, const Tensor& mine, int root, const char* what) override {
    return copy(calls_.gather(all, mine, root, what));
  }
  Ticket scatter(const Tensor& mine, const Tensor& all, int root, const char* what) override {
    return copy(calls_.scatter(mine, all, root, what));
  }
  Ticket broadcast(const Tensor& tensor, int root, const char* what) override {
    return copy(calls_.broadcast(tensor, root, what));
  }
  Ticket send(const Tensor& tensor, int to, const char* what) override {
    return copy(calls_.send(tensor, to, what));  // fails: there is nobody else
  }
  Ticket receive(const Tensor& tensor, int from, const char* what) override {
    return copy(calls_.receive(tensor, from, what));
  }

  void after_device() override {}
  void device_after(Ticket) override {}
  Ticket last() const override { return last_; }
  void wait(Ticket) override { device_.synchronize(); }
  Ticket mark(int number) override {
    device_.mark(number);
    return last();
  }

  void exchange(void* all, const void* mine, size_t bytes) override {
    if (bytes > 0 && all != mine) std::memcpy(all, mine, bytes);
  }

 private:
  Ticket copy(const Collective& c) {
    if (c.in != c.out && c.count > 0) {
      device_.copy({c.out, c.dtype, {c.count}}, {const_cast<void*>(c.in), c.dtype, {c.count}});
    }
    return ++last_;
  }

  Device& device_;
  const CollectiveCalls calls_{0, 1};
  Ticket last_ = 0;
};

}  // namespace

std::unique_ptr<Communicator> make_self_communicator(Device& device) {
  return std::make_unique<SelfCommunicator>(device);
}

}  // namespace lathe
