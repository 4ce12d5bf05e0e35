// Batches of token windows from a data directory: the same for the whole job, however it is split
// into ranks and micro-steps.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "src/data/shard.h"

namespace lathe {

// How a step's windows are chosen.
//   random      like nanoGPT: each window starts anywhere, and windows may overlap
//   sequential  windows at multiples of seq_len, each once per epoch, reshuffled every epoch; no
//               token is an input twice in an epoch (up to seq_len tokens at the end are unused)
enum class Sampling { random, sequential };
std::string_view name_of(Sampling sampling);

struct LoaderOptions {
  std::filesystem::path directory;
  std::string split = "train";
  int64_t seq_len = 0;
  int64_t batch_size = 0;       // sequences of a rank in a micro-step
  int64_t micro_steps = 1;      // of a step (gradient accumulation)
  int64_t rank = 0, ranks = 1;  // of those that train on different sequences
  uint64_t seed = 0;
  Sampling sampling = Sampling::random;
  int32_t vocab_size = 0;  // tokens are checked against it; 0: unchecked
  OpenShardFile open = map_shard_file;
};

// inputs and targets are [batch_size, seq_len]; targets[b][t] is the token after inputs[b][t], or
// kIgnoredTarget if the position does not count.
inline constexpr int32_t kIgnoredTarget = -1;
struct Batch {
  int64_t batch_size = 0, seq_len = 0;
  // The index of row 0 among the step's sequences over all ranks; row i's index is i more.
  int64_t first_sequence = 0;
  int64_t counted_targets = 0;
  std::vector<int32_t> inputs, targets;
};

// Identifies the batch that next() returns next; the only state of a loader to save.
struct LoaderPosition {
  int64_t step = 0;
  int64_t micro_step = 0;
  bool operator==(const LoaderPosition&) const = default;
};

// The start of sequence `sequence` of step `step`, among `tokens` tokens: a pure function, uniform
// over [0, tokens - seq_len - 1].
int64_t random_window(uint64_t seed, int64_t step, int64_t sequence, int64_t tokens,
                      int64_t seq_len);

// Element `index` of a permutation of 0 .. size - 1, a different one for each (seed, epoch): a
// Feistel network over the next power of four, repeated until the result falls inside (Black and
// Rogaway, "Ciphers with arbitrary finite domains", 2002). Needs no storage.
int64_t shuffled(int64_t index, int64_t size, uint64_t seed, int64_t epoch);

// A step has S = ranks * micro_steps * batch_size sequences, numbered 0 .. S - 1. Rank r takes
// the slice from r * micro_steps * batch_size on, one micro-step after another. Sequence s of a
// step depends only on (seed, step, s, S, seq_len).
//
// A thread reads batches ahead, into buffers that are reused.
class Loader {
 public:
  // Throws UserError if data is missing, damaged or too short for one window.
  explicit Loader(const LoaderOptions& options);
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  // The next batch, valid until the next call. Rethrows errors of the reading thread, such as
  // UserError for a token outside the vocabulary.
  const Batch& next();

  LoaderPosition position() const { return position_; }
  void restore(LoaderPosition position);  // CheckError if it is out of range

  int64_t tokens() const { return tokens_.size(); }
  int64_t sequences_per_step() const;

 private:
  static constexpr int64_t kSlots = 3;  // one with the caller, two read ahead

  LoaderPosition after(LoaderPosition position) const;
  void start();
  void stop();
  void read_ahead(const std::stop_token& stop, LoaderPosition position);
  void read(LoaderPosition position, Batch& batch);
  int64_t window_start(int64_t step, int64_t sequence) const;

  LoaderOptions options_;
  TokenSet tokens_;
  LoaderPosition position_;
  std::vector<int32_t> window_;

  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::array<Batch, kSlots> slots_;
  int64_t filled_ = 0, taken_ = 0;
  std::exception_ptr failure_;
  std::jthread thread_;
};

// A whole split in order, for evaluation: disjoint windows from the first token on. The last window
// and the last batch are padded with token 0 and kIgnoredTarget, so that each token but the first
// is a target exactly once. Batch b holds windows b * ranks * batch_size + rank * batch_size +
// i, so the first n batches of a job are the same windows for any number of ranks with the same
// batch_size * ranks. options.seed, sampling and micro_steps are ignored.
class EvalLoader {
 public:
  explicit EvalLoader(const LoaderOptions& options);  // UserError like Loader

  int64_t batches() const;
  const Batch& batch(int64_t index);             // valid until the next call
  int64_t counted_targets(int64_t index) const;  // of this batch, over all ranks
  int64_t tokens() const { return tokens_.size(); }

 private:
  LoaderOptions options_;
  TokenSet tokens_;
  Batch batch_;
  std::vector<int32_t> window_;
};

}  // namespace lathe
