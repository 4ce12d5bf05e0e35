#include "src/parallel/stage_cut.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>

#include "kernels/device/error.h"

namespace lathe {

namespace {

// The cost of units [begin, end), for all begin and end.
class Sums {
 public:
  explicit Sums(const std::vector<double>& costs) : before_(costs.size() + 1) {
    std::partial_sum(costs.begin(), costs.end(), before_.begin() + 1);
  }
  double operator()(size_t begin, size_t end) const { return before_[end] - before_[begin]; }

 private:
  std::vector<double> before_;
};

// The cheapest way to cut all units into `parts`, if a part costs penalty(its cost) and parts are
// combined by combine(); returns the first unit of each part.
template <typename Penalty, typename Combine>
std::vector<int64_t> best_cut(const Sums& cost, size_t units, size_t parts, const Penalty& penalty,
                              const Combine& combine) {
  constexpr double kNone = std::numeric_limits<double>::infinity();
  // best[p][u]: of the first u units in p parts; from[p][u]: where the last of these begins.
  std::vector<std::vector<double>> best(parts + 1, std::vector<double>(units + 1, kNone));
  std::vector<std::vector<size_t>> from(parts + 1, std::vector<size_t>(units + 1));
  best[0][0] = 0;
  for (size_t p = 1; p <= parts; ++p) {
    for (size_t u = p; u <= units; ++u) {
      for (size_t begin = p - 1; begin < u; ++begin) {
        const double total = combine(best[p - 1][begin], penalty(cost(begin, u)));
        if (total >= best[p][u]) continue;
        best[p][u] = total;
        from[p][u] = begin;
      }
    }
  }
  std::vector<int64_t> firsts(parts);
  for (size_t p = parts, end = units; p > 0; --p) {
    end = from[p][end];
    firsts[p - 1] = static_cast<int64_t>(end);
  }
  return firsts;
}

double dearest(const Sums& cost, size_t units, const std::vector<int64_t>& firsts) {
  double most = 0;
  for (size_t p = 0; p < firsts.size(); ++p) {
    const size_t end = p + 1 < firsts.size() ? static_cast<size_t>(firsts[p + 1]) : units;
    most = std::max(most, cost(static_cast<size_t>(firsts[p]), end));
  }
  return most;
}

}  // namespace

std::vector<int64_t> cut_by_cost(const std::vector<double>& costs, int64_t parts) {
  LATHE_CHECK(parts >= 1 && parts <= static_cast<int64_t>(costs.size()), "{} parts of {} units",
              parts, costs.size());
  const Sums cost(costs);
  const auto count = static_cast<size_t>(parts);
  const auto larger = [](double a, double b) { return std::max(a, b); };
  const auto itself = [](double c) { return c; };
  const double least =
      dearest(cost, costs.size(), best_cut(cost, costs.size(), count, itself, larger));
  // Rounding differs with the order of sums.
  const double limit = least * (1 + 1e-12);
  const auto square = [limit](double c) {
    return c > limit ? std::numeric_limits<double>::infinity() : c * c;
  };
  return best_cut(cost, costs.size(), count, square, std::plus<double>());
}

double balance_of(const std::vector<double>& costs, const std::vector<int64_t>& first_units) {
  const Sums cost(costs);
  const double most = dearest(cost, costs.size(), first_units);
  return most == 0 ? 1 : cost(0, costs.size()) / static_cast<double>(first_units.size()) / most;
}

}  // namespace lathe
