// Draws a run: RUN_DIR/metrics.jsonl as an SVG file, or as a small chart in the terminal.
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "kernels/device/standard_streams.h"
#include "src/io/console.h"
#include "src/io/file.h"
#include "src/io/flags.h"
#include "src/io/json.h"
#include "tools/run_plot.h"

namespace lathe {
namespace {

namespace fs = std::filesystem;

// A number, or the file that `corpus` writes beside its text.
double read_floor(const std::string& floor) {
  const auto drawn = [&floor](double value) {
    if (can_be_drawn(value)) return value;
    throw UserError("--floor {}: give a finite number of at most {}", floor, kLargestDrawn);
  };
  if (const auto number = parse_number<double>(floor)) return drawn(*number);
  std::ifstream file(floor);
  const std::string text(std::istreambuf_iterator<char>(file), {});
  const auto json = parse_json(text, /*throws=*/false);
  if (!json.is_object() || !json.contains("nats_per_character")) {
    throw UserError("--floor {}: give a number, or a file with nats_per_character", floor);
  }
  const auto& nats = json["nats_per_character"];
  return drawn(nats.is_number() ? nats.get<double>() : std::nan(""));
}

// Columns of dots beside the labels: 70, or as many as the terminal has room for.
int chart_columns() {
  const std::optional<int> width = terminal_columns(STDOUT_FILENO);
  return width ? std::clamp(*width - 1 - kGutterColumns, 10, 120) : 70;
}

int plot(int argc, char** argv) {
  std::string run_dir, out, title, floor;
  bool terminal = false;
  Flags flags("plot", "Draws the loss, learning rate and gradient norm of a run.",
              {required(text("RUN_DIR", run_dir, "The directory of the run, or its metrics.jsonl")),
               text("out", out, "The SVG file; RUN_DIR/loss.svg if not given"),
               text("floor", floor,
                    "Draw the entropy of the text: nats per token, or the entropy.json of corpus"),
               text("title", title, "Heading; the directory's name if not given"),
               toggle("terminal", terminal, "Print a chart; a file is written only with --out")});
  if (!flags.parse(argc, argv)) return 0;
  flags.refuse_idle("title", terminal && out.empty(), "with --terminal and without --out");

  const RunMetrics run = read_run(run_dir);
  PlotOptions options;
  options.title = title;
  if (flags.given("floor")) options.floor = read_floor(floor);
  if (terminal) {
    write_out(plot_terminal(run, options, chart_columns(), 15, can_colour(STDOUT_FILENO)));
  }
  if (!terminal || !out.empty()) {
    const fs::path base =
        fs::is_directory(run_dir) ? fs::path(run_dir) : fs::path(run_dir).parent_path();
    const fs::path path = out.empty() ? base / "loss.svg" : fs::path(out);
    write_file(path, plot_svg(run, options));
    if (!terminal) note_out(path.string() + "\n");
  }
  return 0;
}

}  // namespace
}  // namespace lathe

int main(int argc, char** argv) {
  return lathe::run_main("plot", [&] { return lathe::plot(argc, argv); });
}
