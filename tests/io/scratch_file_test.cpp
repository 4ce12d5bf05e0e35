#include "src/io/scratch_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <random>

#include "tests/io/scratch.h"

namespace lathe {
namespace {

namespace fs = std::filesystem;

constexpr size_t kBlock = ScratchFile::kAlignment;

// Bytes at an aligned address.
struct Memory {
  explicit Memory(size_t size)
      : bytes(size), data(static_cast<char*>(aligned_alloc(kBlock, size))) {
    std::fill_n(data.get(), bytes, '\0');
  }
  void fill(uint64_t seed) {
    std::mt19937_64 random(seed);
    for (size_t i = 0; i < bytes; i += 8) {
      const uint64_t value = random();
      std::copy_n(reinterpret_cast<const char*>(&value), 8, data.get() + i);
    }
  }
  bool operator==(const Memory& other) const {
    return std::equal(data.get(), data.get() + bytes, other.data.get(), other.data.get() + bytes);
  }
  size_t bytes;
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  std::unique_ptr<char, Free> data;
};

// A descriptor of this process's file in the directory.
int descriptor_in(const fs::path& directory) {
  for (const auto& entry : fs::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    const std::string target = fs::read_symlink(entry.path(), gone).string();
    if (target.starts_with(directory.string()) && target.ends_with(" (deleted)"))
      return ::open(entry.path().c_str(), O_RDWR | O_CLOEXEC);
  }
  return -1;
}

TEST(ScratchFile, GivesBackWhatWasWritten) {
  const Scratch scratch;
  constexpr size_t kRecords = 7, kBytes = (5 << 20) + kBlock;  // more than two pieces each
  ScratchFile file(scratch.path(), kRecords * kBytes, "numbers");
  EXPECT_TRUE(fs::is_empty(scratch.path()));  // it has no name
  struct stat status {};
  const int fd = descriptor_in(scratch.path());
  ASSERT_EQ(::fstat(fd, &status), 0);
  ::close(fd);
  EXPECT_EQ(static_cast<size_t>(status.st_size), kRecords * kBytes);
  EXPECT_GE(static_cast<size_t>(status.st_blocks) * 512,
            kRecords * kBytes);  // before it is written
  std::vector<Memory> records;
  std::vector<ScratchFile::Request> writes;
  for (size_t i = 0; i < kRecords; ++i) {
    records.emplace_back(kBytes).fill(i);
    writes.push_back(file.write(i * kBytes, records[i].data.get(), kBytes));
  }
  // Reads are asked for at once; each starts after its write.
  std::vector<Memory> copies;
  std::vector<ScratchFile::Request> reads;
  for (size_t i = 0; i < kRecords; ++i) {
    copies.emplace_back(kBytes);
    reads.push_back(file.read(i * kBytes, copies[i].data.get(), kBytes, writes[i]));
  }
  for (size_t i = kRecords; i-- > 0;) {
    file.wait(reads[i]);
    EXPECT_TRUE(copies[i] == records[i]) << i;
  }
  EXPECT_EQ(file.bytes_written(), kRecords * kBytes);
  EXPECT_EQ(file.bytes_read(), kRecords * kBytes);
}

// Writes a record and damages the file behind it; returns the message of reading it.
template <typename Damage>
std::string damaged(const Damage& damage) {
  const Scratch scratch;
  ScratchFile file(scratch.path(), 8 * kBlock, "numbers");
  Memory record(4 * kBlock);
  record.fill(1);
  file.wait(file.write(2 * kBlock, record.data.get(), record.bytes));
  const int fd = descriptor_in(scratch.path());
  EXPECT_GE(fd, 0);
  damage(fd);
  ::close(fd);
  std::string message = message_of<CheckError>(
      [&] { file.wait(file.read(2 * kBlock, record.data.get(), record.bytes)); });
  // Nothing happens after an error.
  const uint64_t written = file.bytes_written();
  EXPECT_EQ(
      message_of<CheckError>([&] { file.wait(file.write(0, record.data.get(), record.bytes)); }),
      message);
  EXPECT_EQ(message_of<CheckError>([&] { file.rethrow(); }), message);
  EXPECT_EQ(file.bytes_written(), written + record.bytes);
  const size_t at = message.find(scratch.path().string());
  if (at != std::string::npos) message.replace(at, scratch.path().string().size(), "DIR");
  return message;
}

TEST(ScratchFile, NoticesDamage) {
  EXPECT_EQ(damaged([](int fd) {
              char byte = 0;
              ASSERT_EQ(::pread(fd, &byte, 1, 3 * kBlock), 1);
              byte ^= 16;
              ASSERT_EQ(::pwrite(fd, &byte, 1, 3 * kBlock), 1);
            }),
            "cannot read numbers in DIR (bytes 8192 to 24576): they have changed since they were "
            "written; the disk or the memory is failing");
  EXPECT_EQ(damaged([](int fd) { ASSERT_EQ(::ftruncate(fd, 3 * kBlock), 0); }),
            "cannot read numbers in DIR (bytes 8192 to 24576): the file has become shorter");
}

TEST(ScratchFile, RefusesWhatCannotWork) {
  const Scratch scratch;
  EXPECT_CONTAINS(message_of<UserError>([&] { ScratchFile(scratch / "none", kBlock, "numbers"); }),
                  "cannot create a file in " + (scratch / "none").string() +
                      ": No such file or directory; check the path");
  spill(scratch / "file", "text");
  EXPECT_CONTAINS(message_of<UserError>([&] { ScratchFile(scratch / "file", kBlock, "numbers"); }),
                  "Not a directory");
  EXPECT_CONTAINS(
      message_of<CheckError>([&] { ScratchFile(scratch.path(), uint64_t{1} << 60, "numbers"); }),
      "cannot reserve 1152921504606846976 bytes for numbers in");
  ScratchFile file(scratch.path(), 2 * kBlock, "numbers");
  Memory record(kBlock);
  EXPECT_THROW(file.write(1, record.data.get(), kBlock), CheckError);
  EXPECT_THROW(file.write(0, record.data.get() + 8, kBlock), CheckError);
  EXPECT_CONTAINS(
      message_of<CheckError>([&] { file.wait(file.read(kBlock, record.data.get(), kBlock)); }),
      "nothing was written at 4096");
}

}  // namespace
}  // namespace lathe
