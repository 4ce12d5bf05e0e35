// The training loop. Its step is a function of its own, so that tests and benchmarks can call it.
#pragma once

#include "src/comm/world.h"
#include "src/train/trainer.h"

namespace lathe {

// Enqueues one step on the device: from the uploaded batches to the updated weights. May be
// recorded (Device::replay), because it depends only on device memory. The step's times go to
// `slot`, 0 <= slot < Trainer::kSlots.
void enqueue_step(Trainer& trainer, int slot);

// Runs build/train; returns its exit code.
int train(World& world, int argc, char** argv);

}  // namespace lathe
