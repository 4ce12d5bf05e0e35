// Saves a small checkpoint and prunes, for the crash tests:
//   io_checkpoint_driver OUT STEP KEEP
// The contents of the files depend only on STEP.
#include <cstdlib>
#include <vector>

#include "kernels/device/error.h"
#include "src/io/checkpoint.h"
#include "src/io/safetensors.h"
#include "src/io/trainer_state.h"

namespace {

void save(const std::filesystem::path& out, int64_t step, int keep) {
  lathe::CheckpointWriter checkpoint(out, step);
  lathe::SafetensorsWriter weights(checkpoint.path("model.safetensors"), {{"format", "pt"}});
  weights.declare("wte.weight", lathe::DType::fp32, {64, 32});
  weights.declare("ln_f.weight", lathe::DType::fp32, {32});
  const std::vector<float> values(64 * 32, static_cast<float>(step));
  weights.write("wte.weight", values.data(), values.size() * sizeof(float));
  weights.write("ln_f.weight", values.data(), 32 * sizeof(float));
  checkpoint.add("model.safetensors", weights.finish());
  lathe::TrainerState state;
  state.step = step;
  checkpoint.write("trainer.json", lathe::to_json(state));
  lathe::write_file(checkpoint.path("config.json"), "{\"n_layer\": 2}\n");  // not added on purpose
  checkpoint.commit();
  lathe::prune_checkpoints(out, keep, step);
  lathe::remove_leftovers(out);
}

}  // namespace

int main(int argc, char** argv) {
  return lathe::run_main("io_checkpoint_driver", [&] {
    if (argc != 4) throw lathe::UserError("usage: io_checkpoint_driver OUT STEP KEEP");
    save(argv[1], std::atoll(argv[2]), std::atoi(argv[3]));
    return 0;
  });
}
