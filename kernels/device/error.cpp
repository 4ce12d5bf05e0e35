#include "kernels/device/error.h"

#include <cstdio>
#include <filesystem>
#include <new>

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
  try {
    return body();
  } catch (const std::exception&) {
    const Failure failure = current_failure();
    fmt::print(stderr, "{}: {}\n", program, failure.message);
    return failure.exit_code;
  }
}

}  // namespace lathe
