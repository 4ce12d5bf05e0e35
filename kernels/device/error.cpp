#include "kernels/device/error.h"

#include <filesystem>
#include <new>

#include "kernels/device/standard_streams.h"

namespace lathe {

void check_failed(const char* file, int line, const char* condition, const std::string& detail) {
  const std::string name = std::filesystem::path(file).filename().string();
  throw CheckError(fmt::format("{}:{}: check failed: {}{}{}", name, line, condition,
                               detail.empty() ? "" : ": ", detail));
}

Failure current_failure() {
  try {
    throw;
  } catch (const UserError& error) {
    return {2, error.what()};
  } catch (const std::bad_alloc&) {
    return {1, "out of memory"};
  } catch (const std::exception& error) {
    return {1, error.what()};
  }
}

int run_main(const char* program, const std::function<int()>& body) {
  open_standard_streams();
  try {
    const int exit_code = body();
    if (exit_code == 0) finish_out();
    return exit_code;
  } catch (const std::exception&) {
    const Failure failure = current_failure();
    say(fmt::format("{}: {}", program, failure.message));
    return failure.exit_code;
  }
}

}  // namespace lathe
