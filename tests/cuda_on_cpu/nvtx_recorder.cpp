// A profiler that replaces Nsight: NVTX loads it if NVTX_INJECTION64_PATH names it. It adds a line
// per range to the file of LATHE_CUDA_PROFILE, to which the stand-in for the CUDA runtime writes
// cudaProfilerStart and Stop (runtime.h): "push NAME" or "push NAME | FLOPs bytes", and
// "pop".
#include <nvtx3/nvToolsExt.h>
#include <nvtx3/nvToolsExtPayload.h>

#include <cstdlib>
#include <fstream>

namespace {

std::ofstream log() {
  return std::ofstream(std::getenv("LATHE_CUDA_PROFILE"), std::ios::app);
}

int push(nvtxDomainHandle_t, const nvtxEventAttributes_t* range) {
  std::ofstream out = log();
  out.precision(17);
  out << "push " << range->message.ascii;
  if (range->payloadType == NVTX_PAYLOAD_TYPE_EXT && range->reserved0 == 1) {
    const auto* payload = reinterpret_cast<const nvtxPayloadData_t*>(range->payload.ullValue);
    const auto* cost = static_cast<const double*>(payload->payload);
    if (payload->size == 2 * sizeof(double)) out << " | " << cost[0] << " " << cost[1];
  }
  out << "\n";
  return 0;
}

int pop(nvtxDomainHandle_t) {
  log() << "pop\n";
  return 0;
}

}  // namespace

extern "C" int InitializeInjectionNvtx2(NvtxGetExportTableFunc_t export_table) {
  const auto* callbacks =
      static_cast<const NvtxExportTableCallbacks*>(export_table(NVTX_ETID_CALLBACKS));
  NvtxFunctionTable table = nullptr;
  unsigned size = 0;
  if (!callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE2, &table, &size)) return 0;
  *table[NVTX_CBID_CORE2_DomainRangePushEx] = reinterpret_cast<NvtxFunctionPointer>(push);
  *table[NVTX_CBID_CORE2_DomainRangePop] = reinterpret_cast<NvtxFunctionPointer>(pop);
  return 1;
}
