// SPDX-License-Identifier: Apache-2.0
// Generation with T5 on the GPU's kernels against generation on the CPU.
#include "emprl/gen/generate.cuh"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "emprl/gen/beam_search.hpp"
#include "emprl/t5/lora.hpp"
#include "support/catch.hpp"
#include "support/t5_on_device.hpp"

using namespace emprl;
using gen::SamplingConfig;
using train::T5Decoder;
using train::T5Weights;

static_assert(gen::DeviceDecoder<T5Decoder<float, Cuda>>);
static_assert(gen::DeviceDecoder<T5Decoder<Bf16, Cuda>>);
static_assert(gen::BeamDecoder<T5Decoder<float, Cuda>>);
static_assert(!gen::DeviceDecoder<T5Decoder<float, Cpu>>);

namespace {

Ragged contexts() {
  return support::random_rows({5, 0, 9, 33, 2, 1, 7}, support::device_config().vocab_size, 6);
}

SamplingConfig config(double top_p, index_t top_k) {
  SamplingConfig c;
  c.temperature = 1.5;  // many tokens are likely, and so many ends
  c.top_p = top_p;
  c.top_k = top_k;
  c.min_new_tokens = 3;
  c.max_new_tokens = 37;  // beyond the first growth of the cache that the host's draws decode with
  c.barred = {5, 22};
  return c;
}

/// A decoder that counts how often its steps are launched, or recorded.
template <class T>
struct CountedSteps : T5Decoder<T, Cuda> {
  using T5Decoder<T, Cuda>::T5Decoder;

  void step_in_place(typename T5Decoder<T, Cuda>::InPlaceState& state,
                     TensorView<std::int32_t const, 1, Cuda> tokens,
                     TensorView<index_t const, 1, Cuda> length, TensorView<float, 2, Cuda> logits) {
    ++steps;
    T5Decoder<T, Cuda>::step_in_place(state, tokens, length, logits);
  }

  int steps = 0;
};

/// A decoder whose steps wait for the GPU.
struct WaitingSteps : T5Decoder<float, Cuda> {
  WaitingSteps(Cuda& device, T5Weights<float, Cuda> const& weights)
      : T5Decoder<float, Cuda>(device, weights), dev(device) {}

  void step_in_place(InPlaceState& state, TensorView<std::int32_t const, 1, Cuda> tokens,
                     TensorView<index_t const, 1, Cuda> length, TensorView<float, 2, Cuda> logits) {
    T5Decoder<float, Cuda>::step_in_place(state, tokens, length, logits);
    dev.synchronize();
  }

  Cuda& dev;
};

/// A LoRA beside every matrix, of random numbers.
void add_lora(T5Weights<float>& model) {
  t5::LoraConfig all;
  all.rank = 3;
  all.targets = {"all-linear"};
  auto const shape = t5::lora_shape(model.config(), all);
  t5::LoraParameters<float, Cpu> matrices(shape);
  auto const values = support::random_values<float>(matrices.size(), 9, 0.2);
  std::copy(values.begin(), values.end(), matrices.span().begin());
  model.attach_lora(shape, std::move(matrices));
}

}  // namespace

TEST_CASE("cuda: generation draws the CPU's tokens, sampled on the host or on the device",
          "[cuda][gen]") {
  auto const model = support::small_t5<float>(4, 2);
  Ragged const from = contexts();
  Cpu host(2);
  T5Decoder<float> on_cpu(host, model);
  Cuda dev;
  dev.scratch.poison(true);
  T5Weights<float, Cuda> const there(dev, model);
  T5Decoder<float, Cuda> on_gpu(dev, there);
  std::vector<SamplingConfig> configs{config(1.0, 0), config(0.9, 8), config(1.0, 0)};
  configs.back().greedy = true;
  bool some_end = false;
  for (std::size_t i = 0; i < configs.size(); ++i) {
    CAPTURE(i);
    auto const& c = configs[i];
    auto const expected = gen::generate(on_cpu, from.view(), c, 11, 2);
    // 700 tokens and more. A draw differs where the logits' rounding, some 1e-6, moves a threshold
    // over the random number: one draw in a million, and none of these.
    auto const by_host = gen::generate(on_gpu, from.view(), c, 11, 2);
    CHECK(by_host.ids == expected.ids);
    CHECK(by_host.offsets == expected.offsets);
    for (bool const graphs : {true, false}) {
      CAPTURE(graphs);
      dev.decoding_graphs = graphs;
      auto const by_device = gen::generate(dev, on_gpu, from.view(), c, 11, 2);
      CHECK(by_device.ids == expected.ids);
      CHECK(by_device.offsets == expected.offsets);
    }
    for (index_t r = 0; r < expected.rows(); ++r) {
      some_end = some_end || expected.row(r).back() == c.eos;
    }
  }
  // Else nothing was said about rows that leave the batch.
  CHECK(some_end);
}

TEST_CASE("cuda: beams and samples that share a context are the CPU's", "[cuda][gen]") {
  auto const model = support::small_t5<float>(4, 2);
  Ragged const from = contexts();
  Cpu host(2);
  T5Decoder<float> on_cpu(host, model);
  Cuda dev;
  dev.scratch.poison(true);
  T5Weights<float, Cuda> const there(dev, model);
  T5Decoder<float, Cuda> on_gpu(dev, there);
  SamplingConfig c = config(1.0, 0);
  c.repetition_penalty = 1.3;
  gen::BeamConfig const beams{.beams = 3, .n_best = 2};
  auto const expected = gen::beam_search(on_cpu, from.view(), c, beams);
  auto const found = gen::beam_search(on_gpu, from.view(), c, beams);
  REQUIRE(found.size() == expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    REQUIRE(found[i].size() == expected[i].size());
    for (std::size_t k = 0; k < found[i].size(); ++k) {
      CHECK(found[i][k].tokens == expected[i][k].tokens);
      // Sums of some 30 log-probabilities over their number, each from float logits of order one.
      CHECK(found[i][k].score == Approx(expected[i][k].score).epsilon(1e-5));
    }
  }
  std::vector<gen::DrawSite> sites;
  for (std::uint32_t i = 0; i < 21; ++i) sites.push_back({8, i % 3, i / 3});
  auto const samples = std::span<gen::DrawSite const>(sites);
  CHECK(gen::generate_samples(on_gpu, from.view(), 3, c, samples).ids ==
        gen::generate_samples(on_cpu, from.view(), 3, c, samples).ids);
}

TEST_CASE("cuda: the GPU's draw refuses what looks at earlier tokens", "[cuda][gen]") {
  using Catch::Matchers::ContainsSubstring;
  auto const model = support::small_t5<float>(4);
  Cuda dev;
  T5Weights<float, Cuda> const there(dev, model);
  T5Decoder<float, Cuda> decoder(dev, there);
  Ragged const from = contexts();
  SamplingConfig penalised, ngrams;
  penalised.repetition_penalty = 1.2;
  ngrams.no_repeat_ngram = 2;
  for (SamplingConfig const& c : {penalised, ngrams}) {
    CHECK_THROWS_WITH(gen::generate(dev, decoder, from.view(), c, 1, 0),
                      ContainsSubstring("repetition_penalty") && ContainsSubstring("GPU"));
    CHECK_NOTHROW(gen::generate(decoder, from.view(), c, 1, 0));
  }
}

TEST_CASE("cuda: generation names the response whose logits are not numbers", "[cuda][gen]") {
  using Catch::Matchers::ContainsSubstring;
  auto model = support::small_t5<float>(4);
  for (float& x : model.weights.span()) x = std::numeric_limits<float>::quiet_NaN();
  Cuda dev;
  T5Weights<float, Cuda> const there(dev, model);
  T5Decoder<float, Cuda> decoder(dev, there);
  Ragged const from = contexts();
  CHECK_THROWS_WITH(gen::generate(dev, decoder, from.view(), SamplingConfig(), 1, 0, 40u),
                    ContainsSubstring("response 40, token 0: a logit is NaN"));
  std::vector<std::uint32_t> const ids(7);
  CHECK_THROWS_AS(gen::generate(dev, decoder, from.view(), SamplingConfig(), 1, 0,
                                std::span<std::uint32_t const>(ids), 0),
                  ConfigError);
  CHECK(gen::generate(dev, decoder, Ragged().view(), SamplingConfig(), 1, 0).rows() == 0);
}

TEST_CASE("cuda: a step of generation is launched once, captured once, and else replayed",
          "[cuda][gen][graph]") {
  auto const model = support::small_t5<float>(4, 2);
  Ragged const from = contexts();
  Cpu host(2);
  T5Decoder<float> on_cpu(host, model);
  Cuda dev;
  T5Weights<float, Cuda> const there(dev, model);
  std::vector<std::uint32_t> const ids{0, 1, 2, 3, 4, 5, 6};
  auto const rows = std::span<std::uint32_t const>(ids);
  auto const steps = [&](SamplingConfig const& c, bool graphs, index_t look_every) {
    CountedSteps<float> decoder(dev, there);
    dev.decoding_graphs = graphs;
    auto const expected = gen::generate(on_cpu, from.view(), c, 3, 1);
    auto const drawn = gen::generate(dev, decoder, from.view(), c, 3, 1, rows, look_every);
    CHECK(drawn.ids == expected.ids);
    CHECK(drawn.offsets == expected.offsets);
    index_t longest = 0;
    for (index_t r = 0; r < expected.rows(); ++r) {
      longest = std::max(longest, expected.view().length(r));
    }
    return std::pair(decoder.steps, static_cast<int>(longest));
  };
  SamplingConfig c = config(1.0, 0);
  c.min_new_tokens = c.max_new_tokens;
  CHECK(steps(c, true, 8) == std::pair(2, 37));
  CHECK(steps(c, false, 8) == std::pair(37, 37));
  c.min_new_tokens = 0;
  c.max_new_tokens = 1;
  CHECK(steps(c, true, 8) == std::pair(1, 1));

  // Of two tokens one is the end: no row comes near 200 tokens, and the loop stops where the host
  // sees that. Memory for 200 is there nevertheless.
  SamplingConfig brief;
  brief.temperature = 5;
  brief.max_new_tokens = 200;
  for (std::int32_t v = 3; v < model.config().vocab_size; ++v) brief.barred.push_back(v);
  brief.barred.push_back(0);
  for (index_t const look_every : {1, 3, 8}) {
    CAPTURE(look_every);
    auto const [launched, longest] = steps(brief, false, look_every);
    CHECK(longest < 150);
    auto const looks = (longest + static_cast<int>(look_every) - 1) / static_cast<int>(look_every);
    CHECK(launched == looks * static_cast<int>(look_every));
    CHECK(steps(brief, true, look_every).first <= 2);
  }
}

TEST_CASE("cuda: one row alone, and contexts that all are one, are generated as on the CPU",
          "[cuda][gen][graph]") {
  auto const model = support::small_t5<float>(4);
  Cpu host(2);
  T5Decoder<float> on_cpu(host, model);
  Cuda dev;
  dev.scratch.poison(true);
  T5Weights<float, Cuda> const there(dev, model);
  T5Decoder<float, Cuda> on_gpu(dev, there);
  for (auto const& lengths : std::vector<std::vector<index_t>>{{1}, {0}, {70}, {4, 4, 4}}) {
    CAPTURE(lengths);
    Ragged const from = support::random_rows(lengths, model.config().vocab_size, 8);
    auto const expected = gen::generate(on_cpu, from.view(), config(0.9, 0), 5, 7, 20u);
    auto const drawn = gen::generate(dev, on_gpu, from.view(), config(0.9, 0), 5, 7, 20u);
    CHECK(drawn.ids == expected.ids);
    CHECK(drawn.offsets == expected.offsets);
  }
}

TEST_CASE("cuda: a prefix and a LoRA take part in generation as on the CPU",
          "[cuda][gen][lora][graph]") {
  auto model = support::small_t5<float>(4, 3);
  Ragged const from = contexts();
  Cpu host(2);
  Cuda dev;
  dev.scratch.poison(true);
  auto const on_cpu = [&] {
    T5Decoder<float> decoder(host, model);
    return gen::generate(decoder, from.view(), config(1.0, 0), 11, 2);
  };
  auto const without = on_cpu();
  add_lora(model);
  auto const expected = on_cpu();
  // Else the LoRA said nothing.
  CHECK(without.ids != expected.ids);
  T5Weights<float, Cuda> const there(dev, model);
  T5Decoder<float, Cuda> on_gpu(dev, there);
  for (bool const graphs : {true, false}) {
    CAPTURE(graphs);
    dev.decoding_graphs = graphs;
    CHECK(gen::generate(dev, on_gpu, from.view(), config(1.0, 0), 11, 2).ids == expected.ids);
  }
}

TEST_CASE("cuda: a 16-bit model generates the same with graphs, without, and by the host's draws",
          "[cuda][gen][graph]") {
  auto model = support::small_t5<float>(4, 2);
  add_lora(model);
  // As many as a batch has in place: none is unused.
  Ragged const from =
      support::random_rows({5, 0, 9, 33, 2, 1, 7, 4}, support::device_config().vocab_size, 6);
  Cuda dev;
  dev.scratch.poison(true);
  T5Weights<Bf16, Cuda> const there(dev, model);
  T5Decoder<Bf16, Cuda> on_gpu(dev, there);
  for (bool const all_to_the_end : {true, false}) {
    CAPTURE(all_to_the_end);
    SamplingConfig c = config(0.9, 0);
    c.max_new_tokens = 17;
    if (all_to_the_end) c.min_new_tokens = c.max_new_tokens;
    dev.decoding_graphs = true;
    auto const replayed = gen::generate(dev, on_gpu, from.view(), c, 11, 2);
    dev.decoding_graphs = false;
    auto const launched = gen::generate(dev, on_gpu, from.view(), c, 11, 2);
    CHECK(replayed.ids == launched.ids);
    CHECK(replayed.offsets == launched.offsets);
    CHECK((replayed.tokens() == 8 * 17) == all_to_the_end);
    // The host lets rows leave the batch. Products of fewer rows may be added up in another order,
    // and a rounding to 16 bits moves the logits by more than draws bear: so only with all rows.
    if (all_to_the_end) {
      CHECK(gen::generate(on_gpu, from.view(), c, 11, 2).ids == replayed.ids);
    }
  }
}

TEST_CASE("cuda: a step that depends on the host is reported, and runs without graphs",
          "[cuda][gen][graph]") {
  using Catch::Matchers::ContainsSubstring;
  auto const model = support::small_t5<float>(4);
  Ragged const from = contexts();
  Cuda dev;
  T5Weights<float, Cuda> const there(dev, model);
  WaitingSteps waiting(dev, there);
  T5Decoder<float, Cuda> decoder(dev, there);
  SamplingConfig const c = config(1.0, 0);
  CHECK_THROWS_WITH(gen::generate(dev, waiting, from.view(), c, 1, 0),
                    ContainsSubstring("waiting for the GPU"));
  auto const expected = gen::generate(dev, decoder, from.view(), c, 1, 0);
  dev.decoding_graphs = false;
  CHECK(gen::generate(dev, waiting, from.view(), c, 1, 0).ids == expected.ids);
}
