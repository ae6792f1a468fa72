// SPDX-License-Identifier: Apache-2.0
// The models given in the comments of concepts.hpp are models: together they are a complete, if
// small, run.
#include "emprl/rl/concepts.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "emprl/rl/ppo.hpp"
#include "support/catch.hpp"

using namespace emprl;

namespace {

struct Coin {
  using Scalar = double;
  struct Context {
    std::vector<std::int32_t> y;
  };
  double logit = 0, gradient = 0;
  double p(int y) const { return 1 / (1 + std::exp(y ? -logit : logit)); }
  void forward(rl::TokenBatch const& b, std::span<double> logp, Context& c) const {
    c.y.assign(b.responses.ids.begin(), b.responses.ids.end());
    for (std::size_t i = 0; i < logp.size(); ++i) logp[i] = std::log(p(c.y[i]));
  }
  void backward(std::span<double const> d, Context const& c) {
    for (std::size_t i = 0; i < d.size(); ++i) gradient += d[i] * (c.y[i] - p(1));
  }
};

struct Constant {
  using Scalar = double;
  struct Context {};
  double v = 0, gradient = 0;
  void forward(rl::TokenBatch const&, std::span<double> out, Context&) const {
    std::ranges::fill(out, v);
  }
  void backward(std::span<double const> d, Context const&) {
    for (double x : d) gradient += x;
  }
};

struct Uniform {
  double n;
  void logprobs(rl::TokenBatch const&, std::span<double> logp) const {
    std::ranges::fill(logp, -std::log(n));
  }
};

struct Squared {
  template <class S>
  S operator()(S const& p, S const& q) const {
    return S(0.5) * (p - q) * (p - q);
  }
};

struct Halving {
  double beta = 0.2;
  double coefficient() const noexcept { return beta; }
  void update(double, std::int64_t) { beta /= 2; }
  std::vector<double> state() const { return {beta}; }
  void restore(std::span<double const> s) { beta = s[0]; }
};

struct RewardToGo {
  using Out = std::span<double>;
  void operator()(rl::Rollout const& r, Out advantages, Out returns) const {
    rl::Gae{1, 1}(r, advantages, returns);
    std::ranges::copy(returns, advantages.begin());
  }
};

struct Reinforce {
  template <class S>
  S operator()(S logp, S value, rl::TokenContext const& t) const {
    S const error = value - S(t.ret);
    return S(-t.advantage) * logp + S(0.5) * error * error;
  }
};

struct Descent {
  Coin& coin;
  void zero_gradients() { coin.gradient = 0; }
  double step(double rate, double max_norm) {
    double const norm = std::abs(coin.gradient);
    if (!std::isfinite(norm)) return norm;
    coin.logit -= rate * coin.gradient * std::min(1.0, max_norm / (norm + 1e-6));
    return norm;
  }
};

}  // namespace

TEST_CASE("concepts: the models of the comments learn to show heads", "[rl][concepts][probe]") {
  Coin coin;
  Constant value;
  rl::SeparateActorCritic actor{coin, value};
  Uniform reference{2};
  auto heads = [](rl::EpisodeBatch const& episodes, std::span<float> scores) {
    for (std::size_t i = 0; i < episodes.size(); ++i) {
      scores[i] = episodes[i].response == "heads" ? 1.f : 0.f;
    }
  };
  auto flip = [&](RaggedView contexts, std::uint32_t step) {
    Ragged out;
    for (index_t i = 0; i < contexts.rows(); ++i) {
      double const u = uniform({1, Stream::sample, step, static_cast<std::uint32_t>(i), 0});
      out.push_back(std::array{std::int32_t(u < coin.p(1))});
    }
    return out;
  };
  auto decode = [](std::span<std::int32_t const> ids) { return ids[0] == 1 ? "heads" : "tails"; };
  Descent optimizer{coin};
  rl::PpoConfig config;
  config.learning_rate = 0.3;
  config.epochs = 1;
  config.whiten_rewards = false;
  rl::PpoTrainer trainer{
      config, rl::make_ppo_spec(actor, reference, heads, flip, decode, optimizer, Squared{},
                                Halving{}, RewardToGo{}, Reinforce{})};
  rl::PromptBatch prompts;
  for (int i = 0; i < 32; ++i) prompts.contexts.push_back(std::array{std::int32_t{0}});
  for (int i = 0; i < 60; ++i) trainer.step(prompts);
  CHECK(coin.p(1) > 0.9);
  CHECK(trainer.kl_controller().coefficient() < 1e-15);
}

TEST_CASE("concepts: an optimiser that throws on a bad norm has its error tell the episodes",
          "[rl][concepts][contract]") {
  struct Throwing {
    double step(double, double) { throw Error("the norm is not finite"); }
    void zero_gradients() {}
  } optimizer;
  rl::PromptBatch prompts;
  prompts.ids = {"talk:1", "talk:2", "talk:3"};
  std::vector<index_t> const rows{0, 2};
  using Catch::Matchers::ContainsSubstring;
  CHECK_THROWS_WITH(rl::step_optimizer(optimizer, 0.1, 1.0, prompts, rows),
                    ContainsSubstring("not finite") && ContainsSubstring("talk:1") &&
                        ContainsSubstring("talk:3") && !ContainsSubstring("talk:2"));
}
