// Checkpoint directories: OUT/step-00001000/ holds files and manifest.json, which names each of
// them with its size and checksum and is written last. A directory without a valid manifest, or
// whose files differ from it, is not a checkpoint.
//
// A save: the files go into step-00001000.partial, each written, fsynced and renamed (AtomicFile);
// then manifest.json in the same way; then the directory takes its final name by one rename, and
// OUT is fsynced. So a crash at any moment leaves the former checkpoints as they were and the new
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

// A checkpoint of another version of lathe: not damaged, but not to be read.
struct OtherVersion : UserError {
  using UserError::UserError;
};

// The text of manifest.json; it carries a checksum of itself.
std::string to_json(const Manifest& manifest);
// Throws UserError that names `file` and the key: other format or version, unknown, missing or
// mistyped keys, file names that lead out of the directory, a wrong checksum.
Manifest parse_manifest(std::string_view text, std::string_view file);
// That of a directory, whose name must not say another step. The files are not looked at.
Manifest read_manifest(const std::filesystem::path& dir);

// step-00001000; and back, nothing for another name.
std::string checkpoint_name(int64_t step);
std::optional<int64_t> checkpoint_step(std::string_view name);

// One save. Where several ranks write files, rank 0 alone has a CheckpointWriter; the others write
// with AtomicFile into checkpoint_partial_path() after rank 0 has made it, and send it the digests.
class CheckpointWriter {
 public:
  // Makes out_dir/step-N.partial, empty. What a crash left there is removed, a link itself and not
  // what it leads to; what no save can have left is moved to step-N.partial.damaged. UserError if
  // out_dir cannot be written.
  CheckpointWriter(const std::filesystem::path& out_dir, int64_t step);
  // Without a successful commit() the partial directory is removed.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  // Where files are to be written, with AtomicFile or something made of it.
  const std::filesystem::path& path() const { return partial_; }
  std::filesystem::path path(std::string_view name) const { return partial_ / name; }

  // Tells the digest of a file written into path(). commit() reads and fsyncs files that it was not
  // told of.
  void add(std::string_view name, const FileDigest& digest);
  // Writes a small file and adds it.
  void write(std::string_view name, std::string_view text);

  // Makes the checkpoint exist. False where a valid checkpoint of this step is there already: it is
  // left as it is, said so on stderr, and the new one is dropped. A damaged one is moved aside to
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
// what was found, or that transformers has saved its model over the checkpoint's. Files that the
// manifest does not name are not looked at.
Manifest verify_checkpoint(const std::filesystem::path& dir);

// The same for what a model needs to be used: config.json and model.safetensors must be there; the
// moments, twice the size of the weights, are not read and may be gone. A directory without a
// manifest comes from elsewhere and is not verified.
void verify_model(const std::filesystem::path& dir);

// What find_latest_checkpoint does with a damaged checkpoint that is newer than the one it found.
enum class Damaged { leave, set_aside };
// Throws UserError if a checkpoint lacks a file that its reader needs.
using CompletenessCheck =
    std::function<void(const std::filesystem::path& dir, const Manifest& manifest)>;

// The newest step whose checkpoint passes verify_checkpoint() and `complete`, or nothing. Newer
// ones that do not are named on stderr with the reason and, if wanted, renamed to step-N.damaged: a
// run that goes on from an older one would meet their names again. UserError if out_dir is there
// but unreadable; OtherVersion if a newer one was written by another version.
std::optional<std::filesystem::path> find_latest_checkpoint(const std::filesystem::path& out_dir,
                                                            Damaged damaged = Damaged::leave,
                                                            const CompletenessCheck& complete = {});

// After the commit of step `committed`: keeps it and the newest `keep` - 1 (at least 0) before it,
// and removes older ones. Each is first renamed to step-N.pruned, so that a crash leaves it whole
// or not a checkpoint at all, then its files are deleted. Valid means here: manifest sound, all
// files there with their sizes; contents are not read again. Never deletes a directory that holds
// something that the manifest does not name, nor one without a valid manifest. Returns what was
// removed.
std::vector<std::filesystem::path> prune_checkpoints(const std::filesystem::path& out_dir,
                                                     int64_t keep, int64_t committed);

// Removes what a crash left as step-N.partial or step-N.pruned, so no save may be under way. What
// holds something that no save leaves is named on stderr and stays. Returns what was removed.
std::vector<std::filesystem::path> remove_leftovers(const std::filesystem::path& out_dir);

}  // namespace lathe
