// SPDX-License-Identifier: Apache-2.0

// A classifier as the reward: trains a T5 folder to give responses of a classifier's highest level,
// without repeating itself and without running on. The classifier is a folder that `emprl identify`
// wrote, such as runs/identifiers/er.
//   classifier_reward MODEL CLASSIFIER DIALOGUES OUT [STEPS]

#include <emprl/emprl.hpp>

#include <cstdio>
#include <cstdlib>
#include <exception>

int main(int argc, char** argv) try {
  using namespace emprl;
  if (argc < 5 || argc > 6) {
    std::fprintf(stderr, "usage: classifier_reward MODEL CLASSIFIER DIALOGUES OUT [STEPS]\n");
    return 2;
  }
  // Models, reward and training stand on one engine. With another, train::CudaEngine<float> say,
  // the rest of this file is the same and runs on a GPU.
  train::CpuEngine engine(2);
  auto generator = train::load_generator<float>(argv[1]);
  auto dialogues = data::load_pairs(argv[3], data::Split::train).pairs;

  // A rule alone is satisfied by nonsense, and a classifier by a phrase said over and over: each
  // keeps the other honest. What is named shows in the statistics, unweighted.
  train::ClassifierReward<float> level(engine, argv[2], {.level = 2});
  auto reward = rl::weighted_sum(1.0, rl::Named{"level", std::move(level)},           //
                                 0.3, rl::Named{"variety", rl::RepetitionReward{2}},  //
                                 0.2, rl::Named{"length", rl::LengthReward{12, 12}});

  train::AlignSettings settings;
  settings.steps = argc > 5 ? std::atoll(argv[5]) : 100;
  settings.ppo.learning_rate = 3e-4;
  auto const report = [](rl::PpoStats const& stats) {
    if (stats.step % 10 != 0) return;
    std::printf("step %3lld: score %.3f", static_cast<long long>(stats.step), stats.score_mean);
    for (rl::ComponentStats const& part : stats.components) {
      std::printf(", %s %.3f", part.name.c_str(), part.mean);
    }
    std::printf(", KL %.2f nats\n", stats.kl);
  };
  train::align(engine, generator, reward, dialogues, settings, nullptr, report);
  train::save_generator(argv[4], generator);
} catch (std::exception const& error) {
  std::fprintf(stderr, "classifier_reward: error: %s\n", error.what());
  return 1;
}
