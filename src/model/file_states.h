// Masters and moments in a file of the host (--offload states=DIRECTORY), in chunks. The file holds
// one record for each chunk: its masters, m and v side by side.
//
// Chunk c is updated in slot c modulo 3, in pinned memory, which the device reads and writes over
// the bus. While one is updated, the next is read, and the last is written:
//
//   disk    | read 0, 1 |          | write 0, read 2 | write 1, read 3 | ...
//   device              | update 0 | update 1        | update 2        | ...
//
// A slot is read into when what it held is written. After the last chunk the first two are read for
// the next step.
//
// A host function of a CopyQueue asks for each transfer (src/io/scratch_file.h), so a step with
// them can still be recorded. If a transfer fails, what is updated later is wrong: call rethrow()
// after a step before using its results.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

#include "kernels/device/arena.h"
#include "kernels/device/copy_queue.h"
#include "src/io/scratch_file.h"
#include "src/model/first_error.h"

namespace lathe {

// Of the same elements. `masters` is empty if the weights are the masters.
struct StateTensors {
  Tensor masters, m, v;
};

class FileStates {
 public:
  static constexpr int64_t kSlots = 3;

  // States of chunks of these numbers of elements, all zero.
  FileStates(const std::filesystem::path& directory, DType dtype, bool masters,
             const std::vector<int64_t>& chunks, Arena& arena);

  // Where the states of a chunk lie while they are in memory.
  const StateTensors& at(size_t chunk) const { return chunks_[chunk].states; }

  // Reserves the file; otherwise the first write does.
  void create();

  // In a step, for each chunk in turn: before the device updates it, and after.
  void need(size_t chunk);
  void release(size_t chunk);

  // Outside of a step: brings a chunk into memory, where it stays until the next call.
  void open(size_t chunk);
  // Keeps what was changed of it.
  void keep(size_t chunk);

  // Throws the error of a transfer, if there was one.
  void rethrow();

  // Bytes of the file, and those moved so far.
  uint64_t file_bytes() const { return file_bytes_; }
  uint64_t bytes_read() const { return file_ ? file_->bytes_read() : 0; }
  uint64_t bytes_written() const { return file_ ? file_->bytes_written() : 0; }

 private:
  struct Chunk {
    StateTensors states;
    uint64_t offset = 0;
    size_t bytes = 0;
    bool written = false;  // otherwise all its states are zero
  };
  struct Slot {
    char* memory = nullptr;
    int64_t holds = -1;    // the chunk in it
    bool changed = false;  // since it was read or written
    ScratchFile::Request reading = 0, writing = 0;
  };

  Slot& slot_of(size_t chunk) { return slots_[chunk % kSlots]; }
  // What the host functions do.
  void begin_read(size_t chunk);
  void await(size_t chunk);
  void write(size_t chunk);
  void read_ahead(size_t after);

  const std::filesystem::path directory_;
  std::vector<Chunk> chunks_;
  uint64_t file_bytes_ = 0;
  Device& device_;
  std::array<Slot, kSlots> slots_;
  std::unique_ptr<ScratchFile> file_;
  FirstError error_;
  std::unique_ptr<CopyQueue> queue_;  // calls into this object, so it is destroyed first
};

}  // namespace lathe
