#include "src/parallel/agreement.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <random>
#include <thread>
#include <vector>

#include "src/data/shard.h"
#include "src/io/file.h"

namespace lathe {

namespace fs = std::filesystem;

namespace {

// Hashes the tokens of a shard: all of a small one; of a large one the first, the last, and some in
// between.
std::string fingerprint(const Shard& shard) {
  constexpr int64_t kParts = 8, kPart = 8192;
  const int64_t part = shard.size() <= kParts * kPart ? shard.size() : kPart;
  std::vector<int32_t> tokens(static_cast<size_t>(part));
  Hasher hasher;
  for (int64_t i = 0; i < (part < shard.size() ? kParts : 1); ++i) {
    shard.copy((shard.size() - part) * i / (kParts - 1), part, tokens.data(), 0);
    hasher.update(tokens.data(), tokens.size() * sizeof(int32_t));
  }
  return hasher.digest().xxh128;
}

}  // namespace

std::string digest_of(Device& device, const Tensor& tensor) {
  constexpr int64_t kChunk = int64_t{4} << 20;  // elements that pass through the host at a time
  Hasher hasher;
  std::vector<char> bytes;
  const Tensor flat = tensor.reshaped({tensor.elements()});
  for (int64_t first = 0; first < flat.elements(); first += kChunk) {
    const Tensor part = flat.rows(first, std::min(kChunk, flat.elements() - first));
    bytes.resize(part.bytes());
    device.download(bytes.data(), part);
    hasher.update(bytes.data(), bytes.size());
  }
  return hasher.digest().xxh128;
}

void require_same(Communicator& communicator, std::string_view what, std::string_view mine,
                  std::string_view advice) {
  const std::vector<std::string> all = communicator.exchange_text(mine);
  std::vector<size_t> others;
  for (size_t r = 1; r < all.size(); ++r) {
    if (all[r] != all[0]) others.push_back(r);
  }
  if (others.empty()) return;
  throw UserError("{} of rank{} {} differ from rank 0's: {}", what, others.size() > 1 ? "s" : "",
                  fmt::join(others, ", "), advice);
}

std::string data_fingerprint(const std::string& directory) {
  if (directory.empty()) return "";
  std::string text;
  for (const char* split : {"train", "val"}) {
    for (const fs::path& path : find_shards(directory, split)) {
      const Shard shard(path);
      text += fmt::format("{} {} {}\n", path.filename().string(), shard.size(), fingerprint(shard));
    }
  }
  const fs::path tokenizer = fs::path(directory) / "tokenizer.json";
  if (is_there(tokenizer)) text += digest_file(tokenizer).xxh128;
  return text;
}

void require_same_world(Communicator& communicator, std::string_view configuration,
                        std::string_view data) {
  require_same(communicator, "the program files", digest_file("/proc/self/exe").xxh128,
               "start the same build on every host");
  require_same(communicator, "the flags", configuration,
               "give every rank the same flags and --config");
  require_same(communicator, "the data", data,
               "--data must hold the same shards and tokenizer on every host");
}

void do_together(Communicator& communicator, const std::function<void()>& part,
                 const std::function<void()>& undo) {
  std::exception_ptr failure;
  try {
    part();
  } catch (...) {
    failure = std::current_exception();
  }
  const char mine = failure ? 1 : 0;
  std::vector<char> all(static_cast<size_t>(communicator.size()));
  communicator.exchange(all.data(), &mine, sizeof(mine));
  if (std::ranges::count(all, 0) == communicator.size()) return;
  undo();
  communicator.barrier();
  if (failure) std::rethrow_exception(failure);
  communicator.barrier();  // the failed rank never comes: wait for it to end the job
}

void require_one_out(Communicator& communicator, const fs::path& out) {
  const std::string mine = fmt::format("{:08x}", std::random_device()());
  const fs::path probe = out / (".ranks-" + communicator.exchange_text(mine).front());
  if (communicator.rank() == 0) {
    make_directories(out);
    write_file(probe, "");
  }
  communicator.barrier();
  // A network file system may show old contents for a while; opening a directory refreshes them.
  std::error_code error;
  bool seen = false;
  for (int i = 0; i < 20 && !seen; ++i) {
    if (i > 0) std::this_thread::sleep_for(std::chrono::milliseconds(250));
    fs::directory_iterator(parent_of(out), error), fs::directory_iterator(out, error);
    seen = fs::exists(probe, error);
  }
  communicator.barrier();
  if (communicator.rank() == 0) fs::remove(probe, error);
  require_same(communicator, "the files in --out", seen ? "there" : "not there",
               "--out must be one directory for all ranks, on a file system that all hosts share");
}

}  // namespace lathe
