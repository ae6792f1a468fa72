// SPDX-License-Identifier: Apache-2.0
#include "emprl/optim/schedule.hpp"

#include <limits>

#include "support/catch.hpp"

using namespace emprl;
using optim::Decay;
using optim::Schedule;

TEST_CASE("schedule: linear decay falls by equal parts from the peak", "[optim][schedule][unit]") {
  Schedule const s{.decay = Decay::linear, .peak = 1.0, .total_steps = 4};
  CHECK(s(0) == 1.0);
  CHECK(s(1) == 0.75);
  CHECK(s(2) == 0.5);
  CHECK(s(3) == 0.25);
  CHECK(s(4) == 0.0);
  CHECK(s(9) == 0.0);
}

TEST_CASE("schedule: warm-up rises to the peak and decay starts there", "[optim][schedule][unit]") {
  Schedule s{.decay = Decay::linear, .peak = 2.0, .warmup_steps = 4, .total_steps = 8};
  CHECK(s(0) == 0.5);
  CHECK(s(3) == 2.0);
  CHECK(s(4) == 2.0);
  CHECK(s(6) == 1.0);
  s.decay = Decay::constant;
  CHECK(s(1) == 1.0);
  CHECK(s(100) == 2.0);
}

TEST_CASE("schedule: cosine passes the middle halfway and ends at the floor",
          "[optim][schedule][unit]") {
  Schedule const s{.decay = Decay::cosine, .peak = 1.0, .total_steps = 6, .floor = 0.1};
  CHECK(s(0) == Approx(1.0));
  CHECK(s(2) == Approx(0.1 + 0.9 * 0.75));
  CHECK(s(3) == Approx(0.55));
  CHECK(s(6) == Approx(0.1));
  CHECK(s(60) == Approx(0.1));
}

TEST_CASE("schedule: the inverse square root starts at the peak", "[optim][schedule][unit]") {
  Schedule s{.decay = Decay::inverse_sqrt, .peak = 1.0, .warmup_steps = 4};
  CHECK(s(1) == 0.5);
  CHECK(s(3) == 1.0);
  CHECK(s(4) == Approx(std::sqrt(0.8)));
  CHECK(s(15) == 0.5);
  s.warmup_steps = 0;
  CHECK(s(0) == 1.0);
  CHECK(s(3) == 0.5);
}

TEST_CASE("schedule: mistakes are named", "[optim][schedule][unit]") {
  using Catch::Matchers::ContainsSubstring;
  CHECK_THROWS_WITH((Schedule{.decay = Decay::linear}.validate()),
                    ContainsSubstring("total_steps"));
  CHECK_THROWS_WITH((Schedule{.peak = -1.0}.validate()), ContainsSubstring("learning rate"));
  CHECK_THROWS_WITH((Schedule{.peak = std::numeric_limits<double>::quiet_NaN()}.validate()),
                    ContainsSubstring("learning rate"));
  CHECK_THROWS_WITH((Schedule{.warmup_steps = -1}.validate()), ContainsSubstring("warmup_steps"));
  CHECK_NOTHROW((Schedule{}.validate()));
  CHECK(optim::parse_decay("cosine") == Decay::cosine);
  CHECK(optim::parse_decay("inverse_sqrt") == Decay::inverse_sqrt);
  CHECK_THROWS_WITH(optim::parse_decay("step"), ContainsSubstring("'step'"));
}
