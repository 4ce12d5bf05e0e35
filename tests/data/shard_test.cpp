#include "src/data/shard.h"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

#include "tests/data/temp_dir.h"

namespace lathe {
namespace {

namespace fs = std::filesystem;

std::string shard_bytes(std::vector<int32_t> header, const std::vector<uint16_t>& tokens) {
  header.resize(256);
  std::string bytes(1024 + 2 * tokens.size(), '\0');
  std::memcpy(bytes.data(), header.data(), 1024);
  if (!tokens.empty()) std::memcpy(bytes.data() + 1024, tokens.data(), 2 * tokens.size());
  return bytes;
}

std::vector<int32_t> iota(int64_t count, int32_t first = 0) {
  std::vector<int32_t> values(static_cast<size_t>(count));
  std::iota(values.begin(), values.end(), first);
  return values;
}

TEST(ShardWriter, WritesTheFormatToTheByte) {
  TempDir dir;
  ShardWriter writer(dir.path(), "train");
  writer.append(std::vector<int32_t>{1, 2, 65535});
  writer.append(std::vector<int32_t>{0, 258});
  EXPECT_FALSE(fs::exists(dir / "train_000000.bin")) << "the name appears with the whole content";
  writer.finish();
  EXPECT_EQ(read_text(dir / "train_000000.bin"),
            shard_bytes({20240520, 1, 5}, {1, 2, 65535, 0, 258}));
  EXPECT_EQ(writer.tokens(), 5);
  EXPECT_FALSE(fs::exists(dir / "train_000000.bin.partial"));
}

TEST(ShardWriter, SplitsIntoShards) {
  TempDir dir;
  ShardWriter writer(dir.path(), "val", 4);
  writer.append(iota(3));
  writer.append(iota(8, 3));
  writer.append(iota(1, 11));
  writer.finish();
  ASSERT_EQ(writer.files().size(), 3u);
  const TokenSet tokens(dir.path(), "val");
  std::vector<int32_t> all(12);
  tokens.copy(0, 12, all.data());
  EXPECT_EQ(all, iota(12));
  EXPECT_EQ(tokens.shards()[2].size(), 4);
  EXPECT_EQ(tokens.shards()[2].path().filename(), "val_000002.bin");
}

TEST(ShardWriter, WithoutFinishLeavesNothing) {
  TempDir dir;
  {
    ShardWriter writer(dir.path(), "train");
    writer.append(iota(10));
  }
  EXPECT_TRUE(fs::is_empty(dir.path()));
}

TEST(ShardWriter, RefusesWhatDoesNotFit) {
  TempDir dir;
  ShardWriter writer(dir.path(), "train");
  EXPECT_THROW(writer.append(std::vector<int32_t>{65536}), CheckError);
  EXPECT_THROW(writer.append(std::vector<int32_t>{-1}), CheckError);
}

TEST(ShardWriter, NamesAFolderThatCannotBeWritten) {
  TempDir dir;
  ShardWriter writer(dir / "missing", "train");
  expect_contains(user_error([&] { writer.append(iota(1)); }), "missing/train_000000.bin");
}

TEST(Shard, RefusesDamagedFiles) {
  TempDir dir;
  const std::string good = shard_bytes({20240520, 1, 3}, {1, 2, 3});
  struct Case {
    std::string bytes, said;
  };
  const std::vector<Case> cases = {
      {"", "0 bytes"},
      {good.substr(0, 1023), "1023 bytes"},
      {good.substr(0, good.size() - 1), "truncated"},
      {good.substr(0, 1024), "truncated"},
      {good + "x", "too long"},
      {shard_bytes({20240521, 1, 3}, {1, 2, 3}), "byte 0"},
      {shard_bytes({20240520, 2, 3}, {1, 2, 3}), "byte 4"},
      {shard_bytes({20240520, 1, -3}, {1, 2, 3}), "byte 8"},
      {shard_bytes({20240520, 1, INT32_MAX}, {1, 2, 3}), "truncated"},
      {shard_bytes({20240520, 1, 0}, {1}), "too long"},
  };
  for (const Case& c : cases) {
    const fs::path file = write_text(dir / "train_000000.bin", c.bytes);
    const std::string said = user_error([&] { Shard shard(file); });
    expect_contains(said, "train_000000.bin");
    expect_contains(said, c.said);
  }
}

TEST(Shard, NamesFilesThatCannotBeRead) {
  TempDir dir;
  expect_contains(user_error([&] { Shard shard(dir / "none.bin"); }), "none.bin: No such file");
  expect_contains(user_error([&] { Shard shard(dir.path()); }), "not a regular file");
}

TEST(Shard, NamesATokenOutsideTheVocabulary) {
  TempDir dir;
  const Shard shard(write_text(dir / "train_0.bin", shard_bytes({20240520, 1, 4}, {5, 64, 65, 9})));
  std::vector<int32_t> out(4);
  shard.copy(0, 4, out.data(), 66);
  shard.copy(0, 4, out.data(), 0);
  const std::string said = user_error([&] { shard.copy(1, 3, out.data(), 65); });
  expect_contains(said, "train_0.bin holds token 65 at byte 1028, but the vocabulary has 65");
}

TEST(Shard, MayBeEmpty) {
  TempDir dir;
  EXPECT_EQ(Shard(write_text(dir / "a.bin", shard_bytes({20240520, 1, 0}, {}))).size(), 0);
}

TEST(TokenSet, JoinsShardsOfAnySize) {
  TempDir dir;
  int32_t first = 0;
  int index = 0;
  for (int size : {3, 0, 1, 0, 0, 7, 2, 0}) {
    std::vector<uint16_t> tokens;
    for (int i = 0; i < size; ++i) tokens.push_back(static_cast<uint16_t>(first++));
    write_text(dir / fmt::format("train_{:06}.bin", index++),
               shard_bytes({20240520, 1, size}, tokens));
  }
  const TokenSet set(dir.path(), "train");
  ASSERT_EQ(set.size(), 13);
  for (int64_t at = 0; at <= 13; ++at) {
    for (int64_t count = 0; at + count <= 13; ++count) {
      std::vector<int32_t> out(static_cast<size_t>(count));
      set.copy(at, count, out.data());
      EXPECT_EQ(out, iota(count, static_cast<int32_t>(at)));
    }
  }
  EXPECT_THROW(set.copy(13, 1, nullptr), CheckError);
}

TEST(TokenSet, FindsTheSplit) {
  TempDir dir;
  const std::string bytes = shard_bytes({20240520, 1, 1}, {1});
  EXPECT_TRUE(find_shards(dir.path(), "train").empty());
  for (const char* name : {"fineweb_train_000001.bin", "fineweb_train_000002.bin",
                           "fineweb_val_000000.bin", "training.bin", "train.txt", "x.bin"}) {
    write_text(dir / name, bytes);
  }
  EXPECT_EQ(TokenSet(dir.path(), "train").size(), 2);
  EXPECT_EQ(TokenSet(dir.path(), "val").size(), 1);
  write_text(dir / "train_000000.bin", bytes);
  expect_contains(user_error([&] { TokenSet(dir.path(), "train"); }), "more than one data set");
  expect_contains(user_error([&] { TokenSet(dir.path(), "test"); }), "holds no test_*.bin");
  expect_contains(user_error([&] { TokenSet(dir / "none", "train"); }), "none: No such file");
}

// Two shards of 1.2e9 tokens each; the files are sparse and take only a few blocks.
TEST(TokenSet, HiddenFilesAreNoShards) {
  TempDir dir;
  ShardWriter writer(dir.path(), "train");
  writer.append(iota(3));
  writer.finish();
  write_text(dir / "._train_000000.bin", "what macOS leaves on other disks");
  EXPECT_EQ(TokenSet(dir.path(), "train").size(), 3);
}

TEST(TokenSet, RefusesDataThatAreBeingReplaced) {
  TempDir dir;
  ShardWriter writer(dir.path(), "train");
  writer.append(iota(3));
  writer.finish();
  write_text(dir / kReplacingMark, "");
  for (const char* split : {"train", "val"}) {
    expect_contains(user_error([&] { TokenSet(dir.path(), split); }),
                    dir.path().string() + " may hold old and new data mixed");
  }
}

TEST(TokenSet, ReachesBeyondTwoToThe31) {
  TempDir dir;
  constexpr int64_t kTokens = 1'200'000'000;
  for (int i = 0; i < 2; ++i) {
    const fs::path file = dir / fmt::format("train_{:06}.bin", i);
    write_text(file, shard_bytes({20240520, 1, static_cast<int32_t>(kTokens)}, {}));
    fs::resize_file(file, 1024 + 2 * kTokens);
  }
  const uint16_t mark = 77;
  std::fstream stream(dir / "train_000001.bin", std::ios::in | std::ios::out | std::ios::binary);
  stream.seekp(1024 + 2 * (kTokens - 2));
  stream.write(reinterpret_cast<const char*>(&mark), 2);
  stream.close();
  const TokenSet set(dir.path(), "train", 100);
  ASSERT_EQ(set.size(), 2 * kTokens);
  ASSERT_GT(set.size(), int64_t{1} << 31);
  std::vector<int32_t> out(3);
  set.copy(2 * kTokens - 3, 3, out.data());
  EXPECT_EQ(out, (std::vector<int32_t>{0, 77, 0}));
  const TokenSet strict(dir.path(), "train", 77);
  expect_contains(user_error([&] { strict.copy(2 * kTokens - 3, 3, out.data()); }),
                  "train_000001.bin holds token 77 at byte 2400001020");
}

}  // namespace
}  // namespace lathe
