// How build/train reads its flags and --config, in one process.
#include "src/train/flags.h"

#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "tests/data/temp_dir.h"

namespace lathe {
namespace {

using Words = std::vector<std::string>;

TrainOptions parse(Words words, int ranks = 1) {
  words.insert(words.begin(), {"train", "--dry-run"});
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  int exit_code = -1;
  return parse_train_options(static_cast<int>(arguments.size()), arguments.data(), &exit_code,
                             ranks);
}

class Options : public ::testing::Test {
 protected:
  // Parses `text` as --config, followed by more words.
  TrainOptions parse_file(const std::string& text, Words words = {}) {
    words.insert(words.begin(), {"--config", write_text(scratch / "c.toml", text).string()});
    return parse(words);
  }

  TempDir scratch;
};

TEST_F(Options, NumbersAreDecimal) {
  EXPECT_EQ(parse({"--steps", "010"}).steps, 10);
  EXPECT_EQ(parse({"--steps", "0099"}).steps, 99);
  EXPECT_EQ(parse_file("steps = 010\n").steps, 10);
  expect_contains(to_toml(parse({"--steps", "010"})), "\nsteps=10\n");
  EXPECT_EQ(parse({"--seed", "18446744073709551615"}).seed, UINT64_MAX);
  EXPECT_EQ(parse_file("seed = 18446744073709551615\n").seed, UINT64_MAX);
  EXPECT_EQ(parse({"--steps", "4294967295"}).steps, 4294967295);
  EXPECT_EQ(parse({"--out", "o", "--keep", "3000000000"}).keep, 3000000000);
  EXPECT_EQ(parse({"--lr", "1e-3"}).lr, 1e-3);
  EXPECT_EQ(parse({"--lr", "00.1"}).lr, 0.1);
  EXPECT_EQ(parse({"--dropout", "0.1"}).model_config.dropout, 0.1f);
  EXPECT_TRUE(parse({"--bias", "on"}).model_config.bias);
  EXPECT_FALSE(parse({"--bias", "0"}).model_config.bias);
  EXPECT_TRUE(parse_file("tf32 = true\n").cuda.tf32);
  EXPECT_FALSE(parse_file("tf32 = false\n").cuda.tf32);
}

TEST_F(Options, WhatIsNoSuchNumberIsRefusedByName) {
  const std::map<std::string, Words> table = {
      {"steps",
       {"0x10", "0b11", "0o7", "1e3", "1.5", "+5", " 5", "5 ", "", "-1", "4294967296", "x"}},
      {"seed", {"18446744073709551616", "99999999999999999999", "-1", "0x7", "1e3"}},
      {"keep", {"0", "9223372036854775808"}},
      {"threads", {"4097", "4294967297"}},
      {"n-layer", {"1025", "4294967297"}},
      {"bucket-mb", {"4294967296"}},
      {"matmul-alignment", {"0x10", "17"}},
      {"comm-timeout", {"10000000000", "nan"}},
      {"lr", {"1e308", "1e39", "1e400", "1e7", "inf", "nan", "0x1p-3", "1e", " 1", "-1"}},
      {"min-lr", {"1e308"}},
      {"weight-decay", {"1e308", "1e39"}},
      {"init-std", {"1e308"}},
      {"grad-clip", {"1e400", "inf"}},
      {"eps", {"1e-50", "0"}},
      {"dropout", {"1e-400x", "2"}},
      {"bias", {"7", "10foo", "+", "maybe", ""}}};
  for (const auto& [flag, texts] : table) {
    for (const std::string& text : texts) {
      SCOPED_TRACE(flag + " '" + text + "'");
      const std::string words = user_error([&] { parse({"--" + flag, text}); });
      expect_contains(words, "--" + flag);
      if (flag != "matmul-alignment") expect_contains(words, "'" + text + "'");
      const std::string quoted = flag + " = \"" + text + "\"\n";
      expect_contains(user_error([&] { parse_file(quoted); }), "--" + flag);
    }
  }
  expect_contains(user_error([] {
                    parse({"--steps", "1e3"});
                  }),
                  "'1e3' is no whole number in decimal digits from 0 to 4294967295");
  expect_contains(user_error([] { parse({"--seed", "-1"}); }), "from 0 to 18446744073709551615");
  expect_contains(user_error([] { parse({"--tf32=maybe"}); }), "--tf32");
}

TEST_F(Options, MicroStepsHaveALimit) {
  const TrainOptions o =
      parse({"--batch-size", "1", "--seq-len", "1", "--total-batch-size", "4294967296"});
  expect_contains(user_error([&] { o.micro_steps(1); }), "--total-batch-size 4294967296");
  EXPECT_EQ(o.micro_steps(int64_t{1} << 12), int64_t{1} << 20);
}

TEST_F(Options, AnyTextSurvivesTheConfiguration) {
  for (const std::string text : {"a#b",
                                 "a # b",
                                 "\"",
                                 "'",
                                 "\"'\"",
                                 "a\nb",
                                 "a\r\nb",
                                 "\t",
                                 "\\",
                                 "\\n",
                                 "[y]",
                                 "[a,b]",
                                 "{}",
                                 "%%",
                                 "=",
                                 "a=b",
                                 "steps=3\nlr=1",
                                 "#",
                                 "true",
                                 "nan",
                                 "1e3",
                                 "010",
                                 "0x10",
                                 " ",
                                 " a ",
                                 "\x01\x1b\x7f",
                                 "größe/läufe",
                                 "\xf0\x9f\x98\x80",
                                 "\"quoted\"",
                                 "'quoted'",
                                 "a,b c"}) {
    SCOPED_TRACE(text);
    const TrainOptions given = parse({"--out", text, "--data", text, "--rendezvous", text});
    EXPECT_EQ(given.out, text);
    const TrainOptions read = parse_file(to_toml(given));
    EXPECT_EQ(read.out, text);
    EXPECT_EQ(read.data, text);
    EXPECT_EQ(read.rendezvous, text);
    EXPECT_EQ(to_toml(read), to_toml(given));
  }
}

TEST_F(Options, TheConfigurationHoldsEveryFlagAsItIs) {
  const TrainOptions given = parse({"--model",
                                    "shakespeare-char",
                                    "--vocab-size",
                                    "65",
                                    "--seed",
                                    "18446744073709551615",
                                    "--lr",
                                    "0.1",
                                    "--eps",
                                    "3e-9",
                                    "--beta2",
                                    "0.987",
                                    "--dtype",
                                    "bf16",
                                    "--deterministic",
                                    "--autotune",
                                    "false",
                                    "--recompute",
                                    "block",
                                    "--stochastic-rounding",
                                    "--init-std",
                                    "0.07",
                                    "--schedule",
                                    "linear",
                                    "--bias",
                                    "true",
                                    "--grad-clip",
                                    "0.30000000000000004"});
  const TrainOptions read = parse_file(to_toml(given));
  EXPECT_EQ(to_toml(read), to_toml(given));
  EXPECT_EQ(read.seed, UINT64_MAX);
  EXPECT_EQ(read.optimizer.grad_clip, 0.30000000000000004);
  EXPECT_EQ(read.optimizer.eps, 3e-9f);
  EXPECT_TRUE(read.optimizer.stochastic_rounding && read.cuda.deterministic &&
              read.model_config.bias);
  EXPECT_FALSE(read.cuda.autotune || read.cuda.tf32);
}

TEST_F(Options, ConfigurationFilesAreToml) {
  const TrainOptions o = parse_file(
      "# a comment\r\n\r\n  steps = 7 # seven\nout='C:\\x#y'\n\tlr\t=\t1e-4\t\n\"gelu\" = "
      "\"exact\"\n"
      "data = \"\\u00e4 \\\"#\\\" \\\\\"#end\nbias = false");
  EXPECT_EQ(o.steps, 7);
  EXPECT_EQ(o.out, "C:\\x#y");
  EXPECT_EQ(o.lr, 1e-4);
  EXPECT_EQ(o.data, "ä \"#\" \\");
  EXPECT_FALSE(o.model_config.bias);
  for (const auto& [text, part] : std::map<std::string, std::string>{
           {"\ngelu = tanh\n", "line 2: --gelu is \"tanh\": a text needs quotes"},
           {"steps = 1\n\nsteps = 2\n", "line 3: --steps is in line 1 already"},
           {"steps = 1 2\n", "line 1: --steps has more than one value"},
           {"steps =\n", "line 1: --steps has no value"},
           {"steps = # 3\n", "line 1: --steps has no value"},
           {"out = \"a\n", "line 1: --out has a string without its closing quote"},
           {"out = \"a\\\"\n", "line 1: --out has a string without its closing quote"},
           {"out = \"\"\"a\"\"\"\n", "several lines"},
           {"out = \"\\q\"\n", "escape"},
           {"out = \"a\\u0000b\"\n", "NUL"},
           {"out = [1]\n", "list"},
           {"steps\n", "line 1: this is no line 'key = value'"},
           {"a.b = 3\n", "sections"},
           {"[optimizer]\n", "line 1: sections are not known"},
           {"bogus = 3\n", "line 1: there is no key bogus"},
           {"config = \"x\"\n", "there is no key config"},
           {"help = true\n", "there is no key help"},
           {"out = \"\xff\"\n", "UTF-8"}}) {
    SCOPED_TRACE(text);
    const std::string words = user_error([&] { parse_file(text); });
    expect_contains(words, part);
    expect_contains(words, (scratch / "c.toml").string());
  }
  expect_contains(user_error([] { parse({"--config", "/dev/zero"}); }), "/dev/zero");
}

TEST_F(Options, TextThatIsNotUtf8IsRefusedAtOnce) {
  for (const char* flag : {"--out", "--data", "--init", "--resume", "--trace", "--tuning-log"}) {
    const std::string words = user_error([&] { parse({flag, "caf\xe9"}); });
    expect_contains(words, flag);
    expect_contains(words, "UTF-8");
  }
}

TEST_F(Options, AFlagThatDoesNothingIsRefused) {
  for (const auto& [words, part] : std::vector<std::pair<Words, std::string>>{
           {{"--init", "d", "--init-std", "0.1"}, "--init-std does nothing with --init d"},
           {{"--schedule", "constant", "--min-lr", "0"}, "--min-lr does nothing"},
           {{"--schedule", "constant", "--lr-decay-steps", "9"}, "--lr-decay-steps does nothing"},
           {{"--deterministic", "--autotune", "1"}, "--autotune does nothing"},
           {{"--tf32", "--dtype", "bf16"}, "--tf32 does nothing"},
           {{"--sample-tokens", "9"}, "--sample-tokens does nothing without --sample-interval"},
           {{"--checkpoint-interval", "5"}, "--checkpoint-interval does nothing without --out"},
           {{"--keep", "5"}, "--keep does nothing without --out"},
           {{"--resume", "auto"}, "--resume does nothing as auto without --out"},
           {{"--resume", "d", "--benchmark"}, "--resume does nothing with --benchmark"},
           {{"--eval-only", "--trace", "t"}, "--trace does nothing with --eval-only"},
           {{"--eval-only", "--profile", "1:2"}, "--profile does nothing with --eval-only"},
           {{"--eval-only", "--benchmark"}, "--eval-only does nothing with --benchmark"}}) {
    SCOPED_TRACE(part);
    expect_contains(user_error([&] { parse(words); }), part);
  }
  // These flags have an effect on another machine or without a mode like --benchmark: no error.
  parse({"--tf32", "--deterministic", "--device", "cpu"});
  parse({"--zero-stage", "1", "--bucket-mb", "1", "--reduce-dtype", "bf16", "--lr-scale", "sqrt"});
  parse({"--out", "o", "--checkpoint-interval", "5", "--keep", "3", "--resume", "auto",
         "--sample-interval", "5", "--sample-tokens", "7", "--benchmark"});
  parse({"--autotune", "0", "--deterministic"});
  parse({"--resume", "never"});
  parse({"--eval-interval", "0", "--eval-batches", "3"});
  // config.toml has all keys, so a key that a flag makes idle is no error.
  const std::string all = to_toml(parse({"--out", "o"}));
  parse_file(all, {"--schedule", "constant"});
  parse_file(all, {"--init", "d"});
  parse_file(all, {"--eval-only"});
}

TEST_F(Options, ScheduleAndWarmUpFitEachOther) {
  const std::string words = user_error([] {
    parse({"--warmup-steps", "100", "--lr-decay-steps", "99"});
  });
  expect_contains(words, "--lr-decay-steps 99 is below --warmup-steps 100");
  user_error([] { parse({"--steps", "9", "--lr-decay-steps", "9"}); });
  parse({"--warmup-steps", "100", "--lr-decay-steps", "100"});
  // A short trial ends within the warm-up. Its config.toml can be read again.
  parse_file(to_toml(parse({"--steps", "8"})));
  // Without a decay, min-lr does not matter.
  EXPECT_EQ(parse({"--schedule", "constant", "--lr", "1e-6"}).lr, 1e-6);
  expect_contains(user_error([] { parse({"--lr", "1e-6"}); }), "--min-lr");
}

TEST_F(Options, WhoGaveAValueIsKnown) {
  const TrainOptions o = parse_file("steps = 3\nn-layer = 2\n", {"--steps", "4"});
  EXPECT_EQ(o.source_of("steps"), FlagSource::command_line);
  EXPECT_EQ(o.source_of("n-layer"), FlagSource::file);
  EXPECT_EQ(o.source_of("n-embd"), FlagSource::preset);
  EXPECT_EQ(o.steps, 4);
}

TEST_F(Options, EnumerationsAreReadByName) {
  const TrainOptions o = parse({"--gelu", "exact", "--recompute", "block", "--schedule", "wsd",
                                "--dtype", "bf16", "--sampling", "sequential", "--device", "cuda",
                                "--comm", "nccl", "--lr-scale", "sqrt", "--reader", "mpi-io"});
  EXPECT_EQ(o.model_config.gelu, Gelu::exact);
  EXPECT_EQ(o.recompute, Recompute::block);
  EXPECT_EQ(o.schedule, Schedule::wsd);
  EXPECT_EQ(o.dtype, DType::bf16);
  EXPECT_EQ(o.sampling, Sampling::sequential);
  EXPECT_EQ(o.device, DeviceKind::cuda);
  EXPECT_EQ(o.comm, CommKind::nccl);
  EXPECT_EQ(o.lr_scale, LrScale::sqrt);
  EXPECT_EQ(o.reader, Reader::mpi_io);
  expect_contains(user_error([] {
                    parse({"--recompute", "all"});
                  }),
                  "--recompute: 'all' is none of none, gelu, layernorm, block");
}

// Every flag reads what it writes, has a help text, and is in docs/flags.md.
TEST_F(Options, TheTableIsWhole) {
  TrainOptions options;
  std::set<std::string> names;
  for (const auto& [flag, on_resume] : train_flags(options)) {
    SCOPED_TRACE(flag.name);
    EXPECT_TRUE(names.insert(flag.name).second);
    EXPECT_FALSE(flag.help.empty());
    EXPECT_EQ(flag.set(flag.text()), "");
  }
  EXPECT_EQ(config_keys(options).size(), names.size());
  std::ifstream file(LATHE_FLAGS_PAGE);
  const std::string page{std::istreambuf_iterator<char>(file), {}};
  EXPECT_TRUE(page == flags_page()) << "docs/flags.md is not that of the table: run `make docs`";
}

TEST_F(Options, ScaledLearningRatesAreNotScaledTwice) {
  const TrainOptions o = parse({"--lr", "1e-3", "--lr-scale", "linear"}, /*ranks=*/4);
  EXPECT_EQ(o.lr, 4e-3);
  EXPECT_EQ(o.lr_scale, LrScale::none);
  const std::string file = write_text(scratch / "written.toml", to_toml(o)).string();
  EXPECT_EQ(parse({"--config", file}, /*ranks=*/4).lr, 4e-3);
}

}  // namespace
}  // namespace lathe
