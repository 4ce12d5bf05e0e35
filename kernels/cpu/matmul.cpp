// Chooses the implementation of each product, checks its arguments, and owns the workspace.
#include "kernels/cpu/matmul.h"

#include <cstdlib>
#include <mutex>
#include <optional>

#include "kernels/cpu/matmul_backends.h"
#include "kernels/device/error.h"
#include "kernels/device/round.h"

namespace lathe::cpu {
namespace {

template <typename T, typename TOut>
void check(const MatmulArgs<T, TOut>& x) {
  LATHE_CHECK(x.m >= 0 && x.n >= 0 && x.k >= 0, "m {} n {} k {}", x.m, x.n, x.k);
  LATHE_CHECK(x.lda >= (x.transpose_a ? x.m : x.k), "lda {} m {} k {}", x.lda, x.m, x.k);
  LATHE_CHECK(x.ldb >= (x.transpose_b ? x.k : x.n), "ldb {} k {} n {}", x.ldb, x.k, x.n);
  LATHE_CHECK(x.ldc >= x.n, "ldc {} n {}", x.ldc, x.n);
  const bool keeps_type = std::is_same_v<T, TOut>, sums = std::is_same_v<TOut, Accumulator<T>>;
  LATHE_CHECK(x.activation == Activation::none ? !x.pre_activation : keeps_type && !x.accumulate);
  LATHE_CHECK(!x.accumulate || sums, "only sums accumulate");
}

// Whether oneDNN 2.6 beats our AMX kernel in bf16, by CPU time on one core of a Xeon with AMX.
// Problems that fit into a core's L2: oneDNN is 1.05 to 1.4 times as fast, but 0.7 times if k is
// odd. A few rows times a matrix that our kernel would have to repack: 1.7 times. Anything larger:
// 0.7 to 1.15 times; ours allocates nothing and gives the same bits for any number of threads.
template <typename T, typename TOut>
bool onednn_is_faster(const MatmulArgs<T, TOut>& x) {
  if (x.m < 16 && !x.transpose_b) return true;
  constexpr int64_t kElementsInL2 = 1000000;
  return x.k % 2 == 0 && x.m * x.k + x.k * x.n + x.m * x.n < kElementsInL2;
}

// oneDNN 2.6 reads an fp32 B in place. If its rows are a multiple of 4 KB apart they fall into the
// same cache sets; plain code, which packs, is then 1.4 to 2.1 times as fast (n = 3072).
template <typename T, typename TOut>
bool onednn_aliases(const MatmulArgs<T, TOut>& x) {
  return std::is_same_v<T, float> && !x.transpose_b && x.m >= 64 && x.k >= 64 && x.ldb % 1024 == 0;
}

// The context's own memory, which grows.
struct Scratch {
  void* memory = nullptr;
  size_t bytes = 0;

  Scratch() = default;
  ~Scratch() { std::free(memory); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void reserve(size_t wanted) {
    if (wanted <= bytes) return;
    std::free(memory);
    bytes = round_up(wanted, kWorkspaceAlignment);
    memory = std::aligned_alloc(kWorkspaceAlignment, bytes);
    if (!memory) bytes = 0;
    LATHE_CHECK(memory, "no memory for a matmul workspace of {} bytes", wanted);
  }
};

}  // namespace

struct MatmulContext::Impl {
  MatmulBackend forced = MatmulBackend::automatic;
  bool has_onednn = false, onednn_bf16 = false, has_amx = false;
  std::optional<OneDnnMatmul> onednn;
  std::mutex mutex;
  Scratch owned;
  void* lent = nullptr;
  size_t lent_bytes = 0;

  void* workspace(size_t bytes) {
    if (lent) {
      LATHE_CHECK(bytes <= lent_bytes, "matmul wants {} bytes of {}", bytes, lent_bytes);
      return lent;
    }
    owned.reserve(bytes);
    return owned.memory;
  }

  template <typename T, typename TOut>
  MatmulBackend choose(const MatmulArgs<T, TOut>& args) const;
  template <typename T, typename TOut>
  size_t bytes_for(const MatmulArgs<T, TOut>& args);
  template <typename T, typename TOut>
  void run(const MatmulArgs<T, TOut>& args);
};

template <typename T, typename TOut>
MatmulBackend MatmulContext::Impl::choose(const MatmulArgs<T, TOut>& args) const {
  if constexpr (std::is_same_v<T, double>) return MatmulBackend::plain;
  if (args.m == 0 || args.n == 0 || args.k == 0) return MatmulBackend::plain;
  const bool may_onednn = has_onednn && (!std::is_same_v<T, bf16> || onednn_bf16);
  const bool may_amx = has_amx && std::is_same_v<T, bf16>;
  switch (forced) {
    case MatmulBackend::plain:
      return MatmulBackend::plain;
    case MatmulBackend::onednn:
      return may_onednn ? MatmulBackend::onednn : MatmulBackend::plain;
    case MatmulBackend::amx:
      return may_amx ? MatmulBackend::amx : MatmulBackend::plain;
    case MatmulBackend::automatic:
      break;
  }
  if (may_amx && !(may_onednn && onednn_is_faster(args))) return MatmulBackend::amx;
  return may_onednn && !onednn_aliases(args) ? MatmulBackend::onednn : MatmulBackend::plain;
}

template <typename T, typename TOut>
size_t MatmulContext::Impl::bytes_for(const MatmulArgs<T, TOut>& args) {
  if (args.m == 0 || args.n == 0) return 0;
  if constexpr (!std::is_same_v<T, double>)
    if (choose(args) == MatmulBackend::onednn) return onednn->workspace_bytes(args);
  if constexpr (std::is_same_v<T, bf16>)
    if (choose(args) == MatmulBackend::amx) return amx_workspace_bytes(args);
  return plain_workspace_bytes(args);
}

template <typename T, typename TOut>
void MatmulContext::Impl::run(const MatmulArgs<T, TOut>& args) {
  void* memory = workspace(bytes_for(args));
  if constexpr (!std::is_same_v<T, double>)
    if (choose(args) == MatmulBackend::onednn) return onednn->run(args, memory);
  if constexpr (std::is_same_v<T, bf16>)
    if (choose(args) == MatmulBackend::amx) return amx_matmul(args, memory);
  plain_matmul(args, memory);
}

MatmulContext::MatmulContext(MatmulBackend backend) : impl_(std::make_unique<Impl>()) {
  LATHE_CHECK(matmul_backend_available(backend),
              "this machine or build lacks the requested matmul");
  impl_->forced = backend;
  impl_->has_onednn = matmul_backend_available(MatmulBackend::onednn);
  impl_->onednn_bf16 = impl_->has_onednn && OneDnnMatmul::supports_bf16();
  impl_->has_amx = amx_available();
  if (impl_->has_onednn) impl_->onednn.emplace();
}

MatmulContext::~MatmulContext() = default;

template <typename T, typename TOut>
void MatmulContext::run(const MatmulArgs<T, TOut>& args) {
  check(args);
  if (args.m == 0 || args.n == 0) return;
  const std::lock_guard lock(impl_->mutex);
  impl_->run(args);
}

template <typename T, typename TOut>
size_t MatmulContext::workspace_bytes(const MatmulArgs<T, TOut>& args) {
  check(args);
  const std::lock_guard lock(impl_->mutex);
  return impl_->bytes_for(args);
}

template <typename T, typename TOut>
MatmulBackend MatmulContext::backend_for(const MatmulArgs<T, TOut>& args) const {
  return impl_->choose(args);
}

void MatmulContext::lend_workspace(void* memory, size_t bytes) {
  const std::lock_guard lock(impl_->mutex);
  impl_->lent = memory;
  impl_->lent_bytes = bytes;
}

size_t MatmulContext::owned_workspace_bytes() const {
  return impl_->owned.bytes;
}

bool matmul_backend_available(MatmulBackend backend) {
  if (backend == MatmulBackend::onednn) return !OneDnnMatmul::version().empty();
  if (backend == MatmulBackend::amx) return amx_available();
  return true;
}

std::string matmul_backend_name() {
  const std::string version = OneDnnMatmul::version();
  std::string name = version.empty() ? "plain code (no oneDNN)" : "oneDNN " + version;
  if (amx_available())
    name += ", lathe's AMX kernel for bf16";
  else if (!version.empty() && !OneDnnMatmul::supports_bf16())
    name += ", plain code for bf16";
  return name;
}

template void MatmulContext::run(const MatmulArgs<float, float>&);
template size_t MatmulContext::workspace_bytes(const MatmulArgs<float, float>&);
template MatmulBackend MatmulContext::backend_for(const MatmulArgs<float, float>&) const;
template void MatmulContext::run(const MatmulArgs<bf16, bf16>&);
template size_t MatmulContext::workspace_bytes(const MatmulArgs<bf16, bf16>&);
template MatmulBackend MatmulContext::backend_for(const MatmulArgs<bf16, bf16>&) const;
template void MatmulContext::run(const MatmulArgs<bf16, float>&);
template size_t MatmulContext::workspace_bytes(const MatmulArgs<bf16, float>&);
template MatmulBackend MatmulContext::backend_for(const MatmulArgs<bf16, float>&) const;
template void MatmulContext::run(const MatmulArgs<double, double>&);
template size_t MatmulContext::workspace_bytes(const MatmulArgs<double, double>&);
template MatmulBackend MatmulContext::backend_for(const MatmulArgs<double, double>&) const;

}  // namespace lathe::cpu
