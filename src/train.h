// The training loop, and its step for all who take one: the program, tests and benchmarks.
#pragma once

#include "src/comm/world.h"
#include "src/train/trainer.h"

namespace lathe {

// Enqueues what the device does in a step, from the batches that were uploaded to the updated
// weights. May be recorded (Device::replay): it depends on the content of device memory alone.
// `slot`: 0 <= slot < Trainer::kSlots, where the step's times go.
void enqueue_step(Trainer& trainer, int slot);

// build/train: the exit code.
int train(World& world, int argc, char** argv);

}  // namespace lathe
