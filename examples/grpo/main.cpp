// SPDX-License-Identifier: Apache-2.0

// GRPO on a T5 folder: four samples a context are compared with each other, so that no value
// function is needed, and a k3 penalty in the loss keeps the policy near the reference (Shao et al.
// 2024, "DeepSeekMath"). The reward is that of own_reward: responses that ask back.
//   grpo MODEL DIALOGUES OUT [STEPS]

#include <emprl/emprl.hpp>

#include <cstdio>
#include <cstdlib>
#include <exception>

int main(int argc, char** argv) try {
  using namespace emprl;
  index_t const steps = argc > 4 ? std::atoll(argv[4]) : 100;
  if (argc < 4 || argc > 5 || steps < 1) {
    std::fprintf(stderr, "usage: grpo MODEL DIALOGUES OUT [STEPS]\n");
    return 2;
  }
  Cpu dev(2);
  auto generator = train::load_generator<float>(argv[1]);
  auto dialogues = data::load_pairs(argv[2], data::Split::train).pairs;

  auto asks_back = [](rl::EpisodeBatch const& episodes, std::span<float> scores) {
    rl::score_each(episodes, scores,
                   [](rl::Episode const& e) { return e.response.ends_with('?') ? 1 : 0; });
  };

  train::AlignSettings settings;
  settings.steps = steps;
  settings.samples_per_context = 4;  // of each of the 8 dialogues of a batch of 32
  settings.ppo.learning_rate = 3e-4;
  // The groups are the normalisation.
  settings.ppo.score_scaling = rl::ScoreScaling::none;
  settings.ppo.whiten_rewards = settings.ppo.whiten_advantages = false;
  train::Composition const grpo{rl::KlInLoss<rl::KlK3>{}, rl::FixedKl(0.05), rl::GroupRelative{4},
                                rl::PpoClipObjective{}};
  train::align(
      dev, generator, asks_back, dialogues, settings, grpo, nullptr, [](rl::PpoStats const& stats) {
        if (stats.step % 10 == 0) {
          std::printf("step %3lld: %4.1f %% of the responses ask back, KL %.2f nats\n",
                      static_cast<long long>(stats.step), 100 * stats.score_mean, stats.kl);
        }
      });
  train::save_generator(argv[3], generator);
} catch (std::exception const& error) {
  std::fprintf(stderr, "grpo: error: %s\n", error.what());
  return 1;
}
