// Pictures of a training run, drawn from its metrics.jsonl.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace lathe {

struct Point {
  double step = 0;
  double value = 0;
};
using Series = std::vector<Point>;  // rising steps, finite values

struct RunMetrics {
  std::string name;
  std::map<std::string, Series> series;  // by key: loss, val_loss, lr, grad_norm; none is empty
  const Series* find(const std::string& key) const;
};

// Larger numbers are skipped like infinite ones: their squares and sums would be infinite.
inline constexpr double kLargestDrawn = 1e100;
bool can_be_drawn(double value);

// Reads RUN/metrics.jsonl, or the file itself. Lines may lack keys. A line whose step is earlier
// than the previous line's comes from a resumed run; it replaces the steps it repeats. A last line
// that is cut short (a killed run) is skipped. Throws UserError if there is no such file, a broken
// line in the middle, or no loss.
RunMetrics read_run(const std::filesystem::path& path);

struct PlotOptions {
  std::optional<double> floor;  // a horizontal line in the loss, nats
  std::string title;            // the run's name if empty
};

// A complete SVG document: the loss above, learning rate and gradient norm below.
std::string plot_svg(const RunMetrics& run, const PlotOptions& options);

// The loss drawn in about `columns` x `rows` characters (UTF-8, braille dots), then axis and
// legend. With the labels on the left, no line is wider than columns + kGutterColumns.
inline constexpr int kGutterColumns = 8;
std::string plot_terminal(const RunMetrics& run, const PlotOptions& options, int columns, int rows,
                          bool colour);

// An interval of values mapped to an interval of pixels or dots.
struct Scale {
  double from = 0, to = 1;
  double begin = 0, end = 1;
  bool logarithmic = false;
  double operator()(double value) const;
  std::vector<double> ticks(int count) const;  // about `count` round numbers
};

// About `count` round numbers (1, 2 or 5 times a power of ten apart) inside [low, high], rising.
std::vector<double> nice_ticks(double low, double high, int count);

// Short text for a tick: 0.0006 or 6e-05, 1500 or 12k or 1e+18.
std::string tick_label(double value);

// A straight line fitted around each step, weighted by a Gaussian of 1/60 of all steps: follows a
// slope up to both ends of the run, where a moving average would lag. At most 2000 points.
Series smoothed(const Series& series);

// At most 2 x `buckets` points: the lowest and the highest of each bucket.
Series thinned(const Series& series, size_t buckets);

// The range of the loss panel: all losses, validation losses and the floor, except that a few
// outliers above the curve (the top 0.5 % after the start) are cut off. Logarithmic if the loss
// falls so far that its end would look flat on a linear axis.
Scale loss_range(const RunMetrics& run, const PlotOptions& options);

// The first and last step of all series.
Scale step_range(const RunMetrics& run);

}  // namespace lathe
