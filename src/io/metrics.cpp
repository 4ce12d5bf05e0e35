#include "src/io/metrics.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <fstream>

#include "kernels/device/error.h"
#include "kernels/device/standard_streams.h"
#include "src/io/json.h"

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

// Empty if the line is not one of ours.
std::optional<Line> parse_line(const std::string& line) {
  const nlohmann::json value = parse_json(line, /*throws=*/false);
  if (!value.is_object()) return {};
  const auto step = value.find("step");
  if (step == value.end() || !step->is_number_unsigned()) return {};
  return Line{step->get<int64_t>(), value.contains("val_loss")};
}

// Whether it can be the beginning of one of our lines, or what a power failure leaves instead.
bool may_be_torn(std::string_view line) {
  constexpr std::string_view kBeginning = "{\"step\":";
  const size_t length = std::min(line.size(), kBeginning.size());
  return line.substr(0, length) == kBeginning.substr(0, length) ||
         line.find_first_not_of('\0') == std::string_view::npos;
}

[[noreturn]] void refuse(const fs::path& path, uint64_t number_of_line) {
  throw UserError(
      "{} is not a file of metrics: line {} is not a JSON object with a step; move it away",
      path.string(), number_of_line);
}

// How many bytes of the file to keep; also finds the last validation among them.
uint64_t bytes_up_to(const fs::path& path, int64_t resume_step,
                     std::optional<int64_t>* last_validation) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw_io_error("open", path, errno);
  uint64_t kept = 0;
  uint64_t number_of_line = 0;
  for (std::string line; std::getline(file, line);) {
    ++number_of_line;
    if (file.eof()) {  // no newline: a crash tore the line
      if (!may_be_torn(line)) refuse(path, number_of_line);
      break;
    }
    const std::optional<Line> found = parse_line(line);
    if (!found) refuse(path, number_of_line);
    if (found->step > resume_step) break;
    if (found->validation) *last_validation = found->step;
    kept += line.size() + 1;
  }
  return kept;
}

// To metrics.jsonl.1, or .2, ...
void set_aside(const fs::path& path) {
  std::error_code error;
  for (int i = 1;; ++i) {
    const fs::path aside = fmt::format("{}.{}", path.string(), i);
    if (fs::exists(fs::symlink_status(aside, error))) continue;
    rename_path(path, aside);
    say(fmt::format("{} is now {}", path.string(), aside.filename().string()));
    return;
  }
}

// Readable, so that it can be copied if it loses its name.
FileHandle open_to_append(const fs::path& path) {
  FileHandle file(::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666));
  if (!file) throw_io_error("open", path, errno);
  return file;
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
    if (size > 0 && size_ == 0) set_aside(path_);
  }
  file_ = open_to_append(path_);
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
      // The next start truncates the torn line.
    }
    throw;
  }
  size_ += line.size();
  if (metrics.val_loss) last_validation_ = metrics.step;
}

void MetricsWriter::sync() {
  struct stat open {
  }, named{};
  if (::fstat(file_.get(), &open) != 0) throw_io_error("stat", path_, errno);
  const bool there = ::stat(path_.c_str(), &named) == 0;
  const bool ours = there && open.st_dev == named.st_dev && open.st_ino == named.st_ino;
  if (there && !ours) set_aside(path_);
  if (!ours) write_again();
  if (::fsync(file_.get()) != 0) throw_io_error("fsync", path_, errno);
}

// Copies from the file that is still open, although it has lost its name.
void MetricsWriter::write_again() {
  std::string text(size_, '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t got =
        ::pread(file_.get(), text.data() + done, text.size() - done, static_cast<off_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) throw_io_error("read", path_, got < 0 ? errno : EIO);
    done += static_cast<size_t>(got);
  }
  say(fmt::format("{} was removed or replaced, and is written again", path_.string()));
  make_directories(parent_of(path_));
  write_file(path_, text);
  file_ = open_to_append(path_);
}

}  // namespace lathe
