#pragma once
// What a rank computes itself: for measuring it apart from the exchanges that it goes with.

#include "parallel/schedule.h"

namespace longhaul::parallel {

/// The program's steps on compute, in their order, waiting for nothing. What others would have sent
/// is whatever its slots hold.
Program local_work(Program program);
/// The same without merging: partial results and gradients are written where the program merges or
/// sums them, and sums of received ones are left out.
Program local_work_without_merging(Program program);

}  // namespace longhaul::parallel
