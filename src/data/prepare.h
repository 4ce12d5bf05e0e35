// Turns text files into a data directory: token shards for training and validation and
// tokenizer.json. Streams: memory does not grow with the input (but for a single word of BPE, which
// must be held whole). The result does not depend on the number of threads.
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
  std::string tokenizer = "char";             // "char", "gpt2", or what load_tokenizer opens
  std::filesystem::path vocab_dir;            // where "gpt2" finds its files
  std::vector<std::filesystem::path> inputs;  // "-" is standard input; pipes are read once
  std::filesystem::path out;
  double val_fraction = 0.1;  // of the characters, taken from the end; [0, 1)
  DocumentFormat format;
  // What stands between documents, special tokens in it being tokens; empty: nothing. Without a
  // value the end-of-text token, and more than one document is an error where there is none.
  std::optional<std::string> document_join;
  int threads = 0;  // 0: as many as the machine has
  int64_t shard_tokens = 100'000'000;
  bool force = false;  // overwrite what `out` holds
};

struct PrepareResult {
  int64_t documents = 0;
  int64_t characters = 0;
  uint64_t bytes = 0;
  int64_t train_tokens = 0, val_tokens = 0;
  int32_t vocab_size = 0;
  std::string join;              // what stands between the documents
  int64_t byte_order_marks = 0;  // left out at the start of files
};

// stage: "reading" (the first pass) or "encoding"; bytes done of total, tokens written so far.
using PrepareProgress =
    std::function<void(std::string_view stage, uint64_t done, uint64_t total, int64_t tokens)>;

// Splits as nanoGPT does: the first int(n * (1 - val_fraction)) characters train, the rest
// validate, each encoded on its own. Either everything appears in `out` or what it held stays; if
// the program is killed while it replaces old data, find_shards refuses the directory until prepare
// has succeeded there. Throws UserError.
PrepareResult prepare(const PrepareOptions& options, const PrepareProgress& progress = {});

}  // namespace lathe
