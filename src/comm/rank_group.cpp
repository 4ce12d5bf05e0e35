#include "src/comm/rank_group.h"

#include <numeric>

#include "kernels/device/error.h"

namespace lathe {

std::string RankGroup::text() const {
  if (is_all()) return "";
  constexpr size_t kMost = 8;
  std::string list;
  for (size_t i = 0; i < ranks.size(); ++i) {
    const bool first = i == 0, last = i + 1 == ranks.size();
    if (ranks.size() > kMost && i > 1 && !last) continue;
    const char* const before = first                  ? ""
                               : !last                ? ", "
                               : ranks.size() > kMost ? ", ..., "
                                                      : " and ";
    list += fmt::format("{}{}", before, ranks[i]);
  }
  return fmt::format(" of {} (rank{} {})", name, ranks.size() == 1 ? "" : "s", list);
}

RankGroup all_ranks(const World& world) {
  RankGroup group{.rank = world.rank()};
  group.ranks.resize(static_cast<size_t>(world.size()));
  std::iota(group.ranks.begin(), group.ranks.end(), 0);
  return group;
}

}  // namespace lathe
