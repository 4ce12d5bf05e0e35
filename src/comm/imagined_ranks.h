// A communicator whose other ranks do not exist, to plan a job of any size: its collectives do
// nothing.
#pragma once

#include "src/comm/communicator.h"

namespace lathe {

class ImaginedRanks : public Communicator {
 public:
  explicit ImaginedRanks(int size) : size_(size) {}

  CommKind kind() const override { return size_ == 1 ? CommKind::self : CommKind::mpi; }
  int rank() const override { return 0; }
  int size() const override { return size_; }
  Ticket all_reduce(const Tensor&, const Tensor&, Reduction, const char*) override { return 0; }
  Ticket reduce(const Tensor&, const Tensor&, Reduction, int, const char*) override { return 0; }
  Ticket reduce_scatter(const Tensor&, const Tensor&, Reduction, const char*) override { return 0; }
  Ticket all_gather(const Tensor&, const Tensor&, const char*) override { return 0; }
  Ticket gather(const Tensor&, const Tensor&, int, const char*) override { return 0; }
  Ticket scatter(const Tensor&, const Tensor&, int, const char*) override { return 0; }
  Ticket broadcast(const Tensor&, int, const char*) override { return 0; }
  Ticket send(const Tensor&, int, const char*) override { return 0; }
  Ticket receive(const Tensor&, int, const char*) override { return 0; }
  Ticket send_receive(const Tensor&, int, const Tensor&, int, const char*) override { return 0; }
  Ticket copy(const Tensor&, const Tensor&, const char*) override { return 0; }
  void after_device() override {}
  void device_after(Ticket) override {}
  Ticket last() const override { return 0; }
  void wait(Ticket) override {}
  void mark(int) override {}
  void exchange(void*, const void*, size_t) override {}
  std::unique_ptr<Communicator> split(int color, int, int size, const char*) override {
    return color < 0 ? nullptr : std::make_unique<ImaginedRanks>(size);
  }

 private:
  int size_;
};

}  // namespace lathe
