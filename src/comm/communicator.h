// What ranks do together with the tensors of their devices: the collectives.
//
// They run on a line of their own beside the device's operations, in the order of the calls, which
// must be the same on every rank: on a CPU a thread that waits in MPI while the caller computes, on
// a GPU a stream. No call waits for its collective. Two calls tie the lines together:
//   after_device()       collectives called from here on begin when the device has done all that it
//                        was given before
//   device_after(t)      what the device is given from here on begins when collective t is done,
//                        and with it all before it
// All of this may be recorded (Device::replay) where device_after(last()) comes before its end, and
// came before its beginning, or the host waited for last().
//
// Over lathe's own reductions (MPI) a sum is ((x0 + x1) + x2) + ... in rank order, in fp32 for bf16
// and rounded once; an all-reduce has the bits of a reduce-scatter and an all-gather. NCCL takes an
// order of its own.
//
// Counts are 64 bits wide, zero included. `what` names the collective in traces and error messages
// and lives as long as the communicator. Tensors are flat views; in and out may be the same memory
// (all_gather and reduce_scatter: `mine` being part `rank` of `all`), or must not overlap.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/device/device.h"
#include "src/comm/world.h"

namespace lathe {

enum class Reduction { sum, max, min };

// What carries a communicator's data; --comm chooses. `self`: one rank, which copies.
enum class CommKind : uint8_t { any, self, mpi, nccl };
std::string_view name_of(CommKind kind);  // "auto" for any

// Collectives, and the marks between them, are numbered from 1 in the order of the calls; 0 is
// none.
using Ticket = int64_t;

// It ends when all that was called is done; but if an exception ends it, it waits for nobody.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual CommKind kind() const = 0;  // never `any`
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // out = op over the ranks' in. For fp32, bf16, fp64, int32, int64, uint8, as all of these.
  virtual Ticket all_reduce(const Tensor& out, const Tensor& in, Reduction op,
                            const char* what) = 0;
  virtual Ticket reduce(const Tensor& out, const Tensor& in, Reduction op, int root,
                        const char* what) = 0;  // `out` is read on the root alone
  // mine = part `rank` of (op over the ranks' all); all has size() times as many elements.
  virtual Ticket reduce_scatter(const Tensor& mine, const Tensor& all, Reduction op,
                                const char* what) = 0;
  virtual Ticket all_gather(const Tensor& all, const Tensor& mine, const char* what) = 0;
  virtual Ticket gather(const Tensor& all, const Tensor& mine, int root, const char* what) = 0;
  virtual Ticket scatter(const Tensor& mine, const Tensor& all, int root, const char* what) = 0;
  virtual Ticket broadcast(const Tensor& tensor, int root, const char* what) = 0;
  // Two ranks; each must make its call. In the order of the calls between the same two.
  virtual Ticket send(const Tensor& tensor, int to, const char* what) = 0;
  virtual Ticket receive(const Tensor& tensor, int from, const char* what) = 0;

  virtual void after_device() = 0;
  virtual void device_after(Ticket ticket) = 0;
  virtual Ticket last() const = 0;
  // The host waits until it is done; not while recording.
  virtual void wait(Ticket ticket) = 0;
  // Device::mark on this line: when it came by. last() counts it.
  virtual void mark(int number) = 0;

  // Host memory, at once: all[r] = rank r's mine, `bytes` each. Waits for everybody.
  virtual void exchange(void* all, const void* mine, size_t bytes) = 0;

  // The same for texts of any length, by rank.
  std::vector<std::string> exchange_text(std::string_view mine);
  void barrier();  // exchange of nothing
};

struct CommunicatorOptions {
  CommKind kind = CommKind::any;  // mpi or nccl; any: NCCL for GPUs if it is there, else MPI
  double timeout_seconds = 300;   // without progress in a collective: the job ends (--comm-timeout)
  // Where ranks without MPI meet: "HOST:PORT", "file:PATH", or "" (MASTER_ADDR and MASTER_PORT).
  std::string rendezvous{};
};

// One rank: collectives are copies. Several: as the options say. UserError where this build or this
// device cannot.
std::unique_ptr<Communicator> make_communicator(const World& world, Device& device,
                                                const CommunicatorOptions& options = {});

}  // namespace lathe
