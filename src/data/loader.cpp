#include "src/data/loader.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "kernels/device/error.h"
#include "kernels/device/round.h"
#include "kernels/philox.h"

namespace lathe {

std::string_view name_of(Sampling sampling) {
  return sampling == Sampling::random ? "random" : "sequential";
}

int64_t random_window(uint64_t seed, int64_t step, int64_t sequence, int64_t tokens,
                      int64_t seq_len) {
  LATHE_CHECK(step >= 0 && step <= UINT32_MAX && sequence >= 0 && tokens > seq_len);
  const auto draw =
      philox(seed, static_cast<uint64_t>(sequence), kPhiloxSiteWindow, static_cast<uint32_t>(step));
  const uint64_t bits = uint64_t{draw[1]} << 32 | draw[0];
  // The upper half of bits * n is below n; its bias, n / 2^64, is too small to measure.
  const auto n = static_cast<unsigned __int128>(tokens - seq_len);
  return static_cast<int64_t>(bits * n >> 64);
}

int64_t shuffled(int64_t index, int64_t size, uint64_t seed, int64_t epoch) {
  LATHE_CHECK(index >= 0 && index < size && epoch >= 0 && epoch <= UINT32_MAX);
  constexpr uint32_t kRounds = 6;
  const auto bits = static_cast<int>(std::bit_width(static_cast<uint64_t>(size - 1)));
  const int half = std::max(1, (bits + 1) / 2);
  const uint64_t mask = (uint64_t{1} << half) - 1;
  auto place = static_cast<uint64_t>(index);
  do {
    uint64_t left = place >> half, right = place & mask;
    for (uint32_t round = 0; round < kRounds; ++round) {
      const auto f = philox(seed, right | uint64_t{round} << 32, kPhiloxSiteShuffle,
                            static_cast<uint32_t>(epoch));
      left = std::exchange(right, left ^ (f[0] & mask));
    }
    place = left << half | right;
  } while (place >= static_cast<uint64_t>(size));
  return static_cast<int64_t>(place);
}

// Shared by both loaders: usable sizes, and enough data for one target.
static const LoaderOptions& checked(const LoaderOptions& o) {
  if (o.seq_len < 1) throw UserError("--seq-len is {}; give at least 1", o.seq_len);
  if (o.batch_size < 1) throw UserError("--batch-size is {}; give at least 1", o.batch_size);
  constexpr int64_t kMost = int64_t{1} << 31;  // tokens in a batch
  if (o.seq_len >= kMost || o.batch_size >= kMost || o.seq_len * o.batch_size >= kMost) {
    throw UserError("--batch-size {} times --seq-len {} is too large; give less than 2^31 tokens",
                    o.batch_size, o.seq_len);
  }
  LATHE_CHECK(o.micro_steps >= 1 && o.rank >= 0 && o.rank < o.ranks);
  return o;
}

static void resize(Batch& batch, const LoaderOptions& options) {
  batch.batch_size = options.batch_size;
  batch.seq_len = options.seq_len;
  const auto tokens = static_cast<size_t>(options.batch_size * options.seq_len);
  batch.inputs.assign(tokens, 0);
  batch.targets.assign(tokens, kIgnoredTarget);
}

Loader::Loader(const LoaderOptions& options)
    : options_(checked(options)),
      tokens_(options.directory, options.split, options.vocab_size, options.open),
      window_(static_cast<size_t>(options.seq_len + 1)) {
  if (tokens_.size() <= options_.seq_len) {
    throw UserError(
        "{} holds {} tokens for {}, but one window of --seq-len {} takes {}; "
        "use more data or a smaller --seq-len",
        options_.directory.string(), tokens_.size(), options_.split, options_.seq_len,
        options_.seq_len + 1);
  }
  for (Batch& batch : slots_) resize(batch, options_);
  start();
}

Loader::~Loader() {
  stop();
}

int64_t Loader::sequences_per_step() const {
  return options_.ranks * options_.micro_steps * options_.batch_size;
}

LoaderPosition Loader::after(LoaderPosition position) const {
  if (++position.micro_step < options_.micro_steps) return position;
  return {position.step + 1, 0};
}

void Loader::restore(LoaderPosition position) {
  LATHE_CHECK(
      position.step >= 0 && position.micro_step >= 0 && position.micro_step < options_.micro_steps,
      "step {} micro-step {}", position.step, position.micro_step);
  stop();
  position_ = position;
  start();
}

void Loader::start() {
  filled_ = taken_ = 0;
  failure_ = nullptr;
  thread_ = std::jthread(
      [this, from = position_](const std::stop_token& stop) { read_ahead(stop, from); });
}

void Loader::stop() {
  thread_.request_stop();
  if (thread_.joinable()) thread_.join();
}

const Batch& Loader::next() {
  std::unique_lock lock(mutex_);
  ++taken_;  // releases the previous batch
  changed_.notify_all();
  changed_.wait(lock, [this] { return filled_ >= taken_ || failure_; });
  if (filled_ < taken_) {
    --taken_;
    std::rethrow_exception(failure_);
  }
  position_ = after(position_);
  return slots_[static_cast<size_t>((taken_ - 1) % kSlots)];
}

void Loader::read_ahead(const std::stop_token& stop, LoaderPosition position) {
  for (int64_t count = 0;; ++count, position = after(position)) {
    {
      std::unique_lock lock(mutex_);
      // The caller holds batch taken_ - 1, so batch taken_ - 1 + kSlots must wait.
      const auto room = [&] { return count < std::max<int64_t>(taken_ - 1, 0) + kSlots; };
      if (!changed_.wait(lock, stop, room) || stop.stop_requested()) return;
    }
    std::exception_ptr failure;
    try {
      read(position, slots_[static_cast<size_t>(count % kSlots)]);
    } catch (...) {
      failure = std::current_exception();
    }
    const std::lock_guard lock(mutex_);
    failure ? void(failure_ = failure) : void(++filled_);
    changed_.notify_all();
    if (failure) return;
  }
}

void Loader::read(LoaderPosition position, Batch& batch) {
  const int64_t T = options_.seq_len, B = options_.batch_size;
  batch.first_sequence = (options_.rank * options_.micro_steps + position.micro_step) * B;
  batch.counted_targets = B * T;
  for (int64_t i = 0; i < B; ++i) {
    tokens_.copy(window_start(position.step, batch.first_sequence + i), T + 1, window_.data());
    std::copy_n(window_.begin(), T, batch.inputs.begin() + i * T);
    std::copy_n(window_.begin() + 1, T, batch.targets.begin() + i * T);
  }
}

int64_t Loader::window_start(int64_t step, int64_t sequence) const {
  if (options_.sampling == Sampling::random) {
    return random_window(options_.seed, step, sequence, tokens_.size(), options_.seq_len);
  }
  const int64_t windows = (tokens_.size() - 1) / options_.seq_len;
  const int64_t place = step * sequences_per_step() + sequence;
  return shuffled(place % windows, windows, options_.seed, place / windows) * options_.seq_len;
}

EvalLoader::EvalLoader(const LoaderOptions& options)
    : options_(checked(options)),
      tokens_(options.directory, options.split, options.vocab_size, options.open),
      window_(static_cast<size_t>(options.seq_len + 1)) {
  if (tokens_.size() < 2) {
    throw UserError("{} holds {} tokens for {}, but an evaluation takes at least 2; use more data",
                    options_.directory.string(), tokens_.size(), options_.split);
  }
  resize(batch_, options_);
}

int64_t EvalLoader::batches() const {
  const int64_t windows = ceil_div(tokens_.size() - 1, options_.seq_len);
  const int64_t rows = options_.ranks * options_.batch_size;
  return ceil_div(windows, rows);
}

int64_t EvalLoader::counted_targets(int64_t index) const {
  const int64_t tokens = options_.ranks * options_.batch_size * options_.seq_len;
  return std::clamp<int64_t>(tokens_.size() - 1 - index * tokens, 0, tokens);
}

const Batch& EvalLoader::batch(int64_t index) {
  LATHE_CHECK(index >= 0 && index < batches(), "{} of {}", index, batches());
  const int64_t T = options_.seq_len, B = options_.batch_size;
  batch_.first_sequence = (index * options_.ranks + options_.rank) * B;
  batch_.counted_targets = 0;
  std::fill(batch_.inputs.begin(), batch_.inputs.end(), 0);
  std::fill(batch_.targets.begin(), batch_.targets.end(), kIgnoredTarget);
  for (int64_t i = 0; i < B; ++i) {
    const int64_t start = (batch_.first_sequence + i) * T;
    const int64_t counted = std::clamp<int64_t>(tokens_.size() - 1 - start, 0, T);
    if (counted == 0) break;
    tokens_.copy(start, counted + 1, window_.data());
    std::copy_n(window_.begin(), counted, batch_.inputs.begin() + i * T);
    std::copy_n(window_.begin() + 1, counted, batch_.targets.begin() + i * T);
    batch_.counted_targets += counted;
  }
  return batch_;
}

}  // namespace lathe
