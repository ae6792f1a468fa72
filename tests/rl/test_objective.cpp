// SPDX-License-Identifier: Apache-2.0
#include "emprl/rl/objective.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "emprl/core/rng.hpp"
#include "emprl/rl/kl.hpp"
#include "support/catch.hpp"

using Catch::Matchers::ContainsSubstring;
using namespace emprl;
using namespace emprl::rl;

namespace {

using D = Dual<double, 2>;

bool away_from_kinks(PpoClipObjective const& o, double logp, double v, TokenContext const& t) {
  double const ratio = std::exp(logp - t.old_logp);
  double const low = t.old_value - o.value_clip, high = t.old_value + o.value_clip;
  double const held = std::max(std::min(v, high), low);
  auto const apart = [](double a, double b) { return std::abs(a - b) > 1e-3; };
  return apart(ratio, 1 - o.policy_clip) && apart(ratio, 1 + o.policy_clip) && apart(v, low) &&
         apart(v, high) && (held == v || apart(std::abs(v - t.ret), std::abs(held - t.ret)));
}

/// Central difference of fourth order.
template <class F>
double slope(F f, double x) {
  double const h = 1e-4;
  return (8 * (f(x + h) - f(x - h)) - (f(x + 2 * h) - f(x - 2 * h))) / (12 * h);
}

}  // namespace

TEST_CASE("objective: duals agree with central differences to 1e-8 away from kinks",
          "[rl][objective][grad]") {
  PpoClipObjective const clip{0.2, 0.2, 0.1};
  DualClipObjective const dual{clip, 1.1};
  auto const check = [](auto const& o, auto const& skip) {
    RandomSequence random(7, Stream::initialise);
    int compared = 0;
    for (int i = 0; i < 4000; ++i) {
      TokenContext const t{-3 * random.uniform(), random.normal(), random.normal(), random.normal(),
                           -3 * random.uniform()};
      double const logp = t.old_logp + 0.3 * random.normal();
      double const v = t.old_value + 0.3 * random.normal();
      double const h = 3 * random.uniform();
      if (!away_from_kinks(PpoClipObjective{0.2, 0.2, 0.1}, logp, v, t) || skip(logp, t)) continue;
      ++compared;
      auto const near = [](double actual, double expected, double value) {
        return std::abs(actual - expected) <=
               1e-8 * std::max({1.0, std::abs(value), std::abs(expected)});
      };
      if constexpr (EntropyObjective<std::remove_cvref_t<decltype(o)>>) {
        using D3 = Dual<double, 3>;
        D3 const loss = o(D3::variable(logp, 0), D3::variable(v, 1), D3::variable(h, 2), t);
        double const x = loss.value;
        REQUIRE(x == o(logp, v, h, t));
        REQUIRE(near(loss.derivative[0], slope([&](double y) { return o(y, v, h, t); }, logp), x));
        REQUIRE(near(loss.derivative[1], slope([&](double y) { return o(logp, y, h, t); }, v), x));
        REQUIRE(near(loss.derivative[2], slope([&](double y) { return o(logp, v, y, t); }, h), x));
      } else {
        D const loss = o(D::variable(logp, 0), D::variable(v, 1), t);
        double const x = loss.value;
        REQUIRE(x == o(logp, v, t));
        REQUIRE(near(loss.derivative[0], slope([&](double y) { return o(y, v, t); }, logp), x));
        REQUIRE(near(loss.derivative[1], slope([&](double y) { return o(logp, y, t); }, v), x));
      }
    }
    CHECK(compared > 3000);
  };
  auto const none = [](double, TokenContext const&) { return false; };
  auto const second_clip = [&](double logp, TokenContext const& t) {
    return t.advantage < 0 && std::abs(clip.policy(logp, t) + t.advantage * dual.dual_clip) < 2e-3;
  };
  auto const equal = [](double logp, TokenContext const& t) {
    return std::abs(logp - t.reference_logp) < 1e-3;
  };
  KlK2 const k2{};
  KlK3 const k3{};
  KlAbs const absolute{};
  EntropyBonus const bonus{clip, 0.3};
  check(clip, none);
  check(dual, second_clip);
  check(WithKlPenalty<PpoClipObjective, KlK2>{clip, k2, 0.7}, none);
  check(WithKlPenalty<PpoClipObjective, KlK3>{clip, k3, 0.7}, none);
  check(WithKlPenalty<PpoClipObjective, KlAbs>{clip, absolute, 0.7}, equal);
  check(bonus, none);
  check(EntropyBonus{dual, 0.3}, second_clip);
  check(WithKlPenalty<EntropyBonus<PpoClipObjective>, KlK3>{bonus, k3, 0.7}, none);
}

TEST_CASE("objective: an entropy bonus is paid a token and leaves the reported terms alone",
          "[rl][objective][unit]") {
  PpoClipObjective const clip{};
  EntropyBonus const o{clip, 0.25};
  TokenContext const t{-1.0, 0.1, 0.5, 0.2};
  CHECK(o(-1.1, 0.15, 2.0, t) == Approx(clip(-1.1, 0.15, t) - 0.5).epsilon(1e-15));
  CHECK(o.policy(-1.1, t) == clip.policy(-1.1, t));
  CHECK(o.value(0.15, t) == clip.value(0.15, t));
  CHECK(o.clipped(-1.1, t) == clip.clipped(-1.1, t));

  // Masked tokens have no gradient of the entropy either; the other objectives take none.
  std::vector<double> const logp{-1.1, -1.0}, v{0.1, 0.1}, h{2.0, NAN};
  std::vector<TokenContext> const tokens{t, t};
  std::vector<std::uint8_t> const mask{1, 0};
  std::vector<double> dlogp(2, 9), dv(2, 9), dh(2, 9);
  auto const in = [](std::vector<double> const& x) { return std::span<double const>(x); };
  auto const out = [](std::vector<double>& x) { return std::span<double>(x); };
  evaluate_objective<double>(o, in(logp), in(v), tokens, mask, 2.0, out(dlogp), out(dv), in(h),
                             out(dh));
  CHECK(dh == std::vector<double>{-0.125, 0.0});
  CHECK_THROWS_AS(
      evaluate_objective<double>(o, in(logp), in(v), tokens, mask, 2.0, out(dlogp), out(dv)),
      ShapeError);
  CHECK_THROWS_AS(evaluate_objective<double>(clip, in(logp), in(v), tokens, mask, 2.0, out(dlogp),
                                             out(dv), in(h), out(dh)),
                  ShapeError);
}

TEST_CASE("objective: a number out of range is named", "[rl][objective][unit]") {
  CHECK_THROWS_WITH((PpoClipObjective{.policy_clip = 1}.validate()),
                    ContainsSubstring("policy_clip"));
  CHECK_THROWS_WITH((PpoClipObjective{.value_clip = 0}.validate()),
                    ContainsSubstring("value_clip"));
  CHECK_THROWS_WITH((PpoClipObjective{.value_coefficient = NAN}.validate()),
                    ContainsSubstring("value_coefficient"));
  CHECK_THROWS_WITH((DualClipObjective{{}, 1.0}.validate()), ContainsSubstring("dual_clip"));
  CHECK_THROWS_WITH((DualClipObjective{{.policy_clip = -1}, 3.0}.validate()),
                    ContainsSubstring("policy_clip"));
  CHECK_THROWS_WITH((EntropyBonus{PpoClipObjective{}, -1.0}.validate()),
                    ContainsSubstring("entropy bonus"));
  CHECK_THROWS_WITH((EntropyBonus{PpoClipObjective{.value_clip = -1}, 0.1}.validate()),
                    ContainsSubstring("value_clip"));
  PpoClipObjective{}.validate();
  DualClipObjective{}.validate();
  EntropyBonus{PpoClipObjective{}}.validate();
}

TEST_CASE("objective: a masked token has no gradient and no part in any sum",
          "[rl][objective][unit]") {
  auto const run = [](double junk) {
    std::vector<double> const logp{-1, junk, -0.5}, v{0.1, junk, 0.4};
    std::vector<TokenContext> const tokens{
        {-1.1, 0.2, 0.5, 1}, {junk, junk, junk, junk}, {-0.4, 0.1, -2, 0}};
    std::vector<std::uint8_t> const mask{1, 0, 1};
    std::vector<double> dlogp(3, 9), dv(3, 9);
    auto const sums = evaluate_objective<double>(PpoClipObjective{}, std::span<double const>(logp),
                                                 std::span<double const>(v), tokens, mask, 2.0,
                                                 std::span<double>(dlogp), std::span<double>(dv));
    CHECK(sums.tokens == 2.0);
    CHECK(dlogp[1] == 0.0);
    CHECK(dv[1] == 0.0);
    return std::vector<double>{sums.loss, sums.policy, sums.value, sums.ratio, sums.k1,
                               sums.k3,   dlogp[0],    dlogp[2],   dv[0],      dv[2]};
  };
  CHECK(run(std::numeric_limits<double>::quiet_NaN()) == run(1e300));
}

TEST_CASE("objective: in the first epoch the policy gradient is minus the advantage",
          "[rl][objective][grad]") {
  std::vector<TokenContext> const tokens{{-1, 0.3, 2, 0.7}, {-2, 0.1, -3, 0.2}};
  std::vector<float> const logp{-1, -2}, v{0.3f, 0.1f};
  std::vector<float> dlogp(2), dv(2);
  auto const sums = evaluate_objective<float>(
      PpoClipObjective{}, std::span<float const>(logp), std::span<float const>(v), tokens,
      std::vector<std::uint8_t>{1, 1}, 2.0, std::span<float>(dlogp), std::span<float>(dv));
  CHECK(dlogp[0] == Approx(-1.0f));
  CHECK(dlogp[1] == Approx(1.5f));
  CHECK(sums.mean_ratio() == 1.0);
  CHECK(sums.worst_ratio_error == 0.0);
  CHECK(sums.clipped == 0.0);
}

TEST_CASE("objective: the worst ratio is found with its token", "[rl][objective][unit]") {
  std::vector<TokenContext> const tokens{{-1, 0, 0, 0}, {-1, 0, 0, 0}, {-1, 0, 0, 0}};
  std::vector<double> const logp{-1.1, -3, -0.9}, v(3);
  std::vector<double> dlogp(3), dv(3);
  auto const sums = evaluate_objective<double>(
      PpoClipObjective{}, std::span<double const>(logp), std::span<double const>(v), tokens,
      std::vector<std::uint8_t>{1, 1, 1}, 3.0, std::span<double>(dlogp), std::span<double>(dv));
  CHECK(sums.worst_token == 1);
  CHECK(sums.worst_ratio_error == Approx(1 - std::exp(-2.0)));
}

TEST_CASE("objective: the second clip bounds what a bad action can cost", "[rl][objective][unit]") {
  DualClipObjective const o{{}, 3.0};
  TokenContext const bad{0.0, 0.0, -2.0, 0.0}, good{0.0, 0.0, 2.0, 0.0};
  double const ten = std::log(10.0), two = std::log(2.0);
  CHECK(o.policy(ten, bad) == 6.0);  // -A c, not -A ratio = 20
  CHECK(o.clipped(ten, bad));
  CHECK(o.policy(D::variable(ten, 0), bad).derivative[0] == 0.0);
  CHECK(o.policy(two, bad) == Approx(4.0).epsilon(1e-15));
  CHECK_FALSE(o.clipped(two, bad));
  for (double const logp : {-1.0, 0.05, two, ten}) {
    CHECK(o.policy(logp, good) == PpoClipObjective{}.policy(logp, good));
  }
}

TEST_CASE("objective: a KL penalty in the loss adds its value and its gradient",
          "[rl][objective][grad]") {
  PpoClipObjective const base{};
  KlK3 const kl{};
  WithKlPenalty<PpoClipObjective, KlK3> const o{base, kl, 0.7};
  TokenContext t{-1.0, 0.1, 0.5, 0.2};
  t.reference_logp = -1.4;
  double const logp = -1.1, v = 0.15;
  CHECK(o(logp, v, t) == Approx(base(logp, v, t) + 0.7 * kl(logp, -1.4)).epsilon(1e-15));
  D const loss = o(D::variable(logp, 0), D::variable(v, 1), t);
  D const plain = base(D::variable(logp, 0), D::variable(v, 1), t);
  CHECK(loss.derivative[0] ==
        Approx(plain.derivative[0] + 0.7 * (1 - std::exp(-1.4 - logp))).epsilon(1e-14));
  CHECK(loss.derivative[1] == plain.derivative[1]);
  CHECK(o.policy(logp, t) == base.policy(logp, t));
}
