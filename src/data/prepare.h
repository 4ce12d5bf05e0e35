// Turns text files into a data directory: token shards for training and validation, and
// tokenizer.json. Streams its input: memory does not grow with it (except for a single BPE word,
// which must be held whole). The result does not depend on the number of threads.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "src/data/documents.h"
#include "src/data/tokenizer.h"

namespace lathe {

struct PrepareOptions {
  std::string tokenizer = "char";             // "char", "gpt2", or a path for load_tokenizer
  std::filesystem::path vocab_dir;            // the directory of the files for "gpt2"
  std::vector<std::filesystem::path> inputs;  // "-" is standard input; pipes are read once
  std::filesystem::path out;
  double val_fraction = 0.1;  // of the characters, taken from the end; [0, 1)
  DocumentFormat format;
  // What to put between documents; special tokens in it become tokens; empty: nothing. Without a
  // value, the end-of-text token; if the tokenizer has none, more than one document is an error.
  std::optional<std::string> document_join;
  int threads = 0;  // 0: one per processor
  int64_t shard_tokens = 100'000'000;
  bool force = false;  // overwrite existing data in `out`
};

struct PrepareResult {
  int64_t documents = 0;
  int64_t characters = 0;
  uint64_t bytes = 0;
  int64_t train_tokens = 0, val_tokens = 0;
  int32_t vocab_size = 0;
  std::string join;              // what was put between documents
  int64_t byte_order_marks = 0;  // skipped at the start of files
};

// stage: "reading" (the first pass) or "encoding"; bytes done of total, tokens written so far.
using PrepareProgress =
    std::function<void(std::string_view stage, uint64_t done, uint64_t total, int64_t tokens)>;

// Splits like nanoGPT: the first int(n * (1 - val_fraction)) characters are for training, the rest
// for validation, each encoded on its own. Either everything appears in `out`, or its old content
// stays. If the program is killed while it replaces old data, find_shards refuses the directory
// until prepare succeeds there. Throws UserError.
PrepareResult prepare(const PrepareOptions& options, const PrepareProgress& progress = {});

}  // namespace lathe
