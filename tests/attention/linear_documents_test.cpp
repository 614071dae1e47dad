// What linear attention owes bit for bit: documents apart, nothing later seen, runs cut on the grid
// of chunks.
#include <gtest/gtest.h>

#include "tests/support/linear_contract.h"

namespace longhaul::attention {
namespace {

TEST(LinearDocuments, EachIsAsAlone) {
  for (const char* kind : recurrence_kinds()) test::expect_documents_as_alone(kind, {});
}

TEST(LinearDocuments, OneOfNothingButNanLeavesTheOthers) {
  for (const char* kind : recurrence_kinds()) test::expect_nan_stays_in_document(kind, {});
}

TEST(LinearDocuments, GradientsOfGatesAreZeroAtStarts) {
  for (const char* kind : {"scalar", "vector", "gated_delta", "kda"})
    test::expect_no_gate_gradient_at_starts(kind, {});
}

TEST(LinearCausality, NothingLaterShowsInABit) {
  for (const char* kind : recurrence_kinds()) test::expect_nothing_later_shows(kind, {});
}

TEST(LinearCausality, NanOfALaterTokenDoesNotShow) {
  for (const char* kind : recurrence_kinds()) test::expect_later_nan_does_not_show(kind, {});
}

TEST(LinearCuts, OnTheGridOfChunksAreBitwiseOneRun) {
  for (const char* kind : recurrence_kinds()) test::expect_cuts_on_grid_bitwise(kind, {});
}

TEST(LinearCuts, AnywhereAreOneRun) {
  for (const char* kind : recurrence_kinds()) test::expect_cuts_anywhere(kind, {});
}

}  // namespace
}  // namespace longhaul::attention
