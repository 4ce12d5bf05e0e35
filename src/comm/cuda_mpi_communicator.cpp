// Ranks on GPUs, over MPI and pinned host memory, one piece at a time. The stream copies the piece
// out, waits for a host function that runs the collective, and copies the result in. Slower than
// NCCL; for machines without NCCL, or if ranks share a GPU.
#include <cuda_runtime.h>

#include <algorithm>
#include <exception>

#include "kernels/device/round.h"
#include "src/comm/cuda_communicator.h"
#include "src/comm/make_communicator.h"
#include "src/comm/mpi_collectives.h"

namespace lathe {

namespace {

using cuda::check_cuda;

class CudaMpiCommunicator final : public CudaCommunicator {
 public:
  CudaMpiCommunicator(const World& world, const RankGroup& ranks, Device& device,
                      std::shared_ptr<cuda::StreamQueue> queue, std::shared_ptr<char> pinned,
                      double timeout_seconds)
      : CudaCommunicator(world, ranks, device, std::move(queue)),
        timeout_seconds_(timeout_seconds),
        collectives_(world, ranks, timeout_seconds),
        shared_pinned_(std::move(pinned)),
        pinned_(shared_pinned_.get()) {}

  // Waits for all collectives that were called; if an error ends this rank, it does not wait for
  // others.
  ~CudaMpiCommunicator() override {
    if (std::uncaught_exceptions() > 0) collectives_.give_up();
    cudaStreamSynchronize(queue_.stream());
    device_.synchronize();
    device_.forget_recordings();  // they call into this object
  }

  static std::shared_ptr<char> allocate_pinned() {
    void* memory = nullptr;
    check_cuda(cudaHostAlloc(&memory, kPinnedBytes, cudaHostAllocDefault), "pinned memory");
    return {static_cast<char*>(memory), [](char* p) { cudaFreeHost(p); }};
  }

  CommKind kind() const override { return CommKind::mpi; }
  void exchange(void* all, const void* mine, size_t bytes) override {
    wait(last());
    const auto count = static_cast<int64_t>(bytes);
    collectives_.run(
        {CollectiveKind::all_gather, DType::uint8, {}, -1, count, mine, all, "exchange"});
  }

 private:
  static constexpr size_t kPinnedBytes = size_t{32} << 20;

  Ticket call(const Collective& c) override {
    queue_.begin();
    // The blocks of all ranks lie side by side in the pinned memory.
    const bool blocks = c.kind == CollectiveKind::reduce_scatter ||
                        c.kind == CollectiveKind::all_gather || c.kind == CollectiveKind::gather ||
                        c.kind == CollectiveKind::scatter;
    const size_t ranks = blocks ? static_cast<size_t>(size()) : 1;
    if (c.kind == CollectiveKind::send_receive) {
      enqueue_pairs(c);
      return queue_.end();
    }
    const auto piece = static_cast<int64_t>(kPinnedBytes / ranks / size_of(c.dtype));
    for (int64_t first = 0; first == 0 || first < c.count; first += piece)
      enqueue_piece(c, first, std::min(piece, c.count - first));
    return queue_.end();
  }
  // The parts share the stream, because CUDA may call host functions one after the other: one that
  // waited for a rank would hold up that of another stream.
  std::unique_ptr<Communicator> make_part(int, int, const RankGroup& part) override {
    if (part.size() < 2) return nullptr;
    return std::make_unique<CudaMpiCommunicator>(world_, part, device_, shared_queue_,
                                                 shared_pinned_, timeout_seconds_);
  }
  void enqueue_pairs(const Collective& c);
  void enqueue_piece(const Collective& whole, int64_t first, int64_t count);
  void run_on_host(const Collective& c);
  void copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind);

  const double timeout_seconds_;
  MpiCollectives collectives_;
  const std::shared_ptr<char> shared_pinned_;
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
    case CollectiveKind::send:
      copy_out(pinned_);
      return run_on_host(c);
    case CollectiveKind::receive:
      run_on_host(c);
      return copy_in(pinned_);
    case CollectiveKind::copy:
      return copy(out, in, bytes, cudaMemcpyDefault);
    case CollectiveKind::send_receive:
      break;  // enqueue_pairs
  }
}

// One half of the pinned memory for what is sent, one for what is received.
void CudaMpiCommunicator::enqueue_pairs(const Collective& c) {
  const auto piece_of = [](DType dtype) {
    return static_cast<int64_t>(kPinnedBytes / 2 / size_of(dtype));
  };
  const int64_t sent = piece_of(c.dtype), received = piece_of(c.received_dtype);
  const int64_t pieces =
      std::max<int64_t>({1, ceil_div(c.count, sent), ceil_div(c.received_count, received)});
  char* const in_half = pinned_ + kPinnedBytes / 2;
  for (int64_t i = 0; i < pieces; ++i) {
    Collective part = c;
    const int64_t first = std::min(i * sent, c.count);
    const int64_t first_received = std::min(i * received, c.received_count);
    part.count = std::min(sent, c.count - first);
    part.received_count = std::min(received, c.received_count - first_received);
    part.in = pinned_;
    part.out = in_half;
    copy(pinned_, static_cast<const char*>(c.in) + first * static_cast<int64_t>(size_of(c.dtype)),
         part.bytes(), cudaMemcpyDeviceToHost);
    run_on_host(part);
    copy(static_cast<char*>(c.out) +
             first_received * static_cast<int64_t>(size_of(c.received_dtype)),
         in_half, part.received_bytes(), cudaMemcpyHostToDevice);
  }
}

}  // namespace

std::unique_ptr<Communicator> make_cuda_mpi_communicator(const World& world, Device& device,
                                                         const CommunicatorOptions& options) {
  return std::make_unique<CudaMpiCommunicator>(
      world, all_ranks(world), device, std::make_shared<cuda::StreamQueue>(device),
      CudaMpiCommunicator::allocate_pinned(), options.timeout_seconds);
}

}  // namespace lathe
