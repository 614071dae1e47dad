#pragma once
// What `longhaul attention` says where float32 or bfloat16 does not hold the numbers of a case.

#include "launch/attention_case.h"
#include "runtime/dtype.h"

namespace longhaul::launch {

/// Before anything is computed. Throws Error(data), naming the datasets, elements and values: where
/// a finite element is beyond `dtype`; and, for a softmax without a cap, where a query and a key
/// that it sees are finite and their products, scaled or not, add up to more than float32 holds: as
/// -inf such a score would look masked. (A cap and a sigmoid give such scores their right weights.)
void check_numbers(const std::string& path, const AttentionCase& input, runtime::DType dtype,
                   const attention::Scoring& scoring);

/// Throws Error(internal) where the case is finite and a result is not, or a row that sees keys has
/// an LSE of -inf. A case that itself holds NaN or infinity shows what it gives: the answer then
/// says so, naming the first such element of the case and of the results; empty where all is well.
std::string check_results(const AttentionCase& input, const AttentionResult& result);

}  // namespace longhaul::launch
