#include "src/io/metrics.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/device/error.h"

namespace lathe {

namespace fs = std::filesystem;

namespace {

std::string exact(double value) {
  if (!std::isfinite(value)) return "null";
  if (value == 0 && std::signbit(value)) return "-0.0";  // readers take -0 for the integer 0
  return fmt::format("{}", value);                       // the shortest that reads back
}

std::string rounded(double value) {
  return std::isfinite(value) ? fmt::format("{:.6g}", value) : "null";
}

struct Line {
  int64_t step;
  bool validation;
};

// Nothing where the line is not one of ours.
std::optional<Line> parse_line(const std::string& line) {
  const nlohmann::json value = nlohmann::json::parse(line, nullptr, false);
  if (!value.is_object()) return {};
  const auto step = value.find("step");
  if (step == value.end() || !step->is_number_unsigned()) return {};
  return Line{step->get<int64_t>(), value.contains("val_loss")};
}

// How many bytes of the file are kept, and the last validation among them.
uint64_t bytes_up_to(const fs::path& path, int64_t resume_step,
                     std::optional<int64_t>* last_validation) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw_io_error("open", path, errno);
  uint64_t kept = 0;
  uint64_t number_of_line = 0;
  for (std::string line; std::getline(file, line);) {
    ++number_of_line;
    if (file.eof()) break;  // no newline: the line that a crash tore
    const std::optional<Line> found = parse_line(line);
    if (!found) {
      throw UserError(
          "{} is not a file of metrics: line {} is no JSON object with a step; move it "
          "away",
          path.string(), number_of_line);
    }
    if (found->step > resume_step) break;
    if (found->validation) *last_validation = found->step;
    kept += line.size() + 1;
  }
  return kept;
}

}  // namespace

std::string to_json(const StepMetrics& metrics) {
  std::string line = fmt::format("{{\"step\":{}", metrics.step);
  const auto add_exact = [&](std::string_view key, const std::optional<double>& value) {
    if (value) line += fmt::format(",\"{}\":{}", key, exact(*value));
  };
  const auto add = [&](std::string_view key, const std::optional<double>& value) {
    if (value) line += fmt::format(",\"{}\":{}", key, rounded(*value));
  };
  add_exact("loss", metrics.loss);
  add_exact("val_loss", metrics.val_loss);
  add_exact("lr", metrics.lr);
  add_exact("grad_norm", metrics.grad_norm);
  add("dt_ms", metrics.dt_ms);
  add("forward_ms", metrics.forward_ms);
  add("backward_ms", metrics.backward_ms);
  add("optimizer_ms", metrics.optimizer_ms);
  add("comm_ms", metrics.comm_ms);
  add("comm_exposed_ms", metrics.comm_exposed_ms);
  add("tokens_per_second", metrics.tokens_per_second);
  add("samples_per_second", metrics.samples_per_second);
  add("mfu", metrics.mfu);
  if (metrics.tokens) line += fmt::format(",\"tokens\":{}", *metrics.tokens);
  return line + "}";
}

MetricsWriter::MetricsWriter(const fs::path& out_dir, int64_t resume_step)
    : path_(out_dir / "metrics.jsonl") {
  std::error_code absent;
  if (fs::exists(path_, absent)) {
    uint64_t size = 0;
    open_regular_file(path_, &size);
    if (size > 0) size_ = bytes_up_to(path_, resume_step, &last_validation_);
  }
  file_ = FileHandle(::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666));
  if (!file_) throw_io_error("open", path_, errno);
  if (::ftruncate(file_.get(), static_cast<off_t>(size_)) != 0) {
    throw_io_error("truncate", path_, errno);
  }
}

void MetricsWriter::write(const StepMetrics& metrics) {
  const std::string line = to_json(metrics) + "\n";
  try {
    write_all(file_.get(), line.data(), line.size(), path_);
  } catch (...) {
    if (::ftruncate(file_.get(), static_cast<off_t>(size_)) != 0) {
      // The torn line is cut off at the next start.
    }
    throw;
  }
  size_ += line.size();
  if (metrics.val_loss) last_validation_ = metrics.step;
}

void MetricsWriter::sync() {
  if (::fsync(file_.get()) != 0) throw_io_error("fsync", path_, errno);
}

}  // namespace lathe
