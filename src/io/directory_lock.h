// At most one process at a time writes a directory: training runs and prepare.
#pragma once

#include <filesystem>

#include "src/io/file.h"

namespace lathe {

// Holds DIR/lock, which names this host and process, for as long as it lives. The kernel holds the
// lock (flock(2)), so it ends with the process however that ends, and a file that a killed process
// left is free.
class DirectoryLock {
 public:
  // How long a predecessor may take to end: one that was told to stop still saves.
  static constexpr double kPatienceSeconds = 5;

  // Makes the directory if it is not there, and removes it again at the end if it is empty. Waits
  // so long for a process that holds it, then throws UserError that names its host and process. If
  // the file system has no locks, that is said on stderr and nothing is locked.
  explicit DirectoryLock(const std::filesystem::path& directory,
                         double patience_seconds = kPatienceSeconds);
  ~DirectoryLock();
  DirectoryLock(const DirectoryLock&) = delete;
  DirectoryLock& operator=(const DirectoryLock&) = delete;

 private:
  static bool make_if_absent(const std::filesystem::path& directory);
  bool try_lock();
  void tell_who() const;

  std::filesystem::path path_;
  bool made_;
  FileHandle file_;
};

}  // namespace lathe
