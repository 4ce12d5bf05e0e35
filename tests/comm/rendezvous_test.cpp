// Ranks that MPI does not know meet by file and by address, among strangers. Threads play the
// ranks.
#include "src/comm/rendezvous.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <fstream>
#include <optional>
#include <thread>
#include <vector>

#include "kernels/device/error.h"
#include "src/comm/rendezvous_hello.h"
#include "tests/data/temp_dir.h"

namespace lathe::testing {
namespace {

using Word = std::array<char, 128>;

Word word_of(int run) {
  Word word{};
  fmt::format_to(word.data(), "the name of run {}", run);
  return word;
}

// All ranks on one host.
Place place_of(int rank, int size) {
  Place place;
  place.rank = place.local_rank = rank;
  place.size = place.local_size = size;
  return place;
}

// The data that a rank received, or its error.
std::string outcome(const Rendezvous& rendezvous, int rank, int run = 1) {
  Word word = rank == 0 ? word_of(run) : Word{};
  try {
    rendezvous.share(word.data(), word.size());
    return word.data();
  } catch (const UserError& error) {
    return error.what();
  }
}

// A rank in its own thread.
class Rank {
 public:
  Rank(int rank, int size, const std::string& address, double timeout = 60, int run = 1)
      : thread_([this, rank, run, rendezvous = Rendezvous(place_of(rank, size), address, timeout)] {
          got_ = outcome(rendezvous, rank, run);
        }) {}
  ~Rank() {
    if (thread_.joinable()) thread_.join();
  }
  const std::string& got() {
    if (thread_.joinable()) thread_.join();
    return got_;
  }

 private:
  std::string got_;
  std::thread thread_;
};

// All ranks meet; returns what each received, or its error.
std::vector<std::string> meet(int size, const std::string& address, int run, double timeout = 60,
                              int missing = -1) {
  std::vector<std::unique_ptr<Rank>> ranks;
  for (int rank = 0; rank < size; ++rank)
    if (rank != missing) ranks.push_back(std::make_unique<Rank>(rank, size, address, timeout, run));
  std::vector<std::string> got;
  for (int rank = 0, i = 0; rank < size; ++rank)
    got.push_back(rank == missing ? "" : ranks[static_cast<size_t>(i++)]->got());
  return got;
}

const char kToken[] = "0123456789abcdef0123456789ABCDEF";
const char kOtherToken[] = "0123456789abcdeF0123456789ABCDEF";

// An environment variable, set while this lives.
class Variable {
 public:
  Variable(const char* name, const std::string& value) : name_(name) {
    setenv(name, value.c_str(), 1);
  }
  ~Variable() { unsetenv(name_); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  const char* name_;
};

// ---- Sockets of strangers, and of ranks that send what a test wants.

sockaddr_in ipv4(const char* host, int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  LATHE_CHECK(::inet_pton(AF_INET, host, &address.sin_addr) == 1);
  return address;
}

class Caller {
 public:
  explicit Caller(int fd) : fd_(fd) {}
  Caller(const char* host, int port) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    const sockaddr_in address = ipv4(host, port);
    if (::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0)
      hang_up();
  }
  ~Caller() { hang_up(); }
  Caller(Caller&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

  bool connected() const { return fd_ >= 0; }
  void hang_up() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  void reset() {  // the other end gets an error
    const linger at_once{1, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
    hang_up();
  }
  void say(const void* data, size_t bytes) const { ::send(fd_, data, bytes, MSG_NOSIGNAL); }
  void say(const std::string& text) const { say(text.data(), text.size()); }
  // This many bytes, or what came before the other end hung up.
  std::string hear(size_t bytes) const {
    std::string heard(bytes, '\0');
    const ssize_t count = ::recv(fd_, heard.data(), bytes, MSG_WAITALL);
    heard.resize(count > 0 ? static_cast<size_t>(count) : 0);
    return heard;
  }

 private:
  int fd_;
};

// Waits until rank 0 listens.
Caller call(int port) {
  for (int i = 0; i < 6000; ++i, std::this_thread::sleep_for(std::chrono::milliseconds(10))) {
    Caller caller("127.0.0.1", port);
    if (caller.connected()) return caller;
  }
  ADD_FAILURE() << "nobody listens";
  return Caller(-1);
}

// A port of this host, and its listener, if any.
struct Port {
  int number;
  int listener;

  explicit Port(bool listening = false) : listener(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = ipv4("127.0.0.1", 0);
    socklen_t length = sizeof(address);
    const int on = 1;
    ::setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    LATHE_CHECK(::bind(listener, reinterpret_cast<sockaddr*>(&address), length) == 0);
    if (listening) LATHE_CHECK(::listen(listener, 100) == 0);
    ::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length);
    number = ntohs(address.sin_port);
    if (!listening) close();
  }
  ~Port() { close(); }
  Port(const Port&) = delete;
  Port& operator=(const Port&) = delete;
  void close() {
    if (listener >= 0) ::close(listener);
    listener = -1;
  }
  std::string at(const char* host) const { return fmt::format("{}:{}", host, number); }
};

Hello hello_of(int rank, int size, uint64_t process, const std::string& token = "") {
  return {.process = process, .rank = rank, .size = size, .token = halves_of(token).rank_shows};
}

// What a rank sends and receives; whether rank 0 gave it the data.
bool takes_the_word(const Caller& caller, const Hello& hello, bool thanks) {
  caller.say(&hello, sizeof(hello));
  const std::string heard = caller.hear(kHalf + sizeof(Word));
  const bool got = heard.size() == kHalf + sizeof(Word) && heard.substr(kHalf, 3) == "the";
  if (got && thanks) caller.say(&kThanks, 1);
  return got;
}

// ---- By address.

TEST(Rendezvous, ByAddress) {
  const std::string address = Port().at("localhost");
  for (int run = 0; run < 3; ++run)
    for (const std::string& got : meet(4, address, run)) EXPECT_EQ(got, word_of(run).data());
}

TEST(Rendezvous, ByTheEnvironment) {
  const Variable host("MASTER_ADDR", "127.0.0.1");
  const Variable port("MASTER_PORT", std::to_string(Port().number));
  for (const std::string& got : meet(3, "", 1)) EXPECT_EQ(got, word_of(1).data());
}

TEST(Rendezvous, ByIPv6) {
  const int fd = ::socket(AF_INET6, SOCK_STREAM, 0);
  sockaddr_in6 loopback{};
  loopback.sin6_family = AF_INET6;
  loopback.sin6_addr = in6addr_loopback;
  const bool here = ::bind(fd, reinterpret_cast<sockaddr*>(&loopback), sizeof(loopback)) == 0;
  ::close(fd);
  if (!here) GTEST_SKIP() << "this machine has no IPv6";
  const Port port;
  for (const std::string& got : meet(3, port.at("[::1]"), 1)) EXPECT_EQ(got, word_of(1).data());
  const Variable master_host("MASTER_ADDR", "::1");
  const Variable master_port("MASTER_PORT", std::to_string(port.number));
  for (const std::string& got : meet(3, "", 2)) EXPECT_EQ(got, word_of(2).data());
}

TEST(Rendezvous, ATimeoutMayBeLongerThanTheClockCounts) {
  for (const double timeout : {1e12, 1e300})
    for (const std::string& got : meet(2, Port().at("127.0.0.1"), 1, timeout))
      EXPECT_EQ(got, word_of(1).data());
}

TEST(Rendezvous, WithAToken) {
  const Variable token("LATHE_RENDEZVOUS_TOKEN", kToken);
  const Port port;
  for (const std::string& got : meet(4, port.at("127.0.0.1"), 1)) EXPECT_EQ(got, word_of(1).data());
  // The address of all networks: whoever chose it has all of them.
  for (const std::string& got : meet(4, port.at("0.0.0.0"), 2)) EXPECT_EQ(got, word_of(2).data());
}

TEST(Rendezvous, WhatOtherHostsReachNeedsAToken) {
  for (const char* host : {"0.0.0.0", "198.51.100.7", "[2001:db8::7]"})
    for (int rank = 0; rank < 2; ++rank) {
      const std::string error = outcome(Rendezvous(place_of(rank, 2), Port().at(host), 1e6), rank);
      expect_contains(error, "LATHE_RENDEZVOUS_TOKEN is not set");
      expect_contains(error, host);
    }
  for (const size_t length : {1, 31, 129}) {
    const Variable token("LATHE_RENDEZVOUS_TOKEN", std::string(length, 'x'));
    expect_contains(user_error([] { Rendezvous(place_of(0, 2), "localhost:1", 1); }),
                    fmt::format("LATHE_RENDEZVOUS_TOKEN has {} characters", length));
  }
}

TEST(Rendezvous, ListensAtHostAlone) {
  const Port port;
  Rank zero(0, 2, port.at("127.0.0.1"));
  call(port.number);
  EXPECT_FALSE(Caller("127.0.0.2", port.number).connected());
  Rank one(1, 2, port.at("127.0.0.1"));
  EXPECT_EQ(zero.got(), word_of(1).data());
  EXPECT_EQ(one.got(), word_of(1).data());
}

// What strangers may send. Each gets nothing, and is still connected when the ranks arrive.
void say_as_stranger(const Caller& stranger, int what) {
  Hello hello = hello_of(1, 3, 99, kToken);
  switch (what % 8) {
    case 0:
    case 1:
      break;  // nothing
    case 2:
      stranger.say(std::string(1000, 'x'));
      break;
    case 3:
      stranger.say(&hello, sizeof(hello) - 1);  // part of a rank's hello
      break;
    case 4:
      hello.token = halves_of(kOtherToken).rank_shows;
      stranger.say(&hello, sizeof(hello));
      break;
    case 5:  // the half that rank 0 shows, with the sizes of another job
      hello = hello_of(1, 5, 99);
      hello.token = halves_of(kToken).rank_0_shows;
      stranger.say(&hello, sizeof(hello));
      break;
    case 6:  // a rank without a token
      hello = hello_of(2, 3, 99);
      stranger.say(&hello, sizeof(hello));
      break;
    case 7: {  // a hello that was enough in an earlier version
      const struct {
        uint64_t greeting = 0x6c61746865206869;
        int32_t rank = 1, size = 9;
      } former;
      stranger.say(&former, sizeof(former));
      break;
    }
  }
}

TEST(Rendezvous, StrangersNeitherEndNorDelayTheStartNorTakeAPlace) {
  const Variable token("LATHE_RENDEZVOUS_TOKEN", kToken);
  const Port port;
  Rank zero(0, 3, port.at("127.0.0.1"));
  std::vector<Caller> strangers;
  for (int i = 0; i < 60; ++i) strangers.push_back(call(port.number));  // say nothing
  for (int i = 0; i < 200; ++i) {
    strangers.push_back(call(port.number));
    say_as_stranger(strangers.back(), i);
    if (i % 10 == 0) call(port.number).reset();
    if (i % 10 == 5) call(port.number).hang_up();
  }
  Rank one(1, 3, port.at("127.0.0.1")), two(2, 3, port.at("127.0.0.1"));
  for (Rank* rank : {&zero, &one, &two}) EXPECT_EQ(rank->got(), word_of(1).data());
  for (const Caller& stranger : strangers) EXPECT_EQ(stranger.hear(1), "");
}

// As above, but strangers have used up all the files that rank 0 may open: they lose them.
TEST(Rendezvous, StrangersDoNotUseUpFiles) {
  const Port port;
  const pid_t child = ::fork();
  if (child == 0) {
    const rlimit few{32, 32};
    const bool limited = ::setrlimit(RLIMIT_NOFILE, &few) == 0;
    const Rendezvous zero(place_of(0, 3), port.at("127.0.0.1"), 60);
    ::_exit(limited && outcome(zero, 0) == word_of(1).data() ? 0 : 1);
  }
  std::vector<Caller> strangers;
  for (int i = 0; i < 100; ++i) strangers.push_back(call(port.number));
  for (int rank = 1; rank < 3; ++rank)
    EXPECT_EQ(Rank(rank, 3, port.at("127.0.0.1")).got(), word_of(1).data());
  int status = -1;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

TEST(Rendezvous, RanksWithAnotherTokenAreToldOf) {
  std::string zero_got, one_got;
  // Until both have had the time to run.
  for (double timeout = 0.3; timeout < 60; timeout *= 2) {
    const Port port;
    std::optional<Rank> zero, one;
    {
      const Variable token("LATHE_RENDEZVOUS_TOKEN", kToken);
      zero.emplace(0, 2, port.at("127.0.0.1"), timeout);
    }
    {
      const Variable token("LATHE_RENDEZVOUS_TOKEN", kOtherToken);
      one.emplace(1, 2, port.at("127.0.0.1"), timeout);
    }
    zero_got = zero->got();
    one_got = one->got();
    if (zero_got.find("showed") != std::string::npos) break;
  }
  expect_contains(zero_got, "rank 1 did not arrive");
  expect_contains(zero_got, "showed another LATHE_RENDEZVOUS_TOKEN, the last from 127.0.0.1:");
  expect_contains(one_got, "rank 0 did not answer within");
}

TEST(Rendezvous, WhoAnswersInThePlaceOfRankZeroIsNotBelieved) {
  const Variable token("LATHE_RENDEZVOUS_TOKEN", kToken);
  Port port(true);
  Rank one(1, 2, port.at("127.0.0.1"));
  const std::string wrong_word(sizeof(Word), 'w');
  for (int i = 0; i < 3; ++i) {
    const Caller rank(::accept(port.listener, nullptr, nullptr));
    const std::string said = rank.hear(sizeof(Hello));
    EXPECT_EQ(said.size(), sizeof(Hello));
    EXPECT_EQ(said.find("ABCDEF"), std::string::npos);  // the half that would prove to be rank 0
    if (i == 0) rank.say(std::string(kHalf, '\0') + wrong_word);
    if (i == 1) rank.say(said.substr(sizeof(Hello) - kHalf) + wrong_word);  // what it has received
  }
  port.close();
  Rank zero(0, 2, port.at("127.0.0.1"));
  EXPECT_EQ(one.got(), word_of(1).data());
  EXPECT_EQ(zero.got(), word_of(1).data());
}

TEST(Rendezvous, WhatIsSaidMayComeInParts) {
  const Port port;
  Rank zero(0, 3, port.at("127.0.0.1"));
  const Hello hello = hello_of(1, 3, 7);
  const char* const said = reinterpret_cast<const char*>(&hello);
  const Caller slow = call(port.number);
  slow.say(said, 5);
  EXPECT_EQ(Rank(2, 3, port.at("127.0.0.1")).got(), word_of(1).data());  // meanwhile
  for (size_t i = 5; i < sizeof(hello); ++i) slow.say(said + i, 1);
  std::string heard;
  for (size_t i = 0; i < kHalf + sizeof(Word); ++i) heard += slow.hear(1);
  EXPECT_EQ(heard.substr(kHalf), std::string(word_of(1).data(), sizeof(Word)));
  slow.say(&kThanks, 1);
  EXPECT_EQ(zero.got(), word_of(1).data());
}

// A rank counts only once it confirms that it has the data: one that was lost before may come
// again.
TEST(Rendezvous, ARankThatWasLostMayComeAgain) {
  const Port port;
  Rank zero(0, 2, port.at("127.0.0.1"));
  for (const uint64_t process : {7, 8}) {
    Caller lost = call(port.number);
    EXPECT_TRUE(takes_the_word(lost, hello_of(1, 2, process), false));
    Caller again = call(port.number);  // before the first connection is known to be gone
    EXPECT_TRUE(takes_the_word(again, hello_of(1, 2, process), false));
    lost.reset();
    again.hang_up();
  }
  EXPECT_EQ(Rank(1, 2, port.at("127.0.0.1")).got(), word_of(1).data());
  EXPECT_EQ(zero.got(), word_of(1).data());
}

TEST(Rendezvous, TwoProcessesOfOneRankAreToldOf) {
  for (const bool first_is_done : {false, true}) {
    const Port port;
    Rank zero(0, 3, port.at("127.0.0.1"));
    const Caller first = call(port.number);
    EXPECT_TRUE(takes_the_word(first, hello_of(1, 3, 7), first_is_done));
    EXPECT_FALSE(takes_the_word(call(port.number), hello_of(1, 3, 8), true));
    expect_contains(zero.got(), "two processes claim to be rank 1, from 127.0.0.1:");
  }
}

TEST(Rendezvous, ARankOfAnotherSizeIsToldOf) {
  const Port port;
  Rank zero(0, 3, port.at("127.0.0.1"));
  EXPECT_FALSE(takes_the_word(call(port.number), hello_of(4, 8, 7), true));
  expect_contains(zero.got(), "rank 4 of 8 connected, but there should be 3 ranks");
}

// None of these may wait for its timeout.
TEST(Rendezvous, WhatCannotWorkIsSaidAtOnce) {
  const Variable token("LATHE_RENDEZVOUS_TOKEN", kToken);
  const std::string no_label(64, 'x');  // in a host's name: resolvers refuse it themselves
  for (int rank = 0; rank < 2; ++rank) {
    const Rendezvous nameless(place_of(rank, 2), no_label + ":29500", 1e6);
    expect_contains(outcome(nameless, rank), "'" + no_label + "' has no address here");
    const Rendezvous no_ipv6(place_of(rank, 2), "[fd00::g]:29500", 1e6);
    expect_contains(outcome(no_ipv6, rank), "'fd00::g' has no address here");
    Place several_hosts = place_of(rank, 4);
    several_hosts.local_size = 2;
    expect_contains(outcome(Rendezvous(several_hosts, Port().at("localhost"), 1e6), rank),
                    "just 2 of 4 ranks run on it");
  }
  expect_contains(outcome(Rendezvous(place_of(0, 2), Port().at("198.51.100.7"), 1e6), 0),
                  "is not an address of the machine that rank 0 runs on");
  const Port taken(true);
  expect_contains(outcome(Rendezvous(place_of(0, 2), taken.at("127.0.0.1"), 1e6), 0),
                  "that port is in use");
}

TEST(Rendezvous, OtherAddressesAreRefused) {
  const struct {
    const char *address, *words;
  } cases[] = {
      {"", "meet at HOST:PORT, file:PATH"},
      {"file:", "meet at HOST:PORT, file:PATH"},
      {"somewhere", "meet at HOST:PORT, file:PATH"},
      {":1234", "neither HOST:PORT nor [IPV6]:PORT"},
      {"[]:1234", "neither HOST:PORT nor [IPV6]:PORT"},
      {"[host]:1234", "neither HOST:PORT nor [IPV6]:PORT"},
      {"[::1]", "neither HOST:PORT nor [IPV6]:PORT"},
      {"[::1]29500", "neither HOST:PORT nor [IPV6]:PORT"},
      {"::1:29500", "put an IPv6 address in brackets"},
      {"host:", "the port is ''"},
      {"host:port", "the port is 'port'"},
      {"host:0", "the port is '0'"},
      {"host:-1", "the port is '-1'"},
      {"host:12x", "the port is '12x'"},
      {"host:65536", "the port is '65536', but must be a number from 1 to 65535"},
      {"[::1]:99999999999999999999", "the port is '99999999999999999999'"},
  };
  for (const auto& [address, words] : cases)
    expect_contains(user_error([&] { Rendezvous(place_of(0, 2), address, 1); }), words);
  const Variable host("MASTER_ADDR", "host");
  expect_contains(user_error([] { Rendezvous(place_of(0, 2), "", 1); }),
                  "MASTER_ADDR:MASTER_PORT host:: the port is ''");
}

// ---- By file.

TEST(Rendezvous, ByFile) {
  const TempDir scratch;
  const std::string path = "file:" + (scratch.path() / "meeting").string();
  for (int run = 0; run < 3; ++run) {  // the same file again
    for (const std::string& got : meet(4, path, run)) EXPECT_EQ(got, word_of(run).data());
  }
  EXPECT_TRUE(std::filesystem::is_empty(scratch.path()));
}

TEST(Rendezvous, WhatAnEarlierRunLeftIsNotBelieved) {
  const TempDir scratch;
  const auto path = scratch.path() / "meeting";
  std::ofstream(path) << std::string(sizeof(Word) + 2 * 16, 'x');
  std::ofstream(path.string() + ".1") << std::string(16, 'y');
  for (const std::string& got : meet(3, "file:" + path.string(), 5))
    EXPECT_EQ(got, word_of(5).data());
}

TEST(Rendezvous, LinksAndPipesInTheFoldersWayAreNotFollowed) {
  const TempDir scratch;
  const std::string path = scratch / "meeting", precious = scratch / "precious";
  const std::string text(16, 'p');  // as long as a rank's word
  for (const char* end : {"", ".1", ".partial", ".1.partial"}) {
    write_text(precious, text);
    std::filesystem::create_symlink(precious, path + end);
    for (const std::string& got : meet(2, "file:" + path, 1)) EXPECT_EQ(got, word_of(1).data());
    EXPECT_EQ(read_text(precious), text) << end;
    std::filesystem::remove(path + end);
  }
  for (const char* end : {"", ".1"}) {
    ASSERT_EQ(::mkfifo((path + end).c_str(), 0600), 0);
    for (const std::string& got : meet(2, "file:" + path, 1)) EXPECT_EQ(got, word_of(1).data());
  }
}

TEST(Rendezvous, FilesAreForTheirUserAlone) {
  const TempDir scratch;
  const std::string path = scratch / "meeting";
  const mode_t former = ::umask(0);
  Rank zero(0, 3, "file:" + path), one(1, 3, "file:" + path);
  const auto mode_of = [](const std::string& file) {
    struct stat status {};
    for (int i = 0; i < 6000 && ::stat(file.c_str(), &status) != 0; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    return status.st_mode & 0777;
  };
  EXPECT_EQ(mode_of(path + ".1"), 0600u);
  write_text(path + ".2", std::string(16, 'y'));  // as rank 2 does
  EXPECT_EQ(mode_of(path), 0600u);
  std::filesystem::remove(path + ".2");
  EXPECT_EQ(zero.got(), word_of(1).data());
  EXPECT_EQ(one.got(), word_of(1).data());
  ::umask(former);
}

TEST(Rendezvous, FilesOfAnotherUserAreNotBelieved) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can give files away";
  const TempDir scratch;
  const std::string path = scratch / "meeting";
  write_text(path + ".1", std::string(16, 'y'));
  ASSERT_EQ(::chown((path + ".1").c_str(), 65534, 65534), 0);
  expect_contains(meet(2, "file:" + path, 1, 0.3, 1)[0], "rank 1 did not arrive");
}

TEST(Rendezvous, AFolderThatCannotBeWrittenIsSaidAtOnce) {
  const TempDir scratch;
  for (int rank = 0; rank < 2; ++rank) {
    const Rendezvous nowhere(place_of(rank, 2), "file:" + (scratch / "none/meeting").string(), 1e6);
    expect_contains(outcome(nowhere, rank),
                    "name a file in a folder that all ranks see and can write to");
    const Rendezvous folder(place_of(rank, 2), "file:" + scratch.path().string(), 1e6);
    expect_contains(outcome(folder, rank), "that is a directory; name a file in it");
  }
}

// ---- By either.

TEST(Rendezvous, WhoDoesNotComeIsNamed) {
  const TempDir scratch;
  for (const std::string& address :
       {"file:" + (scratch.path() / "meeting").string(), Port().at("localhost")}) {
    EXPECT_NE(meet(3, address, 1, 0.3, 2)[0].find("rank 2 did not arrive"), std::string::npos);
    EXPECT_NE(meet(3, address, 1, 0.3, 0)[1].find("rank 0 did not"), std::string::npos);
  }
}

}  // namespace
}  // namespace lathe::testing
