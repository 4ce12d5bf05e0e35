// ranks_driver DEED [DEVICE [COMM]]: a program of several ranks that does what its first argument
// names, usually something wrong.
#include <fmt/format.h>

#include <csignal>
#include <cstdio>
#include <functional>
#include <map>
#include <thread>

#include "src/comm/communicator.h"

namespace lathe {
namespace {

constexpr double kTimeoutSeconds = 1;

class Deeds {
 public:
  Deeds(const World& world, Device& device, Communicator& comm)
      : world_(world), device_(device), comm_(comm) {}

  ~Deeds() {
    if (memory_) device_.release(memory_, kBytes);
  }
  Deeds(const Deeds&) = delete;
  Deeds& operator=(const Deeds&) = delete;

  int run(const std::string& deed) {
    const std::map<std::string, std::function<int()>> deeds = {
        {"agree", [&] { return agree(); }},
        {"kind", [&] { return tell_kind(); }},
        {"throw-on-2", [&] { return throw_on_2(); }},
        {"throw-on-1-under-way", [&] { return throw_under_way(); }},
        {"return-7-on-1", [&] { return world_.rank() == 1 ? 7 : agree(); }},
        {"hang-on-1", [&] { return leave_out([] { hang(); }); }},
        {"stop-on-1", [&] { return leave_out([] { std::raise(SIGSTOP); }); }},
        {"kill-1", [&] { return leave_out([] { std::raise(SIGKILL); }); }},
        {"other-kind-on-1", [&] { return other_kind(); }},
        {"other-count-on-1", [&] { return other_count(); }},
        {"other-message-on-1", [&] { return other_message(); }},
        {"part-disagrees", [&] { return in_part(/*hang_on_3=*/false); }},
        {"part-hangs", [&] { return in_part(/*hang_on_3=*/true); }},
    };
    return deeds.at(deed)();
  }

 private:
  static void hang() {
    while (true) std::this_thread::sleep_for(std::chrono::seconds(1));
  }
  void finish() { comm_.wait(comm_.last()); }

  int agree() {
    const float mine = static_cast<float>(1 + world_.rank());
    float sum = 0;
    device_.upload(floats(1), &mine);
    comm_.after_device();
    comm_.device_after(comm_.all_reduce(floats(1), floats(1), Reduction::sum, "ranks"));
    device_.download(&sum, floats(1));
    if (world_.rank() == 0) fmt::print("sum {}\n", sum);
    return 0;
  }
  int tell_kind() {
    if (world_.rank() == 0) fmt::print("{}\n", name_of(comm_.kind()));
    return 0;
  }
  int throw_on_2() {
    if (world_.rank() == 2) throw CheckError("the third is broken");
    comm_.barrier();
    return 0;
  }
  int throw_under_way() {
    comm_.all_reduce(floats(5), floats(5), Reduction::sum, "done by all");
    if (world_.rank() == 1) comm_.broadcast(floats(5), 0, "not called by the others");
    if (world_.rank() == 1) throw UserError("this rank alone");
    hang();
    return 0;
  }
  int leave_out(const std::function<void()>& instead) {
    comm_.all_reduce(floats(5), floats(5), Reduction::sum, "the first");
    comm_.all_reduce(floats(5), floats(5), Reduction::sum, "the second");
    finish();
    if (world_.rank() == 1) instead();
    comm_.all_reduce(floats(5), floats(5), Reduction::sum, "the third");
    finish();
    return 0;
  }
  int other_kind() {
    if (world_.rank() == 1) {
      comm_.all_gather(floats(5 * world_.size()), floats(5), "theirs");
    } else {
      comm_.all_reduce(floats(5), floats(5), Reduction::sum, "mine");
    }
    finish();
    return 0;
  }
  int other_count() {
    comm_.broadcast(floats(world_.rank() == 1 ? 6 : 5), 0, "");
    finish();
    return 0;
  }
  int other_message() {
    if (world_.rank() == 0) comm_.send(floats(5), 1, "");
    if (world_.rank() == 1) comm_.receive(floats(4), 0, "");
    finish();
    return 0;
  }

  // Ranks 1 and 3 of four are a part, in which rank 3 does something else or nothing.
  int in_part(bool hang_on_3) {
    const auto part = comm_.split(world_.rank() % 2, 0, 2, "tp");
    part->all_reduce(floats(5), floats(5), Reduction::sum, "the first");
    part->wait(part->last());
    if (hang_on_3 && world_.rank() == 3) hang();
    part->all_reduce(floats(world_.rank() == 3 ? 6 : 5), floats(world_.rank() == 3 ? 6 : 5),
                     Reduction::sum, "the second");
    part->wait(part->last());
    if (world_.rank() % 2 == 0) hang();  // until the others end the job
    return 0;
  }

  Tensor floats(int64_t count) {
    if (!memory_) memory_ = device_.allocate(kBytes);
    return {memory_, DType::fp32, {count}};
  }

  static constexpr size_t kBytes = 4096;
  const World& world_;
  Device& device_;
  Communicator& comm_;
  void* memory_ = nullptr;
};

int run(World& world, const std::string& deed, DeviceKind device_kind, CommKind comm_kind) {
  if (deed == "all-mistaken") throw UserError("--colour: there is no 'blue'");
  if (deed == "return-7") return 7;
  while (deed == "hang-early-on-1" && world.rank() == 1)
    std::this_thread::sleep_for(std::chrono::seconds(1));
  const auto device = make_device(device_kind, 0);
  CommunicatorOptions options;
  options.kind = comm_kind;
  options.timeout_seconds = kTimeoutSeconds;
  const auto comm = make_communicator(world, *device, options);
  return Deeds(world, *device, *comm).run(deed);
}

}  // namespace
}  // namespace lathe

int main(int argc, char** argv) {
  return lathe::run_ranks("ranks_driver", argc, argv, [&](lathe::World& world) {
    using namespace lathe;
    const std::string_view device = argc > 2 ? argv[2] : "cpu", comm = argc > 3 ? argv[3] : "auto";
    return run(world, argc > 1 ? argv[1] : "agree",
               device == "cuda" ? DeviceKind::cuda : DeviceKind::cpu,
               comm == "nccl"  ? CommKind::nccl
               : comm == "mpi" ? CommKind::mpi
                               : CommKind::any);
  });
}
