// SPDX-License-Identifier: Apache-2.0
// The library against the recorded outputs of TRL 0.9.6, wherever the corrected mode and the
// original coincide: everything under the original's mask, up to what leaks out of padding.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "emprl/rl/ppo.hpp"
#include "rl/golden.hpp"
#include "rl/tabular.hpp"
#include "support/catch.hpp"

using namespace emprl;
using namespace emprl::rl;
using namespace emprl::tests;

namespace {

double tolerance(float) {
  return 1e-6;
}
double tolerance(double) {
  return 1e-12;
}

/// The fixture's three rows as a rollout: decoder ids without the start token, the original's mask.
struct Fixture {
  PromptBatch prompts = prompts_of({0, 1, 2});
  Rollout rollout;

  Fixture() {
    auto const& f = golden()["encdec_forward"];
    rollout.responses = golden_responses();
    for (double const m : pack(f["masks"].get<Matrix>(), rollout.responses.offsets)) {
      rollout.mask.push_back(m != 0 ? 1 : 0);
    }
  }

  std::vector<double> packed(nlohmann::json const& padded) const {
    return pack(padded.get<Matrix>(), rollout.responses.offsets);
  }

  /// Only the tokens that count.
  std::vector<double> counted(std::vector<double> const& x) const {
    std::vector<double> out;
    for (std::size_t t = 0; t < x.size(); ++t) {
      if (rollout.mask[t] != 0) out.push_back(x[t]);
    }
    return out;
  }
};

/// The fixture's logits and values as the parameters of a tabular policy.
template <class T>
Tabular<T> table(std::string const& group, std::string const& logits, std::string const& values) {
  auto const x = golden()[group][logits].get<std::vector<Matrix>>();
  Tabular<T> policy(3, 7, 7);
  for (std::size_t i = 0; i < 3; ++i) {
    for (std::size_t t = 0; t < 7; ++t) {
      for (std::size_t k = 0; k < 7; ++k) {
        policy.logits[(i * 7 + t) * 7 + k] = static_cast<T>(x[i][t][k]);
      }
    }
  }
  if (!values.empty()) {
    auto const v = golden()[group][values].get<Matrix>();
    for (std::size_t i = 0; i < 3; ++i) {
      for (std::size_t t = 0; t < 7; ++t) policy.values[i * 7 + t] = static_cast<T>(v[i][t]);
    }
  }
  return policy;
}

}  // namespace

TEMPLATE_TEST_CASE("golden: log-probabilities and values of a rollout", "[rl][ppo][golden]", float,
                   double) {
  using T = TestType;
  Fixture f;
  auto actor = table<T>("encdec_forward", "logits", "values_in");
  auto reference = table<T>("encdec_forward", "ref_logits", "");
  index_t const rows_at_once = GENERATE(1, 2, 3);
  evaluate_rollout(actor, reference, f.prompts, rows_at_once, f.rollout);
  std::string const key = std::is_same_v<T, float> ? "encdec_forward" : "f64_replay";
  check_close(f.rollout.logp, f.packed(golden()[key]["logprobs"]), tolerance(T()));
  check_close(f.rollout.reference, f.packed(golden()[key]["ref_logprobs"]), tolerance(T()));
  check_close(f.rollout.values, f.packed(golden()["encdec_forward"]["values"]), tolerance(T()));
}

TEST_CASE("golden: token KL, rewards and objective KL of kl, abs and mse", "[rl][kl][golden]") {
  Fixture f;
  auto const& forward = golden()["encdec_forward"];
  auto const logp = f.packed(forward["logprobs"]);
  auto const reference = f.packed(forward["ref_logprobs"]);
  auto const check = [&](std::string const& name, auto estimator) {
    auto const& expected = golden()["rewards_" + name];
    std::vector<double> kl(logp.size()), rewards(logp.size());
    token_kl(estimator, logp, reference, f.rollout.mask, kl);
    shape_rewards(f.rollout.offsets(), kl, expected["scores"].get<std::vector<double>>(),
                  f.rollout.mask, 0.2, rewards);
    check_close(f.counted(kl), f.counted(f.packed(expected["kls"])), 1e-6);
    check_close(f.counted(rewards), f.counted(f.packed(expected["rewards"])), 1e-6);
    CHECK(close(mean_row_sum(f.rollout.offsets(), kl, f.rollout.mask),
                expected["objective_kl"].get<double>(), 1e-6));
  };
  check("kl", KlK1{});
  check("abs", KlAbs{});
  check("mse", KlK2{});
}

TEST_CASE("golden: rewards and KL of the whole distribution", "[rl][kl][golden]") {
  Fixture f;
  auto actor = table<double>("encdec_forward", "logits", "values_in");
  auto reference = table<double>("encdec_forward", "ref_logits", "");
  auto const& expected = golden()["rewards_full"];
  index_t const rows_at_once = GENERATE(1, 2, 3);
  evaluate_full_kl(actor, reference, f.prompts, rows_at_once, f.rollout);
  std::vector<double> rewards(f.rollout.kl.size());
  shape_rewards(f.rollout.offsets(), f.rollout.kl,
                golden()["rewards_kl"]["scores"].get<std::vector<double>>(), f.rollout.mask, 0.2,
                rewards);
  check_close(f.counted(f.rollout.kl), f.counted(f.packed(expected["kls"])), 1e-6);
  check_close(f.counted(rewards), f.counted(f.packed(expected["rewards"])), 1e-6);
}

TEST_CASE("golden: GAE without reward whitening", "[rl][advantages][golden]") {
  Fixture f;
  for (double const lambda : {0.95, 1.0}) {
    auto const& expected = golden()[lambda == 1.0 ? "gae_whiten0_lam1.0" : "gae_whiten0_lam0.95"];
    auto rewards = f.packed(golden()["rewards_kl"]["rewards"]);
    auto values = f.packed(golden()["encdec_forward"]["values"]);
    clear_masked(rewards, f.rollout.mask);
    clear_masked(values, f.rollout.mask);
    check_close(values, f.packed(expected["values"]), 1e-6);
    std::vector<double> advantages(rewards.size()), returns(rewards.size());
    Gae{1.0, lambda}(f.rollout.offsets(), rewards, values, advantages, returns);
    masked_whiten(advantages, f.rollout.mask, WhitenMean::remove);
    check_close(returns, f.packed(expected["returns"]), 1e-6);
    check_close(advantages, f.packed(expected["advantages"]), 1e-6);
  }
}

TEST_CASE("golden: the chain in double from logits to advantages, rewards re-masked",
          "[rl][advantages][golden]") {
  Fixture f;
  auto actor = table<double>("encdec_forward", "logits", "values_in");
  auto reference = table<double>("encdec_forward", "ref_logits", "");
  Rollout& r = f.rollout;
  evaluate_rollout(actor, reference, f.prompts, 3, r);
  clear_masked(r.values, r.mask);
  r.kl.resize(r.logp.size());
  r.rewards.resize(r.logp.size());
  r.advantages.resize(r.logp.size());
  r.returns.resize(r.logp.size());
  token_kl(KlK1{}, r.logp, r.reference, r.mask, r.kl);
  shape_rewards(r.offsets(), r.kl, std::vector<double>{0.7, -1.1, 0.25}, r.mask, 0.2, r.rewards);
  check_close(f.counted(r.rewards), f.counted(f.packed(golden()["f64_replay"]["rewards"])), 1e-12);
  whiten_rewards(r.rewards, r.mask);
  auto const& expected = golden()["f64_whiten_noleak"];
  check_close(f.counted(r.rewards), f.counted(f.packed(expected["whitened_rewards_unmasked"])),
              1e-12);
  Gae{1.0, 0.95}(r, r.advantages, r.returns);
  masked_whiten(r.advantages, r.mask, WhitenMean::remove);
  check_close(r.returns, f.packed(expected["returns"]), 1e-12);
  check_close(r.advantages, f.packed(expected["advantages"]), 1e-12);
}

TEST_CASE("golden: padded rows with whitened padding give the original's advantages",
          "[rl][advantages][golden]") {
  // Not what the trainer does: the original's rectangle is fed to the same functions, so that
  // whitening and GAE are checked in double on the numbers that the original recorded.
  auto const& expected = golden()["f64_replay"];
  auto const flat = [](nlohmann::json const& x) { return pack(x.get<Matrix>(), {0, 6, 12, 18}); };
  std::vector<index_t> const offsets{0, 6, 12, 18};
  std::vector<std::uint8_t> mask;
  for (double const m : flat(golden()["encdec_forward"]["masks"])) mask.push_back(m != 0 ? 1 : 0);
  auto rewards = flat(expected["rewards"]);
  clear_masked(rewards, mask);
  masked_whiten(rewards, mask, WhitenMean::keep);
  check_close(rewards, flat(golden()["f64_whiten_noleak"]["whitened_rewards_unmasked"]), 1e-12);
  std::vector<double> advantages(18), returns(18);
  Gae{1.0, 0.95}(offsets, rewards, flat(expected["values"]), advantages, returns);
  masked_whiten(advantages, mask, WhitenMean::remove);
  check_close(returns, flat(expected["returns"]), 1e-12);
  check_close(advantages, flat(expected["advantages"]), 1e-12);
}

TEMPLATE_TEST_CASE("golden: losses, statistics and both gradients of the objective",
                   "[rl][objective][golden][grad]", float, double) {
  using T = TestType;
  Fixture f;
  bool const single = std::is_same_v<T, float>;
  auto const& old = golden()[single ? "encdec_forward" : "f64_replay"];
  auto const& gae = golden()[single ? "gae_whiten1_lam0.95" : "f64_replay"];
  auto const& loss = golden()[single ? "loss" : "f64_replay"];
  auto const old_logp = f.packed(old["logprobs"]);
  auto const old_value = f.packed(gae["values"]);
  auto const advantages = f.packed(gae["advantages"]);
  auto const returns = f.packed(gae["returns"]);
  std::vector<TokenContext> tokens;
  for (std::size_t t = 0; t < old_logp.size(); ++t) {
    tokens.push_back({old_logp[t], old_value[t], advantages[t], returns[t]});
  }

  auto actor = table<T>("loss", "new_logits", "new_values");
  std::size_t const n = tokens.size();
  std::vector<T> logp(n), values(n), dlogp(n), dvalues(n);
  typename Tabular<T>::Context context;
  actor.forward({f.prompts.contexts.view(), f.rollout.responses.view()}, logp, values, context);
  auto const count = static_cast<double>(masked_count(f.rollout.mask));
  auto const sums = evaluate_objective<T>(PpoClipObjective{}, std::span<T const>(logp),
                                          std::span<T const>(values), tokens, f.rollout.mask, count,
                                          std::span<T>(dlogp), std::span<T>(dvalues));
  actor.backward(dlogp, dvalues, context);

  double const tol = tolerance(T());
  CHECK(close(sums.policy / count, loss[single ? "pg_loss" : "pg"].get<double>(), tol));
  CHECK(close(0.1 * sums.value / count,
              loss[single ? "vf_loss_times_coef" : "vf_coef_vf"].get<double>(), tol));
  auto const& stats = loss["stats"];
  CHECK(close(sums.loss / count, stats["loss/total"].get<double>(), tol));
  CHECK(close(sums.k1 / count, stats["policy/policykl"].get<double>(), tol));
  CHECK(close(sums.clipped / count, stats["policy/clipfrac"].get<double>(), 1e-6));

  auto const grad_logits = loss["grad_logits"].get<std::vector<Matrix>>();
  auto const grad_values = loss["grad_values"].get<Matrix>();
  for (std::size_t i = 0; i < 3; ++i) {
    for (std::size_t t = 0; t < 7; ++t) {
      CHECK(close(static_cast<double>(actor.dvalues[i * 7 + t]), grad_values[i][t], tol));
      for (std::size_t k = 0; k < 7; ++k) {
        CHECK(close(static_cast<double>(actor.dlogits[(i * 7 + t) * 7 + k]), grad_logits[i][t][k],
                    tol));
      }
    }
  }
}

TEST_CASE("golden: losses and gradients at ties and at the clips' bounds",
          "[rl][objective][golden][grad]") {
  auto const& ties = golden()["loss_ties_f64"];
  auto const row = [&](char const* key) { return ties[key].get<Matrix>()[0]; };
  auto const old = row("old"), value = row("V_old"), advantage = row("A"), ret = row("ret");
  for (auto const& [name, expected] : ties["cases"].items()) {
    CAPTURE(name);
    std::vector<TokenContext> tokens;
    std::vector<double> logp, values, dlogp(3), dvalues(3);
    for (std::size_t t = 0; t < 3; ++t) {
      tokens.push_back({old[t], value[t], advantage[t], ret[t]});
      logp.push_back(old[t] + expected["dlogp"].get<double>());
      values.push_back(value[t] + expected["dv"].get<double>());
    }
    std::vector<std::uint8_t> const mask(3, 1);
    auto const sums = evaluate_objective<double>(
        PpoClipObjective{}, std::span<double const>(logp), std::span<double const>(values), tokens,
        mask, 3.0, std::span<double>(dlogp), std::span<double>(dvalues));
    CHECK(close(sums.policy / 3, expected["pg"].get<double>(), 1e-12));
    CHECK(close(0.1 * sums.value / 3, expected["vf_scaled"].get<double>(), 1e-12));
    check_close(dlogp, expected["grad_logp"].get<Matrix>()[0], 1e-12);
    check_close(dvalues, expected["grad_v"].get<Matrix>()[0], 1e-12);
  }
}

TEST_CASE("golden: running moments and both scalings of scores", "[rl][running_moments][golden]") {
  RunningMoments moments;
  for (auto const& batch : golden()["running_moments"]) {
    auto const x = batch["x"].get<std::vector<double>>();
    moments.update(x);
    CHECK(close(moments.mean, batch["mean"].get<double>(), 1e-6));
    CHECK(close(moments.variance, batch["var"].get<double>(), 1e-6));
    CHECK(close(moments.deviation, batch["std"].get<double>(), 1e-6));
    CHECK(close(moments.count, batch["count"].get<double>(), 1e-6));
    auto scaled = x;
    scale_scores(scaled, moments, ScoreScaling::scale);
    check_close(scaled, batch["scaled_only"].get<std::vector<double>>(), 1e-6);
    auto normalised = x;
    scale_scores(normalised, moments, ScoreScaling::normalise);
    check_close(normalised, batch["norm"].get<std::vector<double>>(), 1e-6);
  }
}

TEST_CASE("golden: the adaptive KL coefficient's path", "[rl][kl][golden]") {
  AdaptiveKl controller(0.2, 6.0, 10000.0);
  for (auto const& step : golden()["adaptive_kl"]) {
    controller.update(step["kl"].get<double>(), step["n"].get<std::int64_t>());
    CHECK(close(controller.coefficient(), step["coef"].get<double>(), 1e-12));
  }
}

TEST_CASE("golden: masked mean, variance and whitening", "[rl][masked][golden]") {
  auto const& expected = golden()["masked"];
  auto const flat = [&](char const* key) { return pack(expected[key].get<Matrix>(), {0, 4, 8}); };
  std::vector<double> const x = flat("x");
  std::vector<std::uint8_t> mask;
  for (double const m : flat("mask")) mask.push_back(m != 0 ? 1 : 0);
  CHECK(close(masked_mean(x, mask), expected["mean"].get<double>(), 1e-6));
  CHECK(close(masked_variance(x, mask), expected["var"].get<double>(), 1e-6));
  auto whitened = x;
  masked_whiten(whitened, mask, WhitenMean::remove);
  check_close(whitened, flat("whiten"), 1e-6);
  whitened = x;
  masked_whiten(whitened, mask, WhitenMean::keep);
  check_close(whitened, flat("whiten_noshift"), 1e-6);
}
