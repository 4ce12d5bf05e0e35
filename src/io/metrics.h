// metrics.jsonl: what a run measured, one JSON object a line.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "src/io/file.h"

namespace lathe {

// What is known of a step; what was not measured stays empty and is absent from the file.
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
  std::optional<double> comm_exposed_ms{};    // of comm_ms, what nothing else hid
  std::optional<double> tokens_per_second{};  // of all ranks
  std::optional<double> samples_per_second{};
  std::optional<double> mfu{};      // 0 to 1
  std::optional<int64_t> tokens{};  // seen since the run's first step
};

// One line without its newline, keys in the order above. Loss, val_loss, lr and grad_norm have the
// fewest digits that read back as the very same double (so two runs compare bit by bit, and a float
// kept in a double reads back as that float); measured times and rates have six. A NaN or an
// infinity, which JSON does not have, is null: measured, and not a number.
std::string to_json(const StepMetrics& metrics);

// Appends to out_dir/metrics.jsonl, one write(2) a line, so that a reader sees whole lines and a
// crash tears at most the last.
class MetricsWriter {
 public:
  // Keeps the lines of steps up to resume_step (-1: none) that an earlier part of the run wrote, up
  // to the first line of a later step or the torn last line, and cuts the rest off. But a file of
  // which nothing would be kept is renamed to metrics.jsonl.1 (.2, ...), and stderr tells so.
  // UserError if the file cannot be written or holds something else.
  MetricsWriter(const std::filesystem::path& out_dir, int64_t resume_step);

  // CheckError where the line cannot be written; then no part of it stays.
  void write(const StepMetrics& metrics);

  // What was written survives a loss of power: to be called before a checkpoint is saved, so that
  // no step that it has done is missing here. If the file was removed or replaced, it is written
  // again, and stderr tells so; what has taken its place is renamed as above.
  void sync();

  // The step of the last line with a val_loss, those of earlier parts of the run included.
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
