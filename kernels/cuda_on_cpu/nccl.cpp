// The stand-in for NCCL, over MPI: one process is one rank and one device.
//
// A call puts an exchange of messages into its stream. The exchange begins when the stream reaches
// it and everything that the host gave to the same communicator before, in any stream, has begun:
// that is NCCL's order, and it pairs the messages. The exchange reads the send buffer when it
// begins, poisons the receive buffer, and writes the result when all messages have arrived. The
// calls of a group begin together, so that sends and receives among them cannot block each other.
//
// Every rank sends a description of its call before its data. Ranks that disagree about operation,
// count, type or root get an error that names both calls; NCCL would hang or compute nonsense.
//
// Numbers: a reduction adds the ranks' values in rank order, ((x0 + x1) + x2) + ..., and rounds
// each sum to the type, like a ring that begins at rank 0. All ranks use this order, so an
// all-reduce has the bits of a reduce-scatter and an all-gather. Integers wrap. As in NCCL, the
// average multiplies floating-point values by 1 / ranks, rounded, before it adds them, and divides
// the sum of integers afterwards. Maximum and minimum ignore NaN.
//
// Not supported, and refused: communicators that do not block (ncclConfig_t), one communicator on
// several streams within a group, two ranks in a process.
#include <fmt/format.h>
#include <mpi.h>
#include <nccl.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "kernels/cuda_on_cpu/host_mpi.h"
#include "kernels/cuda_on_cpu/runtime.h"
#include "kernels/device/dtype.h"

namespace lathe::cuda_on_cpu {
namespace {
class Operation;
}
}  // namespace lathe::cuda_on_cpu

// The opaque type of NCCL's interface.
struct ncclComm {
  MPI_Comm mpi = MPI_COMM_NULL;  // null for a single rank
  int rank = 0, ranks = 1;
  ncclResult_t error = ncclSuccess;
  bool destroyed = false;
  std::deque<std::weak_ptr<lathe::cuda_on_cpu::Operation>> waiting;   // for their turn to begin
  std::vector<std::shared_ptr<lathe::cuda_on_cpu::Operation>> begun;  // but not done
  // Shared with every graph that holds a collective of several ranks.
  std::shared_ptr<int> graphs = std::make_shared<int>();
};

namespace lathe::cuda_on_cpu {
namespace {

using Bytes = std::vector<std::byte>;
using Comm = std::shared_ptr<ncclComm>;

// Two tags suffice: messages of one kind between two ranks do not overtake each other, and both
// ranks begin in the same order.
constexpr int kCollectiveTag = 1, kPointToPointTag = 2, kHelloTag = 3, kCreateTag = 4;
constexpr size_t kMessageBytes = size_t{1} << 30;  // MPI counts in int
constexpr int kPoison = 0xff;

// ---- Types.

size_t size_of(ncclDataType_t type) {
  switch (type) {
    case ncclUint8:
      return 1;
    case ncclBfloat16:
      return 2;
    case ncclInt32:
    case ncclFloat32:
      return 4;
    case ncclInt64:
    case ncclFloat64:
      return 8;
    default:
      return 0;  // not supported
  }
}
const char* name_of(ncclDataType_t type) {
  switch (type) {
    case ncclUint8:
      return "uint8";
    case ncclBfloat16:
      return "bfloat16";
    case ncclInt32:
      return "int32";
    case ncclFloat32:
      return "float32";
    case ncclInt64:
      return "int64";
    case ncclFloat64:
      return "float64";
    default:
      return "a type that is not supported";
  }
}
bool is_supported(ncclRedOp_t op) {
  return op == ncclSum || op == ncclMax || op == ncclMin || op == ncclAvg;
}

// ---- Reductions.

template <typename T>
T add(T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    using Wrapping = std::make_unsigned_t<T>;
    return static_cast<T>(static_cast<Wrapping>(a) + static_cast<Wrapping>(b));
  } else {
    return T(a + b);  // bf16: added in float, rounded
  }
}
template <typename T>
T larger(T a, T b) {
  if constexpr (std::is_integral_v<T>) return std::max(a, b);
  if constexpr (!std::is_integral_v<T>) return T(std::fmax(a, b));
}
template <typename T>
T smaller(T a, T b) {
  if constexpr (std::is_integral_v<T>) return std::min(a, b);
  if constexpr (!std::is_integral_v<T>) return T(std::fmin(a, b));
}

template <typename T>
void reduce(std::byte* result, const std::vector<const std::byte*>& sources, size_t count,
            ncclRedOp_t op) {
  const auto ranks = sources.size();
  constexpr bool kFloating = !std::is_integral_v<T>;
  const bool scaled = op == ncclAvg && kFloating;
  const T factor = kFloating ? T(1.0 / static_cast<double>(ranks)) : T(1);
  auto* y = reinterpret_cast<T*>(result);
  const auto fold = [&](size_t r, auto combine) {
    const auto* x = reinterpret_cast<const T*>(sources[r]);
    for (size_t i = 0; i < count; ++i) {
      const T value = scaled ? T(x[i] * factor) : x[i];
      y[i] = r == 0 ? value : combine(y[i], value);
    }
  };
  for (size_t r = 0; r < ranks; ++r) {
    if (op == ncclMax) {
      fold(r, larger<T>);
    } else if (op == ncclMin) {
      fold(r, smaller<T>);
    } else {
      fold(r, add<T>);
    }
  }
  if (op != ncclAvg || kFloating) return;
  for (size_t i = 0; i < count; ++i) y[i] = T(y[i] / static_cast<T>(ranks));
}

void reduce(std::byte* result, const std::vector<const std::byte*>& sources, size_t count,
            ncclDataType_t type, ncclRedOp_t op) {
  switch (type) {
    case ncclUint8:
      return reduce<uint8_t>(result, sources, count, op);
    case ncclBfloat16:
      return reduce<bf16>(result, sources, count, op);
    case ncclInt32:
      return reduce<int32_t>(result, sources, count, op);
    case ncclInt64:
      return reduce<int64_t>(result, sources, count, op);
    case ncclFloat32:
      return reduce<float>(result, sources, count, op);
    default:
      return reduce<double>(result, sources, count, op);
  }
}

// ---- One call, and the data it moves.

enum class Kind : int32_t {
  kAllReduce,
  kReduceScatter,
  kAllGather,
  kBroadcast,
  kReduce,
  kSend,
  kRecv
};

const char* name_of(Kind kind) {
  constexpr const char* kNames[] = {"ncclAllReduce", "ncclReduceScatter", "ncclAllGather",
                                    "ncclBroadcast", "ncclReduce",        "ncclSend",
                                    "ncclRecv"};
  return kNames[static_cast<int>(kind)];
}

// The description of a call that ranks send each other.
struct Description {
  Kind kind;
  ncclDataType_t type;
  ncclRedOp_t op;  // ncclNumOps: none
  int32_t root;    // or peer; -1: none
  uint64_t count;

  bool operator==(const Description&) const = default;
};

std::string describe(const Description& d) {
  constexpr const char* kOps[] = {" (sum)", " (prod)", " (max)", " (min)", " (avg)", ""};
  std::string text = fmt::format("{} of {} {}{}", name_of(d.kind), d.count, name_of(d.type),
                                 kOps[std::clamp(static_cast<int>(d.op), 0, 5)]);
  if (d.root >= 0) text += fmt::format(", root or peer {}", d.root);
  return text;
}

struct Slice {
  size_t offset = 0, bytes = 0;
};

struct Call {
  Description what;
  const std::byte* send;
  std::byte* recv;
  int rank, ranks;

  bool point_to_point() const { return what.kind == Kind::kSend || what.kind == Kind::kRecv; }
  bool is_root() const { return rank == what.root; }
  size_t block() const { return what.count * size_of(what.type); }
  // Bytes of the buffers as this rank uses them.
  size_t send_bytes() const {
    if (what.kind == Kind::kRecv || (what.kind == Kind::kBroadcast && !is_root())) return 0;
    return what.kind == Kind::kReduceScatter ? block() * static_cast<size_t>(ranks) : block();
  }
  size_t recv_bytes() const {
    if (what.kind == Kind::kSend || (what.kind == Kind::kReduce && !is_root())) return 0;
    return what.kind == Kind::kAllGather ? block() * static_cast<size_t>(ranks) : block();
  }
  // Whether this rank sends messages to `peer`; whether it receives any from it.
  bool tells(int peer) const {
    return point_to_point() ? what.kind == Kind::kSend && peer == what.root : peer != rank;
  }
  bool hears(int peer) const {
    return point_to_point() ? what.kind == Kind::kRecv && peer == what.root : peer != rank;
  }
  // The part of the send buffer for `peer`, and the bytes that `peer` sends.
  Slice outgoing(int peer) const {
    switch (what.kind) {
      case Kind::kReduceScatter:
        return {block() * static_cast<size_t>(peer), block()};
      case Kind::kBroadcast:
        return {0, is_root() ? block() : 0};
      case Kind::kReduce:
      case Kind::kSend:
        return {0, peer == what.root ? block() : 0};
      case Kind::kRecv:
        return {};
      default:
        return {0, block()};
    }
  }
  size_t incoming(int peer) const {
    switch (what.kind) {
      case Kind::kBroadcast:
      case Kind::kRecv:
        return peer == what.root ? block() : 0;
      case Kind::kReduce:
        return is_root() ? block() : 0;
      case Kind::kSend:
        return 0;
      default:
        return block();
    }
  }
  bool has_root() const { return what.kind >= Kind::kBroadcast; }
  // The part of the receive buffer that an in-place operation leaves unchanged.
  Slice kept() const {
    if (what.kind == Kind::kAllGather && send == in_place())
      return {block() * static_cast<size_t>(rank), block()};
    return {0, what.kind == Kind::kBroadcast && is_root() && send == recv ? block() : 0};
  }
  // The only address of the send buffer that may overlap the receive buffer.
  const std::byte* in_place() const {
    const size_t offset = block() * static_cast<size_t>(rank);
    if (what.kind == Kind::kAllGather) return recv + offset;
    if (what.kind == Kind::kReduceScatter)
      return reinterpret_cast<const std::byte*>(reinterpret_cast<uintptr_t>(recv) - offset);
    return recv;
  }
};

// ---- A running call.

class Exchange {
 public:
  Exchange(const Call& call, MPI_Comm comm) : call_(call), comm_(comm) {
    sent_.assign(call.send, call.send + call.send_bytes());
    poison();
    heard_.resize(static_cast<size_t>(call.ranks), call.what);
    received_.resize(static_cast<size_t>(call.ranks));
    for (int peer = 0; peer < call.ranks; ++peer) {
      if (call.hears(peer)) receive(peer);
      if (call.tells(peer)) send(peer);
    }
  }

  // True when it is done or has failed; `error` says why.
  bool advance(std::string& error) {
    if (finished_) return true;
    if (!agreed_) {
      if (!all_done(descriptions_, error)) return !error.empty();
      error = disagreement();
      if (!error.empty()) return true;
      agreed_ = true;
    }
    if (!all_done(data_, error)) return !error.empty();
    write_result();
    finished_ = true;
    return true;
  }

  // Gives up messages that have not arrived. False if MPI may still touch the memory.
  bool abandon() {
    bool free = true;
    for (std::vector<MPI_Request>* requests : {&descriptions_, &data_}) {
      for (MPI_Request& request : *requests) {
        int done = 0;
        if (PMPI_Test(&request, &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && !done) free = false;
      }
    }
    return free;
  }

 private:
  int tag() const { return call_.point_to_point() ? kPointToPointTag : kCollectiveTag; }
  // From now on NCCL may write the receive buffer at any time.
  void poison() {
    const Slice kept = call_.kept();
    const size_t after = kept.offset + kept.bytes;
    if (call_.recv_bytes() == 0) return;
    std::memset(call_.recv, kPoison, kept.offset);
    std::memset(call_.recv + after, kPoison, call_.recv_bytes() - after);
  }
  void receive(int peer) {
    MPI_Request& request = descriptions_.emplace_back();
    PMPI_Irecv(&heard_[static_cast<size_t>(peer)], sizeof(Description), MPI_BYTE, peer, tag(),
               comm_, &request);
    Bytes& buffer = received_[static_cast<size_t>(peer)];
    buffer.resize(call_.incoming(peer));
    for (size_t at = 0; at < buffer.size(); at += kMessageBytes) {
      const size_t bytes = std::min(kMessageBytes, buffer.size() - at);
      PMPI_Irecv(buffer.data() + at, static_cast<int>(bytes), MPI_BYTE, peer, tag(), comm_,
                 &data_.emplace_back());
    }
  }
  // ncclSend ends when the other end has begun to receive, however small the message.
  void send(int peer) {
    const auto isend = call_.point_to_point() ? PMPI_Issend : PMPI_Isend;
    isend(&call_.what, sizeof(Description), MPI_BYTE, peer, tag(), comm_, &data_.emplace_back());
    const Slice slice = call_.outgoing(peer);
    for (size_t at = 0; at < slice.bytes; at += kMessageBytes) {
      const size_t bytes = std::min(kMessageBytes, slice.bytes - at);
      isend(sent_.data() + slice.offset + at, static_cast<int>(bytes), MPI_BYTE, peer, tag(), comm_,
            &data_.emplace_back());
    }
  }
  static bool all_done(std::vector<MPI_Request>& requests, std::string& error) {
    if (requests.empty()) return true;  // a single rank needs no MPI
    int done = 0;
    const int result = PMPI_Testall(static_cast<int>(requests.size()), requests.data(), &done,
                                    MPI_STATUSES_IGNORE);
    if (result == MPI_SUCCESS) return done;
    error = "a message was lost or had another size";
    return false;
  }
  std::string disagreement() const {
    for (int peer = 0; peer < call_.ranks; ++peer) {
      Description theirs = heard_[static_cast<size_t>(peer)];
      if (call_.what.kind == Kind::kRecv) {  // the other end
        if (peer != call_.what.root) continue;
        theirs.kind = Kind::kRecv;
        theirs.root = peer;
      }
      if (theirs == call_.what) continue;
      return fmt::format("rank {} calls {}, rank {} calls {}", call_.rank, describe(call_.what),
                         peer, describe(heard_[static_cast<size_t>(peer)]));
    }
    return {};
  }
  const std::byte* from(int peer) const {
    if (peer == call_.rank && !call_.point_to_point())
      return sent_.data() + call_.outgoing(peer).offset;
    return received_[static_cast<size_t>(peer)].data();
  }
  void write_result() const {
    const size_t block = call_.block();
    if (call_.recv_bytes() == call_.kept().bytes) return;
    switch (call_.what.kind) {
      case Kind::kAllGather:
        for (int peer = 0; peer < call_.ranks; ++peer) {
          const size_t offset = block * static_cast<size_t>(peer);
          if (peer != call_.rank || call_.kept().bytes == 0)
            std::memcpy(call_.recv + offset, from(peer), block);
        }
        return;
      case Kind::kBroadcast:
      case Kind::kRecv:
        std::memcpy(call_.recv, from(call_.what.root), block);
        return;
      default:
        std::vector<const std::byte*> sources;
        for (int peer = 0; peer < call_.ranks; ++peer) sources.push_back(from(peer));
        reduce(call_.recv, sources, call_.what.count, call_.what.type, call_.what.op);
    }
  }

  const Call call_;
  MPI_Comm comm_;
  Bytes sent_;                      // a copy of the send buffer from the beginning
  std::vector<Description> heard_;  // by rank
  std::vector<Bytes> received_;     // by rank
  std::vector<MPI_Request> descriptions_, data_;
  bool agreed_ = false, finished_ = false;
};

// The calls of a group on one communicator, or a single call, in a stream.
class Operation : public std::enable_shared_from_this<Operation> {
 public:
  Operation(Comm comm, std::shared_ptr<const std::vector<Call>> calls)
      : comm_(std::move(comm)), calls_(std::move(calls)) {}

  // Does what can be done now; true when all is done.
  bool advance() {
    if (comm_->destroyed || comm_->error != ncclSuccess) return true;
    if (!begun_) {
      if (!is_next()) return false;
      begin();
    }
    bool done = true;
    for (const auto& exchange : exchanges_) {
      std::string error;
      done &= exchange->advance(error);
      if (error.empty()) continue;
      comm_->error = ncclInvalidUsage;
      fail("NCCL: " + error);
      return true;
    }
    if (done) std::erase(comm_->begun, shared_from_this());
    return done;
  }
  // False if MPI may still touch the memory.
  bool abandon() {
    return std::all_of(exchanges_.begin(), exchanges_.end(),
                       [](const auto& exchange) { return exchange->abandon(); });
  }

 private:
  bool is_next() const {
    auto& waiting = comm_->waiting;
    while (!waiting.empty() && waiting.front().expired()) waiting.pop_front();
    return !waiting.empty() && waiting.front().lock().get() == this;
  }
  void begin() {
    begun_ = true;
    comm_->waiting.pop_front();
    comm_->begun.push_back(shared_from_this());
    for (const Call& call : *calls_)
      exchanges_.push_back(std::make_unique<Exchange>(call, comm_->mpi));
  }

  const Comm comm_;
  const std::shared_ptr<const std::vector<Call>> calls_;
  std::vector<std::unique_ptr<Exchange>> exchanges_;
  bool begun_ = false;
};

// ---- Communicators find their ranks: each rank sends a hello to all of MPI_COMM_WORLD.

struct Identity {
  char magic[16];
  uint64_t words[2];

  auto operator<=>(const Identity&) const = default;
};
static_assert(sizeof(Identity) <= NCCL_UNIQUE_ID_BYTES);
constexpr char kMagic[16] = "lathe's NCCL id";

struct Hello {
  Identity id;
  int ranks, rank, world_rank;
};

// The whole state of the library.
class Library {
 public:
  static Library& instance() {
    static Library library;
    return library;
  }

  ncclResult_t refuse(ncclResult_t result, const std::string& why) {
    last_error_ = why;
    if (depth_ > 0) group_result_ = result;
    return result;
  }
  const std::string& last_error() const { return last_error_; }

  // ---- Communicators.
  Comm find(ncclComm_t comm) const {
    const auto found = comms_.find(comm);
    return found == comms_.end() ? nullptr : found->second;
  }
  ncclResult_t make(ncclComm_t* made, MPI_Comm mpi, int rank, int ranks) {
    auto comm = std::make_shared<ncclComm>();
    comm->mpi = mpi;
    if (mpi != MPI_COMM_NULL) PMPI_Comm_set_errhandler(mpi, MPI_ERRORS_RETURN);
    comm->rank = rank;
    comm->ranks = ranks;
    *made = comm.get();
    comms_[comm.get()] = std::move(comm);
    return ncclSuccess;
  }
  ncclResult_t join(ncclComm_t* made, int ranks, const Identity& id, int rank);
  void remove(const Comm& comm);

  // ---- Calls.
  ncclResult_t call(Description what, const void* send, void* recv, ncclComm_t handle,
                    cudaStream_t stream);
  void start_group() { ++depth_; }
  ncclResult_t end_group();

 private:
  struct Pending {
    Comm comm;
    cudaStream_t stream;
    std::vector<Call> calls;
  };
  std::string wrong_with(const Call& call) const;
  ncclResult_t enqueue(const Pending& pending);
  void say_hello(const Hello& hello);
  void hear_hellos();
  std::string wrong_with(const std::vector<Hello>& hellos) const;

  std::map<ncclComm_t, Comm> comms_;
  std::string last_error_;
  int depth_ = 0;  // of nested groups
  ncclResult_t group_result_ = ncclSuccess;
  std::vector<Pending> group_;
  std::map<Identity, std::vector<Hello>> hellos_;
  std::set<Identity> used_;
  std::deque<Hello> said_;  // MPI may still read them
  std::vector<std::shared_ptr<Operation>> abandoned_;
};

void Library::say_hello(const Hello& hello) {
  const MPI_Comm world = world_of_stand_ins();
  said_.push_back(hello);
  int size = 0;
  PMPI_Comm_size(world, &size);
  for (int peer = 0; peer < size; ++peer) {
    if (peer == hello.world_rank) continue;
    MPI_Request request = MPI_REQUEST_NULL;
    PMPI_Isend(&said_.back(), sizeof(Hello), MPI_BYTE, peer, kHelloTag, world, &request);
    PMPI_Request_free(&request);  // ranks outside this communicator never receive it
  }
  hellos_[hello.id].push_back(hello);
}

void Library::hear_hellos() {
  int found = 1;
  while (true) {
    PMPI_Iprobe(MPI_ANY_SOURCE, kHelloTag, world_of_stand_ins(), &found, MPI_STATUS_IGNORE);
    if (!found) return;
    Hello hello;
    PMPI_Recv(&hello, sizeof(hello), MPI_BYTE, MPI_ANY_SOURCE, kHelloTag, world_of_stand_ins(),
              MPI_STATUS_IGNORE);
    hellos_[hello.id].push_back(hello);
  }
}

std::string Library::wrong_with(const std::vector<Hello>& hellos) const {
  std::set<int> ranks;
  for (const Hello& hello : hellos) {
    if (hello.ranks != hellos[0].ranks)
      return fmt::format("ranks {} and {} of one communicator expect {} and {} ranks",
                         hellos[0].rank, hello.rank, hellos[0].ranks, hello.ranks);
    if (!ranks.insert(hello.rank).second)
      return fmt::format("rank {} of a communicator exists twice", hello.rank);
  }
  return {};
}

ncclResult_t Library::join(ncclComm_t* made, int ranks, const Identity& id, int rank) {
  if (std::memcmp(id.magic, kMagic, sizeof(kMagic)) != 0)
    return refuse(ncclInvalidArgument, "the id is not ncclGetUniqueId's");
  if (ranks < 1 || rank < 0 || rank >= ranks)
    return refuse(ncclInvalidArgument, fmt::format("there is no rank {} of {}", rank, ranks));
  if (!used_.insert(id).second)
    return refuse(ncclInvalidUsage, "an id serves one communicator, and one rank of a process");
  if (ranks == 1) return make(made, MPI_COMM_NULL, 0, 1);
  const MPI_Comm world = world_of_stand_ins();
  if (world == MPI_COMM_NULL)
    return refuse(ncclInvalidUsage, "several ranks need MPI_Init before ncclCommInitRank");
  int size = 0, world_rank = 0;
  PMPI_Comm_size(world, &size);
  PMPI_Comm_rank(world, &world_rank);
  if (ranks > size)
    return refuse(ncclInvalidArgument,
                  fmt::format("{} ranks, but mpirun started {} processes", ranks, size));
  say_hello({id, ranks, rank, world_rank});
  std::string wrong;
  wait_until("ncclCommInitRank", [&] {
    hear_hellos();
    wrong = wrong_with(hellos_[id]);
    return !wrong.empty() || hellos_[id].size() == static_cast<size_t>(ranks);
  });
  std::vector<Hello> members = hellos_[id];
  hellos_.erase(id);
  if (!wrong.empty()) return refuse(ncclInvalidArgument, wrong);
  std::sort(members.begin(), members.end(),
            [](const Hello& a, const Hello& b) { return a.rank < b.rank; });
  std::vector<int> world_ranks;
  for (const Hello& member : members) world_ranks.push_back(member.world_rank);
  MPI_Group everyone, group;
  MPI_Comm mpi = MPI_COMM_NULL;
  PMPI_Comm_group(world, &everyone);
  PMPI_Group_incl(everyone, ranks, world_ranks.data(), &group);
  // All ranks have said hello and are here, or will be without waiting for a stream.
  PMPI_Comm_create_group(world, group, kCreateTag, &mpi);
  PMPI_Group_free(&group);
  PMPI_Group_free(&everyone);
  return make(made, mpi, rank, ranks);
}

void Library::remove(const Comm& comm) {
  int finalized = 0;
  PMPI_Finalized(&finalized);
  comm->destroyed = true;
  bool free = !finalized;
  for (const auto& operation : comm->begun) {
    if (!finalized && operation->abandon()) continue;
    abandoned_.push_back(operation);
    free = false;
  }
  comm->begun.clear();
  comms_.erase(comm.get());
  if (free && comm->mpi != MPI_COMM_NULL) PMPI_Comm_free(&comm->mpi);
}

// ---- Calls.

std::string Library::wrong_with(const Call& call) const {
  const Description& what = call.what;
  const auto misplaced = [&](const char* buffer, const std::byte* memory, size_t bytes) {
    if (bytes == 0) return std::string();
    if (!is_device_memory(memory, bytes))
      return fmt::format("the {} buffer, {} bytes, is not in one allocation of the device", buffer,
                         bytes);
    if (reinterpret_cast<uintptr_t>(memory) % size_of(what.type) != 0)
      return fmt::format("the {} buffer is not aligned to its type", buffer);
    return std::string();
  };
  if (size_of(what.type) == 0) return "the type is not supported";
  if (what.op != ncclNumOps && !is_supported(what.op)) return "the reduction is not supported";
  if (call.has_root() && (what.root < 0 || what.root >= call.ranks))
    return fmt::format("there is no rank {} among {}", what.root, call.ranks);
  if (call.point_to_point() && call.ranks == 1) return "there is no other rank to talk to";
  std::string wrong = misplaced("send", call.send, call.send_bytes());
  if (wrong.empty()) wrong = misplaced("receive", call.recv, call.recv_bytes());
  if (!wrong.empty() || call.send_bytes() == 0 || call.recv_bytes() == 0) return wrong;
  const bool apart =
      call.send + call.send_bytes() <= call.recv || call.recv + call.recv_bytes() <= call.send;
  if (!apart && call.send != call.in_place())
    return "the buffers overlap, and are not those of an operation in place";
  return {};
}

ncclResult_t Library::call(Description what, const void* send, void* recv, ncclComm_t handle,
                           cudaStream_t stream) {
  const Comm comm = find(handle);
  if (!comm) return refuse(ncclInvalidArgument, "not a communicator, or one that was destroyed");
  if (comm->error != ncclSuccess) return refuse(comm->error, "the communicator has already failed");
  const Call call{what, static_cast<const std::byte*>(send), static_cast<std::byte*>(recv),
                  comm->rank, comm->ranks};
  const std::string wrong = wrong_with(call);
  if (!wrong.empty())
    return refuse(ncclInvalidArgument, fmt::format("{}: {}", describe(what), wrong));
  if (depth_ == 0) return enqueue({comm, stream, {call}});
  for (Pending& pending : group_) {
    if (pending.comm != comm) continue;
    if (pending.stream != stream)
      return refuse(ncclInvalidUsage, "one communicator on two streams within a group");
    pending.calls.push_back(call);
    return ncclSuccess;
  }
  group_.push_back({comm, stream, {call}});
  return ncclSuccess;
}

ncclResult_t Library::end_group() {
  if (depth_ == 0) return refuse(ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
  if (--depth_ > 0) return ncclSuccess;
  const std::vector<Pending> group = std::exchange(group_, {});
  ncclResult_t result = std::exchange(group_result_, ncclSuccess);
  for (const Pending& pending : group)
    if (result == ncclSuccess) result = enqueue(pending);
  return result;
}

ncclResult_t Library::enqueue(const Pending& pending) {
  std::string name = name_of(pending.calls[0].what.kind);
  if (pending.calls.size() > 1) name = fmt::format("a group of {} calls", pending.calls.size());
  const auto calls = std::make_shared<const std::vector<Call>>(pending.calls);
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  cudaStreamIsCapturing(pending.stream, &capture);
  const bool recorded = capture == cudaStreamCaptureStatusActive && pending.comm->ranks > 1;
  const auto graph = recorded ? pending.comm->graphs : nullptr;
  const auto enqueued = [comm = pending.comm, calls, graph]() -> Start {
    const auto operation = std::make_shared<Operation>(comm, calls);
    comm->waiting.push_back(operation);
    return [operation] { return [operation] { return operation->advance(); }; };
  };
  if (enqueue_in_turn(pending.stream, name, enqueued) == cudaSuccess) return ncclSuccess;
  return refuse(ncclUnhandledCudaError, "the device has failed");
}

Library& library() {
  return Library::instance();
}

ncclResult_t check(const ncclConfig_t* config) {
  const ncclConfig_t valid = NCCL_CONFIG_INITIALIZER;
  if (config == nullptr) return ncclSuccess;
  if (config->size != valid.size || config->magic != valid.magic)
    return library().refuse(ncclInvalidArgument, "a ncclConfig_t without its initializer");
  if (config->blocking == 0)
    return library().refuse(ncclInvalidUsage, "communicators that do not block are not supported");
  return ncclSuccess;
}

// The real call waits until the last such graph is destroyed, for both destroy and abort.
ncclResult_t refuse_graphs(const ncclComm& comm, const char* call) {
  if (comm.graphs.use_count() == 1) return ncclSuccess;
  fail(fmt::format("{} waits forever: graphs hold collectives of the communicator", call));
  return library().refuse(ncclInvalidUsage, "graphs hold collectives of the communicator");
}

// No operation waits for its turn, and all that began are done or were dropped when the device
// failed.
bool is_idle(ncclComm& comm) {
  while (!comm.waiting.empty() && comm.waiting.front().expired()) comm.waiting.pop_front();
  return comm.waiting.empty() &&
         std::all_of(comm.begun.begin(), comm.begun.end(),
                     [](const auto& operation) { return operation.use_count() == 1; });
}

}  // namespace
}  // namespace lathe::cuda_on_cpu

using lathe::cuda_on_cpu::check;
using lathe::cuda_on_cpu::Comm;
using lathe::cuda_on_cpu::Identity;
using lathe::cuda_on_cpu::is_idle;
using lathe::cuda_on_cpu::Kind;
using lathe::cuda_on_cpu::library;
using lathe::cuda_on_cpu::refuse_graphs;

extern "C" {

// ---- The library and its errors.

ncclResult_t ncclGetVersion(int* version) {
  if (version == nullptr) return ncclInvalidArgument;
  *version = NCCL_VERSION_CODE;
  return ncclSuccess;
}
const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess:
      return "no error";
    case ncclUnhandledCudaError:
      return "unhandled cuda error";
    case ncclSystemError:
      return "unhandled system error";
    case ncclInternalError:
      return "internal error";
    case ncclInvalidArgument:
      return "invalid argument";
    case ncclInvalidUsage:
      return "invalid usage";
    case ncclRemoteError:
      return "remote process exited or there was a network error";
    case ncclInProgress:
      return "NCCL operation in progress";
    default:
      return "unknown result code";
  }
}
const char* ncclGetLastError(ncclComm_t) {
  return library().last_error().c_str();
}

// ---- Communicators.

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  if (id == nullptr) return library().refuse(ncclInvalidArgument, "no place for the id");
  std::random_device random;
  Identity identity{};
  std::memcpy(identity.magic, lathe::cuda_on_cpu::kMagic, sizeof(identity.magic));
  for (uint64_t& word : identity.words) word = uint64_t{random()} << 32 | random();
  std::memset(id, 0, sizeof(*id));
  std::memcpy(id, &identity, sizeof(identity));
  return ncclSuccess;
}
// LATHE_NCCL_INIT_HANGS=R: rank R never arrives, as on a network that is not set up correctly.
ncclResult_t ncclCommInitRank(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank) {
  const char* const hangs = std::getenv("LATHE_NCCL_INIT_HANGS");
  while (hangs && rank == std::atoi(hangs)) std::this_thread::sleep_for(std::chrono::seconds(1));
  if (comm == nullptr)
    return library().refuse(ncclInvalidArgument, "no place for the communicator");
  Identity identity;
  std::memcpy(&identity, &id, sizeof(identity));
  return library().join(comm, ranks, identity, rank);
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t* config) {
  const ncclResult_t checked = check(config);
  return checked == ncclSuccess ? ncclCommInitRank(comm, ranks, id, rank) : checked;
}
ncclResult_t ncclCommSplit(ncclComm_t handle, int color, int key, ncclComm_t* part,
                           ncclConfig_t* config) {
  const Comm comm = library().find(handle);
  if (!comm || part == nullptr || (color < 0 && color != NCCL_SPLIT_NOCOLOR))
    return library().refuse(ncclInvalidArgument, "ncclCommSplit: no communicator, or no color");
  if (check(config) != ncclSuccess) return check(config);
  *part = nullptr;
  if (comm->mpi == MPI_COMM_NULL)
    return color < 0 ? ncclSuccess : library().make(part, MPI_COMM_NULL, 0, 1);
  MPI_Comm mpi = MPI_COMM_NULL;
  lathe::cuda_on_cpu::meet("ncclCommSplit", comm->mpi);
  PMPI_Comm_split(comm->mpi, color < 0 ? MPI_UNDEFINED : color, key, &mpi);
  if (mpi == MPI_COMM_NULL) return ncclSuccess;
  int rank = 0, ranks = 0;
  PMPI_Comm_rank(mpi, &rank);
  PMPI_Comm_size(mpi, &ranks);
  return library().make(part, mpi, rank, ranks);
}
ncclResult_t ncclCommDestroy(ncclComm_t handle) {
  const Comm comm = library().find(handle);
  if (!comm) return library().refuse(ncclInvalidArgument, "ncclCommDestroy: not a communicator");
  if (refuse_graphs(*comm, "ncclCommDestroy") != ncclSuccess) return ncclInvalidUsage;
  lathe::cuda_on_cpu::wait_until("ncclCommDestroy", [&] { return is_idle(*comm); });
  library().remove(comm);
  return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t handle) {
  const Comm comm = library().find(handle);
  if (!comm) return library().refuse(ncclInvalidArgument, "ncclCommAbort: not a communicator");
  if (refuse_graphs(*comm, "ncclCommAbort") != ncclSuccess) return ncclInvalidUsage;
  library().remove(comm);
  return ncclSuccess;
}
ncclResult_t ncclCommCount(const ncclComm_t handle, int* count) {
  const Comm comm = library().find(handle);
  if (!comm || count == nullptr) return library().refuse(ncclInvalidArgument, "ncclCommCount");
  *count = comm->ranks;
  return ncclSuccess;
}
ncclResult_t ncclCommUserRank(const ncclComm_t handle, int* rank) {
  const Comm comm = library().find(handle);
  if (!comm || rank == nullptr) return library().refuse(ncclInvalidArgument, "ncclCommUserRank");
  *rank = comm->rank;
  return ncclSuccess;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t handle, ncclResult_t* error) {
  const Comm comm = library().find(handle);
  if (!comm || error == nullptr)
    return library().refuse(ncclInvalidArgument, "ncclCommGetAsyncError");
  *error = comm->error;
  return ncclSuccess;
}

// ---- Groups.

ncclResult_t ncclGroupStart() {
  library().start_group();
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd() {
  return library().end_group();
}

// ---- Communication.

ncclResult_t ncclAllReduce(const void* send, void* recv, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  return library().call({Kind::kAllReduce, type, op, -1, count}, send, recv, comm, stream);
}
ncclResult_t ncclReduceScatter(const void* send, void* recv, size_t count, ncclDataType_t type,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
  return library().call({Kind::kReduceScatter, type, op, -1, count}, send, recv, comm, stream);
}
ncclResult_t ncclAllGather(const void* send, void* recv, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream) {
  return library().call({Kind::kAllGather, type, ncclNumOps, -1, count}, send, recv, comm, stream);
}
ncclResult_t ncclBroadcast(const void* send, void* recv, size_t count, ncclDataType_t type,
                           int root, ncclComm_t comm, cudaStream_t stream) {
  return library().call({Kind::kBroadcast, type, ncclNumOps, root, count}, send, recv, comm,
                        stream);
}
ncclResult_t ncclReduce(const void* send, void* recv, size_t count, ncclDataType_t type,
                        ncclRedOp_t op, int root, ncclComm_t comm, cudaStream_t stream) {
  return library().call({Kind::kReduce, type, op, root, count}, send, recv, comm, stream);
}
ncclResult_t ncclSend(const void* send, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  return library().call({Kind::kSend, type, ncclNumOps, peer, count}, send, nullptr, comm, stream);
}
ncclResult_t ncclRecv(void* recv, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return library().call({Kind::kRecv, type, ncclNumOps, peer, count}, nullptr, recv, comm, stream);
}

}  // extern "C"
