// Writes the embedded corpus, and beside it entropy.json: how low the loss can get.
#include <cmath>
#include <filesystem>
#include "src/io/json.h"

#include "kernels/device/standard_streams.h"
#include "src/io/file.h"
#include "src/io/flags.h"
#include "tools/corpus/grammar.h"

namespace lathe {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

Json entropy_json(const Grammar& grammar) {
  const GrammarExpectation expected = grammar.expectation();
  return {{"nats_per_character", expected.nats_per_character()},
          {"bits_per_character", expected.bits_per_character()},
          {"nats_per_story", expected.nats},
          {"characters_per_story", expected.characters}};
}

// Whole stories, until the text has at least `bytes` characters.
std::string write_stories(const Grammar& grammar, uint64_t bytes, uint64_t seed, Json& entropy) {
  GrammarRandom random(seed);
  std::string text;
  double nats = 0;
  uint64_t stories = 0;
  for (; text.size() < bytes; ++stories) nats += grammar.sample(random, text);
  entropy["seed"] = seed;
  entropy["stories"] = stories;
  entropy["characters"] = text.size();
  // What this very text cost to choose; it differs from the expectation by the luck of the draw.
  entropy["nats_per_character_of_this_text"] = nats / static_cast<double>(text.size());
  return text;
}

int corpus(int argc, char** argv) {
  uint64_t bytes = 4 << 20;
  uint64_t seed = 1;
  std::string out;
  bool entropy_only = false;
  Flags flags(
      "corpus", "Writes readable stories whose entropy per character is known exactly.",
      {number("bytes", bytes, 1, uint64_t{1} << 32,
              "Write whole stories until the text has this many bytes"),
       number("seed", seed, 0, UINT64_MAX, "The same seed gives the same bytes on every machine"),
       text("out", out, "The text; entropy.json is written beside it"),
       toggle("entropy", entropy_only, "Print the entropy as one JSON object, write nothing")});
  if (!flags.parse(argc, argv)) return 0;
  for (const char* flag : {"bytes", "seed", "out"})
    flags.refuse_idle(flag, entropy_only, "with --entropy, which writes nothing");

  const Grammar grammar(stories_description());
  Json entropy = entropy_json(grammar);
  if (entropy_only) {
    print_out(entropy.dump() + "\n");
    return 0;
  }
  if (out.empty()) throw UserError("corpus needs --out FILE (or --entropy)");
  if (fs::is_directory(out)) throw UserError("--out {}: this is a directory, name a file", out);
  const fs::path path = fs::absolute(out);
  std::error_code failed;
  fs::create_directories(path.parent_path(), failed);
  if (failed) {
    throw UserError("--out {}: cannot make its directory: {}", out, failed.message());
  }
  write_file(path, write_stories(grammar, bytes, seed, entropy));
  write_file(path.parent_path() / "entropy.json", entropy.dump(2) + "\n");
  note_out(fmt::format(
      "{}: {} stories, {} characters; entropy {:.4f} nats = {:.4f} bits per character\n", out,
      entropy["stories"].get<uint64_t>(), entropy["characters"].get<uint64_t>(),
      entropy["nats_per_character"].get<double>(), entropy["bits_per_character"].get<double>()));
  return 0;
}

}  // namespace
}  // namespace lathe

int main(int argc, char** argv) {
  return lathe::run_main("corpus", [&] { return lathe::corpus(argc, argv); });
}
