#include "src/io/signals.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "tests/io/scratch.h"

namespace lathe {
namespace {

TEST(StopSignal, NotesEachOfItsSignals) {
  for (const auto& [signal, name] : {std::pair(SIGTERM, "SIGTERM"), std::pair(SIGINT, "SIGINT"),
                                     std::pair(SIGUSR1, "SIGUSR1"), std::pair(SIGHUP, "SIGHUP")}) {
    StopSignal stop;
    EXPECT_FALSE(stop.requested());
    EXPECT_EQ(stop.name(), "");
    ::raise(signal);
    EXPECT_TRUE(stop.requested());
    EXPECT_EQ(stop.signal(), signal);
    EXPECT_EQ(stop.name(), name);
  }
}

TEST(StopSignal, KeepsTheFirst) {
  StopSignal stop;
  ::raise(SIGTERM);
  ::raise(SIGUSR1);
  ::raise(SIGTERM);
  EXPECT_EQ(stop.signal(), SIGTERM);
}

int noted = 0;

TEST(StopSignal, GivesTheFormerHandlersBack) {
  auto* const former = std::signal(SIGUSR1, [](int signal) { noted = signal; });
  {
    StopSignal stop;
    ::raise(SIGUSR1);
    EXPECT_EQ(noted, 0);
  }
  ::raise(SIGUSR1);
  EXPECT_EQ(noted, SIGUSR1);
  std::signal(SIGUSR1, former);
}

TEST(StopSignal, LeavesAHangupThatIsIgnored) {
  auto* const former = std::signal(SIGHUP, SIG_IGN);
  {
    StopSignal stop;
    ::raise(SIGHUP);
    EXPECT_FALSE(stop.requested());
  }
  std::signal(SIGHUP, former);
}

TEST(IgnoreWriteSignals, MakesThemErrorsOfTheCall) {
  const pid_t child = ::fork();
  if (child == 0) {
    ignore_write_signals();
    int pipes[2];
    if (::pipe(pipes) != 0) ::_exit(1);
    ::close(pipes[0]);
    ::_exit(::write(pipes[1], "x", 1) < 0 && errno == EPIPE && ::raise(SIGXFSZ) == 0 ? 7 : 8);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 7);
}

TEST(StopSignal, ThereIsOneAtATime) {
  StopSignal stop;
  EXPECT_THROW(StopSignal(), CheckError);
  ::raise(SIGTERM);
  EXPECT_TRUE(stop.requested());
}

// How a child ends that gets these signals while it has a StopSignal.
int status_after(std::initializer_list<int> signals) {
  const pid_t child = ::fork();
  if (child == 0) {
    StopSignal stop;
    for (int signal : signals) ::raise(signal);
    ::_exit(stop.requested() ? 7 : 8);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return status;
}

TEST(StopSignal, TheSecondInterruptEndsTheProgram) {
  const int one = status_after({SIGINT});
  ASSERT_TRUE(WIFEXITED(one));
  EXPECT_EQ(WEXITSTATUS(one), 7);
  const int with_others = status_after({SIGTERM, SIGINT, SIGTERM, SIGUSR1});
  EXPECT_TRUE(WIFEXITED(with_others));
  const int two = status_after({SIGINT, SIGINT});
  ASSERT_TRUE(WIFSIGNALED(two));
  EXPECT_EQ(WTERMSIG(two), SIGINT);
}

TEST(StopSignal, AReadUnderWayGoesOn) {
  int pipes[2];
  ASSERT_EQ(::pipe(pipes), 0);
  StopSignal stop;
  const pid_t parent = ::getpid();
  const pid_t child = ::fork();
  if (child == 0) {
    ::kill(parent, SIGTERM);
    (void)!::write(pipes[1], "x", 1);
    ::_exit(0);
  }
  char c = 0;
  EXPECT_EQ(::read(pipes[0], &c, 1), 1);
  ::waitpid(child, nullptr, 0);
  EXPECT_TRUE(stop.requested());
  ::close(pipes[0]);
  ::close(pipes[1]);
}

}  // namespace
}  // namespace lathe
