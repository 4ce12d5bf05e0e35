// A data directory of a few kilobytes, a model that trains in a moment, and functions that read the
// results of a run.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "tests/data/temp_dir.h"
#include "tests/train/process.h"

namespace lathe::testing {

// Flag without dashes -> value. A flag without a value has "".
using Flags = std::map<std::string, std::string>;
using Command = std::vector<std::string>;

// The total of the memory plan that a run printed; -1: none.
double planned_bytes(const std::string& output);

Command command_of(const std::string& program, const Flags& flags);
Command train_command(const Flags& flags);
Command sample_command(const Flags& flags);
// The command that trains with `ranks` ranks under mpirun (one rank: without it). Its environment
// lets mpirun run as root, with more ranks than cores and any rank on any core.
Command ranks_command(int ranks, const Flags& flags);
extern const ProcessOptions kRanks;

// Makes a data directory of characters with `text` as its only document.
void prepare_text(const std::filesystem::path& scratch, const std::string& text,
                  const std::filesystem::path& data);

// The lines of metrics.jsonl without times and rates, which differ from run to run.
std::vector<std::string> repeatable_metrics(const std::filesystem::path& out);
// The steps of the lines with a loss, and of the lines with a val_loss.
std::vector<int64_t> loss_steps(const std::filesystem::path& out);
std::vector<int64_t> validation_steps(const std::filesystem::path& out);

// The losses of the steps, in order.
std::vector<double> losses(const std::filesystem::path& out);

std::string last_checkpoint(const std::filesystem::path& out);  // "step-00000012"; "" without one
std::vector<std::string> checkpoints(const std::filesystem::path& out);

// Expects that both runs end with the same weights, moments and metrics, bit for bit.
void expect_same_run(const std::filesystem::path& a, const std::filesystem::path& b);

// Sets elements [first, first + values.size()) of an F32 tensor in the bytes of a safetensors file.
void poke(std::string& file, const std::string& tensor, size_t first,
          const std::vector<float>& values);

// Expects exit code 0; otherwise shows the program's output.
void expect_success(const ProcessResult& result);
// Expects one sentence on stderr, after the program's name, that contains all `parts`.
void expect_refusal(const ProcessResult& result, int exit_code, const std::string& program,
                    const std::vector<std::string>& parts);

// Provides data of a few kilobytes of stories, made once, and a scratch directory for each test.
class TrainTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite();
  static void TearDownTestSuite();

  // A model of a few thousand parameters: 12 steps of 2 x 8 tokens with some evaluations.
  static Flags tiny(const std::filesystem::path& out);
  static Flags with(Flags flags, const Flags& more);
  static const std::filesystem::path& data();

  TempDir scratch;
};

}  // namespace lathe::testing
