// SPDX-License-Identifier: Apache-2.0

// A KL controller of one's own: a proportional and integral one, as in a thermostat, that holds the
// KL at a number of nats a token. Beside it, the same training with a fixed coefficient, which lets
// the policy go where the reward pulls it. The policy draws six letters and is paid for vowels.
//   kl_controller [STEPS]

#include <emprl/core/rng.hpp>
#include <emprl/optim/adamw.hpp>
#include <emprl/rl/ppo.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace {

using namespace emprl;

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

/// error = KL / target - 1, cut to +-1; log beta += integral * error + proportional * (error -
/// error before). At rest the error is 0, whatever coefficient that takes.
class HoldKl {
 public:
  HoldKl(double coefficient, double target) : beta_(coefficient), target_(target) {
    expects<ConfigError>(std::isfinite(coefficient) && coefficient > 0,
                         "kl_coefficient must be a finite number above 0");
    expects<ConfigError>(std::isfinite(target) && target > 0,
                         "kl_target must be a finite number above 0");
  }

  double coefficient() const noexcept { return beta_; }

  /// mean_kl is per response.
  void update(double mean_kl, std::int64_t) {
    double const error = std::clamp(mean_kl / target_ - 1.0, -1.0, 1.0);
    beta_ *= std::exp(0.1 * error + 0.5 * (error - before_));
    before_ = error;
  }

  /// All that update changes: without these two a run could not be resumed.
  std::vector<double> state() const { return {beta_, before_}; }
  void restore(std::span<double const> state) {
    if (state.size() != 2) throw ConfigError("the saved state of HoldKl is two numbers");
    beta_ = state[0];
    before_ = state[1];
  }

 private:
  double beta_;
  double target_;
  double before_ = 0;
};
static_assert(rl::StatefulKlController<HoldKl>);

/// Trains a policy and returns the statistics of every step. After half of them the trainer is
/// thrown away, and a new one goes on from its state, as after a checkpoint.
template <rl::KlController Controller>
std::vector<rl::PpoStats> train(Controller controller, int steps) {
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
  config.score_scaling = rl::ScoreScaling::none;
  config.whiten_rewards = false;
  rl::PolicyOnly actor(policy);
  auto const spec =
      rl::make_ppo_spec(actor, reference, reward, sampler, decode, optimizer, rl::KlK1{},
                        controller, rl::RunningBaseline{}, rl::PpoClipObjective{});
  std::optional trainer{rl::PpoTrainer(config, spec)};

  rl::PromptBatch prompts;  // 32 responses; there is nothing to read
  for (int i = 0; i < 32; ++i) prompts.contexts.push_back(std::vector<std::int32_t>{0});
  std::vector<rl::PpoStats> all;
  for (int i = 0; i < steps; ++i) {
    if (i == steps / 2) {
      rl::PpoState const saved = trainer->state();
      trainer.emplace(config, spec);
      trainer->restore(saved);
    }
    all.push_back(trainer->step(prompts));
  }
  return all;
}

}  // namespace

int main(int argc, char** argv) try {
  int const steps = argc > 1 ? std::atoi(argv[1]) : 300;
  if (argc > 2 || steps < 1) {
    std::fprintf(stderr, "usage: kl_controller [STEPS]\n");
    return 2;
  }
  double const target = 0.5;  // nats a token
  auto const fixed = train(rl::FixedKl(0.02), steps);
  auto const held = train(HoldKl(0.02, target * length), steps);
  std::printf("%9s   %-32s   hold %.1f nats a token\n", "", "fixed coefficient", target);
  std::printf("%9s   %8s %11s %11s   %8s %11s %11s\n", "", "vowels", "KL a token", "coefficient",
              "vowels", "KL a token", "coefficient");
  for (std::size_t i = 0; i < fixed.size(); ++i) {
    if (i % 25 != 0 && i + 1 != fixed.size()) continue;
    std::printf("step %4zu", i);
    for (rl::PpoStats const& s : {fixed[i], held[i]}) {
      std::printf("   %6.1f %% %11.3f %11.4f", 100 * s.score_mean, s.kl / length, s.kl_coefficient);
    }
    std::printf("\n");
  }
  double mean[2] = {0, 0};
  std::size_t const last = (fixed.size() + 1) / 2;
  for (std::size_t i = fixed.size() - last; i < fixed.size(); ++i) {
    mean[0] += fixed[i].kl / length / static_cast<double>(last);
    mean[1] += held[i].kl / length / static_cast<double>(last);
  }
  std::printf("mean of the second half: %.2f nats a token fixed, %.2f held\n", mean[0], mean[1]);
} catch (std::exception const& error) {
  std::fprintf(stderr, "kl_controller: error: %s\n", error.what());
  return 1;
}
