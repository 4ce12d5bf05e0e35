// Every collective, bit for bit, against a plain loop over the ranks' values.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "kernels/device/with_type.h"
#include "src/comm/collective.h"
#include "tests/comm/harness.h"

namespace lathe::testing {
namespace {

constexpr DType kTypes[] = {DType::fp32,  DType::bf16,  DType::fp64,
                            DType::int32, DType::int64, DType::uint8};
constexpr Reduction kOps[] = {Reduction::sum, Reduction::max, Reduction::min};
// Zero, one, fewer than ranks, primes, several pieces and a bit more.
constexpr int64_t kCounts[] = {0, 1, 2, 17, 1009, 262147};

// Rank r's value at i; every rank that computes it gets the same.
double value_of(int rank, int64_t i, DType dtype) {
  uint64_t x = static_cast<uint64_t>(i) * 0x9e3779b97f4a7c15 + static_cast<uint64_t>(rank) * 77777;
  x ^= x >> 31;
  x *= 0xbf58476d1ce4e5b9;
  x ^= x >> 29;
  switch (dtype) {
    case DType::uint8:
      return static_cast<double>(x % 256);
    case DType::int32:
    case DType::int64:
      return static_cast<double>(static_cast<int32_t>(x));
    default:  // several orders of magnitude, so that the order of a sum shows in its bits
      return static_cast<double>(static_cast<int32_t>(x)) * (1.0 / (uint64_t{1} << (x >> 60) * 2));
  }
}

template <typename T>
T to(double value) {
  if constexpr (std::is_same_v<T, bf16>) {
    return bf16(static_cast<float>(value));
  } else {
    return static_cast<T>(value);
  }
}

Bytes values(int rank, DType dtype, int64_t count) {
  Bytes bytes(static_cast<size_t>(count) * size_of(dtype));
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    for (int64_t i = 0; i < count; ++i) {
      const T value = to<T>(value_of(rank, i, dtype));
      std::memcpy(bytes.data() + static_cast<size_t>(i) * sizeof(T), &value, sizeof(T));
    }
  });
  return bytes;
}

// ((x0 + x1) + x2) + ..., in fp32 for bf16, rounded once (NCCL on the CPU: after each addition);
// integers wrap.
Bytes reduced(int ranks, DType dtype, int64_t count, Reduction op, bool rounds_each_time) {
  Bytes bytes(static_cast<size_t>(count) * size_of(dtype));
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    using W = std::conditional_t<std::is_same_v<T, bf16>, float, T>;
    for (int64_t i = 0; i < count; ++i) {
      W result = static_cast<W>(to<T>(value_of(0, i, dtype)));
      for (int rank = 1; rank < ranks; ++rank) {
        const W x = static_cast<W>(to<T>(value_of(rank, i, dtype)));
        if (op == Reduction::max) result = std::max(result, x);
        if (op == Reduction::min) result = std::min(result, x);
        if (op != Reduction::sum) continue;
        if constexpr (std::is_same_v<T, int32_t>) {
          result = static_cast<int32_t>(static_cast<uint32_t>(result) + static_cast<uint32_t>(x));
        } else {
          result = static_cast<W>(result + x);
          if (rounds_each_time) result = static_cast<W>(static_cast<T>(result));
        }
      }
      const T value = static_cast<T>(result);
      std::memcpy(bytes.data() + static_cast<size_t>(i) * sizeof(T), &value, sizeof(T));
    }
  });
  return bytes;
}

Bytes part(const Bytes& all, int rank, int ranks) {
  const auto bytes = static_cast<long>(all.size() / static_cast<size_t>(ranks));
  return Bytes(all.begin() + rank * bytes, all.begin() + (rank + 1) * bytes);
}

Bytes joined(int ranks, DType dtype, int64_t count) {
  Bytes all;
  for (int rank = 0; rank < ranks; ++rank) {
    const Bytes mine = values(rank, dtype, count);
    all.insert(all.end(), mine.begin(), mine.end());
  }
  return all;
}

class CommunicatorTest : public ::testing::TestWithParam<Variant> {
 protected:
  CommunicatorTest() : ranks_(GetParam().kind) { set_stream_seed(GetParam().seed); }

  Communicator& comm() { return *ranks_.comm; }
  int rank() { return comm().rank(); }
  int size() { return comm().size(); }
  Device& device() { return *ranks_.device; }
  Array array(DType dtype, const Bytes& bytes) { return {device(), dtype, bytes}; }
  Array fresh(DType dtype, int64_t count) { return {device(), dtype, count}; }

  Bytes expected(DType dtype, int64_t count, Reduction op) {
    return reduced(size(), dtype, count, op, GetParam().kind == CommKind::nccl);
  }

  // Runs what `calls` enqueues after the uploads, and waits for it.
  void together(const std::function<void()>& calls) {
    comm().after_device();
    calls();
    comm().device_after(comm().last());
  }

  // `divisor` divides the largest count if the tensor is one of many blocks.
  static void for_all(int divisor, const std::function<void(DType, int64_t)>& body) {
    for (const DType dtype : kTypes) {
      for (int64_t count : kCounts) {
        const bool large = count == *std::max_element(std::begin(kCounts), std::end(kCounts));
        if (large && GetParam().seed > 1) continue;  // the order of streams does not depend on it
        if (large) count = count / divisor;
        SCOPED_TRACE(fmt::format("{} {}", count, name_of(dtype)));
        body(dtype, count);
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
  }

  Ranks ranks_;
};

TEST(Collective, IsDescribedWithBothHalves) {
  const Collective both{.kind = CollectiveKind::send_receive,
                        .dtype = DType::fp32,
                        .root = 1,
                        .count = 5,
                        .what = "ring",
                        .from = 0,
                        .received_count = 7,
                        .received_dtype = DType::bf16};
  const RankGroup tp{.name = "tp", .ranks = {4, 6}};
  EXPECT_EQ(describe(translated(both, tp)),
            "send_receive of 5 fp32 to 6 'ring', and 7 bf16 from 4");
  EXPECT_EQ(tp.text(), " of tp (ranks 4 and 6)");
  const RankGroup dp{.name = "dp", .ranks = {0, 8, 16, 24, 32, 40, 48, 56, 64}};
  EXPECT_EQ(dp.text(), " of dp (ranks 0, 8, ..., 64)");
}

TEST_P(CommunicatorTest, KnowsItsKind) {
  EXPECT_EQ(comm().kind(),
            size() == 1 && GetParam().kind == CommKind::mpi ? CommKind::self : GetParam().kind);
}

TEST_P(CommunicatorTest, AllReduce) {
  for_all(1, [&](DType dtype, int64_t count) {
    const Array in = array(dtype, values(rank(), dtype, count)), out = fresh(dtype, count);
    for (const Reduction op : kOps) {
      together([&] { comm().all_reduce(out.tensor(), in.tensor(), op, "test"); });
      EXPECT_TRUE(out.bytes() == expected(dtype, count, op));
      EXPECT_TRUE(in.bytes() == values(rank(), dtype, count));
    }
    together([&] { comm().all_reduce(in.tensor(), in.tensor(), Reduction::sum, "in place"); });
    EXPECT_TRUE(in.bytes() == expected(dtype, count, Reduction::sum));
  });
}

TEST_P(CommunicatorTest, Reduce) {
  for_all(1, [&](DType dtype, int64_t count) {
    const int root = static_cast<int>(count) % size();
    const Array in = array(dtype, values(rank(), dtype, count));
    const Array out = fresh(dtype, rank() == root ? count : 0);
    for (const Reduction op : kOps) {
      together([&] { comm().reduce(out.tensor(), in.tensor(), op, root, "test"); });
      EXPECT_TRUE(rank() != root || out.bytes() == expected(dtype, count, op));
    }
    together([&] { comm().reduce(in.tensor(), in.tensor(), Reduction::sum, root, "in place"); });
    EXPECT_TRUE(in.bytes() == (rank() == root ? expected(dtype, count, Reduction::sum)
                                              : values(rank(), dtype, count)));
  });
}

TEST_P(CommunicatorTest, ReduceScatter) {
  for_all(size(), [&](DType dtype, int64_t count) {
    const Array all = array(dtype, values(rank(), dtype, count * size()));
    const Array mine = fresh(dtype, count);
    for (const Reduction op : kOps) {
      together([&] { comm().reduce_scatter(mine.tensor(), all.tensor(), op, "test"); });
      EXPECT_TRUE(mine.bytes() == part(expected(dtype, count * size(), op), rank(), size()));
    }
    const Tensor own = all.rows(rank() * count, count);
    together([&] { comm().reduce_scatter(own, all.tensor(), Reduction::sum, "in place"); });
    // This rank's part is the sum; the other parts are unchanged.
    const Bytes sums = expected(dtype, count * size(), Reduction::sum);
    const Bytes before = values(rank(), dtype, count * size()), after = all.bytes();
    for (int r = 0; r < size(); ++r)
      EXPECT_TRUE(part(after, r, size()) == part(r == rank() ? sums : before, r, size()));
  });
}

TEST_P(CommunicatorTest, AllGather) {
  for_all(size(), [&](DType dtype, int64_t count) {
    const Array mine = array(dtype, values(rank(), dtype, count));
    const Array all = fresh(dtype, count * size());
    together([&] { comm().all_gather(all.tensor(), mine.tensor(), "test"); });
    EXPECT_TRUE(all.bytes() == joined(size(), dtype, count));
    const Array in_place = fresh(dtype, count * size());
    const Tensor own = in_place.rows(rank() * count, count);
    if (count > 0) device().upload(own, values(rank(), dtype, count).data());
    together([&] { comm().all_gather(in_place.tensor(), own, "in place"); });
    EXPECT_TRUE(in_place.bytes() == joined(size(), dtype, count));
  });
}

// Also more than a communicator may have room for at a time.
TEST_P(CommunicatorTest, CopiesAmongTheCollectives) {
  const int64_t count = (int64_t{40} << 20) + 3;
  const Array from = fresh(DType::uint8, count), to = fresh(DType::uint8, count);
  const Array sums = fresh(DType::int32, 1);
  const int32_t one = 1;
  for (const int64_t place : {int64_t{0}, int64_t{33} << 20, count - 1}) {
    const auto value = static_cast<uint8_t>(place % 200 + rank());
    device().upload(from.rows(place, 1), &value);
  }
  device().upload(sums.tensor(), &one);
  together([&] {
    comm().all_reduce(sums.tensor(), sums.tensor(), Reduction::sum, "before");
    comm().copy(to.tensor(), from.tensor(), "copy");
    comm().all_reduce(sums.tensor(), sums.tensor(), Reduction::sum, "after");
  });
  for (const int64_t place : {int64_t{0}, int64_t{33} << 20, count - 1}) {
    uint8_t value = 0;
    device().download(&value, to.rows(place, 1));
    EXPECT_EQ(value, static_cast<uint8_t>(place % 200 + rank())) << place;
  }
  int32_t sum = 0;
  device().download(&sum, sums.tensor());
  EXPECT_EQ(sum, size() * size());
}

TEST_P(CommunicatorTest, GatherAndScatter) {
  for_all(size(), [&](DType dtype, int64_t count) {
    const int root = static_cast<int>(count) % size();
    const Array mine = array(dtype, values(rank(), dtype, count));
    const Array all = fresh(dtype, rank() == root ? count * size() : 0);
    const Array back = fresh(dtype, count);
    together([&] { comm().gather(all.tensor(), mine.tensor(), root, "test"); });
    EXPECT_TRUE(rank() != root || all.bytes() == joined(size(), dtype, count));
    together([&] { comm().scatter(back.tensor(), all.tensor(), root, "test"); });
    EXPECT_TRUE(back.bytes() == values(rank(), dtype, count));
  });
}

TEST_P(CommunicatorTest, Broadcast) {
  for_all(1, [&](DType dtype, int64_t count) {
    for (int root = 0; root < size(); ++root) {
      const Array tensor = array(dtype, values(rank(), dtype, count));
      together([&] { comm().broadcast(tensor.tensor(), root, "test"); });
      EXPECT_TRUE(tensor.bytes() == values(root, dtype, count));
    }
  });
}

// Around the ring: even ranks send first, odd ranks receive first.
TEST_P(CommunicatorTest, SendAndReceive) {
  if (size() == 1) GTEST_SKIP() << "there is nobody else";
  for_all(size(), [&](DType dtype, int64_t count) {
    const int next = (rank() + 1) % size(), before = (rank() + size() - 1) % size();
    const Array mine = array(dtype, values(rank(), dtype, count)), theirs = fresh(dtype, count);
    together([&] {
      if (rank() % 2 == 0) comm().send(mine.tensor(), next, "on");
      comm().receive(theirs.tensor(), before, "from behind");
      if (rank() % 2 == 1) comm().send(mine.tensor(), next, "on");
    });
    EXPECT_TRUE(theirs.bytes() == values(before, dtype, count));
  });
}

// Around the ring, all at the same time; what comes has another size and type than what goes.
TEST_P(CommunicatorTest, SendsAndReceivesAtTheSameTime) {
  if (size() == 1) GTEST_SKIP() << "there is nobody else";
  const auto type_of = [](int rank) {
    return kTypes[static_cast<size_t>(rank) % std::size(kTypes)];
  };
  for (const int64_t base : {0, 1, 1009, 262147}) {
    const auto count_of = [base](int rank) { return base * (rank + 1); };
    const int next = (rank() + 1) % size(), before = (rank() + size() - 1) % size();
    const Array mine = array(type_of(rank()), values(rank(), type_of(rank()), count_of(rank())));
    const Array theirs = fresh(type_of(before), count_of(before));
    const Array from_next = fresh(type_of(next), count_of(next));
    together([&] {
      comm().send_receive(mine.tensor(), next, theirs.tensor(), before, "up");
      comm().send_receive(mine.tensor(), before, from_next.tensor(), next, "down");
    });
    EXPECT_TRUE(theirs.bytes() == values(before, type_of(before), count_of(before))) << base;
    EXPECT_TRUE(from_next.bytes() == values(next, type_of(next), count_of(next))) << base;
  }
}

// Bytes that differ from place to place and from rank to rank.
Bytes pattern(int rank, int64_t count) {
  Bytes bytes(static_cast<size_t>(count));
  for (size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<std::byte>(i * 7 + (i >> 11) + static_cast<size_t>(rank) * 31);
  return bytes;
}

// More than a communicator may have room for at a time: around a ring of unequal messages, and
// through calls that are not the same on both sides.
TEST_P(CommunicatorTest, MessagesOfAnySizeMatch) {
  if (size() == 1) GTEST_SKIP() << "there is nobody else";
  const auto count_of = [](int rank) {
    return rank == 0 ? (int64_t{36} << 20) + 5 : (int64_t{1} << 20) + rank;
  };
  const int next = (rank() + 1) % size(), before = (rank() + size() - 1) % size();
  const Array mine = array(DType::uint8, pattern(rank(), count_of(rank())));
  const Array theirs = fresh(DType::uint8, count_of(before));
  together([&] { comm().send_receive(mine.tensor(), next, theirs.tensor(), before, "ring"); });
  EXPECT_TRUE(theirs.bytes() == pattern(before, count_of(before)));
  // Rank 0 sends and receives at once, rank 1 first receives and then answers, and the other way
  // round.
  if (rank() > 1) return;
  const Array back = fresh(DType::uint8, count_of(1 - rank()));
  for (const int first : {0, 1}) {
    device().zero(back.tensor());
    together([&] {
      if (rank() == first) {
        comm().send_receive(mine.tensor(), 1 - rank(), back.tensor(), 1 - rank(), "at once");
      } else if (first == 1 || GetParam().kind != CommKind::mpi ||
                 device().kind() == DeviceKind::cpu) {
        comm().receive(back.tensor(), 1 - rank(), "first");
        comm().send(mine.tensor(), 1 - rank(), "then");
      } else {
        comm().send(mine.tensor(), 1 - rank(), "first");
        comm().receive(back.tensor(), 1 - rank(), "then");
      }
    });
    EXPECT_TRUE(back.bytes() == pattern(1 - rank(), count_of(1 - rank()))) << first;
  }
}

// Checks some collectives of a part whose ranks are these ranks of the whole.
void check_part(Communicator& part, Device& device, const std::vector<int>& ranks, int me) {
  const int64_t count = 5003;
  const auto n = static_cast<int64_t>(ranks.size());
  ASSERT_EQ(part.size(), n);
  ASSERT_EQ(ranks.at(static_cast<size_t>(part.rank())), me);
  Bytes all;
  std::vector<int64_t> sums(static_cast<size_t>(count));
  for (const int rank : ranks) {
    const Bytes theirs = values(rank, DType::int64, count);
    all.insert(all.end(), theirs.begin(), theirs.end());
    for (int64_t i = 0; i < count; ++i)
      sums[static_cast<size_t>(i)] += to<int64_t>(value_of(rank, i, DType::int64));
  }
  const Array mine(device, DType::int64, values(me, DType::int64, count));
  const Array sum(device, DType::int64, count), gathered(device, DType::int64, count * n);
  const Array first(device, DType::int64, values(me, DType::int64, count));
  part.after_device();
  part.all_reduce(sum.tensor(), mine.tensor(), Reduction::sum, "sum of a part");
  part.all_gather(gathered.tensor(), mine.tensor(), "all of a part");
  part.broadcast(first.tensor(), static_cast<int>(n) - 1, "the last of a part");
  part.device_after(part.last());
  Bytes wanted(sums.size() * sizeof(int64_t));
  std::memcpy(wanted.data(), sums.data(), wanted.size());
  EXPECT_TRUE(sum.bytes() == wanted);
  EXPECT_TRUE(gathered.bytes() == all);
  EXPECT_TRUE(first.bytes() == values(ranks.back(), DType::int64, count));
  std::vector<int32_t> numbers(ranks.size());
  part.exchange(numbers.data(), &me, sizeof(me));
  EXPECT_EQ(numbers, std::vector<int32_t>(ranks.begin(), ranks.end()));
  part.barrier();
}

TEST_P(CommunicatorTest, SplitsIntoParts) {
  std::vector<int> even, odd, backwards, both;
  for (int r = 0; r < size(); ++r) {
    (r % 2 ? odd : even).push_back(r);
    backwards.insert(backwards.begin(), r);
    if (r < 2) both.push_back(r);
  }
  const std::vector<int>& like_me = rank() % 2 ? odd : even;
  const auto parity = comm().split(rank() % 2, 0, static_cast<int>(like_me.size()), "parity");
  const auto reversed = comm().split(7, -rank(), size(), "reversed");
  const auto alone = comm().split(rank(), 0, 1, "alone");
  const auto first_two =
      comm().split(rank() < 2 ? 3 : -1, 0, static_cast<int>(both.size()), "first two");
  check_part(*parity, device(), like_me, rank());
  check_part(*reversed, device(), backwards, rank());
  check_part(*alone, device(), {rank()}, rank());
  EXPECT_EQ(alone->kind(), CommKind::self);
  EXPECT_EQ(first_two != nullptr, rank() < 2);
  if (first_two) check_part(*first_two, device(), both, rank());
  // A part of a part.
  const int half = parity->size() / 2, second = parity->rank() < half ? 0 : 1;
  const std::vector<int> rest(like_me.begin() + (second ? half : 0),
                              second ? like_me.end() : like_me.begin() + half);
  const auto halves = parity->split(second, 0, static_cast<int>(rest.size()), "half");
  check_part(*halves, device(), rest, rank());
  check_part(
      comm(), device(),
      [&] {
        std::vector<int> all;
        for (int r = 0; r < size(); ++r) all.push_back(r);
        return all;
      }(),
      rank());
}

// Two parts and the whole in one recording, each on the results of the one before, in an order that
// is the same on all ranks.
TEST_P(CommunicatorTest, PartsAreRecordedTogether) {
  const auto parity = comm().split(rank() % 2, 0, (size() + 1 - rank() % 2) / 2, "parity");
  const auto pairs = comm().split(rank() / 2, 0, std::min(2, size() - rank() / 2 * 2), "pair");
  const int64_t count = 1009;
  const Array x = fresh(DType::int64, count);
  const auto step = [&] {
    for (Communicator* c : {parity.get(), &comm(), pairs.get()}) {
      c->after_device();
      c->all_reduce(x.tensor(), x.tensor(), Reduction::sum, "in turn");
      c->device_after(c->last());
    }
  };
  for (int i = 0; i < 6; ++i) {
    device().upload(x.tensor(), values(rank() + i, DType::int64, count).data());
    device().replay(0, step);
    for (const int64_t at : {int64_t{0}, count - 1}) {
      std::vector<int64_t> v(static_cast<size_t>(size()));
      for (int r = 0; r < size(); ++r)
        v[static_cast<size_t>(r)] = to<int64_t>(value_of(r + i, at, DType::int64));
      const auto add = [&](const std::function<bool(int, int)>& together_are) {
        std::vector<int64_t> sums(v.size());
        for (int a = 0; a < size(); ++a)
          for (int b = 0; b < size(); ++b)
            if (together_are(a, b)) sums[static_cast<size_t>(a)] += v[static_cast<size_t>(b)];
        v = sums;
      };
      add([](int a, int b) { return a % 2 == b % 2; });
      add([](int, int) { return true; });
      add([](int a, int b) { return a / 2 == b / 2; });
      int64_t result = 0;
      device().download(&result, x.rows(at, 1));
      EXPECT_EQ(result, v[static_cast<size_t>(rank())]);
    }
  }
  device().synchronize();
  device().forget_recordings();
}

TEST_P(CommunicatorTest, AllReduceIsReduceScatterAndAllGather) {
  for (const DType dtype : {DType::fp32, DType::bf16}) {
    const int64_t count = 50021;
    const Array in = array(dtype, values(rank(), dtype, count * size()));
    const Array at_once = fresh(dtype, count * size()), in_two = fresh(dtype, count * size());
    const Tensor own = in_two.rows(rank() * count, count);
    together([&] {
      comm().all_reduce(at_once.tensor(), in.tensor(), Reduction::sum, "at once");
      comm().reduce_scatter(own, in.tensor(), Reduction::sum, "first half");
      comm().all_gather(in_two.tensor(), own, "second half");
    });
    EXPECT_TRUE(at_once.bytes() == in_two.bytes());
  }
}

TEST_P(CommunicatorTest, NaNsReachEveryRank) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (int bad = 0; bad < size(); ++bad) {
    std::vector<float> numbers{1.0f, rank() == bad ? nan : 2.0f, -3.0f};
    Bytes bytes(numbers.size() * sizeof(float));
    std::memcpy(bytes.data(), numbers.data(), bytes.size());
    const Array in = array(DType::fp32, bytes), out = fresh(DType::fp32, 3);
    together([&] { comm().all_reduce(out.tensor(), in.tensor(), Reduction::sum, "with a NaN"); });
    std::vector<float> result(3);
    device().download(result.data(), out.tensor());
    EXPECT_FALSE(std::isnan(result[0]) || std::isnan(result[2]));
    EXPECT_TRUE(std::isnan(result[1]));
  }
}

// More calls than can wait at a time, each on the result of the previous one; nobody waits in
// between.
TEST_P(CommunicatorTest, CallsAreDoneInOrder) {
  const int64_t count = 37, calls = 3000;
  const Array ones = array(DType::int64, [&] {
    Bytes bytes(static_cast<size_t>(count) * sizeof(int64_t));
    const std::vector<int64_t> one(static_cast<size_t>(count), rank() == 0 ? 1 : 0);
    std::memcpy(bytes.data(), one.data(), bytes.size());
    return bytes;
  }());
  comm().after_device();
  Ticket before = 0;
  for (int64_t i = 0; i < calls; ++i) {
    const Ticket ticket =
        i % 3 == 2 ? comm().broadcast(ones.tensor(), static_cast<int>(i) % size(), "b")
                   : comm().all_reduce(ones.tensor(), ones.tensor(), Reduction::max, "m");
    EXPECT_GT(ticket, before);
    EXPECT_EQ(comm().last(), ticket);
    before = ticket;
  }
  comm().device_after(before);
  std::vector<int64_t> result(static_cast<size_t>(count));
  device().download(result.data(), ones.tensor());
  EXPECT_EQ(result, std::vector<int64_t>(static_cast<size_t>(count), 1));
}

// Two recordings by turns, with collectives in between: each replay reads the current values, sums
// them and writes the sum to its place.
TEST_P(CommunicatorTest, RecordingsRepeat) {
  const int64_t count = 5003;
  const Array in = fresh(DType::fp32, count * size()), sum = fresh(DType::fp32, count * size());
  const Array out = fresh(DType::fp32, count * size()), part_out = fresh(DType::fp32, count);
  const auto body = [&] {
    comm().mark(0);
    device().copy(sum.tensor(), in.tensor());
    comm().after_device();
    const Ticket first =
        comm().all_reduce(sum.tensor(), sum.tensor(), Reduction::sum, "recorded sum");
    const Ticket second =
        comm().reduce_scatter(part_out.tensor(), in.tensor(), Reduction::sum, "recorded part");
    comm().device_after(first);
    device().copy(out.tensor(), sum.tensor());
    device().zero(sum.tensor());
    comm().mark(1);
    comm().device_after(second);
    comm().device_after(comm().last());
  };
  for (int step = 0; step < 7; ++step) {
    device().upload(in.tensor(), values(rank() + step, DType::fp32, count * size()).data());
    device().replay(step % 2, body);
    Bytes wanted(in.tensor().bytes());
    std::vector<float> x(static_cast<size_t>(count * size()));
    for (int r = 0; r < size(); ++r) {
      const Bytes theirs = values(r + step, DType::fp32, count * size());
      for (size_t i = 0; i < x.size(); ++i) {
        float value = 0;
        std::memcpy(&value, theirs.data() + i * sizeof(float), sizeof(float));
        x[i] = r == 0 ? value : x[i] + value;
      }
    }
    std::memcpy(wanted.data(), x.data(), wanted.size());
    EXPECT_TRUE(out.bytes() == wanted);
    EXPECT_TRUE(part_out.bytes() == part(wanted, rank(), size()));
    if (step % 3 == 0) {  // outside of a recording
      const Array more = array(DType::int32, values(rank(), DType::int32, 11));
      together([&] { comm().broadcast(more.tensor(), size() - 1, "between"); });
      EXPECT_TRUE(more.bytes() == values(size() - 1, DType::int32, 11));
      comm().barrier();
    } else {  // the host waits for it, and the device does not
      const Array more = array(DType::int32, values(rank(), DType::int32, 11));
      comm().after_device();
      comm().wait(comm().broadcast(more.tensor(), size() - 1, "before"));
      EXPECT_TRUE(more.bytes() == values(size() - 1, DType::int32, 11));
    }
  }
}

// A rank that ends with an error waits for nobody, even if its recordings hold collectives.
TEST_P(CommunicatorTest, AnErrorEndsItBesideItsRecordings) {
  if (comm().kind() != CommKind::nccl)
    GTEST_SKIP() << "for NCCL, which does not let go of recordings";
  const Array sum = fresh(DType::fp32, 100);
  for (int step = 0; step < 3; ++step) {
    device().replay(0, [&] {
      together([&] { comm().all_reduce(sum.tensor(), sum.tensor(), Reduction::sum, "recorded"); });
    });
  }
  try {
    const std::unique_ptr<Communicator> ended = std::move(ranks_.comm);
    throw CheckError("an error");
  } catch (const CheckError&) {
  }
  EXPECT_NO_THROW(device().synchronize());
}

TEST_P(CommunicatorTest, MarksTellWhenTheLineCameBy) {
  const Array tensor = array(DType::fp32, values(rank(), DType::fp32, 100003));
  comm().after_device();
  comm().mark(0);
  comm().all_reduce(tensor.tensor(), tensor.tensor(), Reduction::sum, "between marks");
  comm().mark(1);
  comm().wait(comm().last());
  device().synchronize();
  EXPECT_GT(device().milliseconds_between(0, 1), 0);
}

TEST_P(CommunicatorTest, ExchangesHostMemoryAndTexts) {
  std::vector<int32_t> all(static_cast<size_t>(size()));
  const int32_t mine = 10 + rank();
  comm().exchange(all.data(), &mine, sizeof(mine));
  for (int r = 0; r < size(); ++r) EXPECT_EQ(all[static_cast<size_t>(r)], 10 + r);
  const auto text = [](int r) { return std::string(static_cast<size_t>(r) * 300, 'a' + r); };
  const std::vector<std::string> texts = comm().exchange_text(text(rank()));
  ASSERT_EQ(texts.size(), static_cast<size_t>(size()));
  for (int r = 0; r < size(); ++r) EXPECT_EQ(texts[static_cast<size_t>(r)], text(r));
  comm().barrier();
}

// More elements than 31 bits can count. Takes 4.3 GB per rank, so it has its own ctest entry
// (communicator_large_test), and none in sanitizer builds.
TEST_P(CommunicatorTest, DISABLED_CountsBeyond2To31) {
  const double gigabytes = 1e-9 * static_cast<double>(::sysconf(_SC_PHYS_PAGES)) *
                           static_cast<double>(::sysconf(_SC_PAGESIZE));
  if (gigabytes < 12) GTEST_SKIP() << "two ranks need 9 GB of memory";
  ASSERT_EQ(size(), 2);
  const int64_t half = (int64_t{1} << 30) + 12345, count = 2 * half;
  const Array all(device(), DType::uint8, count), other(device(), DType::uint8, count);
  const int64_t places[] = {0,        77, half - 1, half, (int64_t{1} << 31) - 1, int64_t{1} << 31,
                            count - 1};
  const auto put = [&](int64_t place, uint8_t value) {
    device().upload(all.rows(place, 1), &value);
  };
  const auto at = [&](const Array& array, int64_t place) {
    uint8_t value = 0;
    device().download(&value, array.rows(place, 1));
    return int{value};
  };
  for (int64_t place : places) put(place, static_cast<uint8_t>(place % 50 + 100 * rank()));
  together([&] { comm().all_reduce(other.tensor(), all.tensor(), Reduction::sum, "large"); });
  for (int64_t place : places) EXPECT_EQ(at(other, place), (2 * (place % 50) + 100) % 256) << place;
  EXPECT_EQ(at(other, half - 2), 0);
  together([&] { comm().broadcast(all.tensor(), 1, "large"); });
  for (int64_t place : places) EXPECT_EQ(at(all, place), place % 50 + 100) << place;
  const uint8_t own = static_cast<uint8_t>(7 + rank());
  device().upload(all.rows(rank() * half + 5, 1), &own);
  together([&] { comm().all_gather(all.tensor(), all.rows(rank() * half, half), "large"); });
  EXPECT_EQ(at(all, 5), 7);
  EXPECT_EQ(at(all, half + 5), 8);
}

// With any number of collectives in flight after it: a step of a deep model has hundreds.
TEST_P(CommunicatorTest, TheDeviceWaitsForNothingBehindWhatItAskedFor) {
  if (device().kind() == DeviceKind::cuda && comm().kind() == CommKind::mpi) {
    GTEST_SKIP() << "where CUDA runs on the CPU, a function of the host holds up all streams";
  }
  const Array first = fresh(DType::fp32, 5), late = fresh(DType::fp32, 1);
  const auto all_reduce = [&](const Array& array) {
    return comm().all_reduce(array.tensor(), array.tensor(), Reduction::sum, "test");
  };
  const auto meet = [&] {
    std::vector<int> all(static_cast<size_t>(size()));
    const int mine = rank();
    ranks_.world.exchange(all.data(), &mine, sizeof(mine), "test");
  };
  comm().after_device();
  const Ticket wanted = all_reduce(first);
  // The others join the next collectives only when rank 0's device is done and has met them.
  if (rank() != 0) meet();
  for (int i = 0; i < 600; ++i) all_reduce(late);
  if (rank() == 0) {
    comm().device_after(wanted);
    device().synchronize();
    meet();
  }
  comm().device_after(comm().last());
  device().synchronize();
}

INSTANTIATE_TEST_SUITE_P(Kinds, CommunicatorTest, ::testing::ValuesIn(variants_under_test()),
                         [](const auto& info) {
                           return std::string(name_of(info.param.kind)) +
                                  std::to_string(info.param.seed);
                         });

}  // namespace
}  // namespace lathe::testing
