// Ranks of a job that communicate with each other: all of them, or those along an axis of a mesh.
#pragma once

#include <string>
#include <vector>

#include "src/comm/world.h"

namespace lathe {

struct RankGroup {
  std::string name{};        // of the axis; "" for all ranks of the job
  std::vector<int> ranks{};  // of the job, in the order of ranks of the group
  int rank = 0;              // this process's in the group

  int size() const { return static_cast<int>(ranks.size()); }
  bool is_all() const { return name.empty(); }
  // The rank of the job that has this rank in the group; -1 stays.
  int of_job(int in_group) const {
    return in_group < 0 ? in_group : ranks[static_cast<size_t>(in_group)];
  }
  // For messages: "", or " of tp (ranks 4, 5, 6 and 7)", or " of dp (ranks 0, 8, ..., 504)".
  std::string text() const;
};

RankGroup all_ranks(const World& world);

}  // namespace lathe
