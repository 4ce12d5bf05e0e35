// Ranks that meet at a file. Other users may be able to write to the folder. Ranks neither trust
// other users' files nor write through them, and only their own user can read what they write.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>
#include <random>
#include <thread>

#include "kernels/device/error.h"
#include "src/comm/deadline.h"
#include "src/comm/rendezvous.h"
#include "src/io/file.h"

namespace lathe {

namespace {

namespace fs = std::filesystem;

constexpr std::chrono::milliseconds kPause(20);

// A new file beside `path`, for this user only (mode 0600). Removed unless put() renames it.
class NewFile {
 public:
  explicit NewFile(const fs::path& path) : path_(path), name_(path.string() + ".XXXXXX") {
    file_ = FileHandle(::mkostemp(name_.data(), O_CLOEXEC));
    if (!file_)
      throw UserError(
          "--rendezvous file:{}: cannot write there ({}); name a file in a folder that all ranks "
          "see and can write to",
          path.string(), std::strerror(errno));
  }
  ~NewFile() {
    if (!name_.empty()) ::unlink(name_.c_str());
  }
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  uid_t owner() const {
    struct stat status {};
    if (::fstat(file_.get(), &status) != 0) throw_io_error("stat", name_, errno);
    return status.st_uid;
  }
  // Readers see all of it or nothing. A link at `path` is replaced, not followed.
  void put(const std::string& text) {
    write_all(file_.get(), text.data(), text.size(), name_);
    rename_path(name_, path_);
    name_.clear();
  }

 private:
  fs::path path_;
  std::string name_;
  FileHandle file_;
};

// The content, once there is a regular file of this owner and of this size.
std::optional<std::string> read_if_whole(const fs::path& path, size_t bytes, uid_t owner) {
  // Non-blocking, because opening a pipe would block.
  const FileHandle file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  struct stat status {};
  if (!file || ::fstat(file.get(), &status) != 0 || !S_ISREG(status.st_mode)) return std::nullopt;
  if (status.st_uid != owner || static_cast<size_t>(status.st_size) != bytes) return std::nullopt;
  std::string text(bytes, '\0');
  size_t done = 0;
  while (done < bytes) {
    const ssize_t count = ::read(file.get(), text.data() + done, bytes - done);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return std::nullopt;
    done += static_cast<size_t>(count);
  }
  return text;
}

}  // namespace

// Each rank writes a random word of its own beside the file, and accepts the file only if it
// contains that word: a file that an earlier run left does not.
void Rendezvous::share_by_file(void* data, size_t bytes) const {
  constexpr size_t kWord = 16;
  const Deadline deadline(timeout_seconds_);
  const auto word_path = [&](int rank) { return fmt::format("{}.{}", path_, rank); };
  const size_t others = static_cast<size_t>(place_.size - 1);
  const auto late = [&](const std::string& who) {
    throw UserError("{}: {} did not arrive within {:g} s", title_, who, timeout_seconds_);
  };
  if (fs::is_directory(fs::symlink_status(path_)))
    throw UserError("{}: that is a directory; name a file in it", title_);
  // Some file systems report an owner other than the writing user, but the same for all ranks.
  const uid_t owner = NewFile(path_).owner();
  if (place_.rank > 0) {
    std::random_device random;
    const std::string word = fmt::format("{:08x}{:08x}", random(), random());
    NewFile(word_path(place_.rank)).put(word);
    const size_t my_word = bytes + static_cast<size_t>(place_.rank - 1) * kWord;
    for (;; std::this_thread::sleep_for(kPause)) {
      const auto text = read_if_whole(path_, bytes + others * kWord, owner);
      if (text && text->compare(my_word, kWord, word) == 0) {
        std::memcpy(data, text->data(), bytes);
        break;
      }
      if (deadline.passed()) late("rank 0");
    }
    fs::remove(word_path(place_.rank));  // which shows rank 0 that it was read
    return;
  }
  std::string text(static_cast<const char*>(data), bytes);
  text.resize(bytes + others * kWord);
  // A word that an earlier run left is replaced when its rank arrives; until then it is read again.
  for (bool all_read = false; !all_read; std::this_thread::sleep_for(kPause)) {
    std::string before = text;
    std::string missing;
    all_read = true;
    for (int rank = 1; rank < place_.size; ++rank) {
      const auto word = read_if_whole(word_path(rank), kWord, owner);
      const size_t at = bytes + static_cast<size_t>(rank - 1) * kWord;
      const bool seen = text[at] != '\0';
      if (word) text.replace(at, kWord, *word);
      if (word || !seen) all_read = false;
      if (!word && !seen) missing += fmt::format("{}rank {}", missing.empty() ? "" : ", ", rank);
    }
    if (text != before && missing.empty()) NewFile(path_).put(text);
    if (!all_read && deadline.passed()) late(missing.empty() ? "an answer" : missing);
  }
  fs::remove(path_);
}

}  // namespace lathe
