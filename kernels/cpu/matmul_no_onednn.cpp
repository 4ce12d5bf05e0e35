// For a build without oneDNN: version() is empty, so MatmulContext does not call the others.
#include "kernels/cpu/matmul_backends.h"
#include "kernels/device/error.h"

namespace lathe::cpu {

struct OneDnnMatmul::Impl {};

OneDnnMatmul::OneDnnMatmul() = default;
OneDnnMatmul::~OneDnnMatmul() = default;
std::string OneDnnMatmul::version() {
  return {};
}
bool OneDnnMatmul::supports_bf16() {
  return false;
}

template <typename T, typename TOut>
size_t OneDnnMatmul::workspace_bytes(const MatmulArgs<T, TOut>&) {
  throw CheckError("this build has no oneDNN");
}
template <typename T, typename TOut>
void OneDnnMatmul::run(const MatmulArgs<T, TOut>&, void*) {
  throw CheckError("this build has no oneDNN");
}

template size_t OneDnnMatmul::workspace_bytes(const MatmulArgs<float, float>&);
template size_t OneDnnMatmul::workspace_bytes(const MatmulArgs<bf16, bf16>&);
template size_t OneDnnMatmul::workspace_bytes(const MatmulArgs<bf16, float>&);
template void OneDnnMatmul::run(const MatmulArgs<float, float>&, void*);
template void OneDnnMatmul::run(const MatmulArgs<bf16, bf16>&, void*);
template void OneDnnMatmul::run(const MatmulArgs<bf16, float>&, void*);

}  // namespace lathe::cpu
