// Ranks that meet at an address. Anybody who reaches the port may connect, so rank 0 serves all
// connections at once, gives each little time, and sends nothing to one that does not show the
// token.
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <list>
#include <random>
#include <thread>
#include <vector>

#include "kernels/device/error.h"
#include "src/comm/deadline.h"
#include "src/comm/rendezvous.h"
#include "src/comm/rendezvous_hello.h"
#include "src/io/file.h"

namespace lathe {

namespace {

// For a caller to show the token, and for rank 0 to answer. A rank that runs out of time tries
// again.
constexpr double kAnswerSeconds = 5;
// Connections that have not shown the token yet; beyond this the oldest is closed.
constexpr size_t kMostUnknown = 128;
// The longest pause between two tries of a rank; the first pauses are shorter.
constexpr std::chrono::milliseconds kLongestPause(320);

// ---- Addresses.

struct Address {
  sockaddr_storage storage{};
  socklen_t length = sizeof(storage);

  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
  bool operator==(const Address& other) const {
    return length == other.length && std::memcmp(&storage, &other.storage, length) == 0;
  }
  bool is_loopback() const {
    if (storage.ss_family == AF_INET)
      return ntohl(reinterpret_cast<const sockaddr_in*>(&storage)->sin_addr.s_addr) >> 24 == 127;
    const in6_addr& six = reinterpret_cast<const sockaddr_in6*>(&storage)->sin6_addr;
    return IN6_IS_ADDR_LOOPBACK(&six) || (IN6_IS_ADDR_V4MAPPED(&six) && six.s6_addr[12] == 127);
  }
  // "10.0.0.1:29500", "[fd00::1]:29500"
  std::string name() const {
    char host[NI_MAXHOST], port[NI_MAXSERV];
    if (::getnameinfo(get(), length, host, sizeof(host), port, sizeof(port),
                      NI_NUMERICHOST | NI_NUMERICSERV) != 0)
      return "an unknown address";
    const bool six = storage.ss_family == AF_INET6;
    return fmt::format("{}{}{}:{}", six ? "[" : "", host, six ? "]" : "", port);
  }
};

// All addresses of the host, each once.
std::vector<Address> resolve(const std::string& title, const std::string& host,
                             const std::string& port) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  if (host.find(':') != std::string::npos) hints.ai_flags |= AI_NUMERICHOST;
  const int error = ::getaddrinfo(host.c_str(), port.c_str(), &hints, &found);
  if (error != 0)
    throw UserError("{}: '{}' has no address here ({}); name rank 0's host as all ranks know it",
                    title, host,
                    error == EAI_SYSTEM ? std::strerror(errno) : ::gai_strerror(error));
  std::vector<Address> addresses;
  for (const addrinfo* a = found; a != nullptr; a = a->ai_next) {
    if (a->ai_family != AF_INET && a->ai_family != AF_INET6) continue;
    Address address;
    std::memcpy(&address.storage, a->ai_addr, a->ai_addrlen);
    address.length = a->ai_addrlen;
    if (std::find(addresses.begin(), addresses.end(), address) == addresses.end())
      addresses.push_back(address);
  }
  ::freeaddrinfo(found);
  return addresses;
}

bool all_loopback(const std::vector<Address>& addresses) {
  return std::all_of(addresses.begin(), addresses.end(),
                     [](const Address& a) { return a.is_loopback(); });
}

FileHandle socket_for(const Address& address) {
  return FileHandle(
      ::socket(address.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
}

// ---- Non-blocking transfers.

enum class Flow { done, later, gone };

// Calls `call` to send or receive from `done` on, until everything is done or it would block.
template <typename Call>
Flow move_bytes(size_t& done, size_t bytes, const Call& call) {
  while (done < bytes) {
    const ssize_t count = call(done);
    if (count > 0) {
      done += static_cast<size_t>(count);
    } else if (count < 0 && errno == EINTR) {
      continue;
    } else {
      const bool would_wait = count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
      return would_wait ? Flow::later : Flow::gone;
    }
  }
  return Flow::done;
}
Flow send_some(int fd, const void* data, size_t bytes, size_t& done) {
  return move_bytes(done, bytes, [&](size_t at) {
    return ::send(fd, static_cast<const char*>(data) + at, bytes - at, MSG_NOSIGNAL);
  });
}
Flow receive_some(int fd, void* data, size_t bytes, size_t& done) {
  return move_bytes(done, bytes, [&](size_t at) {
    return ::recv(fd, static_cast<char*>(data) + at, bytes - at, 0);
  });
}

// Takes the same time wherever the two differ, so that nobody can guess a token byte by byte.
bool same_half(const TokenHalf& a, const TokenHalf& b) {
  volatile unsigned char differences = 0;
  for (size_t i = 0; i < kHalf; ++i)
    differences = static_cast<unsigned char>(differences | (a[i] ^ b[i]));
  return differences == 0;
}

// ---- Rank 0.

// A connection: unknown until it has sent a rank's hello.
struct Caller {
  FileHandle socket;
  std::string from;
  Deadline deadline;  // for the hello
  Hello hello{};
  std::string answer{};  // empty until a rank's hello has come
  char thanks = 0;
  size_t received = 0, sent = 0, thanked = 0;
  bool over = false;

  bool known() const { return !answer.empty(); }
  short awaited() const { return known() && sent < answer.size() ? POLLOUT : POLLIN; }
};

// The process that holds a rank's place: it is connected, or it has sent its thanks.
struct Claim {
  uint64_t process = 0;  // 0: nobody
  std::string from{};
  const Caller* caller = nullptr;
  bool came = false;
};

class Host {
 public:
  Host(const std::string& title, const Place& place, const TokenHalves& token, std::string shared,
       std::vector<FileHandle> listeners)
      : title_(title),
        size_(place.size),
        token_(token),
        shared_(std::move(shared)),
        listeners_(std::move(listeners)),
        claims_(static_cast<size_t>(place.size)) {}

  // Empty when all ranks have the data; after the deadline, the ranks that do not.
  std::string meet(const Deadline& deadline) {
    for (std::string missing = this->missing();; missing = this->missing()) {
      if (missing.empty() || deadline.passed()) return missing;
      std::vector<pollfd> waiting;
      for (const Caller& caller : callers_)
        waiting.push_back({caller.socket.get(), caller.awaited(), 0});
      for (const FileHandle& listener : listeners_) waiting.push_back({listener.get(), POLLIN, 0});
      if (::poll(waiting.data(), waiting.size(), deadline.milliseconds()) < 0 && errno != EINTR)
        throw CheckError(fmt::format("{}: poll: {}", title_, std::strerror(errno)));
      // Callers first: a rank's place that is freed here can be taken by a new connection.
      auto at = waiting.begin();
      for (Caller& caller : callers_) {
        if ((at++)->revents != 0) serve(caller);
        // A known rank keeps its place while it is connected: its thanks may be on the way.
        if (!caller.known() && caller.deadline.passed()) end(caller);
      }
      for (const FileHandle& listener : listeners_)
        if ((at++)->revents != 0) accept_one(listener);
      callers_.remove_if([](const Caller& caller) { return caller.over; });
    }
  }

  // "; 2 callers showed another LATHE_RENDEZVOUS_TOKEN, the last from 10.0.0.1:4000", or "".
  std::string strangers() const {
    if (strangers_ == 0) return "";
    return fmt::format("; {} caller{} showed another LATHE_RENDEZVOUS_TOKEN, the last from {}",
                       strangers_, strangers_ == 1 ? "" : "s", last_stranger_);
  }

 private:
  std::string missing() const {
    std::string missing;
    for (int rank = 1; rank < size_; ++rank)
      if (!claims_[static_cast<size_t>(rank)].came)
        missing += fmt::format("{}rank {}", missing.empty() ? "" : ", ", rank);
    return missing;
  }

  void accept_one(const FileHandle& listener) {
    Address from;
    FileHandle socket(
        ::accept4(listener.get(), from.get(), &from.length, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket) {
      const bool full = errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM;
      if (full && !end_oldest_unknown())
        std::this_thread::sleep_for(std::chrono::milliseconds(20));  // some rank will leave
      return;  // or the other end has gone already
    }
    callers_.push_back({std::move(socket), from.name(), Deadline(kAnswerSeconds)});
    serve(callers_.back());  // its hello may be here already; then it does not count as unknown
    const auto unknown = std::count_if(callers_.begin(), callers_.end(), [](const Caller& caller) {
      return !caller.over && !caller.known();
    });
    if (static_cast<size_t>(unknown) > kMostUnknown) end_oldest_unknown();
  }

  bool end_oldest_unknown() {
    for (Caller& caller : callers_) {
      if (caller.over || caller.known()) continue;
      end(caller);
      return true;
    }
    return false;
  }

  // As far as possible without blocking.
  void serve(Caller& caller) {
    if (caller.over) return;
    const int fd = caller.socket.get();
    Flow flow = receive_some(fd, &caller.hello, sizeof(Hello), caller.received);
    if (flow == Flow::done && !caller.known() && !welcome(caller)) flow = Flow::gone;
    if (flow == Flow::done)
      flow = send_some(fd, caller.answer.data(), caller.answer.size(), caller.sent);
    if (flow == Flow::done) flow = receive_some(fd, &caller.thanks, 1, caller.thanked);
    if (flow == Flow::later) return;
    if (flow == Flow::done && caller.thanks == kThanks) claim_of(caller).came = true;
    end(caller);
  }

  Claim& claim_of(const Caller& caller) { return claims_[static_cast<size_t>(caller.hello.rank)]; }

  // Whether this is a rank; if so, prepares the answer.
  bool welcome(Caller& caller) {
    const Hello& hello = caller.hello;
    if (hello.greeting != kGreeting) return false;
    if (!same_half(hello.token, token_.rank_shows)) {
      ++strangers_;
      last_stranger_ = caller.from;
      return false;
    }
    if (hello.process == 0 || hello.rank < 1) return false;
    if (hello.size != size_ || hello.rank >= size_)
      throw UserError("{}: rank {} of {} connected, but there should be {} ranks", title_,
                      hello.rank, hello.size, size_);
    Claim& claim = claim_of(caller);
    if (claim.process != 0 && claim.process != hello.process)
      throw UserError("{}: two processes claim to be rank {}, from {} and {}; start each rank once",
                      title_, hello.rank, claim.from, caller.from);
    claim.process = hello.process;
    claim.from = caller.from;
    claim.caller = &caller;  // replaces an earlier connection of the same process
    caller.answer.assign(token_.rank_0_shows.begin(), token_.rank_0_shows.end());
    caller.answer += shared_;
    return true;
  }

  void end(Caller& caller) {
    if (caller.over) return;
    caller.over = true;
    caller.socket = FileHandle();
    if (!caller.known()) return;
    Claim& claim = claim_of(caller);
    if (claim.caller == &caller && !claim.came) claim = {};
  }

  const std::string& title_;
  const int size_;
  const TokenHalves token_;
  const std::string shared_;
  const std::vector<FileHandle> listeners_;
  std::list<Caller> callers_;  // in order of connection
  std::vector<Claim> claims_;  // by rank
  int strangers_ = 0;
  std::string last_stranger_;
};

// Listens at each of these addresses that this machine has.
std::vector<FileHandle> listen_at(const std::string& title, const std::vector<Address>& addresses) {
  std::vector<FileHandle> listeners;
  int error = 0;
  for (const Address& address : addresses) {
    FileHandle socket = socket_for(address);
    if (!socket) {  // this machine lacks this kind of address
      error = errno;
      continue;
    }
    const int on = 1;
    ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (address.storage.ss_family == AF_INET6)
      ::setsockopt(socket.get(), IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
    if (::bind(socket.get(), address.get(), address.length) == 0 &&
        ::listen(socket.get(), 1024) == 0) {
      listeners.push_back(std::move(socket));
      continue;
    }
    error = errno;
    if (error == EADDRINUSE)  // that listener would be taken for rank 0
      throw UserError("{}: rank 0 cannot listen at {} because that port is in use; choose another",
                      title, address.name());
  }
  if (listeners.empty() && error == EADDRNOTAVAIL)
    throw UserError(
        "{}: {} is not an address of the machine that rank 0 runs on; rank 0 listens there, so "
        "name one that is",
        title, addresses.front().name());
  if (listeners.empty())
    throw UserError("{}: rank 0 cannot listen at {} ({}); choose another", title,
                    addresses.front().name(), std::strerror(error));
  return listeners;
}

// ---- The other ranks.

// Waits until all bytes are transferred. False if the other end is gone or time is up; then `why`
// says which.
template <typename Step>
bool wait_for(int fd, short event, const Deadline& deadline, std::string& why, const Step& step) {
  for (;;) {
    const Flow flow = step();
    if (flow == Flow::done) return true;
    if (flow == Flow::gone) {
      why = "hung up, as rank 0 does if the ranks' LATHE_RENDEZVOUS_TOKEN differ";
      return false;
    }
    if (deadline.passed()) {
      why = "did not answer";
      return false;
    }
    pollfd waiting{fd, event, 0};
    ::poll(&waiting, 1, deadline.milliseconds());
  }
}

Flow connected(int fd) {
  pollfd now{fd, POLLOUT, 0};
  return ::poll(&now, 1, 0) > 0 ? Flow::done : Flow::later;
}

// If nobody listens at a local port, the connecting socket may be given that very port as its own.
// Then it is connected to itself, and rank 0 would find the port in use: release it at once.
bool is_connected_to_itself(int fd, const Address& address) {
  Address own;
  if (::getsockname(fd, own.get(), &own.length) != 0 || !(own == address)) return false;
  const linger at_once{1, 0};
  ::setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
  return true;
}

// One try at one address. Empty if `data` was written, otherwise the reason.
std::string ask(const Address& address, const Hello& hello, const TokenHalf& expected, void* data,
                size_t bytes, const Deadline& deadline) {
  const FileHandle socket = socket_for(address);
  const int fd = socket.get();
  std::string why;
  int error = 0;
  socklen_t length = sizeof(error);
  if (!socket) return std::strerror(errno);
  if (::connect(fd, address.get(), address.length) != 0) {
    if (errno != EINPROGRESS && errno != EINTR) return std::strerror(errno);
    if (!wait_for(fd, POLLOUT, deadline, why, [&] { return connected(fd); })) return why;
    if (::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) != 0) error = errno;
    if (error != 0) return std::strerror(error);
  }
  if (is_connected_to_itself(fd, address)) return std::strerror(ECONNREFUSED);
  std::string answer(kHalf + bytes, '\0');
  size_t sent = 0, received = 0, thanked = 0;
  if (!wait_for(fd, POLLOUT, deadline, why,
                [&] { return send_some(fd, &hello, sizeof(hello), sent); }) ||
      !wait_for(fd, POLLIN, deadline, why,
                [&] { return receive_some(fd, answer.data(), answer.size(), received); }))
    return why;
  TokenHalf shown;
  std::copy_n(answer.begin(), kHalf, shown.begin());
  if (!same_half(shown, expected)) return "answered without this job's LATHE_RENDEZVOUS_TOKEN";
  std::memcpy(data, answer.data() + kHalf, bytes);
  send_some(fd, &kThanks, 1, thanked);  // cannot block: the send buffer is empty
  return "";
}

}  // namespace

void Rendezvous::share_by_socket(void* data, size_t bytes) const {
  const Deadline deadline(timeout_seconds_);
  const std::vector<Address> addresses = resolve(title_, host_, port_);
  const bool loopback = all_loopback(addresses);
  if (loopback && place_.local_size > 0 && place_.local_size < place_.size)
    throw UserError(
        "{}: only its own host can reach {}, but just {} of {} ranks run on it; name an address of "
        "rank 0's host that the others can reach",
        title_, addresses.front().name(), place_.local_size, place_.size);
  if (!loopback && token_.empty())
    throw UserError(
        "{}: other hosts can reach {}, but LATHE_RENDEZVOUS_TOKEN is not set; give all ranks the "
        "same secret in their environment, for example what `openssl rand -hex 32` prints",
        title_, addresses.front().name());
  const TokenHalves token = halves_of(token_);
  if (place_.rank == 0) {
    Host host(title_, place_, token, std::string(static_cast<const char*>(data), bytes),
              listen_at(title_, addresses));
    const std::string missing = host.meet(deadline);
    if (missing.empty()) return;
    throw UserError("{}: {} did not arrive within {:g} s{}{}", title_, missing, timeout_seconds_,
                    loopback
                        ? fmt::format("; rank 0 listened at {}, which other hosts cannot reach",
                                      addresses.front().name())
                        : "",
                    host.strangers());
  }
  std::random_device random;
  const Hello hello{.process = (uint64_t{random()} << 32 | random()) | 1,
                    .rank = place_.rank,
                    .size = place_.size,
                    .token = token.rank_shows};
  std::string why;
  for (auto pause = std::chrono::milliseconds(20);; pause = std::min(2 * pause, kLongestPause)) {
    why.clear();
    for (const Address& address : addresses) {
      const std::string failure =
          ask(address, hello, token.rank_0_shows, data, bytes, deadline.at_most(kAnswerSeconds));
      if (failure.empty()) return;
      why += fmt::format("{}{}: {}", why.empty() ? "" : ", ", address.name(), failure);
    }
    if (deadline.passed()) break;
    std::this_thread::sleep_for(pause);
  }
  throw UserError("{}: rank 0 did not answer within {:g} s ({})", title_, timeout_seconds_, why);
}

}  // namespace lathe
