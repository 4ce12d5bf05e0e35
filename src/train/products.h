// The plans of this run's matrix products: chosen by timing, and the same on all ranks.
#pragma once

#include "src/train/run.h"

namespace lathe {

// Gives all ranks the plans of rank 0. Timing may choose different plans on each rank, but a
// checkpoint keeps those of one, so a resumed run would differ.
void share_plans(Run& run);

// Shares the plans and writes --tuning-log. Call it after the first step of this process, which
// plans its products.
void settle_products(Run& run);

void write_tuning_log(const Run& run);

}  // namespace lathe
