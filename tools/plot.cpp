// Draws a run: RUN_DIR/metrics.jsonl as an SVG file, or as a small chart in the terminal.
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "kernels/device/standard_streams.h"
#include "src/flags.h"
#include "src/io/console.h"
#include "src/io/file.h"
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

// How many columns of dots fit beside the labels: 70, or what the terminal has.
int chart_columns() {
  const std::optional<int> width = terminal_columns(STDOUT_FILENO);
  return width ? std::clamp(*width - 1 - kGutterColumns, 10, 120) : 70;
}

int plot(int argc, char** argv) {
  CLI::App app("Draws the loss, learning rate and gradient norm of a run.", "plot");
  std::string run_dir, out, title, floor;
  bool terminal = false;
  app.add_option("RUN_DIR", run_dir, "The directory of the run, or its metrics.jsonl")->required();
  app.add_option("--out", out, "The SVG file; RUN_DIR/loss.svg when not given");
  app.add_option("--floor", floor,
                 "Draw the entropy of the text: nats per token, or the entropy.json of corpus");
  app.add_option("--title", title, "Heading; the directory's name when not given");
  add_switch(app, "--terminal", terminal, "Print a chart; a file is written only with --out");
  if (!parse_flags(app, argc, argv)) return 0;
  refuse_idle(app, "--title", terminal && out.empty(), "with --terminal and without --out");

  const RunMetrics run = read_run(run_dir);
  PlotOptions options;
  options.title = title;
  if (app.count("--floor") > 0) options.floor = read_floor(floor);
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
