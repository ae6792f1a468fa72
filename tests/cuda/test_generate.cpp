// SPDX-License-Identifier: Apache-2.0
// Generation with T5 on the GPU's kernels against generation on the CPU.
#include "emprl/gen/generate.cuh"

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "emprl/gen/beam_search.hpp"
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
  c.max_new_tokens = 37;  // beyond the cache's first growth
  c.barred = {5, 22};
  return c;
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
    std::vector<std::uint32_t> const ids{0, 1, 2, 3, 4, 5, 6};
    for (index_t const look_every : {1, 8, 100}) {
      if (i > 0 && look_every != 8) continue;
      CAPTURE(look_every);
      auto const by_device = gen::generate(dev, on_gpu, from.view(), c, 11, 2,
                                           std::span<std::uint32_t const>(ids), look_every);
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
