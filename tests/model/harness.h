// A small GPT-2 with everything needed for a step, to test either device.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <vector>

#include "kernels/device/arena.h"
#include "src/comm/make_communicator.h"
#include "src/model/weights.h"
#include "src/train/trainer.h"

namespace lathe::testing {

// A device of the kind that the binary tests, linked from device_cpu.cpp or device_cuda.cpp. fp64,
// the reference, always runs on the CPU.
std::unique_ptr<Device> make_test_device(DType dtype);

// The values of a tensor as doubles.
inline std::vector<double> values_of(Device& device, const Tensor& tensor) {
  std::vector<char> bytes(tensor.bytes());
  device.download(bytes.data(), tensor);
  std::vector<double> values(tensor.elements());
  for (size_t i = 0; i < values.size(); ++i) {
    switch (tensor.dtype) {
      case DType::fp32:
        values[i] = reinterpret_cast<const float*>(bytes.data())[i];
        break;
      case DType::fp64:
        values[i] = reinterpret_cast<const double*>(bytes.data())[i];
        break;
      case DType::bf16:
        values[i] = reinterpret_cast<const bf16*>(bytes.data())[i];
        break;
      default:
        ADD_FAILURE() << "no number type";
    }
  }
  return values;
}

inline void set_values(Device& device, const Tensor& tensor, const std::vector<double>& values) {
  ASSERT_EQ(static_cast<size_t>(tensor.elements()), values.size());
  const auto upload = [&]<typename T>(T) {
    std::vector<T> converted;
    for (double value : values) converted.push_back(T(value));
    device.upload(tensor, converted.data());
  };
  if (tensor.dtype == DType::fp64) upload(double{});
  if (tensor.dtype == DType::fp32) upload(float{});
  if (tensor.dtype == DType::bf16) upload(bf16(0.0f));
}

struct Harness {
  Harness(const ModelConfig& config, const StepShape& shape, uint64_t seed = 7)
      : Harness(config, shape, make_test_device(shape.dtype), seed) {}
  Harness(const ModelConfig& config, const StepShape& shape, std::unique_ptr<Device> on,
          uint64_t seed = 7)
      : device(std::move(on)),
        self(make_self_communicator(*device)),
        plan(plan_training(config, {}, shape, *device, Mesh(*self))),
        arena(*device, plan.total(), plan.total(MemorySpace::pinned)),
        trainer(config, {}, shape, *device, Mesh(*self), arena),
        parameters(*trainer.parameters),
        model(trainer.model),
        optimizer(trainer.optimizer),
        state(trainer.state),
        tokens(trainer.batch(0).tokens_bt),
        targets(trainer.batch(0).targets_bt),
        kept(&trainer.in_flight.front()),
        inputs(static_cast<size_t>(shape.micro_steps)) {
    initialize_parameters(parameters.layout(), seed, 0, masters(), *device);
    sync_weights();
    for (StepInputs& input : inputs) input = {.seed = seed, .step = 3, .learning_rate = 1e-3f};
    state.begin(model.ops(), inputs);
  }

  // All of them: a single rank has them in one buffer.
  Tensor masters() const {
    const Tensor first = optimizer.masters(0);
    return {first.data, first.dtype, {parameters.layout().elements}};
  }
  // If the weights are a copy of the masters, updates them.
  void sync_weights() {
    if (!optimizer.weights_are_masters())
      model.ops().run(Cast{.destination = parameters.weights().flat, .source = masters()}, {});
  }

  // The same tokens and targets in every micro-step.
  MicroBatch batch(int64_t micro_step = 0) const {
    return {tokens, targets, state.inputs(micro_step), kept};
  }
  void set_batch(const std::vector<int32_t>& in, const std::vector<int32_t>& out) {
    device->upload(tokens, in.data());
    device->upload(targets, out.data());
  }
  void random_batch(uint64_t seed) {
    std::mt19937_64 random(seed);
    std::vector<int32_t> in(tokens.elements()), out(tokens.elements());
    for (auto* list : {&in, &out}) {
      for (int32_t& token : *list)
        token = static_cast<int32_t>(random() % model.config().vocab_size);
    }
    set_batch(in, out);
  }
  // Mean loss of one micro-step, and its gradients.
  double forward_backward() {
    state.begin(model.ops(), inputs);
    const double scale = 1.0 / static_cast<double>(tokens.elements());
    model.forward(batch(), true);
    model.loss_and_backward(batch(), scale, state.device_results(), false);
    return state.results().loss;
  }
  double training_loss() {  // dropout on, no backward
    state.begin(model.ops(), inputs);
    model.forward(batch(), true);
    model.loss(batch(), 1.0 / static_cast<double>(tokens.elements()), state.device_results());
    return state.results().loss;
  }

  std::unique_ptr<Device> device;
  std::unique_ptr<Communicator> self;
  MemoryPlan plan;
  Arena arena;
  Trainer trainer;
  ParameterStore& parameters;
  Transformer& model;
  Optimizer& optimizer;
  StepState& state;
  Tensor tokens, targets;
  const Activations* kept;
  std::vector<StepInputs> inputs;
};

}  // namespace lathe::testing
