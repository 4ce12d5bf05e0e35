// The message on a machine that cannot run on its GPU: one sentence, exit code 2.
#include "tests/train/harness.h"

namespace lathe::testing {
namespace {

class CudaFaults : public TrainTest {
 protected:
  static ProcessResult train(const std::string& device, const std::string& environment,
                             const std::filesystem::path& out) {
    return run(train_command(with(tiny(out), {{"device", device}})),
               {.environment = {environment}});
  }
};

TEST_F(CudaFaults, EachHasItsSentence) {
  struct Fault {
    const char* environment;
    std::vector<std::string> parts;
  };
  for (const auto& [environment, parts] : std::vector<Fault>{
           {"LATHE_CUDA_FAULT=no-driver", {"no NVIDIA driver", "--device cpu"}},
           {"LATHE_CUDA_FAULT=old-driver", {"driver supports CUDA 11.4", "update the driver"}},
           {"LATHE_CUDA_FAULT=no-device", {"no usable GPU", "--device cpu"}},
           {"LATHE_CUDA_FAULT=old-architecture", {"compute capability 7.0", "8.0 or newer"}},
           {"LATHE_CUDA_MEMORY=100000", {"of GPU memory are needed", "--batch-size"}}}) {
    SCOPED_TRACE(environment);
    expect_refusal(train("cuda", environment, scratch / "out"), 2, "train", parts);
    EXPECT_FALSE(std::filesystem::exists(scratch / "out"));
  }
}

TEST_F(CudaFaults, AutoTakesTheCpuWhereNoGpuAnswers) {
  for (const char* fault : {"no-driver", "old-driver", "no-device"}) {
    const ProcessResult result =
        train("auto", std::string("LATHE_CUDA_FAULT=") + fault, scratch / fault);
    expect_success(result);
    EXPECT_EQ(result.out.find("CUDA"), std::string::npos) << result.out;
  }
}

}  // namespace
}  // namespace lathe::testing
