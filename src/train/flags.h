// The flags of build/train in one table: name, variable, help, check, and what a resumed run may
// change. The command line, --help, config.toml, --resume and docs/flags.md read it.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "src/io/flags.h"
#include "src/train/options.h"

namespace lathe {

// Whether a resumed run may change a flag.
enum class OnResume : uint8_t {
  same,  // no: it would be another run
  free,  // yes, and each bit stays as it would have been
  // Yes, but later bits differ: always, on GPUs, with several ranks, with several ranks on GPUs.
  other_bits,
  other_bits_on_gpus,
  other_bits_on_ranks,
  other_bits_on_gpu_ranks
};

struct TrainFlag {
  Flag flag;
  OnResume on_resume = OnResume::same;
};

// All flags but --config; they read and write `options`.
std::vector<TrainFlag> train_flags(TrainOptions& options);

// The preset, changed by --config FILE, changed by flags, for a job of `ranks`. Throws UserError;
// sets `exit_code` to 0 after --help, which rank 0 prints.
TrainOptions parse_train_options(int argc, char** argv, int* exit_code, int ranks = 1,
                                 int rank = 0);

// Each flag with its value: "name=value" a line, TOML that --config reads.
std::string to_toml(const TrainOptions& options);

// The same by name, strings without their quotes: what trainer.json keeps.
using ConfigKeys = std::map<std::string, std::string>;
ConfigKeys config_keys(const TrainOptions& options);

// The page docs/flags.md.
std::string flags_page();

}  // namespace lathe
