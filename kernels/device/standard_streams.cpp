#include "kernels/device/standard_streams.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <iostream>
#include <system_error>

#include "kernels/device/error.h"
#include "kernels/device/printable.h"

namespace lathe {

namespace {

// Writes all of the text. Returns 0, or the error number.
int write_fully(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = ::write(fd, text.data(), text.size());
    if (n > 0) {
      text.remove_prefix(static_cast<size_t>(n));
    } else if (n == 0) {
      return EIO;
    } else if (errno == EAGAIN) {  // another process made it non-blocking
      pollfd waiting{.fd = fd, .events = POLLOUT, .revents = 0};
      ::poll(&waiting, 1, -1);
    } else if (errno != EINTR) {
      return errno;
    }
  }
  return 0;
}

[[noreturn]] void throw_not_written(int error) {
  const std::string why = error == EBADF ? "it is closed" : std::generic_category().message(error);
  throw CheckError("cannot write to standard output" + (error == 0 ? "" : ": " + why));
}

std::string fit_for_stdout(std::string_view text) {
  return ::isatty(STDOUT_FILENO) == 1 ? printable(text) : std::string(text);
}

}  // namespace

void open_standard_streams() {
  for (int fd = 0; fd <= 2; ++fd) {
    if (::fcntl(fd, F_GETFD) >= 0) continue;
    // Opened for the wrong direction: using it gives an error, as a closed one would.
    if (::open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY) < 0) ::open("/", O_RDONLY);
  }
}

void write_out(std::string_view text) {
  finish_out();
  if (const int error = write_fully(STDOUT_FILENO, text)) throw_not_written(error);
}

void print_out(std::string_view text) {
  write_out(fit_for_stdout(text));
}

void note_out(std::string_view text) {
  std::fflush(stdout);
  write_fully(STDOUT_FILENO, fit_for_stdout(text));
}

void finish_out() {
  const int error = std::fflush(stdout) == 0 ? 0 : errno;  // std::cout writes through stdout
  std::cout.flush();
  if (error != 0 || std::ferror(stdout) || !std::cout) throw_not_written(error);
}

void say(std::string_view sentence) noexcept {
  try {
    constexpr size_t kMostBytes = 2000;
    std::string line = printable(shortened(sentence, kMostBytes));
    std::replace(line.begin(), line.end(), '\n', '?');
    write_fully(STDERR_FILENO, line + "\n");
  } catch (...) {  // no memory for a copy
  }
}

}  // namespace lathe
