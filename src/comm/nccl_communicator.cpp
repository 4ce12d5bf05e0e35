// Ranks on GPUs, over NCCL: collectives are NCCL's kernels in a stream of their own.
#include <cuda_runtime.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <numeric>
#include <optional>
#include <vector>

#include "src/comm/cuda_communicator.h"
#include "src/comm/make_communicator.h"
#include "src/comm/nccl_library.h"
#include "src/comm/rendezvous.h"
#include "src/comm/watchdog.h"

namespace lathe {

namespace {

using cuda::check_cuda;

ncclDataType_t nccl_type(DType dtype) {
  switch (dtype) {
    case DType::fp32:
      return ncclFloat32;
    case DType::bf16:
      return ncclBfloat16;
    case DType::fp64:
      return ncclFloat64;
    case DType::int32:
      return ncclInt32;
    case DType::int64:
      return ncclInt64;
    case DType::uint8:
      return ncclUint8;
  }
  return ncclUint8;
}

ncclRedOp_t nccl_op(Reduction op) {
  return op == Reduction::sum ? ncclSum : op == Reduction::max ? ncclMax : ncclMin;
}

// Tells the watchdog which collective the stream is in. The stream itself writes the numbers, so
// they are right for replayed recordings too. Numbers wrap around; a replayed recording repeats its
// numbers anyway.
class Progress {
 public:
  Progress() {
    void* memory = nullptr;
    check_cuda(cudaHostAlloc(&memory, sizeof(Numbers), cudaHostAllocDefault), "pinned memory");
    current_ = static_cast<Numbers*>(memory);
    *current_ = {};
    check_cuda(cudaMalloc(&memory, kNumbers * sizeof(int32_t)), "memory");
    numbers_ = static_cast<int32_t*>(memory);
  }
  ~Progress() {
    cudaFree(numbers_);
    cudaFreeHost(current_);
  }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // Writes 0, 1, 2, ... to the device once; begin() and end() copy from them.
  void prepare(cudaStream_t stream) {
    std::vector<int32_t> numbers(kNumbers);
    std::iota(numbers.begin(), numbers.end(), 0);
    check_cuda(cudaMemcpyAsync(numbers_, numbers.data(), kNumbers * sizeof(int32_t),
                               cudaMemcpyHostToDevice, stream),
               "numbers");
    check_cuda(cudaStreamSynchronize(stream), "numbers");
  }
  // `c` has ranks of the job, for messages.
  void begin(const Collective& c, cudaStream_t stream) {
    number_ = number_ % (kNumbers - 1) + 1;
    {
      const std::lock_guard lock(mutex_);
      calls_[static_cast<size_t>(number_)] = c;
    }
    write(current_->begun, stream);
  }
  void end(cudaStream_t stream) { write(current_->done, stream); }

  // For the watchdog's thread.
  CollectiveStatus status() {
    CollectiveStatus status;
    status.begun = *static_cast<volatile int32_t*>(&current_->begun);
    status.done = *static_cast<volatile int32_t*>(&current_->done);
    const std::lock_guard lock(mutex_);
    const std::string what =
        status.begun > 0 ? describe(calls_[static_cast<size_t>(status.begun)]) : "";
    std::strncpy(status.what, what.c_str(), sizeof(status.what) - 1);
    return status;
  }

 private:
  static constexpr int32_t kNumbers = 1 << 16;
  struct Numbers {
    int32_t begun = 0, done = 0;
  };
  void write(int32_t& to, cudaStream_t stream) const {
    check_cuda(
        cudaMemcpyAsync(&to, numbers_ + number_, sizeof(int32_t), cudaMemcpyDeviceToHost, stream),
        "a collective");
  }

  Numbers* current_ = nullptr;  // in pinned memory
  int32_t* numbers_ = nullptr;  // on the device: 0, 1, 2, ...
  int32_t number_ = 0;
  std::mutex mutex_;
  std::vector<Collective> calls_{kNumbers};
};

class NcclCommunicator final : public CudaCommunicator {
 public:
  // Makes NCCL's communicator of a group, or of all ranks.
  using Start = std::function<ncclResult_t(const Nccl& nccl, ncclComm_t* comm)>;
  NcclCommunicator(const World& world, const RankGroup& ranks, Device& device, const Nccl& nccl,
                   const char* start_name, const Start& start, double timeout_seconds)
      : CudaCommunicator(
            world, ranks, device,
            std::make_shared<cuda::StreamQueue>(device, [this] { check_asynchronous(); })),
        nccl_(nccl),
        start_name_(start_name),
        timeout_seconds_(timeout_seconds) {
    progress_.prepare(queue_.stream());
    watchdog_.emplace(
        world, ranks, timeout_seconds, [this] { return status(); },
        [this] { return starting_ ? std::string() : asynchronous_error(); });
    // If the network does not let the ranks meet, this waits without limit.
    check(start(nccl_, &comm_), start_name_);
    starting_ = false;
  }

  // Waits for all collectives that were called; if an error ends this rank, it does not wait for
  // others.
  ~NcclCommunicator() override {
    bool well = std::uncaught_exceptions() == 0;
    try {
      if (well) wait(last());
    } catch (const std::exception&) {
      well = false;  // reported when it happened, or to the next caller that waits
    }
    watchdog_.reset();
    device_.forget_recordings();  // they hold collectives, and NCCL waits until they are gone
    if (well) {
      nccl_.comm_destroy(comm_);
    } else {
      nccl_.comm_abort(comm_);
    }
    cudaFree(scratch_);
  }

  CommKind kind() const override { return CommKind::nccl; }

  void exchange(void* all, const void* mine, size_t bytes) override {
    wait(last());
    queue_.after_device();  // which may be replaying collectives of other communicators
    if (group().is_all() && (world_.has_mpi() || size() == 1))
      return world_.exchange(all, mine, bytes, "exchange");
    // Otherwise the only way is through the GPUs. A barrier exchanges one byte per rank.
    const uint8_t nothing = 0;
    const size_t wanted = std::max<size_t>(bytes, 1);
    char* const gathered = scratch((static_cast<size_t>(size()) + 1) * wanted);
    char* const own = gathered + static_cast<size_t>(size()) * wanted;
    check_cuda(cudaMemcpyAsync(own, bytes > 0 ? mine : &nothing, wanted, cudaMemcpyHostToDevice,
                               queue_.stream()),
               "exchange");
    const auto count = static_cast<int64_t>(wanted);
    wait(all_gather({gathered, DType::uint8, {count * size()}}, {own, DType::uint8, {count}},
                    "exchange"));
    if (bytes == 0) return;
    check_cuda(cudaMemcpyAsync(all, gathered, bytes * static_cast<size_t>(size()),
                               cudaMemcpyDeviceToHost, queue_.stream()),
               "exchange");
    check_cuda(cudaStreamSynchronize(queue_.stream()), "exchange");
  }

 private:
  static constexpr int kOrdersCommunicators = 22600;  // NCCL_LAUNCH_ORDER_IMPLICIT

  CollectiveStatus status() {  // for the watchdog's thread
    if (!starting_) return progress_.status();
    CollectiveStatus status{.begun = 1};
    std::strncpy(status.what, start_name_, sizeof(status.what) - 1);
    return status;
  }
  Ticket call(const Collective& c) override {
    queue_.begin();
    progress_.begin(translated(c, group()), queue_.stream());
    if (c.count > 0 || c.received_count > 0) enqueue(c);
    progress_.end(queue_.stream());
    return queue_.end();
  }
  // NCCL makes all parts at once, so every rank calls it.
  std::unique_ptr<Communicator> make_part(int color, int key, const RankGroup& part) override {
    int version = 0;
    check(nccl_.get_version(&version), "ncclGetVersion");
    if (version < kOrdersCommunicators) {
      throw UserError(
          "NCCL {}.{} cannot order the collectives of several groups of ranks: use NCCL 2.26 or "
          "later, or --comm mpi",
          version / 10000, version / 100 % 100);
    }
    if (part.size() < 2) color = NCCL_SPLIT_NOCOLOR;
    const auto split = [this, color, key](const Nccl& nccl, ncclComm_t* comm) {
      return nccl.comm_split(comm_, color, key, comm, nullptr);
    };
    if (color == NCCL_SPLIT_NOCOLOR) {
      ncclComm_t none = nullptr;
      check(split(nccl_, &none), "ncclCommSplit");
      return nullptr;
    }
    return std::make_unique<NcclCommunicator>(world_, part, device_, nccl_, "ncclCommSplit", split,
                                              timeout_seconds_);
  }
  void enqueue(const Collective& c);
  void enqueue_pair(const Collective& c);
  void enqueue_blocks(const Collective& c);

  // Device memory for exchanges, as much as the largest has needed.
  char* scratch(size_t bytes) {
    if (bytes > scratch_bytes_) {
      cudaFree(scratch_);
      scratch_ = nullptr;
      check_cuda(cudaMalloc(&scratch_, bytes), "memory");
      scratch_bytes_ = bytes;
    }
    return static_cast<char*>(scratch_);
  }

  void check(ncclResult_t result, const char* what) const {
    if (result == ncclSuccess || result == ncclInProgress) return;
    const char* const detail = nccl_.get_last_error(nullptr);
    throw CheckError(fmt::format("{}: {}{}{}", what, nccl_.get_error_string(result),
                                 detail && *detail ? ": " : "", detail ? detail : ""));
  }
  std::string asynchronous_error() const {
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = nccl_.comm_get_async_error(comm_, &state);
    const ncclResult_t error = asked == ncclSuccess ? state : asked;
    if (error == ncclSuccess || error == ncclInProgress) return {};
    return fmt::format("NCCL: {}", nccl_.get_error_string(error));
  }
  void check_asynchronous() const {
    const std::string error = asynchronous_error();
    if (!error.empty()) throw CheckError(error);
  }

  const Nccl nccl_;
  const char* const start_name_;
  const double timeout_seconds_;
  Progress progress_;
  ncclComm_t comm_ = nullptr;
  std::atomic<bool> starting_{true};
  void* scratch_ = nullptr;
  size_t scratch_bytes_ = 0;
  std::optional<Watchdog> watchdog_;
};

void NcclCommunicator::enqueue(const Collective& c) {
  const auto count = static_cast<size_t>(c.count);
  const ncclDataType_t type = nccl_type(c.dtype);
  const ncclRedOp_t op = nccl_op(c.op);
  const cudaStream_t stream = queue_.stream();
  switch (c.kind) {
    case CollectiveKind::all_reduce:
      return check(nccl_.all_reduce(c.in, c.out, count, type, op, comm_, stream), c.what);
    case CollectiveKind::reduce:
      return check(nccl_.reduce(c.in, c.out, count, type, op, c.root, comm_, stream), c.what);
    case CollectiveKind::reduce_scatter:
      return check(nccl_.reduce_scatter(c.in, c.out, count, type, op, comm_, stream), c.what);
    case CollectiveKind::all_gather:
      return check(nccl_.all_gather(c.in, c.out, count, type, comm_, stream), c.what);
    case CollectiveKind::broadcast:
      return check(nccl_.broadcast(c.in, c.out, count, type, c.root, comm_, stream), c.what);
    case CollectiveKind::send:
      return check(nccl_.send(c.in, count, type, c.root, comm_, stream), c.what);
    case CollectiveKind::receive:
      return check(nccl_.receive(c.out, count, type, c.root, comm_, stream), c.what);
    case CollectiveKind::send_receive:
      return enqueue_pair(c);
    case CollectiveKind::gather:
    case CollectiveKind::scatter:
      return enqueue_blocks(c);
    case CollectiveKind::copy:
      return check_cuda(cudaMemcpyAsync(c.out, c.in, c.bytes(), cudaMemcpyDefault, stream), c.what);
  }
}

void NcclCommunicator::enqueue_pair(const Collective& c) {
  const Collective received = c.received_part().value();
  const cudaStream_t stream = queue_.stream();
  check(nccl_.group_start(), c.what);
  if (c.count > 0) {
    check(nccl_.send(c.in, static_cast<size_t>(c.count), nccl_type(c.dtype), c.root, comm_, stream),
          c.what);
  }
  if (received.count > 0) {
    check(nccl_.receive(received.out, static_cast<size_t>(received.count),
                        nccl_type(received.dtype), received.root, comm_, stream),
          c.what);
  }
  check(nccl_.group_end(), c.what);
}

// gather and scatter: one group of messages between the root and all others.
void NcclCommunicator::enqueue_blocks(const Collective& c) {
  const auto count = static_cast<size_t>(c.count);
  const ncclDataType_t type = nccl_type(c.dtype);
  const bool gathers = c.kind == CollectiveKind::gather;
  const size_t own = c.bytes() * static_cast<size_t>(rank());
  if (rank() == c.root) {
    const char* const from = static_cast<const char*>(c.in) + (gathers ? 0 : own);
    char* const to = static_cast<char*>(c.out) + (gathers ? own : 0);
    if (from != to) {
      check_cuda(cudaMemcpyAsync(to, from, c.bytes(), cudaMemcpyDeviceToDevice, queue_.stream()),
                 c.what);
    }
  }
  if (size() == 1) return;
  check(nccl_.group_start(), c.what);
  if (rank() != c.root) {
    check(gathers ? nccl_.send(c.in, count, type, c.root, comm_, queue_.stream())
                  : nccl_.receive(c.out, count, type, c.root, comm_, queue_.stream()),
          c.what);
  }
  for (int peer = 0; rank() == c.root && peer < size(); ++peer) {
    const size_t offset = c.bytes() * static_cast<size_t>(peer);
    if (peer == rank()) continue;
    check(gathers ? nccl_.receive(static_cast<char*>(c.out) + offset, count, type, peer, comm_,
                                  queue_.stream())
                  : nccl_.send(static_cast<const char*>(c.in) + offset, count, type, peer, comm_,
                               queue_.stream()),
          c.what);
  }
  check(nccl_.group_end(), c.what);
}

// NCCL hangs or fails if two ranks are on one GPU. Find out first, if the ranks can ask each other.
void refuse_shared_gpus(const World& world) {
  struct Gpu {
    char host[64];
    cudaUUID_t uuid;
  };
  if (!world.has_mpi()) return;
  Gpu mine{};
  cudaDeviceProp properties{};
  int index = 0;
  check_cuda(cudaGetDevice(&index), "GPU");
  check_cuda(cudaGetDeviceProperties(&properties, index), "GPU");
  mine.uuid = properties.uuid;
  std::strncpy(mine.host, world.place().host.c_str(), sizeof(mine.host) - 1);
  std::vector<Gpu> all(static_cast<size_t>(world.size()));
  world.exchange(all.data(), &mine, sizeof(mine), "which GPU each rank has");
  const cudaUUID_t unknown{};
  if (std::memcmp(&mine.uuid, &unknown, sizeof(unknown)) == 0) return;
  for (int rank = 0; rank < world.size(); ++rank) {
    const bool same = std::memcmp(&all[static_cast<size_t>(rank)], &mine, sizeof(mine)) == 0;
    if (rank == world.rank() || !same) continue;
    throw UserError(
        "--comm nccl: ranks {} and {} share a GPU of {}, which NCCL does not allow: start as many "
        "ranks as there are GPUs, or use --comm mpi",
        std::min(rank, world.rank()), std::max(rank, world.rank()), mine.host);
  }
}

// Rank 0 creates the id by which NCCL's ranks find each other, and shares it.
ncclUniqueId share_id(const World& world, const Nccl& nccl, const CommunicatorOptions& options) {
  ncclUniqueId id{};
  if (world.rank() == 0 && nccl.get_unique_id(&id) != ncclSuccess)
    throw CheckError(fmt::format("ncclGetUniqueId: {}", nccl.get_last_error(nullptr)));
  if (world.size() == 1) return id;
  if (!world.has_mpi()) {
    Rendezvous(world.place(), options.rendezvous, options.timeout_seconds).share(&id, sizeof(id));
    return id;
  }
  std::vector<ncclUniqueId> ids(static_cast<size_t>(world.size()));
  world.exchange(ids.data(), &id, sizeof(id), "NCCL's id");
  return ids[0];
}

}  // namespace

bool nccl_is_here(std::string* why_not) {
  try {
    load_nccl();
    return true;
  } catch (const UserError& error) {
    *why_not = error.what();
    return false;
  }
}

std::unique_ptr<Communicator> make_nccl_communicator(const World& world, Device& device,
                                                     const CommunicatorOptions& options) {
  const Nccl nccl = load_nccl();
  // Makes NCCL run operations of several communicators in the order of the calls, which is the same
  // on all ranks.
  ::setenv("NCCL_LAUNCH_ORDER_IMPLICIT", "1", /*overwrite=*/0);
  refuse_shared_gpus(world);
  const ncclUniqueId id = share_id(world, nccl, options);
  const auto start = [&](const Nccl& n, ncclComm_t* comm) {
    return n.comm_init_rank(comm, world.size(), id, world.rank());
  };
  return std::make_unique<NcclCommunicator>(world, all_ranks(world), device, nccl,
                                            "ncclCommInitRank", start, options.timeout_seconds);
}

}  // namespace lathe
