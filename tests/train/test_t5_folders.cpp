// SPDX-License-Identifier: Apache-2.0

// The folders that transformers wrote, read by the library's own loader and put to work the way
// the programs do it.

#include "emprl/ops/gemm_cpu.hpp"
//
#include "emprl/train/model_folder.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "emprl/gen/generate.hpp"
#include "emprl/train/sequence_loss.hpp"
#include "emprl/train/sequence_task.hpp"
#include "emprl/train/t5_adaptors.hpp"
#include "io/temporary_folder.hpp"
#include "support/catch.hpp"
#include "support/t5_golden.hpp"
#include "text/handmade_model.hpp"

using namespace emprl;

namespace {

namespace t5_folders {

/// A golden folder with a tokenizer: one of T5's 32000 pieces and 100 sentinels if the vocabulary
/// has room for them, else one with as many pieces as the vocabulary.
void furnish(test::TemporaryFolder const& folder, std::string const& golden) {
  std::filesystem::path const from = std::filesystem::path(EMPRL_GOLDEN_DIR) / golden;
  for (char const* file : {"config.json", "model.safetensors"})
    std::filesystem::copy_file(from / file, folder / file);
  index_t const vocabulary = support::golden_config(golden).vocab_size;
  folder.put("spiece.model", vocabulary > 32100 ? test::handmade_spiece_model(32000, false)
                                                : test::handmade_spiece_model(vocabulary, true));
}

template <class T>
std::vector<T> copy_of(std::span<T> x) {
  return {x.begin(), x.end()};
}

}  // namespace t5_folders

}  // namespace

TEMPLATE_TEST_CASE("model folder: a folder of transformers' gives its weights, bit for bit",
                   "[train][model_folder][golden]", float, double) {
  using T = TestType;
  for (auto const* golden : support::t5_goldens) {
    INFO(golden);
    support::GoldenT5<T> const g(golden);
    test::TemporaryFolder const folder;
    t5_folders::furnish(folder, golden);
    auto const generator = train::load_generator<T>(folder.path());
    CHECK(generator.warnings.empty());
    CHECK(generator.config().d_kv == g.config.d_kv);
    CHECK(generator.config().tie_word_embeddings == g.config.tie_word_embeddings);
    CHECK(generator.config().feed_forward == g.config.feed_forward);
    CHECK(generator.config().relative_attention_num_buckets ==
          g.config.relative_attention_num_buckets);
    CHECK(generator.config().relative_attention_max_distance ==
          g.config.relative_attention_max_distance);
    CHECK(generator.config().layer_norm_epsilon == g.config.layer_norm_epsilon);
    REQUIRE(generator.weights.infos().size() == g.parameters.infos().size());
    CHECK(std::ranges::equal(generator.weights.span(), g.parameters.span()));

    // Written and read again, they are the same.
    test::TemporaryFolder const again;
    train::save_generator(again.path(), generator);
    auto const second = train::load_generator<T>(again.path());
    CHECK(second.warnings.empty());
    CHECK(std::ranges::equal(generator.weights.span(), second.weights.span()));
    CHECK(second.tokenizer.serialized() == generator.tokenizer.serialized());
  }
}

TEMPLATE_TEST_CASE("model folder: scores, loss and gradients are those of transformers",
                   "[train][model_folder][sequence_loss][golden]", float, double) {
  using T = TestType;
  for (auto const* golden : support::t5_goldens) {
    INFO(golden);
    support::GoldenT5<T> const g(golden);
    test::TemporaryFolder const folder;
    t5_folders::furnish(folder, golden);
    auto const generator = train::load_generator<T>(folder.path());
    Cpu dev(2);
    std::vector<T> logp(g.responses.ids.size());
    train::token_logprobs(dev, generator, g.contexts.view(), g.responses.view(),
                          std::span<T>(logp));
    g.check("logprobs", logp);

    t5::Parameters<T, Cpu> const gradients(generator.config());
    double const loss = train::sequence_loss(dev, generator, g.contexts.view(), g.responses.view(),
                                             gradients.views(), t5::Prefixes<T, Cpu>{}, {});
    g.check("loss", std::vector<T>{static_cast<T>(loss)});
    for (auto const& info : gradients.infos()) g.check("grad/" + info.name, gradients.span(info));

    text::EncodedPairs const pairs{g.contexts, g.responses};
    std::vector<double> rows;
    train::Likelihood const all = train::likelihood(dev, generator, pairs, 2, &rows);
    CHECK(all.tokens == g.responses.tokens());
    g.check("loss", std::vector<T>{static_cast<T>(all.loss())});
    CHECK(static_cast<index_t>(rows.size()) == g.contexts.rows());
  }
}

TEMPLATE_TEST_CASE("model folder: greedy generation gives the tokens of transformers",
                   "[train][model_folder][generate][golden]", float, double) {
  using T = TestType;
  for (auto const* golden : support::t5_goldens) {
    INFO(golden);
    support::GoldenT5<T> const g(golden);
    test::TemporaryFolder const folder;
    t5_folders::furnish(folder, golden);
    auto const generator = train::load_generator<T>(folder.path());
    auto const expected = g.expected.template integers<std::int32_t>("greedy");
    gen::SamplingConfig config;
    config.greedy = true;
    config.min_new_tokens = 0;
    config.max_new_tokens = 8;
    Cpu dev(2);
    train::T5Decoder<T> decoder(dev, generator);
    Ragged const responses = gen::generate(decoder, g.contexts.view(), config, 1, 0);
    for (index_t row = 0; row < g.contexts.rows(); ++row) {
      INFO("row " << row);
      // Recorded continuations go on behind </s>.
      auto const begin = expected.begin() + row * 8;
      auto end = std::find(begin, begin + 8, t5::end_id);
      if (end != begin + 8) ++end;
      auto const actual = responses.row(row);
      CHECK(std::vector<std::int32_t>(actual.begin(), actual.end()) ==
            std::vector<std::int32_t>(begin, end));
    }
  }
}

TEST_CASE("model folder: rows of the embedding beyond the tokenizer are kept and never drawn",
          "[train][model_folder][golden]") {
  test::TemporaryFolder const folder;
  t5_folders::furnish(folder, "t5_wide_vocabulary");
  auto const generator = train::load_generator<float>(folder.path());
  CHECK(generator.tokenizer.size() == 32100);
  CHECK(generator.config().vocab_size == 32128);
  CHECK(generator.tokenizer.sentinel_id(0) == 32099);
  CHECK(generator.tokenizer.encode("w3 w31999 <extra_id_99>") ==
        std::vector<std::int32_t>{3, 31999, 32000});
  auto const barred = train::barred_beyond_tokenizer({}, generator).barred;
  REQUIRE(barred.size() == 28);
  CHECK(barred.front() == 32100);
  CHECK(barred.back() == 32127);
}

TEST_CASE("model folder: a tokenizer of more ids than the embedding has rows is refused",
          "[train][model_folder][golden]") {
  test::TemporaryFolder const folder;
  t5_folders::furnish(folder, "t5_v1_0");
  folder.put("spiece.model", test::handmade_spiece_model(41, true));
  CHECK(test::message_of<ConfigError>([&] {
          train::load_generator<float>(folder.path());
        }).find("41 ids") != std::string::npos);
}
