#include "src/io/checkpoint.h"

#include <algorithm>

#include "src/io/safetensors.h"
#include "src/io/trainer_state.h"
#include "tests/io/scratch.h"

namespace lathe {
namespace {

namespace fs = std::filesystem;

fs::path save(const fs::path& out, int64_t step) {
  CheckpointWriter writer(out, step);
  writer.write("trainer.json", "{\"step\": " + std::to_string(step) + "}");
  SafetensorsWriter weights(writer.path("model.safetensors"));
  weights.declare("w", DType::fp32, {8});
  const float values[8] = {static_cast<float>(step)};
  weights.write("w", values, sizeof(values));
  writer.add("model.safetensors", weights.finish());
  EXPECT_TRUE(writer.commit());
  return out / checkpoint_name(step);
}

std::vector<std::string> names_in(const fs::path& dir) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(dir)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

using Names = std::vector<std::string>;

TEST(CheckpointName, IsReadBackAndNothingElseIs) {
  for (int64_t step :
       {int64_t{0}, int64_t{1000}, int64_t{99999999}, int64_t{100000000}, INT64_MAX}) {
    EXPECT_EQ(checkpoint_step(checkpoint_name(step)), step);
  }
  EXPECT_EQ(checkpoint_name(1000), "step-00001000");
  for (const char* name : {"", "step-", "step-1", "step-0000100", "step-000001000", "step--0001000",
                           "step-00001000.partial", "step-0000100x", "Step-00001000",
                           "step-99999999999999999999", "step- 0001000", "step-+0001000"}) {
    EXPECT_FALSE(checkpoint_step(name)) << name;
  }
}

TEST(Manifest, SurvivesTheWayThroughText) {
  Manifest manifest{
      7, {{"a \"b\"", {UINT64_MAX, std::string(32, '0')}}, {"c", {0, std::string(32, 'f')}}}};
  EXPECT_EQ(parse_manifest(to_json(manifest), "m"), manifest);
  EXPECT_EQ(parse_manifest(to_json(Manifest{}), "m"), Manifest{});
}

// A manifest's text with one part replaced. The checksum is then wrong too, but is checked last.
std::string edited(const std::string& from, const std::string& to) {
  std::string text = to_json(Manifest{7, {{"model", {5, std::string(32, 'a')}}}});
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(Manifest, RefusesWhatIsNotOne) {
  const std::string a32(32, 'a');
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "not valid JSON"},
      {"{}", "\"format\" is missing"},
      {"[]", "expected an object"},
      {std::string(1000, '['), "nested"},
      {edited("lathe checkpoint", "a checkpoint"), "expected \"lathe checkpoint\""},
      {edited("\"version\": 1", "\"version\": 2"), "version 2"},
      {edited("\"step\": 7", "\"step\": -7"), "step"},
      {edited("\"step\": 7", "\"step\": 8"), "is damaged"},
      {edited("\"step\": 7", "\"step\": 7, \"step\": 7"), "twice"},
      {edited("\"size\": 5", "\"size\": 6"), "is damaged"},
      {edited("\"size\": 5", "\"size\": -1"), "files.model.size"},
      {edited("\"size\": 5", "\"size\": 5.0"), "files.model.size"},
      {edited("\"size\": 5,", ""), "files.model.size"},
      {edited("\"size\": 5", "\"size\": 5, \"more\": 1"), "files.model.more"},
      {edited(a32, std::string(31, 'a')), "32 hexadecimal digits"},
      {edited(a32, std::string(32, 'A')), "32 hexadecimal digits"},
      {edited("\"model\"", "\"../model\""), "not the name of a file"},
      {edited("\"model\"", "\"/etc/passwd\""), "not the name of a file"},
      {edited("\"model\"", "\"..\""), "not the name of a file"},
      {edited("\"model\"", "\"\""), "not the name of a file"},
      {edited("\"model\"", "\"manifest.json\""), "not the name of a file"},
      {edited("\"model\"", "\"a\\u0000b\""), "not the name of a file"},
      {edited("\"checksum\"", "\"extra\": 1, \"checksum\""), "unknown key \"extra\""},
      {edited("\"checksum\"", "\"chksum\""), "\"checksum\" is missing"},
  };
  for (const auto& [text, complaint] : cases) {
    const std::string message = message_of<UserError>([&] { parse_manifest(text, "d/manifest"); });
    EXPECT_CONTAINS(message, "d/manifest");
    EXPECT_CONTAINS(message, complaint);
  }
}

TEST(CheckpointWriter, MakesADirectoryThatVerifies) {
  const Scratch scratch;
  const fs::path out = scratch / "runs/first/";  // created with all its parents
  const fs::path dir = save(out, 1000);
  EXPECT_EQ(names_in(out), Names{"step-00001000"});
  EXPECT_EQ(names_in(dir), (Names{"manifest.json", "model.safetensors", "trainer.json"}));
  const Manifest manifest = verify_checkpoint(dir);
  EXPECT_EQ(manifest.step, 1000);
  EXPECT_EQ(manifest.files.at("model.safetensors"), digest_file(dir / "model.safetensors"));
  EXPECT_EQ(manifest.files.size(), 2u);
  EXPECT_EQ(find_latest_checkpoint(out), dir);
}

TEST(CheckpointWriter, TakesUpFilesThatItWasNotToldOf) {
  const Scratch scratch;
  CheckpointWriter writer(scratch.path(), 1);
  spill(writer.path("config.json"), "{}");
  EXPECT_TRUE(writer.commit());
  EXPECT_EQ(verify_checkpoint(scratch / "step-00000001").files.count("config.json"), 1u);
  EXPECT_THROW(writer.commit(), CheckError);
}

TEST(CheckpointWriter, RefusesWhatIsNotComplete) {
  const Scratch scratch;
  {
    CheckpointWriter writer(scratch.path(), 1);
    EXPECT_THROW(writer.add("../a", {0, std::string(32, '0')}), CheckError);
    EXPECT_THROW(writer.add("a", {0, "0"}), CheckError);
    writer.write("a", "text");
    EXPECT_THROW(writer.write("a", "text"), CheckError);
    AtomicFile open_still(writer.path("b"));
    EXPECT_THROW(writer.commit(), CheckError);
  }
  {
    CheckpointWriter writer(scratch.path(), 1);
    writer.add("absent", {0, std::string(32, '0')});
    EXPECT_THROW(writer.commit(), UserError);
  }
  {
    CheckpointWriter writer(scratch.path(), 1);
    spill(writer.path("a"), "123");
    writer.add("a", {4, std::string(32, '0')});
    EXPECT_CONTAINS(message_of<UserError>([&] { writer.commit(); }), "has 3 bytes");
  }
  EXPECT_EQ(names_in(scratch.path()), Names{});  // a save that fails leaves nothing behind
}

TEST(CheckpointWriter, LeavesAValidCheckpointOfTheSameStep) {
  const Scratch scratch;
  const fs::path dir = save(scratch.path(), 5);
  testing::internal::CaptureStderr();
  {
    CheckpointWriter writer(scratch.path(), 5);
    writer.write("trainer.json", "another");
    EXPECT_FALSE(writer.commit());
  }
  EXPECT_CONTAINS(testing::internal::GetCapturedStderr(), dir.string() + " is a valid checkpoint");
  EXPECT_EQ(slurp(dir / "trainer.json"), "{\"step\": 5}");
  EXPECT_EQ(names_in(scratch.path()), Names{"step-00000005"});
}

TEST(CheckpointWriter, MovesADamagedCheckpointOfTheSameStepAside) {
  const Scratch scratch;
  for (const char* aside : {"step-00000005.damaged", "step-00000005.damaged-2"}) {
    const fs::path dir = scratch / "step-00000005";
    if (!fs::exists(dir)) save(scratch.path(), 5);
    spill(dir / "trainer.json", "{\"step\": 6}");
    testing::internal::CaptureStderr();
    save(scratch.path(), 5);
    EXPECT_CONTAINS(testing::internal::GetCapturedStderr(), aside);
    verify_checkpoint(dir);
    EXPECT_EQ(slurp(scratch / aside / "trainer.json"), "{\"step\": 6}");
  }
}

TEST(CheckpointWriter, ReplacesWhatACrashLeftAndSetsAsideWhatItDidNot) {
  const Scratch scratch;
  fs::create_directory(scratch / "step-00000005.partial");
  spill(scratch / "step-00000005.partial/rubbish", "x");
  const fs::path dir = save(scratch.path(), 5);
  EXPECT_FALSE(fs::exists(dir / "rubbish"));
  fs::create_directories(scratch / "step-00000006.partial/mine");
  spill(scratch / "step-00000007.partial", "a file");
  testing::internal::CaptureStderr();
  save(scratch.path(), 6);
  save(scratch.path(), 7);
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_CONTAINS(said, "directory mine");
  EXPECT_CONTAINS(said, "step-00000007.partial.damaged");
  EXPECT_TRUE(fs::exists(scratch / "step-00000006.partial.damaged/mine"));
  EXPECT_EQ(slurp(scratch / "step-00000007.partial.damaged"), "a file");
}

TEST(CheckpointWriter, FollowsNoLink) {
  const Scratch scratch;
  fs::create_directory(scratch / "precious");
  spill(scratch / "precious/thesis.tex", "text");
  for (const char* name : {"step-00000005.partial", "step-00000004.pruned"})
    fs::create_directory_symlink(scratch / "precious", scratch / name);
  save(scratch.path(), 5);
  EXPECT_EQ(remove_leftovers(scratch.path()),
            std::vector<fs::path>{scratch / "step-00000004.pruned"});
  EXPECT_EQ(slurp(scratch / "precious/thesis.tex"), "text");
  EXPECT_EQ(names_in(scratch.path()), (Names{"precious", "step-00000005"}));
}

TEST(CheckpointWriter, AnOutThatCannotBeWrittenIsTheUsersMistake) {
  const Scratch scratch;
  spill(scratch / "file", "");
  EXPECT_CONTAINS(message_of<UserError>([&] { CheckpointWriter(scratch / "file", 1); }), "file");
  EXPECT_CONTAINS(message_of<UserError>([&] { CheckpointWriter(scratch / "file/x", 1); }), "file");
}

TEST(VerifyCheckpoint, FindsEveryFlippedBitOfEveryFile) {
  const Scratch scratch;
  const fs::path dir = save(scratch.path(), 1000);
  for (const std::string& name : names_in(dir)) {
    const std::string sound = slurp(dir / name);
    std::fstream file(dir / name, std::ios::in | std::ios::out | std::ios::binary);
    const auto put = [&](size_t at, char c) {
      file.seekp(static_cast<std::streamoff>(at)).put(c).flush();
      ASSERT_TRUE(file);
    };
    for (size_t bit = 0; bit < sound.size() * 8; ++bit) {
      put(bit / 8, static_cast<char>(sound[bit / 8] ^ (1 << bit % 8)));
      const std::string message = message_of<UserError>([&] { verify_checkpoint(dir); });
      // A flipped bit in the manifest may show as a wrong file name or size elsewhere.
      EXPECT_CONTAINS(message, name == "manifest.json" ? dir.string() : (dir / name).string());
      put(bit / 8, sound[bit / 8]);
    }
  }
  verify_checkpoint(dir);
}

TEST(VerifyCheckpoint, FindsTruncatedLongerMissingAndOddFiles) {
  const Scratch scratch;
  const fs::path dir = save(scratch.path(), 1000);
  for (const std::string& name : names_in(dir)) {
    const std::string sound = slurp(dir / name);
    const auto expect_found = [&] {
      EXPECT_CONTAINS(message_of<UserError>([&] { verify_checkpoint(dir); }), name);
    };
    for (size_t n = 0; n + 1 < sound.size(); n += 7) {
      spill(dir / name, sound.substr(0, n));
      expect_found();
    }
    spill(dir / name, sound + "x");
    expect_found();
    fs::remove(dir / name);
    expect_found();
    fs::create_directory(dir / name);
    expect_found();
    fs::remove(dir / name);
    spill(dir / name, sound);
  }
  verify_checkpoint(dir);
}

TEST(VerifyCheckpoint, ComparesTheStepWithTheNameButTakesAnyOtherName) {
  const Scratch scratch;
  const fs::path dir = save(scratch.path(), 1000);
  fs::rename(dir, scratch / "step-00002000");
  EXPECT_CONTAINS(message_of<UserError>([&] { verify_checkpoint(scratch / "step-00002000"); }),
                  "step 1000");
  fs::rename(scratch / "step-00002000", scratch / "best");
  EXPECT_EQ(verify_checkpoint(scratch / "best").step, 1000);
  EXPECT_THROW(verify_checkpoint(scratch / "none"), UserError);
}

TEST(FindLatestCheckpoint, PassesOverWhatIsNotValidAndSaysSo) {
  const Scratch scratch;
  EXPECT_FALSE(find_latest_checkpoint(scratch / "none"));
  EXPECT_FALSE(find_latest_checkpoint(scratch.path()));
  const fs::path old = save(scratch.path(), 900);
  const fs::path middle = save(scratch.path(), 1000);
  const fs::path big = save(scratch.path(), 100000000);  // by number, not by name
  fs::create_directory(scratch / "step-00003000.partial");
  fs::create_directory(scratch / "photos");
  spill(scratch / "step-00004000", "a file");
  EXPECT_EQ(find_latest_checkpoint(scratch.path()), big);

  spill(big / "trainer.json", "{\"step\": 900000000}");
  testing::internal::CaptureStderr();
  EXPECT_EQ(find_latest_checkpoint(scratch.path()), middle);
  EXPECT_CONTAINS(testing::internal::GetCapturedStderr(), (big / "trainer.json").string());

  fs::remove(middle / "manifest.json");
  testing::internal::CaptureStderr();
  EXPECT_EQ(find_latest_checkpoint(scratch.path()), old);
  EXPECT_CONTAINS(testing::internal::GetCapturedStderr(), (middle / "manifest.json").string());

  fs::rename(old, scratch / "elsewhere");
  fs::create_directory_symlink(scratch / "elsewhere", old);
  testing::internal::CaptureStderr();
  EXPECT_EQ(find_latest_checkpoint(scratch.path()), old);
  fs::remove(old);
  EXPECT_FALSE(find_latest_checkpoint(scratch.path()));
  testing::internal::GetCapturedStderr();
}

TEST(FindLatestCheckpoint, SetsDamagedOnesAsideIfThereIsAnOlderOne) {
  const Scratch scratch;
  save(scratch.path(), 3);
  spill(scratch / "step-00000003/trainer.json", "{}");
  testing::internal::CaptureStderr();
  EXPECT_FALSE(find_latest_checkpoint(scratch.path(), Damaged::set_aside));
  EXPECT_TRUE(fs::exists(scratch / "step-00000003"));
  const fs::path old = save(scratch.path(), 2);
  EXPECT_EQ(find_latest_checkpoint(scratch.path(), Damaged::leave), old);
  EXPECT_TRUE(fs::exists(scratch / "step-00000003"));
  EXPECT_EQ(find_latest_checkpoint(scratch.path(), Damaged::set_aside), old);
  testing::internal::GetCapturedStderr();
  EXPECT_EQ(names_in(scratch.path()), (Names{"step-00000002", "step-00000003.damaged"}));
}

TEST(FindLatestCheckpoint, PassesOverWhatIsNotComplete) {
  const Scratch scratch;
  const fs::path old = save(scratch.path(), 2), newer = save(scratch.path(), 3);
  testing::internal::CaptureStderr();
  const auto latest = find_latest_checkpoint(
      scratch.path(), Damaged::leave, [&](const fs::path& dir, const Manifest& m) {
        require_files(dir, m, {"trainer.json"});
        if (dir == newer) require_files(dir, m, {"trainer.json", "config.json"});
      });
  EXPECT_EQ(latest, old);
  EXPECT_CONTAINS(testing::internal::GetCapturedStderr(), "does not list config.json");
}

TEST(FindLatestCheckpoint, DoesNotPassOverOneOfAnotherVersion) {
  const Scratch scratch;
  save(scratch.path(), 2);
  save(scratch.path(), 3);
  std::string text = slurp(scratch / "step-00000003/manifest.json");
  text.replace(text.find("\"version\": 1"), 12, "\"version\": 2");
  spill(scratch / "step-00000003/manifest.json", text);
  EXPECT_THROW(find_latest_checkpoint(scratch.path()), OtherVersion);
}

TEST(PruneCheckpoints, KeepsTheNewestAndWhatItDoesNotKnow) {
  const Scratch scratch;
  for (int step : {1, 2, 3, 4, 5}) save(scratch.path(), step);
  fs::remove(scratch / "step-00000004/manifest.json");  // not a checkpoint: prune ignores it
  spill(scratch / "step-00000001/notes.txt", "the best run");
  spill(scratch / "metrics.jsonl", "");
  testing::internal::CaptureStderr();
  const std::vector<fs::path> removed = prune_checkpoints(scratch.path(), 2, 5);
  EXPECT_EQ(removed, (std::vector<fs::path>{scratch / "step-00000002.pruned"}));
  EXPECT_CONTAINS(testing::internal::GetCapturedStderr(), "notes.txt");
  EXPECT_EQ(names_in(scratch.path()), (Names{"metrics.jsonl", "step-00000001", "step-00000003",
                                             "step-00000004", "step-00000005"}));
  EXPECT_THROW(prune_checkpoints(scratch.path(), 0, 5), CheckError);
  verify_checkpoint(scratch / "step-00000003");
  verify_checkpoint(scratch / "step-00000005");
  EXPECT_TRUE(prune_checkpoints(scratch.path(), int64_t{1} << 40, 5).empty());
}

TEST(PruneCheckpoints, NeverRemovesWhatWasJustCommitted) {
  const Scratch scratch;
  for (int step : {1, 3}) save(scratch.path(), step);
  spill(scratch / "step-00000003/model.safetensors",
        std::string(fs::file_size(scratch / "step-00000003/model.safetensors"), 'x'));
  save(scratch.path(), 2);  // with the damaged one, whose size is right, beside it
  EXPECT_EQ(prune_checkpoints(scratch.path(), 1, 2),
            std::vector<fs::path>{scratch / "step-00000001.pruned"});
  verify_checkpoint(scratch / "step-00000002");
}

TEST(PruneCheckpoints, DoesNotCountADamagedOneAsKept) {
  const Scratch scratch;
  for (int step : {1, 2, 3}) save(scratch.path(), step);
  spill(scratch / "step-00000002/model.safetensors", "short");
  EXPECT_TRUE(prune_checkpoints(scratch.path(), 2, 3).empty());
  verify_checkpoint(scratch / "step-00000001");
}

TEST(RemoveLeftovers, TakesWhatACrashLeftAndNothingElse) {
  const Scratch scratch;
  save(scratch.path(), 5);
  fs::create_directory(scratch / "step-00000009.partial");
  spill(scratch / "step-00000009.partial/model.safetensors.partial", "x");
  fs::create_directory(scratch / "step-00000000.pruned");
  fs::create_directory(scratch / "step-9.partial");
  fs::create_directories(scratch / "step-00000007.partial/mine");
  spill(scratch / "step-00000008.partial", "a file");
  testing::internal::CaptureStderr();
  EXPECT_EQ(
      remove_leftovers(scratch.path()),
      (std::vector<fs::path>{scratch / "step-00000000.pruned", scratch / "step-00000009.partial"}));
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_CONTAINS(said, "mine");
  EXPECT_CONTAINS(said, "step-00000008.partial");
  EXPECT_EQ(names_in(scratch.path()), (Names{"step-00000005", "step-00000007.partial",
                                             "step-00000008.partial", "step-9.partial"}));
}

}  // namespace
}  // namespace lathe
