// A run as text for the console: a braille character holds 2 x 4 dots.
#include <algorithm>
#include <cmath>

#include "kernels/device/error.h"
#include "tools/run_plot.h"

namespace lathe {
namespace {

constexpr const char* kBlue = "\x1b[34m";
constexpr const char* kOrange = "\x1b[33m";
constexpr const char* kGreen = "\x1b[32m";
constexpr const char* kPlain = "\x1b[0m";
constexpr const char* kMark = "o";
constexpr const char* kDash = "\u254c";

std::string utf8(unsigned code) {  // three bytes, as for braille
  return {static_cast<char>(0xe0 | (code >> 12)), static_cast<char>(0x80 | ((code >> 6) & 0x3f)),
          static_cast<char>(0x80 | (code & 0x3f))};
}

class Canvas {
 public:
  Canvas(int columns, int rows)
      : columns_(columns),
        rows_(rows),
        dots_(static_cast<size_t>(columns) * rows, 0),
        marks_(dots_.size(), false) {}

  // Dots count from the top left: 2 per column, 4 per row.
  void dot(int x, int y) {
    if (x < 0 || y < 0 || x >= 2 * columns_ || y >= 4 * rows_) return;
    constexpr unsigned kBits[4][2] = {{0x01, 0x08}, {0x02, 0x10}, {0x04, 0x20}, {0x40, 0x80}};
    dots_[cell(x, y)] |= kBits[y % 4][x % 2];
  }

  // Clips a line to the canvas, however far outside it goes.
  void line(double x0, double y0, double x1, double y1) {
    y0 = std::clamp(y0, -1.0, 4.0 * rows_);
    y1 = std::clamp(y1, -1.0, 4.0 * rows_);
    const int steps = 1 + static_cast<int>(std::max(std::abs(x1 - x0), std::abs(y1 - y0)));
    for (int i = 0; i <= steps; ++i) {
      const double t = static_cast<double>(i) / steps;
      dot(static_cast<int>(std::lround(x0 + t * (x1 - x0))),
          static_cast<int>(std::lround(y0 + t * (y1 - y0))));
    }
  }

  void mark(double x, double y) {
    const int column = std::clamp(static_cast<int>(std::lround(x)), 0, 2 * columns_ - 1);
    const int row = std::clamp(static_cast<int>(std::lround(y)), 0, 4 * rows_ - 1);
    marks_[cell(column, row)] = true;
  }

  std::string row(int row, bool floor, bool colour) const {
    std::string text;
    auto put = [&](const char* code, const std::string& glyph) {
      text += colour ? code + glyph + kPlain : glyph;
    };
    for (int column = 0; column < columns_; ++column) {
      const size_t at = static_cast<size_t>(row) * columns_ + column;
      if (marks_[at])
        put(kOrange, kMark);
      else if (dots_[at])
        put(kBlue, utf8(0x2800 + dots_[at]));
      else if (floor)
        put(kGreen, kDash);
      else
        text += ' ';
    }
    return text;
  }

 private:
  size_t cell(int x, int y) const { return static_cast<size_t>(y / 4) * columns_ + x / 2; }

  int columns_, rows_;
  std::vector<unsigned> dots_;
  std::vector<bool> marks_;
};

std::string legend_number(double value) {
  return std::abs(value) < 1e6 ? fmt::format("{:.3f}", value) : fmt::format("{:.3e}", value);
}

// The line under the chart: tick labels, each centred below its column; in the gutter, what they
// count.
std::string step_labels(const Scale& x, size_t gutter, int columns) {
  std::string labels = fmt::format("{:>{}}", "step", gutter - 2);
  const size_t width = gutter + static_cast<size_t>(columns);
  labels.resize(width, ' ');
  size_t free = gutter - 1;
  for (double tick : nice_ticks(x.from, x.to, std::clamp(columns / 10, 1, 6))) {
    const std::string label = tick_label(tick);
    if (free + label.size() > width) continue;
    const double centre = static_cast<double>(gutter) + x(tick) / 2;
    const double begin =
        std::max(centre - static_cast<double>(label.size()) / 2, static_cast<double>(gutter - 1));
    const size_t at = std::min(static_cast<size_t>(begin), width - label.size());
    if (at < free) continue;
    labels.replace(at, label.size(), label);
    free = at + label.size() + 1;
  }
  return labels.substr(0, labels.find_last_not_of(' ') + 1) + "\n";
}

// Entries side by side, as many as fit `width` columns; at least one per line.
std::string legend(const RunMetrics& run, const PlotOptions& options, size_t width, bool colour) {
  std::string text;
  size_t used = 0;
  auto entry = [&](const char* code, size_t columns, const std::string& glyph,
                   const std::string& name) {
    const size_t more = 3 + columns + 1 + name.size();
    if (used > 0 && used + more > width) text += "\n", used = 0;
    if (used == 0 && more + 5 <= width) text += "     ", used = 5;
    text += "   " + (colour ? code + glyph + kPlain : glyph) + " " + name;
    used += more;
  };
  if (const Series* loss = run.find("loss")) {
    entry(kBlue, 2, utf8(0x2812) + utf8(0x2822),
          "training " + legend_number(smoothed(*loss).back().value));
  }
  if (const Series* validation = run.find("val_loss")) {
    entry(kOrange, 1, kMark, "validation " + legend_number(validation->back().value));
  }
  if (options.floor) {
    entry(kGreen, 2, std::string(kDash) + kDash,
          "entropy of the text " + legend_number(*options.floor));
  }
  return text + "\n";
}

}  // namespace

std::string plot_terminal(const RunMetrics& run, const PlotOptions& options, int columns, int rows,
                          bool colour) {
  Scale y = loss_range(run, options);
  y.begin = 4 * rows - 1;
  y.end = 0;
  std::vector<std::string> labels(static_cast<size_t>(rows));
  size_t widest = kGutterColumns - 2;
  for (double tick : y.ticks(std::max(3, rows / 2))) {
    std::string& label = labels[std::clamp(static_cast<int>(y(tick)) / 4, 0, rows - 1)];
    label = tick_label(tick);
    widest = std::max(widest, label.size());
  }
  // If labels are wider than usual, the chart is narrower.
  const int wider = static_cast<int>(widest) + 2 - kGutterColumns;
  columns = std::max(columns - wider, 1);

  Scale x = step_range(run);
  x.end = 2 * columns - 1;
  Canvas canvas(columns, rows);
  if (const Series* loss = run.find("loss")) {
    const Series curve = smoothed(*loss);
    for (size_t i = 0; i < curve.size(); ++i) {
      const Point& from = curve[i == 0 ? 0 : i - 1];
      canvas.line(x(from.step), y(from.value), x(curve[i].step), y(curve[i].value));
    }
  }
  if (const Series* validation = run.find("val_loss")) {
    for (const Point& point : *validation) canvas.mark(x(point.step), y(point.value));
  }
  const int floor_row = options.floor ? static_cast<int>(y(*options.floor)) / 4 : -1;
  std::string text;
  for (int row = 0; row < rows; ++row) {
    text +=
        fmt::format("{:>{}} {}{}\n", labels[row], widest, labels[row].empty() ? "\u2502" : "\u2524",
                    canvas.row(row, row == floor_row, colour));
  }
  text += std::string(widest + 1, ' ') + "\u2514";
  for (int column = 0; column < columns; ++column) text += "\u2500";
  const size_t gutter = widest + 2;
  return text + "\n" + step_labels(x, gutter, columns) +
         legend(run, options, gutter + static_cast<size_t>(columns), colour);
}

}  // namespace lathe
