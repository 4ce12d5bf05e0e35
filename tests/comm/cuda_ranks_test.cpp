// How programs of several ranks with GPUs end.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/comm/run_ranks_driver.h"

namespace lathe::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class CudaRanks : public ::testing::TestWithParam<const char*> {
 protected:
  static ProcessResult ranks_that(const std::string& deed, int ranks,
                                  const std::vector<std::string>& environment = {}) {
    return run_ranks_driver(ranks, {deed, "cuda", GetParam()}, environment);
  }
};

TEST_P(CudaRanks, EndWellTogether) {
  const ProcessResult result = ranks_that("agree", 3);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(times(result.out, "sum 6\n"), 1) << result.out;
}

TEST_P(CudaRanks, AnErrorWithCollectivesUnderWayEndsAll) {
  const ProcessResult result = ranks_that("throw-on-1-under-way", 3);
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, HasSubstr("rank 1: this rank alone"));
}

TEST_P(CudaRanks, AHangOutsideOfCollectivesIsNamed) {
  const ProcessResult result = ranks_that("hang-on-1", 3);
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, AllOf(HasSubstr("s in collective 3"), HasSubstr("'the third'"),
                                HasSubstr("rank 1"), HasSubstr("'the second'")));
}

TEST_P(CudaRanks, AStoppedRankIsNamed) {
  const ProcessResult result = ranks_that("stop-on-1", 2);
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, AllOf(HasSubstr("s in collective 3"), HasSubstr("rank 1")));
}

TEST_P(CudaRanks, AKilledRankEndsAll) {
  EXPECT_NE(ranks_that("kill-1", 3).exit_code, 0);
}

TEST_P(CudaRanks, DifferentCallsAreTold) {
  const ProcessResult result = ranks_that("other-count-on-1", 2);
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, AllOf(HasSubstr("of 5 f"), HasSubstr("of 6 f")));
}

TEST_P(CudaRanks, APartThatFailsIsNamed) {
  for (const char* deed : {"part-disagrees", "part-hangs"}) {
    // NCCL does not notice that ranks disagree.
    if (deed == std::string("part-disagrees") && GetParam() == std::string("nccl")) continue;
    const ProcessResult result = ranks_that(deed, 4);
    EXPECT_EQ(result.exit_code, 1);
    EXPECT_THAT(result.err, AllOf(HasSubstr("of tp (ranks 1 and 3)"), HasSubstr("'the second'"),
                                  HasSubstr("rank 3")));
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, CudaRanks, ::testing::Values("nccl", "mpi"),
                         [](const auto& info) { return std::string(info.param); });

TEST(CudaRanksChoice, NcclWhereItIs) {
  EXPECT_EQ(run_ranks_driver(2, {"kind", "cuda"}).out, "nccl\n");
  EXPECT_EQ(run_ranks_driver(2, {"kind", "cuda", "mpi"}).out, "mpi\n");
  EXPECT_EQ(run_ranks_driver(0, {"kind", "cuda", "nccl"}).out, "nccl\n");
  EXPECT_EQ(run_ranks_driver(0, {"kind", "cuda"}).out, "self\n");
}

// NCCL waits without limit if its ranks do not find each other.
TEST(CudaRanksChoice, AHangWhileNcclStartsIsNamed) {
  const ProcessResult result =
      run_ranks_driver(3, {"agree", "cuda", "nccl"}, {"LATHE_NCCL_INIT_HANGS=1"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, AllOf(HasSubstr("ncclCommInitRank"), HasSubstr("nothing has moved")));
}

TEST(CudaRanksChoice, NcclIsNotForCpus) {
  const ProcessResult result = run_ranks_driver(2, {"kind", "cpu", "nccl"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, HasSubstr("--comm nccl: NCCL is for GPUs"));
}

}  // namespace
}  // namespace lathe::testing
