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

int run_main(const char* program, const std::function<int()>& body) {
  try {
    return body();
  } catch (const UserError& error) {
    fmt::print(stderr, "{}: {}\n", program, error.what());
    return 2;
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "{}: out of memory\n", program);
    return 1;
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}: {}\n", program, error.what());
    return 1;
  }
}

}  // namespace lathe
