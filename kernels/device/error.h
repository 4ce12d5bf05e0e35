// The two kinds of failure, and how they end a program.
#pragma once

#include <fmt/format.h>

#include <functional>
#include <stdexcept>
#include <string>

namespace lathe {

// The user's mistake: one sentence that names the file or flag, what was found and what to do.
// Ends the program with exit code 2.
struct UserError : std::runtime_error {
  explicit UserError(const std::string& sentence) : std::runtime_error(sentence) {}
  template <typename... Args>
  explicit UserError(fmt::format_string<Args...> format, Args&&... args)
      : std::runtime_error(fmt::format(format, std::forward<Args>(args)...)) {}
};

// A failed check inside lathe, or a system call that failed: where and what. Exit code 1.
struct CheckError : std::runtime_error {
  explicit CheckError(const std::string& what) : std::runtime_error(what) {}
};

[[noreturn]] void check_failed(const char* file, int line, const char* condition,
                               const std::string& detail);

// A failure's message for the user, and the exit code that it ends the program with: 2 for
// UserError, 1 for everything else.
struct Failure {
  int exit_code;
  std::string message;
};
Failure current_failure();  // inside a catch block

// Opens the standard streams and runs the body of a program's main. Turns exceptions, and output
// that could not be written, into a line on stderr and an exit code. Returns that code, or else
// body's.
int run_main(const char* program, const std::function<int()>& body);

}  // namespace lathe

// Checks what must hold in every build; never used for an error that a user can cause.
#define LATHE_CHECK(condition, ...)                                               \
  do {                                                                            \
    if (!(condition)) [[unlikely]]                                                \
      ::lathe::check_failed(__FILE__, __LINE__, #condition,                       \
                            std::string(__VA_OPT__(::fmt::format(__VA_ARGS__)))); \
  } while (false)
