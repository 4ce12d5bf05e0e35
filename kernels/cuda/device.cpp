// The device of kernels/device/device.h on an NVIDIA GPU: a stream for computation, one for copies.
#include "kernels/device/device.h"
#include "kernels/cuda/stream_queue.h"
#include "kernels/device/copy_queue.h"

#include <cuda_profiler_api.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <sstream>
#include <vector>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/feedback.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/peak.h"
#include "kernels/cuda/ranges.h"
#include "kernels/cuda/recordings.h"
#include "kernels/cuda/staging.h"
#include "kernels/cuda/stream.h"
#include "kernels/device/arena.h"

namespace lathe {

namespace {

using cuda::check_cuda;

constexpr int kOldestMajor = 8;  // mma on bf16 and cp.async came with compute capability 8.0

std::string version_text(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

// Throws a UserError with the reason if this machine cannot run on that GPU.
cudaDeviceProp open_gpu(int index) {
  int driver = 0, runtime = 0, count = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (driver == 0)
    throw UserError("--device cuda: no NVIDIA driver is installed here; use --device cpu");
  if (driver / 1000 < runtime / 1000) {
    throw UserError(
        "--device cuda: the NVIDIA driver supports CUDA {}, but lathe was built with {}; "
        "update the driver, or use --device cpu",
        version_text(driver), version_text(runtime));
  }
  if (error != cudaSuccess || count == 0) {
    throw UserError("--device cuda: no usable GPU ({}); use --device cpu",
                    error == cudaSuccess ? "none found" : cudaGetErrorString(error));
  }
  if (index >= count)
    throw UserError("--device cuda: there is no GPU {}, only {} of them", index, count);
  cudaDeviceProp properties{};
  check_cuda(cudaSetDevice(index), "GPU");
  check_cuda(cudaGetDeviceProperties(&properties, index), "GPU");
  if (properties.major < kOldestMajor) {
    throw UserError(
        "--device cuda: {} has compute capability {}.{}, but lathe's kernels need 8.0 or newer; "
        "use --device cpu",
        properties.name, properties.major, properties.minor);
  }
  return properties;
}

// wgmma exists on Hopper alone, and only in code for its exact architecture, 9.0a.
bool runs_wgmma(const cudaDeviceProp& properties) {
  return LATHE_HAS_SM_90A && properties.major == 9 && properties.minor == 0;
}

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(const CudaDeviceOptions& options)
      : properties_(open_gpu(options.index)),
        matmul_({options.tf32, options.deterministic, options.autotune,
                 static_cast<size_t>(options.matmul_alignment)}),
        context_{stream_, &matmul_, properties_.multiProcessorCount,
                 properties_.sharedMemPerBlockOptin, runs_wgmma(properties_)},
        staging_(stream_),
        feedback_(stream_),
        recordings_(stream_) {
    check_cuda(cudaHostAlloc(&pinned_, kPinnedBytes, cudaHostAllocDefault), "pinned memory");
  }
  ~CudaDevice() override {
    cudaStreamSynchronize(stream_);
    cudaFreeHost(pinned_);
  }

  DeviceKind kind() const override { return DeviceKind::cuda; }
  std::string name() const override {
    return fmt::format("{}, {} multiprocessors, compute capability {}.{}", properties_.name,
                       properties_.multiProcessorCount, properties_.major, properties_.minor);
  }
  double peak_flops(DType dtype) const override {
    return cuda::peak_flops(properties_.name, dtype);
  }

  size_t memory_bytes() const override {
    return properties_.totalGlobalMem - std::min(properties_.totalGlobalMem, kReservedBytes);
  }

  void* allocate(size_t bytes, MemorySpace space) override {
    LATHE_CHECK(bytes > 0);
    if (space == MemorySpace::pinned) return allocate_pinned(bytes);
    void* memory = nullptr;
    const cudaError_t error = cudaMalloc(&memory, bytes);
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      size_t available = 0, total = 0;
      cudaMemGetInfo(&available, &total);
      throw UserError(
          "{:.1f} GiB of GPU memory are needed and {:.1f} GiB of {:.1f} available: lower "
          "--batch-size, --seq-len or the size of the model",
          gibibytes(bytes), gibibytes(available), gibibytes(total));
    }
    check_cuda(error, "cudaMalloc");
    check_cuda(cudaMemsetAsync(memory, 0, bytes, stream_), "clearing memory");
    return memory;
  }
  void release(void* memory, size_t, MemorySpace space) noexcept override {
    cudaStreamSynchronize(stream_);
    space == MemorySpace::pinned ? cudaFreeHost(memory) : cudaFree(memory);
  }

  void upload(const Tensor& destination, const void* source) override {
    staging_.upload(destination.data, source, destination.bytes());
  }
  void download(void* destination, const Tensor& source) override {
    for (size_t done = 0; done < source.bytes(); done += kPinnedBytes) {
      const size_t part = std::min(kPinnedBytes, source.bytes() - done);
      check_cuda(cudaMemcpyAsync(pinned_, static_cast<const char*>(source.data) + done, part,
                                 cudaMemcpyDefault, stream_),
                 "download");
      synchronize();
      std::memcpy(static_cast<char*>(destination) + done, pinned_, part);
    }
  }
  void zero(const Tensor& tensor) override {
    if (tensor.bytes() == 0) return;
    check_cuda(cudaMemsetAsync(tensor.data, 0, tensor.bytes(), stream_), "clearing memory");
  }
  void copy(const Tensor& destination, const Tensor& source) override {
    LATHE_CHECK(destination.bytes() == source.bytes());
    if (source.bytes() == 0) return;
    check_cuda(
        cudaMemcpyAsync(destination.data, source.data, source.bytes(), cudaMemcpyDefault, stream_),
        "copy");
  }
  void synchronize() override { check_cuda(cudaStreamSynchronize(stream_), "GPU"); }
  std::unique_ptr<CopyQueue> make_copy_queue() override {
    return std::make_unique<StreamCopies>(*this);
  }

  bool asynchronous() const override { return true; }
  void replay(int key, const std::function<void()>& body) override {
    recordings_.replay(key, body);
  }
  void forget_recordings() override { recordings_.clear(); }
  void read_back(int slot, const Tensor& source) override { feedback_.read_back(slot, source); }
  void collect(int slot, void* destination) override { feedback_.collect(slot, destination); }
  void mark(int number) override { feedback_.mark(number, stream_); }
  void* stream() override { return static_cast<cudaStream_t>(stream_); }
  void mark_on(void* stream, int number) override {
    feedback_.mark(number, static_cast<cudaStream_t>(stream));
  }
  double milliseconds_between(int from, int to) override {
    return feedback_.milliseconds_between(from, to);
  }

  void observe_parts(PartObserver* observer) override { context_.parts = observer; }
  bool start_profile() override {
    check_cuda(cudaDeviceSynchronize(), "GPU");
    ranges_.emplace();
    check_cuda(cudaProfilerStart(), "start of a profile");
    return true;
  }
  void stop_profile() override {
    check_cuda(cudaDeviceSynchronize(), "GPU");
    check_cuda(cudaProfilerStop(), "end of a profile");
    ranges_.reset();
  }
  void push_range(std::string_view name, const OpCost& cost) override {
    if (ranges_) ranges_->push(name, cost);
  }
  void pop_range() override {
    if (ranges_) ranges_->pop();
  }

  // One line per shape: its name, a tab, the plan.
  std::string plans() const override {
    std::string text;
    for (const cuda::MatmulPlanRecord& record : matmul_.plans())
      text += record.shape + "\t" + record.plan + "\n";
    return text;
  }
  void load_plans(const std::string& text) override {
    std::vector<cuda::MatmulPlanRecord> records;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
      const size_t tab = line.find('\t');
      if (tab != std::string::npos) records.push_back({line.substr(0, tab), line.substr(tab + 1)});
    }
    matmul_.load_plans(records);
  }
  std::string tuning_log() const override { return matmul_.tuning_log(); }

  const Ops& ops(DType dtype) override {
    std::unique_ptr<Ops>& table = tables_.at(static_cast<size_t>(dtype));
    if (!table) table = cuda::make_cuda_ops(dtype, context_);
    return *table;
  }

 private:
  // The GPU's copy engines copy while its multiprocessors compute.
  class StreamCopies final : public CopyQueue {
   public:
    explicit StreamCopies(Device& device) : queue_(device) {}
    Ticket copy(const Tensor& to, const Tensor& from) override {
      LATHE_CHECK(to.bytes() == from.bytes());
      queue_.begin();
      check_cuda(
          cudaMemcpyAsync(to.data, from.data, to.bytes(), cudaMemcpyDefault, queue_.stream()),
          "copy");
      return queue_.end();
    }
    Ticket call(std::function<void()> body) override {
      queue_.begin();
      queue_.call(std::move(body));
      return queue_.end();
    }
    Queue& queue() override { return queue_; }

   private:
    cuda::StreamQueue queue_;
  };

  // Mapped into the GPU's addresses, as all pinned memory is on 64-bit systems.
  static void* allocate_pinned(size_t bytes) {
    void* memory = nullptr;
    const cudaError_t error = cudaHostAlloc(&memory, bytes, cudaHostAllocDefault);
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      throw UserError(
          "{:.1f} GiB of pinned host memory are needed, which the host does not give: offload "
          "less",
          gibibytes(bytes));
    }
    check_cuda(error, "pinned memory");
    std::memset(memory, 0, bytes);
    return memory;
  }

  static constexpr size_t kPinnedBytes = 4 << 20;  // of a download, at a time
  // The context, the libraries' kernels, and staging: some hundred megabytes on an H100.
  static constexpr size_t kReservedBytes = size_t{1} << 30;

  static double gibibytes(size_t bytes) { return static_cast<double>(bytes) / (1 << 30); }

  cudaDeviceProp properties_;
  cuda::Stream stream_;  // for all computation; declared first, so it outlives its users
  cuda::Matmul matmul_;
  cuda::Context context_;
  cuda::Staging staging_;
  cuda::Feedback feedback_;
  cuda::Recordings recordings_;
  std::optional<cuda::Ranges> ranges_;  // while profiling
  void* pinned_ = nullptr;
  std::array<std::unique_ptr<Ops>, 6> tables_;  // by DType
};

}  // namespace

std::unique_ptr<Device> make_cuda_device(const CudaDeviceOptions& options) {
  return std::make_unique<CudaDevice>(options);
}

int cuda_device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

}  // namespace lathe
