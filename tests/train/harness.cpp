#include "tests/train/harness.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <sstream>

#include "src/io/json.h"
#include "tests/located.h"

namespace lathe::testing {

namespace fs = std::filesystem;

Command command_of(const std::string& program, const Flags& flags) {
  Command command{program};
  for (const auto& [name, value] : flags) {
    command.push_back("--" + name);
    if (!value.empty()) command.push_back(value);
  }
  return command;
}

Command train_command(const Flags& flags) {
  return command_of(located("LATHE_TRAIN", LATHE_TRAIN), flags);
}

// "total  123 bytes"
double planned_bytes(const std::string& output) {
  std::istringstream lines(output);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string word;
    double bytes = 0;
    if (words >> word && word == "total" && words >> bytes) return bytes;
  }
  return -1;
}

Command ranks_command(int ranks, const Flags& flags) {
  Command command = train_command(flags);
  if (ranks > 1) {
    command.insert(command.begin(), {LATHE_MPIEXEC, "-n", std::to_string(ranks)});
  }
  return command;
}

const ProcessOptions kRanks{
    .environment = {"OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
                    "OMPI_MCA_rmaps_base_oversubscribe=1",
                    "OMPI_MCA_hwloc_base_binding_policy=none", "OMPI_MCA_mpi_yield_when_idle=1",
                    "OMP_NUM_THREADS=1", "ASAN_OPTIONS=detect_leaks=0"}};  // MPI keeps memory

Command sample_command(const Flags& flags) {
  return command_of(located("LATHE_SAMPLE", LATHE_SAMPLE), flags);
}

void prepare_text(const fs::path& scratch, const std::string& text, const fs::path& data) {
  write_text(scratch / "text.txt", text);
  expect_success(
      run(command_of(located("LATHE_PREPARE", LATHE_PREPARE), {{"tokenizer", "char"},
                                                               {"input", scratch / "text.txt"},
                                                               {"val-fraction", "0.2"},
                                                               {"out", data}})));
}

namespace {

std::vector<nlohmann::ordered_json> lines_of(const fs::path& out) {
  std::istringstream text(read_text(out / "metrics.jsonl"));
  std::vector<nlohmann::ordered_json> lines;
  for (std::string line; std::getline(text, line);) {
    lines.push_back(parse_ordered_json(line));
  }
  return lines;
}

std::vector<int64_t> steps_with(const fs::path& out, const char* key) {
  std::vector<int64_t> steps;
  for (const auto& line : lines_of(out)) {
    if (line.contains(key)) steps.push_back(line["step"].get<int64_t>());
  }
  return steps;
}

}  // namespace

std::vector<std::string> repeatable_metrics(const fs::path& out) {
  std::vector<std::string> result;
  for (nlohmann::ordered_json line : lines_of(out)) {
    for (const char* key : {"dt_ms", "forward_ms", "backward_ms", "optimizer_ms", "comm_ms",
                            "comm_exposed_ms", "tokens_per_second", "samples_per_second", "mfu"}) {
      line.erase(key);
    }
    result.push_back(line.dump());
  }
  return result;
}

std::vector<int64_t> loss_steps(const fs::path& out) {
  return steps_with(out, "loss");
}
std::vector<int64_t> validation_steps(const fs::path& out) {
  return steps_with(out, "val_loss");
}

std::vector<double> losses(const fs::path& out) {
  std::vector<double> values;
  for (const auto& line : lines_of(out)) {
    if (line.contains("loss")) values.push_back(line["loss"].get<double>());
  }
  return values;
}

std::vector<std::string> checkpoints(const fs::path& out) {
  std::vector<std::string> names;
  if (!fs::exists(out)) return names;
  for (const auto& entry : fs::directory_iterator(out)) {
    const std::string name = entry.path().filename();
    if (name.starts_with("step-") && name.size() == 13) names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string last_checkpoint(const fs::path& out) {
  const std::vector<std::string> names = checkpoints(out);
  return names.empty() ? "" : names.back();
}

void expect_same_run(const fs::path& a, const fs::path& b) {
  EXPECT_EQ(repeatable_metrics(a), repeatable_metrics(b));
  const std::string last = last_checkpoint(a);
  ASSERT_FALSE(last.empty()) << a;
  ASSERT_EQ(last, last_checkpoint(b)) << b;
  std::vector<std::string> files;
  for (const fs::directory_entry& entry : fs::directory_iterator(a / last)) {
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path().filename());
  }
  EXPECT_GE(files.size(), 2u);
  for (const std::string& file : files) {
    EXPECT_TRUE(read_text(a / last / file) == read_text(b / last / file))
        << file << " differs between " << a << " and " << b;
  }
}

void poke(std::string& file, const std::string& tensor, size_t first,
          const std::vector<float>& values) {
  uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof(length));
  const auto header = parse_json(file.substr(8, length));
  const size_t begin = header.at(tensor).at("data_offsets").at(0).get<size_t>();
  std::memcpy(file.data() + 8 + length + begin + first * sizeof(float), values.data(),
              values.size() * sizeof(float));
}

void expect_success(const ProcessResult& result) {
  EXPECT_EQ(result.exit_code, 0) << "signal " << result.signal << "\n" << result.err << result.out;
}

void expect_refusal(const ProcessResult& result, int exit_code, const std::string& program,
                    const std::vector<std::string>& parts) {
  EXPECT_EQ(result.exit_code, exit_code) << "signal " << result.signal << "\n" << result.err;
  EXPECT_TRUE(result.err.starts_with(program + ": ")) << result.err;
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  EXPECT_TRUE(result.err.ends_with('\n'));
  EXPECT_LT(result.err.size(), 600u) << result.err;
  for (const unsigned char c : result.err) EXPECT_TRUE(c >= ' ' || c == '\n') << int{c};
  for (const std::string& part : parts) expect_contains(result.err, part);
}

namespace {
std::unique_ptr<TempDir> shared;  // of the suite that runs
fs::path shared_data;
}  // namespace

void TrainTest::SetUpTestSuite() {
  shared = std::make_unique<TempDir>();
  shared_data = *shared / "data";
  expect_success(run(command_of(located("LATHE_CORPUS", LATHE_CORPUS),
                                {{"bytes", "6000"}, {"out", *shared / "stories.txt"}})));
  prepare_text(shared->path(), read_text(*shared / "stories.txt"), shared_data);
}

void TrainTest::TearDownTestSuite() {
  shared.reset();
}

const fs::path& TrainTest::data() {
  return shared_data;
}

Flags TrainTest::tiny(const fs::path& out) {
  return {{"model", "shakespeare-cpu"},
          {"n-layer", "1"},
          {"n-head", "2"},
          {"n-embd", "16"},
          {"seq-len", "8"},
          {"batch-size", "2"},
          {"data", shared_data},
          {"steps", "12"},
          {"warmup-steps", "3"},
          {"lr-decay-steps", "12"},
          {"eval-interval", "4"},
          {"eval-batches", "3"},
          {"out", out}};
}

Flags TrainTest::with(Flags flags, const Flags& more) {
  for (const auto& [name, value] : more) flags[name] = value;
  return flags;
}

}  // namespace lathe::testing
