// SPDX-License-Identifier: Apache-2.0
#include "emprl/metrics/rouge.hpp"

#include <vector>

#include "support/catch.hpp"

using namespace emprl;
using Tokens = std::vector<std::int32_t>;

TEST_CASE("rouge: the longest common subsequence, worked by hand", "[metrics][rouge][unit]") {
  CHECK(metrics::longest_common_subsequence(Tokens{1, 2, 3, 2, 4, 1, 2},
                                            Tokens{2, 4, 3, 1, 2, 1}) == 4);
  CHECK(metrics::longest_common_subsequence(Tokens{1, 2, 3}, Tokens{1, 2, 3}) == 3);
  CHECK(metrics::longest_common_subsequence(Tokens{3, 2, 1}, Tokens{1, 2, 3}) == 1);
  CHECK(metrics::longest_common_subsequence(Tokens{}, Tokens{1}) == 0);
  CHECK(metrics::longest_common_subsequence(Tokens{1}, Tokens{}) == 0);
}

TEST_CASE("rouge: F1 of precision and recall in percent", "[metrics][rouge][unit]") {
  // Three of four response tokens, three of six reference tokens: 2 * 0.75 * 0.5 / 1.25.
  CHECK(metrics::rouge_l(Tokens{1, 2, 9, 3}, Tokens{1, 5, 2, 5, 3, 5}) == Approx(60.0));
  CHECK(metrics::rouge_l(Tokens{1, 2}, Tokens{1, 2}) == 100.0);
  CHECK(metrics::rouge_l(Tokens{}, Tokens{1}) == 0.0);
  Ragged responses;
  responses.push_back(Tokens{1});
  responses.push_back(Tokens{2, 3});
  Ragged references;
  references.push_back(Tokens{1});
  references.push_back(Tokens{4, 5});
  CHECK(metrics::rouge_l(responses.view(), references.view()) == std::vector<double>{100.0, 0.0});
  CHECK_THROWS_AS(metrics::rouge_l(responses.view(), Ragged{}.view()), ShapeError);
}
