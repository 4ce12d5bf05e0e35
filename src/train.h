// The training loop, and its step as a function, which tests and benchmarks call too.
#pragma once

#include "src/comm/world.h"
#include "src/train/trainer.h"

namespace lathe {

// Enqueues what the device does in a step, from the batches that were uploaded to the updated
// weights. May be recorded (Device::replay): it depends on the content of device memory alone.
// `slot`: 0 <= slot < Trainer::kSlots, where the step's times go.
void enqueue_step(Trainer& trainer, int slot);

// Runs build/train; returns its exit code.
int train(World& world, int argc, char** argv);

}  // namespace lathe
