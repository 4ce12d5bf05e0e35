// Writes docs/flags.md from the table.
#include "src/train/flags.h"

namespace lathe {

namespace {

std::string_view on_resume_text(OnResume on_resume) {
  switch (on_resume) {
    case OnResume::same:
      return "must stay";
    case OnResume::free:
      return "may change";
    case OnResume::compared:
      return "compared";
    case OnResume::other_bits:
      return "other bits";
    case OnResume::other_bits_on_gpus:
      return "other bits on GPUs";
    case OnResume::other_bits_on_ranks:
      return "other bits on several ranks";
    case OnResume::other_bits_on_gpu_ranks:
      return "other bits on several GPUs";
    case OnResume::other_bits_over_nccl:
      return "other bits on three GPUs or more over NCCL";
  }
  return "?";
}

// The values that a flag accepts: `exact`, `tanh`, a number and its range.
std::string values_text(const Flag& flag) {
  if (flag.type.empty()) return "";
  if (flag.type == "TEXT") return "text";
  if (flag.type == "BOOLEAN") return "0 or 1";
  if (!flag.range.empty()) return flag.range;
  std::string text = "`";
  for (const char c : flag.type) text += c == '|' ? std::string("`, `") : std::string(1, c);
  return text + "`";
}

std::string default_text(const Flag& flag) {
  const std::string value = flag.text();
  if (flag.type.empty()) return "off";
  return value.empty() ? "" : "`" + value + "`";
}

constexpr std::string_view kHead = R"(# Flags of build/train

Written by `make docs` from the table in `src/train/flags.cpp`; a test compares the two.

Flags override the keys of `--config FILE`, which override the preset of `--model`. Each flag may be
given once. Numbers are decimal. The file is flat TOML with the same names: `lr = 3e-4`,
`gelu = "exact"`. The defaults below are those of the preset in the first row.

The last column says what a resumed run may change. "Must stay": a change would make it another run,
and is refused. "May change": each bit stays as it would have been. "Other bits": the run continues,
but not bit for bit, and prints that. "Compared": the run compares the data
themselves, or the device and its number of threads. If they have changed, it continues, but not bit
for bit, and prints that.
)";

}  // namespace

std::string flags_page() {
  TrainOptions options = preset(TrainOptions().model);
  std::string page(kHead), group;
  for (const auto& [flag, on_resume] : train_flags(options)) {
    if (flag.group != group) {
      group = flag.group;
      page += fmt::format(
          "\n## {}\n\n| flag | values | default | meaning | on resume |\n"
          "| --- | --- | --- | --- | --- |\n",
          group);
    }
    page += fmt::format("| `--{}` | {} | {} | {} | {} |\n", flag.name, values_text(flag),
                        default_text(flag), flag.help, on_resume_text(on_resume));
  }
  return page;
}

}  // namespace lathe
