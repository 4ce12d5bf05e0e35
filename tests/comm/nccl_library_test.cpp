// How NCCL is found, and the message if it is not. Needs no GPU.
#include "src/comm/nccl_library.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "kernels/device/error.h"

namespace lathe::testing {
namespace {

class NcclLibrary : public ::testing::Test {
 protected:
  ~NcclLibrary() override { unsetenv("LATHE_NCCL"); }

  // The message if LATHE_NCCL has this value.
  static std::string complaint(const char* value) {
    setenv("LATHE_NCCL", value, 1);
    try {
      load_nccl();
    } catch (const UserError& error) {
      return error.what();
    }
    return {};
  }
};

TEST_F(NcclLibrary, NamesAFileThatIsNotThere) {
  const std::string said = complaint("/nowhere/libnccl.so");
  EXPECT_NE(said.find("LATHE_NCCL"), std::string::npos) << said;
  EXPECT_NE(said.find("/nowhere/libnccl.so"), std::string::npos) << said;
}

TEST_F(NcclLibrary, RefusesAnotherLibrary) {
  const std::string said = complaint("libm.so.6");
  EXPECT_NE(said.find("ncclGetVersion"), std::string::npos) << said;
}

TEST_F(NcclLibrary, LoadsEveryFunctionWhereItIsInstalled) {
  Nccl nccl;
  try {
    nccl = load_nccl();
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what()).find("LATHE_NCCL"), std::string::npos) << error.what();
    GTEST_SKIP() << error.what();
  }
  int version = 0;
  EXPECT_EQ(nccl.get_version(&version), ncclSuccess);
  EXPECT_EQ(version / 10000, NCCL_MAJOR);
}

}  // namespace
}  // namespace lathe::testing
