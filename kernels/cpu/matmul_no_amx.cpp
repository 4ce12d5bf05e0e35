// For other architectures: there is no AMX, so MatmulContext does not call the other functions.
#include "kernels/cpu/matmul_backends.h"
#include "kernels/device/error.h"

namespace lathe::cpu {

bool amx_available() {
  return false;
}

template <typename TOut>
size_t amx_workspace_bytes(const MatmulArgs<bf16, TOut>&) {
  throw CheckError("this build has no AMX kernel");
}
template <typename TOut>
void amx_matmul(const MatmulArgs<bf16, TOut>&, void*) {
  throw CheckError("this build has no AMX kernel");
}

template size_t amx_workspace_bytes(const MatmulArgs<bf16, bf16>&);
template size_t amx_workspace_bytes(const MatmulArgs<bf16, float>&);
template void amx_matmul(const MatmulArgs<bf16, bf16>&, void*);
template void amx_matmul(const MatmulArgs<bf16, float>&, void*);

}  // namespace lathe::cpu
