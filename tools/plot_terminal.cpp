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

std::string utf8(unsigned code) {  // of the three-byte kind, as braille is
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

  // Dots count from the top left: 2 a column, 4 a row.
  void dot(int x, int y) {
    if (x < 0 || y < 0 || x >= 2 * columns_ || y >= 4 * rows_) return;
    constexpr unsigned kBits[4][2] = {{0x01, 0x08}, {0x02, 0x10}, {0x04, 0x20}, {0x40, 0x80}};
    dots_[cell(x, y)] |= kBits[y % 4][x % 2];
  }

  void line(double x0, double y0, double x1, double y1) {
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

// The line under the chart: tick labels, each centred below its column.
std::string step_labels(const Scale& x, int columns) {
  std::string labels(static_cast<size_t>(columns) + 8, ' ');
  size_t free = 0;
  for (double tick : nice_ticks(x.from, x.to, 6)) {
    const std::string label = tick_label(tick);
    const double centre = 8 + x(tick) / 2;
    const size_t begin =
        static_cast<size_t>(std::clamp(centre - static_cast<double>(label.size()) / 2, 0.0,
                                       static_cast<double>(labels.size() - label.size())));
    if (begin < free) continue;
    labels.replace(begin, label.size(), label);
    free = begin + label.size() + 1;
  }
  return labels.substr(0, labels.find_last_not_of(' ') + 1) + "  step\n";
}

std::string legend(const RunMetrics& run, const PlotOptions& options, bool colour) {
  auto entry = [&](const char* code, const std::string& glyph, const std::string& name) {
    return "   " + (colour ? code + glyph + kPlain : glyph) + " " + name;
  };
  std::string text = "     ";
  if (const Series* loss = run.find("loss")) {
    text += entry(kBlue, utf8(0x2812) + utf8(0x2822),
                  fmt::format("training {:.3f}", smoothed(*loss).back().value));
  }
  if (const Series* validation = run.find("val_loss")) {
    text += entry(kOrange, kMark, fmt::format("validation {:.3f}", validation->back().value));
  }
  if (options.floor) {
    text += entry(kGreen, std::string(kDash) + kDash,
                  fmt::format("entropy of the text {:.3f}", *options.floor));
  }
  return text + "\n";
}

}  // namespace

std::string plot_terminal(const RunMetrics& run, const PlotOptions& options, int columns, int rows,
                          bool colour) {
  Scale x = step_range(run);
  x.end = 2 * columns - 1;
  Scale y = loss_range(run, options);
  y.begin = 4 * rows - 1;
  y.end = 0;
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
  std::vector<std::string> labels(rows);
  for (double tick : y.ticks(std::max(3, rows / 2))) {
    labels[std::clamp(static_cast<int>(y(tick)) / 4, 0, rows - 1)] = tick_label(tick);
  }
  const int floor_row = options.floor ? static_cast<int>(y(*options.floor)) / 4 : -1;
  std::string text;
  for (int row = 0; row < rows; ++row) {
    text += fmt::format("{:>6} {}{}\n", labels[row], labels[row].empty() ? "\u2502" : "\u2524",
                        canvas.row(row, row == floor_row, colour));
  }
  text += "       \u2514";
  for (int column = 0; column < columns; ++column) text += "\u2500";
  return text + "\n" + step_labels(x, columns) + legend(run, options, colour);
}

}  // namespace lathe
