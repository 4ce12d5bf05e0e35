#include "src/io/checkpoint.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <functional>

#include "kernels/device/error.h"
#include "kernels/device/standard_streams.h"
#include "src/io/json.h"
#include "src/io/strict_json.h"

namespace lathe {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr std::string_view kManifest = "manifest.json";
constexpr std::string_view kPartial = ".partial";
constexpr std::string_view kPruned = ".pruned";
constexpr uint64_t kManifestMaxBytes = 16 << 20;
constexpr std::string_view kFormat = "lathe checkpoint";

bool is_plain_name(std::string_view name) {
  return !name.empty() && name != "." && name != ".." && name != kManifest &&
         name.find('/') == std::string_view::npos && name.find('\0') == std::string_view::npos;
}

bool is_checksum(std::string_view text) {
  return text.size() == 32 && text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

json body_of(const Manifest& manifest) {
  json files = json::object();
  for (const auto& [name, digest] : manifest.files) {
    files[name] = {{"size", digest.size}, {"xxh128", digest.xxh128}};
  }
  return {{"format", kFormat},
          {"version", kCheckpointVersion},
          {"step", manifest.step},
          {"files", std::move(files)}};
}

// Over the compact form with sorted keys, so that spaces and line breaks do not matter.
std::string checksum_of(const json& body) {
  const std::string text = body.dump();
  Hasher hasher;
  hasher.update(text.data(), text.size());
  return hasher.digest().xxh128;
}

struct Entry {
  std::string name;
  bool is_directory;  // false for a link to one
  bool is_file;
  bool is_link;
};

// The names in a directory, sorted.
std::vector<Entry> entries_of(const fs::path& dir) {
  std::vector<Entry> entries;
  std::error_code error;
  for (fs::directory_iterator it(dir, error), end; !error && it != end; it.increment(error)) {
    const fs::file_type type = it->symlink_status().type();
    entries.push_back({it->path().filename().string(), type == fs::file_type::directory,
                       type == fs::file_type::regular, type == fs::file_type::symlink});
  }
  if (error) throw_io_error("read directory", dir, error.value());
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return a.name < b.name; });
  return entries;
}

// Removes a checkpoint directory and its files, or a link but not its target. If it is a file, or
// holds a directory, throws a UserError and deletes nothing, because no save writes either.
void remove_flat_directory(const fs::path& dir) {
  const fs::file_type type = fs::symlink_status(dir).type();
  if (type == fs::file_type::symlink) return remove_file(dir);
  if (type != fs::file_type::directory) {
    throw UserError("{} is not a directory, so no save has left it; move it away", dir.string());
  }
  const std::vector<Entry> entries = entries_of(dir);
  for (const Entry& entry : entries) {
    if (entry.is_directory) {
      throw UserError("{} holds the directory {}, which no checkpoint has; move it away",
                      dir.string(), entry.name);
    }
  }
  for (const Entry& entry : entries) remove_file(dir / entry.name);
  remove_directory(dir);
}

bool path_exists(const fs::path& path) {
  struct stat status {};
  return ::lstat(path.c_str(), &status) == 0;
}

// Renames it to PATH.damaged, or PATH.damaged-2, ..., and prints so.
void set_aside(const fs::path& path, std::string_view reason) {
  fs::path aside = path.string() + ".damaged";
  for (int i = 2; path_exists(aside); ++i) aside = fmt::format("{}.damaged-{}", path.string(), i);
  rename_path(path, aside);
  say(fmt::format("{} is now {}: {}", path.string(), aside.filename().string(), reason));
}

void check_size(const fs::path& path, const FileDigest& expected) {
  uint64_t size = 0;
  open_regular_file(path, &size);
  if (size != expected.size) {
    throw UserError("{} has {} bytes, but the manifest says {}; use another checkpoint",
                    path.string(), size, expected.size);
  }
}

// Steps whose directory has the right name (with follow_links also a link to one), newest first.
std::vector<int64_t> steps_in(const std::vector<Entry>& entries, bool follow_links) {
  std::vector<int64_t> steps;
  for (const Entry& entry : entries) {
    const std::optional<int64_t> step = checkpoint_step(entry.name);
    if (step && (entry.is_directory || (follow_links && entry.is_link))) steps.push_back(*step);
  }
  std::sort(steps.begin(), steps.end(), std::greater<>());
  return steps;
}

}  // namespace

std::string to_json(const Manifest& manifest) {
  const json body = body_of(manifest);
  nlohmann::ordered_json text = {{"format", body["format"]},
                                 {"version", body["version"]},
                                 {"step", body["step"]},
                                 {"files", body["files"]},
                                 {"checksum", checksum_of(body)}};
  return text.dump(2) + "\n";
}

Manifest parse_manifest(std::string_view text, std::string_view file) {
  const json value = parse_strict_json(text, file, 8);
  StrictObject object(value, file);
  if (object.take_string("format") != kFormat) {
    throw UserError("{} is not a checkpoint's manifest: key \"format\" is {}, expected \"{}\"",
                    file, json_quoted(object.take_string("format")), kFormat);
  }
  const int64_t version = object.take_integer("version", 0, INT64_MAX);
  if (version != kCheckpointVersion) {
    throw OtherVersion(
        "{} has format version {}, this program reads version {}; use the program that "
        "wrote it",
        file, version, kCheckpointVersion);
  }
  Manifest manifest;
  manifest.step = object.take_integer("step", 0, INT64_MAX);
  for (const auto& [name, entry] : StrictObject(object.take("files"), file, "files").items()) {
    StrictObject fields(entry, file, "files." + name);
    if (!is_plain_name(name)) {
      throw UserError("{}: {} is not the name of a file in a checkpoint", file, json_quoted(name));
    }
    const uint64_t size = fields.take_unsigned("size");
    const std::string checksum = fields.take_string("xxh128");
    if (!is_checksum(checksum)) {
      throw UserError("{}: key {} is {}, expected 32 hexadecimal digits", file,
                      fields.name_of("xxh128"), json_quoted(checksum));
    }
    fields.finish();
    manifest.files[name] = {size, checksum};
  }
  const std::string found = object.take_string("checksum");
  object.finish();
  const std::string expected = checksum_of(body_of(manifest));
  if (found != expected) {
    throw UserError("{} is damaged: its checksum is {}, expected {}", file, json_quoted(found),
                    expected);
  }
  return manifest;
}

Manifest read_manifest(const fs::path& dir) {
  const fs::path path = dir / kManifest;
  Manifest manifest = parse_manifest(read_whole_file(path, kManifestMaxBytes), path.string());
  const std::optional<int64_t> step = checkpoint_step(dir.filename().string());
  if (step && *step != manifest.step) {
    throw UserError("{} is from step {}, but the directory is named {}; restore its name",
                    path.string(), manifest.step, *step);
  }
  return manifest;
}

std::string checkpoint_name(int64_t step) {
  LATHE_CHECK(step >= 0, "step {}", step);
  return fmt::format("step-{:08}", step);
}

std::optional<int64_t> checkpoint_step(std::string_view name) {
  constexpr std::string_view kPrefix = "step-";
  if (!name.starts_with(kPrefix)) return {};
  const std::string_view digits = name.substr(kPrefix.size());
  int64_t step = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), step);
  if (error != std::errc() || end != digits.data() + digits.size() || step < 0) return {};
  if (checkpoint_name(step) != name) return {};
  return step;
}

fs::path checkpoint_partial_path(const fs::path& out_dir, int64_t step) {
  return out_dir / (checkpoint_name(step) + std::string(kPartial));
}

CheckpointWriter::CheckpointWriter(const fs::path& out_dir, int64_t step)
    : out_dir_(out_dir),
      partial_(checkpoint_partial_path(out_dir, step)),
      final_(out_dir / checkpoint_name(step)) {
  manifest_.step = step;
  make_directories(out_dir_);
  if (path_exists(partial_)) {
    try {
      remove_flat_directory(partial_);
    } catch (const UserError& error) {  // a save must not fail because of this
      set_aside(partial_, error.what());
    }
  }
  make_directory(partial_);
}

CheckpointWriter::~CheckpointWriter() {
  if (committed_) return;
  try {
    remove_flat_directory(partial_);
  } catch (const std::exception&) {
    // Another error is already on its way; the next save or prune removes the rest.
  }
}

void CheckpointWriter::add(std::string_view name, const FileDigest& digest) {
  LATHE_CHECK(is_plain_name(name) && is_checksum(digest.xxh128), "{} with checksum {}", name,
              digest.xxh128);
  LATHE_CHECK(manifest_.files.emplace(name, digest).second, "{} is added twice", name);
}

void CheckpointWriter::write(std::string_view name, std::string_view text) {
  add(name, write_file(path(name), text));
}

// The added digests, checked against the directory, plus those of all other files in it.
Manifest CheckpointWriter::complete_manifest() {
  Manifest manifest = manifest_;
  for (const auto& [name, digest] : manifest.files) check_size(path(name), digest);
  for (const Entry& entry : entries_of(partial_)) {
    if (manifest.files.contains(entry.name)) continue;
    const fs::path file = path(entry.name);
    LATHE_CHECK(entry.is_file && is_plain_name(entry.name) && !entry.name.ends_with(kPartial),
                "{} is not a complete file", file.string());
    const FileHandle handle = open_regular_file(file, nullptr);
    if (::fsync(handle.get()) != 0) throw_io_error("fsync", file, errno);
    manifest.files[entry.name] = digest_file(file);
  }
  return manifest;
}

bool CheckpointWriter::commit() {
  LATHE_CHECK(!committed_, "{} is committed already", final_.string());
  write_file(path(kManifest), to_json(complete_manifest()));
  if (path_exists(final_)) {
    try {
      verify_checkpoint(final_);
      say(fmt::format("{} is a valid checkpoint already and is kept", final_.string()));
      return false;
    } catch (const std::runtime_error& error) {
      set_aside(final_, error.what());
    }
  }
  rename_path(partial_, final_);
  committed_ = true;
  sync_directory(out_dir_);
  return true;
}

namespace {

void check_digest(const fs::path& path, const FileDigest& expected) {
  const FileDigest found = digest_file(path);
  if (found == expected) return;
  throw UserError(
      "{} is damaged: {} bytes with checksum {}, but the manifest lists {} bytes "
      "with {}; use another checkpoint",
      path.string(), found.size, found.xxh128, expected.size, expected.xxh128);
}

// Not damaged: somebody wanted this.
struct SavedOver : UserError {
  using UserError::UserError;
};

// transformers writes its version into config.json; that distinguishes its save from damage.
void refuse_if_saved_over(const fs::path& dir, const Manifest& manifest) {
  const fs::path path = dir / "config.json";
  const auto saved = manifest.files.find("config.json");
  if (saved == manifest.files.end() || !path_exists(path)) return;
  const json config = parse_json(read_whole_file(path, kManifestMaxBytes), /*throws=*/false);
  if (!config.is_object() || !config.contains("transformers_version") ||
      digest_file(path) == saved->second) {
    return;
  }
  throw SavedOver(
      "{} was saved over by transformers (its config.json shows it), so it is no longer a "
      "checkpoint and cannot be resumed; remove {}, and --init and sample read it as a model from "
      "elsewhere",
      dir.string(), (dir / kManifest).string());
}

}  // namespace

void require_files(const fs::path& dir, const Manifest& manifest,
                   const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    if (manifest.files.contains(name)) continue;
    throw UserError("{} does not list {}, so the checkpoint is incomplete; use another one",
                    (dir / kManifest).string(), name);
  }
}

Manifest verify_checkpoint(const fs::path& dir) {
  Manifest manifest = read_manifest(dir);
  refuse_if_saved_over(dir, manifest);
  for (const auto& [name, expected] : manifest.files) check_size(dir / name, expected);
  for (const auto& [name, expected] : manifest.files) check_digest(dir / name, expected);
  return manifest;
}

void verify_model(const fs::path& dir) {
  if (!path_exists(dir / kManifest)) return;
  const Manifest manifest = read_manifest(dir);
  require_files(dir, manifest, {"config.json", "model.safetensors"});
  refuse_if_saved_over(dir, manifest);
  for (const auto& [name, expected] : manifest.files) {
    if (!name.starts_with("optimizer-")) check_digest(dir / name, expected);
  }
}

std::optional<fs::path> find_latest_checkpoint(const fs::path& out_dir, Damaged damaged,
                                               const CompletenessCheck& complete) {
  if (!path_exists(out_dir)) return {};
  std::vector<std::pair<fs::path, std::string>> unusable;
  for (int64_t step : steps_in(entries_of(out_dir), true)) {
    const fs::path dir = out_dir / checkpoint_name(step);
    try {
      const Manifest manifest = verify_checkpoint(dir);
      if (complete) complete(dir, manifest);
    } catch (const OtherVersion&) {
      throw;
    } catch (const std::runtime_error& error) {  // treat a read error like wrong bytes
      say(fmt::format("{} is not a valid checkpoint and is skipped: {}", dir.string(),
                      error.what()));
      if (path_exists(dir / kManifest) && dynamic_cast<const SavedOver*>(&error) == nullptr)
        unusable.emplace_back(dir, error.what());
      continue;
    }
    if (damaged == Damaged::set_aside) {
      for (const auto& [path, reason] : unusable) set_aside(path, reason);
    }
    return dir;
  }
  return {};
}

namespace {

// Whether a directory is a checkpoint, judged by names and sizes.
bool looks_valid(const fs::path& dir) {
  try {
    for (const auto& [name, digest] : read_manifest(dir).files) check_size(dir / name, digest);
    return true;
  } catch (const std::runtime_error&) {
    return false;
  }
}

// The first entry of a checkpoint that its manifest does not list.
std::optional<std::string> foreign_entry(const fs::path& dir) {
  const Manifest manifest = read_manifest(dir);
  for (const Entry& entry : entries_of(dir)) {
    if (entry.name != kManifest && !manifest.files.contains(entry.name)) return entry.name;
  }
  return {};
}

void remove_unless_foreign(const fs::path& dir, std::vector<fs::path>& removed) {
  try {
    remove_flat_directory(dir);
    removed.push_back(dir);
  } catch (const UserError& error) {
    say(fmt::format("{} is kept: {}", dir.string(), error.what()));
  }
}

// Whether the name is that of a save or removal that a crash interrupted.
bool is_leftover(std::string_view name) {
  for (std::string_view suffix : {kPartial, kPruned}) {
    if (name.ends_with(suffix) && checkpoint_step(name.substr(0, name.size() - suffix.size()))) {
      return true;
    }
  }
  return false;
}

}  // namespace

std::vector<fs::path> remove_leftovers(const fs::path& out_dir) {
  std::vector<fs::path> removed;
  for (const Entry& entry : entries_of(out_dir)) {
    if (is_leftover(entry.name)) remove_unless_foreign(out_dir / entry.name, removed);
  }
  return removed;
}

std::vector<fs::path> prune_checkpoints(const fs::path& out_dir, int64_t keep, int64_t committed) {
  LATHE_CHECK(keep >= 1, "keep {}", keep);
  std::vector<fs::path> removed;
  int64_t kept = 1;  // the committed one
  for (int64_t step : steps_in(entries_of(out_dir), false)) {
    const fs::path dir = out_dir / checkpoint_name(step);
    if (step >= committed || !looks_valid(dir) || kept++ < keep) continue;
    if (const std::optional<std::string> foreign = foreign_entry(dir)) {
      say(fmt::format("{} is kept: it holds {}, which is not one of the checkpoint's files",
                      dir.string(), *foreign));
      continue;
    }
    const fs::path pruned = dir.string() + std::string(kPruned);
    rename_path(dir, pruned);
    sync_directory(out_dir);
    remove_unless_foreign(pruned, removed);
  }
  return removed;
}

}  // namespace lathe
