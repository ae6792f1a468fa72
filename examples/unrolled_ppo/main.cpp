// SPDX-License-Identifier: Apache-2.0

// One step of PPO after the other, without the trainer class: sample, score, evaluate, shape
// rewards, advantages, epochs over mini-batches, KL coefficient. Each is a free function of rl/,
// and what lies between them is yours to change. The policy is a table: two slot machines, of
// which one pays more often.
//   unrolled_ppo [STEPS]

#include <emprl/core/rng.hpp>
#include <emprl/rl/ppo.hpp>

#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <vector>

namespace {

using namespace emprl;

/// Two actions with one logit between them, and one value. An ActorCritic, and its own reference.
struct Bandit {
  using Scalar = double;
  struct Context {
    std::vector<std::int32_t> actions;
  };
  double logit = 0, value = 0, dlogit = 0, dvalue = 0;

  double probability(std::int32_t action) const {
    return 1 / (1 + std::exp(action == 1 ? -logit : logit));
  }
  void forward(rl::TokenBatch const& batch, std::span<double> logp, std::span<double> values,
               Context& context) const {
    context.actions.assign(batch.responses.ids.begin(), batch.responses.ids.end());
    for (std::size_t i = 0; i < logp.size(); ++i) {
      logp[i] = std::log(probability(context.actions[i]));
      values[i] = value;
    }
  }
  void backward(std::span<double const> dlogp, std::span<double const> dvalues,
                Context const& context) {
    for (std::size_t i = 0; i < dlogp.size(); ++i) {
      dlogit += dlogp[i] * (context.actions[i] - probability(1));
      dvalue += dvalues[i];
    }
  }
  void logprobs(rl::TokenBatch const& batch, std::span<double> logp) const {
    std::vector<double> values(logp.size());
    Context context;
    forward(batch, logp, values, context);
  }
};

/// Gradient descent.
struct Descent {
  Bandit& bandit;
  void zero_gradients() { bandit.dlogit = bandit.dvalue = 0; }
  double step(double rate, double max_norm) {
    double const norm = std::hypot(bandit.dlogit, bandit.dvalue);
    double const scale = rate * std::min(1.0, max_norm / (norm + 1e-6));
    bandit.logit -= scale * bandit.dlogit;
    bandit.value -= scale * bandit.dvalue;
    return norm;
  }
};

}  // namespace

int main(int argc, char** argv) try {
  int const steps = argc > 1 ? std::atoi(argv[1]) : 100;
  Bandit actor;
  Bandit reference;
  Descent optimizer{actor};
  rl::PpoConfig config;
  config.learning_rate = 0.5;
  config.validate();
  rl::AdaptiveKl kl_controller(0.02, config.kl_target, config.kl_horizon);
  rl::RunningMoments moments;

  rl::PromptBatch prompts;  // 32 pulls; there is nothing to read
  for (int i = 0; i < 32; ++i) {
    prompts.contexts.push_back(std::array<std::int32_t, 1>{0});
    prompts.ids.push_back("pull " + std::to_string(i));
  }

  for (std::uint32_t step = 0; step < static_cast<std::uint32_t>(steps); ++step) {
    rl::Rollout r;

    // 1. Sample.
    for (std::uint32_t i = 0; i < 32; ++i) {
      double const u = uniform({1, Stream::sample, step, i, 0});
      r.responses.push_back(std::array{std::int32_t{u < actor.probability(1)}});
      r.texts.push_back(r.responses.ids.back() == 1 ? "right" : "left");
    }
    r.mask = rl::response_mask(r.responses.view());

    // 2. Score: the right machine pays on 7 pulls of 10, the left on 4.
    auto pays = [](rl::EpisodeBatch const& episodes, std::span<float> scores) {
      for (std::size_t i = 0; i < episodes.size(); ++i) {
        double const u =
            uniform({2, Stream::sample, episodes.step, static_cast<std::uint32_t>(i), 0});
        scores[i] = u < (episodes[i].response == "right" ? 0.7 : 0.4) ? 1.f : 0.f;
      }
    };
    std::vector<std::string> names;
    std::vector<rl::Episode> const episodes = rl::view_episodes(prompts, r, names);
    r.log = rl::ScoreLog(episodes.size());
    r.scores = rl::score_episodes(pays, {episodes, step}, r.log);

    // 3. Log-probabilities and values of the policy that sampled, and the reference's.
    rl::evaluate_rollout(actor, reference, prompts, config.mini_batch_size, r);

    // 4. Rewards: the normalised score on the last token, less the KL penalty on every one.
    moments.update(r.scores);
    r.shaped_scores = r.scores;
    rl::scale_scores(r.shaped_scores, moments, rl::ScoreScaling::normalise);
    r.kl.resize(r.mask.size());
    r.rewards.resize(r.mask.size());
    rl::token_kl(rl::KlK1{}, r.logp, r.reference, r.mask, r.kl);
    rl::shape_rewards(r.offsets(), r.kl, r.shaped_scores, r.mask, kl_controller.coefficient(),
                      r.rewards);
    double const kl = rl::mean_row_sum(r.offsets(), r.kl, r.mask);

    // 5. Advantages, whitened.
    r.advantages.resize(r.mask.size());
    r.returns.resize(r.mask.size());
    rl::Gae{config.gamma, config.lambda}(r, r.advantages, r.returns);
    rl::masked_whiten(r.advantages, r.mask, rl::WhitenMean::remove);

    // 6. Epochs over mini-batches.
    rl::PpoClipObjective const objective{config.policy_clip, config.value_clip,
                                         config.value_coefficient};
    rl::UpdateReport const update = rl::update_policy(actor, objective, optimizer, prompts, r,
                                                      config, step, config.learning_rate);

    // 7. The KL coefficient of the next step.
    kl_controller.update(kl, r.rows());

    if (step % 20 == 0 || step + 1 == static_cast<std::uint32_t>(steps)) {
      double paid = 0;
      for (double const s : r.scores) paid += s / static_cast<double>(r.rows());
      std::printf(
          "step %4u: paid %.2f, right with probability %.3f, value %+.2f, KL %.3f, ratio "
          "%.3f\n",
          step, paid, actor.probability(1), actor.value, kl, update.sums.mean_ratio());
    }
  }
} catch (std::exception const& error) {
  std::fprintf(stderr, "unrolled_ppo: error: %s\n", error.what());
  return 1;
}
