#include "src/model/parameter_store.h"

namespace lathe {

std::vector<Tensor> ParameterStore::parts_of(const Tensor& flat,
                                             const std::vector<ShardPart>& parts) const {
  std::vector<Tensor> tensors;
  for (const ShardPart& part : parts) tensors.push_back(flat.rows(part.begin, part.elements));
  return tensors;
}

void ParameterStore::own(const std::vector<ShardPart>& parts, const std::vector<Tensor>& weights,
                         const std::vector<Tensor>& gradients) {
  for (size_t b = 0; b < parts.size(); ++b) {
    owned_.push_back({parts[b], weights[b], gradients[b]});
    updates_.push_back({b, b + 1});
  }
  share_ = parts;
}

LoadedWeights::LoadedWeights(const ModelConfig& config, const Ops& ops, Arena& arena)
    : ParameterStore(config, {}, ops) {
  place(allocate_all(MemoryCategory::weights, ops.dtype(), arena), {});
}

LocalStore::LocalStore(const ModelConfig& config, const Ops& ops, Arena& arena)
    : ParameterStore(config, {}, ops) {
  const ModelParameters weights = allocate_all(MemoryCategory::weights, ops.dtype(), arena);
  place(weights, allocate_all(MemoryCategory::gradients, accumulator_of(ops.dtype()), arena));
  const std::vector<ShardPart> all = layout_.whole();
  own(all, parts_of(weights_.flat, all), parts_of(gradients_.flat, all));
  updates_ = {{0, all.size()}};
}

}  // namespace lathe
