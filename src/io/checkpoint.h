// Checkpoint directories. OUT/step-00001000/ holds files and manifest.json, which lists each file
// with its size and checksum and is written last. A directory without a valid manifest, or whose
// files differ from it, is not a checkpoint.
//
// To save, write the files into step-00001000.partial, each written, fsynced and renamed
// (AtomicFile); then manifest.json in the same way; then rename the directory to its final name,
// and fsync OUT. So a crash at any moment leaves earlier checkpoints unchanged, and the new one
// either complete or absent.
// one wholly there or not there.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/device/error.h"
#include "src/io/file.h"

namespace lathe {

inline constexpr int64_t kCheckpointVersion = 1;

struct Manifest {
  int64_t step = 0;
  std::map<std::string, FileDigest> files;
  bool operator==(const Manifest&) const = default;
};

// A checkpoint of another version of lathe: not damaged, but unreadable here.
struct OtherVersion : UserError {
  using UserError::UserError;
};

// The text of manifest.json, which contains its own checksum.
std::string to_json(const Manifest& manifest);
// Throws UserError that names `file` and the key: another format or version; unknown, missing or
// mistyped keys; file names that lead out of the directory; a wrong checksum.
Manifest parse_manifest(std::string_view text, std::string_view file);
// The manifest of a directory, whose name must not give another step. Does not look at the files.
Manifest read_manifest(const std::filesystem::path& dir);

// step-00001000; and the inverse, empty for another name.
std::string checkpoint_name(int64_t step);
std::optional<int64_t> checkpoint_step(std::string_view name);

// One save. If several ranks write files, only rank 0 has a CheckpointWriter; the others write with
// AtomicFile into checkpoint_partial_path() once rank 0 has created it, and send it the digests.
class CheckpointWriter {
 public:
  // Creates out_dir/step-N.partial, empty. Removes what a crash left there (a link itself, not its
  // target); moves anything that no save can have left to step-N.partial.damaged. UserError if
  // out_dir cannot be written.
  CheckpointWriter(const std::filesystem::path& out_dir, int64_t step);
  // Removes the partial directory unless commit() succeeded.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  // Where to write files, with AtomicFile or something built on it.
  const std::filesystem::path& path() const { return partial_; }
  std::filesystem::path path(std::string_view name) const { return partial_ / name; }

  // Adds the digest of a file written into path(). commit() reads and fsyncs files that were not
  // added.
  void add(std::string_view name, const FileDigest& digest);
  // Writes a small file and adds it.
  void write(std::string_view name, std::string_view text);

  // Makes the checkpoint exist. If a valid checkpoint of this step exists already, keeps it, prints
  // that on stderr, drops the new one and returns false. Moves a damaged one aside to
  // step-N.damaged.
  bool commit();

 private:
  Manifest complete_manifest();

  std::filesystem::path out_dir_;
  std::filesystem::path partial_;
  std::filesystem::path final_;
  Manifest manifest_;
  bool committed_ = false;
};

std::filesystem::path checkpoint_partial_path(const std::filesystem::path& out_dir, int64_t step);

// Throws UserError if the manifest does not list all of them.
void require_files(const std::filesystem::path& dir, const Manifest& manifest,
                   const std::vector<std::string>& names);

// Reads the manifest and every file. Throws UserError that names the file, what was expected and
// what was found, or that reports that transformers saved its model over the checkpoint's. Ignores
// files that the manifest does not list.
Manifest verify_checkpoint(const std::filesystem::path& dir);

// The same for what it takes to use a model: config.json and model.safetensors must be there. The
// moments, twice the size of the weights, are not read and may be missing. A directory without a
// manifest comes from elsewhere and is not verified.
void verify_model(const std::filesystem::path& dir);

// What find_latest_checkpoint does with damaged checkpoints newer than the one it found.
enum class Damaged { leave, set_aside };
// Throws UserError if a checkpoint lacks a file that its reader needs.
using CompletenessCheck =
    std::function<void(const std::filesystem::path& dir, const Manifest& manifest)>;

// The newest step whose checkpoint passes verify_checkpoint() and `complete`, or nothing. Newer
// ones that fail are reported on stderr with the reason and, with set_aside, renamed to
// step-N.damaged, because a run that resumes from an older one would reach their names again.
// UserError if out_dir exists but is unreadable; OtherVersion if another version wrote a newer
// checkpoint.
std::optional<std::filesystem::path> find_latest_checkpoint(const std::filesystem::path& out_dir,
                                                            Damaged damaged = Damaged::leave,
                                                            const CompletenessCheck& complete = {});

// Call after the commit of step `committed`. Keeps it and the `keep` - 1 (at least 0) newest valid
// ones before it, and removes older ones. Each is first renamed to step-N.pruned, then its files
// are deleted, so that a crash leaves it either whole or not a checkpoint. Valid here means a sound
// manifest and all files present with their sizes; contents are not read again. Never deletes a
// directory that holds anything the manifest does not list, or that has no valid manifest. Returns
// what was removed.
std::vector<std::filesystem::path> prune_checkpoints(const std::filesystem::path& out_dir,
                                                     int64_t keep, int64_t committed);

// Removes what a crash left as step-N.partial or step-N.pruned; no save may be in progress. A
// directory that holds anything that no save leaves is reported on stderr and kept. Returns what
// was removed.
std::vector<std::filesystem::path> remove_leftovers(const std::filesystem::path& out_dir);

}  // namespace lathe
