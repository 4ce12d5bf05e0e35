// Lists what a training step, an evaluation and sampling launch on a GPU, of any size, in a moment:
// the real host code runs, and the stand-ins tell of kernels and matrix products instead of running
// them. tools/kernel_report.py reads it.
//
// Writes a JSON object a line, in the order of the launches; what follows a phase or an operation
// belongs to it:
//   {"run": {sizes of the model and of the run}}  the first line
//   {"phase": "start" | "step" | "evaluation" | "sampling"}
//   {"op": name, "flops": f, "bytes": b}          as OpCost has them
//   {"kernel": mangled, "file": "x.cu", "grid": [x, y, z], "block": [x, y, z], "shared": bytes}
//   {"product": [m, n, k], "in": "bf16", "out": "fp32", "adds": false, "vector": false}
#include <vector>

#include "kernels/cuda_on_cpu/block.h"
#include "kernels/cuda_on_cpu/runtime.h"
#include "kernels/device/arena.h"
#include "kernels/observed_ops.h"
#include "src/comm/make_communicator.h"
#include "src/io/flags.h"
#include "src/train.h"
#include "src/train/options.h"

namespace lathe {
namespace {

class Lister final : public cuda_on_cpu::WorkListener {
 public:
  void kernel(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes) override {
    const cuda_on_cpu::FunctionSymbol symbol = cuda_on_cpu::function_symbol(kernel);
    fmt::print(
        "{{\"kernel\": \"{}\", \"file\": \"{}\", \"grid\": [{}, {}, {}], \"block\": [{}, {}, {}], "
        "\"shared\": {}}}\n",
        symbol.name, symbol.file, grid.x, grid.y, grid.z, block.x, block.y, block.z, shared_bytes);
  }
  void product(const Product& p) override {
    fmt::print(
        "{{\"product\": [{}, {}, {}], \"in\": \"{}\", \"out\": \"{}\", \"adds\": {}, "
        "\"vector\": {}}}\n",
        p.m, p.n, p.k, p.bf16_in ? "bf16" : "fp32", p.bf16_out ? "bf16" : "fp32", p.adds,
        p.has_vector);
  }
};

class ListedOps final : public ObservedOps {
 public:
  using ObservedOps::ObservedOps;

 protected:
  bool before(const Call& call) const override {
    fmt::print("{{\"op\": \"{}\", \"flops\": {:.0f}, \"bytes\": {:.0f}}}\n", call.name,
               call.cost.flops, call.cost.bytes);
    return true;
  }
};

struct Options {
  std::string model = "gpt2-124m";
  DType dtype = DType::bf16;
  int64_t n_layer = 0, n_head = 0, n_embd = 0, vocab_size = 0, batch_size = 4, seq_len = 0;
  float dropout = -1;
  bool stochastic_rounding = false;
  cuda_on_cpu::Gpu gpu{.multiprocessors = 132};

  std::vector<Flag> table() {
    return {text("model", model, "Preset; the flags below change it"),
            choice("dtype", dtype, {DType::fp32, DType::bf16}, "Number type"),
            number("n-layer", n_layer, 0, 1024, "0: the preset's, as in what follows"),
            number("n-head", n_head, 0, 1024, ""),
            number("n-embd", n_embd, 0, 65536, ""),
            number("vocab-size", vocab_size, 0, 65536, "0: the preset's, or 65"),
            number("batch-size", batch_size, 1, 1 << 20, "Sequences"),
            number("seq-len", seq_len, 0, 1 << 20, "0: the preset's"),
            number("dropout", dropout, -1, 1, "-1: the preset's"),
            toggle("stochastic-rounding", stochastic_rounding, ""),
            number("multiprocessors", gpu.multiprocessors, 1, 1024, "of the GPU"),
            number("shared-per-block", gpu.shared_per_block, 0, 1 << 20,
                   "bytes that a block may have")};
  }
  ModelConfig config() const {
    ModelConfig config = preset(model).model_config;
    if (n_layer > 0) config.n_layer = n_layer;
    if (n_head > 0) config.n_head = n_head;
    if (n_embd > 0) config.n_embd = n_embd;
    if (vocab_size > 0) config.vocab_size = vocab_size;
    if (config.vocab_size == 0) config.vocab_size = 65;
    if (seq_len > 0) config.seq_len = seq_len;
    if (dropout >= 0) config.dropout = dropout;
    validate(config);
    return config;
  }
};

void print_run(const ModelConfig& config, const Options& flags) {
  const ParameterCounts parameters = count_parameters(config);
  fmt::print(
      "{{\"run\": {{\"L\": {}, \"H\": {}, \"C\": {}, \"V\": {}, \"T\": {}, \"B\": {}, \"dtype\": "
      "\"{}\", \"parameters\": {}, \"flops_per_token\": {:.0f}, \"multiprocessors\": {}}}}}\n",
      config.n_layer, config.n_head, config.n_embd, config.padded_vocab_size(), config.seq_len,
      flags.batch_size, name_of(flags.dtype), parameters.without_position_embeddings,
      config.flops_per_token(config.seq_len), flags.gpu.multiprocessors);
}

// The step of src/train.cpp and the other calls of the model, without the transfers.
void list(const Options& flags) {
  const ModelConfig config = flags.config();
  cuda_on_cpu::play(flags.gpu);
  Lister lister;
  cuda_on_cpu::tell(lister);
  print_run(config, flags);

  constexpr int64_t kDecodeLength = 8;
  StepShape shape{.dtype = flags.dtype,
                  .batch_size = flags.batch_size,
                  .seq_len = config.seq_len,
                  .decode_len = kDecodeLength};
  const OptimizerConfig optimizer{.stochastic_rounding = flags.stochastic_rounding};
  // What is timed would be listed several times.
  const std::unique_ptr<Device> device = make_cuda_device({.autotune = false});
  const std::unique_ptr<Communicator> self = make_self_communicator(*device);
  const Mesh mesh(*self);
  Arena arena(*device,
              plan_training_within(device->memory_bytes(), config, optimizer, shape, *device, mesh)
                  .total());
  Trainer trainer(config, optimizer, shape, *device, mesh, arena);
  Transformer& model = trainer.model;
  const ListedOps ops(trainer.ops());
  trainer.use(ops);

  if (shape.dtype == DType::bf16) {
    fmt::print("{{\"phase\": \"start\"}}\n");
    const std::vector<OwnedPart>& owned = trainer.parameters->owned();
    for (size_t b = 0; b < owned.size(); ++b) {
      ops.run(Cast{.destination = owned[b].weights,
                   .source = trainer.optimizer.masters(b),
                   .rounding = flags.stochastic_rounding ? trainer.state.inputs(0) : nullptr},
              {});
    }
  }
  fmt::print("{{\"phase\": \"step\"}}\n");
  trainer.begin({});
  enqueue_step(trainer, 0);
  fmt::print("{{\"phase\": \"evaluation\"}}\n");
  model.forward(trainer.batch(0), false);
  model.loss(trainer.batch(0), 1, trainer.state.device_results());
  fmt::print("{{\"phase\": \"sampling\"}}\n");
  const std::vector<int32_t> prompt(kDecodeLength - 1);
  trainer.decoder->append(prompt);
  trainer.decoder->append(std::span(prompt).first(1));
}

}  // namespace
}  // namespace lathe

int main(int argc, char** argv) {
  return lathe::run_main("list_launches", [&] {
    lathe::Options options;
    lathe::Flags flags("list_launches",
                       "Lists what a training step launches on a GPU, without running it.",
                       options.table());
    if (flags.parse(argc, argv)) lathe::list(options);
    return 0;
  });
}
