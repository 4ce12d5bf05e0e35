// A step as it is enqueued: operations and collectives in the order of the calls. Predicts how long
// it takes on a machine with given rates.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "kernels/observed_ops.h"
#include "src/comm/imagined_ranks.h"

namespace lathe::testing {

class Schedule {
 public:
  struct Entry {
    std::string kind;  // the operation, the collective, "after_device" or "device_after"
    std::string what;  // of a collective
    bool collective = false;
    Ticket ticket = 0;  // its own; of device_after: the awaited one
    OpCost cost;        // of an operation
    double bytes = 0;   // of a collective's whole tensor
  };
  void add(Entry entry) { entries_.push_back(std::move(entry)); }
  const std::vector<Entry>& entries() const { return entries_; }
  const Entry& at(int64_t place) const { return entries_.at(static_cast<size_t>(place)); }

  std::vector<int64_t> all(const std::string& kind, const std::string& what = "") const {
    std::vector<int64_t> places;
    for (size_t i = 0; i < entries_.size(); ++i) {
      if (entries_[i].kind == kind && (what.empty() || entries_[i].what == what))
        places.push_back(static_cast<int64_t>(i));
    }
    return places;
  }
  int64_t only(const std::string& kind, const std::string& what = "") const {
    const std::vector<int64_t> places = all(kind, what);
    EXPECT_EQ(places.size(), 1u) << kind << " " << what;
    return places.empty() ? -1 : places.front();
  }
  int64_t first(const std::string& kind) const { return all(kind).at(0); }
  // The next entry after `place` of one of these kinds; without kinds, the next entry.
  template <typename... Kinds>
  int64_t next(int64_t place, const Kinds&... kinds) const {
    for (size_t i = static_cast<size_t>(place) + 1; i < entries_.size(); ++i) {
      if (sizeof...(kinds) == 0 || ((entries_[i].kind == kinds) || ...))
        return static_cast<int64_t>(i);
    }
    return static_cast<int64_t>(entries_.size());
  }
  std::vector<std::pair<int64_t, Entry>> collectives() const {
    std::vector<std::pair<int64_t, Entry>> found;
    for (size_t i = 0; i < entries_.size(); ++i) {
      if (entries_[i].collective) found.emplace_back(static_cast<int64_t>(i), entries_[i]);
    }
    return found;
  }
  // The device's last operation before a collective; -1: none.
  int64_t operation_before(int64_t place) const {
    for (int64_t i = place; i-- > 0;) {
      const Entry& entry = at(i);
      if (!entry.collective && entry.kind != "after_device" && entry.kind != "device_after")
        return i;
    }
    return -1;
  }
  // The last after_device before a collective; -1: none.
  int64_t ordered_after(int64_t place) const {
    for (int64_t i = place; i-- > 0;) {
      if (at(i).kind == "after_device") return i;
    }
    return -1;
  }

 private:
  std::vector<Entry> entries_;
};

// Operations that are recorded but not run.
class ScheduleOps final : public ObservedOps {
 public:
  ScheduleOps(const Ops& real, Schedule& schedule) : ObservedOps(real), schedule_(schedule) {}

 protected:
  bool before(const Call& call) const override {
    schedule_.add({.kind = std::string(call.name), .cost = call.cost});
    return false;
  }

 private:
  Schedule& schedule_;
};

// Rank 0 of a job whose other ranks do not exist: collectives are recorded but not run.
class AbsentRanks final : public ImaginedRanks {
 public:
  AbsentRanks(int size, Schedule& schedule) : ImaginedRanks(size), schedule_(schedule) {}

  Ticket all_reduce(const Tensor& out, const Tensor&, Reduction, const char* what) override {
    return note("all_reduce", out, what);
  }
  Ticket reduce(const Tensor& out, const Tensor&, Reduction, int, const char* what) override {
    return note("reduce", out, what);
  }
  Ticket reduce_scatter(const Tensor&, const Tensor& all, Reduction, const char* what) override {
    return note("reduce_scatter", all, what);
  }
  Ticket all_gather(const Tensor& all, const Tensor&, const char* what) override {
    return note("all_gather", all, what);
  }
  Ticket gather(const Tensor& all, const Tensor&, int, const char* what) override {
    return note("gather", all, what);
  }
  Ticket scatter(const Tensor&, const Tensor& all, int, const char* what) override {
    return note("scatter", all, what);
  }
  Ticket broadcast(const Tensor& tensor, int, const char* what) override {
    return note("broadcast", tensor, what);
  }
  Ticket send(const Tensor& tensor, int, const char* what) override {
    return note("send", tensor, what);
  }
  Ticket receive(const Tensor& tensor, int, const char* what) override {
    return note("receive", tensor, what);
  }
  Ticket send_receive(const Tensor& sent, int, const Tensor&, int, const char* what) override {
    return note("send_receive", sent, what);
  }
  std::unique_ptr<Communicator> split(int color, int, int size, const char*) override {
    return color < 0 ? nullptr : std::make_unique<AbsentRanks>(size, schedule_);
  }
  Ticket copy(const Tensor& to, const Tensor&, const char* what) override {
    return note("copy", to, what);
  }
  void after_device() override { schedule_.add({.kind = "after_device"}); }
  void device_after(Ticket ticket) override {
    schedule_.add({.kind = "device_after", .ticket = ticket});
  }
  Ticket last() const override { return last_; }
  void exchange(void*, const void*, size_t) override { FAIL() << "a step asks the other hosts"; }

 private:
  Ticket note(const char* kind, const Tensor& tensor, const char* what) {
    schedule_.add({.kind = kind,
                   .what = what,
                   .collective = true,
                   .ticket = ++last_,
                   .bytes = static_cast<double>(tensor.bytes())});
    return last_;
  }

  Schedule& schedule_;
  Ticket last_ = 0;
};

// The rates that a GPU reaches in practice. An operation takes the time of its FLOPs or of its
// bytes, whichever is longer.
struct Gpu {
  double flops_per_s, bytes_per_s;
};
struct Network {
  const char* name;
  double bytes_per_s;  // that each rank sends, and receives, at the same time
  double latency_s;    // of a collective
};
// 60 % of the dense bf16 peak of 989 TFLOP/s and 80 % of 3.35 TB/s are optimistic rates of a GPU,
// and so pessimistic for the communication that its work must hide. NVLink 4: 450 GB/s per
// direction, of which collectives reach about 75 %. InfiniBand: 200 Gb/s per GPU, of which they
// reach 90 %.
inline constexpr Gpu kH100{0.6 * 989e12, 0.8 * 3.35e12};
inline constexpr Network kNvlink{"NVLink", 0.75 * 450e9, 20e-6};
inline constexpr Network kInfiniband200{"200 Gb/s", 0.9 * 25e9, 40e-6};

struct StepTimes {
  double step_s = 0, compute_s = 0, communication_s = 0, exposed_s = 0;
  std::string line() const {
    return fmt::format("step {:.2f} ms, communication {:.2f} ms, exposed {:.2f} ms = {:.2f} %",
                       1e3 * step_s, 1e3 * communication_s, 1e3 * exposed_s,
                       100 * exposed_s / step_s);
  }
};

// Simulates the two queues, each in its order, and the waits between them.
inline StepTimes model_of(const Schedule& schedule, const Gpu& gpu, const Network& network,
                          int ranks) {
  StepTimes t;
  double device = 0, queue = 0;  // when each finishes the work enqueued so far
  std::vector<double> ends{0};   // of the collectives
  for (const Schedule::Entry& entry : schedule.entries()) {
    if (entry.kind == "after_device") {
      queue = std::max(queue, device);
    } else if (entry.kind == "device_after") {
      const double end = ends.at(static_cast<size_t>(entry.ticket));
      t.exposed_s += std::max(0.0, end - device);
      device = std::max(device, end);
    } else if (entry.collective) {
      const double rounds = entry.kind == "all_reduce" ? 2 : 1;
      const double seconds =
          network.latency_s + rounds * (ranks - 1) / ranks * entry.bytes / network.bytes_per_s;
      queue += seconds;
      t.communication_s += seconds;
      ends.push_back(queue);
    } else {
      const double seconds =
          std::max(entry.cost.flops / gpu.flops_per_s, entry.cost.bytes / gpu.bytes_per_s);
      device += seconds;
      t.compute_s += seconds;
    }
  }
  t.step_s = device;
  return t;
}

}  // namespace lathe::testing
