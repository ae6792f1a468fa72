// SPDX-License-Identifier: Apache-2.0

// Laws of PPO's corrected mode on a real T5, in double: what may not matter changes neither losses
// nor gradients, to 1e-12 of the largest value of each tensor. That is a few thousand roundings of
// 1e-16, for sums of some hundred terms of both signs taken in another order. Where the arithmetic
// is the same, so are the bits.
//
// The same laws for a tabular policy and the trainer class, with statistics and several epochs, are
// in rl/test_ppo.cpp.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "emprl/ops/gemm_cpu.hpp"
#include "emprl/rl/ppo.hpp"
#include "emprl/train/align.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "text/small_corpus.hpp"

using namespace emprl;

namespace {

using Ids = std::vector<std::vector<std::int32_t>>;

/// Two layers and a gate, and a table of relative positions small enough to be used whole.
train::Generator<double> generator(std::uint64_t seed) {
  text::SentencePieceTokenizer spiece(test::small_spiece_model(), "small");
  t5::Config c;
  c.vocab_size = spiece.size();
  c.d_model = 16;
  c.d_kv = 8;
  c.num_heads = 2;
  c.d_ff = 33;
  c.num_layers = c.num_decoder_layers = 2;
  c.relative_attention_num_buckets = 8;
  c.relative_attention_max_distance = 16;
  c.feed_forward = nn::Activation::gated_gelu;
  train::Generator<double> g(c, std::move(spiece));
  t5::initialise(g.weights, c, 5);
  train::ensure_value_head(g, 3);
  RandomSequence random(seed, Stream::initialise);
  for (double& w : g.weights.span()) w += 0.03 * random.normal();
  return g;
}

/// The policy that is trained, the one that sampled a few steps ago, and the reference.
struct Models {
  train::Generator<double> policy = generator(1), sampler = generator(2), reference = generator(3);
};

Models const& models() {
  static Models const all;
  return all;
}

/// Evaluates rollouts with the policy that sampled and trains another: ratios are not 1.
struct Stale {
  using Scalar = double;
  using Context = train::T5ActorCritic<double>::Context;
  using In = std::span<double const>;
  using Out = std::span<double>;
  train::T5ActorCritic<double>& policy;
  train::T5ActorCritic<double>& sampler;

  void inference(rl::TokenBatch const& b, Out logp, Out values) {
    sampler.inference(b, logp, values);
  }
  void forward(rl::TokenBatch const& b, Out logp, Out values, Context& c) {
    policy.forward(b, logp, values, c);
  }
  void backward(In dlogp, In dvalues, Context& c) { policy.backward(dlogp, dvalues, c); }
};
static_assert(rl::InferringActor<Stale>);

/// Keeps the gradients of an optimiser step instead of taking it.
struct Recorder {
  t5::Parameters<double, Cpu>& gradients;
  train::ValueHeadParameters<double>& value_gradients;
  std::vector<double> kept{}, kept_value{};
  int steps = 0;

  void zero_gradients() {
    std::ranges::fill(gradients.span(), 0.0);
    std::ranges::fill(value_gradients.span(), 0.0);
  }
  double step(double, double) {
    ++steps;
    kept.assign(gradients.span().begin(), gradients.span().end());
    kept_value.assign(value_gradients.span().begin(), value_gradients.span().end());
    return 1.0;
  }
};

/// One rollout batch and how it is worked on.
struct Case {
  Ids contexts, responses;
  std::vector<double> scores;
  std::vector<std::vector<std::uint8_t>> mask{};  ///< by row; empty: every token counts
  std::optional<double> junk{};                   ///< what masked tokens hold, wherever they can
  index_t mini_batch_size = 8;
  index_t rows_per_pass = 1;
  int threads = 1;
  bool penalty_in_loss = false;
};

/// Rows of awkward lengths: one token, none, the end alone, no end, pad in the middle, more than a
/// chunk of attention.
Case awkward() {
  auto const row = [](std::size_t n, std::int32_t first, bool ends) {
    std::vector<std::int32_t> ids;
    for (std::size_t t = 0; t < n; ++t) {
      ids.push_back(3 + (first + static_cast<std::int32_t>(5 * t + t * t)) % 150);
    }
    if (ends) ids.push_back(1);
    return ids;
  };
  return {{row(3, 1, true), row(33, 4, true), row(1, 7, true), row(0, 0, true), row(9, 2, true),
           row(70, 9, true), row(2, 3, true)},
          {row(1, 5, false),
           row(33, 8, true),
           {},
           {1},
           row(6, 2, false),
           row(12, 1, true),
           {7, 0, 0, 9, 0, 1}},
          {0.3, -1.2, 2.0, 0.1, 0.9, 0.5, -0.4}};
}

/// Numbers by token, row by row, without those of masked tokens.
struct TokenNumbers {
  std::string name;
  std::vector<std::vector<double>> rows;
};

struct NamedTensor {
  std::string name;
  std::vector<double> values;
};

/// What came of it: losses and the gradient of every tensor; what every token that counts got.
struct Outcome {
  std::vector<NamedTensor> tensors;
  std::vector<TokenNumbers> tokens;
  rl::UpdateReport report;
};

rl::PromptBatch prompts_of(Ids const& contexts) {
  rl::PromptBatch prompts;
  for (auto const& row : contexts) prompts.contexts.push_back(row);
  return prompts;
}

rl::PpoConfig config_of(Case const& c) {
  rl::PpoConfig config;
  config.epochs = 1;
  config.mini_batch_size = c.mini_batch_size;
  config.rows_per_pass = c.rows_per_pass;
  config.gradient_accumulation = 8;  // the whole batch in one optimiser step
  config.ratio_tolerance = 1e9;      // the policy is not the one that sampled
  config.ratio_threshold = 1e9;
  config.kl_coefficient = 0.3;
  config.policy_clip = 0.1;
  return config;
}

/// Sets what masked tokens hold.
void spoil(std::optional<double> junk, rl::MaskView mask, std::vector<double>& x) {
  for (std::size_t t = 0; junk && t < x.size(); ++t) {
    if (mask[t] == 0) x[t] = *junk;
  }
}

Outcome outcome(rl::Rollout const& r, Recorder const& recorder, rl::UpdateReport const& report) {
  Outcome out;
  out.report = report;
  out.tensors.push_back({"losses", {report.sums.loss, report.sums.policy, report.sums.value}});
  for (nn::ParameterInfo const& info : recorder.gradients.infos()) {
    auto const begin = recorder.kept.begin() + static_cast<std::ptrdiff_t>(info.offset);
    out.tensors.push_back({info.name, {begin, begin + static_cast<std::ptrdiff_t>(info.size)}});
  }
  out.tensors.push_back({"value head", recorder.kept_value});
  auto const by_row = [&](char const* name, std::vector<double> const& x) {
    TokenNumbers numbers{name, {}};
    for (std::size_t i = 0; i + 1 < r.offsets().size(); ++i) {
      numbers.rows.emplace_back();
      for (auto t = static_cast<std::size_t>(r.offsets()[i]);
           t < static_cast<std::size_t>(r.offsets()[i + 1]); ++t) {
        if (r.mask[t] != 0) numbers.rows.back().push_back(x[t]);
      }
    }
    out.tokens.push_back(std::move(numbers));
  };
  by_row("log-probabilities", r.logp);
  by_row("values", r.values);
  by_row("reference", r.reference);
  by_row("KL", r.kl);
  by_row("rewards", r.rewards);
  by_row("advantages", r.advantages);
  by_row("returns", r.returns);
  return out;
}

/// One step of PPO by its free functions, which are what a mask can be given to.
Outcome update(Case const& c) {
  Cpu dev(c.threads);
  dev.saved.poison(true);
  Models const& m = models();
  t5::Parameters<double, Cpu> gradients(m.policy.config());
  train::ValueHeadParameters<double> value_gradients(m.policy.config().d_model);
  train::T5ActorCritic<double> policy(dev, m.policy, gradients.views(), {},
                                      value_gradients.views());
  train::T5ActorCritic<double> sampler(dev, m.sampler, {}, {}, {});
  train::T5Reference<double> reference(dev, m.reference);
  Stale actor{policy, sampler};
  Recorder recorder{gradients, value_gradients};
  rl::PromptBatch const prompts = prompts_of(c.contexts);
  rl::PpoConfig const config = config_of(c);

  rl::Rollout r;
  for (auto const& row : c.responses) r.responses.push_back(row);
  r.mask = rl::response_mask(r.responses.view());
  if (!c.mask.empty()) {
    r.mask.clear();
    for (auto const& row : c.mask) r.mask.insert(r.mask.end(), row.begin(), row.end());
  }
  rl::evaluate_rollout(actor, reference, prompts, config.mini_batch_size, r);
  for (auto* x : {&r.logp, &r.values, &r.reference}) spoil(c.junk, r.mask, *x);
  rl::clear_masked(r.values, r.mask);
  r.scores = r.shaped_scores = c.scores;
  rl::RunningMoments moments;
  moments.update(r.scores);
  rl::scale_scores(r.shaped_scores, moments, config.score_scaling);
  std::size_t const n = r.mask.size();
  for (auto* x : {&r.kl, &r.rewards, &r.advantages, &r.returns}) x->assign(n, 0.0);
  double const beta = config.kl_coefficient;
  rl::token_kl(rl::KlK3{}, r.logp, r.reference, r.mask, r.kl);
  spoil(c.junk, r.mask, r.kl);
  rl::shape_rewards(r.offsets(), r.kl, r.shaped_scores, r.mask, c.penalty_in_loss ? 0.0 : beta,
                    r.rewards);
  spoil(c.junk, r.mask, r.rewards);
  rl::whiten_rewards(r.rewards, r.mask);
  rl::Gae{config.gamma, config.lambda}(r, r.advantages, r.returns);
  spoil(c.junk, r.mask, r.advantages);
  rl::masked_whiten(r.advantages, r.mask, rl::WhitenMean::remove);
  spoil(c.junk, r.mask, r.returns);

  rl::PpoClipObjective const objective{config.policy_clip, config.value_clip,
                                       config.value_coefficient};
  rl::KlInLoss<rl::KlK3> const kl;
  using Penalised = rl::WithKlPenalty<rl::PpoClipObjective, rl::KlInLoss<rl::KlK3>>;
  auto const report =
      c.penalty_in_loss ? rl::update_policy(actor, Penalised{objective, kl, beta}, recorder,
                                            prompts, r, config, 0, 1.0)
                        : rl::update_policy(actor, objective, recorder, prompts, r, config, 0, 1.0);
  REQUIRE(recorder.steps == 1);
  return outcome(r, recorder, report);
}

/// As update, by the trainer; nothing can be masked there.
Outcome update_by_trainer(Case const& c) {
  Cpu dev(c.threads);
  Models const& m = models();
  t5::Parameters<double, Cpu> gradients(m.policy.config());
  train::ValueHeadParameters<double> value_gradients(m.policy.config().d_model);
  train::T5ActorCritic<double> policy(dev, m.policy, gradients.views(), {},
                                      value_gradients.views());
  train::T5ActorCritic<double> sampler(dev, m.sampler, {}, {}, {});
  train::T5Reference<double> reference(dev, m.reference);
  Stale actor{policy, sampler};
  Recorder recorder{gradients, value_gradients};
  auto reward = [&](rl::EpisodeBatch const&, std::span<float> scores) {
    for (std::size_t i = 0; i < scores.size(); ++i) scores[i] = static_cast<float>(c.scores[i]);
  };
  auto replay = [&](RaggedView, std::uint32_t) {
    Ragged out;
    for (auto const& row : c.responses) out.push_back(row);
    return out;
  };
  auto decode = [](std::span<std::int32_t const>) { return ""; };
  rl::PpoConfig const config = config_of(c);
  rl::PpoTrainer trainer(
      config,
      rl::make_ppo_spec(
          actor, reference, reward, replay, decode, recorder, rl::KlK3{},
          rl::FixedKl(config.kl_coefficient), rl::Gae{config.gamma, config.lambda},
          rl::PpoClipObjective{config.policy_clip, config.value_clip, config.value_coefficient}));
  rl::PpoStats const stats = trainer.step(prompts_of(c.contexts));
  rl::UpdateReport report;
  report.sums.tokens = static_cast<double>(stats.tokens);
  report.sums.loss = stats.total_loss * report.sums.tokens;
  report.sums.policy = *stats.policy_loss * report.sums.tokens;
  report.sums.value = *stats.value_loss * report.sums.tokens;
  return outcome(trainer.rollout(), recorder, report);
}

void check_close(std::string const& name, std::vector<double> const& a,
                 std::vector<double> const& b) {
  double const difference = support::max_difference(a, b);
  INFO(name << ": " << a.size() << " and " << b.size() << " numbers, the largest difference "
            << difference << ", the largest value " << support::max_abs(b));
  CHECK(difference <= 1e-12 * support::max_abs(b));
}

/// @param order   row i of a is row order[i] of b; empty: the same order
void check_same(Outcome const& a, Outcome const& b, std::vector<std::size_t> const& order = {}) {
  REQUIRE(a.tensors.size() == b.tensors.size());
  for (std::size_t k = 0; k < a.tensors.size(); ++k) {
    check_close(a.tensors[k].name, a.tensors[k].values, b.tensors[k].values);
  }
  for (std::size_t k = 0; k < a.tokens.size(); ++k) {
    std::vector<double> x, y;
    for (std::size_t i = 0; i < a.tokens[k].rows.size(); ++i) {
      auto const& row = b.tokens[k].rows[order.empty() ? i : order[i]];
      x.insert(x.end(), a.tokens[k].rows[i].begin(), a.tokens[k].rows[i].end());
      y.insert(y.end(), row.begin(), row.end());
    }
    check_close(a.tokens[k].name, x, y);
  }
}

double const nan_value = std::numeric_limits<double>::quiet_NaN();

}  // namespace

TEST_CASE("ppo laws: the laws are not empty: every tensor has a gradient, some tokens are clipped",
          "[train][ppo][contract]") {
  Outcome const out = update(awkward());
  for (NamedTensor const& tensor : out.tensors) {
    INFO(tensor.name);
    CHECK(support::max_abs(tensor.values) > 0);
  }
  CHECK(out.report.sums.clipped > 0);
  CHECK(out.report.sums.clipped < out.report.sums.tokens);
  // The trainer does the same. It has scores as float, from which they are taken here too.
  Case c = awkward();
  for (double& s : c.scores) s = static_cast<double>(static_cast<float>(s));
  check_same(update_by_trainer(c), update(c));
}

TEST_CASE("ppo laws: on T5 the order of the batch's rows does not matter",
          "[train][ppo][contract]") {
  Case straight = awkward();
  straight.penalty_in_loss = GENERATE(false, true);
  straight.mini_batch_size = 3;
  std::vector<std::size_t> const order{4, 2, 6, 0, 5, 1, 3};
  Case permuted = straight;
  for (std::size_t i = 0; i < order.size(); ++i) {
    permuted.contexts[i] = straight.contexts[order[i]];
    permuted.responses[i] = straight.responses[order[i]];
    permuted.scores[i] = straight.scores[order[i]];
  }
  check_same(update(permuted), update(straight), order);
}

TEST_CASE("ppo laws: on T5 what masked tokens hold changes no bit of losses and gradients",
          "[train][ppo][contract]") {
  // The first, some middle, and the last token of rows, and the only one of another.
  Case c = awkward();
  c.penalty_in_loss = GENERATE(false, true);
  for (auto const& row : c.responses) c.mask.emplace_back(row.size(), std::uint8_t{1});
  c.mask[1][0] = c.mask[1][17] = c.mask[1][18] = c.mask[3][0] = c.mask[4][5] = c.mask[6][2] = 0;
  c.junk = 0.0;
  Outcome const clean = update(c);
  CHECK(clean.report.sums.tokens == 61 - 6);
  for (double const junk : {nan_value, -1e9, std::numeric_limits<double>::infinity()}) {
    c.junk = junk;
    Outcome const spoilt = update(c);
    for (std::size_t k = 0; k < clean.tensors.size(); ++k) {
      INFO(clean.tensors[k].name << " with " << junk);
      CHECK(spoilt.tensors[k].values == clean.tensors[k].values);
    }
    for (std::size_t k = 0; k < clean.tokens.size(); ++k) {
      INFO(clean.tokens[k].name << " with " << junk);
      CHECK(spoilt.tokens[k].rows == clean.tokens[k].rows);
    }
  }
}

TEST_CASE("ppo laws: on T5 masked tokens behind a row change nothing, however many and which",
          "[train][ppo][contract]") {
  Case bare = awkward();
  bare.penalty_in_loss = GENERATE(false, true);
  Outcome const expected = update(bare);
  struct Padding {
    std::int32_t id;
    bool rectangle;  // up to the longest row and two more, else three tokens behind each row
  };
  for (Padding const padding : {Padding{0, true}, Padding{0, false}, Padding{11, false}}) {
    Case padded = bare;
    padded.junk = nan_value;
    for (auto& row : padded.responses) {
      padded.mask.emplace_back(row.size(), std::uint8_t{1});
      row.resize(padding.rectangle ? 36 : row.size() + 3, padding.id);
      padded.mask.back().resize(row.size(), 0);
    }
    INFO("padding " << padding.id << (padding.rectangle ? ", a rectangle" : ", three a row"));
    check_same(update(padded), expected);
  }
}

TEST_CASE("ppo laws: on T5 mini-batches add up to the batch, however it is cut",
          "[train][ppo][contract]") {
  Case whole = awkward();
  whole.penalty_in_loss = GENERATE(false, true);
  whole.mini_batch_size = 7;
  Outcome const expected = update(whole);
  for (index_t const size : {1, 2, 3, 5}) {
    for (index_t const rows : {1, 4, 32}) {
      Case cut = whole;
      cut.mini_batch_size = size;
      cut.rows_per_pass = rows;
      INFO("mini-batches of " << size << ", passes of " << rows);
      check_same(update(cut), expected);
    }
  }
}

TEST_CASE("ppo laws: on T5 the number of threads does not matter", "[train][ppo][contract]") {
  Case one = awkward();
  Outcome const expected = update(one);
  for (int const threads : {2, 3}) {
    Case several = one;
    several.threads = threads;
    INFO(threads << " threads");
    check_same(update(several), expected);
  }
}

TEST_CASE("ppo laws: to T5 the pad token in the middle of a response is an ordinary token",
          "[train][ppo][contract]") {
  Cpu dev(1);
  train::Generator<double> g = generator(1);
  t5::Parameters<double, Cpu> gradients(g.config());
  train::ValueHeadParameters<double> value_gradients(g.config().d_model);
  train::T5ActorCritic<double> actor(dev, g, gradients.views(), {}, value_gradients.views());
  auto const evaluate = [&](Ids const& responses) {
    Ragged contexts, rows;
    for (auto const& row : responses) {
      contexts.push_back(std::array<std::int32_t, 4>{5, 9, 4, 1});
      rows.push_back(row);
    }
    std::vector<double> logp(static_cast<std::size_t>(rows.tokens())), values(logp.size());
    actor.inference({contexts.view(), rows.view()}, logp, values);
    return logp;
  };

  // It has its share of the probability: with it, the second token's add up to 1.
  Ids second;
  for (std::int32_t v = 0; v < g.config().vocab_size; ++v) second.push_back({7, v});
  auto const all = evaluate(second);
  double sum = 0;
  for (std::size_t i = 1; i < all.size(); i += 2) sum += std::exp(all[i]);
  CHECK(sum == Approx(1.0).epsilon(1e-12));
  CHECK(all[1] < 0);

  // What follows reads it, and has what went before it still.
  auto const with = evaluate({{7, 0, 9}, {7, 8, 9}, {7, 9}, {6, 0, 9}});
  CHECK(std::abs(with[2] - with[5]) > 1e-3);
  CHECK(std::abs(with[2] - with[7]) > 1e-3);
  CHECK(std::abs(with[2] - with[10]) > 1e-3);

  // And it is trained: the gradient of its log-probability is the slope along itself.
  Ragged contexts, response;
  contexts.push_back(std::array<std::int32_t, 4>{5, 9, 4, 1});
  response.push_back(std::array<std::int32_t, 3>{7, 0, 9});
  std::vector<double> logp(3), values(3);
  std::vector<double> const dlogp{0, 1, 0}, dvalues(3, 0.0);
  train::T5ActorCritic<double>::Context context;
  actor.forward({contexts.view(), response.view()}, logp, values, context);
  actor.backward(dlogp, dvalues, context);
  double squares = 0;
  for (double const d : gradients.span()) squares += d * d;
  REQUIRE(squares > 0);
  auto const moved = [&](double h) {
    std::span<double> const w = g.weights.span(), d = gradients.span();
    for (std::size_t i = 0; i < w.size(); ++i) w[i] += h * d[i];
    double const at = evaluate({{7, 0, 9}})[1];
    for (std::size_t i = 0; i < w.size(); ++i) w[i] -= h * d[i];
    return at;
  };
  double const h = 1e-5 / std::sqrt(squares);
  CHECK((moved(h) - moved(-h)) / (2 * h) == Approx(squares).epsilon(1e-6));
}
