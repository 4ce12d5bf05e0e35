// Where ranks meet that MPI does not know: rank 0 gives all others a few bytes, once. After that
// they find each other through what the bytes name.
#pragma once

#include <cstddef>
#include <string>

#include "src/parallel/world.h"

namespace lathe {

class Rendezvous {
 public:
  // "HOST:PORT": rank 0, which must be on that host, waits there for the others. "file:PATH": a
  // file that all of them see. "": the environment's MASTER_ADDR and MASTER_PORT. UserError where
  // it is none of these.
  Rendezvous(const Place& place, const std::string& address, double timeout_seconds);

  // On rank 0 `data` is given, on the others it is written. Waits for everybody: after the timeout,
  // UserError with what is missing.
  void share(void* data, size_t bytes) const;

 private:
  void share_by_file(void* data, size_t bytes) const;
  void give_by_socket(const void* data, size_t bytes) const;
  void take_by_socket(void* data, size_t bytes) const;

  Place place_;
  double timeout_seconds_;
  std::string address_;  // as given, for messages
  std::string path_;     // or:
  std::string host_, port_;
};

}  // namespace lathe
