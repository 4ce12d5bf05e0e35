// How this run's matrix products are computed: chosen by timing, and the same on all ranks.
#pragma once

#include "src/train/run.h"

namespace lathe {

// Timing may choose otherwise on each rank, and a checkpoint keeps the plans of one: from here on,
// and after a resume, all ranks have these.
void share_plans(Run& run);

// After the first step of this process, when its products are planned: shares the plans and writes
// --tuning-log.
void settle_products(Run& run);

void write_tuning_log(const Run& run);

}  // namespace lathe
