// SPDX-License-Identifier: Apache-2.0
#include "emprl/gen/generate.hpp"

#include <algorithm>
#include <limits>
#include <vector>

#include "support/catch.hpp"

using namespace emprl;
using gen::SamplingConfig;

namespace {

// Logits are a hash of the context's sum and all tokens so far, so that a mix-up of rows or of
// positions shows.
struct HashModel {
  using value_type = double;
  struct State {
    std::vector<std::uint32_t> memory;
    std::vector<index_t> last_rows;
    std::vector<index_t> tokens_fed;
  };
  static constexpr index_t size = 12;
  std::int32_t poison = -1;  // a token after which the logits are NaN

  index_t vocabulary() const { return size; }

  State start(RaggedView contexts) {
    State state;
    for (index_t i = 0; i < contexts.rows(); ++i) {
      std::uint32_t sum = 17;
      for (auto const id : contexts.row(i)) sum = sum * 31 + static_cast<std::uint32_t>(id);
      state.memory.push_back(sum);
      state.last_rows.push_back(i);
      state.tokens_fed.push_back(0);
    }
    return state;
  }

  void step(State& state, std::span<index_t const> rows, std::span<std::int32_t const> tokens,
            TensorView<double, 2, Cpu> logits) {
    REQUIRE(rows.size() == tokens.size());
    REQUIRE(logits.extent(0) == static_cast<index_t>(rows.size()));
    REQUIRE(logits.extent(1) == size);
    REQUIRE(std::is_sorted(rows.begin(), rows.end()));
    REQUIRE(
        std::includes(state.last_rows.begin(), state.last_rows.end(), rows.begin(), rows.end()));
    state.last_rows.assign(rows.begin(), rows.end());
    for (std::size_t i = 0; i < rows.size(); ++i) {
      auto const row = static_cast<std::size_t>(rows[i]);
      REQUIRE(state.tokens_fed[row] == state.tokens_fed[static_cast<std::size_t>(rows[0])]);
      std::uint32_t& memory = state.memory[row];
      memory = memory * 31 + static_cast<std::uint32_t>(tokens[i]);
      for (std::uint32_t v = 0; v < size; ++v) {
        double const noise = uniform({memory, Stream::initialise, v, 0, 0});
        logits(static_cast<index_t>(i), v) =
            tokens[i] == poison ? std::numeric_limits<double>::quiet_NaN() : 3.0 * noise;
      }
    }
    for (index_t const row : rows) ++state.tokens_fed[static_cast<std::size_t>(row)];
  }
};

static_assert(gen::Decoder<HashModel>);

struct NoStep {
  using value_type = float;
  struct State {};
  index_t vocabulary() const { return 1; }
  State start(RaggedView) { return {}; }
};

static_assert(!gen::Decoder<NoStep>);

Ragged contexts_of(index_t rows) {
  Ragged contexts;
  for (index_t i = 0; i < rows; ++i) {
    std::vector<std::int32_t> const row(static_cast<std::size_t>(i % 4),
                                        static_cast<std::int32_t>(i + 2));
    contexts.push_back(row);
  }
  return contexts;
}

std::vector<std::int32_t> to_vector(std::span<std::int32_t const> row) {
  return {row.begin(), row.end()};
}

}  // namespace

TEST_CASE("generate: responses keep the limits of length and end with </s>",
          "[gen][generate][unit]") {
  HashModel model;
  Ragged const contexts = contexts_of(97);
  SamplingConfig config = SamplingConfig::emprl();
  Ragged const responses = gen::generate(model, contexts.view(), config, 42, 0);
  REQUIRE(responses.rows() == 97);
  bool cut = false;
  bool ended = false;
  for (index_t i = 0; i < responses.rows(); ++i) {
    auto const row = responses.row(i);
    REQUIRE(row.size() >= 5);
    REQUIRE(row.size() <= 29);
    REQUIRE(std::count(row.begin(), row.end() - 1, 1) == 0);
    (row.back() == 1 ? ended : cut) = true;
    if (row.back() != 1) REQUIRE(row.size() == 29);
  }
  CHECK(cut);
  CHECK(ended);
}

TEST_CASE("generate: a row's response depends on its id, not on the batch",
          "[gen][generate][unit]") {
  HashModel model;
  Ragged const contexts = contexts_of(33);
  SamplingConfig const config = SamplingConfig::emprl();
  Ragged const all = gen::generate(model, contexts.view(), config, 7, 3, 100U);

  SECTION("batches of another size") {
    for (index_t begin = 0; begin < 33; begin += 5) {
      std::vector<index_t> rows;
      for (index_t i = begin; i < std::min<index_t>(33, begin + 5); ++i) rows.push_back(i);
      Ragged const part = gen::generate(model, gather_rows(contexts.view(), rows).view(), config, 7,
                                        3, static_cast<std::uint32_t>(100 + begin));
      for (std::size_t i = 0; i < rows.size(); ++i) {
        REQUIRE(to_vector(part.row(static_cast<index_t>(i))) == to_vector(all.row(rows[i])));
      }
    }
  }
  SECTION("another order") {
    std::vector<index_t> rows(33);
    std::vector<std::uint32_t> ids(33);
    for (std::size_t i = 0; i < 33; ++i) {
      rows[i] = static_cast<index_t>((i * 7) % 33);
      ids[i] = static_cast<std::uint32_t>(100 + rows[i]);
    }
    Ragged const shuffled = gather_rows(contexts.view(), rows);
    Ragged const part =
        gen::generate(model, shuffled.view(), config, 7, 3, std::span<std::uint32_t const>(ids));
    for (std::size_t i = 0; i < 33; ++i) {
      REQUIRE(to_vector(part.row(static_cast<index_t>(i))) == to_vector(all.row(rows[i])));
    }
  }
  SECTION("another seed or step draws otherwise") {
    CHECK(gen::generate(model, contexts.view(), config, 8, 3, 100U).ids != all.ids);
    CHECK(gen::generate(model, contexts.view(), config, 7, 4, 100U).ids != all.ids);
    CHECK(gen::generate(model, contexts.view(), config, 7, 3, 100U).ids == all.ids);
  }
}

TEST_CASE("generate: greedy follows the largest logit of its own history",
          "[gen][generate][unit]") {
  HashModel model;
  Ragged const contexts = contexts_of(3);
  SamplingConfig config;
  config.greedy = true;
  config.min_new_tokens = 3;
  config.max_new_tokens = 9;
  Ragged const responses = gen::generate(model, contexts.view(), config, 0, 0);
  for (index_t i = 0; i < 3; ++i) {
    std::vector<index_t> const only{i};
    auto state = model.start(gather_rows(contexts.view(), only).view());
    std::vector<index_t> const first{0};
    std::vector<std::int32_t> fed{config.start};
    std::vector<std::int32_t> expected;
    Tensor<double, 2, Cpu> const logits({1, HashModel::size});
    while (expected.size() < 9 && (expected.empty() || expected.back() != 1)) {
      model.step(state, first, fed, logits.view());
      if (expected.size() + 1 < 3) logits(0, 1) = -1.0;
      auto const row = logits.span();
      fed[0] = static_cast<std::int32_t>(std::max_element(row.begin(), row.end()) - row.begin());
      expected.push_back(fed[0]);
    }
    CHECK(to_vector(responses.row(i)) == expected);
  }
}

TEST_CASE("generate: no contexts give no responses", "[gen][generate][unit]") {
  HashModel model;
  CHECK(gen::generate(model, Ragged{}.view(), SamplingConfig::emprl(), 1, 1).rows() == 0);
}

TEST_CASE("generate: mistakes are errors that name the row", "[gen][generate][unit]") {
  using Catch::Matchers::ContainsSubstring;
  HashModel model;
  Ragged const contexts = contexts_of(2);
  SamplingConfig config;
  std::vector<std::uint32_t> const one_id{0};
  CHECK_THROWS_AS(
      gen::generate(model, contexts.view(), config, 0, 0, std::span<std::uint32_t const>(one_id)),
      ShapeError);
  config.temperature = -1.0;
  CHECK_THROWS_AS(gen::generate(model, contexts.view(), config, 0, 0), ConfigError);
  config.temperature = 1.0;
  model.poison = config.start;
  CHECK_THROWS_WITH(gen::generate(model, contexts.view(), config, 0, 0, 30U),
                    ContainsSubstring("response 30, token 0") && ContainsSubstring("NaN"));
}
