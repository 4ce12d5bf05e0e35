// What a run shows: the banner, a line a step (live on a terminal, plain in a pipe), messages.
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

// "step 100/2000 | loss 2.4790 | lr 6.00e-04 | norm 0.53 | 12.3 ms | 62.4k tok/s | mfu 12.1% |
// eta 00:23"; what was not measured is left out. val_loss comes after loss as "val 2.4790". If that
// is more than so many columns, parts are left out whole, until it fits: the milliseconds first
// (tok/s tells the same), then lr, mfu, norm, tok/s, eta.
std::string step_line(const StepMetrics& metrics, int64_t steps,
                      std::optional<double> eta_seconds = {}, std::optional<int> columns = {});

// 999, 62.4k, 1.3M, ...
std::string short_number(double value);
// 00:23, 1:02:03, 2d 03:04:05; rounded to whole seconds.
std::string short_time(double seconds);

// Rows of two columns, the first as wide as its longest text, indented by two spaces.
std::string format_table(const std::vector<std::pair<std::string, std::string>>& rows);

// How many columns a terminal gives the text (UTF-8; wide characters count two, combining ones
// none, control characters and broken bytes one).
int display_width(std::string_view text);
// Its longest beginning of at most this many columns, never part of a character.
std::string_view clip_to_width(std::string_view text, int columns);
// Whether fd is a terminal whose cursor may be moved: TERM names one, and no "dumb" one, and it
// says how wide it is. mpirun gives its ranks one that does not, and what reads it may be a file.
bool can_redraw(int fd);
// Whether it may be sent colours: as above, and NO_COLOR (no-color.org) is not set or empty.
bool can_colour(int fd);
// The terminal's columns; none if fd is no terminal or does not say.
std::optional<int> terminal_columns(int fd);

struct ConsoleOptions {
  int fd = 1;
  std::optional<bool> live{};    // a terminal that can be redrawn; found out from fd where empty
  std::optional<int> columns{};  // found out from fd where empty; lines in a pipe have no limit
  // A line stays for every so many steps, and for the first and last; 0: for every step, but for
  // none in between where the line is live.
  int64_t log_interval = 0;
  double redraw_seconds = 0.1;      // at most so often on a terminal
  std::function<double()> clock{};  // seconds; the steady clock where empty
  double patience_seconds = 2;      // so long a reader may keep a line waiting
};

// One line at the bottom of a terminal that follows the steps, and lasting lines above it. Text
// makes the line of the last step stay. No line of a step is wider than the terminal. In a pipe
// there are only the lasting lines, each written at once. Errors of writing are ignored: a run does
// not end because nobody looks, nor does it stand still. If nobody reads any more, text is
// dropped after a while, until somebody does. Not for several threads.
class Console {
 public:
  explicit Console(ConsoleOptions options = {});
  // The line of the last step stays.
  ~Console();
  Console(const Console&) = delete;
  Console& operator=(const Console&) = delete;

  // Shows a step. The time left comes from the pace since the first step shown here.
  void step(const StepMetrics& metrics, int64_t steps);
  // Lasting text, made printable; a newline is added where there is none at the end.
  void print(std::string_view text);
  // A title and a table of the resolved configuration below it.
  void banner(std::string_view title, const std::vector<std::pair<std::string, std::string>>& rows);
  // Makes the line of the last step stay.
  void settle();

  bool live() const { return live_; }

 private:
  std::optional<double> eta(const StepMetrics& metrics, int64_t steps, double now);
  std::optional<int> columns() const;
  void put(std::string_view text);
  static FileHandle open_without_waiting(int fd);

  ConsoleOptions options_;
  FileHandle file_;  // what fd is, opened so that writing does not wait; none where fd is a file
  bool live_;
  bool stalled_ = false;                  // what was written last did not all go through
  std::optional<std::string> unsettled_;  // the line of the last step, which may yet be overwritten
  std::optional<double> last_drawn_{};
  std::optional<std::pair<int64_t, double>> first_step_;  // its number, and when it was shown
};

}  // namespace lathe
