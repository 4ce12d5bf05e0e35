#include "tools/comm_network.h"

#include <algorithm>

#include "kernels/device/arena.h"
#include "kernels/ops.h"
#include "src/io/file.h"

namespace lathe {

namespace {

constexpr int64_t kInputs = 32, kHidden = 64, kClasses = 16, kExamples = 64, kLayers = 2;
constexpr int kMarkedKey = 0;

// Our own generator, so that examples and weights are the same on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15 + 1) {}
  // Uniform in [-1, 1).
  float next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<float>(static_cast<double>(state_ >> 11) * 0x1p-52 - 1.0);
  }

 private:
  uint64_t state_;
};

// Random inputs; the class is the index of the largest value of a fixed random projection.
struct Examples {
  std::vector<float> inputs;
  std::vector<int32_t> classes;
};
Examples examples_of(int64_t step, int64_t first, int64_t count) {
  std::vector<float> projection(kInputs * kClasses);
  Random fixed(7);
  for (float& p : projection) p = fixed.next();
  Examples examples;
  for (int64_t e = first; e < first + count; ++e) {
    Random random(static_cast<uint64_t>(1000 + step * kExamples + e));
    std::vector<float> x(kInputs), score(kClasses, 0.0f);
    for (int64_t i = 0; i < kInputs; ++i) {
      x[static_cast<size_t>(i)] = random.next();
      for (int64_t c = 0; c < kClasses; ++c)
        score[static_cast<size_t>(c)] +=
            x[static_cast<size_t>(i)] * projection[static_cast<size_t>(i * kClasses + c)];
    }
    examples.inputs.insert(examples.inputs.end(), x.begin(), x.end());
    const auto best = std::max_element(score.begin(), score.end()) - score.begin();
    examples.classes.push_back(static_cast<int32_t>(best));
  }
  return examples;
}

// Two layers with GELU, then classes. Parameters and gradients are flat, one layer after another.
class Network {
 public:
  Network(Device& device, Communicator& comm)
      : device_(device),
        comm_(comm),
        ops_(device.ops(DType::fp32)),
        rows_(std::max<int64_t>(1, kExamples / comm.size())),
        arena_(device, kArenaBytes) {
    parameters_ = flat(MemoryCategory::masters);
    gradients_ = flat(MemoryCategory::gradients);
    m_ = flat(MemoryCategory::optimizer);
    v_ = flat(MemoryCategory::optimizer);
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      y_[layer] = values({rows_, kHidden});
      pre_[layer] = values({rows_, kHidden});
      dy_[layer] = values({rows_, kHidden});
    }
    x_ = values({rows_, kInputs});
    losses_ = values({rows_});
    classes_ = arena_.allocate(MemoryCategory::batch, DType::int32, {rows_});
    inputs_ = bytes(sizeof(StepInputs));
    results_ = bytes(sizeof(StepResults));
    segment_ = bytes(sizeof(OptimizerSegment));
    workspace_ = bytes(workspace_bytes());
    const OptimizerSegment all{0, kParameters, 0.0f};
    device_.upload(segment_, &all);
    // Every rank creates its own weights; the broadcast replaces them by rank 0's.
    std::vector<float> weights(kParameters);
    Random random(static_cast<uint64_t>(17 + comm.rank()));
    for (float& w : weights) w = 0.2f * random.next();
    device_.upload(parameters_, weights.data());
    comm_.after_device();
    comm_.device_after(comm_.broadcast(parameters_, 0, "initial weights"));
  }

  // The step's mean loss over all ranks.
  double step(int64_t number) {
    const Examples examples = examples_of(number, comm_.rank() * rows_, rows_);
    const StepInputs inputs{.step = static_cast<uint32_t>(number), .learning_rate = 3e-3f};
    device_.upload(x_, examples.inputs.data());
    device_.upload(classes_, examples.classes.data());
    device_.upload(inputs_, &inputs);
    device_.replay(kMarkedKey, [this] {
      forward_and_backward();
      update();
    });
    StepResults results;
    device_.download(&results, results_);
    std::vector<double> losses(static_cast<size_t>(comm_.size()));
    comm_.exchange(losses.data(), &results.loss, sizeof(double));
    double mean = 0;
    for (const double loss : losses) mean += loss;
    return mean;
  }

  std::string checksum() {
    std::vector<float> weights(kParameters);
    device_.download(weights.data(), parameters_);
    Hasher hasher;
    hasher.update(weights.data(), weights.size() * sizeof(float));
    return hasher.digest().xxh128;
  }

 private:
  static constexpr int64_t kLayer0 = kInputs * kHidden + kHidden;
  static constexpr int64_t kLayer1 = kHidden * kHidden + kHidden;
  static constexpr int64_t kParameters = kLayer0 + kLayer1 + kClasses * kHidden;
  static constexpr size_t kArenaBytes = size_t{64} << 20;  // cuBLASLt needs half of it

  Tensor flat(MemoryCategory category) {
    return arena_.allocate(category, DType::fp32, {kParameters});
  }
  Tensor values(Shape shape) {
    return arena_.allocate(MemoryCategory::activations, DType::fp32, shape);
  }
  Tensor bytes(size_t count) {
    return arena_.allocate(MemoryCategory::workspace, DType::uint8,
                           {static_cast<int64_t>(std::max<size_t>(count, 1))});
  }
  static int64_t first_of(int64_t layer) { return layer == 0 ? 0 : kLayer0; }
  static int64_t inputs_of(int64_t layer) { return layer == 0 ? kInputs : kHidden; }
  static Tensor weight(const Tensor& flat, int64_t layer) {
    const int64_t count = inputs_of(layer) * kHidden;
    return flat.rows(first_of(layer), count).reshaped({inputs_of(layer), kHidden});
  }
  static Tensor bias(const Tensor& flat, int64_t layer) {
    return flat.rows(first_of(layer) + inputs_of(layer) * kHidden, kHidden);
  }
  static Tensor head(const Tensor& flat) {
    return flat.rows(kLayer0 + kLayer1, kClasses * kHidden).reshaped({kClasses, kHidden});
  }
  StepResults* results() const { return static_cast<StepResults*>(results_.data); }

  LinearForward forward_of(int64_t layer) const {
    return {.y_no = y_[layer],
            .pre_activation_no = pre_[layer],
            .x_ni = layer == 0 ? x_ : y_[layer - 1],
            .weight_io = weight(parameters_, layer),
            .bias_o = bias(parameters_, layer),
            .gelu = Gelu::tanh};
  }
  LinearBackward backward_of(int64_t layer) const {
    LinearBackward backward{.dweight_io = weight(gradients_, layer),
                            .dbias_o = bias(gradients_, layer),
                            .dy_no = dy_[layer],
                            .x_ni = layer == 0 ? x_ : y_[layer - 1],
                            .weight_io = weight(parameters_, layer)};
    if (layer > 0) {
      backward.dx_ni = dy_[layer - 1];
      backward.input_pre_activation_ni = pre_[layer - 1];
      backward.gelu = Gelu::tanh;
    }
    return backward;
  }
  LinearCrossEntropy loss() const {
    return {.losses_n = losses_,
            .dx_nc = dy_[kLayers - 1],
            .dwte_vc = head(gradients_),
            .x_nc = y_[kLayers - 1],
            .wte_vc = head(parameters_),
            .targets_n = classes_,
            .vocab_size = kClasses,
            .scale = 1.0 / (static_cast<double>(rows_) * comm_.size()),
            .results = results()};
  }
  size_t workspace_bytes() const {
    size_t most = ops_.workspace_bytes(loss());
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      most = std::max(most, ops_.workspace_bytes(forward_of(layer)));
      most = std::max(most, ops_.workspace_bytes(backward_of(layer)));
    }
    return most;
  }

  // A layer's gradients are summed while those of the layer before it are computed.
  void forward_and_backward() {
    ops_.run(BeginStep{results(), static_cast<const StepInputs*>(inputs_.data)}, workspace_);
    for (int64_t layer = 0; layer < kLayers; ++layer) ops_.run(forward_of(layer), workspace_);
    ops_.run(loss(), workspace_);
    sum(head(gradients_), "gradients of the classes");
    for (int64_t layer = kLayers - 1; layer >= 0; --layer) {
      if (layer == kLayers - 1) {
        ops_.run(
            GeluBackward{.dx = dy_[layer], .dy = dy_[layer], .x = pre_[layer], .gelu = Gelu::tanh},
            workspace_);
      }
      ops_.run(backward_of(layer), workspace_);
      const int64_t count = inputs_of(layer) * kHidden + kHidden;
      sum(gradients_.rows(first_of(layer), count), "gradients of a layer");
    }
  }
  void sum(const Tensor& gradients, const char* what) {
    comm_.after_device();
    comm_.all_reduce(gradients, gradients, Reduction::sum, what);
  }
  void update() {
    comm_.device_after(comm_.last());
    ops_.run(SquareSum{.gradients = gradients_, .results = results()}, workspace_);
    ops_.run(ClipScale{.grad_clip = 1.0, .results = results()}, workspace_);
    ops_.run(AdamW{.masters = parameters_,
                   .m = m_,
                   .v = v_,
                   .gradients = gradients_,
                   .segments = static_cast<const OptimizerSegment*>(segment_.data),
                   .segment_count = 1,
                   .inputs = static_cast<const StepInputs*>(inputs_.data),
                   .results = results()},
             workspace_);
  }

  Device& device_;
  Communicator& comm_;
  const Ops& ops_;
  const int64_t rows_;  // this rank's examples per step
  Arena arena_;
  Tensor parameters_, gradients_, m_, v_;
  Tensor x_, losses_, classes_, inputs_, results_, segment_, workspace_;
  Tensor y_[kLayers], pre_[kLayers], dy_[kLayers];
};

}  // namespace

NetworkRun train_small_network(Device& device, Communicator& comm, int steps) {
  Network network(device, comm);
  NetworkRun run;
  for (int step = 0; step < steps; ++step) run.losses.push_back(network.step(step));
  run.checksums = comm.exchange_text(network.checksum());
  return run;
}

}  // namespace lathe
