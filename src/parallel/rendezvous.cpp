#include "src/parallel/rendezvous.h"

#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/device/error.h"

namespace lathe {

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kPause(20);
constexpr uint64_t kGreeting = 0x6c61746865206869;  // "lathe hi": other programs do not say it

class Deadline {
 public:
  explicit Deadline(double seconds)
      : end_(Clock::now() +
             std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds))) {}
  bool passed() const { return Clock::now() >= end_; }
  // For poll(2): at most a second, so that it is looked at again.
  int milliseconds() const {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end_ - Clock::now());
    return static_cast<int>(std::clamp<int64_t>(left.count(), 0, 1000));
  }

 private:
  Clock::time_point end_;
};

// ---- Files.

// The content, once the file is there with this many bytes.
std::optional<std::string> read_if_whole(const fs::path& path, size_t bytes) {
  std::ifstream file(path, std::ios::binary);
  std::string text(bytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (static_cast<size_t>(file.gcount()) != bytes) return std::nullopt;
  text.resize(bytes);
  return text;
}

// Whole or not at all, for those who look.
void put_file(const fs::path& path, const std::string& text) {
  const fs::path partial = path.string() + ".partial";
  std::ofstream file(partial, std::ios::binary | std::ios::trunc);
  file.write(text.data(), static_cast<std::streamsize>(text.size()));
  file.close();
  std::error_code error;
  if (file) fs::rename(partial, path, error);
  if (!file || error)
    throw UserError(
        "--rendezvous: {} cannot be written; name a folder that all ranks see and may "
        "write to",
        path.string());
}

// ---- Sockets.

class Socket {
 public:
  explicit Socket(int fd) : fd_(fd) {}
  ~Socket() {
    if (fd_ >= 0) ::close(fd_);
  }
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&&) = delete;
  explicit operator bool() const { return fd_ >= 0; }
  int get() const { return fd_; }

  bool ready(short event, const Deadline& deadline) const {
    while (!deadline.passed()) {
      pollfd waiting{fd_, event, 0};
      if (::poll(&waiting, 1, deadline.milliseconds()) > 0) return true;
    }
    return false;
  }
  // False where the other end has gone, or the time is up.
  bool send_all(const void* data, size_t bytes, const Deadline& deadline) const {
    const char* at = static_cast<const char*>(data);
    while (bytes > 0) {
      if (!ready(POLLOUT, deadline)) return false;
      const ssize_t sent = ::send(fd_, at, bytes, MSG_NOSIGNAL);
      if (sent <= 0) return false;
      at += sent;
      bytes -= static_cast<size_t>(sent);
    }
    return true;
  }
  bool receive_all(void* data, size_t bytes, const Deadline& deadline) const {
    char* at = static_cast<char*>(data);
    while (bytes > 0) {
      if (!ready(POLLIN, deadline)) return false;
      const ssize_t received = ::recv(fd_, at, bytes, 0);
      if (received <= 0) return false;
      at += received;
      bytes -= static_cast<size_t>(received);
    }
    return true;
  }

 private:
  int fd_;
};

struct Hello {
  uint64_t greeting = kGreeting;
  int32_t rank = 0, size = 0;
};

// Each of the host's addresses, until one works.
template <typename Try>
Socket for_addresses(const std::string& host, const std::string& port, bool passive,
                     const Try& attempt) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  if (passive) hints.ai_flags = AI_PASSIVE;
  if (getaddrinfo(passive ? nullptr : host.c_str(), port.c_str(), &hints, &found) != 0)
    return Socket(-1);
  Socket result(-1);
  for (const addrinfo* a = found; a != nullptr && !result; a = a->ai_next) {
    Socket socket(::socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol));
    if (!socket || !attempt(socket, *a)) continue;
    freeaddrinfo(found);
    return socket;
  }
  freeaddrinfo(found);
  return result;
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

}  // namespace

Rendezvous::Rendezvous(const Place& place, const std::string& address, double timeout_seconds)
    : place_(place), timeout_seconds_(timeout_seconds), address_(address) {
  if (address_.empty() && !environment("MASTER_ADDR").empty())
    address_ = environment("MASTER_ADDR") + ":" + environment("MASTER_PORT");
  constexpr std::string_view kFile = "file:";
  if (address_.starts_with(kFile)) {
    path_ = address_.substr(kFile.size());
    if (!path_.empty()) return;
  }
  const size_t colon = address_.rfind(':');
  if (colon != std::string::npos && path_.empty()) {
    host_ = address_.substr(0, colon);
    port_ = address_.substr(colon + 1);
    const bool number =
        !port_.empty() && port_.find_first_not_of("0123456789") == std::string::npos;
    if (!host_.empty() && number) return;
  }
  throw UserError(
      "--rendezvous '{}': ranks that were not started by mpirun meet at HOST:PORT, or file:PATH, "
      "or "
      "where MASTER_ADDR and MASTER_PORT say",
      address_);
}

void Rendezvous::share(void* data, size_t bytes) const {
  if (place_.size == 1) return;
  if (!path_.empty()) {
    share_by_file(data, bytes);
  } else if (place_.rank == 0) {
    give_by_socket(data, bytes);
  } else {
    take_by_socket(data, bytes);
  }
}

// Each rank leaves a word of its own beside the file, and believes only a file that repeats the
// word: one that an earlier run left does not.
void Rendezvous::share_by_file(void* data, size_t bytes) const {
  constexpr size_t kWord = 16;
  const Deadline deadline(timeout_seconds_);
  const auto word_path = [&](int rank) { return fmt::format("{}.{}", path_, rank); };
  const size_t others = static_cast<size_t>(place_.size - 1);
  const auto late = [&](const std::string& who) {
    throw UserError("--rendezvous {}: {} did not come within {:g} s", address_, who,
                    timeout_seconds_);
  };
  if (place_.rank > 0) {
    std::random_device random;
    const std::string word = fmt::format("{:08x}{:08x}", random(), random());
    put_file(word_path(place_.rank), word);
    const size_t my_word = bytes + static_cast<size_t>(place_.rank - 1) * kWord;
    for (;; std::this_thread::sleep_for(kPause)) {
      const auto text = read_if_whole(path_, bytes + others * kWord);
      if (text && text->compare(my_word, kWord, word) == 0) {
        std::memcpy(data, text->data(), bytes);
        break;
      }
      if (deadline.passed()) late("rank 0");
    }
    fs::remove(word_path(place_.rank));  // which tells rank 0 that it was read
    return;
  }
  std::string text(static_cast<const char*>(data), bytes);
  text.resize(bytes + others * kWord);
  // A word that an earlier run left is replaced when its rank comes; until then it is taken again.
  for (bool all_read = false; !all_read; std::this_thread::sleep_for(kPause)) {
    std::string before = text;
    std::string missing;
    all_read = true;
    for (int rank = 1; rank < place_.size; ++rank) {
      const auto word = read_if_whole(word_path(rank), kWord);
      const size_t at = bytes + static_cast<size_t>(rank - 1) * kWord;
      const bool seen = text[at] != '\0';
      if (word) text.replace(at, kWord, *word);
      if (word || !seen) all_read = false;
      if (!word && !seen) missing += fmt::format("{}rank {}", missing.empty() ? "" : ", ", rank);
    }
    if (text != before && missing.empty()) put_file(path_, text);
    if (deadline.passed()) late(missing.empty() ? "an answer" : missing);
  }
  fs::remove(path_);
}

void Rendezvous::give_by_socket(const void* data, size_t bytes) const {
  const Deadline deadline(timeout_seconds_);
  const Socket listener = for_addresses(host_, port_, true, [](const Socket& s, const addrinfo& a) {
    const int on = 1;
    ::setsockopt(s.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    return ::bind(s.get(), a.ai_addr, a.ai_addrlen) == 0 && ::listen(s.get(), 1024) == 0;
  });
  if (!listener)
    throw UserError("--rendezvous {}: rank 0 cannot listen on port {} ({}); choose another",
                    address_, port_, std::strerror(errno));
  std::vector<bool> came(static_cast<size_t>(place_.size));
  came[0] = true;
  while (std::find(came.begin(), came.end(), false) != came.end()) {
    if (!listener.ready(POLLIN, deadline)) {
      std::string missing;
      for (int rank = 1; rank < place_.size; ++rank)
        if (!came[static_cast<size_t>(rank)])
          missing += fmt::format("{}rank {}", missing.empty() ? "" : ", ", rank);
      throw UserError("--rendezvous {}: {} did not come within {:g} s", address_, missing,
                      timeout_seconds_);
    }
    const Socket peer(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    Hello hello;
    const Deadline soon(std::min(timeout_seconds_, 5.0));  // strangers may connect and say nothing
    if (!peer || !peer.receive_all(&hello, sizeof(hello), soon)) continue;
    if (hello.greeting != kGreeting || hello.rank <= 0) continue;
    if (hello.size != place_.size || hello.rank >= place_.size)
      throw UserError("--rendezvous {}: rank {} of {} came, and there should be {} ranks", address_,
                      hello.rank, hello.size, place_.size);
    if (peer.send_all(data, bytes, soon)) came[static_cast<size_t>(hello.rank)] = true;
  }
}

void Rendezvous::take_by_socket(void* data, size_t bytes) const {
  const Deadline deadline(timeout_seconds_);
  for (; !deadline.passed(); std::this_thread::sleep_for(kPause)) {
    const Socket peer = for_addresses(host_, port_, false, [](const Socket& s, const addrinfo& a) {
      return ::connect(s.get(), a.ai_addr, a.ai_addrlen) == 0;
    });
    const Hello hello{kGreeting, place_.rank, place_.size};
    if (peer && peer.send_all(&hello, sizeof(hello), deadline) &&
        peer.receive_all(data, bytes, deadline))
      return;
  }
  throw UserError("--rendezvous {}: rank 0 did not answer within {:g} s", address_,
                  timeout_seconds_);
}

}  // namespace lathe
