#include "src/model/parameter_store.h"

namespace lathe {

ParameterStore::ParameterStore(const ModelConfig& config, const Sharding& sharding, const Ops& ops,
                               Arena& arena)
    : layout_(config, sharding),
      weights_(layout_, arena.allocate(MemoryCategory::weights, ops.dtype(), {layout_.elements})),
      gradients_(layout_, arena.allocate(MemoryCategory::gradients, accumulator_of(ops.dtype()),
                                         {layout_.elements})),
      ops_(&ops) {}

void ParameterStore::own_all() {
  owned_ = share_ = layout_.shard(0, /*all=*/true);
  my_weights_ = weights_.flat;
  my_gradients_ = gradients_.flat;
  updates_ = {{0, layout_.elements, owned_}};
}

LocalStore::LocalStore(const ModelConfig& config, const Ops& ops, Arena& arena)
    : ParameterStore(config, {}, ops, arena) {
  own_all();
}

}  // namespace lathe
