// SPDX-License-Identifier: Apache-2.0
#pragma once

// Proximal policy optimisation of a text generator towards any reward, with a KL penalty to a
// frozen reference (Schulman et al. 2017; Ziegler et al. 2019). The trainer is a page that reads
// like the method; each of its numbered steps is a free function with its own test, and everything
// it is composed of is a concept (concepts.hpp).
//
//   rl::PpoConfig const config = rl::PpoConfig::emprl();
//   auto reward = [](rl::EpisodeBatch const& episodes, std::span<float> scores) { ... };
//   rl::PpoTrainer trainer{
//       config,
//       rl::make_ppo_spec(config, actor, reference, reward, sampler, decode, optimizer)};
//   rl::PpoStats const stats = trainer.step(prompts);

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "emprl/core/error.hpp"
#include "emprl/core/ragged.hpp"
#include "emprl/rl/actor_critic.hpp"
#include "emprl/rl/advantages.hpp"
#include "emprl/rl/concepts.hpp"
#include "emprl/rl/evaluate.hpp"
#include "emprl/rl/kl.hpp"
#include "emprl/rl/masked.hpp"
#include "emprl/rl/objective.hpp"
#include "emprl/rl/passes.hpp"
#include "emprl/rl/ppo_config.hpp"
#include "emprl/rl/reward_shaping.hpp"
#include "emprl/rl/rewards.hpp"
#include "emprl/rl/running_moments.hpp"
#include "emprl/rl/types.hpp"
#include "emprl/rl/update.hpp"

namespace emprl::rl {

/// What a trainer is made of: models and callables by reference (they outlive it), small strategies
/// by value.
template <class Actor, class Reference, class Reward, class Draw, class Decode, class Optimise,
          class Kl = KlK1, class Controller = AdaptiveKl, class Advantages = Gae,
          class Loss = PpoClipObjective>
struct PpoSpec {
  Actor& actor;          ///< ActorCritic
  Reference& reference;  ///< ReferencePolicy
  Reward& reward;        ///< RewardModel
  Draw& sampler;         ///< Sampler
  Decode& decode;        ///< TextDecoder
  Optimise& optimizer;   ///< Optimizer of the actor's parameters
  Kl kl;                 ///< KlEstimator
  Controller kl_controller;
  Advantages advantages;  ///< AdvantageEstimator
  Loss objective;         ///< Objective
};

/// A composition with every strategy chosen by the caller.
template <class A, class R, class W, class S, class D, class G, class K, class C, class V, class L>
PpoSpec<A, R, W, S, D, G, K, C, V, L> make_ppo_spec(A& actor, R& reference, W& reward, S& sampler,
                                                    D& decode, G& optimizer, K kl, C kl_controller,
                                                    V advantages, L objective) {
  return {actor,
          reference,
          reward,
          sampler,
          decode,
          optimizer,
          std::move(kl),
          std::move(kl_controller),
          std::move(advantages),
          std::move(objective)};
}

/// PPO's own strategies with the numbers of the configuration: k1, adaptive coefficient, GAE,
/// clipped objective.
template <class A, class R, class W, class S, class D, class G>
PpoSpec<A, R, W, S, D, G> make_ppo_spec(PpoConfig const& config, A& actor, R& reference, W& reward,
                                        S& sampler, D& decode, G& optimizer) {
  return {actor,
          reference,
          reward,
          sampler,
          decode,
          optimizer,
          KlK1{},
          AdaptiveKl(config.kl_coefficient, config.kl_target, config.kl_horizon),
          Gae{config.gamma, config.lambda},
          PpoClipObjective{config.policy_clip, config.value_clip, config.value_coefficient}};
}

/// All that a trainer remembers from step to step, as numbers, to be saved beside the weights and
/// the optimiser's moments.
struct PpoState {
  std::int64_t step = 0;  ///< steps done; addresses sampling, shuffling and the learning rate
  RunningMoments score_moments;
  std::vector<double>
      kl_controller;  ///< the controller's own state, or its coefficient if it has none
  std::vector<double> advantages{};  ///< the advantage estimator's state, if it has one
  bool clipped = false;  ///< PpoMode::trl_0_9_6: gradients were clipped once, and will not be again
  std::vector<double> reward{};  ///< the reward's state, if it has one

  friend bool operator==(PpoState const&, PpoState const&) = default;
};

/// The episodes of a rollout as rewards see them: views into both arguments.
inline std::vector<Episode> view_episodes(PromptBatch const& prompts, Rollout const& rollout,
                                          std::vector<std::string>& names) {
  std::vector<Episode> episodes;
  names.clear();
  for (index_t i = 0; i < rollout.rows(); ++i) {
    names.push_back(prompts.ids.empty() ? "row " + std::to_string(i)
                                        : prompts.ids[static_cast<std::size_t>(i)]);
  }
  for (index_t i = 0; i < rollout.rows(); ++i) {
    auto const u = static_cast<std::size_t>(i);
    Episode e;
    e.id = names[u];
    if (!prompts.texts.empty()) e.context = prompts.texts[u];
    e.response = rollout.texts[u];
    if (!prompts.references.empty()) e.reference = prompts.references[u];
    e.context_ids = prompts.contexts.row(i);
    e.response_ids = rollout.responses.row(i);
    if (!prompts.payloads.empty()) e.payload = &prompts.payloads[u];
    episodes.push_back(e);
  }
  return episodes;
}

/// The statistics that a rollout alone tells: scores, KL, advantages, values, lengths. Call before
/// whitening.
inline void describe_rollout(Rollout const& rollout, std::int32_t end_token, PpoStats& stats) {
  std::vector<std::uint8_t> const all(rollout.scores.size(), 1);
  stats.episodes = rollout.rows();
  stats.tokens = masked_count(rollout.mask);
  stats.score_mean = masked_mean(rollout.scores, all);
  stats.score_deviation = std::sqrt(masked_variance(rollout.scores, all));
  for (ScoreLog::Component const& c : rollout.log.components()) {
    stats.components.push_back(
        {c.name, masked_mean(c.values, all), std::sqrt(masked_variance(c.values, all))});
  }
  stats.reward_mean = mean_row_sum(rollout.offsets(), rollout.rewards, rollout.mask);
  stats.kl = mean_row_sum(rollout.offsets(), rollout.kl, rollout.mask);
  std::vector<double> k1(rollout.kl.size());
  token_kl(KlK1{}, rollout.logp, rollout.reference, rollout.mask, k1);
  stats.kl_k1 = mean_row_sum(rollout.offsets(), k1, rollout.mask);

  double const rows = static_cast<double>(rollout.rows());
  index_t unfinished = 0;
  for (index_t i = 0; i < rollout.rows(); ++i) {
    auto const row = rollout.responses.row(i);
    if (row.empty() || row.back() != end_token) ++unfinished;
  }
  stats.response_length = static_cast<double>(rollout.tokens()) / rows;
  stats.unfinished = static_cast<double>(unfinished) / rows;
}

/// The statistics of advantages, values and returns. Call before advantages are whitened.
inline void describe_advantages(Rollout const& rollout, PpoStats& stats) {
  stats.advantage_mean = masked_mean(rollout.advantages, rollout.mask);
  stats.advantage_deviation = std::sqrt(masked_variance(rollout.advantages, rollout.mask));
  stats.value_mean = masked_mean(rollout.values, rollout.mask);
  stats.return_mean = masked_mean(rollout.returns, rollout.mask);
  std::vector<double> residual(rollout.returns.size());
  for (std::size_t t = 0; t < residual.size(); ++t) {
    residual[t] = rollout.returns[t] - rollout.values[t];
  }
  double const variance = masked_variance(rollout.returns, rollout.mask);
  stats.explained_variance =
      variance > 0 ? 1.0 - masked_variance(residual, rollout.mask) / variance : 0.0;
}

/// Trains the actor, one rollout batch a step. Spec is a PpoSpec.
template <class Spec>
class PpoTrainer {
  template <class M>
  using Bare = std::remove_reference_t<M>;
  using Actor = Bare<decltype(Spec::actor)>;
  using Controller = decltype(Spec::kl_controller);
  using Loss = decltype(Spec::objective);
  using Advantages = decltype(Spec::advantages);
  static_assert(ActorCritic<Actor>,
                "spec.actor must be an ActorCritic: forward(batch, logp, values, context) and "
                "backward(dlogp, dvalues, context), with nested Scalar and Context");
  static_assert(ReferencePolicy<Bare<decltype(Spec::reference)>, typename Actor::Scalar>,
                "spec.reference must be a ReferencePolicy: logprobs(batch, logp)");
  static_assert(RewardModel<Bare<decltype(Spec::reward)>>,
                "spec.reward must be a RewardModel: callable as reward(EpisodeBatch const&, "
                "std::span<float>) or (EpisodeBatch const&, TokenScores), optionally with a "
                "ScoreLog&");
  static_assert(Sampler<Bare<decltype(Spec::sampler)>>,
                "spec.sampler must be a Sampler: callable as sampler(RaggedView, std::uint32_t) "
                "and return Ragged");
  static_assert(TextDecoder<Bare<decltype(Spec::decode)>>,
                "spec.decode must be a TextDecoder: callable with std::span<std::int32_t const> "
                "and return a string");
  static_assert(Optimizer<Bare<decltype(Spec::optimizer)>>,
                "spec.optimizer must be an Optimizer: zero_gradients() and "
                "double step(learning_rate, max_gradient_norm)");
  static constexpr bool scores_tokens = !ResponseReward<Bare<decltype(Spec::reward)>>;
  static constexpr bool full_kl = std::is_same_v<decltype(Spec::kl), KlFull>;
  static_assert(KlEstimator<decltype(Spec::kl)> || full_kl,
                "spec.kl must be a KlEstimator: callable with two log-probabilities");
  static_assert(!full_kl || ReportsFullKl<Actor, Bare<decltype(Spec::reference)>>,
                "KlFull needs an actor with full_kl(reference, batch, kl), which compares whole "
                "distributions; KlK3 asks for no more than log-probabilities");
  static_assert(KlController<Controller>,
                "spec.kl_controller must be a KlController: coefficient() noexcept and "
                "update(mean_kl, episodes)");
  static_assert(AdvantageEstimator<decltype(Spec::advantages)>,
                "spec.advantages must be an AdvantageEstimator: callable as "
                "advantages(Rollout const&, std::span<double>, std::span<double>)");
  static_assert(Objective<Loss>,
                "spec.objective must be an Objective: template <class S> S operator()(S logp, "
                "S value, TokenContext const&) const, or with S entropy as a third number");
  static_assert(!EntropyObjective<Loss> || TrainsEntropy<Actor>,
                "an objective of the entropy needs an actor that trains it: entropy(entropy, "
                "context) and backward(dlogp, dvalues, dentropy, context)");

 public:
  /// @throws ConfigError naming the first setting, of the configuration or a strategy, that is out
  /// of range
  PpoTrainer(PpoConfig config, Spec spec) : config_(std::move(config)), spec_(std::move(spec)) {
    config_.validate();
    validate_strategy(spec_.advantages);
    validate_strategy(spec_.objective);
  }

  /// One step of PPO: a rollout batch and the epochs over it.
  /// @throws ConfigError if the batch is empty or larger than batch_size, ShapeError if the sampler
  /// or a list has the wrong
  ///         number of rows, Error naming the episode if a score, a log-probability, a value, a
  ///         ratio or a gradient is not what it must be. The trainer's state is then what it was
  ///         before.
  PpoStats step(PromptBatch const& prompts) {
    expects<ConfigError>(prompts.rows() >= 1 && prompts.rows() <= config_.batch_size,
                         "a prompt batch must hold 1 to batch_size rows, that is " +
                             std::to_string(config_.batch_size) + ", but holds " +
                             std::to_string(prompts.rows()));
    expects<ConfigError>(step_ < std::numeric_limits<std::uint32_t>::max(),
                         "too many steps of PPO");
    prompts.validate();
    auto const step = static_cast<std::uint32_t>(step_);
    PpoStats stats;
    stats.step = step_;
    stats.kl_coefficient = spec_.kl_controller.coefficient();
    stats.learning_rate = config_.learning_rate_at(step_);
    Rollout r;

    // 1. Sample a response for every context.
    r.responses = spec_.sampler(prompts.contexts.view(), step);
    expects(r.rows() == prompts.rows(), "the sampler must return one response a context");
    bool const trl = config_.mode == PpoMode::trl_0_9_6;
    r.mask =
        trl ? trl_response_mask(r.responses.view(), prompts) : response_mask(r.responses.view());
    for (index_t i = 0; i < r.rows(); ++i) r.texts.push_back(spec_.decode(r.responses.row(i)));

    // 2. Score them.
    Memory memory(spec_);
    std::vector<std::string> names;
    std::vector<Episode> const episodes = view_episodes(prompts, r, names);
    r.log = ScoreLog(episodes.size());
    ask_reward(EpisodeBatch{episodes, step}, r);

    // 3. Evaluate policy, value function and reference; last what the update begins with.
    if constexpr (full_kl) {
      evaluate_full_kl(spec_.actor, spec_.reference, prompts, config_.rows_at_once(), r);
    }
    ForwardPass<Actor> pass;
    if (config_.shares_old_pass(step_)) {
      evaluate_rollout(spec_.actor, spec_.reference, prompts, config_.rows_at_once(), r,
                       first_pass(prompts, r, config_, step), pass);
    } else {
      // In the order of the prompts and by mini-batches: otherwise than the update, whose first
      // ratios then tell whether the actor's numbers depend on more than the row.
      evaluate_rollout(spec_.actor, spec_.reference, prompts, config_.mini_batch_size, r);
    }
    clear_masked(r.values, r.mask);

    // 4. Shape rewards: normalised score at the end, KL penalty at every token.
    RunningMoments moments = score_moments_;
    if (config_.score_scaling != ScoreScaling::none) moments.update(r.scores);
    r.shaped_scores = r.scores;
    scale_scores(r.shaped_scores, moments, config_.score_scaling);
    if constexpr (!full_kl) {
      r.kl.resize(r.mask.size());
      token_kl(spec_.kl, r.logp, r.reference, r.mask, r.kl);
    }
    r.rewards.resize(r.mask.size());
    constexpr bool kl_in_loss = detail::is_kl_in_loss<decltype(Spec::kl)>;
    double const reward_penalty = kl_in_loss ? 0.0 : stats.kl_coefficient;
    if constexpr (scores_tokens) {
      shape_token_rewards(r.offsets(), r.kl, r.shaped_scores, r.token_scores,
                          1.0 / score_divisor(moments, config_.score_scaling), r.mask,
                          reward_penalty, r.rewards);
    } else {
      shape_rewards(r.offsets(), r.kl, r.shaped_scores, r.mask, reward_penalty, r.rewards);
    }
    expect_finite_rewards(r, prompts);
    describe_rollout(r, config_.end_token, stats);
    if (config_.whiten_rewards) {
      if (trl) {
        r.padding_reward = whiten_rewards_trl(r.rewards, r.mask);
      } else {
        whiten_rewards(r.rewards, r.mask);
      }
    }

    // 5. Advantages.
    r.advantages.assign(r.mask.size(), 0.0);
    r.returns.assign(r.mask.size(), 0.0);
    spec_.advantages(r, r.advantages, r.returns);
    describe_advantages(r, stats);
    if (config_.whiten_advantages) masked_whiten(r.advantages, r.mask, WhitenMean::remove);

    // 6. Epochs over mini-batches.
    auto const update_with = [&](auto const& objective) {
      return update_policy(spec_.actor, objective, spec_.optimizer, prompts, r, config_, step,
                           stats.learning_rate, clipped_, &pass);
    };
    UpdateReport update;
    if constexpr (kl_in_loss) {
      update = update_with(
          WithKlPenalty<Loss, decltype(Spec::kl)>{spec_.objective, spec_.kl, stats.kl_coefficient});
    } else {
      update = update_with(spec_.objective);
    }
    memory.keep();

    // 7. KL coefficient of the next step.
    spec_.kl_controller.update(stats.kl, stats.episodes);

    // 8. Statistics and state.
    describe_update(update, stats);
    score_moments_ = moments;
    clipped_ = clipped_ || (trl && update.optimizer_steps > 0);
    ++step_;
    rollout_ = std::move(r);
    return stats;
  }

  /// The last rollout batch, for a look at samples.
  Rollout const& rollout() const { return rollout_; }
  PpoConfig const& config() const { return config_; }
  Controller const& kl_controller() const { return spec_.kl_controller; }

  /// Everything to save; a trainer restored from it, with the same models and optimiser, goes on as
  /// if never stopped.
  PpoState state() const {
    PpoState state{step_,    score_moments_,
                   {},       state_of(spec_.advantages),
                   clipped_, reward_state(spec_.reward)};
    if constexpr (StatefulKlController<Controller>) {
      state.kl_controller = spec_.kl_controller.state();
    } else {
      state.kl_controller = {spec_.kl_controller.coefficient()};
    }
    return state;
  }

  /// @throws ConfigError if the state is not from this kind of trainer, or if a KL controller
  /// without state() and restore()
  ///         has another coefficient than was saved
  void restore(PpoState const& state) {
    expects<ConfigError>(state.step >= 0, "the saved step of PPO must be at least 0");
    if constexpr (StatefulKlController<Controller>) {
      spec_.kl_controller.restore(state.kl_controller);
    } else {
      expects<ConfigError>(
          state.kl_controller == std::vector<double>{spec_.kl_controller.coefficient()},
          "the KL controller cannot be restored to its saved coefficient: give it state() and "
          "restore()");
    }
    restore_advantages(spec_.advantages, state.advantages);
    restore_reward(spec_.reward, state.reward);
    step_ = state.step;
    score_moments_ = state.score_moments;
    clipped_ = state.clipped;
  }

 private:
  /// What reward and advantage estimator remember, brought back unless the step comes to its end.
  class Memory {
   public:
    explicit Memory(Spec& spec)
        : spec_(spec), reward_(reward_state(spec.reward)), advantages_(state_of(spec.advantages)) {}
    Memory(Memory const&) = delete;
    Memory& operator=(Memory const&) = delete;
    ~Memory() {
      if (kept_) return;
      restore_reward(spec_.reward, reward_);
      restore_advantages(spec_.advantages, advantages_);
    }
    void keep() { kept_ = true; }

   private:
    Spec& spec_;
    std::vector<double> reward_;
    std::vector<double> advantages_;
    bool kept_ = false;
  };

  static std::vector<double> state_of(Advantages const& advantages) {
    if constexpr (StatefulAdvantageEstimator<Advantages>) {
      return advantages.state();
    } else {
      return {};
    }
  }

  static void restore_advantages(Advantages& advantages, std::span<double const> state) {
    if constexpr (StatefulAdvantageEstimator<Advantages>) {
      advantages.restore(state);
    } else {
      expects<ConfigError>(state.empty(),
                           "the saved advantage estimator has a state, but this one has none");
    }
  }

  template <class S>
  static void validate_strategy(S const& strategy) {
    if constexpr (requires { strategy.validate(); }) strategy.validate();
  }

  /// Fills scores; of a reward of tokens token_scores too, and a response's score is their sum.
  void ask_reward(EpisodeBatch const& episodes, Rollout& r) {
    if constexpr (scores_tokens) {
      r.token_scores = score_tokens(spec_.reward, episodes, r.offsets(), r.log);
      r.scores.assign(episodes.size(), 0.0);
      for (std::size_t i = 0; i < r.scores.size(); ++i) {
        for (auto t = r.offsets()[i]; t < r.offsets()[i + 1]; ++t) {
          r.scores[i] += r.token_scores[static_cast<std::size_t>(t)];
        }
      }
    } else {
      r.scores = score_episodes(spec_.reward, episodes, r.log);
    }
  }

  static void expect_finite_rewards(Rollout const& r, PromptBatch const& prompts) {
    for (index_t i = 0; i < r.rows(); ++i) {
      auto const u = static_cast<std::size_t>(i);
      for (auto t = static_cast<std::size_t>(r.offsets()[u]);
           t < static_cast<std::size_t>(r.offsets()[u + 1]); ++t) {
        if (std::isfinite(r.rewards[t])) continue;
        throw Error("the KL penalty of a token of episode " + prompts.name(i) + " is not finite");
      }
    }
  }

  static void describe_update(UpdateReport const& update, PpoStats& stats) {
    double const tokens = update.sums.tokens;
    auto const mean = [tokens](double sum) { return tokens > 0 ? sum / tokens : 0.0; };
    stats.total_loss = mean(update.sums.loss);
    if constexpr (ItemisedObjective<Loss>) {
      stats.policy_loss = mean(update.sums.policy);
      stats.value_loss = mean(update.sums.value);
      stats.clip_fraction = mean(update.sums.clipped);
    }
    if constexpr (ReportsEntropy<Actor>) stats.entropy = mean(update.entropy);
    stats.mean_ratio = update.ratio_tokens > 0 ? update.ratio / update.ratio_tokens : 1.0;
    stats.approx_kl_k1 = mean(update.sums.k1);
    stats.approx_kl_k3 = mean(update.sums.k3);
    stats.optimizer_steps = update.optimizer_steps;
    stats.skipped_batches = update.skipped_batches;
    if (update.optimizer_steps > 0) {
      stats.gradient_norm = update.gradient_norm / static_cast<double>(update.optimizer_steps);
    }
  }

  PpoConfig config_;
  Spec spec_;
  std::int64_t step_ = 0;
  RunningMoments score_moments_;
  bool clipped_ = false;
  Rollout rollout_;
};

}  // namespace emprl::rl
