// SPDX-License-Identifier: Apache-2.0
// PPO's passes on a T5: what the evaluation keeps for the update, in memory that every pass uses.
// That passes of several mini-batches change nothing is among the laws of test_ppo_laws.cpp; the
// same for tables, where everything is equal bit for bit, stands in rl/test_passes.cpp.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "emprl/ops/gemm_cpu.hpp"
#include "emprl/rl/ppo.hpp"
#include "emprl/train/t5_adaptors.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/random_t5.hpp"

using namespace emprl;

namespace {

template <class T>
train::T5Weights<T> small_model(std::uint64_t seed) {
  t5::Config const c = support::small_config(true);
  train::T5Weights<T> g(c);
  auto const put = [](std::span<T> to, std::span<T const> from) {
    std::copy(from.begin(), from.end(), to.begin());
  };
  auto const parameters = support::random_parameters<T>(c, seed);
  put(g.weights.span(), parameters.span());
  g.value_head = train::ValueHeadParameters<T>(c.d_model);
  put(g.value_head.span(), support::random_values<T>(g.value_head.size(), seed + 1, 0.3));
  return g;
}

/// A T5 in training, its reference, and plain descent. All memory of passes is poisoned.
template <class T>
struct Learner {
  using Actor = train::T5ActorCritic<T>;
  Cpu dev{2};
  train::T5Weights<T> model = small_model<T>(3), frozen = small_model<T>(9);
  t5::Parameters<T, Cpu> gradients{model.config()};
  train::ValueHeadParameters<T> value_gradients{model.config().d_model};
  Actor actor{dev, model, gradients.views(), {}, value_gradients.views()};
  train::T5Reference<T> reference{dev, frozen};

  Learner() {
    dev.saved.poison(true);
    dev.scratch.poison(true);
  }
  Learner(Learner const&) = delete;
  Learner& operator=(Learner const&) = delete;

  void zero_gradients() {
    std::ranges::fill(gradients.span(), T(0));
    std::ranges::fill(value_gradients.span(), T(0));
  }
  double step(double rate, double) {
    auto const move = [rate](std::span<T> x, std::span<T const> gradient) {
      for (std::size_t i = 0; i < x.size(); ++i) x[i] -= static_cast<T>(rate) * gradient[i];
    };
    move(model.weights.span(), gradients.span());
    move(model.value_head.span(), value_gradients.span());
    return 1.0;
  }
  std::vector<T> weights() const {
    std::vector<T> all(model.weights.span().begin(), model.weights.span().end());
    all.insert(all.end(), model.value_head.span().begin(), model.value_head.span().end());
    return all;
  }
  bool keeps_nothing() const {
    auto const mark = dev.saved.mark();
    return mark.block == 0 && mark.used == 0;
  }
};

/// Seven rows: the last mini-batch of each cut below is a short one.
rl::PromptBatch prompts_of_seven() {
  rl::PromptBatch prompts;
  prompts.contexts = support::random_rows({5, 0, 9, 33, 2, 7, 3}, 23, 6);
  return prompts;
}

rl::Rollout rollout_of_seven() {
  rl::Rollout r;
  r.responses = support::random_rows({2, 6, 3, 12, 2, 5, 4}, 23, 8);
  r.mask = rl::response_mask(r.responses.view());
  r.mask[0] = r.mask[5] = 0;
  return r;
}

/// Some advantages and returns.
void judge(rl::Rollout& r) {
  rl::clear_masked(r.values, r.mask);
  for (std::size_t t = 0; t < r.mask.size(); ++t) {
    auto const at = static_cast<double>(t);
    r.advantages.push_back(std::sin(at));
    r.returns.push_back(r.values[t] + std::cos(at));
  }
}

struct Cut {
  index_t mini_batch, accumulation, rows_per_pass;
};

rl::PpoConfig config_of(rl::PpoMode mode, Cut const& cut) {
  rl::PpoConfig config;
  config.mode = mode;
  config.mini_batch_size = cut.mini_batch;
  config.gradient_accumulation = cut.accumulation;
  config.rows_per_pass = cut.rows_per_pass;
  config.epochs = 2;
  return config;
}

enum class Evaluation { kept, thrown_away, by_inference };

template <class T>
struct Outcome {
  std::vector<double> logp, values, reference;
  std::vector<T> weights;
  std::vector<double> report;
};

template <class T>
Outcome<T> update(rl::PpoConfig const& config, Evaluation how) {
  Learner<T> l;
  rl::PromptBatch const prompts = prompts_of_seven();
  rl::Rollout r = rollout_of_seven();
  auto pass = std::make_optional<rl::ForwardPass<typename Learner<T>::Actor>>();
  if (how == Evaluation::by_inference) {
    rl::evaluate_rollout(l.actor, l.reference, prompts, 3, r);
  } else {
    rl::evaluate_rollout(l.actor, l.reference, prompts, 3, r, rl::first_pass(prompts, r, config, 0),
                         *pass);
    CHECK_FALSE(l.keeps_nothing());
  }
  Outcome<T> out{r.logp, r.values, r.reference, {}, {}};
  judge(r);
  if (how == Evaluation::thrown_away) pass.reset();
  rl::UpdateReport const report =
      rl::update_policy(l.actor, rl::PpoClipObjective{}, l, prompts, r, config, 0, 0.02, false,
                        pass ? &*pass : nullptr);
  pass.reset();
  CHECK(l.keeps_nothing());
  out.weights = l.weights();
  out.report = {report.sums.loss, report.sums.k3, report.ratio, report.entropy,
                static_cast<double>(report.optimizer_steps)};
  return out;
}

Cut const cuts[] = {{2, 1, 32}, {2, 2, 32}, {2, 4, 32}, {2, 4, 4}, {3, 4, 1}, {7, 1, 32}};

}  // namespace

TEMPLATE_TEST_CASE("ppo passes: what T5's evaluation keeps is what the update would compute",
                   "[train][ppo][contract]", float, double) {
  using T = TestType;
  auto const mode = GENERATE(rl::PpoMode::corrected, rl::PpoMode::trl_0_9_6);
  for (Cut const& cut : cuts) {
    CAPTURE(cut.mini_batch, cut.accumulation, cut.rows_per_pass);
    rl::PpoConfig const config = config_of(mode, cut);
    Outcome<T> const kept = update<T>(config, Evaluation::kept);
    Outcome<T> const anew = update<T>(config, Evaluation::thrown_away);
    CHECK(kept.logp == anew.logp);
    CHECK(kept.weights == anew.weights);
    CHECK(kept.report == anew.report);

    // And what the evaluation of other batches, by inference, gives: up to the order of sums, of
    // which there are a few dozen of a few dozen terms in a token's numbers, and those of all rows
    // in a weight's.
    Outcome<T> const plain = update<T>(config, Evaluation::by_inference);
    auto const close = [](char const* what, auto const& a, auto const& b, double units) {
      INFO(what << ": " << support::max_difference(a, b) << " of " << support::max_abs(b));
      CHECK(support::max_difference(a, b) <= units * support::rounding<T> * support::max_abs(b));
    };
    close("log-probabilities", kept.logp, plain.logp, 64);
    close("values", kept.values, plain.values, 64);
    close("reference", kept.reference, plain.reference, 64);
    close("weights", kept.weights, plain.weights, 64);
    CHECK(support::max_difference(kept.weights, Learner<T>().weights()) > 1e-3);
  }
}

TEST_CASE("ppo passes: a step on T5 that fails gives back what its evaluation kept",
          "[train][ppo][contract]") {
  struct Failing {
    bool const* fails;
    void operator()(rl::Rollout const& r, std::span<double> advantages,
                    std::span<double> returns) const {
      if (*fails) throw Error("no advantage today");
      rl::Gae{}(r, advantages, returns);
    }
  };
  auto const after = [](bool stumbles) {
    Learner<double> l;
    bool fails = false;
    auto reward = [](rl::EpisodeBatch const& batch, std::span<float> scores) {
      for (std::size_t i = 0; i < batch.size(); ++i) scores[i] = static_cast<float>(i % 3);
    };
    auto replay = [](RaggedView, std::uint32_t) { return rollout_of_seven().responses; };
    auto decode = [](std::span<std::int32_t const>) { return std::string(); };
    rl::PpoConfig config = config_of(rl::PpoMode::corrected, {2, 4, 32});
    config.learning_rate = 0.02;
    rl::PpoTrainer trainer(
        config, rl::make_ppo_spec(l.actor, l.reference, reward, replay, decode, l, rl::KlK1{},
                                  rl::FixedKl(0.2), Failing{&fails}, rl::PpoClipObjective{}));
    trainer.step(prompts_of_seven());
    if (stumbles) {
      auto const weights = l.weights();
      rl::PpoState const state = trainer.state();
      fails = true;
      CHECK_THROWS_AS(trainer.step(prompts_of_seven()), Error);
      CHECK(l.keeps_nothing());
      CHECK(l.weights() == weights);
      CHECK(trainer.state() == state);
      fails = false;
    }
    CHECK(trainer.step(prompts_of_seven()).optimizer_steps == 2);
    CHECK(l.keeps_nothing());
    return l.weights();
  };
  CHECK(after(true) == after(false));
}
