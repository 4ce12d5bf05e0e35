// Collectives: what ranks do together with the tensors of their devices.
//
// They run beside the device's operations, in the order of the calls, which must be the same on
// every rank. On a CPU a thread runs them in MPI while the caller computes; on a GPU they have a
// stream of their own. No call waits for its collective. Two calls order them against the device's
// operations:
//   after_device()       later collectives start when the device has finished everything it was
//                        given before this call
//   device_after(t)      what the device is given after this call starts when collective t, and all
//                        collectives before it, are done
// All of this may be recorded (Device::replay) if device_after(last()) is called before the
// recording ends, and if it was called, or the host waited for last(), before the recording began.
//
// With MPI, lathe does the reductions itself: a sum is ((x0 + x1) + x2) + ... in rank order, in
// fp32 for bf16, rounded once. An all-reduce gives the same bits as a reduce-scatter and an
// all-gather. NCCL chooses its own order.
//
// Counts are 64-bit and may be zero. `what` names the collective in traces and error messages and
// must outlive the communicator. Tensors are flat views. Input and output may be the same memory
// (in all_gather and reduce_scatter: `mine` may be part `rank` of `all`); otherwise they must not
// overlap.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/device/device.h"
#include "kernels/device/queue.h"
#include "src/comm/world.h"

namespace lathe {

enum class Reduction { sum, max, min };

// What carries a communicator's data; --comm chooses. `self`: one rank, which copies.
enum class CommKind : uint8_t { any, self, mpi, nccl };
std::string_view name_of(CommKind kind);  // "auto" for any

// The destructor waits for all collectives that were called, unless an exception is unwinding: then
// it waits for nobody.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual CommKind kind() const = 0;  // never `any`
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // out = op over all ranks' in. Types: fp32, bf16, fp64, int32, int64, uint8.
  virtual Ticket all_reduce(const Tensor& out, const Tensor& in, Reduction op,
                            const char* what) = 0;
  virtual Ticket reduce(const Tensor& out, const Tensor& in, Reduction op, int root,
                        const char* what) = 0;  // `out` is used on the root only
  // mine = part `rank` of (op over the ranks' all); all has size() times as many elements.
  virtual Ticket reduce_scatter(const Tensor& mine, const Tensor& all, Reduction op,
                                const char* what) = 0;
  virtual Ticket all_gather(const Tensor& all, const Tensor& mine, const char* what) = 0;
  virtual Ticket gather(const Tensor& all, const Tensor& mine, int root, const char* what) = 0;
  virtual Ticket scatter(const Tensor& mine, const Tensor& all, int root, const char* what) = 0;
  virtual Ticket broadcast(const Tensor& tensor, int root, const char* what) = 0;
  // Between two ranks; both must call. Calls between the same two ranks match in order.
  virtual Ticket send(const Tensor& tensor, int to, const char* what) = 0;
  virtual Ticket receive(const Tensor& tensor, int from, const char* what) = 0;
  // Both at the same time, so that ranks can pass tensors around a ring. The tensors may differ in
  // size and type. Over MPI with GPUs, of tensors beyond 16 MiB the halves advance together: a peer
  // must not need all of one half before it calls the other.
  virtual Ticket send_receive(const Tensor& sent, int to, const Tensor& received, int from,
                              const char* what) = 0;

  // Within this rank, between any memory spaces, in order with the collectives. Like these, called
  // by every rank.
  virtual Ticket copy(const Tensor& to, const Tensor& from, const char* what) = 0;

  virtual void after_device() = 0;
  virtual void device_after(Ticket ticket) = 0;
  virtual Ticket last() const = 0;
  // The host waits until the collective is done. Not allowed while recording.
  virtual void wait(Ticket ticket) = 0;
  // Device::mark among the collectives: the time at which they reach it. last() counts it.
  virtual void mark(int number) = 0;

  // On host memory, done on return: all[r] = rank r's mine, `bytes` each. Waits for all ranks.
  virtual void exchange(void* all, const void* mine, size_t bytes) = 0;

  // The ranks that give the same color, as a communicator of their own, in the order of their keys;
  // ranks with equal keys in the order of their ranks here. All ranks call it, and wait for each
  // other; this communicator has no collective in flight. `size`: how many ranks give this color.
  // `name` of the group, for messages. The result must not outlive this. A rank with color -1 is in
  // no group and gets null; a rank that is alone in its group gets a copying communicator.
  //
  // Several communicators may work at the same time. All ranks then call collectives of different
  // communicators in one order, in which each can finish before the next begins: NCCL may run them
  // one after the other, and over MPI all communicators of a GPU do. Before a recording begins, all
  // of them have been joined.
  virtual std::unique_ptr<Communicator> split(int color, int key, int size, const char* name) = 0;

  // exchange() for texts of any length; the result is indexed by rank.
  std::vector<std::string> exchange_text(std::string_view mine);
  void barrier();  // an exchange of no bytes
};

struct CommunicatorOptions {
  CommKind kind = CommKind::any;  // mpi or nccl; any: NCCL for GPUs if available, else MPI
  double timeout_seconds = 300;   // without progress in a collective, the job ends (--comm-timeout)
  // Where ranks without MPI meet: "HOST:PORT", "file:PATH", or "" for MASTER_ADDR and MASTER_PORT.
  std::string rendezvous{};
};

// With one rank, collectives are copies; with several, the options decide. UserError if this build
// or this device cannot do it.
std::unique_ptr<Communicator> make_communicator(const World& world, Device& device,
                                                const CommunicatorOptions& options = {});

}  // namespace lathe
