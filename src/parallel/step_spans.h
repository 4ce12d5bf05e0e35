// What communication does in a step, between marks: the collectives, and the times in which the
// device waits for them.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "kernels/device/device.h"
#include "src/comm/communicator.h"
#include "src/model/parameter_store.h"

namespace lathe {

class StepSpans {
 public:
  StepSpans(Communicator& communicator, Device& device)
      : communicator_(communicator), device_(device) {}

  // Spans from here on belong to the step that uses this slot. Every step has the same spans.
  void begin(int slot) {
    slot_ = slot;
    spans_[static_cast<size_t>(slot_)].clear();
  }
  // From here on nothing is marked: what follows belongs to no step.
  void end() { slot_ = -1; }

  // Enqueues what `collectives` enqueues.
  template <typename Collectives>
  Ticket run(const char* what, const Collectives& collectives) {
    const int from = next(what, /*waits=*/false);
    if (from >= 0) communicator_.mark(from);
    collectives();
    if (from >= 0) communicator_.mark(from + 1);
    return communicator_.last();  // the second mark: its time is known after waiting for it
  }
  // The device waits.
  void wait(Ticket ticket, const char* what) {
    const int from = next(what, /*waits=*/true);
    if (from >= 0) device_.mark(from);
    communicator_.device_after(ticket);
    if (from >= 0) device_.mark(from + 1);
  }

  std::span<const Span> of(int slot) const { return spans_.at(static_cast<size_t>(slot)); }

 private:
  // Adds a span and returns the first of its two marks; -1 outside of a step.
  int next(const char* what, bool waits) {
    if (slot_ < 0) return -1;
    std::vector<Span>& spans = spans_[static_cast<size_t>(slot_)];
    std::vector<int>& marks = marks_[static_cast<size_t>(slot_)];
    if (spans.size() == marks.size()) marks.push_back(device_.take_marks(2));
    const int from = marks[spans.size()];
    spans.push_back({what, waits, from, from + 1});
    return from;
  }

  Communicator& communicator_;
  Device& device_;
  int slot_ = -1;
  std::array<std::vector<Span>, kStepSlots> spans_;
  std::array<std::vector<int>, kStepSlots> marks_;  // the first of each span
};

}  // namespace lathe
