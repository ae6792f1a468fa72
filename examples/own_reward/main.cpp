// SPDX-License-Identifier: Apache-2.0

// A reward of one's own: trains a T5 folder to ask questions back.
//   own_reward MODEL DIALOGUES OUT [STEPS]

#include <emprl/emprl.hpp>

#include <cstdio>
#include <cstdlib>
#include <exception>

int main(int argc, char** argv) try {
  using namespace emprl;
  if (argc < 4 || argc > 5) {
    std::fprintf(stderr, "usage: own_reward MODEL DIALOGUES OUT [STEPS]\n");
    return 2;
  }
  Cpu dev(2);
  auto generator = train::load_generator<float>(argv[1]);
  auto dialogues = data::load_pairs(argv[2], data::Split::train).pairs;

  auto asks_back = [](rl::EpisodeBatch const& episodes, std::span<float> scores) {
    for (std::size_t i = 0; i < episodes.size(); ++i) {
      scores[i] = episodes[i].response.ends_with("?") ? 1.0f : 0.0f;
    }
  };

  train::AlignSettings settings;
  settings.steps = argc > 4 ? std::atoll(argv[4]) : 100;
  settings.ppo.learning_rate = 3e-4;
  train::align(
      dev, generator, asks_back, dialogues, settings, nullptr, [](rl::PpoStats const& stats) {
        if (stats.step % 10 == 0) {
          std::printf("step %3lld: %4.1f %% of the responses ask back, KL %.2f nats\n",
                      static_cast<long long>(stats.step), 100 * stats.score_mean, stats.kl);
        }
      });
  train::save_generator(argv[3], generator);
} catch (std::exception const& error) {
  std::fprintf(stderr, "own_reward: error: %s\n", error.what());
  return 1;
}
