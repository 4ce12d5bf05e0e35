// Draws a run: RUN_DIR/metrics.jsonl as an SVG file, or as a small chart in the terminal.
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "tools/flags.h"
#include "tools/run_plot.h"

namespace lathe {
namespace {

namespace fs = std::filesystem;

void write_file(const fs::path& path, const std::string& content) {
  const fs::path partial = path.string() + ".partial";
  std::ofstream file(partial, std::ios::binary);
  file << content;
  file.close();
  std::error_code failed;
  if (file) fs::rename(partial, path, failed);
  if (!file || failed) {
    std::error_code ignored;
    fs::remove(partial, ignored);
    throw UserError("cannot write {}: check that its directory exists, has room and may be written",
                    path.string());
  }
}

int plot(int argc, char** argv) {
  CLI::App app("Draws the loss, learning rate and gradient norm of a run.", "plot");
  std::string run_dir, out, title;
  double floor = std::nan("");
  bool terminal = false;
  app.add_option("RUN_DIR", run_dir, "The directory of the run, or its metrics.jsonl")->required();
  app.add_option("--out", out, "The SVG file; RUN_DIR/loss.svg when not given");
  app.add_option("--floor", floor, "Draw the entropy of the text, in nats per token");
  app.add_option("--title", title, "Heading; the directory's name when not given");
  app.add_flag("--terminal", terminal, "Print a chart; a file is written only with --out");
  if (!parse_flags(app, argc, argv)) return 0;

  const RunMetrics run = read_run(run_dir);
  PlotOptions options;
  options.title = title;
  if (app.count("--floor") > 0) {
    if (!std::isfinite(floor)) throw UserError("--floor {}: give a finite number", floor);
    options.floor = floor;
  }
  if (terminal) {
    fmt::print("{}", plot_terminal(run, options, 70, 15, isatty(STDOUT_FILENO) != 0));
  }
  if (!terminal || !out.empty()) {
    const fs::path base =
        fs::is_directory(run_dir) ? fs::path(run_dir) : fs::path(run_dir).parent_path();
    const fs::path path = out.empty() ? base / "loss.svg" : fs::path(out);
    write_file(path, plot_svg(run, options));
    if (!terminal) fmt::print("{}\n", path.string());
  }
  return 0;
}

}  // namespace
}  // namespace lathe

int main(int argc, char** argv) {
  return lathe::run_main("plot", [&] { return lathe::plot(argc, argv); });
}
