#include "src/data/prepare.h"

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <fstream>
#include <future>
#include <iostream>
#include <mutex>
#include <span>
#include <thread>

#include "kernels/device/error.h"
#include "src/data/shard.h"
#include "src/data/utf8.h"
#include "src/io/directory_lock.h"
#include "src/io/file.h"

namespace lathe {

namespace fs = std::filesystem;

namespace {

constexpr size_t kChunkBytes = 1 << 18;

// Threads that encode chunks of text. Results come back through futures, so we choose their order.
class EncoderPool {
 public:
  EncoderPool(const Tokenizer& tokenizer, int threads) {
    for (int i = 0; i < threads; ++i) {
      threads_.emplace_back(
          [this, &tokenizer](const std::stop_token& stop) { work(tokenizer, stop); });
    }
  }

  std::future<std::vector<int32_t>> submit(std::string text) {
    std::promise<std::vector<int32_t>> promise;
    auto future = promise.get_future();
    {
      const std::lock_guard lock(mutex_);
      jobs_.push_back({std::move(text), std::move(promise)});
    }
    wake_.notify_one();
    return future;
  }

 private:
  struct Job {
    std::string text;
    std::promise<std::vector<int32_t>> result;
  };

  void work(const Tokenizer& tokenizer, const std::stop_token& stop) {
    const auto encoder = tokenizer.encoder(SpecialTokens::as_text);
    while (true) {
      std::unique_lock lock(mutex_);
      if (!wake_.wait(lock, stop, [this] { return !jobs_.empty(); })) return;
      Job job = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
      try {
        std::vector<int32_t> ids;
        encoder->encode(job.text, ids);
        job.result.set_value(std::move(ids));
      } catch (...) {
        job.result.set_exception(std::current_exception());
      }
    }
  }

  std::mutex mutex_;
  std::condition_variable_any wake_;
  std::deque<Job> jobs_;
  std::vector<std::jthread> threads_;  // last: they stop before the other members go
};

// Writes the tokens of one split: cuts the text at places that do not change its tokens, has the
// pool encode the chunks, and writes the tokens in order.
class SplitWriter {
 public:
  // join: the tokens between documents.
  SplitWriter(const Tokenizer& tokenizer, std::span<const int32_t> join, EncoderPool& pool,
              ShardWriter& shards, size_t in_flight)
      : tokenizer_(tokenizer), join_(join), pool_(pool), shards_(shards), in_flight_(in_flight) {}

  void append(std::string_view text, bool starts_document) {
    if (starts_document) end_document();
    pending_ += text;
    if (pending_.size() < cut_at_) return;
    const size_t cut = tokenizer_.safe_cut(pending_);
    if (cut > 0) submit(cut);
    // If a word is longer than a chunk, search again only when the text has doubled.
    cut_at_ = std::max(kChunkBytes, pending_.size() * 2);
  }

  void finish() {
    end_document();
    while (!waiting_.empty()) write_first();
    shards_.finish();
  }

 private:
  void end_document() {
    if (!pending_.empty()) submit(pending_.size());
    starts_document_ = true;
  }

  void submit(size_t bytes) {
    const bool separate = starts_document_ && began_;
    waiting_.push_back({separate, pool_.submit(pending_.substr(0, bytes))});
    pending_.erase(0, bytes);
    began_ = true;
    starts_document_ = false;
    if (waiting_.size() > in_flight_) write_first();
  }

  void write_first() {
    const std::vector<int32_t> ids = waiting_.front().ids.get();
    if (waiting_.front().separate) shards_.append(join_);
    waiting_.pop_front();
    shards_.append(ids);
  }

  struct Waiting {
    bool separate;  // from the previous document
    std::future<std::vector<int32_t>> ids;
  };

  const Tokenizer& tokenizer_;
  std::span<const int32_t> join_;
  EncoderPool& pool_;
  ShardWriter& shards_;
  size_t in_flight_;
  std::string pending_;
  size_t cut_at_ = kChunkBytes;
  std::deque<Waiting> waiting_;
  bool starts_document_ = true;
  bool began_ = false;
};

// A folder inside `out` for everything unfinished; it is removed with its contents.
class StagingFolder {
 public:
  explicit StagingFolder(const fs::path& out) : path_(out / ".prepare.partial") {
    std::error_code error;
    created_out_ = fs::create_directories(out, error);
    if (!error) lock_ = std::make_unique<DirectoryLock>(out);
    if (!error) fs::remove_all(path_, error);  // left by a run that was killed
    if (!error) fs::create_directory(path_, error);
    if (error) {
      throw UserError("cannot write {}: {}; choose another --out", out.string(), error.message());
    }
  }
  ~StagingFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
    lock_.reset();
    if (created_out_) fs::remove(path_.parent_path(), ignored);  // only if it is empty
  }
  StagingFolder(const StagingFolder&) = delete;
  StagingFolder& operator=(const StagingFolder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
  std::unique_ptr<DirectoryLock> lock_;
  bool created_out_ = false;
};

// What the first pass over the text finds out.
struct Census {
  int64_t documents = 0;
  int64_t characters = 0;
  uint64_t bytes = 0;
  int64_t byte_order_marks = 0;
  std::vector<int32_t> code_points;  // ascending
};

uint64_t total_bytes(const std::vector<InputFile>& inputs) {
  uint64_t bytes = 0;
  for (const auto& file : inputs) {
    std::error_code error;
    const uint64_t size = fs::file_size(file.path, error);
    if (!error) bytes += size;
  }
  return bytes;
}

// Throws UnknownCharacter if the vocabulary lacks one of the piece's characters.
void check_characters(const Piece& piece, Encoder& encoder) {
  std::vector<int32_t> ids;
  try {
    encoder.encode(piece.text, ids);
  } catch (const UnknownCharacter& unknown) {
    throw UnknownCharacter(piece.source, unknown.code_point, piece.offset + unknown.byte);
  }
}

void mark_code_points(std::string_view text, std::vector<bool>& seen) {
  while (!text.empty()) {
    const CodePoint c = decode_utf8(text);
    seen[static_cast<size_t>(c.value)] = true;
    text.remove_prefix(static_cast<size_t>(c.length));
  }
}

// Reads everything once. `tokenizer` is the one that will encode, or null if it is made from what
// is found here. Any error in the text is found here, before anything is written.
Census take_census(const PrepareOptions& options, const std::vector<InputFile>& inputs,
                   const Tokenizer* tokenizer, const PrepareProgress& progress) {
  Census census;
  std::vector<bool> seen(0x110000);
  std::unique_ptr<Encoder> encoder;
  if (tokenizer && tokenizer->kind() == "char") {
    encoder = tokenizer->encoder(SpecialTokens::as_text);
  }
  DocumentReader reader(inputs, options.format);
  const uint64_t total = total_bytes(inputs);
  while (const auto piece = reader.next()) {
    census.documents += piece->starts_document;
    census.characters += count_code_points(piece->text);
    census.bytes += piece->text.size();
    if (encoder) check_characters(*piece, *encoder);
    if (!tokenizer) mark_code_points(piece->text, seen);
    if (progress) progress("reading", reader.bytes_read(), total, 0);
  }
  census.byte_order_marks = reader.byte_order_marks();
  if (census.documents > 1) mark_code_points(options.document_join.value_or(""), seen);
  for (int32_t c = 0; c < 0x110000; ++c) {
    if (seen[static_cast<size_t>(c)]) census.code_points.push_back(c);
  }
  return census;
}

void copy_stream(std::istream& from, const InputFile& to) {
  AtomicFile copy(to.path);
  std::vector<char> block(1 << 20);
  while (from.read(block.data(), static_cast<std::streamsize>(block.size())) || from.gcount() > 0) {
    copy.write(block.data(), static_cast<size_t>(from.gcount()));
  }
  if (from.bad()) throw UserError("cannot read {}", to.name);
  copy.commit();
}

// The text is read twice, so input that can be read only once (standard input, pipes) is copied
// into the staging folder.
std::vector<InputFile> seekable(const std::vector<fs::path>& inputs, const fs::path& staging) {
  if (std::count(inputs.begin(), inputs.end(), "-") > 1) {
    throw UserError("--input names standard input (-) more than once; name it once");
  }
  std::vector<InputFile> files;
  for (const fs::path& path : inputs) {
    files.push_back({path, path.string()});
    InputFile& file = files.back();
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    const bool once =
        fs::exists(status) && !fs::is_regular_file(status) && !fs::is_directory(status);
    if (path != "-" && !once) continue;
    file.path = staging / fmt::format("input-{}", files.size());
    if (path == "-") {
      file.name = "standard input";
      copy_stream(std::cin, file);
    } else {
      std::ifstream stream(path, std::ios::binary);
      if (!stream) throw_io_error("read", path, errno);
      copy_stream(stream, file);
    }
  }
  return files;
}

// Throws UserError if there are several documents and nothing to put between them.
std::vector<int32_t> join_tokens(const PrepareOptions& options, const Tokenizer& tokenizer,
                                 int64_t documents) {
  if (documents < 2) return {};
  if (!options.document_join) {
    if (tokenizer.end_of_text()) return {*tokenizer.end_of_text()};
    throw UserError(
        "the input holds {} documents, and the tokenizer has no <|endoftext|> to stand between "
        "them; give a text or a special token for this with --document-join",
        documents);
  }
  try {
    return tokenizer.encode(*options.document_join, SpecialTokens::as_tokens);
  } catch (const UnknownCharacter& unknown) {
    throw UnknownCharacter("--document-join", unknown.code_point, unknown.byte);
  }
}

// Like nanoGPT: int(n * 0.9), the product in double.
int64_t count_train_characters(const PrepareOptions& options, int64_t characters) {
  const double share = options.val_fraction;
  const auto train = static_cast<int64_t>(static_cast<double>(characters) * (1 - share));
  if (train == 0) {
    throw UserError("--val-fraction {} leaves none of {} character{} to train on; give more text",
                    share, characters, characters == 1 ? "" : "s");
  }
  if (train == characters && share > 0) {
    throw UserError("--val-fraction {} of {} characters is less than one; give more, or 0", share,
                    characters);
  }
  return train;
}

// Null for "char", whose tokenizer is made from the text.
std::unique_ptr<Tokenizer> open_tokenizer(const PrepareOptions& options) {
  if (options.tokenizer == "char") return nullptr;
  if (options.tokenizer != "gpt2") return load_tokenizer(options.tokenizer);
  if (options.vocab_dir.empty()) {
    throw UserError(
        "--tokenizer gpt2 needs --vocab-dir: the directory with encoder.json + "
        "vocab.bpe, vocab.json + merges.txt or tokenizer.json");
  }
  return load_tokenizer(options.vocab_dir);
}

bool is_shard(const fs::path& file) {
  const std::string name = file.filename().string();
  return file.extension() == ".bin" && (name.starts_with("train_") || name.starts_with("val_"));
}

std::vector<fs::path> old_output(const fs::path& out) {
  std::vector<fs::path> files;
  std::error_code error;
  for (fs::directory_iterator it(out, error), end; !error && it != end; it.increment(error)) {
    if (is_shard(it->path()) || it->path().filename() == "tokenizer.json") {
      files.push_back(it->path());
    }
  }
  return files;
}

// Replaces the old data. While it does, a marker file shows that the directory may hold both.
void publish(const fs::path& staging, const fs::path& out, const ShardWriter& train,
             const ShardWriter& val) {
  write_file(out / kReplacingMark, "prepare is replacing the data in this directory.\n");
  for (const auto& file : old_output(out)) remove_file(file);
  sync_directory(out);
  for (const ShardWriter* shards : {&train, &val}) {
    for (const auto& file : shards->files()) rename_path(file, out / file.filename());
  }
  rename_path(staging / "tokenizer.json", out / "tokenizer.json");
  sync_directory(out);
  remove_file(out / kReplacingMark);
  sync_directory(out);
}

// The second pass: characters before `train_characters` go to train, the rest to val.
void encode_all(DocumentReader& reader, const Census& census, int64_t train_characters,
                SplitWriter& train, SplitWriter& val, const std::function<void()>& progress) {
  int64_t at = 0;
  while (const auto piece = reader.next()) {
    const std::string_view text = piece->text;
    const int64_t left = std::max<int64_t>(0, train_characters - at);
    const size_t cut = offset_of_code_point(text, left);
    if (cut > 0) train.append(text.substr(0, cut), piece->starts_document);
    if (cut < text.size()) val.append(text.substr(cut), cut == 0 && piece->starts_document);
    at += count_code_points(text);
    progress();
  }
  if (at != census.characters) {
    throw UserError(
        "the input changed while it was read: {} characters, then {}; run prepare "
        "again",
        census.characters, at);
  }
}

void refuse_old_output(const PrepareOptions& options) {
  if (options.force || old_output(options.out).empty()) return;
  throw UserError("{} already holds data ({}); give another --out, or --force to replace it",
                  options.out.string(), old_output(options.out)[0].filename().string());
}

void check_options(const PrepareOptions& options) {
  if (options.inputs.empty()) throw UserError("--input names no file; give at least one");
  if (!(options.val_fraction >= 0 && options.val_fraction < 1)) {
    throw UserError("--val-fraction is {}; give a share from 0 up to, but not including, 1",
                    options.val_fraction);
  }
  if (options.shard_tokens < 1 || options.shard_tokens > INT32_MAX) {
    throw UserError("--shard-tokens is {}; give a number from 1 to {}", options.shard_tokens,
                    INT32_MAX);
  }
  if (options.threads < 0 || options.threads > 4096) {
    throw UserError("--threads is {}; give a number from 0 (all) to 4096", options.threads);
  }
  if (!options.format.separator.empty() && !options.format.jsonl_key.empty()) {
    throw UserError("--document-separator and --jsonl-key exclude each other; give one of them");
  }
  const std::string_view join = options.document_join ? *options.document_join : std::string_view();
  if (const size_t valid = valid_utf8_prefix(join); valid != join.size()) {
    throw UserError("--document-join is not UTF-8 at byte {}; give UTF-8", valid);
  }
  if (options.format.separator.size() > 65536) {
    throw UserError("--document-separator has {} bytes; give at most 65536",
                    options.format.separator.size());
  }
  refuse_old_output(options);
}

}  // namespace

PrepareResult prepare(const PrepareOptions& options, const PrepareProgress& progress) {
  check_options(options);
  auto tokenizer = open_tokenizer(options);
  const StagingFolder staging(options.out);
  refuse_old_output(options);  // another process may have written it before it released the lock
  const auto inputs = seekable(options.inputs, staging.path());
  const Census census = take_census(options, inputs, tokenizer.get(), progress);
  if (census.characters == 0) throw UserError("the input holds no text; give a file with some");
  const int64_t train_characters = count_train_characters(options, census.characters);
  if (!tokenizer) tokenizer = make_char_tokenizer(census.code_points, "the input");
  const std::vector<int32_t> join = join_tokens(options, *tokenizer, census.documents);

  const int threads = options.threads > 0
                          ? options.threads
                          : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  ShardWriter train_shards(staging.path(), "train", options.shard_tokens);
  ShardWriter val_shards(staging.path(), "val", options.shard_tokens);
  {
    EncoderPool pool(*tokenizer, threads);
    const auto in_flight = 8 * static_cast<size_t>(threads);
    SplitWriter train(*tokenizer, join, pool, train_shards, in_flight);
    SplitWriter val(*tokenizer, join, pool, val_shards, in_flight);
    DocumentReader reader(inputs, options.format);
    const uint64_t total = total_bytes(inputs);
    encode_all(reader, census, train_characters, train, val, [&] {
      if (!progress) return;
      progress("encoding", reader.bytes_read(), total, train_shards.tokens() + val_shards.tokens());
    });
    train.finish();
    val.finish();
  }
  save_tokenizer(*tokenizer, staging.path());
  publish(staging.path(), options.out, train_shards, val_shards);
  return {.documents = census.documents,
          .characters = census.characters,
          .bytes = census.bytes,
          .train_tokens = train_shards.tokens(),
          .val_tokens = val_shards.tokens(),
          .vocab_size = tokenizer->vocab_size(),
          .join = tokenizer->decode(join),
          .byte_order_marks = census.byte_order_marks};
}

}  // namespace lathe
