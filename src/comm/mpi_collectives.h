// The collectives in memory of the host, over MPI's point-to-point messages, one after the other.
//
// A collective has two phases. All ranks tell each other which one they are in; whoever is in
// another learns so, and who is missing is known by name. Then the data goes, with everybody there:
//
//   all_reduce,         every rank owns a part of the result. A piece of it at a time, the owner
//   reduce,             gets the others' values, adds them in rank order, and passes the sum on to
//   reduce_scatter      all, to the root, or to nobody; meanwhile the next piece's values come in
//   all_gather, gather, straight from and to where the tensors are
//   scatter
//   broadcast           a chain from the root from rank to rank, in pieces
//   send, receive       the two tell each other nothing but the sender's header
//
// So a rank sends and receives 2 (N-1)/N times the bytes of an all_reduce, the least there can be.
#pragma once

#include <mpi.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <vector>

#include "src/comm/backoff.h"
#include "src/comm/collective.h"
#include "src/comm/world.h"

namespace lathe {

class MpiCollectives {
 public:
  // Waits for all ranks: duplicates MPI_COMM_WORLD.
  MpiCollectives(const World& world, double timeout_seconds);
  ~MpiCollectives();
  MpiCollectives(const MpiCollectives&) = delete;
  MpiCollectives& operator=(const MpiCollectives&) = delete;

  // Returns when this rank's part of it is done. Ends the job (World::fail) where ranks call
  // different collectives, or nothing comes from some rank for longer than the timeout.
  void run(const Collective& collective);

  // For the thread to call every now and then while nothing is called: where others have been
  // waiting for this rank for longer than the timeout, says so, once. They end the job; but this
  // rank alone knows that it lives, and has called nothing.
  void look_while_idle();

  // Between runs.
  void set_timeout(double seconds) { timeout_seconds_ = seconds; }

  // From another thread: a run that waits for others returns, and all later ones do nothing. The
  // job is about to end.
  void give_up() noexcept { given_up_ = true; }

 private:
  // What a rank tells the others of its call.
  struct Header {
    int64_t number;  // among the collectives that all take part in
    int64_t count;
    int32_t root;
    CollectiveKind kind;
    DType dtype;
    Reduction op;
    char what[40];
  };
  // Messages under way. Made large enough once.
  struct Messages {
    std::vector<MPI_Request> requests;
    std::vector<int> peers;  // that they are from or to
    void reserve(size_t count);
    void clear();
  };
  // How a tensor is cut among the ranks that reduce it, and each part into pieces.
  struct Parts;

  Header header_of(const Collective& c) const;
  void meet(const Collective& c);
  void check_headers(const Header& mine, int peer) const;
  void reduce(const Collective& c);
  void post_values(const Collective& c, const Parts& parts, int64_t piece);
  void pass_on(const Collective& c, const Parts& parts, int64_t piece);
  void exchange_blocks(const Collective& c);
  void broadcast(const Collective& c);
  void send_or_receive(const Collective& c);

  void send(Messages& messages, const void* data, size_t bytes, int to, int tag);
  void receive(Messages& messages, void* data, size_t bytes, int from, int tag);
  // Until all of them are done; ends the job where nothing moves for too long.
  void wait(Messages& messages);
  [[noreturn]] void fail_by_timeout(const Messages& messages) const;
  void check(int mpi_result, const char* call) const;

  char* staging(int slot, int peer);
  template <typename Function>
  void for_peers(const Function& function) const;

  const World& world_;
  const int rank_, size_;
  double timeout_seconds_;
  const size_t piece_bytes_;
  MPI_Comm comm_ = MPI_COMM_NULL;
  std::atomic<bool> given_up_{false};

  int64_t number_ = 0;               // of the collective at hand
  const Collective* now_ = nullptr;  // at hand
  bool together_ = false;            // all ranks are known to be in it
  std::vector<Header> heard_;        // the last from each rank; number 0: none yet
  Header told_{};
  Patience idle_;           // with which others wait for this rank
  bool told_idle_ = false;  // it has been said
  Messages headers_, values_[2], sums_[2];
  std::vector<char> staging_;         // pieces of the others' values, twice; and of sums
  std::vector<const void*> sources_;  // of one sum, by rank
  std::vector<int> finished_;         // MPI_Testsome's
};

}  // namespace lathe
