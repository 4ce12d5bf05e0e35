// Cuts a model into pipeline stages of about equal cost.
#pragma once

#include <cstdint>
#include <vector>

namespace lathe {

// The first unit of each part, if units with these costs are cut into `parts` runs of at least one
// unit each: the dearest part is as cheap as possible, and of such cuts the parts are the most
// even. The head of a small GPT-2 costs as much as several layers, so the last stage may have no
// layer.
std::vector<int64_t> cut_by_cost(const std::vector<double>& costs, int64_t parts);

// The mean cost of a part over that of the dearest: the share of time in which the average stage
// works, if nothing else held it up.
double balance_of(const std::vector<double>& costs, const std::vector<int64_t>& first_units);

}  // namespace lathe
