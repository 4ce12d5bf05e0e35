// Pictures of a run: reading metrics.jsonl, the numbers behind the curves, the drawing.
#include "tools/run_plot.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <sstream>

#include "kernels/device/error.h"
#include "kernels/device/printable.h"

namespace lathe {
namespace {

namespace fs = std::filesystem;

class RunPlot : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = fs::temp_directory_path() /
                 fmt::format("run_plot_{}_{}", getpid(),
                             ::testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::create_directories(directory_);
  }
  void TearDown() override { fs::remove_all(directory_); }

  RunMetrics read(const std::string& metrics) {
    std::ofstream(directory_ / "metrics.jsonl") << metrics;
    return read_run(directory_);
  }

  std::string mistake(const std::string& metrics) {
    try {
      read(metrics);
    } catch (const UserError& error) {
      return error.what();
    }
    return "accepted";
  }

  fs::path directory_;
};

RunMetrics falling_run(int steps) {
  RunMetrics run{"a <run> & \"more\"", {}};
  for (int step = 1; step <= steps; ++step) {
    const double noise = step % 2 == 0 ? 0.05 : -0.05;
    run.series["loss"].push_back({double(step), 1 + 3 * std::exp(-step / 100.0) + noise});
    run.series["lr"].push_back({double(step), 1e-3});
    run.series["grad_norm"].push_back({double(step), step == 7 ? 1e6 : 1.0});
    if (step % 100 == 0) run.series["val_loss"].push_back({double(step), 1.5});
  }
  return run;
}

size_t count(const std::string& text, const std::string& piece) {
  size_t found = 0;
  for (size_t at = text.find(piece); at != std::string::npos; at = text.find(piece, at + 1)) {
    ++found;
  }
  return found;
}

TEST_F(RunPlot, LinesMayLackKeysAndUnmeasuredValuesAreLeftOut) {
  const RunMetrics run = read(
      "{\"step\": 1, \"loss\": 4.5, \"lr\": 0.001}\n"
      "{\"step\": 2, \"val_loss\": 4}\n\n"
      "{\"step\": 3, \"loss\": null, \"val_loss\": 3, \"mfu\": \"x\", \"grad_norm\": 2}\n");
  ASSERT_TRUE(run.find("loss") && run.find("val_loss") && run.find("lr") && run.find("grad_norm"));
  EXPECT_EQ(run.find("loss")->size(), 1u);
  EXPECT_EQ(run.find("val_loss")->size(), 2u);
  EXPECT_EQ(run.find("val_loss")->back().step, 3);
  EXPECT_EQ(run.find("val_loss")->back().value, 3);
  EXPECT_EQ(run.find("mfu"), nullptr);
  EXPECT_EQ(run.name, directory_.filename().string());
}

TEST_F(RunPlot, AResumedRunReplacesWhatItRepeats) {
  std::string metrics;
  for (int step = 1; step <= 9; ++step)
    metrics += fmt::format("{{\"step\":{},\"loss\":9}}\n", step);
  for (int step = 5; step <= 7; ++step)
    metrics += fmt::format("{{\"step\":{},\"loss\":1}}\n", step);
  const RunMetrics run = read(metrics);
  ASSERT_EQ(run.find("loss")->size(), 7u);
  EXPECT_EQ((*run.find("loss"))[3].value, 9);
  EXPECT_EQ((*run.find("loss"))[4].step, 5);
  EXPECT_EQ((*run.find("loss"))[4].value, 1);
}

TEST_F(RunPlot, ALastLineCutShortIsLeftOut) {
  for (const std::string cut : {"{\"step\": 2, \"lo", "{\"step\": 2, \"lo\n", "\xff\xfe", "{}"}) {
    EXPECT_EQ(read("{\"step\": 1, \"loss\": 4.5}\n" + cut).find("loss")->size(), 1u) << cut;
  }
}

TEST_F(RunPlot, MistakesAreNamed) {
  EXPECT_NE(mistake("{\"step\": 1, \"loss\": 4}\n{\"st\n{\"step\": 2}\n").find("line 2"),
            std::string::npos);
  EXPECT_NE(mistake("[1]\n{\"step\": 2, \"loss\": 4}\n").find("line 1"), std::string::npos);
  EXPECT_NE(mistake("").find("holds no loss"), std::string::npos);
  EXPECT_NE(mistake("{\"step\": 1, \"lr\": 4}\n").find("holds no loss"), std::string::npos);
  EXPECT_THROW(read_run(directory_ / "absent"), UserError);
}

TEST(Scale, MapsItsEndsLinearlyAndLogarithmically) {
  const Scale linear{2, 4, 100, 0};
  EXPECT_DOUBLE_EQ(linear(2), 100);
  EXPECT_DOUBLE_EQ(linear(3), 50);
  const Scale logarithmic{0.1, 10, 0, 100, true};
  EXPECT_NEAR(logarithmic(1), 50, 1e-9);
  EXPECT_NEAR(logarithmic(10), 100, 1e-9);
  EXPECT_TRUE(std::isfinite(logarithmic(0)));
}

TEST(Ticks, AreRoundNumbersInside) {
  EXPECT_EQ(nice_ticks(0, 10, 5), (std::vector<double>{0, 2, 4, 6, 8, 10}));
  const auto fractions = nice_ticks(0.31, 0.74, 4);
  ASSERT_EQ(fractions.size(), 2u);
  EXPECT_NEAR(fractions[0], 0.4, 1e-12);
  EXPECT_EQ(nice_ticks(3, 3, 5), std::vector<double>{3});
  for (double high : {1e-6, 0.37, 1.0, 42.0, 2000.0, 7e9}) {
    for (int wanted : {3, 5, 8}) {
      const auto ticks = nice_ticks(0, high, wanted);
      EXPECT_GE(static_cast<int>(ticks.size()), wanted / 2) << high;
      EXPECT_LE(static_cast<int>(ticks.size()), wanted + 1) << high;
      EXPECT_LE(ticks.back(), high * (1 + 1e-9));
    }
  }
  const std::vector<double> expected = {0.3, 0.5, 1, 2, 3, 5};
  const std::vector<double> logarithmic = Scale{0.25, 6, 0, 1, true}.ticks(7);
  ASSERT_EQ(logarithmic.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(logarithmic[i], expected[i], 1e-12);
  EXPECT_EQ(tick_label(0), "0");
  EXPECT_EQ(tick_label(0.0006), "0.0006");
  EXPECT_EQ(tick_label(1500), "1500");
  EXPECT_EQ(tick_label(20000), "20k");
  EXPECT_EQ(tick_label(2.5e6), "2.5M");
  EXPECT_EQ(tick_label(1e9), "1G");
  EXPECT_EQ(tick_label(-2.5e13), "-25T");
  EXPECT_EQ(tick_label(1e18), "1e+18");
}

TEST(Ticks, AreFewAndRiseHoweverLargeOrCloseTheNumbersAre) {
  const double large = 1e18, next = std::nextafter(1e18, 2e18);
  const std::pair<double, double> ranges[] = {{large, large},
                                              {large, next},
                                              {large, large + 1000},
                                              {-next, -large},
                                              {0, large},
                                              {1, 1e100},
                                              {-1e100, 1e100},
                                              {1e-90, 1e100},
                                              {0, 5e-324},
                                              {1, std::nextafter(1.0, 2.0)},
                                              {-1e308, 1e308}};
  for (const auto& [low, high] : ranges) {
    for (const int wanted : {1, 3, 8}) {
      std::vector<std::vector<double>> found = {nice_ticks(low, high, wanted)};
      if (low > 0) found.push_back(Scale{low, high, 0, 1, true}.ticks(wanted));
      for (const auto& ticks : found) {
        EXPECT_LE(ticks.size(), 2u * static_cast<size_t>(wanted) + 2) << low << " " << high;
        EXPECT_TRUE(std::is_sorted(ticks.begin(), ticks.end(), std::less_equal<>())) << low;
      }
    }
  }
}

TEST(Smoothed, FollowsALineUpToItsEndsAndDampsNoise) {
  Series line, noise;
  for (int step = 0; step < 600; ++step) {
    line.push_back({double(step), 5 - 0.01 * step});
    noise.push_back({double(step), step % 2 == 0 ? 1.0 : -1.0});
  }
  for (const Point& point : smoothed(line)) EXPECT_NEAR(point.value, 5 - 0.01 * point.step, 1e-9);
  for (const Point& point : smoothed(noise)) EXPECT_LT(std::abs(point.value), 0.25);
  Series lengthy;
  for (int step = 0; step < 1'000'000; ++step) lengthy.push_back({double(step), 2.0 * step});
  for (const Point& point : smoothed(lengthy)) EXPECT_NEAR(point.value, 2 * point.step, 1e-3);
  EXPECT_LE(smoothed(lengthy).size(), 2000u);
  EXPECT_EQ(smoothed({{1, 2}}).size(), 1u);
  EXPECT_TRUE(smoothed({}).empty());
}

TEST(Thinned, KeepsTheExtremesAndTheOrder) {
  Series series;
  for (int step = 0; step < 100'000; ++step) series.push_back({double(step), std::sin(step)});
  series[77'777].value = 50;
  series[33'333].value = -50;
  const Series thin = thinned(series, 100);
  EXPECT_LE(thin.size(), 200u);
  double low = 0, high = 0, previous = -1;
  for (const Point& point : thin) {
    EXPECT_GT(point.step, previous);
    previous = point.step;
    low = std::min(low, point.value);
    high = std::max(high, point.value);
  }
  EXPECT_EQ(low, -50);
  EXPECT_EQ(high, 50);
}

TEST(LossRange, HoldsTheFloorAndIsLogarithmicOnlyForALongFall) {
  const RunMetrics run = falling_run(1000);
  PlotOptions options;
  EXPECT_FALSE(loss_range(run, options).logarithmic);
  options.floor = 0.2;
  const Scale range = loss_range(run, options);
  EXPECT_TRUE(range.logarithmic);
  EXPECT_LT(range.from, 0.2);
  EXPECT_GT(range.to, run.find("loss")->front().value);
  RunMetrics spike = run;
  spike.series["loss"][500].value = 1e4;  // one outlier does not flatten the rest
  EXPECT_LT(loss_range(spike, options).to, 10);
}

TEST(PlotSvg, HasEveryCurveAndIsWellFormed) {
  PlotOptions options;
  options.floor = 0.289;
  const std::string svg = plot_svg(falling_run(1000), options);
  EXPECT_EQ(count(svg, "<polyline"), 6u);  // loss and norm raw and smoothed, validation, rate
  EXPECT_EQ(count(svg, "<circle"), 10u);
  EXPECT_EQ(count(svg, "stroke-dasharray"), 2u);  // the floor and its legend
  EXPECT_NE(svg.find("entropy of the text 0.289"), std::string::npos);
  EXPECT_NE(svg.find("a &lt;run&gt; &amp; &quot;more&quot;"), std::string::npos);
  EXPECT_EQ(count(svg, "<text"), count(svg, "</text>"));
  EXPECT_EQ(count(svg, "<"), count(svg, ">"));
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(svg.find("inf"), std::string::npos);
  options.floor.reset();
  EXPECT_EQ(count(plot_svg(falling_run(1000), options), "stroke-dasharray"), 0u);
}

TEST(PlotSvg, SmallAndLargeRuns) {
  RunMetrics validation_only{"v", {{"val_loss", {{0, 4.2}}}}};
  RunMetrics flat{"f", {{"loss", {{1, 0.0}, {2, 0.0}}}, {"lr", {{1, 0.0}}}}};
  for (const RunMetrics& run : {validation_only, flat, falling_run(1), falling_run(2)}) {
    const std::string svg = plot_svg(run, {});
    EXPECT_EQ(svg.find("nan"), std::string::npos);
    EXPECT_EQ(svg.find("inf"), std::string::npos);
    EXPECT_FALSE(plot_terminal(run, {}, 70, 15, false).empty());
  }
  EXPECT_LT(plot_svg(falling_run(20'000), {}).size(), 100'000u);
}

// Everything that XML requires of the text: UTF-8, and only XML's characters.
void expect_xml_text(const std::string& svg) {
  for (std::string_view rest = svg; !rest.empty();) {
    const Character c = character_at(rest);
    EXPECT_FALSE(c.code == kBroken || (c.code < 0x20 && c.code != '\t' && c.code != '\n') ||
                 c.code == 0xfffe || c.code == 0xffff)
        << c.code;
    rest.remove_prefix(c.bytes);
  }
}

TEST(PlotSvg, IsXmlWhateverTheRunIsCalled) {
  RunMetrics run = falling_run(20);
  run.name = "caf\xe9 <\x01\x1b[2J\x7f> \xed\xa0\x80 \uFFFE\uFFFF ok\u00e9\U0001F600";
  const std::string svg = plot_svg(run, {});
  expect_xml_text(svg);
  EXPECT_NE(svg.find(">caf\uFFFD &lt;??[2J?&gt; "), std::string::npos);
  EXPECT_NE(svg.find(" \uFFFD\uFFFD ok\u00e9\U0001F600<"), std::string::npos);
  PlotOptions titled;
  titled.title = "\xff";
  expect_xml_text(plot_svg(run, titled));
}

TEST_F(RunPlot, HugeNumbersAreDrawnOrLeftOut) {
  for (const char* values :
       {"1e9 4 3 2", "4 1e9 3 2", "4 3 -1e9 2", "4 3 2 1e100", "1e-90 1e90 1 2", "1e308 4 3 2",
        "4 -1e308 1e308 3", "5e-324 4 3 2", "1e18 1e18 1e18 1e18"}) {
    for (const double first_step : {0.0, 1e18, 9.2e18, 1e99}) {
      std::string metrics;
      double step = first_step;
      std::istringstream losses(values);
      for (std::string loss; losses >> loss; step = std::nextafter(step + 1, 1e300)) {
        metrics += fmt::format(
            "{{\"step\": {:.17g}, \"loss\": {}, \"val_loss\": {}, \"grad_norm\": {}}}\n", step,
            loss, loss, loss);
      }
      SCOPED_TRACE(metrics);
      const RunMetrics run = read(metrics);
      const std::string svg = plot_svg(run, {}), chart = plot_terminal(run, {}, 70, 15, false);
      for (const std::string& picture : {svg, chart}) {
        EXPECT_LT(picture.size(), 20'000u);
        EXPECT_EQ(picture.find("nan"), std::string::npos) << picture;
        EXPECT_EQ(picture.find("inf"), std::string::npos) << picture;
      }
    }
  }
  EXPECT_NE(mistake("{\"step\": 1, \"loss\": 1e101}\n").find("holds no loss"), std::string::npos);
}

size_t columns_of(const std::string& line) {  // each character of a chart takes one column
  return line.size() -
         count_if(line.begin(), line.end(), [](char c) { return (c & 0xc0) == 0x80; });
}

TEST(PlotTerminal, NoLineIsWiderThanItMayBe) {
  PlotOptions options;
  options.floor = 0.289;
  RunMetrics loud = falling_run(1000);
  for (Point& point : loud.series["loss"]) point.value *= -1.25e18;
  for (const RunMetrics& run : {falling_run(1), falling_run(2000), loud}) {
    for (const int columns : {10, 32, 70, 120}) {
      const std::string chart = plot_terminal(run, options, columns, 15, false);
      std::istringstream lines(chart);
      size_t rows = 0;
      for (std::string line; std::getline(lines, line); ++rows) {
        // An entry of the legend is never cut.
        const size_t most = std::max<size_t>(columns + kGutterColumns, rows < 17 ? 0 : 32);
        EXPECT_LE(columns_of(line), most) << chart;
      }
    }
  }
  EXPECT_NE(plot_terminal(falling_run(2000), {}, 70, 15, false).find("\n  step "),
            std::string::npos);
}

TEST(PlotTerminal, HasTheAskedSizeAndItsMarks) {
  PlotOptions options;
  options.floor = 0.289;
  const std::string chart = plot_terminal(falling_run(1000), options, 40, 10, false);
  EXPECT_EQ(count(chart, "\n"), 14u);  // rows, axis, labels, two lines of legend
  EXPECT_EQ(chart.find('\x1b'), std::string::npos);
  EXPECT_EQ(count(chart, "o"), 10u + 4u);  // ten validations; the legend has one, and three letters
  EXPECT_GT(count(chart, "\u254c"), 30u);
  const std::string coloured = plot_terminal(falling_run(1000), options, 40, 10, true);
  EXPECT_NE(coloured.find("\x1b[34m"), std::string::npos);
  EXPECT_EQ(count(coloured, "\x1b["), 2 * count(coloured, "\x1b[0m"));
}

}  // namespace
}  // namespace lathe
