// What a run prints: the banner, a line per step (live on a terminal, plain in a pipe), messages.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/device/printable.h"
#include "src/io/metrics.h"

namespace lathe {

// "step 100/2000 | loss 2.4790 | lr 6.00e-04 | norm 0.53 | 12.3 ms | 62.4k tok/s | mfu 12.1% | eta
// 00:23". Unmeasured values are left out; val_loss follows loss as "val 2.4790". If the line is
// wider than `columns`, whole parts are dropped until it fits: first the milliseconds (tok/s gives
// the same information), then lr, mfu, norm, tok/s, eta.
std::string step_line(const StepMetrics& metrics, int64_t steps,
                      std::optional<double> eta_seconds = {}, std::optional<int> columns = {});

// 999, 62.4k, 1.3M, ...
std::string short_number(double value);
// 00:23, 1:02:03, 2d 03:04:05; rounded to whole seconds.
std::string short_time(double seconds);

// Rows of two columns, the first as wide as its longest text, indented by two spaces.
std::string format_table(const std::vector<std::pair<std::string, std::string>>& rows);

// Columns that the text takes on a terminal (UTF-8; wide characters take two, combining ones none,
// control characters and broken bytes one).
int display_width(std::string_view text);
// Its longest prefix of at most this many columns, never cutting a character.
std::string_view clip_to_width(std::string_view text, int columns);
// Whether fd is a terminal whose cursor can be moved: TERM is set and not "dumb", and the terminal
// reports its width. mpirun gives its ranks a terminal without a width, whose output may end up in
// a file.
bool can_redraw(int fd);
// Whether it accepts colours: as above, and NO_COLOR (no-color.org) is unset or empty.
bool can_colour(int fd);
// The terminal's columns; empty if fd is not a terminal or its width is unknown.
std::optional<int> terminal_columns(int fd);

struct ConsoleOptions {
  int fd = 1;
  std::optional<bool> live{};    // a terminal that can be redrawn; detected from fd if empty
  std::optional<int> columns{};  // detected from fd if empty; lines in a pipe have no limit
  // The line of every log_interval-th step stays, and those of the first and the last. 0: in a pipe
  // all lines stay; on a live line only the first and the last.
  int64_t log_interval = 0;
  double redraw_seconds = 0.1;      // shortest time between redraws on a terminal
  std::function<double()> clock{};  // seconds; the steady clock if empty
  double patience_seconds = 2;      // how long a slow reader may delay a line
};

// One line at the bottom of a terminal that follows the steps, and lasting lines above it. Printed
// text makes the last step's line stay. A step's line is never wider than the terminal. A pipe gets
// only the lasting lines, each written at once. Write errors are ignored: a run neither ends nor
// waits because nobody reads. If a reader stalls, text is dropped until it reads again. Not
// thread-safe.
class Console {
 public:
  explicit Console(ConsoleOptions options = {});
  // The last step's line stays.
  ~Console();
  Console(const Console&) = delete;
  Console& operator=(const Console&) = delete;

  // Shows a step. The remaining time is estimated from the pace since the first step shown here.
  void step(const StepMetrics& metrics, int64_t steps);
  // Lasting text, made printable; adds a newline at the end if there is none.
  void print(std::string_view text);
  // A title and below it a table, the resolved configuration.
  void banner(std::string_view title, const std::vector<std::pair<std::string, std::string>>& rows);
  // Makes the last step's line stay.
  void settle();

  bool live() const { return live_; }

 private:
  std::optional<double> eta(const StepMetrics& metrics, int64_t steps, double now);
  std::optional<int> columns() const;
  void put(std::string_view text);
  static FileHandle open_nonblocking(int fd);

  ConsoleOptions options_;
  FileHandle file_;  // fd reopened so that writes do not block; empty if fd is a file
  bool live_;
  bool stalled_ = false;                  // the last write was cut short
  std::optional<std::string> unsettled_;  // the last step's line, which may still be overwritten
  std::optional<double> last_drawn_{};
  std::optional<std::pair<int64_t, double>> first_step_;  // its number, and when it was shown
};

}  // namespace lathe
