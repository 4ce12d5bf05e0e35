#include "src/io/directory_lock.h"

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "tests/io/scratch.h"

namespace lathe {
namespace {

// A process that holds a directory's lock until asked to end or killed.
class Holder {
 public:
  explicit Holder(const std::filesystem::path& directory) {
    int held[2], release[2];
    EXPECT_EQ(::pipe(held) | ::pipe(release), 0);
    child_ = ::fork();
    if (child_ == 0) {
      ::close(release[1]);
      char c = 0;
      {
        const DirectoryLock lock(directory, 0);
        (void)!::write(held[1], "x", 1);
        (void)!::read(release[0], &c, 1);
      }
      ::_exit(0);
    }
    ::close(held[1]);
    ::close(release[0]);
    release_ = release[1];
    char c = 0;
    EXPECT_EQ(::read(held[0], &c, 1), 1);
    ::close(held[0]);
  }
  ~Holder() { end(); }
  pid_t pid() const { return child_; }
  void end() {
    if (release_ >= 0) ::close(release_);
    release_ = -1;
    if (child_ > 0) ::waitpid(child_, nullptr, 0);
    child_ = -1;
  }
  void kill() {
    ::kill(child_, SIGKILL);
    end();
  }

 private:
  pid_t child_ = -1;
  int release_ = -1;
};

TEST(DirectoryLock, IsOneProcesssAtATime) {
  const Scratch scratch;
  Holder holder(scratch.path());
  testing::internal::CaptureStderr();
  const std::string refusal =
      message_of<UserError>([&] { const DirectoryLock lock(scratch.path(), 0); });
  testing::internal::GetCapturedStderr();
  char host[256] = {};
  ::gethostname(host, sizeof(host) - 1);
  EXPECT_CONTAINS(refusal, scratch.path().string());
  EXPECT_CONTAINS(refusal, fmt::format("process {} on host {}", holder.pid(), host));
  holder.end();
  EXPECT_FALSE(std::filesystem::exists(scratch / "lock"));
  const DirectoryLock lock(scratch.path(), 0);
  EXPECT_CONTAINS(slurp(scratch / "lock"), fmt::format("process {} ", ::getpid()));
}

TEST(DirectoryLock, EndsWithAProcessThatIsKilled) {
  const Scratch scratch;
  Holder holder(scratch.path());
  holder.kill();
  EXPECT_TRUE(std::filesystem::exists(scratch / "lock"));
  const DirectoryLock lock(scratch.path(), 0);
}

TEST(DirectoryLock, WaitsForAPredecessor) {
  const Scratch scratch;
  Holder holder(scratch.path());
  const pid_t killer = ::fork();
  if (killer == 0) {
    ::usleep(200000);
    ::kill(holder.pid(), SIGKILL);
    ::_exit(0);
  }
  testing::internal::CaptureStderr();
  { const DirectoryLock lock(scratch.path(), 60); }
  EXPECT_CONTAINS(testing::internal::GetCapturedStderr(), "waiting 60 s");
  ::waitpid(killer, nullptr, 0);
}

TEST(DirectoryLock, FollowsNoLinkAndNamesWhatItCannotOpen) {
  const Scratch scratch;
  spill(scratch / "precious", "text");
  std::filesystem::create_symlink(scratch / "precious", scratch / "lock");
  EXPECT_THROW(DirectoryLock(scratch.path(), 0), UserError);
  EXPECT_EQ(slurp(scratch / "precious"), "text");
  spill(scratch / "file", "");
  EXPECT_CONTAINS(message_of<UserError>([&] { DirectoryLock(scratch / "file", 0); }), "file/lock");
}

TEST(DirectoryLock, TakesAnEmptyDirectoryThatItMadeAwayAgain) {
  const Scratch scratch;
  { const DirectoryLock lock(scratch / "a/b", 0); }
  EXPECT_FALSE(std::filesystem::exists(scratch / "a/b"));
  {
    const DirectoryLock lock(scratch / "a/b", 0);
    spill(scratch / "a/b/file", "");
  }
  EXPECT_EQ(slurp(scratch / "a/b/file"), "");
  std::filesystem::create_directory(scratch / "c");
  { const DirectoryLock lock(scratch / "c", 0); }
  EXPECT_TRUE(std::filesystem::exists(scratch / "c"));
}

}  // namespace
}  // namespace lathe
