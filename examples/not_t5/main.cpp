// SPDX-License-Identifier: Apache-2.0

// A policy that is not T5 and has no value function: a table of letter pairs learns the alphabet by
// GRPO, with four samples a context and a k3 penalty in the loss.
//   not_t5 [STEPS]

#include <emprl/core/rng.hpp>
#include <emprl/optim/adamw.hpp>
#include <emprl/rl/ppo.hpp>

#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <numeric>
#include <string>
#include <vector>

namespace {

using namespace emprl;

constexpr std::size_t letters = 26;
constexpr std::uint32_t length = 6;

/// logits[previous][next]: the probability of a letter depends on the one before it, that of the
/// first on the context's. Everything that PPO asks of a policy: forward, backward, and what
/// forward kept.
struct LetterPairs {
  using Scalar = float;
  struct Context {
    std::vector<std::int32_t> previous, next;
  };

  std::vector<float> logits = std::vector<float>(letters * letters, 0.f);
  std::vector<float> gradients = std::vector<float>(letters * letters, 0.f);

  /// Where the table's row of a letter begins.
  static std::size_t row(std::int32_t previous) {
    return static_cast<std::size_t>(previous) * letters;
  }

  std::array<float, letters> probabilities(std::int32_t previous) const {
    std::array<float, letters> p;
    float sum = 0;
    for (std::size_t k = 0; k < letters; ++k) sum += p[k] = std::exp(logits[row(previous) + k]);
    for (float& x : p) x /= sum;
    return p;
  }

  void forward(rl::TokenBatch const& batch, std::span<float> logp, Context& kept) const {
    kept = {};
    for (index_t i = 0; i < batch.rows(); ++i) {
      std::int32_t previous = batch.contexts.row(i)[0];
      for (std::int32_t const next : batch.responses.row(i)) {
        logp[kept.next.size()] = std::log(probabilities(previous)[static_cast<std::size_t>(next)]);
        kept.previous.push_back(previous);
        kept.next.push_back(next);
        previous = next;
      }
    }
  }

  /// d log p(next) / d logit(k) = [k = next] - p(k)
  void backward(std::span<float const> dlogp, Context const& kept) {
    for (std::size_t t = 0; t < dlogp.size(); ++t) {
      auto const p = probabilities(kept.previous[t]);
      auto const drawn = static_cast<std::size_t>(kept.next[t]);
      for (std::size_t k = 0; k < letters; ++k) {
        gradients[row(kept.previous[t]) + k] += dlogp[t] * ((k == drawn ? 1.f : 0.f) - p[k]);
      }
    }
  }

  /// A copy that is not trained is the reference.
  void logprobs(rl::TokenBatch const& batch, std::span<float> logp) const {
    Context unused;
    forward(batch, logp, unused);
  }
};

std::string spelt(std::span<std::int32_t const> ids) {
  std::string text;
  for (std::int32_t const id : ids) text += static_cast<char>('a' + id);
  return text;
}

}  // namespace

int main(int argc, char** argv) try {
  int const steps = argc > 1 ? std::atoi(argv[1]) : 300;
  LetterPairs policy;
  LetterPairs const reference = policy;

  // One response a context: letters drawn one after the other, addressed by (step, row, position).
  auto sampler = [&](RaggedView contexts, std::uint32_t step) {
    Ragged responses;
    for (index_t i = 0; i < contexts.rows(); ++i) {
      std::vector<std::int32_t> word;
      for (std::uint32_t t = 0; t < length; ++t) {
        auto const p = policy.probabilities(word.empty() ? contexts.row(i)[0] : word.back());
        double u = uniform({7, Stream::sample, step, static_cast<std::uint32_t>(i), t});
        std::size_t pick = 0;
        while (pick + 1 < letters && u >= p[pick]) u -= p[pick++];
        word.push_back(static_cast<std::int32_t>(pick));
      }
      responses.push_back(word);
    }
    return responses;
  };
  // The share of letters that follow their predecessor in the alphabet, z before a.
  auto reward = [](rl::EpisodeBatch const& episodes, std::span<float> scores) {
    for (std::size_t i = 0; i < episodes.size(); ++i) {
      char previous = episodes[i].context[0];
      scores[i] = 0;
      for (char const c : episodes[i].response) {
        scores[i] += c == (previous == 'z' ? 'a' : previous + 1) ? 1.f / length : 0.f;
        previous = c;
      }
    }
  };
  struct {
    Cpu dev{1};
    optim::AdamW<float> adam;
    void zero_gradients() { adam.zero_gradients(); }
    double step(double rate, double max_norm) { return adam.step(dev, rate, max_norm); }
  } optimizer{.adam = {{}, policy.logits, policy.gradients}};

  rl::PpoConfig config;
  config.batch_size = config.mini_batch_size = 26 * 4;
  config.gradient_accumulation = 1;
  config.learning_rate = 0.05;
  config.score_scaling = rl::ScoreScaling::none;  // groups are the normalisation
  config.whiten_rewards = config.whiten_advantages = false;

  rl::PolicyOnly actor(policy);
  rl::PpoTrainer trainer(
      config, rl::make_ppo_spec(actor, reference, reward, sampler, spelt, optimizer,
                                rl::KlInLoss<rl::KlK3>{}, rl::FixedKl(0.001),
                                rl::GroupRelative{.group_size = 4}, rl::PpoClipObjective{}));

  // Every letter four times in a row: a group is the samples of one context.
  rl::PromptBatch prompts;
  for (std::int32_t i = 0; i < 26 * 4; ++i) {
    prompts.contexts.push_back(std::array{i / 4});
    prompts.texts.push_back(std::string(1, static_cast<char>('a' + i / 4)));
  }
  for (int i = 1; i <= steps; ++i) {
    rl::PpoStats const stats = trainer.step(prompts);
    if (i == 1 || i % 50 == 0) {
      std::printf("step %4d: %5.1f %% of the letters follow, KL %5.2f nats, after k comes \"%s\"\n",
                  i, 100 * stats.score_mean, stats.kl_k1, trainer.rollout().texts[4 * 10].c_str());
    }
  }
} catch (std::exception const& error) {
  std::fprintf(stderr, "not_t5: error: %s\n", error.what());
  return 1;
}
