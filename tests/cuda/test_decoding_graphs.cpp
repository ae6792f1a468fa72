// SPDX-License-Identifier: Apache-2.0
// Graphs that are kept from one batch to the next, against generation on the host.
#include "emprl/gen/decoding_graphs.cuh"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "emprl/gen/generate.cuh"
#include "emprl/optim/adamw.cuh"
#include "support/catch.hpp"
#include "support/t5_on_device.hpp"

using namespace emprl;
using gen::DecodingGraphs;
using gen::SamplingConfig;

namespace {

/// A decoder whose logits are a row of one table, for the last token, and one of another, for the
/// context. On the GPU a step is three kernels over temporaries, and the logits of unused rows are
/// NaN. The sums on the host are the same to the bit.
class Bigrams {
 public:
  static constexpr index_t size = 23;
  using value_type = float;
  struct State {
    std::vector<std::int32_t> context;  // a row of its table for each
  };
  struct InPlaceState {
    index_t context_tokens = 0;
    Tensor<std::int32_t, 1, Cuda> context;
  };
  struct Bindings {
    TensorView<float, 2, Cuda> by_token, by_context;

    bool operator==(Bindings const&) const = default;
  };

  Bigrams(Cuda& dev, std::uint64_t seed) : dev_(dev) { set(seed); }

  /// Other numbers in the same place.
  void set(std::uint64_t seed) {
    host_by_token_ = support::random_values<float>(size * size, seed);
    host_by_context_ = support::random_values<float>(size * size, seed + 1);
    copy(dev_, by_token_.view(), host_by_token_);
    copy(dev_, by_context_.view(), host_by_context_);
  }
  /// The same numbers in another place.
  void move() {
    Tensor<float, 2, Cuda> elsewhere({size, size});
    copy(dev_, elsewhere.view(), host_by_token_);
    std::swap(by_token_, elsewhere);
  }
  /// NaN on the GPU, for all tokens.
  void break_there() {
    std::vector<float> const nan(size * size, std::numeric_limits<float>::quiet_NaN());
    copy(dev_, by_token_.view(), nan);
  }

  index_t vocabulary() const { return size; }

  State start(RaggedView contexts) const {
    State state;
    for (index_t i = 0; i < contexts.rows(); ++i) {
      std::int32_t sum = 3;
      for (auto const id : contexts.row(i)) {
        sum = static_cast<std::int32_t>((31 * sum + id) % size);
      }
      state.context.push_back(sum);
    }
    return state;
  }
  void step(State& state, std::span<index_t const> rows, std::span<std::int32_t const> tokens,
            TensorView<float, 2, Cpu> logits) const {
    for (std::size_t i = 0; i < rows.size(); ++i) {
      std::int32_t const context = state.context[static_cast<std::size_t>(rows[i])];
      for (index_t v = 0; v < size; ++v) {
        logits(static_cast<index_t>(i), v) =
            host_by_token_[static_cast<std::size_t>(tokens[i] * size + v)] +
            host_by_context_[static_cast<std::size_t>(context * size + v)];
      }
    }
  }

  InPlaceState in_place(index_t rows, index_t context_tokens, index_t) const {
    return {context_tokens, Tensor<std::int32_t, 1, Cuda>({rows})};
  }
  void start_in_place(InPlaceState& state, RaggedView contexts) const {
    REQUIRE(contexts.tokens() <= state.context_tokens);
    auto rows = start(contexts).context;
    rows.resize(static_cast<std::size_t>(state.context.size()), -1);
    copy(dev_, state.context.view(), rows);
  }
  void step_in_place(InPlaceState& state, TensorView<std::int32_t const, 1, Cuda> tokens,
                     TensorView<index_t const, 1, Cuda>, TensorView<float, 2, Cuda> logits) {
    ++launched;
    if (waits) dev_.synchronize();
    ArenaScope const scope(dev_.scratch);
    auto const more = dev_.scratch.allocate<float, 2>(logits.extents());
    embedding_forward<float>(dev_, logits, by_token_.view(), tokens);
    embedding_forward<float>(dev_, more, by_context_.view(), state.context.view());
    add<float>(dev_, logits, more);
  }
  Bindings bindings() const { return {by_token_.view(), by_context_.view()}; }

  int launched = 0;    // steps that were launched, or recorded
  bool waits = false;  // what no capture takes

 private:
  Cuda& dev_;
  std::vector<float> host_by_token_, host_by_context_;
  Tensor<float, 2, Cuda> by_token_{{size, size}}, by_context_{{size, size}};
};

static_assert(gen::DeviceDecoder<Bigrams>);

SamplingConfig config() {
  SamplingConfig c;
  c.top_k = 9;
  c.min_new_tokens = 2;
  c.max_new_tokens = 7;
  c.barred = {5, 22};
  return c;
}

/// Contexts of these lengths.
Ragged contexts(std::vector<index_t> const& lengths, std::uint64_t seed = 6) {
  return support::random_rows(lengths, Bigrams::size, seed);
}

/// Rows of five tokens each.
Ragged rows(std::size_t n, index_t length = 5) {
  return contexts(std::vector<index_t>(n, length), n);
}

bool same(Ragged const& a, Ragged const& b) {
  return a.ids == b.ids && a.offsets == b.offsets;
}

/// Draws a batch on the GPU, which must be the host's.
void check(DecodingGraphs<Bigrams>& graphs, Bigrams& model, Ragged const& from,
           SamplingConfig const& c, std::uint64_t seed = 1) {
  CHECK(same(graphs.generate(from.view(), c, seed, 2),
             gen::generate(model, from.view(), c, seed, 2)));
}

}  // namespace

TEST_CASE("cuda: one graph serves all batches of a shape, and draws the host's tokens",
          "[cuda][gen][graph]") {
  Cuda dev;
  dev.scratch.poison(true);
  Bigrams model(dev, 3);
  DecodingGraphs graphs(dev, model);
  struct Batch {
    std::vector<index_t> lengths;
    std::uint64_t seed;
    std::uint32_t step;
    std::vector<std::uint32_t> ids;
  };
  // Fewer rows than before and more, longer contexts and shorter, and none at all.
  std::vector<Batch> const batches{{{3, 0, 9, 2, 1, 7, 5}, 1, 0, {0, 1, 2, 3, 4, 5, 6}},
                                   {{40}, 1, 0, {3}},
                                   {{1, 1, 1, 1, 1, 1, 1, 200}, 9, 4, {8, 7, 6, 5, 4, 3, 2, 1}},
                                   {{0, 0}, ~std::uint64_t{0}, ~0u, {5, 5}},
                                   {{3, 0, 9, 2, 1, 7, 5}, 1, 0, {0, 1, 2, 3, 4, 5, 6}}};
  index_t look_every = 1;
  for (bool const on : {true, false}) {
    CAPTURE(on);
    dev.decoding_graphs = on;
    for (auto const& batch : batches) {
      CAPTURE(batch.lengths, look_every);
      Ragged const from = contexts(batch.lengths);
      auto const ids = std::span<std::uint32_t const>(batch.ids);
      auto const expected =
          gen::generate(model, from.view(), config(), batch.seed, batch.step, ids);
      CHECK(same(graphs.generate(from.view(), config(), batch.seed, batch.step, ids, look_every),
                 expected));
      look_every = 3 * look_every % 7;  // 1 to 6 in some order
    }
    // One was launched, one captured, all others were replays.
    CHECK(graphs.captures() == 1);
    CHECK(graphs.kept() == 1);
    if (on) CHECK(model.launched == 2);
  }
  CHECK(model.launched > 2 + 5);
}

TEST_CASE("cuda: replays leave alone what others have in scratch memory", "[cuda][gen][graph]") {
  Cuda dev;
  Bigrams model(dev, 3);
  DecodingGraphs graphs(dev, model);
  check(graphs, model, rows(3), config());
  ArenaScope const scope(dev.scratch);
  auto const values = support::random_values<float>(4096, 8);
  auto const mine = on_device(dev, dev.scratch, std::span<float const>(values));
  check(graphs, model, rows(3), config(), 2);
  std::vector<float> after(values.size());
  copy(dev, std::span<float>(after), mine);
  CHECK(after == values);
  CHECK(graphs.captures() == 1);
}

TEST_CASE("cuda: a batch is decoded with an eighth more rows than it has, or up to seven more",
          "[cuda][gen][graph]") {
  CHECK(gen::bucket_rows(1) == 8);
  CHECK(gen::bucket_rows(8) == 8);
  CHECK(gen::bucket_rows(9) == 16);
  CHECK(gen::bucket_rows(100) == 104);
  CHECK(gen::bucket_rows(129) == 144);
  CHECK(gen::bucket_rows(1000) == 1024);
  for (index_t n = 1; n < 3000; ++n) {
    index_t const b = gen::bucket_rows(n);
    CAPTURE(n, b);
    REQUIRE(b >= n);
    REQUIRE(b % 8 == 0);
    REQUIRE((b - n < 8 || 8 * (b - n) < n));
    REQUIRE(gen::bucket_rows(b) == b);
    REQUIRE(b <= gen::bucket_rows(n + 1));
  }
}

TEST_CASE("cuda: another shape is another graph, and the one not used for longest goes",
          "[cuda][gen][graph]") {
  Cuda dev;
  dev.scratch.poison(true);
  Bigrams model(dev, 3);
  SECTION("rows, tokens and settings") {
    DecodingGraphs graphs(dev, model, 3);
    check(graphs, model, rows(1), config());
    check(graphs, model, rows(9), config());
    CHECK(graphs.captures() == 2);
    check(graphs, model, rows(8), config());
    CHECK(graphs.captures() == 2);
    CHECK(graphs.kept() == 2);
    // More tokens than there is room for: a larger one takes its place, which has room for fewer.
    check(graphs, model, rows(1, 300), config());
    CHECK(graphs.captures() == 3);
    CHECK(graphs.kept() == 2);
    check(graphs, model, rows(1), config(), 5);
    check(graphs, model, rows(2, 256), config());
    CHECK(graphs.captures() == 3);
    SamplingConfig other = config();
    other.barred = {6};
    check(graphs, model, rows(2), other);
    CHECK(graphs.captures() == 4);
    CHECK(graphs.kept() == 3);
    graphs.clear();
    CHECK(graphs.kept() == 0);
    check(graphs, model, rows(2), other);
    CHECK(graphs.captures() == 5);
  }
  SECTION("eviction") {
    DecodingGraphs graphs(dev, model, 2);
    auto const captured = [&](index_t top_k) {
      std::size_t const before = graphs.captures();
      SamplingConfig c = config();
      c.top_k = top_k;
      check(graphs, model, rows(1), c);
      CHECK(graphs.kept() <= 2);
      return graphs.captures() > before;
    };
    CHECK(captured(1));
    CHECK(captured(2));
    CHECK(!captured(1));
    CHECK(captured(3));  // in place of 2
    CHECK(!captured(1));
    CHECK(captured(2));  // in place of 3
    CHECK(!captured(1));
    CHECK(!captured(2));
  }
  SECTION("one token needs no graph") {
    DecodingGraphs graphs(dev, model);
    SamplingConfig brief = config();
    brief.min_new_tokens = brief.max_new_tokens = 1;
    check(graphs, model, rows(3), brief);
    CHECK(graphs.captures() == 0);
    check(graphs, model, rows(3), brief, 2);
    check(graphs, model, rows(3), brief, 3);
    CHECK(graphs.captures() == 1);
    CHECK(model.launched == 2);
  }
}

TEST_CASE("cuda: a graph draws by the weights as they are, and goes where they move",
          "[cuda][gen][graph]") {
  Cuda dev;
  Bigrams model(dev, 3);
  DecodingGraphs graphs(dev, model);
  Ragged const from = rows(3);
  auto const before = graphs.generate(from.view(), config(), 1, 2);
  model.set(30);
  check(graphs, model, from, config());
  CHECK(!same(graphs.generate(from.view(), config(), 1, 2), before));
  CHECK(graphs.captures() == 1);
  model.move();
  check(graphs, model, from, config());
  CHECK(graphs.captures() == 2);
  CHECK(graphs.kept() == 1);
  // So do products that are taken in another way.
  dev.products.float32 = cuda::Float32Products::tf32;
  check(graphs, model, from, config());
  CHECK(graphs.captures() == 3);
  check(graphs, model, from, config(), 2);
  CHECK(graphs.captures() == 3);
  dev.products.few_rows = 0;
  check(graphs, model, from, config());
  dev.overlap_launches = !dev.overlap_launches;
  check(graphs, model, from, config());
  CHECK(graphs.captures() == 5);
  // And products by other algorithms; a list that is refused has none.
  dev.products.restore(dev.products.list());
  check(graphs, model, from, config());
  CHECK(graphs.captures() == 6);
  CHECK(graphs.kept() == 1);
  CHECK_THROWS_AS(dev.products.restore("products for another GPU\n"), ConfigError);
  check(graphs, model, from, config(), 2);
  CHECK(graphs.captures() == 6);
}

TEST_CASE("cuda: two models on one context keep graphs of their own", "[cuda][gen][graph]") {
  Cuda dev;
  dev.scratch.poison(true);
  Bigrams one(dev, 3), other(dev, 4);
  auto first = std::make_unique<DecodingGraphs<Bigrams>>(dev, one);
  DecodingGraphs second(dev, other);
  for (std::uint64_t const seed : {1u, 2u, 3u}) {
    check(*first, one, rows(3), config(), seed);
    check(second, other, rows(3), config(), seed);
  }
  CHECK(first->captures() == 1);
  CHECK(second.captures() == 1);
  first.reset();
  check(second, other, rows(2), config());
  CHECK(second.captures() == 1);
}

TEST_CASE("cuda: what goes wrong with a kept graph is named, and the next batch is drawn",
          "[cuda][gen][graph]") {
  using Catch::Matchers::ContainsSubstring;
  Cuda dev;
  Bigrams model(dev, 3);
  Ragged const from = rows(3);
  CHECK_THROWS_AS(DecodingGraphs(dev, model, 0), ConfigError);
  DecodingGraphs graphs(dev, model);
  model.waits = true;
  CHECK_THROWS_WITH(graphs.generate(from.view(), config(), 1, 2),
                    ContainsSubstring("waiting for the GPU"));
  CHECK(graphs.captures() == 0);
  model.waits = false;
  check(graphs, model, from, config());
  CHECK(graphs.captures() == 1);
  model.break_there();
  CHECK_THROWS_WITH(graphs.generate(from.view(), config(), 1, 2, 40u),
                    ContainsSubstring("response 40, token 0: a logit is NaN"));
  model.set(3);
  check(graphs, model, from, config());
  CHECK(graphs.captures() == 1);

  SamplingConfig penalised = config(), hot = config();
  penalised.repetition_penalty = 1.2;
  hot.temperature = 0;
  std::vector<std::uint32_t> const ids{0, 1, 2}, few{0, 1};
  auto const generate = [&](SamplingConfig const& c, std::vector<std::uint32_t> const& its,
                            index_t look_every) {
    return graphs.generate(from.view(), c, 1, 2, std::span<std::uint32_t const>(its), look_every);
  };
  CHECK_THROWS_WITH(generate(penalised, ids, 8), ContainsSubstring("repetition_penalty"));
  CHECK_THROWS_AS(generate(hot, ids, 8), ConfigError);
  CHECK_THROWS_AS(generate(config(), ids, 0), ConfigError);
  CHECK_THROWS_AS(generate(config(), few, 8), ShapeError);
  CHECK(graphs.generate(Ragged().view(), config(), 1, 2).rows() == 0);
  // None of them took memory.
  CHECK(graphs.kept() == 1);
}

TEST_CASE("cuda: a T5's graph serves other contexts, and the weights that an optimiser leaves",
          "[cuda][gen][graph]") {
  auto const host = support::small_t5<float>(4, 2);
  Cuda dev;
  dev.scratch.poison(true);
  train::T5Weights<float, Cuda> const there(dev, host);
  train::T5Decoder<float, Cuda> decoder(dev, there);
  DecodingGraphs graphs(dev, decoder);
  SamplingConfig c;
  c.temperature = 1.5;
  c.min_new_tokens = 3;
  c.max_new_tokens = 9;
  Ragged const first = contexts({5, 0, 9, 33, 2, 1, 7});
  Cpu cpu(2);
  auto on_cpu = support::small_t5<float>(4, 2);
  train::T5Decoder<float> reference(cpu, on_cpu);
  for (auto const& from : {first, contexts({70, 4}), contexts({3, 3, 0, 1, 1, 1, 1, 9})}) {
    CHECK(same(graphs.generate(from.view(), c, 11, 2),
               gen::generate(reference, from.view(), c, 11, 2)));
  }
  auto const before = graphs.generate(first.view(), c, 11, 2);

  t5::Parameters<float, Cuda> const gradients(dev, host.config());
  copy(dev, gradients.all(), support::random_values<float>(gradients.size(), 5));
  optim::CudaAdamW adamw(dev, {}, {{there.weights.all(), gradients.all(), {}}});
  adamw.step(0.1, 1.0);
  train::copy_weights(dev, on_cpu, there);
  auto const after = graphs.generate(first.view(), c, 11, 2);
  CHECK(same(after, gen::generate(reference, first.view(), c, 11, 2)));
  CHECK(!same(after, before));
  CHECK(graphs.captures() == 1);
}

TEST_CASE("cuda: a T5's graphs go when an adapter or a prefix comes or goes",
          "[cuda][gen][graph][lora]") {
  Cuda dev;
  train::T5Weights<Bf16, Cuda> model(dev, support::small_t5<float>(4));
  train::T5Decoder<Bf16, Cuda> decoder(dev, model);
  DecodingGraphs graphs(dev, decoder);
  SamplingConfig c;
  c.temperature = 1.5;
  c.min_new_tokens = c.max_new_tokens = 6;
  Ragged const from = contexts({5, 0, 9});
  std::vector<Ragged> drawn;
  // As graphs that were not there before, and other tokens than any time before.
  auto const changed = [&](std::size_t captures) {
    drawn.push_back(graphs.generate(from.view(), c, 11, 2));
    CHECK(same(drawn.back(), gen::generate(dev, decoder, from.view(), c, 11, 2)));
    CHECK(graphs.captures() == captures);
    for (std::size_t i = 0; i + 1 < drawn.size(); ++i) CHECK(!same(drawn[i], drawn.back()));
  };
  changed(1);
  t5::LoraConfig of;
  of.rank = 3;
  of.targets = {"all-linear"};
  auto shape = t5::lora_shape(model.config(), of);
  auto const attach = [&] {
    t5::LoraParameters<Bf16, Cuda> matrices(dev, shape);
    auto const numbers = support::random_values<float>(matrices.size(), 9, 0.3);
    copy(dev, matrices.all(), std::vector<Bf16>(numbers.begin(), numbers.end()));
    model.attach_lora(shape, std::move(matrices));
  };
  attach();
  changed(2);
  // The same matrices, more of them: where they lie may be where they lay.
  for (auto& module : shape.modules) module.alpha *= 4;
  attach();
  changed(3);
  auto const prefixed = support::small_t5<float>(4, 3);
  model.prefix =
      train::PrefixParameters<Bf16, Cuda>(dev, t5::Prefixes<Bf16, Cuda>::Shape{model.config(), 3});
  train::detail::upload(dev, model.prefix, prefixed.prefix);
  changed(4);
  model.prefix = {};
  model.detach_lora();
  drawn.front().clear();  // it comes again
  changed(5);
}
