// SPDX-License-Identifier: Apache-2.0
#include "emprl/gen/processors.hpp"

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "support/catch.hpp"

using namespace emprl;

namespace {

double const processors_none = -std::numeric_limits<double>::infinity();

std::vector<double> processors_penalised(std::vector<double> x,
                                         std::vector<std::int32_t> const& seen, double penalty) {
  std::vector<double> scratch;
  gen::penalise_repetition(std::span<double>(x), std::span<std::int32_t const>(seen), penalty,
                           scratch);
  return x;
}

std::vector<std::int32_t> processors_barred(std::vector<std::int32_t> const& seen, index_t n) {
  std::vector<float> x(8, 1.0F);
  gen::bar_repeated_ngrams(std::span<float>(x), std::span<std::int32_t const>(seen), n);
  std::vector<std::int32_t> barred;
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (x[i] != 1.0F) barred.push_back(static_cast<std::int32_t>(i));
  }
  return barred;
}

}  // namespace

TEST_CASE("processors: the penalty divides positive scores and multiplies negative ones, once",
          "[gen][processors][unit]") {
  std::vector<double> const x{3.0, -3.0, 0.0, 5.0, -1.0, processors_none};
  CHECK(processors_penalised(x, {0, 1, 2, 5}, 1.5) ==
        std::vector<double>{2.0, -4.5, 0.0, 5.0, -1.0, processors_none});
  CHECK(processors_penalised(x, {0, 1, 0, 0, 1}, 1.5) == processors_penalised(x, {1, 0}, 1.5));
  CHECK(processors_penalised(x, {4, 3}, 0.5) ==
        std::vector<double>{3.0, -3.0, 0.0, 10.0, -0.5, processors_none});
  CHECK(processors_penalised(x, {-1, 6, 100}, 2.0) == x);
  CHECK(processors_penalised(x, {}, 2.0) == x);
}

TEST_CASE("processors: the tokens that would repeat an n-gram are barred",
          "[gen][processors][unit]") {
  using Ids = std::vector<std::int32_t>;
  CHECK(processors_barred({0, 4, 5, 4}, 1) == Ids{0, 4, 5});
  CHECK(processors_barred({0, 4, 5, 4}, 2) == Ids{5});
  CHECK(processors_barred({0, 4, 5, 4, 6, 4}, 2) == Ids{5, 6});
  CHECK(processors_barred({0, 4, 5, 3, 4, 5}, 3) == Ids{3});
  // The start token begins an n-gram as others do.
  CHECK(processors_barred({0, 4, 7, 0, 4}, 3) == Ids{7});
  // Overlapping with itself.
  CHECK(processors_barred({0, 2, 2, 2}, 3) == Ids{2});
  CHECK(processors_barred({0, 2, 2}, 3).empty());
  CHECK(processors_barred({0, 2, 3}, 2).empty());
  CHECK(processors_barred({0, 4}, 3).empty());
  CHECK(processors_barred({0, 4, 5, 4}, 0).empty());
  CHECK(processors_barred({0, 100, 5, 0}, 2).empty());
}
