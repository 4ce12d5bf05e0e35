// The search for cuBLASLt, and the messages if it is not found. Needs no GPU.
#include "kernels/cuda/cublaslt_library.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "kernels/device/error.h"

namespace lathe::testing {
namespace {

class CublasLtLibrary : public ::testing::Test {
 protected:
  ~CublasLtLibrary() override { unsetenv("LATHE_CUBLASLT"); }

  // The message if LATHE_CUBLASLT has this value.
  static std::string complaint(const char* value) {
    setenv("LATHE_CUBLASLT", value, 1);
    try {
      cuda::load_cublaslt();
    } catch (const UserError& error) {
      return error.what();
    }
    return {};
  }
};

TEST_F(CublasLtLibrary, NamesAFileThatIsNotThere) {
  const std::string said = complaint("/nowhere/libcublasLt.so");
  EXPECT_NE(said.find("LATHE_CUBLASLT"), std::string::npos) << said;
  EXPECT_NE(said.find("/nowhere/libcublasLt.so"), std::string::npos) << said;
}

TEST_F(CublasLtLibrary, RefusesAnotherLibrary) {
  const std::string said = complaint("libm.so.6");
  EXPECT_NE(said.find("cublasLtCreate"), std::string::npos) << said;
}

TEST_F(CublasLtLibrary, LoadsEveryFunctionWhereItIsInstalled) {
  cuda::CublasLt lt;
  try {
    lt = cuda::load_cublaslt();
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what()).find("LATHE_CUBLASLT"), std::string::npos) << error.what();
    GTEST_SKIP() << error.what();
  }
  EXPECT_EQ(lt.get_version() / 10000, static_cast<size_t>(CUBLAS_VER_MAJOR));
}

}  // namespace
}  // namespace lathe::testing
