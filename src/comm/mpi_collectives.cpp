#include "src/comm/mpi_collectives.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "kernels/device/round.h"
#include "src/comm/reduction.h"

namespace lathe {

namespace {

constexpr int kHeaderTag = 1, kValuesTag = 2, kSumsTag = 3, kBlocksTag = 4, kPairTag = 5;
constexpr size_t kMessageBytes = size_t{1} << 28;   // MPI counts in int
constexpr size_t kChainBytes = size_t{1} << 18;     // bytes that a broadcast passes on at a time
constexpr size_t kStagingBytes = size_t{16} << 20;  // roughly, for any number of ranks
constexpr std::chrono::milliseconds kGracePeriod(500);
constexpr size_t kSmallestPiece = size_t{1} << 14, kLargestPiece = size_t{1} << 18;

// Bytes reduced at a time: small enough that the values of all ranks stay in cache.
size_t piece_bytes(int ranks) {
  const size_t share = kStagingBytes / (2 * static_cast<size_t>(std::max(1, ranks - 1)));
  return std::clamp(share / 64 * 64, kSmallestPiece, kLargestPiece);
}

const char* at(const void* data, size_t bytes) {
  return static_cast<const char*>(data) + bytes;
}
char* at(void* data, size_t bytes) {
  return static_cast<char*>(data) + bytes;
}

}  // namespace

MPI_Comm make_mpi_comm(const RankGroup& ranks) {
  constexpr int kTag = 1;
  MPI_Comm comm = MPI_COMM_NULL;
  if (ranks.is_all()) {
    MPI_Comm_dup(MPI_COMM_WORLD, &comm);
    return comm;
  }
  MPI_Group all = MPI_GROUP_NULL, part = MPI_GROUP_NULL;
  MPI_Comm_group(MPI_COMM_WORLD, &all);
  MPI_Group_incl(all, ranks.size(), ranks.ranks.data(), &part);
  MPI_Comm_create_group(MPI_COMM_WORLD, part, kTag, &comm);
  MPI_Group_free(&part);
  MPI_Group_free(&all);
  return comm;
}

struct MpiCollectives::Parts {
  // Of elements of the tensor.
  struct Range {
    int64_t begin, count;
  };

  Parts(const Collective& c, int ranks, size_t piece_bytes)
      : whole(c.kind == CollectiveKind::reduce_scatter ? c.count * ranks : c.count),
        size(static_cast<int64_t>(size_of(c.dtype))),
        share(whole / ranks),
        extra(whole % ranks),
        piece(static_cast<int64_t>(piece_bytes) / size),
        pieces(ceil_div(share + (extra > 0), piece)) {}

  // The first `extra` ranks have one element more.
  Range part(int rank) const {
    return {rank * share + std::min<int64_t>(rank, extra), share + (rank < extra)};
  }
  Range part(int rank, int64_t number) const {
    const Range all = part(rank);
    const int64_t from = std::min(number * piece, all.count);
    return {all.begin + from, std::min(piece, all.count - from)};
  }
  size_t bytes(int64_t elements) const { return static_cast<size_t>(elements * size); }

  int64_t whole, size, share, extra, piece, pieces;
};

void MpiCollectives::Messages::reserve(size_t count) {
  requests.reserve(count);
  peers.reserve(count);
}

void MpiCollectives::Messages::clear() {
  requests.clear();
  peers.clear();
}

MpiCollectives::MpiCollectives(const World& world, const RankGroup& ranks, double timeout_seconds)
    : world_(world),
      group_(ranks),
      rank_(ranks.rank),
      size_(ranks.size()),
      timeout_seconds_(timeout_seconds),
      piece_bytes_(piece_bytes(size_)),
      peer_headers_(static_cast<size_t>(size_)),
      sources_(static_cast<size_t>(size_)) {
  const size_t messages = 2 * static_cast<size_t>(size_) + 2;
  for (Messages* group : {&headers_, &values_[0], &values_[1], &sums_[0], &sums_[1]})
    group->reserve(messages);
  finished_.resize(messages);
  const auto lock = world_.mpi_lock();
  comm_ = make_mpi_comm(group_);
  MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
}

MpiCollectives::~MpiCollectives() {
  if (given_up_) return;  // messages may be under way, and the job is about to end
  const auto lock = world_.mpi_lock();
  MPI_Comm_free(&comm_);
}

void MpiCollectives::run(const Collective& c) {
  if (given_up_) return;
  idle_ = {};
  if (c.kind == CollectiveKind::copy) {
    std::memcpy(c.out, c.in, c.bytes());
    return;
  }
  current_ = &c;
  all_joined_ = false;
  if (c.between_two()) {
    send_and_receive(c);
  } else {
    meet(c);
    all_joined_ = true;
    if (c.count == 0 || given_up_) {
      // nothing to move
    } else if (c.reduces()) {
      reduce(c);
    } else if (c.kind == CollectiveKind::broadcast) {
      broadcast(c);
    } else {
      exchange_blocks(c);
    }
  }
  current_ = nullptr;
}

// ---- Who is in which collective.

MpiCollectives::Header MpiCollectives::header_of(const Collective& c) const {
  Header header{};
  header.number = number_;
  header.count = c.count;
  header.root = group_.of_job(c.root);
  header.kind = c.kind;
  header.dtype = c.dtype;
  header.op = c.op;
  std::strncpy(header.what, c.what, sizeof(header.what) - 1);
  return header;
}

void MpiCollectives::meet(const Collective& c) {
  ++number_;
  my_header_ = header_of(c);
  headers_.clear();
  for_peers([&](int peer) {
    receive(headers_, &peer_headers_[static_cast<size_t>(peer)], sizeof(Header), peer, kHeaderTag);
    send(headers_, &my_header_, sizeof(Header), peer, kHeaderTag);
  });
  wait(headers_);
  if (given_up_) return;
  for_peers([&](int peer) { check_headers(my_header_, peer); });
}

void MpiCollectives::check_headers(const Header& mine, int peer) const {
  const Header& theirs = peer_headers_[static_cast<size_t>(peer)];
  const bool same = mine.number == theirs.number && mine.count == theirs.count &&
                    mine.root == theirs.root && mine.kind == theirs.kind &&
                    mine.dtype == theirs.dtype && mine.op == theirs.op;
  if (same) return;
  const auto text = [](const Header& h) {
    return describe(h.kind, h.dtype, h.op, h.root, h.count, h.what);
  };
  const bool first = rank_ < peer;
  const Header &a = first ? mine : theirs, &b = first ? theirs : mine;
  world_.fail(fmt::format("ranks disagree in collective {}{}: rank {} calls {}, rank {} calls {}",
                          mine.number, group_.text(), of_job(std::min(rank_, peer)), text(a),
                          of_job(std::max(rank_, peer)), text(b)));
}

// ---- Sums.

// Slots 0 and 1: a piece of each other rank. Slots 2 and 3, peer 0: a sum on its way to the root.
char* MpiCollectives::staging(int slot, int peer) {
  const size_t others = static_cast<size_t>(size_ - 1);
  // Allocated for the first sum; a rank that never reduces needs none.
  if (staging_.empty()) staging_.resize((2 * others + 2) * piece_bytes_);
  const size_t index = slot < 2 ? static_cast<size_t>(slot) * others + static_cast<size_t>(peer)
                                : 2 * others + static_cast<size_t>(slot - 2);
  return staging_.data() + index * piece_bytes_;
}

void MpiCollectives::reduce(const Collective& c) {
  const Parts parts(c, size_, piece_bytes_);
  post_values(c, parts, 0);
  for (int64_t piece = 0; piece < parts.pieces && !given_up_; ++piece) {
    if (piece + 1 < parts.pieces) post_values(c, parts, piece + 1);
    wait(values_[piece % 2]);
    wait(sums_[piece % 2]);  // of two pieces back, whose memory is reused now
    if (!given_up_) pass_on(c, parts, piece);
  }
  wait(sums_[0]);
  wait(sums_[1]);
}

// Every rank sends each owner its values of the owner's piece.
void MpiCollectives::post_values(const Collective& c, const Parts& parts, int64_t piece) {
  Messages& messages = values_[piece % 2];
  messages.clear();
  const Parts::Range mine = parts.part(rank_, piece);
  for_peers([&](int peer) {
    const int index = peer - (peer > rank_);
    receive(messages, staging(static_cast<int>(piece % 2), index), parts.bytes(mine.count), peer,
            kValuesTag);
    const Parts::Range theirs = parts.part(peer, piece);
    send(messages, at(c.in, parts.bytes(theirs.begin)), parts.bytes(theirs.count), peer,
         kValuesTag);
  });
}

// Reduces the piece that this rank owns and sends the result to the ranks that need it.
void MpiCollectives::pass_on(const Collective& c, const Parts& parts, int64_t piece) {
  Messages& messages = sums_[piece % 2];
  messages.clear();
  const int slot = static_cast<int>(piece % 2);
  const Parts::Range mine = parts.part(rank_, piece);
  const bool scattered = c.kind == CollectiveKind::reduce_scatter;
  void* sum = staging(2 + slot, 0);
  if (scattered) {
    sum = at(c.out, parts.bytes(mine.begin - parts.part(rank_).begin));
  } else if (c.out != nullptr) {
    sum = at(c.out, parts.bytes(mine.begin));
  }
  for (int rank = 0; rank < size_; ++rank) {
    const char* const value =
        rank == rank_ ? at(c.in, parts.bytes(mine.begin)) : staging(slot, rank - (rank > rank_));
    sources_[static_cast<size_t>(rank)] = value;
  }
  reduce_in_order(sum, sources_, mine.count, c.dtype, c.op);
  if (scattered) return;
  for_peers([&](int peer) {
    const bool to_peer = c.root < 0 || peer == c.root;
    const bool to_me = c.root < 0 || rank_ == c.root;
    const Parts::Range theirs = parts.part(peer, piece);
    if (to_me) {
      receive(messages, at(c.out, parts.bytes(theirs.begin)), parts.bytes(theirs.count), peer,
              kSumsTag);
    }
    if (to_peer) send(messages, sum, parts.bytes(mine.count), peer, kSumsTag);
  });
}

// ---- Copies.

// all_gather, gather and scatter: whole blocks, straight into place.
void MpiCollectives::exchange_blocks(const Collective& c) {
  const bool scatters = c.kind == CollectiveKind::scatter;
  const bool to_root = c.kind == CollectiveKind::gather;
  const bool gathers_here = !scatters && (!to_root || rank_ == c.root);
  const size_t bytes = c.bytes(), my_offset = bytes * static_cast<size_t>(rank_);
  const char* const from = scatters && rank_ == c.root ? at(c.in, my_offset) : at(c.in, 0);
  char* const to = gathers_here && !scatters ? at(c.out, my_offset) : at(c.out, 0);
  if ((gathers_here || (scatters && rank_ == c.root)) && from != to) std::memcpy(to, from, bytes);
  Messages& messages = values_[0];
  for (size_t done = 0; done < bytes && !given_up_; done += kMessageBytes) {
    const size_t part = std::min(kMessageBytes, bytes - done);
    messages.clear();
    for_peers([&](int peer) {
      const size_t offset = bytes * static_cast<size_t>(peer) + done;
      if (gathers_here) receive(messages, at(c.out, offset), part, peer, kBlocksTag);
      if (scatters && rank_ == c.root) send(messages, at(c.in, offset), part, peer, kBlocksTag);
      if (scatters && peer == c.root) receive(messages, at(c.out, done), part, peer, kBlocksTag);
      if (!scatters && (!to_root || peer == c.root))
        send(messages, at(c.in, done), part, peer, kBlocksTag);
    });
    wait(messages);
  }
}

// A chain: each rank passes pieces from its predecessor to its successor, counted from the root.
void MpiCollectives::broadcast(const Collective& c) {
  const int before = (rank_ + size_ - 1) % size_, after = (rank_ + 1) % size_;
  const bool receives = rank_ != c.root, sends = after != c.root;
  const size_t bytes = c.bytes();
  const auto post = [&](size_t done, int slot) {
    values_[slot].clear();
    if (done >= bytes || !receives) return;
    receive(values_[slot], at(c.out, done), std::min(kChainBytes, bytes - done), before,
            kBlocksTag);
  };
  post(0, 0);
  int slot = 0;
  for (size_t done = 0; done < bytes && !given_up_; done += kChainBytes, slot = 1 - slot) {
    post(done + kChainBytes, 1 - slot);
    wait(values_[slot]);
    wait(sums_[slot]);
    if (sends && !given_up_)
      send(sums_[slot], at(c.out, done), std::min(kChainBytes, bytes - done), after, kBlocksTag);
  }
  wait(sums_[0]);
  wait(sums_[1]);
}

// The halves do not wait for each other: a peer may receive this rank's message before it sends its
// own.
void MpiCollectives::send_and_receive(const Collective& c) {
  const std::optional<Collective> sent = c.sent_part(), received = c.received_part();
  Messages &out = values_[0], &in = values_[1];
  out.clear();
  in.clear();
  Header theirs{};
  size_t sent_bytes = 0, received_bytes = 0;  // of messages that have been started
  if (received) receive(in, &theirs, sizeof(Header), received->root, kPairTag);
  if (sent) {
    my_header_ = header_of(*sent);
    send(out, &my_header_, sizeof(Header), sent->root, kPairTag);
  }
  bool has_header = !received;
  Backoff backoff(timeout_seconds_);
  while (!given_up_) {
    const int sent_now = test(out), received_now = test(in);
    if (sent_now < 0 && sent && sent_bytes < sent->bytes()) {
      const size_t part = std::min(kMessageBytes, sent->bytes() - sent_bytes);
      send(out, at(sent->in, sent_bytes), part, sent->root, kPairTag);
      sent_bytes += part;
    } else if (received_now < 0 && !has_header) {
      has_header = true;
      check_message(theirs, *received);
    } else if (received_now < 0 && received && received_bytes < received->bytes()) {
      const size_t part = std::min(kMessageBytes, received->bytes() - received_bytes);
      receive(in, at(received->out, received_bytes), part, received->root, kPairTag);
      received_bytes += part;
    } else if (sent_now < 0 && received_now < 0) {
      return;
    } else if (sent_now > 0 || received_now > 0) {
      backoff.moved();
    } else if (!backoff.idle()) {
      fail_by_timeout(received_now == 0 ? in : out);
    }
  }
}

void MpiCollectives::check_message(const Header& theirs, const Collective& received) const {
  if (theirs.count == received.count && theirs.dtype == received.dtype) return;
  world_.fail(fmt::format(
      "ranks{} disagree: rank {} calls {}, rank {} calls {}", group_.text(), of_job(received.root),
      describe(theirs.kind, theirs.dtype, theirs.op, theirs.root, theirs.count, theirs.what),
      of_job(rank_), describe(translated(received, group_))));
}

// ---- Messages.

// The other ranks, starting after this one, so that not all send to rank 0 first.
template <typename Function>
void MpiCollectives::for_peers(const Function& function) const {
  for (int step = 1; step < size_; ++step) function((rank_ + step) % size_);
}

void MpiCollectives::check(int mpi_result, const char* call) const {
  if (mpi_result == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(mpi_result, text, &length);
  world_.fail(fmt::format("{} failed in {}: {}", call, current_ ? describe_current() : "", text));
}

void MpiCollectives::send(Messages& messages, const void* data, size_t bytes, int to, int tag) {
  if (bytes == 0) return;
  const auto lock = world_.mpi_lock();
  MPI_Request& request = messages.requests.emplace_back(MPI_REQUEST_NULL);
  messages.peers.push_back(to);
  check(MPI_Isend(data, static_cast<int>(bytes), MPI_BYTE, to, tag, comm_, &request), "MPI_Isend");
}

void MpiCollectives::receive(Messages& messages, void* data, size_t bytes, int from, int tag) {
  if (bytes == 0) return;
  const auto lock = world_.mpi_lock();
  MPI_Request& request = messages.requests.emplace_back(MPI_REQUEST_NULL);
  messages.peers.push_back(from);
  check(MPI_Irecv(data, static_cast<int>(bytes), MPI_BYTE, from, tag, comm_, &request),
        "MPI_Irecv");
}

int MpiCollectives::test(Messages& messages) {
  if (messages.requests.empty()) return -1;
  int done = 0;
  {
    const auto lock = world_.mpi_lock();
    check(MPI_Testsome(static_cast<int>(messages.requests.size()), messages.requests.data(), &done,
                       finished_.data(), MPI_STATUSES_IGNORE),
          "MPI_Testsome");
  }
  if (done != MPI_UNDEFINED) return done;
  messages.clear();
  return -1;
}

void MpiCollectives::wait(Messages& messages) {
  Backoff backoff(timeout_seconds_);
  while (!given_up_) {
    const int done = test(messages);
    if (done < 0) return;
    if (done > 0) {
      backoff.moved();
    } else if (!backoff.idle()) {
      fail_by_timeout(messages);
    }
  }
}

void MpiCollectives::look_while_idle() {
  int found = 0;
  MPI_Status from{};
  {
    const auto lock = world_.mpi_lock();
    check(MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, comm_, &found, &from), "MPI_Iprobe");
  }
  if (!found || idle_reported_) {
    idle_ = {};
  } else if (idle_.waited() > timeout_seconds_) {
    idle_reported_ = true;
    const std::string last =
        number_ == 0 ? "has called no collective yet"
                     : fmt::format("has called nothing since collective {}, {}", number_,
                                   describe(my_header_.kind, my_header_.dtype, my_header_.op,
                                            my_header_.root, my_header_.count, my_header_.what));
    world_.say(fmt::format("{}{}; rank {} has been waiting for it for {:g} s", last, group_.text(),
                           of_job(from.MPI_SOURCE), timeout_seconds_));
  }
}

void MpiCollectives::fail_by_timeout(const Messages& messages) const {
  // The missing rank speaks first, if it can.
  std::this_thread::sleep_for(kGracePeriod);
  std::vector<int> ranks;
  for (size_t i = 0; i < messages.requests.size(); ++i)
    if (messages.requests[i] != MPI_REQUEST_NULL) ranks.push_back(messages.peers[i]);
  std::sort(ranks.begin(), ranks.end());
  ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
  std::string missing;
  for (const int rank : ranks) {
    const Header& last = peer_headers_[static_cast<size_t>(rank)];
    missing += fmt::format("{}rank {}", missing.empty() ? "" : ", ", of_job(rank));
    if (current_->between_two()) continue;
    if (all_joined_) {
      missing += " (it joined, then stopped)";
    } else if (last.number == 0) {
      missing += " (it has joined none so far)";
    } else {
      missing +=
          fmt::format(" (its last was collective {}, {})", last.number,
                      describe(last.kind, last.dtype, last.op, last.root, last.count, last.what));
    }
  }
  const std::string which = current_->between_two() ? "" : fmt::format("collective {}, ", number_);
  world_.fail(fmt::format("waited {:g} s in {}{}{}: nothing came from {}", timeout_seconds_, which,
                          describe_current(), group_.text(), missing));
}

}  // namespace lathe
