// Ranks on GPUs, over MPI and pinned host memory, one piece at a time. The stream copies the piece
// out, waits for a host function that runs the collective, and copies the result in. Slower than
// NCCL; for machines without NCCL, or if ranks share a GPU.
#include <cuda_runtime.h>

#include <algorithm>
#include <exception>
#include <vector>

#include "kernels/device/round.h"
#include "src/comm/cuda_communicator.h"
#include "src/comm/make_communicator.h"
#include "src/comm/mpi_collectives.h"

namespace lathe {

namespace {

using cuda::check_cuda;

// What a communicator and its parts share, because CUDA may call host functions one after the
// other: one that waited for a rank would hold up those of another stream.
struct Family {
  Family(Device& device, size_t bytes) : queue(std::make_shared<cuda::StreamQueue>(device)) {
    void* memory = nullptr;
    check_cuda(cudaHostAlloc(&memory, bytes, cudaHostAllocDefault), "pinned memory");
    pinned = static_cast<char*>(memory);
  }
  ~Family() { cudaFreeHost(pinned); }
  Family(const Family&) = delete;
  Family& operator=(const Family&) = delete;

  std::shared_ptr<cuda::StreamQueue> queue;
  char* pinned = nullptr;
  std::vector<MpiCollectives*> members;
};

class CudaMpiCommunicator final : public CudaCommunicator {
 public:
  static constexpr size_t kPinnedBytes = size_t{32} << 20;

  CudaMpiCommunicator(const World& world, const RankGroup& ranks, Device& device,
                      std::shared_ptr<Family> family, double timeout_seconds)
      : CudaCommunicator(world, ranks, device, family->queue),
        timeout_seconds_(timeout_seconds),
        collectives_(world, ranks, timeout_seconds),
        family_(std::move(family)),
        pinned_(family_->pinned) {
    family_->members.push_back(&collectives_);
  }

  // Waits for all collectives that were called; if an error ends this rank, it does not wait for
  // others.
  ~CudaMpiCommunicator() override {
    if (std::uncaught_exceptions() > 0)
      for (MpiCollectives* member : family_->members) member->give_up();
    cudaStreamSynchronize(queue_.stream());
    device_.synchronize();
    device_.forget_recordings();  // they call into this object
    std::erase(family_->members, &collectives_);
  }

  CommKind kind() const override { return CommKind::mpi; }
  void exchange(void* all, const void* mine, size_t bytes) override {
    wait(last());
    const auto count = static_cast<int64_t>(bytes);
    collectives_.run(
        {CollectiveKind::all_gather, DType::uint8, {}, -1, count, mine, all, "exchange"});
  }

 private:
  Ticket call(const Collective& c) override {
    queue_.begin();
    // The blocks of all ranks lie side by side in the pinned memory.
    const bool blocks = c.kind == CollectiveKind::reduce_scatter ||
                        c.kind == CollectiveKind::all_gather || c.kind == CollectiveKind::gather ||
                        c.kind == CollectiveKind::scatter;
    if (c.between_two()) {
      enqueue_message(c);
      return queue_.end();
    }
    const size_t ranks = blocks ? static_cast<size_t>(size()) : 1;
    const auto piece = static_cast<int64_t>(kPinnedBytes / ranks / size_of(c.dtype));
    for (int64_t first = 0; first == 0 || first < c.count; first += piece)
      enqueue_piece(c, first, std::min(piece, c.count - first));
    return queue_.end();
  }
  std::unique_ptr<Communicator> make_part(int, int, const RankGroup& part) override {
    if (part.size() < 2) return nullptr;
    return std::make_unique<CudaMpiCommunicator>(world_, part, device_, family_, timeout_seconds_);
  }
  void enqueue_message(const Collective& c);
  void enqueue_piece(const Collective& whole, int64_t first, int64_t count);
  void run_on_host(const Collective& c);
  void copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind);

  const double timeout_seconds_;
  MpiCollectives collectives_;
  const std::shared_ptr<Family> family_;
  char* const pinned_;
};

void CudaMpiCommunicator::copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  if (bytes > 0) check_cuda(cudaMemcpyAsync(to, from, bytes, kind, queue_.stream()), "collective");
}

void CudaMpiCommunicator::run_on_host(const Collective& c) {
  queue_.call([this, c] {
    try {
      collectives_.run(c);
    } catch (const std::exception&) {  // no caller could catch it
      const Failure failure = current_failure();
      world_.fail(failure.message, failure.exit_code);
    }
  });
}

// Elements first .. first + count of the tensor, or of each rank's block of it.
void CudaMpiCommunicator::enqueue_piece(const Collective& whole, int64_t first, int64_t count) {
  const size_t bytes = static_cast<size_t>(count) * size_of(whole.dtype);
  const size_t offset = static_cast<size_t>(first) * size_of(whole.dtype);
  const char* const in = whole.in ? static_cast<const char*>(whole.in) + offset : nullptr;
  char* const out = whole.out ? static_cast<char*>(whole.out) + offset : nullptr;
  const auto block = [&](int r) { return pinned_ + static_cast<size_t>(r) * bytes; };
  const auto block_offset = [&](int r) { return static_cast<size_t>(r) * whole.bytes(); };
  char* const own = block(rank());
  const bool is_root = whole.root < 0 || whole.root == rank();
  const auto copy_out = [&](char* to) { copy(to, in, bytes, cudaMemcpyDeviceToHost); };
  const auto copy_in = [&](const char* from) { copy(out, from, bytes, cudaMemcpyHostToDevice); };
  const auto copy_blocks_out = [&] {
    for (int r = 0; r < size(); ++r)
      copy(block(r), in + block_offset(r), bytes, cudaMemcpyDeviceToHost);
  };
  const auto copy_blocks_in = [&] {
    for (int r = 0; r < size(); ++r)
      copy(out + block_offset(r), block(r), bytes, cudaMemcpyHostToDevice);
  };
  Collective c = whole;
  c.count = count;
  c.in = c.out = pinned_;
  switch (whole.kind) {
    case CollectiveKind::all_reduce:
    case CollectiveKind::reduce:
      copy_out(pinned_);
      if (!is_root) c.out = nullptr;
      run_on_host(c);
      return is_root ? copy_in(pinned_) : void();
    case CollectiveKind::broadcast:
      if (is_root) copy_out(pinned_);
      run_on_host(c);
      return is_root ? void() : copy_in(pinned_);
    case CollectiveKind::reduce_scatter:
      copy_blocks_out();
      c.out = own;
      run_on_host(c);
      return copy_in(own);
    case CollectiveKind::all_gather:
    case CollectiveKind::gather:
      copy_out(own);
      c.in = own;
      if (!is_root) c.out = nullptr;
      run_on_host(c);
      return is_root ? copy_blocks_in() : void();
    case CollectiveKind::scatter:
      if (is_root) copy_blocks_out();
      c.out = own;
      if (!is_root) c.in = nullptr;
      run_on_host(c);
      return copy_in(own);
    case CollectiveKind::copy:
      return copy(out, in, bytes, cudaMemcpyDefault);
    case CollectiveKind::send:
    case CollectiveKind::receive:
    case CollectiveKind::send_receive:
      break;  // enqueue_message
  }
}

// send, receive and send_receive: one half of the pinned memory for what goes, one for what comes.
// A message has the same pieces whichever call it belongs to.
void CudaMpiCommunicator::enqueue_message(const Collective& c) {
  constexpr size_t kHalf = kPinnedBytes / 2;
  const std::optional<Collective> sent = c.sent_part(), received = c.received_part();
  const auto pieces = [](const std::optional<Collective>& half) {
    return half ? std::max<size_t>(1, ceil_div(half->bytes(), kHalf)) : 0;
  };
  const size_t out = pieces(sent), in = pieces(received);
  for (size_t i = 0; i < std::max(out, in); ++i) {
    const size_t done = i * kHalf;
    std::optional<Collective> piece_out, piece_in;
    const auto cut = [&](Collective half) {
      half.count = static_cast<int64_t>(std::min(kHalf, half.bytes() - done) / size_of(half.dtype));
      return half;
    };
    if (i < out) {
      piece_out = cut(*sent);
      copy(pinned_, static_cast<const char*>(sent->in) + done, piece_out->bytes(),
           cudaMemcpyDeviceToHost);
      piece_out->in = pinned_;
    }
    if (i < in) {
      piece_in = cut(*received);
      piece_in->out = pinned_ + kHalf;
    }
    run_on_host(joined(piece_out, piece_in));
    if (i < in) {
      copy(static_cast<char*>(received->out) + done, pinned_ + kHalf, piece_in->bytes(),
           cudaMemcpyHostToDevice);
    }
  }
}

}  // namespace

std::unique_ptr<Communicator> make_cuda_mpi_communicator(const World& world, Device& device,
                                                         const CommunicatorOptions& options) {
  return std::make_unique<CudaMpiCommunicator>(
      world, all_ranks(world), device,
      std::make_shared<Family>(device, CudaMpiCommunicator::kPinnedBytes), options.timeout_seconds);
}

}  // namespace lathe
