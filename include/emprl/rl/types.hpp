// SPDX-License-Identifier: Apache-2.0
#pragma once

// The records that travel between the steps of PPO. Plain structs with named fields; no step keeps
// what it is not given.
//
// Layout. A row is one episode: a context and the response sampled for it. Everything that exists
// once per generated token is packed row after row, aligned with `responses.ids`, so that row i
// owns positions offsets[i] .. offsets[i + 1). Log-probabilities and values come from models in
// their own number format; from there on all arithmetic is in double, which costs nothing beside a
// model and keeps statistics exact.

#include <any>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/core/ragged.hpp"

namespace emprl::rl {

/// Rows of contexts and of generated responses. A response holds the generated tokens, the end
/// token included when it was emitted and the start token excluded; token t is predicted from the
/// context, the start token and y_0 .. y_{t-1}.
struct TokenBatch {
  RaggedView contexts;
  RaggedView responses;

  index_t rows() const { return responses.rows(); }
  index_t tokens() const { return responses.tokens(); }
};

/// One byte a generated token: 1 where the token is trained and counted, 0 where nothing about it
/// may matter.
using MaskView = std::span<std::uint8_t const>;

/// What a step of PPO starts from: one row a sample. `ids`, `references` and `payloads` may be left
/// empty.
struct PromptBatch {
  Ragged contexts;                      ///< token ids the policy reads
  std::vector<std::string> texts;       ///< the same contexts as text, for rewards
  std::vector<std::string> references;  ///< a response to compare with, if there is one
  std::vector<std::any> payloads;       ///< whatever the reward needs to know about a row
  std::vector<std::string> ids;         ///< names for messages, such as file:line
  bool last_of_pass = false;            ///< no batch of this pass over the data comes after it

  index_t rows() const { return contexts.rows(); }

  /// @throws ShapeError if a list is neither empty nor as long as there are contexts
  void validate() const {
    auto const n = static_cast<std::size_t>(rows());
    auto const fits = [n](std::size_t size) { return size == 0 || size == n; };
    expects(fits(texts.size()), "a prompt batch needs one text a context, or none");
    expects(fits(references.size()), "a prompt batch needs one reference a context, or none");
    expects(fits(payloads.size()), "a prompt batch needs one payload a context, or none");
    expects(fits(ids.size()), "a prompt batch needs one id a context, or none");
  }

  /// What messages call row i: its id, or its place in the batch.
  std::string name(index_t i) const {
    if (ids.empty()) return "row " + std::to_string(i) + " of the batch";
    return "\"" + ids[static_cast<std::size_t>(i)] + "\"";
  }
};

/// One context with its sampled response, as a reward sees it. Views into a PromptBatch and a
/// Rollout: valid during the call that receives them.
struct Episode {
  std::string_view id;
  std::string_view context;
  std::string_view response;  ///< decoded; empty if the policy ended at once
  std::string_view reference;
  std::span<std::int32_t const> context_ids;
  std::span<std::int32_t const> response_ids;
  std::any const* payload = nullptr;

  /// The payload as the type it was stored with.
  /// @throws Error naming the episode if there is none or it has another type
  template <class P>
  P const& payload_as() const {
    P const* p = payload != nullptr ? std::any_cast<P>(payload) : nullptr;
    expects<Error>(p != nullptr,
                   "episode \"" + std::string(id) + "\" carries no payload of the type asked for");
    return *p;
  }
};

/// The episodes of one rollout batch, in the order of the prompts.
struct EpisodeBatch {
  std::span<Episode const> episodes;
  std::uint32_t step = 0;  ///< how many steps of PPO came before

  std::size_t size() const { return episodes.size(); }
  Episode const& operator[](std::size_t i) const { return episodes[i]; }
  auto begin() const { return episodes.begin(); }
  auto end() const { return episodes.end(); }
};

/// Where a reward of tokens writes: one number a generated token, row(i) those of episode i, as
/// many as it has response_ids.
struct TokenScores {
  std::span<float> values;           ///< (tokens)
  std::span<index_t const> offsets;  ///< (episodes + 1)

  std::size_t size() const { return offsets.empty() ? 0 : offsets.size() - 1; }
  std::span<float> row(std::size_t i) const {
    auto const begin = static_cast<std::size_t>(offsets[i]);
    return values.subspan(begin, static_cast<std::size_t>(offsets[i + 1]) - begin);
  }
};

/// The parts of a reward, by name, one number an episode. A reward that takes one as its third
/// argument fills it in; the trainer reports mean and deviation of each part.
class ScoreLog {
 public:
  struct Component {
    std::string name;
    std::vector<double> values;
  };

  explicit ScoreLog(std::size_t episodes = 0) : episodes_(episodes) {}

  /// Records one number an episode under a name.
  /// @throws ShapeError if there is not one number an episode, or if the name was used before
  void add(std::string name, std::span<float const> values) {
    expects(values.size() == episodes_, "reward component \"" + name + "\" has " +
                                            std::to_string(values.size()) + " numbers for " +
                                            std::to_string(episodes_) + " episodes");
    for (Component const& c : components_) {
      expects(c.name != name, "two reward components are both called \"" + name + "\"");
    }
    components_.push_back({std::move(name), {values.begin(), values.end()}});
  }

  std::span<Component const> components() const { return components_; }

 private:
  std::size_t episodes_;
  std::vector<Component> components_;
};

/// What an objective knows about a token besides the two numbers it is differentiated by.
struct TokenContext {
  double old_logp = 0;   ///< log-probability under the policy that sampled
  double old_value = 0;  ///< V of the policy that sampled
  double advantage = 0;
  double ret = 0;             ///< the return, target of the value function
  double reference_logp = 0;  ///< log-probability under the frozen reference
};

/// Everything known about one rollout batch. Per-episode and per-token arrays are filled step by
/// step; see ppo.hpp.
struct Rollout {
  Ragged responses;
  std::vector<std::string> texts;  ///< decoded responses
  ScoreLog log;                    ///< the reward's parts, by name

  std::vector<double> scores;         ///< (rows) as the reward gave them
  std::vector<double> token_scores;   ///< (tokens) the same by token, if the reward gave them so
  std::vector<double> shaped_scores;  ///< (rows) after running normalisation: what training sees

  std::vector<std::uint8_t> mask;  ///< (tokens)
  std::vector<double> logp;        ///< (tokens) under the policy that sampled
  std::vector<double> reference;   ///< (tokens) log-probabilities under the frozen reference
  std::vector<double> values;      ///< (tokens) V of the policy that sampled, 0 where masked
  std::vector<double> kl;          ///< (tokens) the estimator's value, 0 where masked
  std::vector<double> rewards;     ///< (tokens) -beta kl, plus the score on the last token
  /// What a row's padding up to the longest row is rewarded with, a token: 0, but for
  /// PpoMode::trl_0_9_6 with whitened rewards.
  double padding_reward = 0;
  std::vector<double> advantages;  ///< (tokens)
  std::vector<double> returns;     ///< (tokens)

  index_t rows() const { return responses.rows(); }
  index_t tokens() const { return responses.tokens(); }
  std::span<index_t const> offsets() const { return responses.offsets; }
};

/// Mean and standard deviation (n - 1) of one part of the reward over a rollout batch.
struct ComponentStats {
  std::string name;
  double mean = 0;
  double deviation = 0;
};

/// What one step of PPO reports. Every per-token number is over the mask; "over the update" means
/// over the tokens of all epochs and mini-batches of the step that were not skipped, weighted by
/// token. Each comment says what a healthy value looks like, and what to do about another.
struct PpoStats {
  std::int64_t step = 0;      ///< steps that came before this one
  std::int64_t episodes = 0;  ///< episodes of this batch
  std::int64_t tokens = 0;    ///< generated tokens of this batch that count

  /// Mean score of the reward model before any normalisation. The number to watch: it should rise,
  /// slowly. Flat: see score_deviation and approx_kl_k3, then raise the learning rate or lower the
  /// KL coefficient. A jump is an exploit more often than a success: read samples
  /// (PpoTrainer::rollout).
  double score_mean = 0;
  /// Its standard deviation over episodes. At 0 there is nothing to learn from: every response is
  /// as good as every other, and the reward should be made finer or sampling more varied.
  double score_deviation = 0;
  /// Mean over episodes of the summed token rewards: normalised score minus the KL penalty, before
  /// whitening. With normalised scores near 0 less the penalty; a long fall means that the penalty
  /// outweighs the score, so lower the KL coefficient.
  double reward_mean = 0;
  /// Parts of the score, by name. Where one rises while another falls the policy trades them:
  /// change their weights, or gate one by the other.
  std::vector<ComponentStats> components;

  /// Mean over episodes of sum_t kl, by the estimator in use; what the KL controller sees. Starts
  /// near 0 and should settle near the target. Steady growth beyond it: raise the coefficient or
  /// lower the learning rate.
  double kl = 0;
  /// The same by k1 = log p - log q, comparable between runs, in nats a response. Not far below 0:
  /// a large negative value means that sampled tokens are not the policy's own (another temperature
  /// or filter), or that it has learnt to give improbable tokens.
  double kl_k1 = 0;
  /// beta used for the rewards of this step. Moves slowly; at a bound of what is sensible (below
  /// .001, above 1) the target is out of reach: change it or the horizon.
  double kl_coefficient = 0;

  /// The objective's mean over the update. Has no meaning of its own between steps, as advantages
  /// change with them; must be finite.
  double total_loss = 0;
  /// Its policy term over the update, if the objective tells its terms apart. Slightly below 0.
  std::optional<double> policy_loss;
  /// Its value term over the update before its coefficient, likewise. Falls at first; growth means
  /// that the policy moves faster than the value function learns: lower the learning rate or raise
  /// value_coefficient.
  std::optional<double> value_loss;
  /// Share of tokens whose policy gradient was clipped. A few percent up to .2 is usual; above .3
  /// lower the learning rate or take fewer epochs; 0 throughout means that steps could be larger.
  std::optional<double> clip_fraction;
  /// Mean of p_new / p_old over the update, skipped mini-batches included: within .05 of 1.
  /// Farther off, steps are too large.
  double mean_ratio = 1;
  double approx_kl_k1 = 0;  ///< mean of log p_old - log p_new a token over the update
  /// Mean of ratio - 1 - log ratio: as above, never negative. .0001 to .02 is usual; above .05
  /// steps are too large, at 0 nothing is learnt.
  double approx_kl_k3 = 0;
  /// Mean entropy of the policy a token over the update, if the actor reports it, in nats. Falls
  /// slowly; a fall to near 0 is collapse to one answer: raise the KL coefficient, or add an
  /// EntropyBonus.
  std::optional<double> entropy;

  double advantage_mean = 0;  ///< before whitening; near 0 once the value function has learnt
  /// Before whitening. At 0 no token is better than another: see score_deviation.
  double advantage_deviation = 0;
  double value_mean = 0;   ///< follows return_mean; a lasting gap is a value function that lags
  double return_mean = 0;  ///< of the value function's targets
  /// 1 - Var(return - V) / Var(return): 1 is a perfect value function, 0 no better than a constant,
  /// below 0 worse. 0 where returns do not vary. Should rise to .2 and more; if it stays below 0,
  /// raise value_coefficient or value_clip, or take advantages that need no values
  /// (advantages.hpp).
  double explained_variance = 0;

  /// Mean tokens of a response, the end token included. A run to the limit or to 1 is an exploit:
  /// see LengthReward and LengthCapped.
  double response_length = 0;
  /// Share of responses without an end token: they hit the length limit. Should fall or stay small;
  /// a rise: raise the limit, or punish it.
  double unfinished = 0;

  /// Before clipping, mean over the optimiser steps. Far above max_gradient_norm throughout means
  /// that every step is clipped and the learning rate alone decides; a sudden rise comes before a
  /// collapse.
  double gradient_norm = 0;
  double learning_rate = 0;          ///< of this step
  std::int64_t optimizer_steps = 0;  ///< how often weights moved
  /// Mini-batches dropped because their mean ratio passed the threshold. Healthy: 0; else lower the
  /// learning rate.
  std::int64_t skipped_batches = 0;
};

/// Calls f(name, value) for every number of the statistics that exists, in a fixed order;
/// components come as "score/NAME". The one list of names for logs.
template <class F>
void for_each_number(PpoStats const& s, F&& f) {
  auto const number = [&f](std::string_view name, auto value) {
    f(name, static_cast<double>(value));
  };
  auto const maybe = [&f](std::string_view name, std::optional<double> const& value) {
    if (value) f(name, *value);
  };
  number("step", s.step);
  number("episodes", s.episodes);
  number("tokens", s.tokens);
  number("score_mean", s.score_mean);
  number("score_deviation", s.score_deviation);
  for (ComponentStats const& c : s.components) number("score/" + c.name, c.mean);
  number("reward_mean", s.reward_mean);
  number("kl", s.kl);
  number("kl_k1", s.kl_k1);
  number("kl_coefficient", s.kl_coefficient);
  number("total_loss", s.total_loss);
  maybe("policy_loss", s.policy_loss);
  maybe("value_loss", s.value_loss);
  maybe("clip_fraction", s.clip_fraction);
  number("mean_ratio", s.mean_ratio);
  number("approx_kl_k1", s.approx_kl_k1);
  number("approx_kl_k3", s.approx_kl_k3);
  maybe("entropy", s.entropy);
  number("advantage_mean", s.advantage_mean);
  number("advantage_deviation", s.advantage_deviation);
  number("value_mean", s.value_mean);
  number("return_mean", s.return_mean);
  number("explained_variance", s.explained_variance);
  number("response_length", s.response_length);
  number("unfinished", s.unfinished);
  number("gradient_norm", s.gradient_norm);
  number("learning_rate", s.learning_rate);
  number("optimizer_steps", s.optimizer_steps);
  number("skipped_batches", s.skipped_batches);
}

}  // namespace emprl::rl
