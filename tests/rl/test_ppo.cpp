// SPDX-License-Identifier: Apache-2.0
#include "emprl/rl/ppo.hpp"

#include <algorithm>
#include <any>
#include <array>
#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "emprl/rl/reward_combinators.hpp"
#include "reference/ppo.hpp"
#include "rl/tabular.hpp"
#include "support/catch.hpp"

using namespace emprl;
using namespace emprl::rl;
using namespace emprl::tests;
using Catch::Matchers::ContainsSubstring;

namespace {

using Ids = std::vector<std::vector<std::int32_t>>;

Ragged ragged(Ids const& rows) {
  Ragged out;
  for (auto const& row : rows) out.push_back(row);
  return out;
}

template <class T>
void randomise(Tabular<T>& policy, std::uint64_t seed, double size) {
  RandomSequence random(seed, Stream::initialise);
  for (T& x : policy.logits) x += static_cast<T>(size * random.normal());
  for (T& x : policy.values) x += static_cast<T>(size * random.normal());
}

/// A fixed rollout instead of a sampler.
struct Replay {
  Ids responses;
  Ragged operator()(RaggedView, std::uint32_t) const { return ragged(responses); }
};

struct FixedScores {
  std::vector<float> scores;
  void operator()(EpisodeBatch const&, std::span<float> out) const {
    std::copy(scores.begin(), scores.end(), out.begin());
  }
};

/// Everything that one trainer needs, over a tabular policy.
template <class T, class Reward = FixedScores, class Draw = Replay>
struct Bench {
  Tabular<T> actor, reference;
  Reward reward;
  Draw sampler;
  TabularOptimizer<T> optimizer{actor};  // of this very actor: not for copies
  std::string (*decode)(std::span<std::int32_t const>) = spell;

  auto trainer(PpoConfig const& config) {
    return PpoTrainer(config,
                      make_ppo_spec(config, actor, reference, reward, sampler, decode, optimizer));
  }
};

/// Rows of awkward lengths: one token, five, none, the end token alone, no end token, pad in the
/// middle.
Ids const awkward{{3}, {2, 3, 4, 0, 2}, {}, {1}, {4, 4, 1}, {2, 0, 0, 1}};
std::vector<float> const awkward_scores{0.3f, -1.2f, 2.0f, 0.1f, 0.9f, 0.5f};

Bench<double> awkward_bench(std::uint64_t seed = 5) {
  Tabular<double> actor(6, 5, 5), reference(6, 5, 5);
  randomise(actor, seed, 0.5);
  randomise(reference, seed + 100, 0.5);
  return {actor, reference, {awkward_scores}, {awkward}};
}

PromptBatch awkward_prompts() {
  return prompts_of({0, 1, 2, 3, 4, 5});
}

PpoConfig one_update() {
  PpoConfig config;
  config.epochs = 1;
  config.learning_rate = 0.1;
  config.max_gradient_norm = std::numeric_limits<double>::infinity();
  return config;
}

double largest(std::vector<double> const& x) {
  double top = 0;
  for (double const v : x) top = std::max(top, std::abs(v));
  return top;
}

/// To 1e-12 of the largest element.
void check_same(std::vector<double> const& a, std::vector<double> const& b) {
  REQUIRE(a.size() == b.size());
  double const bound = 1e-12 * std::max(largest(b), 1e-3);
  for (std::size_t i = 0; i < a.size(); ++i) {
    CAPTURE(i);
    CHECK(std::abs(a[i] - b[i]) <= bound);
  }
}

reference::Logits unpacked(Tabular<double> const& table, Ids const& rows) {
  reference::Logits out;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    out.emplace_back();
    for (std::size_t t = 0; t < rows[i].size(); ++t) {
      auto const at =
          table.logits.begin() + static_cast<std::ptrdiff_t>((i * table.positions + t) * 5);
      out.back().emplace_back(at, at + 5);
    }
  }
  return out;
}

reference::PpoInput reference_input(Bench<double> const& bench) {
  reference::PpoInput in;
  for (auto const& row : bench.sampler.responses) in.tokens.emplace_back(row.begin(), row.end());
  in.old_logits = in.new_logits = unpacked(bench.actor, bench.sampler.responses);
  in.reference_logits = unpacked(bench.reference, bench.sampler.responses);
  for (std::size_t i = 0; i < in.tokens.size(); ++i) {
    auto const at = bench.actor.values.begin() + static_cast<std::ptrdiff_t>(i * 5);
    in.old_values.emplace_back(at, at + static_cast<std::ptrdiff_t>(in.tokens[i].size()));
  }
  in.new_values = in.old_values;
  in.scores.assign(bench.reward.scores.begin(), bench.reward.scores.end());
  return in;
}

std::vector<double> flat(reference::Rows const& rows) {
  std::vector<double> out;
  for (auto const& row : rows) out.insert(out.end(), row.begin(), row.end());
  return out;
}

}  // namespace

TEST_CASE("ppo: the corrected chain agrees with an independent reference", "[rl][ppo][unit]") {
  auto bench = awkward_bench();
  auto in = reference_input(bench);
  auto const expected = reference::ppo(in);
  Tabular<double> const before = bench.actor;
  auto trainer = bench.trainer(one_update());
  PpoStats const stats = trainer.step(awkward_prompts());
  Rollout const& r = trainer.rollout();

  check_same(r.logp, flat(expected.logp));
  check_same(r.reference, flat(expected.reference));
  check_same(r.rewards, flat(expected.whitened));
  check_same(r.advantages, flat(expected.advantages));
  check_same(r.returns, flat(expected.returns));
  CHECK(stats.kl == Approx(expected.kl).epsilon(1e-12));
  CHECK(*stats.policy_loss == Approx(expected.policy_loss).epsilon(1e-12).margin(1e-13));
  CHECK(*stats.value_loss == Approx(expected.value_loss).epsilon(1e-12));
  CHECK(stats.total_loss == Approx(expected.loss).epsilon(1e-12));

  // One step of gradient descent moved every parameter by -rate * gradient.
  for (std::size_t i = 0; i < awkward.size(); ++i) {
    for (std::size_t t = 0; t < 5; ++t) {
      bool const used = t < awkward[i].size();
      double const dv = used ? expected.grad_values[i][t] : 0.0;
      CHECK(bench.actor.values[i * 5 + t] - before.values[i * 5 + t] ==
            Approx(-0.1 * dv).margin(1e-13));
      for (std::size_t k = 0; k < 5; ++k) {
        std::size_t const at = (i * 5 + t) * 5 + k;
        double const dx = used ? expected.grad_logits[i][t][k] : 0.0;
        CHECK(bench.actor.logits[at] - before.logits[at] == Approx(-0.1 * dx).margin(1e-13));
      }
    }
  }
}

TEST_CASE("ppo: second epoch and second batch agree with the reference", "[rl][ppo][unit]") {
  // The ratio has left 1, values have left their old ones, and scores are normalised with the batch
  // before.
  auto bench = awkward_bench(11);
  PpoConfig config = one_update();
  config.learning_rate = 3.0;
  auto trainer = bench.trainer(config);
  trainer.step(awkward_prompts());
  auto in = reference_input(bench);
  in.earlier_scores = in.scores;
  in.beta = trainer.kl_controller().coefficient();
  bench.reward.scores = {1, -1, 0.5f, 0.25f, -2, 3};
  in.scores = {1, -1, 0.5, 0.25, -2, 3};
  auto const first = reference::ppo(in);

  config.epochs = 2;
  auto again = bench.trainer(config);
  again.restore(trainer.state());
  for (std::size_t i = 0; i < in.tokens.size(); ++i) {
    for (std::size_t t = 0; t < in.tokens[i].size(); ++t) {
      in.new_values[i][t] -= 3.0 * first.grad_values[i][t];
      for (std::size_t k = 0; k < 5; ++k) {
        in.new_logits[i][t][k] -= 3.0 * first.grad_logits[i][t][k];
      }
    }
  }
  auto const second = reference::ppo(in);
  Tabular<double> const before = bench.actor;
  PpoStats const stats = again.step(awkward_prompts());
  CHECK(stats.optimizer_steps == 2);
  CHECK(stats.total_loss == Approx((first.loss + second.loss) / 2).epsilon(1e-11));
  for (std::size_t i = 0; i < in.tokens.size(); ++i) {
    for (std::size_t t = 0; t < in.tokens[i].size(); ++t) {
      for (std::size_t k = 0; k < 5; ++k) {
        std::size_t const at = (i * 5 + t) * 5 + k;
        double const moved = first.grad_logits[i][t][k] + second.grad_logits[i][t][k];
        CHECK(bench.actor.logits[at] - before.logits[at] == Approx(-3.0 * moved).margin(1e-12));
      }
    }
  }
}

TEST_CASE("ppo: losses and gradients do not depend on how the batch is cut",
          "[rl][ppo][contract]") {
  index_t const rows_per_pass = GENERATE(1, 3, 32);
  auto const run = [&](index_t mini, index_t accumulation) {
    auto bench = awkward_bench();
    PpoConfig config = one_update();
    config.epochs = 4;  // one optimiser step each, however it is accumulated
    config.rows_per_pass = rows_per_pass;
    config.mini_batch_size = mini;
    config.gradient_accumulation = accumulation;
    PpoStats const stats = bench.trainer(config).step(awkward_prompts());
    CHECK(stats.optimizer_steps == 4);
    std::vector<double> out = bench.actor.logits;
    out.insert(out.end(), bench.actor.values.begin(), bench.actor.values.end());
    out.insert(out.end(), {stats.total_loss, stats.approx_kl_k3, stats.mean_ratio, *stats.entropy});
    return out;
  };
  auto const whole = run(6, 1);
  check_same(run(1, 6), whole);
  check_same(run(2, 3), whole);
  check_same(run(4, 2), whole);
  check_same(run(5, 100), whole);
}

TEST_CASE("ppo: permuting the batch permutes and changes nothing else", "[rl][ppo][contract]") {
  auto straight = awkward_bench();
  PpoConfig config = one_update();
  config.epochs = 3;
  PpoStats const a = straight.trainer(config).step(awkward_prompts());

  std::vector<std::size_t> const order{4, 2, 0, 5, 1, 3};
  auto shuffled = awkward_bench();
  std::vector<std::int32_t> contexts;
  for (std::size_t i = 0; i < order.size(); ++i) {
    contexts.push_back(static_cast<std::int32_t>(order[i]));
    shuffled.sampler.responses[i] = awkward[order[i]];
    shuffled.reward.scores[i] = awkward_scores[order[i]];
  }
  PpoStats const b = shuffled.trainer(config).step(prompts_of(contexts));
  check_same(shuffled.actor.logits, straight.actor.logits);
  check_same(shuffled.actor.values, straight.actor.values);
  std::vector<double> x, y;
  for_each_number(a, [&](std::string_view, double v) { x.push_back(v); });
  for_each_number(b, [&](std::string_view, double v) { y.push_back(v); });
  check_same(y, x);
}

TEST_CASE("ppo: what masked tokens hold changes no loss and no gradient", "[rl][ppo][contract]") {
  // A rollout with its first tokens masked; all that belongs to them is replaced.
  auto const run = [](double junk) {
    auto bench = awkward_bench();
    Rollout r;
    r.responses = ragged(awkward);
    PromptBatch const prompts = awkward_prompts();
    evaluate_rollout(bench.actor, bench.reference, prompts, 4, r);
    auto const n = static_cast<std::size_t>(r.tokens());
    r.mask.assign(n, 1);
    for (std::size_t i = 0; i < awkward.size(); ++i) {
      if (awkward[i].size() > 1) r.mask[static_cast<std::size_t>(r.offsets()[i])] = 0;
    }
    for (std::size_t t = 0; t < n; ++t) {
      if (r.mask[t] == 0) r.logp[t] = r.values[t] = r.reference[t] = junk;
    }
    clear_masked(r.values, r.mask);
    r.kl.resize(n);
    r.rewards.resize(n);
    r.advantages.resize(n);
    r.returns.resize(n);
    token_kl(KlK1{}, r.logp, r.reference, r.mask, r.kl);
    shape_rewards(r.offsets(), r.kl, std::vector<double>(6, 0.7), r.mask, 0.2, r.rewards);
    whiten_rewards(r.rewards, r.mask);
    Gae{}(r, r.advantages, r.returns);
    masked_whiten(r.advantages, r.mask, WhitenMean::remove);
    for (std::size_t t = 0; t < n; ++t) {
      if (r.mask[t] == 0) r.advantages[t] = r.returns[t] = junk;
    }
    auto const report = update_policy(bench.actor, PpoClipObjective{}, bench.optimizer, prompts, r,
                                      one_update(), 0, 0.1);
    std::vector<double> out = bench.actor.logits;
    out.insert(out.end(), bench.actor.values.begin(), bench.actor.values.end());
    out.push_back(report.sums.loss);
    return out;
  };
  auto const clean = run(0.0);
  CHECK(run(std::numeric_limits<double>::quiet_NaN()) == clean);
  CHECK(run(-1e9) == clean);
}

TEST_CASE("ppo: the pad token in the middle of a response is an ordinary token",
          "[rl][ppo][contract]") {
  // Token 0 and token 3 change names, everywhere: nothing else changes.
  auto const run = [](bool renamed) {
    auto bench = awkward_bench();
    auto const rename_columns = [renamed](std::vector<double>& logits) {
      for (std::size_t cell = 0; renamed && cell < logits.size(); cell += 5) {
        std::swap(logits[cell], logits[cell + 3]);
      }
    };
    rename_columns(bench.actor.logits);
    rename_columns(bench.reference.logits);
    for (auto& row : bench.sampler.responses) {
      for (std::int32_t& y : row) {
        if (renamed && (y == 0 || y == 3)) y = 3 - y;
      }
    }
    PpoConfig config = one_update();
    config.epochs = 3;
    PpoStats const stats = bench.trainer(config).step(awkward_prompts());
    CHECK(stats.tokens == 14);
    rename_columns(bench.actor.logits);
    std::vector<double> out = bench.actor.logits;
    out.insert(out.end(), bench.actor.values.begin(), bench.actor.values.end());
    out.insert(out.end(), {stats.total_loss, stats.kl, stats.mean_ratio, stats.response_length});
    return out;
  };
  check_same(run(true), run(false));
}

TEMPLATE_TEST_CASE("ppo: immediate ends, one token, no end and a batch of one are trained",
                   "[rl][ppo][unit]", float, double) {
  using T = TestType;
  for (auto const& row : Ids{{1}, {3}, {4, 0, 2, 1}, {2, 2, 2, 2, 2}}) {
    Tabular<T> actor(1, 5, 5);
    randomise(actor, 3, 0.5);
    Bench<T> bench{actor, actor, {{0.5f}}, {{row}}};
    PpoStats const stats = bench.trainer(one_update()).step(prompts_of({0}));
    CHECK(stats.tokens == static_cast<std::int64_t>(row.size()));
    CHECK(stats.optimizer_steps == 1);
    CHECK(stats.score_mean == 0.5);
    CHECK(stats.score_deviation == 0.0);
    CHECK(stats.unfinished == (row.back() == 1 ? 0.0 : 1.0));
    CHECK(stats.kl == Approx(0.0).margin(1e-6));
    for_each_number(stats, [](std::string_view name, double v) {
      CAPTURE(std::string(name));
      CHECK(std::isfinite(v));
    });
  }
}

TEST_CASE("ppo: a batch of empty responses moves nothing and is described", "[rl][ppo][unit]") {
  Tabular<double> actor(1, 5, 5);
  Bench<double> bench{actor, actor, {{1.0f, 2.0f}}, {{{}, {}}}};
  auto trainer = bench.trainer(one_update());
  PpoStats const stats = trainer.step(prompts_of({0, 0}));
  CHECK(bench.actor.logits == actor.logits);
  CHECK(stats.optimizer_steps == 0);
  CHECK(stats.score_mean == 1.5);
  CHECK(stats.response_length == 0.0);
  CHECK(stats.unfinished == 1.0);
  for_each_number(stats, [](std::string_view, double v) { CHECK(std::isfinite(v)); });
  CHECK(trainer.state().step == 1);
}

TEST_CASE("ppo: identical rewards teach nothing but the KL term", "[rl][ppo][unit]") {
  auto bench = awkward_bench();
  bench.reference = bench.actor;
  bench.reward.scores.assign(6, 0.25f);
  std::fill(bench.actor.values.begin(), bench.actor.values.end(), 0.0);
  auto const before = bench.actor.logits;
  bench.trainer(one_update()).step(awkward_prompts());
  for (std::size_t i = 0; i < before.size(); ++i) {
    CHECK(bench.actor.logits[i] == Approx(before[i]).margin(1e-9));
  }
}

TEST_CASE("ppo: a ratio other than 1 before the first update names the row",
          "[rl][ppo][contract]") {
  // A policy that looks at the size of its batch, as dropout or leaking padding would.
  struct Leaky : Tabular<double> {
    using Tabular<double>::Tabular;
    void forward(TokenBatch const& b, std::span<double> logp, std::span<double> v,
                 Context& c) const {
      Tabular<double>::forward(b, logp, v, c);
      if (b.rows() == 1) logp.back() -= 0.01;
    }
  };
  Leaky actor(2, 5, 5);
  Tabular<double> const reference(2, 5, 5);
  Replay sampler{{{2, 3}, {3, 1}}};
  FixedScores reward{{0, 1}};
  auto decode = spell;
  TabularOptimizer<double> optimizer{actor};
  // Three rows evaluated together at first, then two and one.
  sampler.responses.push_back({4, 1});
  reward.scores.push_back(0.5f);
  PpoConfig config = one_update();
  config.mini_batch_size = 2;
  PpoTrainer trainer(config,
                     make_ppo_spec(config, actor, reference, reward, sampler, decode, optimizer));
  auto const before = actor.logits;
  CHECK_THROWS_WITH(trainer.step(prompts_of({0, 1, 0})),
                    ContainsSubstring("ratio must be 1") && ContainsSubstring("\"prompt:"));
  CHECK(actor.logits == before);
  CHECK(trainer.state() == PpoState{0, {}, {0.2}});
}

TEST_CASE("ppo: a non-finite score stops the step before anything moves", "[rl][ppo][contract]") {
  auto bench = awkward_bench();
  bench.reward.scores[4] = std::numeric_limits<float>::quiet_NaN();
  auto const before = bench.actor.logits;
  auto trainer = bench.trainer(one_update());
  PpoState const state = trainer.state();
  CHECK_THROWS_WITH(trainer.step(awkward_prompts()), ContainsSubstring("prompt:4"));
  CHECK(bench.actor.logits == before);
  CHECK(trainer.state() == state);
}

TEST_CASE("ppo: a non-finite log-probability, value or reference names the episode",
          "[rl][ppo][contract]") {
  int const which = GENERATE(0, 1, 2);
  auto bench = awkward_bench();
  double const bad = -std::numeric_limits<double>::infinity();
  if (which == 0) bench.actor.logits[(1 * 5 + 1) * 5 + 3] = bad;  // row 1, token 1 is a 3
  if (which == 1) bench.actor.values[1 * 5 + 4] = bad;
  if (which == 2) bench.reference.logits[(1 * 5 + 4) * 5 + 2] = bad;
  auto const before = bench.actor.logits;
  auto trainer = bench.trainer(one_update());
  CHECK_THROWS_WITH(trainer.step(awkward_prompts()),
                    ContainsSubstring("prompt:1") && ContainsSubstring("not finite"));
  CHECK(bench.actor.logits == before);
}

TEST_CASE("ppo: a non-finite gradient norm stops before weights move and names the episodes",
          "[rl][ppo][contract]") {
  struct Overflowing : Tabular<double> {
    using Tabular<double>::Tabular;
    void backward(std::span<double const> dlogp, std::span<double const> dv, Context const& c) {
      Tabular<double>::backward(dlogp, dv, c);
      dlogits[0] = std::numeric_limits<double>::infinity();
    }
  };
  Overflowing actor(2, 5, 5);
  Replay sampler{{{2, 3}, {3, 1}}};
  FixedScores reward{{0, 1}};
  auto decode = spell;
  TabularOptimizer<double> optimizer{actor};
  PpoConfig const config = one_update();
  auto trainer =
      PpoTrainer(config, make_ppo_spec(config, actor, actor, reward, sampler, decode, optimizer));
  auto const before = actor.logits;
  CHECK_THROWS_WITH(trainer.step(prompts_of({0, 1})), ContainsSubstring("gradient norm") &&
                                                          ContainsSubstring("prompt:0") &&
                                                          ContainsSubstring("prompt:1"));
  CHECK(actor.logits == before);
}

TEST_CASE("ppo: a mini-batch whose mean ratio passes the threshold counts as zero",
          "[rl][ppo][unit]") {
  // The recorded log-probability is 4 below the policy's own: e^4 > 10. The guard of the first step
  // is opened for it.
  Tabular<double> actor(2, 5, 5);
  randomise(actor, 1, 0.3);
  TabularOptimizer<double> optimizer{actor};
  PromptBatch const prompts = prompts_of({0, 1});
  Rollout r;
  r.responses = ragged({{2, 1}, {3, 1}});
  r.mask.assign(4, 1);
  evaluate_rollout(actor, actor, prompts, 2, r);
  r.advantages = {1, -1, 0.5, 2};
  r.returns = {1, 1, 1, 1};
  r.logp[0] -= 4;
  r.logp[1] -= 4;
  PpoConfig config = one_update();
  config.mini_batch_size = 1;
  config.ratio_tolerance = 1e9;
  auto const before = actor;
  auto const report =
      update_policy(actor, PpoClipObjective{}, optimizer, prompts, r, config, 0, 0.1);
  CHECK(report.skipped_batches == 1);
  CHECK(report.optimizer_steps == 1);
  CHECK(report.sums.tokens == 2.0);
  for (std::size_t t = 0; t < 5; ++t)
    CHECK(actor.values[t] == before.values[t]);  // row 0 untouched
  // The other row's gradient is still divided by the tokens of the whole optimiser step.
  CHECK(actor.values[5] - before.values[5] ==
        Approx(-0.1 * 0.1 * (before.values[5] - 1) / 4).epsilon(1e-12));

  r.logp[2] -= 4;
  r.logp[3] -= 4;
  auto const moved = actor;
  auto const all = update_policy(actor, PpoClipObjective{}, optimizer, prompts, r, config, 0, 0.1);
  CHECK(all.skipped_batches == 2);
  CHECK(all.optimizer_steps == 0);
  CHECK(actor.logits == moved.logits);
  CHECK(actor.values == moved.values);
}

TEST_CASE("ppo: a restored trainer goes on bit for bit", "[rl][ppo][contract]") {
  auto const reward = [](EpisodeBatch const& b, std::span<float> s) {
    for (std::size_t i = 0; i < b.size(); ++i) {
      s[i] = static_cast<float>(b[i].response_ids.size()) * 0.3f + static_cast<float>(b.step);
    }
  };
  PpoConfig config;
  config.learning_rate = 0.3;
  config.decay_steps = 10;
  config.mini_batch_size = 2;
  config.gradient_accumulation = 1;
  auto const prompts = prompts_of({0, 1, 0, 1, 1});
  Tabular<float> actor(2, 4, 5);
  randomise(actor, 9, 0.5);
  Tabular<float> const frozen = actor;
  auto decode = spell;
  auto sampler = [&actor](RaggedView c, std::uint32_t step) { return actor.sample(c, step, 1); };
  TabularOptimizer<float> optimizer{actor};
  auto const make = [&] {
    return PpoTrainer(config,
                      make_ppo_spec(config, actor, frozen, reward, sampler, decode, optimizer));
  };
  auto whole = make();
  for (int i = 0; i < 6; ++i) whole.step(prompts);
  auto const logits = actor.logits;
  auto const state = whole.state();

  actor = frozen;
  auto first = make();
  for (int i = 0; i < 3; ++i) first.step(prompts);
  PpoState const saved = first.state();
  CHECK(saved.step == 3);
  auto second = make();
  second.restore(saved);
  for (int i = 0; i < 3; ++i) second.step(prompts);
  CHECK(actor.logits == logits);
  CHECK(second.state() == state);
}

TEST_CASE("ppo: a controller that cannot be restored says so", "[rl][ppo][unit]") {
  struct Halving {
    double beta = 0.2;
    double coefficient() const noexcept { return beta; }
    void update(double, std::int64_t) { beta /= 2; }
  };
  auto bench = awkward_bench();
  PpoTrainer trainer(one_update(), make_ppo_spec(bench.actor, bench.reference, bench.reward,
                                                 bench.sampler, bench.decode, bench.optimizer,
                                                 KlK1{}, Halving{}, Gae{}, PpoClipObjective{}));
  PpoState const start = trainer.state();
  trainer.step(awkward_prompts());
  CHECK_THROWS_WITH(trainer.restore(start), ContainsSubstring("restore"));
  CHECK_NOTHROW(trainer.restore(trainer.state()));
}

TEST_CASE("ppo: a reward's memory is part of the state, and a step that fails leaves it alone",
          "[rl][ppo][rewards][unit]") {
  auto bench = awkward_bench();
  Normalised reward{bench.reward};
  bool broken = false;
  auto decode = [&](std::span<std::int32_t const> ids) { return spell(ids); };
  auto reference = [&] {
    struct Reference {
      Tabular<double> const& table;
      bool const& broken;
      void logprobs(TokenBatch const& batch, std::span<double> logp) const {
        table.logprobs(batch, logp);
        if (broken) logp[0] = std::numeric_limits<double>::quiet_NaN();
      }
    };
    return Reference{bench.reference, broken};
  }();
  auto const make = [&] {
    return PpoTrainer(one_update(), make_ppo_spec(one_update(), bench.actor, reference, reward,
                                                  bench.sampler, decode, bench.optimizer));
  };
  auto trainer = make();
  trainer.step(awkward_prompts());
  PpoState const after_one = trainer.state();
  REQUIRE_FALSE(after_one.reward.empty());
  broken = true;
  CHECK_THROWS_AS(trainer.step(awkward_prompts()), Error);
  CHECK(trainer.state() == after_one);
  broken = false;
  trainer.step(awkward_prompts());
  CHECK(trainer.state().reward != after_one.reward);
  trainer.restore(after_one);
  CHECK(trainer.state() == after_one);
  auto plain = bench.trainer(one_update());
  CHECK_THROWS_WITH(plain.restore(after_one), ContainsSubstring("reward"));
}

TEST_CASE("ppo: with the full KL the penalty is the exact divergence, whichever token was drawn",
          "[rl][ppo][kl][unit]") {
  auto bench = awkward_bench();
  PpoTrainer trainer(
      one_update(),
      make_ppo_spec(bench.actor, bench.reference, bench.reward, bench.sampler, bench.decode,
                    bench.optimizer, KlFull{}, FixedKl(0.3), Gae{}, PpoClipObjective{}));
  Tabular<double> const before = bench.actor;
  trainer.step(awkward_prompts());
  Rollout const& r = trainer.rollout();
  for (index_t i = 0; i < r.rows(); ++i) {
    auto const begin = static_cast<std::size_t>(r.offsets()[static_cast<std::size_t>(i)]);
    for (std::size_t t = 0; t < r.responses.row(i).size(); ++t) {
      auto const p = before.probabilities(static_cast<std::size_t>(i) * 5 + t);
      auto const q = bench.reference.probabilities(static_cast<std::size_t>(i) * 5 + t);
      double exact = 0;
      for (std::size_t k = 0; k < p.size(); ++k) exact += p[k] * std::log(p[k] / q[k]);
      CHECK(r.kl[begin + t] == Approx(exact).epsilon(1e-12));
    }
  }
}

TEST_CASE("ppo: an estimator's memory is part of the state, and a step that fails leaves it alone",
          "[rl][ppo][unit]") {
  auto bench = awkward_bench();
  bool broken = false;
  // The optimiser comes after the advantages: it is what fails.
  struct Optimiser {
    TabularOptimizer<double>& inner;
    bool& broken;
    void zero_gradients() { inner.zero_gradients(); }
    double step(double rate, double norm) {
      return broken ? std::numeric_limits<double>::quiet_NaN() : inner.step(rate, norm);
    }
  } optimizer{bench.optimizer, broken};
  auto const make = [&] {
    return PpoTrainer(
        one_update(),
        make_ppo_spec(bench.actor, bench.reference, bench.reward, bench.sampler, bench.decode,
                      optimizer, KlK1{}, FixedKl(0.1), RunningBaseline{}, PpoClipObjective{}));
  };
  auto trainer = make();
  trainer.step(awkward_prompts());
  PpoState const after_one = trainer.state();
  REQUIRE(after_one.advantages.size() == 2);
  broken = true;
  CHECK_THROWS_AS(trainer.step(awkward_prompts()), Error);
  CHECK(trainer.state() == after_one);
  auto other = make();
  other.restore(after_one);
  CHECK(other.state() == after_one);
  PpoTrainer without(one_update(), make_ppo_spec(bench.actor, bench.reference, bench.reward,
                                                 bench.sampler, bench.decode, optimizer, KlK1{},
                                                 FixedKl(0.1), Gae{}, PpoClipObjective{}));
  CHECK_THROWS_WITH(without.restore(after_one), ContainsSubstring("advantage estimator"));
}

TEST_CASE("ppo: the reward sees texts, ids, references and payloads", "[rl][ppo][unit]") {
  PromptBatch prompts = prompts_of({0, 1});
  prompts.references = {"r0", "r1"};
  prompts.payloads = {std::any(10), std::any(20)};
  int calls = 0;
  auto reward = [&](EpisodeBatch const& b, std::span<float> s, ScoreLog& log) {
    ++calls;
    REQUIRE(b.size() == 2);
    CHECK(b.step == 0);
    CHECK(b[0].id == "prompt:0");
    CHECK(b[0].context == "0");
    CHECK(b[1].response == "2 3");
    CHECK(b[1].reference == "r1");
    CHECK(b[1].payload_as<int>() == 20);
    CHECK(std::vector<std::int32_t>(b[1].response_ids.begin(), b[1].response_ids.end()) ==
          std::vector<std::int32_t>{2, 3, 1});
    CHECK(b[1].context_ids[0] == 1);
    s[0] = 1;
    s[1] = 3;
    log.add("half", std::vector<float>{0.5f, 1.5f});
  };
  Tabular<float> actor(2, 5, 5);
  auto frozen = actor;
  Replay sampler{{{1}, {2, 3, 1}}};
  auto decode = spell;
  TabularOptimizer<float> optimizer{actor};
  PpoConfig const config;
  PpoTrainer trainer(config,
                     make_ppo_spec(config, actor, frozen, reward, sampler, decode, optimizer));
  PpoStats const stats = trainer.step(prompts);
  CHECK(calls == 1);
  REQUIRE(stats.components.size() == 1);
  CHECK(stats.components[0].name == "half");
  CHECK(stats.components[0].mean == 1.0);
  CHECK(stats.score_mean == 2.0);
  CHECK(stats.response_length == 2.0);
  CHECK(stats.unfinished == 0.0);
  CHECK(trainer.rollout().texts[1] == "2 3");
  std::set<std::string> names;
  for_each_number(stats, [&](std::string_view name, double) { names.emplace(name); });
  CHECK(names.count("score/half") == 1);
  CHECK(names.count("entropy") == 1);
}

TEST_CASE("ppo: batches of the wrong size are refused", "[rl][ppo][unit]") {
  auto bench = awkward_bench();
  PpoConfig config = one_update();
  config.batch_size = 5;
  config.mini_batch_size = 5;
  auto trainer = bench.trainer(config);
  CHECK_THROWS_AS(trainer.step(awkward_prompts()), ConfigError);
  CHECK_THROWS_AS(trainer.step(PromptBatch{}), ConfigError);
  CHECK_THROWS_AS(trainer.step(prompts_of({0, 1})), ShapeError);  // the sampler gives six rows
  PromptBatch crooked = prompts_of({0, 1});
  crooked.references = {"only one"};
  CHECK_THROWS_AS(trainer.step(crooked), ShapeError);
}

TEST_CASE("ppo_config: the preset is the published one", "[rl][ppo][unit]") {
  PpoConfig const c = PpoConfig::emprl();
  CHECK(c.batch_size == 32);
  CHECK(c.mini_batch_size == 8);
  CHECK(c.gradient_accumulation == 4);
  CHECK(c.epochs == 4);
  CHECK(c.learning_rate == 1e-5);
  CHECK(c.gamma == 1.0);
  CHECK(c.lambda == 0.95);
  CHECK(c.policy_clip == 0.2);
  CHECK(c.value_clip == 0.2);
  CHECK(c.value_coefficient == 0.1);
  CHECK(c.kl_coefficient == 0.2);
  CHECK(c.kl_target == 6.0);
  CHECK(c.kl_horizon == 10000.0);
  CHECK(c.max_gradient_norm == 1.0);
  CHECK(c.ratio_threshold == 10.0);
  CHECK(c.score_scaling == ScoreScaling::normalise);
  CHECK(c.whiten_rewards);
  CHECK(c.whiten_advantages);
  CHECK(c.seed == 42);
  CHECK_NOTHROW(c.validate());
}

TEST_CASE("ppo_config: a setting out of range is named", "[rl][ppo][unit]") {
  auto const refused = [](char const* name, auto change) {
    PpoConfig c;
    change(c);
    CHECK_THROWS_WITH(c.validate(), ContainsSubstring(name));
  };
  double const nan_value = std::numeric_limits<double>::quiet_NaN();
  refused("batch_size", [](PpoConfig& c) { c.batch_size = 0; });
  refused("mini_batch_size", [](PpoConfig& c) { c.mini_batch_size = 33; });
  refused("gradient_accumulation", [](PpoConfig& c) { c.gradient_accumulation = 0; });
  refused("rows_per_pass", [](PpoConfig& c) { c.rows_per_pass = 0; });
  refused("epochs", [](PpoConfig& c) { c.epochs = 0; });
  refused("learning_rate", [&](PpoConfig& c) { c.learning_rate = nan_value; });
  refused("decay_steps", [](PpoConfig& c) { c.decay_steps = -1; });
  refused("max_gradient_norm", [&](PpoConfig& c) { c.max_gradient_norm = nan_value; });
  refused("gamma", [](PpoConfig& c) { c.gamma = 1.1; });
  refused("lambda", [&](PpoConfig& c) { c.lambda = nan_value; });
  refused("policy_clip", [](PpoConfig& c) { c.policy_clip = 1; });
  refused("value_clip", [](PpoConfig& c) { c.value_clip = 0; });
  refused("value_coefficient", [](PpoConfig& c) { c.value_coefficient = -1; });
  refused("kl_coefficient", [](PpoConfig& c) { c.kl_coefficient = -1; });
  refused("kl_target", [](PpoConfig& c) { c.kl_target = 0; });
  refused("kl_horizon", [](PpoConfig& c) { c.kl_horizon = 0; });
  refused("ratio_threshold", [](PpoConfig& c) { c.ratio_threshold = 1; });
  refused("ratio_tolerance", [](PpoConfig& c) { c.ratio_tolerance = 0; });
}

TEST_CASE("ppo_config: the learning rate decays linearly to 0 and stays there", "[rl][ppo][unit]") {
  PpoConfig c;
  CHECK(c.learning_rate_at(1000) == 1e-5);
  c.decay_steps = 4;
  CHECK(c.learning_rate_at(0) == 1e-5);
  CHECK(c.learning_rate_at(1) == Approx(0.75e-5));
  CHECK(c.learning_rate_at(4) == 0.0);
  CHECK(c.learning_rate_at(9) == 0.0);
}
