#include "kernels/cuda_on_cpu/block.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <boost/context/detail/fcontext.hpp>
#include <filesystem>
#include <memory>
#include <numeric>
#include <vector>

#include "kernels/cuda_on_cpu/execution.h"
#include "kernels/cuda_on_cpu/runtime.h"
#include "kernels/device/round.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace lathe::cuda_on_cpu {

namespace {

using boost::context::detail::fcontext_t;
using boost::context::detail::jump_fcontext;
using boost::context::detail::make_fcontext;
using boost::context::detail::transfer_t;

constexpr int kMaxThreads = 1024, kLanes = 32;
constexpr size_t kStackBytes = 256 * 1024, kGuardBytes = 4096;
constexpr size_t kCanaryBytes = 256, kSharedAlignment = 1024;
constexpr unsigned char kPoison = 0xff, kCanary = 0xa5;

// A group of lanes that wait for each other; a warp may have several.
struct Meeting {
  unsigned mask = 0, arrived = 0;
  const char* what = nullptr;
  unsigned line = 0;
  void* records[kLanes] = {};
};

struct CopyAsync {
  void* shared;
  const void* global;
  bool valid;
};

// A thread's part of a wgmma.
struct LateWgmma {
  alignas(16) unsigned char record[kLateRecordBytes];
  Combine perform;
};

struct Fiber {
  fcontext_t context = nullptr;
  char* stack = nullptr;  // lowest address
  void* fake_stack = nullptr;
  uint3 index{};
  bool finished = false;
  const char* waits_for = nullptr;
  Site site;
  std::vector<std::vector<CopyAsync>> committed;
  std::vector<CopyAsync> open;
  std::vector<std::vector<LateWgmma>> late_groups;
  std::vector<LateWgmma> late;
  bool arrived_for_wgmma = false;  // wgmma.fence since the thread began, or last waited
};

// Runnable fibers: taken from one end or the other.
class ReadyList {
 public:
  void clear() { head_ = tail_ = 0; }
  bool empty() const { return head_ == tail_; }
  void add(int fiber) { slots_[tail_++ % kSlots] = static_cast<int16_t>(fiber); }
  int take_first() { return slots_[head_++ % kSlots]; }
  int take_last() { return slots_[--tail_ % kSlots]; }

 private:
  static constexpr unsigned kSlots = 2 * kMaxThreads;
  int16_t slots_[kSlots];
  unsigned head_ = 0, tail_ = 0;
};

// The state of a running kernel. There is only one, because one OS thread runs all kernels.
class Execution {
 public:
  static Execution& instance() {
    static Execution execution;
    return execution;
  }

  std::string run(const KernelLaunch& launch, Random& random);

  void meet_warp(unsigned mask, const char* what, void* record, Combine combine, const Site& site);
  void meet_block(const Site& site);
  void copy_async(const CopyAsync& copy);
  void copy_async_commit() { fibers_[current_].committed.push_back(take_open()); }
  void copy_async_wait(int pending);
  void arrive_for_wgmma() { fibers_[current_].arrived_for_wgmma = true; }
  void enqueue_wgmma(const LateWgmma& product, const Site& site);
  void commit_wgmma() {
    fibers_[current_].late_groups.push_back(std::exchange(fibers_[current_].late, {}));
  }
  void wait_for_wgmma(int pending, const Site& site);
  unsigned char* shared() const { return shared_; }
  bool is_shared(const void* address, size_t bytes) const {
    const auto* first = static_cast<const unsigned char*>(address);
    return first >= shared_ && first + bytes <= shared_ + launch_->shared_bytes;
  }
  int lane() const { return current_ % kLanes; }
  bool running() const { return current_ >= 0; }
  std::string where() const;
  [[noreturn]] void fail(std::string what);

 private:
  ~Execution();
  void prepare_fibers(int count);
  void abandon_fibers();
  void run_block();
  void allocate_shared();
  std::string check_shared();
  std::string describe_deadlock() const;
  void release(int first, int count, unsigned mask);
  Meeting& meeting(unsigned mask, const char* what, const Site& site);
  std::vector<CopyAsync> take_open();
  static void perform(const CopyAsync& copy);
  void wait_here(const char* what, const Site& site);
  void switch_to_next();
  void switch_to(int fiber);
  static void entry(transfer_t transfer);
  void finish_switch(void* fake_stack);

  const KernelLaunch* launch_ = nullptr;
  Random* random_ = nullptr;
  std::vector<Fiber> fibers_;
  std::vector<Meeting> meetings_;  // kMeetings a warp
  static constexpr int kMeetings = 4;
  ReadyList ready_;
  bool last_first_ = false;   // a warp runs as far as it can before the next
  bool copies_late_ = false;  // cp.async copies when it is waited for
  bool wgmma_late_ = false;
  int threads_ = 0, live_ = 0, at_barrier_ = 0;
  Site barrier_;
  int current_ = -1;  // -1: the scheduler
  fcontext_t main_context_ = nullptr;
  void* main_fake_stack_ = nullptr;
  const void* main_stack_ = nullptr;
  size_t main_stack_bytes_ = 0;
  std::vector<unsigned char> shared_pool_;
  unsigned char* shared_ = nullptr;
  std::string error_;
};

Execution::~Execution() {
  abandon_fibers();
}

void Execution::prepare_fibers(int count) {
  while (static_cast<int>(fibers_.size()) < count) {
    void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) throw std::bad_alloc();
    mprotect(stack, kGuardBytes, PROT_NONE);
    Fiber fiber;
    fiber.stack = static_cast<char*>(stack);
    fiber.context = make_fcontext(fiber.stack + kStackBytes, kStackBytes - kGuardBytes, entry);
    fibers_.push_back(std::move(fiber));
  }
}

// After an error fibers are in the middle of a kernel, and nothing will unwind them.
void Execution::abandon_fibers() {
  for (Fiber& fiber : fibers_) munmap(fiber.stack, kStackBytes);
  fibers_.clear();
}

std::string Execution::run(const KernelLaunch& launch, Random& random) {
  launch_ = &launch;
  random_ = &random;
  error_.clear();
  blockDim = launch.block;
  gridDim = launch.grid;
  threads_ = static_cast<int>(launch.block.x * launch.block.y * launch.block.z);
  prepare_fibers(threads_);
  const uint64_t blocks = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  const uint64_t start = random.next() % blocks;
  const bool backwards = random.below(2) == 1;
  for (uint64_t i = 0; i < blocks && error_.empty(); ++i) {
    const uint64_t b = (backwards ? start + blocks - i : start + i) % blocks;
    blockIdx = {static_cast<unsigned>(b % launch.grid.x),
                static_cast<unsigned>(b / launch.grid.x % launch.grid.y),
                static_cast<unsigned>(b / launch.grid.x / launch.grid.y)};
    run_block();
  }
  if (!error_.empty()) abandon_fibers();
  return error_;
}

void Execution::run_block() {
  allocate_shared();
  const dim3& block = launch_->block;
  meetings_.assign(static_cast<size_t>((threads_ + kLanes - 1) / kLanes * kMeetings), Meeting{});
  at_barrier_ = 0;
  live_ = threads_;
  last_first_ = random_->below(2) == 1;
  copies_late_ = random_->below(2) == 1;
  wgmma_late_ = random_->below(2) == 1;
  for (int i = 0; i < threads_; ++i) {
    Fiber& fiber = fibers_[i];
    const unsigned t = static_cast<unsigned>(i);
    fiber.index = {t % block.x, t / block.x % block.y, t / block.x / block.y};
    fiber.finished = false;
    fiber.committed.clear();
    fiber.open.clear();
    fiber.late_groups.clear();
    fiber.late.clear();
    fiber.arrived_for_wgmma = false;
  }
  ready_.clear();
  release(0, threads_, 0);
  switch_to_next();  // returns when no fiber can continue
  if (error_.empty() && live_ > 0) error_ = describe_deadlock();
  if (error_.empty()) error_ = check_shared();
}

// Exactly the bytes that the launch requested, poisoned, between canaries. Under AddressSanitizer
// each block gets an allocation of its own.
void Execution::allocate_shared() {
  const size_t bytes = launch_->shared_bytes;
#if defined(__SANITIZE_ADDRESS__)
  std::free(shared_);
  void* memory = nullptr;
  if (posix_memalign(&memory, kSharedAlignment, std::max<size_t>(bytes, 1)) != 0)
    throw std::bad_alloc();
  shared_ = static_cast<unsigned char*>(memory);
  std::memset(shared_, kPoison, bytes);
  if (bytes == 0) ASAN_POISON_MEMORY_REGION(shared_, 1);
#else
  shared_pool_.resize(bytes + 2 * kCanaryBytes + kSharedAlignment);
  const uintptr_t start = reinterpret_cast<uintptr_t>(shared_pool_.data()) + kCanaryBytes;
  shared_ = reinterpret_cast<unsigned char*>(round_up(start, uintptr_t{kSharedAlignment}));
  std::memset(shared_ - kCanaryBytes, kCanary, kCanaryBytes);
  std::memset(shared_, kPoison, bytes);
  std::memset(shared_ + bytes, kCanary, kCanaryBytes);
#endif
}

std::string Execution::check_shared() {
#if !defined(__SANITIZE_ADDRESS__)
  for (size_t i = 0; i < kCanaryBytes; ++i) {
    const bool before = shared_[i - kCanaryBytes] != kCanary;
    if (!before && shared_[launch_->shared_bytes + i] == kCanary) continue;
    return fmt::format("kernel {}, block ({}, {}, {}): a write {} the {} bytes of shared memory",
                       function_name(launch_->kernel), blockIdx.x, blockIdx.y, blockIdx.z,
                       before ? "before" : "after", launch_->shared_bytes);
  }
#endif
  return "";
}

std::string Execution::where() const {
  const Fiber& fiber = fibers_[static_cast<size_t>(current_)];
  return fmt::format("kernel {}, block ({}, {}, {}), thread ({}, {}, {})",
                     function_name(launch_->kernel), blockIdx.x, blockIdx.y, blockIdx.z,
                     fiber.index.x, fiber.index.y, fiber.index.z);
}

std::string Execution::describe_deadlock() const {
  for (int i = 0; i < threads_; ++i) {
    const Fiber& fiber = fibers_[i];
    if (fiber.finished) continue;
    return fmt::format(
        "kernel {}, block ({}, {}, {}), thread ({}, {}, {}) waits forever at {}, {}:{}: {} of {} "
        "threads have ended, {} wait for the block",
        function_name(launch_->kernel), blockIdx.x, blockIdx.y, blockIdx.z, fiber.index.x,
        fiber.index.y, fiber.index.z, fiber.waits_for,
        std::filesystem::path(fiber.site.file_name()).filename().string(), fiber.site.line(),
        threads_ - live_, threads_, at_barrier_);
  }
  return "";
}

// Makes `count` fibers from `first` runnable (only those in `mask`, unless it is 0), in a drawn
// order.
void Execution::release(int first, int count, unsigned mask) {
  static constexpr int kStrides[] = {1, 7, 11, 1021};
  const int stride = kStrides[random_->below(4)] % count;
  const bool walks = count > 1 && stride > 0 && std::gcd(stride, count) == 1;
  const int start = static_cast<int>(random_->below(static_cast<uint32_t>(count)));
  for (int i = 0; i < count; ++i) {
    const int member = (start + i * (walks ? stride : 1)) % count;
    if (mask != 0 && !(mask >> member & 1)) continue;
    if (first + member != current_ || mask == 0) ready_.add(first + member);
  }
}

Meeting& Execution::meeting(unsigned mask, const char* what, const Site& site) {
  Meeting* const warp = &meetings_[static_cast<size_t>(current_ / kLanes * kMeetings)];
  Meeting* free = nullptr;
  for (Meeting* m = warp; m < warp + kMeetings; ++m) {
    if (m->arrived == 0) {
      free = m;
    } else if (m->mask == mask && m->line == site.line() && m->what == what) {
      return *m;
    } else if ((m->mask & mask) != 0) {
      fail(
          fmt::format("lanes of a warp meet at different places: {} in line {} and {} in line {}, "
                      "masks {:#x} and {:#x}",
                      m->what, m->line, what, site.line(), m->mask, mask));
    }
  }
  if (free == nullptr) fail("more than four groups of lanes in one warp");
  free->mask = mask;
  free->what = what;
  free->line = site.line();
  for (void*& record : free->records) record = nullptr;
  return *free;
}

void Execution::meet_warp(unsigned mask, const char* what, void* record, Combine combine,
                          const Site& site) {
  const int first = current_ / kLanes * kLanes;
  if (!(mask >> lane() & 1))
    fail(fmt::format("{} in line {} without this lane", what, site.line()));
  if (first + static_cast<int>(std::bit_width(mask)) > threads_) {
    fail(fmt::format("{} in line {}: the mask {:#x} names lanes that the block does not have", what,
                     site.line(), mask));
  }
  Meeting& here = meeting(mask, what, site);
  here.records[lane()] = record;
  here.arrived |= 1u << lane();
  if (here.arrived != mask) return wait_here(what, site);
  combine(here.records, mask);
  here.arrived = 0;
  release(first, kLanes, mask);
}

void Execution::meet_block(const Site& site) {
  if (at_barrier_ == 0) {
    barrier_ = site;
  } else if (barrier_.line() != site.line() || barrier_.file_name() != site.file_name()) {
    fail(fmt::format("threads of a block are at different barriers: lines {} and {}",
                     barrier_.line(), site.line()));
  }
  if (++at_barrier_ < threads_) return wait_here("__syncthreads", site);
  at_barrier_ = 0;
  release(0, threads_, 0);
  wait_here("__syncthreads", site);
}

std::vector<CopyAsync> Execution::take_open() {
  return std::exchange(fibers_[current_].open, {});
}

void Execution::perform(const CopyAsync& copy) {
  if (copy.valid) {
    std::memcpy(copy.shared, copy.global, 16);
  } else {
    std::memset(copy.shared, 0, 16);
  }
}

void Execution::copy_async(const CopyAsync& copy) {
  if (reinterpret_cast<uintptr_t>(copy.shared) % 16 ||
      reinterpret_cast<uintptr_t>(copy.global) % 16)
    fail("cp.async: an address is not a multiple of 16");
  if (!is_shared(copy.shared, 16)) fail("cp.async: the destination is not in shared memory");
  if (copy.valid && is_shared(copy.global, 16)) fail("cp.async: the source is in shared memory");
  if (copies_late_) {
    fibers_[current_].open.push_back(copy);
  } else {
    perform(copy);
  }
}

void Execution::copy_async_wait(int pending) {
  auto& groups = fibers_[current_].committed;
  while (static_cast<int>(groups.size()) > pending) {
    for (const CopyAsync& copy : groups.front()) perform(copy);
    groups.erase(groups.begin());
  }
}

void Execution::enqueue_wgmma(const LateWgmma& product, const Site& site) {
  if (!fibers_[current_].arrived_for_wgmma)
    fail(fmt::format("wgmma in line {} without wgmma.fence before it", site.line()));
  fibers_[current_].late.push_back(product);
  if (wgmma_late_) return;
  meet_warp(~0u, "wgmma", &fibers_[current_].late.back().record, product.perform, site);
}

void Execution::wait_for_wgmma(int pending, const Site& site) {
  Fiber& fiber = fibers_[current_];
  fiber.arrived_for_wgmma = false;
  while (static_cast<int>(fiber.late_groups.size()) > pending) {
    for (LateWgmma& product : fiber.late_groups.front()) {
      if (wgmma_late_) meet_warp(~0u, "the wait for wgmma", &product.record, product.perform, site);
    }
    fiber.late_groups.erase(fiber.late_groups.begin());
  }
}

void Execution::wait_here(const char* what, const Site& site) {
  fibers_[current_].waits_for = what;
  fibers_[current_].site = site;
  switch_to_next();
}

// Nothing unwinds the fiber that calls this, so its stack must hold nothing that needs freeing.
void Execution::fail(std::string what) {
  error_ = where() + ": " + std::exchange(what, {});
  ready_.clear();
  switch_to_next();
  std::abort();  // an abandoned fiber is never resumed
}

void Execution::switch_to_next() {
  switch_to(ready_.empty() ? -1 : last_first_ ? ready_.take_last() : ready_.take_first());
}

// Continues with another fiber, or with the scheduler (-1).
void Execution::switch_to(int next) {
  const int before = current_;
  if (next == before) return;
  current_ = next;
  const auto context_of = [&](int i) -> fcontext_t& {
    return i < 0 ? main_context_ : fibers_[i].context;
  };
  if (next >= 0) threadIdx = fibers_[next].index;
#if defined(__SANITIZE_ADDRESS__)
  void*& saved = before < 0 ? main_fake_stack_ : fibers_[before].fake_stack;
  if (next < 0) {
    __sanitizer_start_switch_fiber(&saved, main_stack_, main_stack_bytes_);
  } else {
    __sanitizer_start_switch_fiber(&saved, fibers_[next].stack + kGuardBytes,
                                   kStackBytes - kGuardBytes);
  }
#endif
  const fcontext_t to = context_of(next);
  // The callee stores the context that was left: see finish_switch.
  int from = before;
  const transfer_t back = jump_fcontext(to, &from);
  context_of(*static_cast<int*>(back.data)) = back.fctx;
  finish_switch(before < 0 ? main_fake_stack_ : fibers_[before].fake_stack);
}

void Execution::finish_switch([[maybe_unused]] void* fake_stack) {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(fake_stack, &bottom, &bytes);
  const auto* address = static_cast<const char*>(bottom);
  for (const Fiber& fiber : fibers_)
    if (address == fiber.stack + kGuardBytes) return;
  main_stack_ = bottom;
  main_stack_bytes_ = bytes;
#endif
}

// A fiber is reused from block to block: it runs a thread, then waits to become the next one.
void Execution::entry(transfer_t transfer) {
  Execution& e = instance();
  const int from = *static_cast<int*>(transfer.data);
  (from < 0 ? e.main_context_ : e.fibers_[from].context) = transfer.fctx;
  e.finish_switch(nullptr);
  for (;;) {
    e.launch_->thread_body();
    Fiber& self = e.fibers_[e.current_];
    if (!self.late_groups.empty() || !self.late.empty())
      e.fail("ends before its wgmma are complete");
    self.finished = true;
    --e.live_;
    e.switch_to_next();
  }
}

}  // namespace

void meet_warp(unsigned mask, const char* what, void* record, Combine combine, const Site& site) {
  Execution::instance().meet_warp(mask, what, record, combine, site);
}
void meet_block(const Site& site) {
  Execution::instance().meet_block(site);
}
unsigned char* shared_memory() {
  return Execution::instance().shared();
}
bool is_shared_memory(const void* address, size_t bytes) {
  return Execution::instance().is_shared(address, bytes);
}
void copy_async(void* shared, const void* global, bool valid) {
  Execution::instance().copy_async({shared, global, valid});
}
void copy_async_commit() {
  Execution::instance().copy_async_commit();
}
void copy_async_wait(int pending) {
  Execution::instance().copy_async_wait(pending);
}
void enqueue_wgmma(const void* record, size_t bytes, Combine perform, const Site& site) {
  LateWgmma product{{}, perform};
  std::memcpy(product.record, record, bytes);
  Execution::instance().enqueue_wgmma(product, site);
}
void arrive_for_wgmma() {
  Execution::instance().arrive_for_wgmma();
}
void commit_wgmma() {
  Execution::instance().commit_wgmma();
}
void wait_for_wgmma(int pending, const Site& site) {
  Execution::instance().wait_for_wgmma(pending, site);
}
int lane_of_thread() {
  return Execution::instance().lane();
}
void fail_kernel(std::string what) {
  if (!Execution::instance().running()) throw std::logic_error("outside of a kernel: " + what);
  Execution::instance().fail(std::move(what));
}

std::string run_kernel(const KernelLaunch& launch, Random& random) {
  return Execution::instance().run(launch, random);
}

#if defined(__SANITIZE_ADDRESS__)
// AddressSanitizer calls this before its report.
extern "C" void __asan_on_error() {
  if (Execution::instance().running()) fmt::print(stderr, "in {}\n", Execution::instance().where());
}
#endif

}  // namespace lathe::cuda_on_cpu
