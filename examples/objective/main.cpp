// SPDX-License-Identifier: Apache-2.0

// An objective of one's own: Simple Policy Optimisation (Xie et al. 2024, arXiv 2401.16025), which
// pulls the ratio back where PPO's clip only stops pushing it. Both train the same policy, which
// draws six letters and is paid for vowels, with sixteen epochs over every batch, so that there is
// something to hold back. Shown are the vowels, and how many tokens' ratio the step has left
// outside of 1 +- epsilon.
// At the same learning rate the pull costs speed: the vowels come a few steps later.
//   objective [STEPS]

#include <emprl/core/rng.hpp>
#include <emprl/optim/adamw.hpp>
#include <emprl/rl/ppo.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <string_view>
#include <vector>

namespace {

using namespace emprl;

constexpr double epsilon = 0.2;

/// The loss of a token, -A r + |A| / (2 epsilon) (r - 1)^2 with r = p / p_old. It is least at
/// r = 1 + epsilon where A > 0, and at 1 - epsilon where A < 0. Its derivatives are taken by the
/// library.
struct SimplePolicyOptimisation {
  template <class S>
  S operator()(S const& logp, S const&, rl::TokenContext const& t) const {
    using namespace emprl::scalar_math;
    S const ratio = exp(logp - S(t.old_logp));
    S const beyond = ratio - S(1);
    S const pull = S(std::abs(t.advantage) / (2 * epsilon));
    return S(-t.advantage) * ratio + pull * beyond * beyond;
  }
};
static_assert(rl::Objective<SimplePolicyOptimisation>);

constexpr std::size_t letters = 26;
constexpr std::size_t length = 6;

/// A policy of six letters drawn one by one from the same probabilities, p(k) = softmax(logits)[k].
/// A copy that is not trained is the reference.
struct Letters {
  using Scalar = double;
  struct Context {
    std::vector<std::int32_t> drawn;
  };
  std::vector<double> logits = std::vector<double>(letters, 0.0);
  std::vector<double> gradients = std::vector<double>(letters, 0.0);

  std::vector<double> probabilities() const {
    std::vector<double> p;
    double sum = 0;
    for (double const x : logits) sum += p.emplace_back(std::exp(x));
    for (double& x : p) x /= sum;
    return p;
  }
  void logprobs(rl::TokenBatch const& batch, std::span<double> logp) const {
    auto const p = probabilities();
    for (std::size_t t = 0; t < logp.size(); ++t) {
      logp[t] = std::log(p[static_cast<std::size_t>(batch.responses.ids[t])]);
    }
  }
  void forward(rl::TokenBatch const& batch, std::span<double> logp, Context& kept) const {
    kept.drawn.assign(batch.responses.ids.begin(), batch.responses.ids.end());
    logprobs(batch, logp);
  }
  /// d log p(drawn) / d logit(k) = [k = drawn] - p(k)
  void backward(std::span<double const> dlogp, Context const& kept) {
    auto const p = probabilities();
    for (std::size_t t = 0; t < dlogp.size(); ++t) {
      gradients[static_cast<std::size_t>(kept.drawn[t])] += dlogp[t];
      for (std::size_t k = 0; k < letters; ++k) gradients[k] -= dlogp[t] * p[k];
    }
  }
  /// One response a context; a letter is addressed by (step, row, position).
  Ragged sample(RaggedView contexts, std::uint32_t step) const {
    auto const p = probabilities();
    Ragged responses;
    for (std::uint32_t i = 0; i < static_cast<std::uint32_t>(contexts.rows()); ++i) {
      std::vector<std::int32_t> word;
      for (std::uint32_t t = 0; t < length; ++t) {
        double u = uniform({7, Stream::sample, step, i, t});
        std::int32_t pick = 0;
        for (std::size_t k = 0; k + 1 < letters && u >= p[k]; ++k, ++pick) u -= p[k];
        word.push_back(pick);
      }
      responses.push_back(word);
    }
    return responses;
  }
};

/// Gradient descent by Adam.
struct Adam {
  Cpu dev{1};
  optim::AdamW<double> adamw;
  void zero_gradients() { adamw.zero_gradients(); }
  double step(double rate, double max_norm) { return adamw.step(dev, rate, max_norm); }
};

std::string spelt(std::span<std::int32_t const> ids) {
  std::string text;
  for (std::int32_t const id : ids) text += static_cast<char>('a' + id);
  return text;
}

/// The share of vowels.
void vowels(rl::EpisodeBatch const& episodes, std::span<float> scores) {
  rl::score_each(episodes, scores, [](rl::Episode const& e) {
    auto const n = std::ranges::count_if(e.response, [](char c) {
      return std::string_view("aeiou").find(c) != std::string_view::npos;
    });
    return static_cast<double>(n) / length;
  });
}

struct Step {
  double vowels = 0;   ///< share of the letters
  double outside = 0;  ///< share of the tokens whose ratio has left 1 +- epsilon after the epochs
};

template <rl::Objective Loss>
std::vector<Step> train(Loss loss, int steps) {
  Letters policy;
  Letters const reference = policy;
  Adam optimizer{.adamw = {{}, policy.logits, policy.gradients}};
  auto sampler = [&](RaggedView contexts, std::uint32_t step) {
    return policy.sample(contexts, step);
  };
  auto decode = spelt;
  auto reward = vowels;

  rl::PpoConfig config;
  config.learning_rate = 0.02;
  config.epochs = 16;
  config.whiten_rewards = false;
  rl::PolicyOnly actor(policy);
  rl::PpoTrainer trainer(
      config, rl::make_ppo_spec(actor, reference, reward, sampler, decode, optimizer, rl::KlK1{},
                                rl::FixedKl(0.01), rl::RunningBaseline{}, loss));

  rl::PromptBatch prompts;  // 32 responses; there is nothing to read
  for (int i = 0; i < 32; ++i) prompts.contexts.push_back(std::vector<std::int32_t>{0});
  std::vector<Step> all;
  for (int i = 0; i < steps; ++i) {
    Step step;
    step.vowels = trainer.step(prompts).score_mean;
    rl::Rollout const& r = trainer.rollout();
    std::vector<double> logp(r.logp.size());
    policy.logprobs({prompts.contexts.view(), r.responses.view()}, logp);
    for (std::size_t t = 0; t < logp.size(); ++t) {
      bool const left = std::abs(std::exp(logp[t] - r.logp[t]) - 1) > epsilon;
      step.outside += (left ? 1.0 : 0.0) / static_cast<double>(logp.size());
    }
    all.push_back(step);
  }
  return all;
}

}  // namespace

int main(int argc, char** argv) try {
  int const steps = argc > 1 ? std::atoi(argv[1]) : 40;
  if (argc > 2 || steps < 1) {
    std::fprintf(stderr, "usage: objective [STEPS]\n");
    return 2;
  }
  auto const clip = train(rl::PpoClipObjective{.policy_clip = epsilon}, steps);
  auto const own = train(SimplePolicyOptimisation{}, steps);
  std::printf("%9s   %-23s   %s\n", "", "PPO's clip", "Simple Policy Optimisation");
  for (std::size_t i = 0; i < clip.size(); ++i) {
    if (i % 5 != 0 && i + 1 != clip.size()) continue;
    std::printf("step %4zu", i);
    for (Step const& s : {clip[i], own[i]}) {
      std::printf("   vowels %5.1f %%, outside %5.1f %%", 100 * s.vowels, 100 * s.outside);
    }
    std::printf("\n");
  }
  double mean[2] = {0, 0};
  for (std::size_t i = 0; i < clip.size(); ++i) {
    mean[0] += 100 * clip[i].outside / static_cast<double>(steps);
    mean[1] += 100 * own[i].outside / static_cast<double>(steps);
  }
  std::printf("mean of all steps: %.1f %% of the tokens outside by the clip, %.1f %% by the own\n",
              mean[0], mean[1]);
} catch (std::exception const& error) {
  std::fprintf(stderr, "objective: error: %s\n", error.what());
  return 1;
}
