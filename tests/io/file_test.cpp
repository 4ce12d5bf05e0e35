#include "src/io/file.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <random>

#include "tests/io/scratch.h"

namespace lathe {
namespace {

namespace fs = std::filesystem;

TEST(Hasher, GivesTheChecksumsOfXxh128sum) {
  // printf '' | xxh128sum; printf 'lathe' | xxh128sum
  EXPECT_EQ(Hasher().digest().xxh128, "99aa06d3014798d86001c324468d497f");
  Hasher hasher;
  hasher.update("la", 2);
  hasher.update("the", 3);
  const FileDigest digest = hasher.digest();
  EXPECT_EQ(digest.size, 5u);
  EXPECT_EQ(digest.xxh128, "7a13ec99e8ae3441b2e647a0bd0e048a");
}

TEST(AtomicFile, WritesWhatItIsGivenWhateverThePieces) {
  const Scratch scratch;
  std::mt19937 random(7);
  for (size_t buffer : {1, 7, 64, 4096}) {
    std::string expected;
    AtomicFile file(scratch / "a", buffer);
    for (int i = 0; i < 200; ++i) {
      std::string piece(random() % 150, '\0');
      for (char& c : piece) c = static_cast<char>(random());
      file.write(piece);
      expected += piece;
    }
    EXPECT_FALSE(fs::exists(scratch / "a") && buffer == 1) << "visible before it is complete";
    const FileDigest digest = file.commit();
    EXPECT_EQ(slurp(scratch / "a"), expected);
    EXPECT_EQ(digest.size, expected.size());
    EXPECT_EQ(digest, digest_file(scratch / "a"));
    EXPECT_FALSE(fs::exists(scratch / "a.partial"));
    EXPECT_THROW(file.write("more"), CheckError);
    EXPECT_THROW(file.commit(), CheckError);
  }
}

TEST(AtomicFile, LeavesTheFormerFileUntilCommit) {
  const Scratch scratch;
  write_file(scratch / "a", "old");
  {
    AtomicFile file(scratch / "a");
    file.write("new");
    EXPECT_EQ(slurp(scratch / "a"), "old");
  }
  EXPECT_EQ(slurp(scratch / "a"), "old");
  EXPECT_FALSE(fs::exists(scratch / "a.partial"));
  spill(scratch / "a.partial", "left by a crash, and longer");
  write_file(scratch / "a", "new");
  EXPECT_EQ(slurp(scratch / "a"), "new");
}

TEST(AtomicFile, APathThatCannotBeWrittenIsTheUsersMistake) {
  const Scratch scratch;
  spill(scratch / "file", "");
  fs::create_directory(scratch / "dir");
  fs::create_symlink(scratch / "elsewhere", scratch / "link.partial");
  const std::string long_name(300, 'x');
  for (const fs::path& path :
       {scratch / "file" / "below", scratch / "absent" / "a", scratch / "dir", scratch / "link",
        scratch / long_name, fs::path("/proc/lathe")}) {
    const std::string message = message_of<UserError>([&] { AtomicFile file(path); });
    EXPECT_CONTAINS(message, path.string());
  }
  EXPECT_FALSE(fs::exists(scratch / "elsewhere"));
  EXPECT_CONTAINS(message_of<UserError>([&] { AtomicFile file(scratch / "file" / "below"); }),
                  "Not a directory");
}

// Limits the size of files, like a full disk, while it lives.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    former_handler_ = std::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &former_);
    const rlimit limit{bytes, former_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &former_);
    std::signal(SIGXFSZ, former_handler_);
  }

 private:
  rlimit former_{};
  void (*former_handler_)(int) = nullptr;
};

TEST(AtomicFile, AWriteThatDoesNotFitIsACheckErrorAndLosesNothing) {
  const Scratch scratch;
  write_file(scratch / "a", "old");
  {
    const FileSizeLimit limit(10000);
    AtomicFile file(scratch / "a", 1024);
    const std::string message = message_of<CheckError>([&] {
      for (int i = 0; i < 100; ++i) file.write(std::string(1000, 'x'));
    });
    EXPECT_CONTAINS(message, (scratch / "a").string());
    EXPECT_CONTAINS(message, "File too large");
  }
  EXPECT_EQ(slurp(scratch / "a"), "old");
  EXPECT_FALSE(fs::exists(scratch / "a.partial"));
}

// A file system of 64 KiB, if the machine lets us mount one.
class SmallDisk {
 public:
  SmallDisk(const fs::path& at, unsigned long flags) : at_(at) {
    fs::create_directory(at);
    mounted_ = ::mount("lathe-test", at.c_str(), "tmpfs", flags, "size=64k") == 0;
  }
  ~SmallDisk() {
    if (mounted_) ::umount2(at_.c_str(), MNT_DETACH);
  }
  bool mounted() const { return mounted_; }

 private:
  fs::path at_;
  bool mounted_;
};

TEST(AtomicFile, AFullDiskIsACheckErrorAndLosesNothing) {
  const Scratch scratch;
  const SmallDisk disk(scratch / "disk", 0);
  if (!disk.mounted()) GTEST_SKIP() << "no right to mount a tmpfs";
  write_file(scratch / "disk/a", "old");
  {
    AtomicFile file(scratch / "disk/a", 1024);
    const std::string message =
        message_of<CheckError>([&] { file.write(std::string(100'000, 'x')); });
    EXPECT_CONTAINS(message, "No space left on device");
  }
  EXPECT_EQ(slurp(scratch / "disk/a"), "old");
  write_file(scratch / "disk/b", std::string(40'000, 'x'));  // the space is free again
}

TEST(AtomicFile, AReadOnlyDiskIsTheUsersMistake) {
  const Scratch scratch;
  const SmallDisk disk(scratch / "disk", MS_RDONLY);
  if (!disk.mounted()) GTEST_SKIP() << "no right to mount a tmpfs";
  EXPECT_CONTAINS(message_of<UserError>([&] { write_file(scratch / "disk/a", "x"); }),
                  "Read-only file system");
  EXPECT_THROW(make_directory(scratch / "disk/run"), UserError);
}

TEST(ReadWholeFile, RefusesWhatIsTooLongMissingOrNoFile) {
  const Scratch scratch;
  spill(scratch / "a", "12345");
  EXPECT_EQ(read_whole_file(scratch / "a", 5), "12345");
  EXPECT_CONTAINS(message_of<UserError>([&] { read_whole_file(scratch / "a", 4); }), "5 bytes");
  spill(scratch / "empty", "");
  EXPECT_EQ(read_whole_file(scratch / "empty", 0), "");
  EXPECT_CONTAINS(message_of<UserError>([&] { read_whole_file(scratch / "none", 9); }),
                  "No such file");
  EXPECT_CONTAINS(message_of<UserError>([&] { read_whole_file(scratch.path(), 9); }),
                  "not a regular file");
  ASSERT_EQ(::mkfifo((scratch / "pipe").c_str(), 0600), 0);
  EXPECT_CONTAINS(message_of<UserError>([&] { read_whole_file(scratch / "pipe", 9); }),
                  "not a regular file");
  // A file that reports no size is still read to its end.
  EXPECT_FALSE(read_whole_file("/proc/self/stat", 1 << 20).empty());
  EXPECT_THROW(read_whole_file("/proc/self/stat", 3), UserError);
}

TEST(MappedFile, ShowsTheFile) {
  const Scratch scratch;
  spill(scratch / "a", "hello");
  MappedFile first(scratch / "a");
  const MappedFile file(std::move(first));
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(file.data()), file.size()), "hello");
  EXPECT_EQ(first.data(), nullptr);  // NOLINT(bugprone-use-after-move): it says so
  spill(scratch / "empty", "");
  EXPECT_EQ(MappedFile(scratch / "empty").data(), nullptr);
  EXPECT_THROW(MappedFile(scratch / "none"), UserError);
}

TEST(MappedFile, ThatShrinksIsACheckErrorAndNoSignal) {
  const Scratch scratch;
  spill(scratch / "a", std::string(100000, 'a'));
  const MappedFile file(scratch / "a");
  std::string part(10, ' ');
  file.read(99990, part.data(), part.size());
  EXPECT_EQ(part, "aaaaaaaaaa");
  EXPECT_THROW(file.read(99991, part.data(), part.size()), CheckError);
  std::filesystem::resize_file(scratch / "a", 10);
  for (int i = 0; i < 3; ++i) {
    const std::string message =
        message_of<CheckError>([&] { file.read(99990, part.data(), part.size()); });
    EXPECT_CONTAINS(message, (scratch / "a").string());
    EXPECT_CONTAINS(message, "had 100000 bytes when it was opened, and now has 10");
  }
  file.read(0, part.data(), part.size());
  EXPECT_EQ(part, "aaaaaaaaaa");
}

TEST(Directories, AreMadeOnceAndErrorsNamed) {
  const Scratch scratch;
  make_directory(scratch / "d");
  make_directory(scratch / "d");
  spill(scratch / "f", "");
  EXPECT_CONTAINS(message_of<UserError>([&] { make_directory(scratch / "f"); }), "File exists");
  EXPECT_THROW(make_directory(scratch / "x/y"), UserError);
  EXPECT_THROW(remove_directory(scratch / "x"), UserError);
  EXPECT_THROW(remove_file(scratch / "x"), UserError);
  EXPECT_THROW(rename_path(scratch / "x", scratch / "y"), UserError);
  EXPECT_THROW(sync_directory(scratch / "x"), UserError);
  remove_directory(scratch / "d");
  remove_file(scratch / "f");
  EXPECT_EQ(parent_of("name"), ".");
  EXPECT_EQ(parent_of("a/b"), "a");
}

}  // namespace
}  // namespace lathe
