#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/operations.h"

namespace lathe::cuda {

namespace {

template <typename T>
class CudaOps final : public ImplementsOps<CudaOps<T>> {
 public:
  explicit CudaOps(const Context& context) : context_(context) {}

  DType dtype() const override { return kernel_dtype<T>; }

  template <typename Args>
  void call(const Args& args, const Tensor& workspace) const {
    cuda::run<T>(args, context_, workspace);
  }
  template <typename Args>
  size_t bytes(const Args& args) const {
    return cuda::workspace_bytes<T>(args, context_);
  }

 private:
  const Context& context_;
};

}  // namespace

std::unique_ptr<Ops> make_cuda_ops(DType dtype, const Context& context) {
  switch (dtype) {
    case DType::fp32:
      return std::make_unique<CudaOps<float>>(context);
    case DType::bf16:
      return std::make_unique<CudaOps<__nv_bfloat16>>(context);
    default:
      LATHE_CHECK(false, "no GPU operations for {}", name_of(dtype));
  }
  return nullptr;
}

}  // namespace lathe::cuda
