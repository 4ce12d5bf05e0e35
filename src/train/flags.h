// The flags of build/train in one table: name, variable, help, check, and whether a resumed run may
// change it. The command line, --help, config.toml, --resume and docs/flags.md read this table.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "src/io/flags.h"
#include "src/train/options.h"

namespace lathe {

// Whether a resumed run may change a flag.
enum class OnResume : uint8_t {
  same,  // no: it would be a different run
  free,  // yes: all results stay the same, bit for bit
  // Yes. The run compares the data themselves, or the device and its threads; if these have
  // changed, later bits differ.
  compared,
  // Yes, but later bits differ: always, on GPUs, with several ranks, with several ranks on GPUs,
  // with three ranks or more over NCCL, which chooses the order of sums.
  other_bits,
  other_bits_on_gpus,
  other_bits_on_ranks,
  other_bits_on_gpu_ranks,
  other_bits_over_nccl
};

struct TrainFlag {
  Flag flag;
  OnResume on_resume = OnResume::same;
};

// All flags except --config. They read and write `options`.
std::vector<TrainFlag> train_flags(TrainOptions& options);

// The options of a job of `ranks`: flags override --config FILE, which overrides the preset. Throws
// UserError. On --help, rank 0 prints the help and `exit_code` becomes 0.
TrainOptions parse_train_options(int argc, char** argv, int* exit_code, int ranks = 1,
                                 int rank = 0);

// All flags with their values as TOML, one "name=value" per line. --config reads it.
std::string to_toml(const TrainOptions& options);

// All flags with their values by name, strings unquoted, as trainer.json keeps them.
using ConfigKeys = std::map<std::string, std::string>;
ConfigKeys config_keys(const TrainOptions& options);

// The text of docs/flags.md.
std::string flags_page();

}  // namespace lathe
