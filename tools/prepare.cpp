// prepare: text files in, token shards and tokenizer.json out.
#include <unistd.h>

#include <chrono>
#include <cstdio>

#include "kernels/device/error.h"
#include "kernels/device/printable.h"
#include "kernels/device/standard_streams.h"
#include "src/data/prepare.h"
#include "src/data/shard.h"
#include "src/io/console.h"
#include "src/io/file.h"
#include "src/io/flags.h"
#include "src/io/json_text.h"

namespace {

using lathe::number;
using lathe::text;
using lathe::texts;
using lathe::toggle;
using lathe::UserError;

// One line that is rewritten on a terminal; in a pipe, a line for each tenth of the work, at most
// one per second. Failing to show progress is not an error.
class Progress {
 public:
  ~Progress() { end_line(); }

  void operator()(std::string_view stage, uint64_t done, uint64_t total, int64_t tokens) {
    const auto now = std::chrono::steady_clock::now();
    if (stage != stage_) {
      end_line();
      stage_ = stage;
      started_ = shown_at_ = now;
      shown_tenths_ = 0;
    }
    const uint64_t tenths = total > 0 ? done * 10 / total : 0;
    const bool due = now - shown_at_ >= std::chrono::milliseconds(live_ ? 200 : 1000) &&
                     (live_ || tenths > shown_tenths_);
    if (!due) return;
    shown_at_ = now;
    shown_tenths_ = tenths;
    const double seconds = std::chrono::duration<double>(now - started_).count();
    std::string line = fmt::format("{} {:.1f} of {:.1f} MB, {:.1f} MB/s", stage, done / 1e6,
                                   total / 1e6, done / 1e6 / seconds);
    if (tokens > 0) line += fmt::format(", {} tokens", tokens);
    if (live_) {
      const int columns = lathe::terminal_columns(STDERR_FILENO).value_or(80) - 1;
      show(fmt::format("\r{}\033[K", lathe::clip_to_width(line, columns)));
    } else {
      show(line + "\n");
    }
    open_line_ = live_;
  }

  void end_line() {
    if (open_line_) show("\n");
    open_line_ = false;
  }

 private:
  static void show(const std::string& text) { std::fputs(text.c_str(), stderr); }

  bool live_ = lathe::can_redraw(STDERR_FILENO);
  bool open_line_ = false;
  std::string stage_;
  std::chrono::steady_clock::time_point started_, shown_at_;
  uint64_t shown_tenths_ = 0;
};

// Prints the text of one shard, or of all shards of a directory: training, then validation.
void decode(const std::filesystem::path& path) {
  const bool is_directory = std::filesystem::is_directory(path);
  const auto tokenizer = lathe::load_tokenizer(is_directory ? path : lathe::parent_of(path));
  std::vector<std::filesystem::path> files{path};
  if (is_directory) {
    files = lathe::find_shards(path, "train");
    for (const auto& file : lathe::find_shards(path, "val")) files.push_back(file);
  }
  // A terminal gets whole characters; anything else gets the bytes unchanged.
  const bool terminal = ::isatty(STDOUT_FILENO) == 1;
  lathe::StreamDecoder whole(*tokenizer);
  std::vector<int32_t> ids(1 << 16);
  for (const auto& file : files) {
    const lathe::Shard shard(file);
    for (int64_t at = 0; at < shard.size(); at += static_cast<int64_t>(ids.size())) {
      const int64_t count = std::min(shard.size() - at, static_cast<int64_t>(ids.size()));
      shard.copy(at, count, ids.data(), tokenizer->vocab_size());
      std::string text;
      for (const int32_t id : std::span(ids).first(static_cast<size_t>(count))) {
        text += terminal ? whole.next(id) : tokenizer->token(id);
      }
      lathe::print_out(text);
    }
  }
  lathe::print_out(whole.finish());
}

void refuse_idle_flags(const lathe::Flags& flags, const lathe::PrepareOptions& options) {
  flags.refuse_idle("vocab-dir", options.tokenizer != "gpt2", "without --tokenizer gpt2");
  flags.refuse_idle("document-separator", options.format.separator.empty(), "if it is empty");
  flags.refuse_idle("jsonl-key", options.format.jsonl_key.empty(), "if it is empty");
  for (const lathe::Flag& flag : flags.all()) {
    flags.refuse_idle(flag.name, flags.given("decode") && flag.name != "decode",
                      "with --decode, which prints existing data");
  }
}

int run(int argc, char** argv) {
  lathe::PrepareOptions options;
  std::filesystem::path decode_path;
  lathe::Flags flags(
      "prepare", "Turns text into the token shards and tokenizer.json that train reads.",
      {text(
           "tokenizer", options.tokenizer,
           "char: one token per character; gpt2: GPT-2's BPE, see --vocab-dir; or the directory or "
           "file of a tokenizer"),
       text("vocab-dir", options.vocab_dir,
            "Where gpt2 finds encoder.json + vocab.bpe, vocab.json + merges.txt or tokenizer.json"),
       texts("input", options.inputs, "FILE", "Text files, each one document; - is standard input"),
       text("document-separator", options.format.separator,
            "Text that separates the documents of a file; dropped"),
       text("jsonl-key", options.format.jsonl_key,
            "The files hold one JSON object per line, with the document under this key"),
       text("document-join", options.document_join,
            "Text or special token between documents, if not <|endoftext|>; '' for nothing"),
       number("val-fraction", options.val_fraction, 0, 1,
              "Share of the characters, from the end, for validation; below 1"),
       text("out", options.out, "Directory for train_*.bin, val_*.bin and tokenizer.json"),
       number("shard-tokens", options.shard_tokens, 1, INT32_MAX, "Tokens per shard"),
       number("threads", options.threads, 0, 4096, "0: one per core"),
       toggle("force", options.force, "Replace the data that --out holds"),
       text("decode", decode_path, "Print the text of a data directory or shard, then exit")});
  if (!flags.parse(argc, argv)) return 0;
  refuse_idle_flags(flags, options);
  if (!decode_path.empty()) {
    decode(decode_path);
    return 0;
  }
  if (options.inputs.empty()) throw UserError("--input is missing; name a text file");
  if (options.out.empty()) throw UserError("--out is missing; name a directory for the data");
  Progress progress;
  const auto result = lathe::prepare(options, std::ref(progress));
  progress.end_line();
  lathe::note_out(fmt::format(
      "{}: {} train and {} validation tokens of {} symbols, from {} characters in {} "
      "document{}{}\n",
      options.out.string(), result.train_tokens, result.val_tokens, result.vocab_size,
      result.characters, result.documents, result.documents == 1 ? "" : "s",
      result.documents == 1 ? "" : " with " + lathe::json_quoted(result.join) + " between"));
  if (result.byte_order_marks > 0) {
    lathe::note_out(fmt::format("left out the byte order mark at the start of {} file{}\n",
                                result.byte_order_marks, result.byte_order_marks == 1 ? "" : "s"));
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return lathe::run_main("prepare", [&] { return run(argc, argv); });
}
