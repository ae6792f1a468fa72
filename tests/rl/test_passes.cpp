// SPDX-License-Identifier: Apache-2.0
// Which rows go through the models together, and that it matters to nobody: passes of several
// mini-batches, and the evaluation that computes the update's first pass.
#include "emprl/rl/passes.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "emprl/rl/ppo.hpp"
#include "rl/tabular.hpp"
#include "support/catch.hpp"

using namespace emprl;
using namespace emprl::rl;
using namespace emprl::tests;
using Catch::Matchers::ContainsSubstring;

namespace {

using Ids = std::vector<std::vector<std::int32_t>>;

/// Each row has a context of its own, so that every element of a table's gradient comes from one
/// token: however rows are put together, there is no sum whose order could be another.
Ids const rows_of_two{{2, 3}, {2, 3, 4, 0, 2}, {4, 1}, {3, 3, 1}, {4, 4, 1}, {2, 0, 0, 1}};
Ids const awkward{{3}, {2, 3, 4, 0, 2}, {}, {1}, {4, 4, 1}, {2, 0, 0, 1}};

/// What a model is asked: the call's first letter, and the contexts of its rows.
struct Event {
  char what;
  std::vector<std::int32_t> rows;
};
using Events = std::vector<Event>;

/// A table that writes down what it is asked.
template <class T>
struct Watched {
  using Scalar = T;
  using Context = typename Tabular<T>::Context;
  using Out = std::span<T>;
  using In = std::span<T const>;
  Tabular<T>& table;
  Events& events;

  void note(char what, TokenBatch const& b) {
    events.push_back({what, {}});
    for (index_t i = 0; i < b.rows(); ++i) events.back().rows.push_back(b.contexts.row(i)[0]);
  }
  void forward(TokenBatch const& b, Out logp, Out values, Context& c) {
    note('f', b);
    table.forward(b, logp, values, c);
  }
  void inference(TokenBatch const& b, Out logp, Out values) {
    note('i', b);
    Context c;
    table.forward(b, logp, values, c);
  }
  void entropy(Out out, Context const& c) const {
    events.push_back({'e', {}});
    table.entropy(out, c);
  }
  void backward(In dlogp, In dvalues, Context& c) {
    events.push_back({'b', {}});
    table.backward(dlogp, dvalues, c);
  }
  void backward(In dlogp, In dvalues, In dentropy, Context& c) {
    events.push_back({'b', {}});
    table.backward(dlogp, dvalues, dentropy, c);
  }
  void full_kl(auto& reference, TokenBatch const& b, Out kl) {
    note('k', b);
    table.full_kl(reference.table, b, kl);
  }
  void logprobs(TokenBatch const& b, Out logp) {
    note('r', b);
    table.logprobs(b, logp);
  }
};
static_assert(InferringActor<Watched<float>> && TrainsEntropy<Watched<float>>);
static_assert(ReportsFullKl<Watched<double>, Watched<double>>);

/// The same as an actor that has forward and backward alone.
template <class T>
struct Plain {
  using Scalar = T;
  using Context = typename Tabular<T>::Context;
  Watched<T>& watched;
  void forward(TokenBatch const& b, std::span<T> logp, std::span<T> values, Context& c) {
    watched.forward(b, logp, values, c);
  }
  void backward(std::span<T const> dlogp, std::span<T const> dvalues, Context& c) {
    watched.backward(dlogp, dvalues, c);
  }
};
static_assert(ActorCritic<Plain<float>> && !InferringActor<Plain<float>>);

/// GAE that fails when it is told to.
struct Failing {
  bool const* fails;
  void operator()(Rollout const& r, std::span<double> advantages, std::span<double> returns) {
    if (*fails) throw Error("no advantage today");
    Gae{}(r, advantages, returns);
  }
};

/// A policy, its reference, and everything else that a trainer needs.
template <class T>
struct Bench {
  Ids responses;
  Tabular<T> table{6, 5, 5}, frozen{6, 5, 5};
  Events events{};
  Watched<T> actor{table, events}, reference{frozen, events};
  Plain<T> plain{actor};
  TabularOptimizer<T> optimizer{table};
  PromptBatch prompts = prompts_of({0, 1, 2, 3, 4, 5});
  bool fails = false;
  std::string (*decode)(std::span<std::int32_t const>) = spell;

  explicit Bench(Ids of) : responses(std::move(of)) {
    RandomSequence random(5, Stream::initialise);
    for (auto* x : {&table.logits, &table.values, &frozen.logits}) {
      for (T& number : *x) number = static_cast<T>(0.5 * random.normal());
    }
  }
  Bench(Bench const&) = delete;
  Bench& operator=(Bench const&) = delete;

  Ragged operator()(RaggedView, std::uint32_t) const {
    Ragged out;
    for (auto const& row : responses) out.push_back(row);
    return out;
  }
  /// Other scores every step.
  void operator()(EpisodeBatch const& batch, std::span<float> scores) const {
    for (std::size_t i = 0; i < scores.size(); ++i) {
      scores[i] = static_cast<float>((i * 7 + batch.step * 3) % 5) - 1.7f;
    }
  }

  template <class A, class Kl = KlK1, class Loss = PpoClipObjective>
  auto trainer(PpoConfig const& config, A& of, Kl kl = {}, Loss loss = {}) {
    return PpoTrainer(config, make_ppo_spec(of, reference, *this, *this, decode, optimizer, kl,
                                            FixedKl(0.3), Failing{&fails}, loss));
  }
};

/// Everything that a run of some steps comes to, and what was asked in the last of them.
struct Outcome {
  std::vector<double> numbers;  // statistics of all steps, rollouts, the weights at the end
  PpoState state;
  Events last;
};

template <class T, class MakeTrainer>
Outcome run(Bench<T>& bench, MakeTrainer&& make, int steps = 3) {
  auto trainer = make(bench);
  Outcome out;
  for (int i = 0; i < steps; ++i) {
    bench.events.clear();
    PpoStats const stats = trainer.step(bench.prompts);
    for_each_number(stats, [&](std::string_view, double x) { out.numbers.push_back(x); });
    Rollout const& r = trainer.rollout();
    for (auto const* x : {&r.logp, &r.values, &r.reference, &r.kl, &r.advantages, &r.returns}) {
      out.numbers.insert(out.numbers.end(), x->begin(), x->end());
    }
  }
  for (auto const* x : {&bench.table.logits, &bench.table.values}) {
    out.numbers.insert(out.numbers.end(), x->begin(), x->end());
  }
  out.state = trainer.state();
  out.last = std::move(bench.events);
  return out;
}

int calls(Events const& events, char what) {
  return static_cast<int>(
      std::ranges::count_if(events, [what](Event const& e) { return e.what == what; }));
}

/// How often each row was evaluated, by either pass.
std::array<int, 6> evaluations(Events const& events) {
  std::array<int, 6> times{};
  for (Event const& e : events) {
    for (std::int32_t const row : e.rows) {
      if (e.what == 'f' || e.what == 'i') ++times[static_cast<std::size_t>(row)];
    }
  }
  return times;
}

PpoConfig config_of(PpoMode mode, index_t mini, index_t accumulation) {
  PpoConfig config;
  config.mode = mode;
  config.batch_size = 6;
  config.mini_batch_size = mini;
  config.gradient_accumulation = accumulation;
  config.epochs = 3;
  config.learning_rate = 0.3;
  return config;
}

PpoConfig as_published(PpoConfig config) {
  config.rows_per_pass = 1;
  config.share_old_pass = false;
  return config;
}

}  // namespace

TEST_CASE("passes: an optimiser step's rows are cut into mini-batches and those put together",
          "[rl][ppo][unit]") {
  // Lengths 1, 5, 0, 1, 3, 4.
  Rollout r;
  for (auto const& row : awkward) r.responses.push_back(row);
  r.mask = response_mask(r.responses.view());
  std::vector<index_t> const order{4, 2, 0, 5, 1, 3};
  PpoConfig config;
  config.mini_batch_size = 2;
  auto const cut = [&](index_t rows_per_pass) {
    config.rows_per_pass = rows_per_pass;
    return cut_passes(r, order, config);
  };
  using Passes = std::vector<PassRows>;
  Passes const alone{{{4, 2}, {{0, 3, 3}}}, {{0, 5}, {{0, 5, 5}}}, {{1, 3}, {{0, 6, 6}}}};
  CHECK(cut(1) == alone);
  CHECK(cut(3) == alone);
  CHECK(cut(4) == Passes{{{4, 2, 0, 5}, {{0, 3, 3}, {3, 8, 5}}}, {{1, 3}, {{0, 6, 6}}}});
  CHECK(cut(6) == Passes{{{4, 2, 0, 5, 1, 3}, {{0, 3, 3}, {3, 8, 5}, {8, 14, 6}}}});
  config.mini_batch_size = 4;
  CHECK(cut(5) == Passes{{{4, 2, 0, 5}, {{0, 8, 8}}}, {{1, 3}, {{0, 6, 6}}}});
  CHECK(cut(6) == Passes{{{4, 2, 0, 5, 1, 3}, {{0, 8, 8}, {8, 14, 6}}}});

  // Masked tokens are there and do not count; a mini-batch of nothing else is left out.
  config.mini_batch_size = 2;
  for (std::size_t t : {std::size_t{0}, std::size_t{10}, std::size_t{11}, std::size_t{12},
                        std::size_t{13}, std::size_t{8}}) {
    r.mask[t] = 0;  // rows 0 and 5, and the middle one of row 4
  }
  CHECK(cut(32) == Passes{{{4, 2, 1, 3}, {{0, 3, 2}, {3, 9, 6}}}});
  std::ranges::fill(r.mask, std::uint8_t{0});
  CHECK(cut(32).empty());
}

TEMPLATE_TEST_CASE("passes: one pass of several mini-batches is the passes of each, bit for bit",
                   "[rl][ppo][contract]", float, double) {
  using T = TestType;
  auto const mode = GENERATE(PpoMode::corrected, PpoMode::trl_0_9_6);
  bool const last_of_pass = GENERATE(false, true);
  Ids const responses = mode == PpoMode::corrected ? awkward : rows_of_two;
  auto const outcome = [&](PpoConfig const& config) {
    Bench<T> bench(responses);
    bench.prompts.last_of_pass = last_of_pass;
    return run(bench, [&](Bench<T>& b) { return b.trainer(config, b.actor); });
  };
  for (index_t const mini : {1, 2, 4}) {
    for (index_t const accumulation : {1, 2, 4}) {
      PpoConfig config = config_of(mode, mini, accumulation);
      Outcome const expected = outcome(as_published(config));
      for (index_t const rows : {2, 3, 4, 32}) {
        config.rows_per_pass = rows;
        CAPTURE(mini, accumulation, rows);
        Outcome const actual = outcome(config);
        CHECK(actual.numbers == expected.numbers);
        CHECK(actual.state == expected.state);
        CHECK(calls(actual.last, 'f') == calls(actual.last, 'b'));
        CHECK(calls(actual.last, 'f') <= calls(expected.last, 'f'));
      }
    }
  }
}

TEST_CASE("passes: as many forward passes as the cut says", "[rl][ppo][unit]") {
  auto const forwards = [](index_t mini, index_t accumulation, index_t rows) {
    PpoConfig config = config_of(PpoMode::corrected, mini, accumulation);
    config.rows_per_pass = rows;
    Bench<double> bench(rows_of_two);
    return calls(run(bench, [&](auto& b) { return b.trainer(config, b.actor); }).last, 'f');
  };
  // Six rows, three epochs.
  CHECK(forwards(2, 4, 1) == 9);
  CHECK(forwards(2, 4, 32) == 3);
  CHECK(forwards(2, 2, 32) == 6);
  CHECK(forwards(2, 1, 32) == 9);
  CHECK(forwards(4, 2, 5) == 6);
  CHECK(forwards(4, 2, 6) == 3);
}

TEST_CASE("passes: a mini-batch that is skipped takes no part in its pass", "[rl][ppo][unit]") {
  // Rows whose recorded log-probabilities are 4 too small have a ratio of e^4 > 10.
  auto const mode = GENERATE(PpoMode::corrected, PpoMode::trl_0_9_6);
  auto const skip = GENERATE(std::vector<std::size_t>{1}, std::vector<std::size_t>{0, 4},
                             std::vector<std::size_t>{0, 1, 2, 3, 4, 5});
  auto const update = [&](index_t rows_per_pass) {
    Bench<double> bench(rows_of_two);
    Rollout r;
    r.responses = bench({}, 0);
    r.mask = response_mask(r.responses.view());
    evaluate_rollout(bench.actor, bench.reference, bench.prompts, 6, r);
    r.advantages.assign(r.mask.size(), 0.7);
    r.returns.assign(r.mask.size(), 1.0);
    for (std::size_t const row : skip) {
      for (auto t = static_cast<std::size_t>(r.offsets()[row]);
           t < static_cast<std::size_t>(r.offsets()[row + 1]); ++t) {
        r.logp[t] -= 4;
      }
    }
    PpoConfig config = config_of(mode, 1, 4);
    config.ratio_tolerance = 1e9;
    config.rows_per_pass = rows_per_pass;
    UpdateReport const report = update_policy(bench.actor, EntropyBonus{PpoClipObjective{}, 0.1},
                                              bench.optimizer, bench.prompts, r, config, 0, 0.1);
    return std::pair{bench.table, report};
  };
  auto const [table, expected] = update(1);
  for (index_t const rows : {2, 3, 32}) {
    auto const [other, report] = update(rows);
    CAPTURE(rows);
    CHECK(report.skipped_batches == expected.skipped_batches);
    CHECK(report.skipped_batches >= static_cast<std::int64_t>(skip.size()));
    CHECK(report.optimizer_steps == expected.optimizer_steps);
    CHECK(report.sums.tokens == expected.sums.tokens);
    CHECK(report.sums.loss == expected.sums.loss);
    CHECK(report.entropy == expected.entropy);
    CHECK(other.logits == table.logits);
    CHECK(other.values == table.values);
  }
}

TEMPLATE_TEST_CASE("passes: a step that shares its old-policy pass is the step that does not",
                   "[rl][ppo][contract]", float, double) {
  using T = TestType;
  auto const mode = GENERATE(PpoMode::corrected, PpoMode::trl_0_9_6);
  bool const last_of_pass = GENERATE(false, true);
  Ids const responses = mode == PpoMode::corrected ? awkward : rows_of_two;
  auto const check = [&](auto make) {
    for (index_t const mini : {1, 2, 4}) {
      for (index_t const accumulation : {1, 2, 4}) {
        for (index_t const rows : {1, 4, 32}) {
          auto const outcome = [&](bool shares) {
            PpoConfig config = config_of(mode, mini, accumulation);
            config.rows_per_pass = rows;
            config.share_old_pass = shares;
            Bench<T> bench(responses);
            bench.prompts.last_of_pass = last_of_pass;
            return run(bench, [&](Bench<T>& b) { return make(b, config); });
          };
          CAPTURE(mini, accumulation, rows);
          Outcome const expected = outcome(false);
          Outcome const actual = outcome(true);
          CHECK(actual.numbers == expected.numbers);
          CHECK(actual.state == expected.state);

          // One evaluation fewer of each row that the first pass of the update has; those are the
          // first rows of the last step's order.
          PpoConfig config = config_of(mode, mini, accumulation);
          config.rows_per_pass = rows;
          Bench<T> bench(responses);
          bench.prompts.last_of_pass = last_of_pass;
          Rollout r;
          r.responses = bench({}, 2);
          r.mask = response_mask(r.responses.view());
          auto expected_times = evaluations(expected.last);
          PassRows const first = first_pass(bench.prompts, r, config, 2);
          CHECK_FALSE(first.rows.empty());
          for (index_t const row : first.rows) {
            if (r.responses.view().length(row) > 0) --expected_times[static_cast<std::size_t>(row)];
          }
          CHECK(evaluations(actual.last) == expected_times);

          // And the models are asked nothing between the shared forward and its backward.
          auto const is = [](char what) {
            return [what](Event const& e) { return e.what == what; };
          };
          auto const backward = std::ranges::find_if(actual.last, is('b'));
          REQUIRE(backward != actual.last.end());
          auto before = backward - 1;
          while (before->what == 'e') --before;
          CHECK(before->what == 'f');
          CHECK(std::none_of(before, actual.last.end(), [](Event const& e) {
            return e.what == 'r' || e.what == 'k' || e.what == 'i';
          }));
        }
      }
    }
  };
  SECTION("k1") {
    check([](auto& b, PpoConfig const& c) { return b.trainer(c, b.actor); });
  }
  SECTION("full KL") {
    check([](auto& b, PpoConfig const& c) { return b.trainer(c, b.actor, KlFull{}); });
  }
  SECTION("KL in the loss") {
    check([](auto& b, PpoConfig const& c) { return b.trainer(c, b.actor, KlInLoss<KlK3>{}); });
  }
  SECTION("an objective of the entropy") {
    check([](auto& b, PpoConfig const& c) {
      return b.trainer(c, b.actor, KlK1{}, EntropyBonus{PpoClipObjective{}, 0.1});
    });
  }
  SECTION("an actor without inference") {
    check([](auto& b, PpoConfig const& c) { return b.trainer(c, b.plain); });
  }
}

TEST_CASE("passes: rows that share have ratio 1 exactly, and the first step of a run shares none",
          "[rl][ppo][contract]") {
  // An actor with noise in forward, as dropout is: what the first ratios are there to find.
  struct Noisy : Watched<double> {
    void forward(TokenBatch const& b, Out logp, Out values, Context& c) {
      Watched<double>::forward(b, logp, values, c);
      for (double& x : logp) x -= 0.01;
    }
  };
  for (bool const shares : {false, true}) {
    Bench<double> bench(rows_of_two);
    Noisy actor{{bench.table, bench.events}};
    PpoConfig config = config_of(PpoMode::corrected, 2, 4);
    config.share_old_pass = shares;
    auto const before = bench.table.logits;
    auto trainer = bench.trainer(config, actor);
    CHECK_THROWS_WITH(trainer.step(bench.prompts), ContainsSubstring("ratio must be 1"));
    CHECK(bench.table.logits == before);
    CHECK(trainer.state().step == 0);
  }
  Bench<double> bench(rows_of_two);
  PpoConfig config = config_of(PpoMode::corrected, 2, 4);
  config.epochs = 1;
  config.ratio_tolerance = std::numeric_limits<double>::denorm_min();
  auto trainer = bench.trainer(config, bench.actor);
  trainer.step(bench.prompts);
  CHECK(trainer.step(bench.prompts).mean_ratio == 1.0);
}

TEST_CASE("passes: a step that fails after its shared pass leaves trainer and weights alone",
          "[rl][ppo][contract]") {
  PpoConfig const config = config_of(PpoMode::corrected, 2, 2);
  Bench<double> bench(awkward);
  auto trainer = bench.trainer(config, bench.actor);
  trainer.step(bench.prompts);
  PpoState const state = trainer.state();
  auto const logits = bench.table.logits;
  bench.events.clear();
  bench.fails = true;
  CHECK_THROWS_WITH(trainer.step(bench.prompts), ContainsSubstring("no advantage"));
  CHECK(calls(bench.events, 'f') == 1);
  CHECK(calls(bench.events, 'b') == 0);
  CHECK(trainer.state() == state);
  CHECK(bench.table.logits == logits);
  // A number that is none is found there too, and names its episode.
  bench.fails = false;
  bench.table.values[4 * 5] = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_WITH(trainer.step(bench.prompts), ContainsSubstring("prompt:4"));
  CHECK(trainer.state() == state);
}

TEST_CASE("passes: a step after one that failed is the step that would have been",
          "[rl][ppo][contract]") {
  PpoConfig const config = config_of(PpoMode::corrected, 2, 4);
  std::vector<std::vector<double>> ends;
  for (bool const stumbles : {false, true}) {
    Bench<double> bench(awkward);
    auto trainer = bench.trainer(config, bench.actor);
    trainer.step(bench.prompts);
    bench.fails = stumbles;
    if (stumbles) CHECK_THROWS_AS(trainer.step(bench.prompts), Error);
    bench.fails = false;
    trainer.step(bench.prompts);
    ends.push_back(bench.table.logits);
  }
  CHECK(ends[0] == ends[1]);
}

TEST_CASE("passes: an update takes no kept pass but the one that it begins with",
          "[rl][ppo][contract]") {
  Bench<double> bench(rows_of_two);
  Rollout r;
  r.responses = bench({}, 0);
  r.mask = response_mask(r.responses.view());
  PpoConfig const config = config_of(PpoMode::corrected, 2, 1);
  PassRows first = first_pass(bench.prompts, r, config, 0);
  std::swap(first.rows[0], first.rows[1]);
  ForwardPass<Watched<double>> pass;
  evaluate_rollout(bench.actor, bench.reference, bench.prompts, 6, r, first, pass);
  r.advantages.assign(r.mask.size(), 0.7);
  r.returns.assign(r.mask.size(), 1.0);
  auto const before = bench.table.logits;
  CHECK_THROWS_AS(update_policy(bench.actor, PpoClipObjective{}, bench.optimizer, bench.prompts, r,
                                config, 0, 0.1, false, &pass),
                  ShapeError);
  CHECK(bench.table.logits == before);
  // It is used up, even so.
  CHECK(pass.rows.rows.empty());
  CHECK_NOTHROW(update_policy(bench.actor, PpoClipObjective{}, bench.optimizer, bench.prompts, r,
                              config, 0, 0.1, false, &pass));
  CHECK(pass.rows.rows.empty());
  CHECK(bench.table.logits != before);
}
