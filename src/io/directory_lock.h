// At most one process at a time writes a directory (training runs and prepare).
#pragma once

#include <filesystem>

#include "src/io/file.h"

namespace lathe {

// Holds DIR/lock, which names this host and process, as long as it lives. The kernel holds the lock
// (flock(2)), so it ends with the process, however that ends, and a lock file left by a killed
// process is free.
class DirectoryLock {
 public:
  // How long to wait for a previous process to end: one that was asked to stop still saves.
  static constexpr double kPatienceSeconds = 5;

  // Creates the directory if it does not exist, and removes it at the end if it is empty. Waits up
  // to patience_seconds for a process that holds the lock, then throws UserError that names its
  // host and process. If the file system has no locks, warns on stderr and locks nothing.
  explicit DirectoryLock(const std::filesystem::path& directory,
                         double patience_seconds = kPatienceSeconds);
  ~DirectoryLock();
  DirectoryLock(const DirectoryLock&) = delete;
  DirectoryLock& operator=(const DirectoryLock&) = delete;

 private:
  static bool make_if_absent(const std::filesystem::path& directory);
  bool try_lock();
  void write_holder() const;

  std::filesystem::path path_;
  bool made_;
  FileHandle file_;
};

}  // namespace lathe
