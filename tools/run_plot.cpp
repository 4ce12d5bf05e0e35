// Reads a run and computes the numbers behind its pictures.
#include "tools/run_plot.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>

#include "kernels/device/error.h"
#include "src/io/json.h"

namespace lathe {
namespace {

void add(Series& series, Point point) {
  while (!series.empty() && series.back().step >= point.step) series.pop_back();
  series.push_back(point);
}

// False if the line is not a JSON object with a step.
bool add_line(const std::string& line, RunMetrics& run) {
  const auto object = parse_json(line, /*throws=*/false);
  if (!object.is_object() || !object.contains("step") || !object["step"].is_number()) return false;
  for (const char* key : {"loss", "val_loss", "lr", "grad_norm"}) {
    const auto value = object.find(key);
    if (value == object.end() || !value->is_number()) continue;
    const Point point{object["step"].get<double>(), value->get<double>()};
    if (can_be_drawn(point.step) && can_be_drawn(point.value)) add(run.series[key], point);
  }
  return true;
}

// The means of at most `buckets` groups of neighbouring points.
Series averaged(const Series& series, size_t buckets) {
  if (series.size() <= buckets) return series;
  Series result;
  for (size_t b = 0; b < buckets; ++b) {
    const size_t begin = b * series.size() / buckets;
    const size_t end = (b + 1) * series.size() / buckets;
    Point mean;
    for (size_t i = begin; i < end; ++i) {
      mean.step += series[i].step / static_cast<double>(end - begin);
      mean.value += series[i].value / static_cast<double>(end - begin);
    }
    result.push_back(mean);
  }
  return result;
}

}  // namespace

bool can_be_drawn(double value) {
  return std::abs(value) <= kLargestDrawn;  // false for NaN
}

double Scale::operator()(double value) const {
  if (!logarithmic) return begin + (value - from) / (to - from) * (end - begin);
  const double clamped = std::max(value, 1e-3 * from);
  return begin + std::log(clamped / from) / std::log(to / from) * (end - begin);
}

std::vector<double> Scale::ticks(int count) const {
  if (!logarithmic) return nice_ticks(from, to, count);
  std::vector<double> ticks;
  for (const auto& digits :
       {std::vector<double>{1, 1.5, 2, 3, 4, 5, 7}, {1, 2, 3, 5}, {1, 2, 5}, {1}}) {
    ticks.clear();
    for (double power = std::pow(10, std::floor(std::log10(from))); power <= to; power *= 10) {
      for (double digit : digits) {
        if (digit * power >= from && digit * power <= to) ticks.push_back(digit * power);
      }
    }
    if (static_cast<int>(ticks.size()) <= count) return ticks;
  }
  // Powers of ten, and still too many: take every second, third, ... of them.
  const size_t stride = ticks.size() / static_cast<size_t>(count) + 1;
  std::vector<double> some;
  for (size_t i = 0; i < ticks.size(); i += stride) some.push_back(ticks[i]);
  return some;
}

const Series* RunMetrics::find(const std::string& key) const {
  const auto found = series.find(key);
  return found == series.end() ? nullptr : &found->second;
}

RunMetrics read_run(const std::filesystem::path& path) {
  const auto file_path = std::filesystem::is_directory(path) ? path / "metrics.jsonl" : path;
  std::ifstream file(file_path);
  if (!file) {
    throw UserError("cannot read {}: give the directory of a run (--out of train)",
                    file_path.string());
  }
  RunMetrics run;
  const auto absolute = std::filesystem::absolute(file_path).lexically_normal();
  run.name = absolute.parent_path().filename().string();
  std::string line;
  for (size_t number = 1; std::getline(file, line); ++number) {
    const bool last = file.peek() == std::ifstream::traits_type::eof();
    if (line.empty() || add_line(line, run) || last) continue;
    throw UserError("{}, line {}: this is not a JSON object with a step; remove the line",
                    file_path.string(), number);
  }
  if (!run.find("loss") && !run.find("val_loss")) {
    throw UserError("{} holds no loss yet: let the run take a step first", file_path.string());
  }
  return run;
}

std::vector<double> nice_ticks(double low, double high, int count) {
  if (!(high > low)) return {low};
  const double rough = (high - low) / count;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  if (!(power > 0 && std::isfinite(power))) return {low};
  double distance = 10 * power;
  for (double factor : {5.0, 2.0, 1.0}) {
    if (factor * power >= rough) distance = factor * power;
  }
  std::vector<double> ticks;
  const double slack = 1e-9 * distance;
  const double first = std::ceil((low - slack) / distance);
  const double last = std::floor((high + slack) / distance);
  // Counts from 0, because adding 1 to a number of 2^53 or more may not change it.
  for (int i = 0; i <= last - first; ++i) {
    const double tick = (first + i) * distance;
    if (ticks.empty() || tick > ticks.back()) ticks.push_back(tick);
  }
  return ticks;
}

std::string tick_label(double value) {
  const double magnitude = std::abs(value);
  if (magnitude < 1e-12) return "0";
  if (magnitude >= 1e15) return fmt::format("{:.4g}", value);
  if (magnitude >= 1e12) return fmt::format("{:.4g}T", value / 1e12);
  if (magnitude >= 1e9) return fmt::format("{:.4g}G", value / 1e9);
  if (magnitude >= 1e6) return fmt::format("{:.4g}M", value / 1e6);
  if (magnitude >= 1e4) return fmt::format("{:.4g}k", value / 1e3);
  return fmt::format("{:.4g}", value);
}

Series smoothed(const Series& all) {
  if (all.size() < 3) return all;
  const Series series = averaged(all, 2000);
  const double width = (series.back().step - series.front().step) / 60;
  Series result;
  size_t first = 0;
  for (const Point& centre : series) {
    while (series[first].step < centre.step - 3 * width) ++first;
    double w = 0, wx = 0, wxx = 0, wy = 0, wxy = 0;  // weighted sums for the fit
    for (size_t i = first; i < series.size() && series[i].step <= centre.step + 3 * width; ++i) {
      const double x = (series[i].step - centre.step) / width;
      const double weight = std::exp(-0.5 * x * x);
      w += weight;
      wx += weight * x;
      wxx += weight * x * x;
      wy += weight * series[i].value;
      wxy += weight * x * series[i].value;
    }
    const double determinant = w * wxx - wx * wx;
    const bool line = determinant > 1e-9 * w * w;
    result.push_back({centre.step, line ? (wxx * wy - wx * wxy) / determinant : wy / w});
  }
  return result;
}

Series thinned(const Series& series, size_t buckets) {
  if (series.size() <= 2 * buckets) return series;
  const auto lower = [](const Point& a, const Point& b) { return a.value < b.value; };
  Series result;
  for (size_t b = 0; b < buckets; ++b) {
    const auto begin = series.begin() + static_cast<long>(b * series.size() / buckets);
    const auto end = series.begin() + static_cast<long>((b + 1) * series.size() / buckets);
    auto [low, high] = std::minmax_element(begin, end, lower);
    if (low > high) std::swap(low, high);
    result.push_back(*low);
    if (high != low) result.push_back(*high);
  }
  return result;
}

Scale loss_range(const RunMetrics& run, const PlotOptions& options) {
  double low = std::numeric_limits<double>::infinity();
  double high = -low;
  auto include = [&](double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  };
  if (const Series* loss = run.find("loss")) {
    std::vector<double> values;
    for (const Point& point : *loss) values.push_back(point.value);
    std::sort(values.begin(), values.end());
    include(values.front());
    include(values[static_cast<size_t>(0.995 * static_cast<double>(values.size() - 1))]);
    include(loss->front().value);
  }
  if (const Series* validation = run.find("val_loss")) {
    for (const Point& point : *validation) include(point.value);
  }
  if (options.floor) include(*options.floor);
  if (low > 1 / kLargestDrawn && high > 6 * low) return {low / 1.1, high * 1.1, 0, 1, true};
  const double margin = std::max(0.04 * (high - low), 1e-3 * std::max(std::abs(high), 1e-3));
  return {low - margin, high + margin};
}

Scale step_range(const RunMetrics& run) {
  double first = std::numeric_limits<double>::infinity();
  double last = -first;
  for (const auto& [key, series] : run.series) {
    first = std::min(first, series.front().step);
    last = std::max(last, series.back().step);
  }
  // Steps near 10^18 are more than 1 apart.
  const double next = std::nextafter(first, std::numeric_limits<double>::infinity());
  return {first, std::max({last, first + 1, next})};
}

}  // namespace lathe
