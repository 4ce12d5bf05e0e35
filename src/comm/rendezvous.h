// How ranks meet that MPI does not know: rank 0 sends all others a few bytes, once. NCCL does the
// rest with those bytes.
#pragma once

#include <cstddef>
#include <string>

#include "src/comm/world.h"

namespace lathe {

class Rendezvous {
 public:
  // "HOST:PORT" or "[IPV6]:PORT": rank 0 listens there, and on no other address; HOST must be an
  // address of its machine. "file:PATH": a file that all ranks see. "": the environment's
  // MASTER_ADDR and MASTER_PORT. UserError if it is none of these.
  //
  // LATHE_RENDEZVOUS_TOKEN (32 to 128 characters) is the secret by which the ranks of a job
  // recognise each other at an address. It is required unless HOST is a loopback address. A process
  // that does not know it gets nothing and delays nobody.
  Rendezvous(const Place& place, const std::string& address, double timeout_seconds);

  // Reads `data` on rank 0 and writes it on the others. Waits for all ranks; after the timeout,
  // throws a UserError that names what is missing. Throws a UserError at once if HOST has no
  // address or is not rank 0's, if the port is in use, if the token is missing, or if two processes
  // claim to be the same rank.
  void share(void* data, size_t bytes) const;

 private:
  void parse(const std::string& host_and_port);
  void share_by_file(void* data, size_t bytes) const;
  void share_by_socket(void* data, size_t bytes) const;

  Place place_;
  double timeout_seconds_;
  std::string title_;  // the address as messages name it
  std::string path_;   // or:
  std::string host_, port_;
  std::string token_;
};

}  // namespace lathe
