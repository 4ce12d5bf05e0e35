// A data directory of a few kilobytes, a model whose run takes a moment, and what a run left
// behind.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "tests/data/temp_dir.h"
#include "tests/train/process.h"

namespace lathe::testing {

// Flag without its dashes -> value; a flag that takes none has "".
using Flags = std::map<std::string, std::string>;
using Command = std::vector<std::string>;

Command command_of(const std::string& program, const Flags& flags);
Command train_command(const Flags& flags);
Command sample_command(const Flags& flags);
// The training program as so many ranks under mpirun (one: without it), with what it needs of an
// environment: as root, more ranks than cores, any rank on any core.
Command ranks_command(int ranks, const Flags& flags);
extern const ProcessOptions kRanks;

// `text` as the only document of a new data directory of characters.
void prepare_text(const std::filesystem::path& scratch, const std::string& text,
                  const std::filesystem::path& data);

// One line of metrics.jsonl without what differs from run to run: times and rates.
std::vector<std::string> repeatable_metrics(const std::filesystem::path& out);
// The steps of the lines with a loss, and of those with a val_loss.
std::vector<int64_t> loss_steps(const std::filesystem::path& out);
std::vector<int64_t> validation_steps(const std::filesystem::path& out);

// The losses of the steps, in order.
std::vector<double> losses(const std::filesystem::path& out);

std::string last_checkpoint(const std::filesystem::path& out);  // "step-00000012"; "" without one
std::vector<std::string> checkpoints(const std::filesystem::path& out);

// Both runs end in the same weights, moments and metrics, bit for bit.
void expect_same_run(const std::filesystem::path& a, const std::filesystem::path& b);

// Sets elements [first, first + values.size()) of an F32 tensor in the bytes of a safetensors file.
void poke(std::string& file, const std::string& tensor, size_t first,
          const std::vector<float>& values);

// Exit code 0, and what the program said where it is another.
void expect_success(const ProcessResult& result);
// One sentence on stderr, after the program's name, with all of `parts` in it.
void expect_refusal(const ProcessResult& result, int exit_code, const std::string& program,
                    const std::vector<std::string>& parts);

// Data of a few kilobytes of stories, made once, and a scratch directory for each test.
class TrainTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite();
  static void TearDownTestSuite();

  // A model of some thousand parameters: 12 steps of 2 x 8 tokens with an evaluation now and then.
  static Flags tiny(const std::filesystem::path& out);
  static Flags with(Flags flags, const Flags& more);
  static const std::filesystem::path& data();

  TempDir scratch;
};

}  // namespace lathe::testing
