#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/operations.h"

namespace lathe::cpu {

namespace {

template <typename T>
class CpuOps final : public ImplementsOps<CpuOps<T>> {
 public:
  explicit CpuOps(MatmulContext& matmul) : matmul_(matmul) {}

  DType dtype() const override { return dtype_of<T>; }

  template <typename Args>
  void call(const Args& args, const Tensor& workspace) const {
    cpu::run<T>(args, matmul_, workspace);
  }
  template <typename Args>
  size_t bytes(const Args& args) const {
    return cpu::workspace_bytes<T>(args, matmul_);
  }

 private:
  MatmulContext& matmul_;
};

}  // namespace

std::unique_ptr<Ops> make_cpu_ops(DType dtype, MatmulContext& matmul) {
  switch (dtype) {
    case DType::fp32:
      return std::make_unique<CpuOps<float>>(matmul);
    case DType::bf16:
      return std::make_unique<CpuOps<bf16>>(matmul);
    case DType::fp64:
      return std::make_unique<CpuOps<double>>(matmul);
    default:
      LATHE_CHECK(false, "no operations for {}", name_of(dtype));
  }
  return nullptr;
}

}  // namespace lathe::cpu
