// Where ranks meet that MPI does not know: rank 0 gives all others a few bytes, once. After that
// they find each other through what the bytes name.
#pragma once

#include <cstddef>
#include <string>

#include "src/comm/world.h"

namespace lathe {

class Rendezvous {
 public:
  // "HOST:PORT" or "[IPV6]:PORT": rank 0 waits there for the others; HOST must be an address of its
  // machine, and it listens at no other. "file:PATH": a file that all of them see. "": the
  // environment's MASTER_ADDR and MASTER_PORT. UserError if it is none of these.
  //
  // LATHE_RENDEZVOUS_TOKEN (32 to 128 characters) is the secret by which the ranks of a job know
  // each other at an address. Unless HOST is a loopback address, there must be one. Whoever does
  // not know it gets nothing and holds nobody up.
  Rendezvous(const Place& place, const std::string& address, double timeout_seconds);

  // On rank 0 `data` is given, on the others it is written. Waits for everybody: after the timeout,
  // UserError with what is missing. UserError at once for a HOST that has no address or is not rank
  // 0's, a port that is in use, a token that is missing, and if two processes say that they are the
  // same rank.
  void share(void* data, size_t bytes) const;

 private:
  void parse(const std::string& host_and_port);
  void share_by_file(void* data, size_t bytes) const;
  void share_by_socket(void* data, size_t bytes) const;

  Place place_;
  double timeout_seconds_;
  std::string title_;  // what names the address in messages
  std::string path_;   // or:
  std::string host_, port_;
  std::string token_;
};

}  // namespace lathe
