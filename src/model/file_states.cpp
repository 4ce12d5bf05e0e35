#include "src/model/file_states.h"

#include <algorithm>
#include <cstring>

#include "kernels/device/device.h"

namespace lathe {

FileStates::FileStates(const std::filesystem::path& directory, DType dtype, bool masters,
                       const std::vector<int64_t>& chunks, Arena& arena)
    : directory_(directory), device_(arena.device()), queue_(arena.device().make_copy_queue()) {
  constexpr size_t kAlign = ScratchFile::kAlignment;
  size_t largest = 0;
  for (const int64_t elements : chunks) {
    const size_t of_one = static_cast<size_t>(elements) * size_of(dtype);
    const size_t bytes = round_up((masters ? 3 : 2) * of_one, kAlign);
    chunks_.push_back({.states = {}, .offset = file_bytes_, .bytes = bytes});
    file_bytes_ += bytes;
    if (masters) arena.count_file(MemoryCategory::masters, of_one);
    arena.count_file(MemoryCategory::optimizer, bytes - (masters ? of_one : 0));
    largest = std::max(largest, bytes);
  }
  const size_t slots = std::min<size_t>(kSlots, chunks.size());
  const Tensor memory =
      arena.allocate(MemoryCategory::optimizer, DType::uint8,
                     {static_cast<int64_t>(slots * largest + kAlign)}, MemorySpace::pinned);
  const uintptr_t first = round_up(reinterpret_cast<uintptr_t>(memory.data), kAlign);
  for (size_t s = 0; s < slots; ++s)
    slots_[s].memory = reinterpret_cast<char*>(first + s * largest);
  for (size_t c = 0; c < chunks_.size(); ++c) {
    char* next = slot_of(c).memory;
    const auto take = [&] {
      const Tensor tensor{next, dtype, Shape{chunks[c]}};
      next += tensor.bytes();
      return tensor;
    };
    StateTensors& states = chunks_[c].states;
    if (masters) states.masters = take();
    states.m = take();
    states.v = take();
  }
}

void FileStates::rethrow() {
  if (file_) error_.attempt([this] { file_->rethrow(); });
  error_.rethrow();
}

// The read waits until what the slot held is written.
void FileStates::begin_read(size_t c) {
  Slot& slot = slot_of(c);
  if (slot.holds == static_cast<int64_t>(c)) return;
  if (slot.changed) write(static_cast<size_t>(slot.holds));
  if (file_) file_->wait(slot.reading);  // that nobody waited for, outside of a step
  slot.holds = static_cast<int64_t>(c);
  const Chunk& chunk = chunks_[c];
  if (chunk.written) {
    slot.reading = file_->read(chunk.offset, slot.memory, chunk.bytes, slot.writing);
    return;
  }
  if (file_) file_->wait(slot.writing);
  std::memset(slot.memory, 0, chunk.bytes);
}

void FileStates::await(size_t c) {
  begin_read(c);
  if (!file_) return;
  file_->wait(slot_of(c).reading);
  file_->wait(slot_of(c).writing);
}

void FileStates::create() {
  if (!file_) file_ = std::make_unique<ScratchFile>(directory_, file_bytes_, "optimizer states");
}

void FileStates::write(size_t c) {
  create();
  Chunk& chunk = chunks_[c];
  Slot& slot = slot_of(c);
  slot.writing = file_->write(chunk.offset, slot.memory, chunk.bytes);
  slot.changed = false;
  chunk.written = true;
}

// Into slots whose chunks this step has released. After the last chunk that is all of them.
void FileStates::read_ahead(size_t after) {
  const size_t count = chunks_.size();
  if (after + 2 < count) begin_read(after + 2);
  for (size_t c = 0; after + 1 == count && c < std::min<size_t>(2, count); ++c) begin_read(c);
}

void FileStates::need(size_t c) {
  Queue& queue = queue_->queue();
  queue.device_after(queue_->call([this, c] { error_.attempt([this, c] { await(c); }); }));
}

void FileStates::release(size_t c) {
  Queue& queue = queue_->queue();
  queue.after_device();
  const Ticket ticket = queue_->call([this, c] {
    error_.attempt([this, c] {
      write(c);
      read_ahead(c);
    });
  });
  if (c + 1 == chunks_.size()) queue.device_after(ticket);  // a recording may end
}

void FileStates::open(size_t c) {
  device_.synchronize();
  queue_->queue().wait(queue_->queue().last());
  error_.attempt([this, c] { await(c); });
  rethrow();
}

void FileStates::keep(size_t c) {
  device_.synchronize();
  slot_of(c).changed = true;
}

}  // namespace lathe
