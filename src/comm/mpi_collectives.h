// The collectives on host memory, over MPI's point-to-point messages, one at a time.
//
// A collective has two phases. First all ranks exchange headers that say which collective they are
// in, so that a mismatch is found and a missing rank is known by name. Then the data moves:
//
//   all_reduce,         Each rank owns a part of the result. For one piece at a time, the owner
//   reduce,             receives the others' values, adds them in rank order and sends the sum to
//   reduce_scatter      all, to the root, or to nobody; meanwhile the next piece's values arrive.
//   all_gather, gather, Blocks move straight between the tensors.
//   scatter
//   broadcast           A chain from rank to rank, starting at the root, in pieces.
//   send, receive,      Only the sender sends a header.
//   send_receive
//
// So in an all_reduce a rank sends and receives 2 (N-1)/N times its bytes, which is the minimum.
#pragma once

#include <mpi.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <vector>

#include "kernels/device/backoff.h"
#include "src/comm/collective.h"
#include "src/comm/world.h"

namespace lathe {

// MPI's communicator of these ranks. All of them call it, and wait for each other; the caller holds
// World::mpi_lock() and frees the result.
MPI_Comm make_mpi_comm(const RankGroup& ranks);

class MpiCollectives {
 public:
  // Among these ranks; waits for all of them.
  MpiCollectives(const World& world, const RankGroup& ranks, double timeout_seconds);
  ~MpiCollectives();
  MpiCollectives(const MpiCollectives&) = delete;
  MpiCollectives& operator=(const MpiCollectives&) = delete;

  // Returns when this rank's part is done. Ends the job (World::fail) if ranks call different
  // collectives, or if nothing comes from a rank for longer than the timeout.
  void run(const Collective& collective);

  // Call regularly while idle. If other ranks have waited for this one longer than the timeout,
  // prints that once: they will end the job, but only this rank can say that it is alive and has
  // not called the collective.
  void look_while_idle();

  // Not during a run.
  void set_timeout(double seconds) { timeout_seconds_ = seconds; }

  // From another thread, when the job is about to end: a run that waits for others returns, and all
  // later runs do nothing.
  void give_up() noexcept { given_up_ = true; }

 private:
  // What a rank sends to the others about its call.
  struct Header {
    int64_t number;  // counts the collectives in which all ranks take part
    int64_t count;
    int32_t root;
    CollectiveKind kind;
    DType dtype;
    Reduction op;
    char what[40];
  };
  // Messages under way. Reserved once, so that nothing is allocated later.
  struct Messages {
    std::vector<MPI_Request> requests;
    std::vector<int> peers;  // each message's other end
    void reserve(size_t count);
    void clear();
  };
  // How a tensor is cut among the ranks that reduce it, and each part into pieces.
  struct Parts;

  Header header_of(const Collective& c) const;
  void meet(const Collective& c);
  void check_headers(const Header& mine, int peer) const;
  void check_message(const Header& theirs, const Collective& received) const;
  void reduce(const Collective& c);
  void post_values(const Collective& c, const Parts& parts, int64_t piece);
  void pass_on(const Collective& c, const Parts& parts, int64_t piece);
  void exchange_blocks(const Collective& c);
  void broadcast(const Collective& c);
  void send_and_receive(const Collective& c);

  void send(Messages& messages, const void* data, size_t bytes, int to, int tag);
  void receive(Messages& messages, void* data, size_t bytes, int from, int tag);
  // How many of them are done since the last test; -1: none is under way.
  int test(Messages& messages);
  // Waits for all of them; ends the job if nothing moves for too long.
  void wait(Messages& messages);
  [[noreturn]] void fail_by_timeout(const Messages& messages) const;
  void check(int mpi_result, const char* call) const;

  char* staging(int slot, int peer);
  template <typename Function>
  void for_peers(const Function& function) const;

  int of_job(int rank) const { return group_.of_job(rank); }
  std::string describe_current() const { return describe(translated(*current_, group_)); }

  const World& world_;
  const RankGroup group_;
  const int rank_, size_;  // in the group
  double timeout_seconds_;
  const size_t piece_bytes_;
  MPI_Comm comm_ = MPI_COMM_NULL;
  std::atomic<bool> given_up_{false};

  int64_t number_ = 0;                   // of the current collective
  const Collective* current_ = nullptr;  // the one that is running
  bool all_joined_ = false;              // all ranks are known to be in it
  std::vector<Header> peer_headers_;     // the last from each rank; number 0: none yet
  Header my_header_{};
  Patience idle_;               // how long others have waited for this rank
  bool idle_reported_ = false;  // the message has been printed
  Messages headers_, values_[2], sums_[2];
  std::vector<char> staging_;         // pieces of the others' values, double-buffered; and of sums
  std::vector<const void*> sources_;  // of one sum, by rank
  std::vector<int> finished_;         // for MPI_Testsome
};

}  // namespace lathe
