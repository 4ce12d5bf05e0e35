// The parameters of a model: names, shapes, the position of each in one flat layout, its division
// into buckets and among ranks, and typed views of memory in which such a layout lies.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/device/tensor.h"
#include "src/model/config.h"

namespace lathe {

// How tensor parallelism divides a parameter among ranks (Shoeybi et al., "Megatron-LM", 2019):
// each of `groups` equal groups of rows or columns is cut into one range per rank, and a rank has
// its range of every group. c_attn has three groups: its columns are q, k and v.
struct Split {
  enum Along : uint8_t { none, rows, columns };  // none: every rank has all of it
  Along along = none;
  int64_t groups = 1;
};

// One parameter as files have it: Hugging Face's name, its shape without padding.
struct ParameterSpec {
  std::string name;
  Shape shape;
  bool decay = false;    // matrices and embeddings are decayed; biases and LayerNorms are not
  float init_std = 0;    // N(0, init_std); 0: all init_value
  float init_value = 0;  // 1 for LayerNorm weights
  int64_t layer = -1;    // -1: not part of a layer
  // A bucket may start here: once this gradient is final, so are all that follow it. Set for a
  // matrix together with the LayerNorm before it.
  bool cut = false;
  Split split{};
};

// The standard deviation of initial weights (Radford et al., 2019); projections into the residual
// stream have 1/sqrt(2 L) times it.
inline constexpr float kInitStd = 0.02f;

// In the order of the flat buffer: wte, wpe, the layers, ln_f.
std::vector<ParameterSpec> parameter_specs(const ModelConfig& config);

// Where each parameter lies. Offsets are in elements and multiples of kParameterAlignment, so that
// a parameter starts on a 256-byte boundary in every number type; the gaps stay zero.
inline constexpr int64_t kParameterAlignment = 128;

// How the flat buffers are divided among ranks. Gradients of neighbouring matrices are reduced
// together, as one bucket of at least `bucket_elements`; a large matrix is a bucket of its own.
struct Sharding {
  int64_t ranks = 1;
  int64_t bucket_elements = int64_t{4} << 20;
  bool whole_layers = false;  // no bucket holds parts of two layers
  bool operator==(const Sharding&) const = default;
};

// Elements [begin, end) of the flat buffers. Their gradients are final when those of the first
// parameter are. Each rank has an equal share, a multiple of kParameterAlignment, so the bucket
// ends with padding. With one rank there is no padding.
struct Bucket {
  int64_t begin = 0, end = 0;
  int64_t first_layer = -1;  // the first layer in it; -1: the embeddings
  std::string name;          // "embeddings", or the names of its first and last parameter
  // The number of element `begin`. Elements are numbered as they lie with one rank, so a number
  // depends neither on the ranks nor on the buckets. Padding at the end of a bucket
  // has no numbers of its own.
  int64_t first_number = 0;
  int64_t elements() const { return end - begin; }
};

// Part of a bucket: elements [begin, begin + elements) of the flat buffers, which start at `local`
// in a rank's own buffers. `number`: of element `begin`.
struct ShardPart {
  int64_t begin = 0, local = 0, elements = 0, number = 0;
};

struct ParameterSlot {
  ParameterSpec spec;
  int64_t offset = 0;
  Shape padded_shape;  // wte has padded_vocab_size rows; others are as in spec
};

struct ParameterLayout {
  explicit ParameterLayout(const ModelConfig& config, const Sharding& sharding = {});

  std::vector<ParameterSlot> slots;
  int64_t elements = 0;  // of the flat buffer
  int64_t ranks = 1;
  // In the order of the flat buffer: embeddings, parts of layers, last the one with ln_f.
  std::vector<Bucket> buckets;
  std::vector<size_t> bucket_of_slot;  // the bucket that a slot lies in
  bool starts_bucket(size_t slot) const {
    return slot == 0 || bucket_of_slot[slot] != bucket_of_slot[slot - 1];
  }

  // Every bucket as a whole, for a rank that updates everything; or a rank's share of each.
  std::vector<ShardPart> whole() const;
  std::vector<ShardPart> share(int64_t rank) const;

  // Runs of parameters that are all decayed or all not, including padding, in the buffers that hold
  // these parts: what AdamW iterates over. Their number does not depend on weight_decay, which may
  // be zero.
  std::vector<OptimizerSegment> segments(float weight_decay,
                                         std::span<const ShardPart> parts) const;
};

// Where the elements of a layout lie in memory: runs of elements, each in one tensor.
class Placement {
 public:
  // Elements [begin, begin + memory.elements()). Runs are added in order.
  void add(int64_t begin, const Tensor& memory);
  // Elements [begin, begin + elements), which lie in one run.
  Tensor at(int64_t begin, int64_t elements) const;

 private:
  struct Run {
    int64_t begin;
    Tensor memory;
  };
  std::vector<Run> runs_;
};

// Views of the parameters. If the model has no biases, their tensors are empty.
struct LayerParameters {
  Tensor ln_1_weight, ln_1_bias;
  Tensor attn_weight, attn_bias;            // c_attn [C, 3C]
  Tensor attn_proj_weight, attn_proj_bias;  // attn.c_proj [C, C]
  Tensor ln_2_weight, ln_2_bias;
  Tensor fc_weight, fc_bias;              // mlp.c_fc [C, 4C]
  Tensor mlp_proj_weight, mlp_proj_bias;  // mlp.c_proj [4C, C]
  // Where a bucket may start, as indices of ParameterLayout::slots.
  size_t ln_1_slot = 0, attn_proj_slot = 0, ln_2_slot = 0, mlp_proj_slot = 0;
};
struct ModelParameters {
  ModelParameters() = default;
  ModelParameters(const ParameterLayout& layout, const Placement& memory);
  ModelParameters(const ParameterLayout& layout, const Tensor& flat);

  Tensor flat;      // all of them, if they lie in one buffer
  Tensor wte, wpe;  // [padded V, C], [seq_len, C]
  std::vector<LayerParameters> layers;
  Tensor ln_f_weight, ln_f_bias;
  static constexpr size_t kWteSlot = 0;
  size_t ln_f_slot = 0;
};

}  // namespace lathe
