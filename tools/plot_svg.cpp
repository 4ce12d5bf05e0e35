// A run as a self-contained SVG picture.
#include <algorithm>
#include <cmath>

#include "kernels/device/error.h"
#include "kernels/device/printable.h"
#include "tools/run_plot.h"

namespace lathe {
namespace {

constexpr double kWidth = 960, kHeight = 600;
constexpr double kLeft = 78, kRight = 890;
constexpr const char* kTraining = "#2563a8";
constexpr const char* kValidation = "#d9622b";
constexpr const char* kFloor = "#3d7a4e";
constexpr const char* kRate = "#7a4fa3";
constexpr const char* kNorm = "#8a8f98";
constexpr const char* kText = "#3a3f47";

struct Panel {
  double top, bottom;
};
constexpr Panel kLossPanel{92, 400};
constexpr Panel kRatePanel{448, 548};

// Any bytes as text in an XML document: XML allows no broken UTF-8, hardly any control characters,
// and neither U+FFFE nor U+FFFF.
std::string escaped(const std::string& text) {
  const std::string clean = printable(text);
  std::string result;
  for (std::string_view rest = clean; !rest.empty();) {
    const Character c = character_at(rest);
    if (c.code == '&')
      result += "&amp;";
    else if (c.code == '<')
      result += "&lt;";
    else if (c.code == '>')
      result += "&gt;";
    else if (c.code == '"')
      result += "&quot;";
    else if (c.code == 0xfffe || c.code == 0xffff)
      result += "\uFFFD";
    else
      result += rest.substr(0, c.bytes);
    rest.remove_prefix(c.bytes);
  }
  return result;
}

class Svg {
 public:
  Svg() {
    out_ = fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" "
        "height=\"{1}\" font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\">\n"
        "<rect width=\"{0}\" height=\"{1}\" fill=\"#ffffff\"/>\n",
        kWidth, kHeight);
  }

  void line(double x1, double y1, double x2, double y2, const char* stroke, double width,
            const char* dashes = "") {
    out_ += fmt::format(
        "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\" "
        "stroke-width=\"{}\"{}/>\n",
        x1, y1, x2, y2, stroke, width,
        *dashes ? fmt::format(" stroke-dasharray=\"{}\"", dashes) : "");
  }

  void text(double x, double y, const char* anchor, double size, const char* fill,
            const std::string& content, const char* weight = "normal") {
    out_ += fmt::format(
        "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" font-size=\"{}\" fill=\"{}\" "
        "font-weight=\"{}\">{}</text>\n",
        x, y, anchor, size, fill, weight, escaped(content));
  }

  void vertical_text(double x, double y, const char* fill, const std::string& content) {
    out_ += fmt::format(
        "<text transform=\"translate({:.1f} {:.1f}) rotate(-90)\" text-anchor=\"middle\" "
        "font-size=\"12\" fill=\"{}\">{}</text>\n",
        x, y, fill, escaped(content));
  }

  // A curve, clipped to its panel.
  void curve(const Series& series, const Scale& x, const Scale& y, const char* stroke, double width,
             double opacity) {
    const auto [low, high] = std::minmax(y.begin, y.end);
    out_ += fmt::format(
        "<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"{}\" stroke-opacity=\"{}\" "
        "stroke-linejoin=\"round\" stroke-linecap=\"round\" points=\"",
        stroke, width, opacity);
    for (const Point& point : series) {
      out_ += fmt::format("{:.1f},{:.1f} ", x(point.step), std::clamp(y(point.value), low, high));
    }
    out_ += "\"/>\n";
  }

  void dot(double x, double y, double radius, const char* fill) {
    out_ += fmt::format(
        "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{}\" fill=\"{}\" stroke=\"#ffffff\" "
        "stroke-width=\"1\"/>\n",
        x, y, radius, fill);
  }

  std::string finish() { return out_ + "</svg>\n"; }

 private:
  std::string out_;
};

void draw_grid(Svg& svg, const Scale& x, const Scale& y, const Panel& panel, int count,
               const char* colour) {
  for (double tick : y.ticks(count)) {
    svg.line(kLeft, y(tick), kRight, y(tick), "#eceef1", 1);
    svg.text(kLeft - 8, y(tick) + 4, "end", 12, colour, tick_label(tick));
  }
  svg.line(kLeft, panel.bottom, kRight, panel.bottom, "#9aa0a8", 1);
  for (double tick : nice_ticks(x.from, x.to, 8)) {
    svg.line(x(tick), panel.bottom, x(tick), panel.bottom + 4, "#9aa0a8", 1);
    svg.text(x(tick), panel.bottom + 18, "middle", 12, kText, tick_label(tick));
  }
}

// One legend entry, a short line and its name; returns where the next one starts.
double legend(Svg& svg, double x, double y, const char* colour, const std::string& name,
              const char* dashes = "") {
  svg.line(x, y - 4, x + 22, y - 4, colour, 2.5, dashes);
  svg.text(x + 28, y, "start", 12, kText, name);
  return x + 28 + 6.4 * static_cast<double>(name.size()) + 22;
}

std::string summary(const RunMetrics& run, const PlotOptions& options) {
  std::string text;
  if (const Series* loss = run.find("loss")) {
    text += fmt::format("{:.0f} steps, training loss {:.3f}", loss->back().step,
                        smoothed(*loss).back().value);
  }
  if (const Series* validation = run.find("val_loss")) {
    const double last = validation->back().value;
    text += fmt::format("{}validation loss {:.3f}", text.empty() ? "" : ", ", last);
    if (options.floor) text += fmt::format(", {:.3f} above the floor", last - *options.floor);
  }
  return text + " (nats per token)";
}

void draw_loss(Svg& svg, const RunMetrics& run, const PlotOptions& options, const Scale& x) {
  Scale y = loss_range(run, options);
  y.begin = kLossPanel.bottom;
  y.end = kLossPanel.top;
  draw_grid(svg, x, y, kLossPanel, 7, kText);
  svg.vertical_text(16, (kLossPanel.top + kLossPanel.bottom) / 2, kText,
                    y.logarithmic ? "loss (logarithmic)" : "loss");
  double at = kLeft;
  if (options.floor) {
    svg.line(kLeft, y(*options.floor), kRight, y(*options.floor), kFloor, 1.5, "7 5");
  }
  if (const Series* loss = run.find("loss")) {
    svg.curve(thinned(*loss, 800), x, y, kTraining, 1, 0.28);
    svg.curve(thinned(smoothed(*loss), 400), x, y, kTraining, 2.2, 1);
    at = legend(svg, at, 78, kTraining, "training loss, smoothed");
  }
  if (const Series* validation = run.find("val_loss")) {
    svg.curve(*validation, x, y, kValidation, 1.8, 1);
    if (validation->size() <= 60) {
      for (const Point& p : *validation) svg.dot(x(p.step), y(p.value), 3.6, kValidation);
    }
    at = legend(svg, at, 78, kValidation, "validation loss");
  }
  if (options.floor) {
    legend(svg, at, 78, kFloor, fmt::format("entropy of the text {:.3f}", *options.floor), "7 5");
  }
}

// From zero to a little above nearly all values: one spike must not flatten the curve.
Scale from_zero(const Series& series, const Panel& panel) {
  std::vector<double> values;
  for (const Point& point : series) values.push_back(point.value);
  std::sort(values.begin(), values.end());
  const double high = values[static_cast<size_t>(0.99 * static_cast<double>(values.size() - 1))];
  return {0, high > 0 ? 1.12 * high : 1, panel.bottom, panel.top};
}

void draw_rate(Svg& svg, const RunMetrics& run, const Scale& x) {
  double at = kLeft;
  const double middle = (kRatePanel.top + kRatePanel.bottom) / 2;
  const Series* rate = run.find("lr");
  const Series* norm = run.find("grad_norm");
  if (!rate && !norm) return;
  const Scale left = from_zero(rate ? *rate : *norm, kRatePanel);
  draw_grid(svg, x, left, kRatePanel, 3, rate ? kRate : kNorm);
  svg.vertical_text(16, middle, rate ? kRate : kNorm, rate ? "learning rate" : "gradient norm");
  if (norm) {
    const Scale y = from_zero(*norm, kRatePanel);
    svg.curve(thinned(*norm, 800), x, y, kNorm, 1, 0.35);
    svg.curve(thinned(smoothed(*norm), 400), x, y, kNorm, 1.8, 1);
    if (rate) {
      for (double tick : nice_ticks(y.from, y.to, 3)) {
        svg.text(kRight + 8, y(tick) + 4, "start", 12, kNorm, tick_label(tick));
      }
      svg.vertical_text(kRight + 54, middle, kNorm, "gradient norm");
    }
  }
  if (rate) {
    svg.curve(thinned(*rate, 400), x, left, kRate, 2, 1);
    at = legend(svg, at, kRatePanel.top - 8, kRate, "learning rate");
  }
  if (norm) legend(svg, at, kRatePanel.top - 8, kNorm, "gradient norm, smoothed");
}

}  // namespace

std::string plot_svg(const RunMetrics& run, const PlotOptions& options) {
  Scale x = step_range(run);
  x.begin = kLeft;
  x.end = kRight;
  Svg svg;
  svg.text(kLeft, 32, "start", 18, "#1d2127", options.title.empty() ? run.name : options.title,
           "bold");
  svg.text(kLeft, 52, "start", 13, "#6a707a", summary(run, options));
  draw_loss(svg, run, options, x);
  draw_rate(svg, run, x);
  svg.text((kLeft + kRight) / 2, kHeight - 12, "middle", 12, kText, "step");
  return svg.finish();
}

}  // namespace lathe
