// SPDX-License-Identifier: Apache-2.0
#include "emprl/metrics/perplexity.hpp"

#include <cmath>

#include "support/catch.hpp"

using emprl::metrics::LanguageModelTotals;

TEST_CASE("perplexity: a uniform model over V tokens has perplexity V",
          "[metrics][perplexity][unit]") {
  LanguageModelTotals totals;
  for (int i = 0; i < 3; ++i) {
    totals += LanguageModelTotals{.cross_entropy = 4.0 * std::log(8.0), .tokens = 4, .bytes = 12};
  }
  CHECK(totals.tokens == 12);
  CHECK(totals.perplexity() == Approx(8.0));
  // Three bits a token, a token for three bytes.
  CHECK(totals.bits_per_byte() == Approx(1.0));
  CHECK(std::isnan(LanguageModelTotals{}.perplexity()));
}
