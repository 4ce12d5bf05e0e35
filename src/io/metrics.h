// metrics.jsonl: what a run measured, one JSON object per line.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "src/io/file.h"

namespace lathe {

// What is known about a step. Unmeasured values stay empty and are left out of the file.
struct StepMetrics {
  int64_t step = 0;
  std::optional<double> loss{};      // nats a token, mean over the step
  std::optional<double> val_loss{};  // nats a token
  std::optional<double> lr{};
  std::optional<double> grad_norm{};  // before clipping
  std::optional<double> dt_ms{};      // the whole step
  std::optional<double> forward_ms{};
  std::optional<double> backward_ms{};
  std::optional<double> optimizer_ms{};
  std::optional<double> comm_ms{};
  std::optional<double> comm_exposed_ms{};    // the part of comm_ms that nothing hid
  std::optional<double> tokens_per_second{};  // over all ranks
  std::optional<double> samples_per_second{};
  std::optional<double> mfu{};      // 0 to 1
  std::optional<int64_t> tokens{};  // seen since the run's first step
};

// One line without its newline, keys in the order above. loss, val_loss, lr and grad_norm have the
// fewest digits that read back as the same double (so two runs compare bit by bit, and a float
// stored as a double reads back as that float); measured times and rates have six. NaN and
// infinity, which JSON lacks, become null: measured, but not a number.
std::string to_json(const StepMetrics& metrics);

// Appends to out_dir/metrics.jsonl with one write(2) per line, so that readers see whole lines and
// a crash tears at most the last one.
class MetricsWriter {
 public:
  // Keeps the lines up to resume_step (-1: none) that an earlier part of the run wrote, and
  // truncates the file at the first line of a later step or at a torn last line. If nothing would
  // be kept, renames the file to metrics.jsonl.1 (.2, ...) instead and prints that on stderr.
  // UserError if the file cannot be written or is not a metrics file.
  MetricsWriter(const std::filesystem::path& out_dir, int64_t resume_step);

  // CheckError if the line cannot be written; then no part of it stays.
  void write(const StepMetrics& metrics);

  // Makes what was written survive a power failure. Call it before a checkpoint is saved, so that
  // no step in the checkpoint is missing here. If the file was removed or replaced, writes it again
  // and prints that on stderr; renames a replacement as above.
  void sync();

  // The step of the last line with a val_loss, including earlier parts of the run.
  std::optional<int64_t> last_validation() const { return last_validation_; }

  const std::filesystem::path& path() const { return path_; }

 private:
  void write_again();

  std::filesystem::path path_;
  FileHandle file_;
  uint64_t size_ = 0;
  std::optional<int64_t> last_validation_;
};

}  // namespace lathe
