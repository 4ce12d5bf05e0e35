// Which rank a process is, from the environment that launchers set; and how programs of several
// ranks end.
#include "src/comm/world.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "kernels/device/error.h"
#include "tests/comm/run_ranks_driver.h"

namespace lathe::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

using Variables = std::map<std::string, std::string>;

Place place_of(const Variables& variables) {
  return find_place([&](const char* name) {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

struct Case {
  std::string what;
  Variables variables;
  std::string launcher;
  int rank, size, local_rank, local_size;
};

TEST(FindPlace, ReadsWhatLaunchersSay) {
  const Case cases[] = {
      {"nobody", {}, "", 0, 1, 0, 1},
      {"mpirun of Open MPI",
       {{"OMPI_COMM_WORLD_RANK", "5"},
        {"OMPI_COMM_WORLD_SIZE", "8"},
        {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
        {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"},
        {"PMIX_RANK", "5"}},
       "Open MPI",
       5,
       8,
       1,
       4},
      {"mpirun within a Slurm job",
       {{"OMPI_COMM_WORLD_RANK", "1"},
        {"OMPI_COMM_WORLD_SIZE", "2"},
        {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
        {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
        {"SLURM_PROCID", "0"},
        {"SLURM_STEP_NUM_TASKS", "1"}},
       "Open MPI",
       1,
       2,
       1,
       2},
      {"PALS, with the PMI that comes with it",
       {{"PALS_RANKID", "7"},
        {"PALS_LOCAL_RANKID", "3"},
        {"PMI_RANK", "7"},
        {"PMI_SIZE", "12"},
        {"PMI_LOCAL_SIZE", "4"}},
       "PALS",
       7,
       12,
       3,
       4},
      {"PALS alone", {{"PALS_RANKID", "7"}, {"PALS_LOCAL_RANKID", "3"}}, "PALS", 7, 0, 3, 0},
      {"Hydra",
       {{"PMI_RANK", "2"}, {"PMI_SIZE", "3"}, {"MPI_LOCALRANKID", "2"}, {"MPI_LOCALNRANKS", "3"}},
       "PMI",
       2,
       3,
       2,
       3},
      {"srun",
       {{"SLURM_PROCID", "9"},
        {"SLURM_NTASKS", "11"},
        {"SLURM_STEP_NUM_TASKS", "11"},
        {"SLURM_LOCALID", "1"},
        {"SLURM_NODEID", "2"},
        {"SLURM_STEP_TASKS_PER_NODE", "4(x2),3"}},
       "Slurm",
       9,
       11,
       1,
       3},
      {"srun on the first host",
       {{"SLURM_PROCID", "3"},
        {"SLURM_STEP_NUM_TASKS", "11"},
        {"SLURM_LOCALID", "3"},
        {"SLURM_NODEID", "0"},
        {"SLURM_STEP_TASKS_PER_NODE", "4(x2),3"}},
       "Slurm",
       3,
       11,
       3,
       4},
      {"a Slurm batch script, which is nobody's rank",
       {{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "8"}, {"SLURM_LOCALID", "0"}},
       "",
       0,
       1,
       0,
       1},
      {"PMIx alone", {{"PMIX_RANK", "4"}}, "PMIx", 4, 0, 0, 0},
      {"plain variables",
       {{"RANK", "1"}, {"WORLD_SIZE", "4"}, {"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "2"}},
       "environment",
       1,
       4,
       1,
       2},
      {"one rank by plain variables",
       {{"RANK", "0"}, {"WORLD_SIZE", "1"}},
       "environment",
       0,
       1,
       0,
       1},
      {"a RANK of something else", {{"RANK", "3"}}, "", 0, 1, 0, 1},
      {"an empty variable", {{"RANK", ""}, {"WORLD_SIZE", ""}}, "", 0, 1, 0, 1},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.what);
    const Place place = place_of(c.variables);
    EXPECT_EQ(place.launcher, c.launcher);
    EXPECT_EQ(place.rank, c.rank);
    EXPECT_EQ(place.size, c.size);
    EXPECT_EQ(place.local_rank, c.local_rank);
    EXPECT_EQ(place.local_size, c.local_size);
    EXPECT_EQ(place.scheduler, "");
  }
}

TEST(FindPlace, KnowsTheScheduler) {
  const Place slurm = place_of({{"SLURM_JOB_ID", "123"}, {"SLURM_HOSTFILE", "/tmp/hosts"}});
  EXPECT_EQ(slurm.scheduler, "Slurm");
  EXPECT_EQ(slurm.job, "123");
  EXPECT_EQ(slurm.host_file, "/tmp/hosts");
  const Place pbs = place_of({{"PBS_JOBID", "77.host"}, {"PBS_NODEFILE", "/var/spool/77"}});
  EXPECT_EQ(pbs.scheduler, "PBS");
  EXPECT_EQ(pbs.job, "77.host");
  EXPECT_EQ(pbs.host_file, "/var/spool/77");
}

TEST(FindPlace, RefusesContradictions) {
  const Variables cases[] = {
      {{"RANK", "4"}, {"WORLD_SIZE", "4"}},
      {{"RANK", "one"}, {"WORLD_SIZE", "4"}},
      {{"RANK", "-1"}, {"WORLD_SIZE", "4"}},
      {{"RANK", "0"}, {"WORLD_SIZE", "0"}},
      {{"WORLD_SIZE", "4"}},
      {{"RANK", "1"}, {"WORLD_SIZE", "4"}, {"LOCAL_RANK", "2"}, {"LOCAL_WORLD_SIZE", "2"}},
      {{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "3"}},
      {{"OMPI_COMM_WORLD_RANK", "3"}, {"OMPI_COMM_WORLD_SIZE", "2"}},
  };
  for (const Variables& variables : cases) EXPECT_THROW(place_of(variables), UserError);
}

// ---- Programs of several ranks (ranks_driver.cpp).

TEST(Ranks, EndWellTogether) {
  const ProcessResult result = run_ranks_driver(3, {"agree"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(times(result.out, "sum 6\n"), 1) << result.out;
}

TEST(Ranks, OneAloneEndsAsAnyProgram) {
  EXPECT_EQ(run_ranks_driver(0, {"agree"}).exit_code, 0);
  EXPECT_EQ(run_ranks_driver(0, {"all-mistaken"}).err,
            "ranks_driver: --colour: there is no 'blue'\n");
  EXPECT_EQ(run_ranks_driver(0, {"all-mistaken"}).exit_code, 2);
  EXPECT_EQ(run_ranks_driver(0, {"return-7"}).exit_code, 7);
}

TEST(Ranks, AMistakeOfAllIsToldOnce) {
  const ProcessResult result = run_ranks_driver(4, {"all-mistaken"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_EQ(times(result.err, "--colour"), 1) << result.err;
}

TEST(Ranks, AnErrorOnOneEndsAll) {
  const ProcessResult result = run_ranks_driver(3, {"throw-on-2"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("ranks_driver: rank 2: the third is broken"));
  EXPECT_EQ(times(result.err, "ranks_driver:"), 1) << result.err;
}

TEST(Ranks, AnErrorWithCollectivesUnderWayEndsAll) {
  const ProcessResult result = run_ranks_driver(3, {"throw-on-1-under-way"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, HasSubstr("rank 1: this rank alone"));
}

TEST(Ranks, AnExitCodeOfOneEndsAll) {
  EXPECT_EQ(run_ranks_driver(2, {"return-7-on-1"}).exit_code, 7);
}

TEST(Ranks, AHangOutsideOfCollectivesIsNamed) {
  const ProcessResult result = run_ranks_driver(3, {"hang-on-1"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, AllOf(HasSubstr("waited 1 s in collective 3"), HasSubstr("'the third'"),
                                HasSubstr("nothing came from rank 1"),
                                HasSubstr("its last was collective 2"), HasSubstr("'the second'")));
  EXPECT_THAT(result.err,
              AllOf(HasSubstr("ranks_driver: rank 1: has called nothing since collective "
                              "2, all_reduce of 5 fp32 (sum) 'the second'"),
                    HasSubstr("has been waiting for it for 1 s")));
  EXPECT_THAT(result.err, Not(HasSubstr("from rank 0")));
  EXPECT_THAT(result.err, Not(HasSubstr("from rank 2")));
}

TEST(Ranks, AHangBeforeTheCommunicatorIsNamed) {
  const ProcessResult result = run_ranks_driver(3, {"hang-early-on-1"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, AllOf(HasSubstr("'start of the communication'"),
                                HasSubstr("nothing came from rank 1")));
}

TEST(Ranks, AStoppedRankIsNamed) {
  const ProcessResult result = run_ranks_driver(2, {"stop-on-1"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("nothing came from rank 1"));
  EXPECT_THAT(result.err, Not(HasSubstr("rank 1: has called nothing")));  // it cannot
}

TEST(Ranks, AKilledRankEndsAll) {
  EXPECT_NE(run_ranks_driver(3, {"kill-1"}).exit_code, 0);
}

TEST(Ranks, DifferentCallsAreTold) {
  const ProcessResult kinds = run_ranks_driver(3, {"other-kind-on-1"});
  EXPECT_EQ(kinds.exit_code, 1);
  EXPECT_THAT(kinds.err, AllOf(HasSubstr("rank 0 calls all_reduce of 5 fp32 (sum) 'mine'"),
                               HasSubstr("rank 1 calls all_gather of 5 fp32 'theirs'")));
  const ProcessResult counts = run_ranks_driver(2, {"other-count-on-1"});
  EXPECT_EQ(counts.exit_code, 1);
  EXPECT_THAT(counts.err, AllOf(HasSubstr("rank 0 calls broadcast of 5 fp32 with root 0"),
                                HasSubstr("rank 1 calls broadcast of 6 fp32 with root 0")));
  const ProcessResult pair = run_ranks_driver(2, {"other-message-on-1"});
  EXPECT_EQ(pair.exit_code, 1);
  EXPECT_THAT(pair.err, AllOf(HasSubstr("rank 0 calls send of 5 fp32 to 1"),
                              HasSubstr("rank 1 calls receive of 4 fp32 from 0")));
}

TEST(Ranks, APartThatFailsIsNamed) {
  const ProcessResult other = run_ranks_driver(4, {"part-disagrees"});
  EXPECT_EQ(other.exit_code, 1);
  EXPECT_THAT(other.err,
              HasSubstr("ranks disagree in collective 2 of tp (ranks 1 and 3): rank 1 calls "
                        "all_reduce of 5 fp32 (sum) 'the second', rank 3 calls all_reduce of 6"));
  const ProcessResult hang = run_ranks_driver(4, {"part-hangs"});
  EXPECT_EQ(hang.exit_code, 1);
  EXPECT_THAT(hang.err, AllOf(HasSubstr("s in collective 2, all_reduce of 5 fp32 (sum) 'the "
                                        "second' of tp (ranks 1 and 3): nothing came from rank 3"),
                              HasSubstr("its last was collective 1")));
}

TEST(Ranks, AnMpiThatDoesNotKnowTheLauncherIsRefused) {
  const ProcessResult result =
      run_ranks_driver(0, {"agree"}, {"PMI_RANK=0", "PMI_SIZE=3", "PMI_LOCAL_RANK=0"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, HasSubstr("PMI started 3 processes, but the MPI of this build sees 1"));
}

TEST(Ranks, WithoutMpiThereIsNobodyToTalkTo) {
  const ProcessResult result = run_ranks_driver(0, {"agree"}, {"RANK=0", "WORLD_SIZE=3"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, HasSubstr("start them with mpirun"));
}

}  // namespace
}  // namespace lathe::testing
