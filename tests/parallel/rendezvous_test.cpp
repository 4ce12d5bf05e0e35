// Ranks that MPI does not know meet by file and by address: threads stand for them.
#include "src/parallel/rendezvous.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <fstream>
#include <thread>
#include <vector>

#include "kernels/device/error.h"
#include "tests/data/temp_dir.h"

namespace lathe::testing {
namespace {

using Word = std::array<char, 128>;

Word word_of(int run) {
  Word word{};
  fmt::format_to(word.data(), "the name of run {}", run);
  return word;
}

Place place_of(int rank, int size) {
  Place place;
  place.rank = rank;
  place.size = size;
  return place;
}

// All ranks meet; what each has got, or its error.
std::vector<std::string> meet(int size, const std::string& address, int run, double timeout = 20,
                              int missing = -1) {
  std::vector<std::string> got(static_cast<size_t>(size));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    if (rank == missing) continue;
    threads.emplace_back([&, rank] {
      Word word = rank == 0 ? word_of(run) : Word{};
      try {
        Rendezvous(place_of(rank, size), address, timeout).share(word.data(), word.size());
        got[static_cast<size_t>(rank)] = word.data();
      } catch (const UserError& error) {
        got[static_cast<size_t>(rank)] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return got;
}

// A port that nobody listens on now.
std::string free_port() {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  ::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address));
  ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length);
  ::close(fd);
  return std::to_string(ntohs(address.sin_port));
}

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

TEST(Rendezvous, ByAddress) {
  const std::string address = "localhost:" + free_port();
  for (int run = 0; run < 3; ++run)
    for (const std::string& got : meet(4, address, run)) EXPECT_EQ(got, word_of(run).data());
}

TEST(Rendezvous, ByTheEnvironment) {
  setenv("MASTER_ADDR", "127.0.0.1", 1);
  setenv("MASTER_PORT", free_port().c_str(), 1);
  for (const std::string& got : meet(3, "", 1)) EXPECT_EQ(got, word_of(1).data());
  unsetenv("MASTER_ADDR");
  unsetenv("MASTER_PORT");
}

TEST(Rendezvous, WhoDoesNotComeIsNamed) {
  const TempDir scratch;
  for (const std::string& address :
       {"file:" + (scratch.path() / "meeting").string(), "localhost:" + free_port()}) {
    EXPECT_NE(meet(3, address, 1, 0.3, 2)[0].find("rank 2 did not come"), std::string::npos);
    EXPECT_NE(meet(3, address, 1, 0.3, 0)[1].find("rank 0 did not"), std::string::npos);
  }
}

TEST(Rendezvous, OtherAddressesAreRefused) {
  for (const char* address : {"", "file:", "somewhere", "host:", ":1234", "host:port"})
    EXPECT_THROW(Rendezvous(place_of(0, 2), address, 1), UserError) << address;
}

}  // namespace
}  // namespace lathe::testing
