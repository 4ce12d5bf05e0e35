#include "src/io/console.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utf8proc.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdlib>

namespace lathe {

std::string short_number(double value) {
  // A unit starts where the next smaller one would need four digits before the point.
  if (std::abs(value) >= 999.95e9) return fmt::format("{:.1f}T", value / 1e12);
  if (std::abs(value) >= 999.95e6) return fmt::format("{:.1f}G", value / 1e9);
  if (std::abs(value) >= 999.95e3) return fmt::format("{:.1f}M", value / 1e6);
  if (std::abs(value) >= 999.5) return fmt::format("{:.1f}k", value / 1e3);
  return fmt::format("{:.0f}", value);
}

std::string short_time(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0 || seconds > 1e12) return "?";
  const int64_t s = std::llround(seconds);
  const int64_t hours = s / 3600 % 24, minutes = s / 60 % 60;
  if (s >= 86400) return fmt::format("{}d {:02}:{:02}:{:02}", s / 86400, hours, minutes, s % 60);
  if (s >= 3600) return fmt::format("{}:{:02}:{:02}", hours, minutes, s % 60);
  return fmt::format("{:02}:{:02}", minutes, s % 60);
}

std::string step_line(const StepMetrics& metrics, int64_t steps, std::optional<double> eta_seconds,
                      std::optional<int> columns) {
  // `order`: the order in which parts are dropped if there are too few columns; 0 stays.
  struct Part {
    std::string text;
    int order;
  };
  std::vector<Part> parts = {{fmt::format("step {}/{}", metrics.step, steps), 0}};
  const auto add = [&](int order, const std::optional<double>& value, const auto& format) {
    if (value) parts.push_back({format(*value), order});
  };
  add(0, metrics.loss, [](double v) { return fmt::format("loss {:.4f}", v); });
  add(0, metrics.val_loss, [](double v) { return fmt::format("val {:.4f}", v); });
  add(2, metrics.lr, [](double v) { return fmt::format("lr {:.2e}", v); });
  add(4, metrics.grad_norm, [](double v) { return fmt::format("norm {:.2f}", v); });
  add(1, metrics.dt_ms, [](double v) { return fmt::format("{:.1f} ms", v); });
  add(5, metrics.tokens_per_second, [](double v) { return short_number(v) + " tok/s"; });
  add(3, metrics.mfu, [](double v) { return fmt::format("mfu {:.1f}%", v * 100); });
  add(6, eta_seconds, [](double v) { return "eta " + short_time(v); });
  const auto joined = [&] {
    std::string line;
    for (const Part& part : parts) line += (line.empty() ? "" : " | ") + part.text;
    return line;
  };
  std::string line = joined();
  if (!columns) return line;
  for (int order = 1; order <= 6 && display_width(line) > *columns; ++order) {
    std::erase_if(parts, [order](const Part& part) { return part.order == order; });
    line = joined();
  }
  return std::string(clip_to_width(line, *columns));
}

namespace {

int width_of(int32_t code) {
  return code == kBroken || is_control(code) ? 1 : utf8proc_charwidth(code);
}

}  // namespace

int display_width(std::string_view text) {
  int width = 0;
  while (!text.empty()) {
    const Character c = character_at(text);
    width += width_of(c.code);
    text.remove_prefix(c.bytes);
  }
  return width;
}

std::string_view clip_to_width(std::string_view text, int columns) {
  size_t end = 0;
  while (end < text.size()) {
    const Character c = character_at(text.substr(end));
    columns -= width_of(c.code);
    if (columns < 0) break;
    end += c.bytes;
  }
  return text.substr(0, end);
}

std::string format_table(const std::vector<std::pair<std::string, std::string>>& rows) {
  int widest = 0;
  for (const auto& [key, value] : rows) widest = std::max(widest, display_width(key));
  std::string text;
  for (const auto& [key, value] : rows) {
    const std::string padding(static_cast<size_t>(widest - display_width(key)), ' ');
    text += fmt::format("  {}{}  {}\n", key, padding, value);
  }
  return text;
}

bool can_redraw(int fd) {
  const char* term = std::getenv("TERM");
  return ::isatty(fd) == 1 && terminal_columns(fd) && term && *term &&
         std::string_view(term) != "dumb";
}

bool can_colour(int fd) {
  const char* no_color = std::getenv("NO_COLOR");
  return can_redraw(fd) && !(no_color && *no_color);
}

std::optional<int> terminal_columns(int fd) {
  winsize size{};
  if (::ioctl(fd, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return {};
  return size.ws_col;
}

Console::Console(ConsoleOptions options)
    : options_(std::move(options)), file_(open_nonblocking(options_.fd)) {
  if (!options_.clock) {
    options_.clock = [] {
      return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
          .count();
    };
  }
  live_ = options_.live.value_or(can_redraw(options_.fd));
  const int64_t every = live_ ? 0 : 1;
  if (options_.log_interval <= 0) options_.log_interval = every;
}

Console::~Console() {
  settle();
}

// A line as wide as the terminal makes some terminals wrap, so one column stays free.
std::optional<int> Console::columns() const {
  std::optional<int> columns = options_.columns ? options_.columns : terminal_columns(options_.fd);
  if (!columns && live_) columns = 80;
  if (columns) columns = std::max(*columns - 1, 1);
  return columns;
}

// mpirun stops reading its ranks' output while it ends them; a rank blocked in write(2) would then
// have no time to save. So a terminal or pipe is reopened without blocking: setting the flag on fd
// itself would change it for every process that shares it.
FileHandle Console::open_nonblocking(int fd) {
  struct stat kind {};
  if (::fstat(fd, &kind) != 0 || !(S_ISFIFO(kind.st_mode) || S_ISCHR(kind.st_mode))) return {};
  return FileHandle(::open(fmt::format("/proc/self/fd/{}", fd).c_str(),
                           O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
}

void Console::put(std::string_view text) {
  std::string after_gap;
  if (stalled_) {
    after_gap = "\n...\n" + std::string(text);
    text = after_gap;
  }
  // A reader that stalled once does not delay further lines.
  using Clock = std::chrono::steady_clock;
  const auto deadline =
      Clock::now() + std::chrono::duration<double>(stalled_ ? 0 : options_.patience_seconds);
  const int fd = file_ ? file_.get() : options_.fd;
  while (!text.empty()) {
    const ssize_t n = ::write(fd, text.data(), text.size());
    if (n > 0) {
      stalled_ = false;
      text.remove_prefix(static_cast<size_t>(n));
    } else if (n < 0 && errno == EAGAIN) {
      pollfd waiting{.fd = fd, .events = POLLOUT, .revents = 0};
      const std::chrono::duration<double, std::milli> left = deadline - Clock::now();
      const int ready =
          left.count() > 0 ? ::poll(&waiting, 1, static_cast<int>(left.count()) + 1) : 0;
      stalled_ = ready == 0;
      if (stalled_) return;
    } else if (n == 0 || errno != EINTR) {
      return;
    }
  }
}

void Console::settle() {
  if (unsettled_) put(fmt::format("\r{}\x1b[K\n", *unsettled_));
  unsettled_.reset();
}

std::optional<double> Console::eta(const StepMetrics& metrics, int64_t steps, double now) {
  if (!first_step_) first_step_.emplace(metrics.step, now);
  const auto [first, since] = *first_step_;
  const double left = static_cast<double>(std::max<int64_t>(steps - metrics.step, 0));
  if (metrics.step > first) return (now - since) / static_cast<double>(metrics.step - first) * left;
  if (metrics.dt_ms) return *metrics.dt_ms / 1000 * left;
  return {};
}

void Console::step(const StepMetrics& metrics, int64_t steps) {
  const double now = options_.clock();
  const std::optional<double> left = eta(metrics, steps, now);
  const int64_t interval = options_.log_interval;
  const bool lasting = (interval > 0 && metrics.step % interval == 0) || metrics.step >= steps ||
                       metrics.step == first_step_->first || metrics.val_loss;
  if (!live_ && !lasting) return;
  const std::string line = step_line(metrics, steps, left, columns());
  if (!live_) {
    put(line + "\n");
    return;
  }
  unsettled_ = line;
  if (lasting) {
    settle();
  } else if (last_drawn_ && now - *last_drawn_ < options_.redraw_seconds) {
    return;
  } else {
    put(fmt::format("\r{}\x1b[K", line));
  }
  last_drawn_ = now;
}

void Console::print(std::string_view text) {
  settle();
  std::string lines = printable(text);
  if (lines.empty() || lines.back() != '\n') lines += '\n';
  put(lines);
}

void Console::banner(std::string_view title,
                     const std::vector<std::pair<std::string, std::string>>& rows) {
  print(fmt::format("{}\n{}", title, format_table(rows)));
}

}  // namespace lathe
