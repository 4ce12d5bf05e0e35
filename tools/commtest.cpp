// build/commtest: whether the ranks of this job communicate correctly, and how fast. Checks every
// collective on awkward sizes, value by value; prints tables of time and bandwidth; trains a small
// network data-parallel, which must give the same weights on all ranks. With --tp and --pp it does
// the same, without the network, along each axis of the mesh, all groups of an axis at once.

#include <utility>

#include "kernels/device/standard_streams.h"
#include "src/comm/banner.h"
#include "src/io/console.h"
#include "src/io/flags.h"
#include "src/parallel/mesh.h"
#include "tools/comm_measure.h"
#include "tools/comm_network.h"

namespace lathe {
namespace {

struct Options {
  DeviceKind device = DeviceKind::any;
  CommunicatorOptions comm;
  size_t min_bytes = size_t{1} << 10, max_bytes = size_t{4} << 20;
  int iterations = 5, steps = 40, threads = 1;
  int64_t tp = 1, pp = 1;
};

constexpr CollectiveKind kKinds[] = {
    CollectiveKind::all_reduce, CollectiveKind::reduce, CollectiveKind::reduce_scatter,
    CollectiveKind::all_gather, CollectiveKind::gather, CollectiveKind::scatter,
    CollectiveKind::broadcast,  CollectiveKind::send,   CollectiveKind::send_receive};
constexpr DType kTypes[] = {DType::fp32,  DType::bf16,  DType::fp64,
                            DType::int32, DType::int64, DType::uint8};
constexpr Reduction kOps[] = {Reduction::sum, Reduction::max, Reduction::min};

bool parse(int argc, char** argv, Options& o) {
  Flags flags(
      "commtest", "Checks and measures how the ranks of a job communicate.",
      {choice("device", o.device, {DeviceKind::any, DeviceKind::cpu, DeviceKind::cuda},
              "auto is a GPU if one answers, else the CPU"),
       choice("comm", o.comm.kind, {CommKind::any, CommKind::mpi, CommKind::nccl},
              "Transport; auto is NCCL for GPUs if it is there, else MPI"),
       number("comm-timeout", o.comm.timeout_seconds, 0.001, 1e9,
              "Seconds without progress after which the job ends"),
       text("rendezvous", o.comm.rendezvous,
            "Where ranks without MPI meet: HOST:PORT, [IPV6]:PORT or file:PATH"),
       number("min-bytes", o.min_bytes, 64, size_t{1} << 40, "Smallest tensor of the tables"),
       number("max-bytes", o.max_bytes, 4096, size_t{1} << 40, "Largest tensor"),
       number("tp", o.tp, 1, 1 << 20, "Also check groups of this many tensor-parallel ranks"),
       number("pp", o.pp, 1, 1 << 20, "Also check pipelines of this many ranks"),
       number("iterations", o.iterations, 0, 1000000, "Timed calls; 0: check only"),
       number("steps", o.steps, 0, 100000, "Steps of the small network; 0: none"),
       number("threads", o.threads, 1, 1024, "Threads of each rank on a CPU")});
  if (!flags.parse(argc, argv)) return false;
  flags.refuse_idle("min-bytes", o.iterations == 0, "with --iterations 0, which times nothing");
  if (o.iterations > 0 && o.min_bytes > o.max_bytes) {
    throw UserError("--min-bytes {} is above --max-bytes {}: lower it", o.min_bytes, o.max_bytes);
  }
  return true;
}

// All checks of this run. Only rank 0 prints.
class CommTest {
 public:
  // `all`: all ranks of the job, which check their groups `comm` at the same time.
  CommTest(const Options& options, const World& world, Device& device, Communicator& comm,
           Communicator& all)
      : options_(options),
        world_(world),
        device_(device),
        comm_(comm),
        measure_(device, comm, all, options.max_bytes) {}

  void run() {
    const auto rows = ranks_banner(world_, comm_, device_.name());
    print("commtest\n" + format_table(rows));
    check_all();
    if (options_.steps > 0) train();
  }

  // Along an axis of the mesh.
  void run_along(const char* axis) {
    print(fmt::format("\nalong {}: {} groups of {} ranks at once\n", axis,
                      world_.size() / comm_.size(), comm_.size()));
    check_all(fmt::format(" along {}", axis));
  }

 private:
  void check_all(const std::string& where = "") {
    int64_t wrong = 0;
    for (const CollectiveKind kind : kKinds) wrong += check(kind);
    // A single rank only copies, or does nothing.
    if (options_.iterations > 0 && comm_.kind() != CommKind::self)
      for (const CollectiveKind kind : kKinds) wrong += table(kind);
    if (wrong > 0) throw CheckError(fmt::format("{} values are wrong{}", wrong, where));
  }
  void print(const std::string& text) const {
    if (world_.rank() == 0) print_out(text);
  }
  bool makes_sense(CollectiveKind kind) const { return comm_.size() > 1 || !is_send(kind); }
  static bool is_send(CollectiveKind kind) {
    return kind == CollectiveKind::send || kind == CollectiveKind::send_receive;
  }
  static bool reduces(CollectiveKind kind) { return kind <= CollectiveKind::reduce_scatter; }
  static bool has_root(CollectiveKind kind) {
    return kind == CollectiveKind::reduce || kind == CollectiveKind::gather ||
           kind == CollectiveKind::scatter || kind == CollectiveKind::broadcast;
  }
  static std::string_view title(CollectiveKind kind) {
    return kind == CollectiveKind::send ? "send and receive" : name_of(kind);
  }

  // Every type, operation and root, with no elements, one element, primes, and the largest count.
  int64_t check(CollectiveKind kind) {
    if (!makes_sense(kind)) return 0;
    int64_t cases = 0, wrong = 0;
    for (const DType dtype : kTypes) {
      const int64_t most = measure_.largest_count(kind, dtype, options_.max_bytes);
      for (const int64_t count : {int64_t{0}, int64_t{1}, int64_t{17}, int64_t{1009}, most - 1}) {
        if (count > most) continue;
        for (const Reduction op : kOps) {
          if (op != Reduction::sum && (!reduces(kind) || count > 1009)) continue;
          const int root = has_root(kind) ? static_cast<int>(cases) % comm_.size() : 0;
          for (const bool in_place : {false, true}) {
            if (in_place && (is_send(kind) || kind == CollectiveKind::broadcast)) continue;
            const CommCase c{kind, dtype, op, root, count};
            const int64_t here = measure_.run(c, in_place, 0).wrong;
            if (here > 0)
              print(fmt::format("{} of {} {}, root {}, {}: {} values are wrong\n", title(kind),
                                count, name_of(dtype), root, in_place ? "in place" : "out of place",
                                here));
            wrong += here;
            ++cases;
          }
        }
      }
    }
    print(fmt::format("{:<17} {:4} cases, {}\n", title(kind), cases,
                      wrong == 0 ? "all correct" : "WRONG"));
    return wrong;
  }

  // Sizes by factors of four.
  int64_t table(CollectiveKind kind) {
    if (!makes_sense(kind)) return 0;
    const bool both = !is_send(kind) && kind != CollectiveKind::broadcast;
    print(fmt::format("\n{}, fp32{}\n{:>12} {:>12}   {}{}\n", title(kind),
                      reduces(kind) ? ", sum" : "", "bytes", "elements", heading("out of place"),
                      both ? heading("in place") : ""));
    int64_t wrong = 0;
    for (size_t bytes = options_.min_bytes; bytes <= options_.max_bytes; bytes *= 4) {
      const CommCase c{.kind = kind, .count = measure_.largest_count(kind, DType::fp32, bytes)};
      const CommResult out = measure_.run(c, false, options_.iterations);
      CommResult in;
      if (both) in = measure_.run(c, true, options_.iterations);
      wrong += out.wrong + in.wrong;
      print(fmt::format("{:>12} {:>12}   {}{}\n", measure_.bytes(c), c.count, line(out),
                        both ? line(in) : ""));
    }
    return wrong;
  }
  static std::string heading(const char* where) {
    return fmt::format("{:>12} us {:>9} {:>9} {:>7}", where, "GB/s", "bus GB/s", "wrong");
  }
  static std::string line(const CommResult& r) {
    return fmt::format("{:>15.1f} {:>9.3f} {:>9.3f} {:>7}", r.microseconds, r.algorithm_gb_per_s,
                       r.bus_gb_per_s, r.wrong);
  }

  void train() {
    const NetworkRun run = train_small_network(device_, comm_, options_.steps);
    print(fmt::format("\na small network, {} steps on {} rank{}: loss {:.6f} to {:.6f}\n",
                      options_.steps, comm_.size(), comm_.size() == 1 ? "" : "s",
                      run.losses.front(), run.losses.back()));
    for (int rank = 0; rank < comm_.size(); ++rank) {
      const std::string& theirs = run.checksums[static_cast<size_t>(rank)];
      if (theirs == run.checksums[0]) continue;
      throw CheckError(fmt::format("weights of rank {} differ from those of rank 0: {} and {}",
                                   rank, theirs, run.checksums[0]));
    }
    print(fmt::format("all ranks have the same weights, {}\n", run.checksums[0]));
    if (options_.steps >= 20 && !(run.losses.back() < run.losses.front()))
      throw CheckError("the network has not learnt anything");
  }

  const Options& options_;
  const World& world_;
  Device& device_;
  Communicator& comm_;
  CommMeasure measure_;
};

int commtest(World& world, int argc, char** argv) {
  Options options;
  if (!parse(argc, argv, options)) return 0;
  CudaDeviceOptions cuda;
  cuda.deterministic = true;
  cuda.autotune = false;  // so that all ranks choose the same
  const int gpus = options.device == DeviceKind::cpu ? 0 : cuda_device_count();
  if (gpus > 0) cuda.index = world.place().local_rank % gpus;
  const auto device = make_device(options.device, options.threads, cuda);
  const auto comm = make_communicator(world, *device, options.comm);
  const MeshShape shape = mesh_shape(world.size(), options.tp, options.pp);
  CommTest(options, world, *device, *comm, *comm).run();
  const Mesh mesh(*comm, shape);
  for (const auto& [axis, part] :
       {std::pair("dp", &mesh.dp()), {"tp", &mesh.tp()}, {"pp", &mesh.pp()}}) {
    if (part->size() == 1 || part == comm.get()) continue;  // nothing to check, or checked above
    CommTest(options, world, *device, *part, *comm).run_along(axis);
  }
  if (world.rank() == 0) print_out("all checks passed\n");
  return 0;
}

}  // namespace
}  // namespace lathe

int main(int argc, char** argv) {
  return lathe::run_ranks("commtest", argc, argv,
                          [&](lathe::World& world) { return lathe::commtest(world, argc, argv); });
}
