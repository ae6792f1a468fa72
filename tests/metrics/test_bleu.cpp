// SPDX-License-Identifier: Apache-2.0
#include "emprl/metrics/bleu.hpp"

#include <string>
#include <vector>

#include "emprl/metrics/ngram.hpp"
#include "support/catch.hpp"

using namespace emprl;

TEST_CASE("bleu: a corpus scores as NLTK's corpus_bleu", "[metrics][bleu][golden]") {
  metrics::Interner words;
  std::vector<std::string> const references{
      "I am so sorry to hear that , what happened to your dog ?",
      "That is great news ! Congratulations on the new job .", "oh no"};
  std::vector<std::string> const responses{"I am sorry to hear that . What happened ?",
                                           "That is great news , congratulations on the job !",
                                           "oh no no no"};
  Ragged const a = metrics::treebank_rows(responses, words);
  Ragged const b = metrics::treebank_rows(references, words);
  auto const statistics = metrics::bleu_statistics(a.view(), b.view());
  CHECK(statistics.bleu(1) == Approx(66.18726769384466).epsilon(1e-13));
  CHECK(statistics.bleu(2) == Approx(50.03287150764929).epsilon(1e-13));
  CHECK(statistics.bleu(3) == Approx(36.615967268911106).epsilon(1e-13));
  CHECK(statistics.bleu(4) == Approx(27.568673181924424).epsilon(1e-13));
}

TEST_CASE("bleu: a repeated word matches no more often than the reference has it",
          "[metrics][bleu][unit]") {
  std::vector<std::int32_t> const response{7, 7, 7, 7};
  std::vector<std::int32_t> const reference{7, 1, 7};
  auto const statistics = metrics::bleu_statistics(response, reference);
  CHECK(statistics.matched == std::array<index_t, 4>{2, 0, 0, 0});
  CHECK(statistics.total == std::array<index_t, 4>{4, 3, 2, 1});
  CHECK(statistics.bleu(1) == Approx(50.0));
  CHECK(statistics.bleu(2) == 0.0);
}

TEST_CASE("bleu: the same text scores 100, a part of it less by the brevity penalty",
          "[metrics][bleu][unit]") {
  std::vector<std::int32_t> const reference{1, 2, 3, 4, 5, 6, 7, 8};
  CHECK(metrics::bleu_statistics(reference, reference).bleu(4) == Approx(100.0));
  std::span<std::int32_t const> const half(reference.data(), 4);
  CHECK(metrics::bleu_statistics(half, reference).bleu(4) == Approx(100.0 * std::exp(-1.0)));
}

TEST_CASE("bleu: nothing scores 0 and mistakes are errors", "[metrics][bleu][unit]") {
  CHECK(metrics::BleuStatistics{}.bleu(4) == 0.0);
  CHECK_THROWS_AS(metrics::BleuStatistics{}.bleu(5), ConfigError);
  Ragged one;
  one.push_back(std::vector<std::int32_t>{1});
  CHECK_THROWS_AS(metrics::bleu_statistics(one.view(), Ragged{}.view()), ShapeError);
}
