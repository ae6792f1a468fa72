// SPDX-License-Identifier: Apache-2.0

// A rule as a reward, measured: PPO makes a generator sound positive, by a list of words. Shows the
// reward as it rises, compares mean and deviation on held-out contexts before and after, and prints
// samples, because a rule is easily pleased: "That's good." is positive, whatever it answers.
//   sentiment MODEL DIALOGUES OUT [STEPS]

#include <emprl/emprl.hpp>

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <string_view>
#include <vector>

namespace {

using namespace emprl;

constexpr std::array<std::string_view, 20> positive{
    "amazing", "awesome", "beautiful", "best",     "congratulations", "enjoy", "excited",
    "fun",     "glad",    "good",      "great",    "happy",           "joy",   "love",
    "lovely",  "nice",    "proud",     "thrilled", "wonderful",       "wow"};
constexpr std::array<std::string_view, 20> negative{
    "afraid", "angry", "awful", "bad",  "cry",   "hard",  "hate",  "hurt",     "lonely", "lost",
    "rough",  "sad",   "scary", "sick", "sorry", "tears", "tough", "terrible", "upset",  "worst"};

/// (positive - negative) / (positive + negative) words; 0 without either. In [-1, 1].
double sentiment(std::string_view text) {
  double good = 0, bad = 0;
  std::string word;
  auto const count = [&] {
    good += static_cast<double>(std::ranges::count(positive, word));
    bad += static_cast<double>(std::ranges::count(negative, word));
    word.clear();
  };
  for (char const c : text) {
    auto const letter = static_cast<unsigned char>(c);
    if (std::isalpha(letter)) {
      word += static_cast<char>(std::tolower(letter));
    } else {
      count();
    }
  }
  count();
  return good + bad > 0 ? (good - bad) / (good + bad) : 0.0;
}

struct Sample {
  std::vector<std::string> responses;
  double mean = 0, deviation = 0;
};

/// Sentiment of one sampled response to each context.
Sample measure(Cpu& dev, train::Generator<float> const& generator,
               std::span<data::Pair const> dialogues) {
  train::T5Decoder<float> decoder(dev, generator);
  auto const sampling = train::barred_beyond_tokenizer(gen::SamplingConfig::emprl(), generator);
  auto const contexts = text::encode_pairs(generator.tokenizer, dialogues).contexts;
  Ragged const responses = gen::generate(decoder, contexts.view(), sampling, 7, 0);
  Sample sample;
  std::vector<double> scores;
  for (index_t i = 0; i < responses.rows(); ++i) {
    sample.responses.push_back(generator.tokenizer.decode(responses.row(i)));
    scores.push_back(sentiment(sample.responses.back()));
  }
  std::vector<std::uint8_t> const all(scores.size(), 1);
  sample.mean = rl::masked_mean(scores, all);
  sample.deviation = std::sqrt(rl::masked_variance(scores, all));
  return sample;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 4 || argc > 5) {
    std::fprintf(stderr, "usage: sentiment MODEL DIALOGUES OUT [STEPS]\n");
    return 2;
  }
  Cpu dev(2);
  auto generator = train::load_generator<float>(argv[1]);
  auto const dialogues = data::load_pairs(argv[2], data::Split::train).pairs;
  auto held_out = data::load_pairs(argv[2], data::Split::valid).pairs;
  if (held_out.size() > 500) held_out.resize(500);

  rl::Named reward{"sentiment", [](rl::EpisodeBatch const& episodes, std::span<float> scores) {
                     rl::score_each(episodes, scores,
                                    [](rl::Episode const& e) { return sentiment(e.response); });
                   }};
  Sample const before = measure(dev, generator, held_out);

  train::AlignSettings settings;
  settings.steps = argc > 4 ? std::atoll(argv[4]) : 100;
  settings.ppo.learning_rate = 1e-4;
  settings.ppo.kl_coefficient = 0.2;
  std::printf("step  sentiment  KL\n");
  double sum = 0;
  train::align(dev, generator, reward, dialogues, settings, nullptr, [&](rl::PpoStats const& s) {
    sum += s.score_mean;
    if (s.step % 10 != 9) return;
    auto const bar = static_cast<int>(std::lround(20 * (1 + sum / 10)));
    std::printf("%4lld %+10.2f %5.2f  %.*s\n", static_cast<long long>(s.step + 1), sum / 10, s.kl,
                bar, "########################################");
    sum = 0;
  });
  train::save_generator(argv[3], generator);

  Sample const after = measure(dev, generator, held_out);
  for (std::size_t i = 0; i < std::min<std::size_t>(3, held_out.size()); ++i) {
    std::printf("\ncontext  %s\nbefore   %s\nafter    %s\n", held_out[i].context.c_str(),
                before.responses[i].c_str(), after.responses[i].c_str());
  }
  std::printf(
      "\n%zu held-out contexts: %+.2f (deviation %.2f) before, %+.2f after: %.2f "
      "deviations\n",
      held_out.size(), before.mean, before.deviation, after.mean,
      (after.mean - before.mean) / before.deviation);
} catch (std::exception const& error) {
  std::fprintf(stderr, "sentiment: error: %s\n", error.what());
  return 1;
}
