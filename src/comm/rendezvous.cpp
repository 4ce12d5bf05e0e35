#include "src/comm/rendezvous.h"

#include <charconv>
#include <cstdlib>

#include "kernels/device/error.h"

namespace lathe {

namespace {

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

std::string token_of_environment() {
  constexpr size_t kLeast = 32, kMost = 128;
  std::string token = environment("LATHE_RENDEZVOUS_TOKEN");
  if (!token.empty() && (token.size() < kLeast || token.size() > kMost))
    throw UserError(
        "the environment's LATHE_RENDEZVOUS_TOKEN has {} characters, but must have {} to {}; "
        "`openssl rand -hex 32` makes one",
        token.size(), kLeast, kMost);
  return token;
}

}  // namespace

Rendezvous::Rendezvous(const Place& place, const std::string& address, double timeout_seconds)
    : place_(place), timeout_seconds_(timeout_seconds), title_("--rendezvous " + address) {
  constexpr std::string_view kFile = "file:";
  const std::string master = environment("MASTER_ADDR"), port = environment("MASTER_PORT");
  if (address.starts_with(kFile) && address.size() > kFile.size()) {
    path_ = address.substr(kFile.size());
    return;
  }
  if (address.empty() && !master.empty()) {
    const bool bare_ipv6 = master.find(':') != std::string::npos && !master.starts_with('[');
    const std::string both = (bare_ipv6 ? "[" + master + "]" : master) + ":" + port;
    title_ = "MASTER_ADDR:MASTER_PORT " + both;
    parse(both);
  } else if (address.find(':') != std::string::npos && !address.starts_with(kFile)) {
    parse(address);
  } else {
    throw UserError(
        "--rendezvous '{}': ranks that were not started by mpirun meet at HOST:PORT, file:PATH "
        "or the environment's MASTER_ADDR:MASTER_PORT",
        address);
  }
  token_ = token_of_environment();
}

void Rendezvous::parse(const std::string& host_and_port) {
  const size_t colon = host_and_port.rfind(':');
  host_ = host_and_port.substr(0, colon);
  port_ = host_and_port.substr(colon + 1);
  int number = 0;
  const char* const end = port_.data() + port_.size();
  const auto [rest, error] = std::from_chars(port_.data(), end, number);
  if (host_.starts_with('[') && host_.ends_with(']') && host_.find(':') != std::string::npos) {
    host_ = host_.substr(1, host_.size() - 2);
  } else if (host_.empty() || host_.find_first_of("[]") != std::string::npos) {
    throw UserError("{}: that is neither HOST:PORT nor [IPV6]:PORT", title_);
  } else if (host_.find(':') != std::string::npos) {
    throw UserError("{}: put an IPv6 address in brackets, as in [fd00::1]:29500", title_);
  }
  if (error != std::errc() || rest != end || number < 1 || number > 65535)
    throw UserError("{}: the port is '{}', but must be a number from 1 to 65535", title_, port_);
}

void Rendezvous::share(void* data, size_t bytes) const {
  if (place_.size == 1) return;
  if (path_.empty()) {
    share_by_socket(data, bytes);
  } else {
    share_by_file(data, bytes);
  }
}

}  // namespace lathe
