// SPDX-License-Identifier: Apache-2.0
#pragma once

// Rewards made of rewards. Each combinator is a reward itself, so they nest:
//
//   auto reward = rl::weighted_sum(
//       0.7, rl::Named{"empathy", std::ref(empathy)},
//       0.3, rl::Named{"varied", rl::Clipped{rl::RepetitionReward{2}, 0.5, 1.0}});
//
// What is common to all:
//   - Parts are held by value, copied or moved in; std::ref(reward) holds a reference instead,
//     which the reward must outlive. A part that cannot be moved or must be shared needs it.
//   - The log reaches every part, so that a Named part shows in the statistics as the part alone
//     scored: before weights, bounds and scales. Name the outcome as well to see both.
//   - A score that a part left unwritten or that is not finite is an Error that names the episode
//     and the part, even where the combination would have hidden it (a NaN below a minimum, an
//     infinity inside bounds, anything times the weight 0).
//   - Arithmetic is in double; what is handed on is a float, as from any reward.
//   - A combinator has state() and restore() exactly if one of its parts has (see Normalised).
//   - Parts give one number a response. Spread makes a reward of tokens of one.

#include <algorithm>
#include <array>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/rl/concepts.hpp"
#include "emprl/rl/rewards.hpp"
#include "emprl/rl/running_moments.hpp"
#include "emprl/rl/types.hpp"

namespace emprl::rl {

namespace detail {

/// How messages call a part: its role, and its name if it has one.
template <class R>
std::string part_name(R const& part, std::string_view role, std::string_view whole) {
  std::unwrap_reference_t<R> const& held = part;
  std::string name(role);
  if constexpr (requires {
                  { held.name() } -> std::convertible_to<std::string_view>;
                }) {
    name += " (\"" + std::string(held.name()) + "\")";
  }
  return name + " of " + std::string(whole);
}

/// The checked scores of a combinator's only part.
template <ResponseReward R>
std::vector<double> score_part(R& part, EpisodeBatch const& episodes, ScoreLog& log,
                               std::string_view whole) {
  return score_episodes(part, episodes, log, part_name(part, "the part", whole));
}

/// Whether a number is finite also as the float that scores are.
inline bool finite_score(double x) {
  return std::abs(x) <= static_cast<double>(std::numeric_limits<float>::max());
}

inline void write_scores(std::span<double const> from, std::span<float> scores) {
  expects(scores.size() == from.size(), "a reward writes one score an episode");
  for (std::size_t i = 0; i < from.size(); ++i) scores[i] = static_cast<float>(from[i]);
}

/// The states of several rewards as one list: each as its length and its numbers, because a
/// length may change in the course of a run.
template <ResponseReward... Rs>
std::vector<double> join_states(Rs const&... rewards) {
  std::vector<double> all;
  auto const append = [&all](std::vector<double> const& one) {
    all.push_back(static_cast<double>(one.size()));
    all.insert(all.end(), one.begin(), one.end());
  };
  (append(reward_state(rewards)), ...);
  return all;
}

/// @throws ConfigError if the numbers are not from join_states of such rewards
template <ResponseReward... Rs>
void restore_states(std::span<double const> all, Rs&... rewards) {
  constexpr std::string_view sentence =
      "the saved state of a combined reward is not that of as many parts as this one has";
  std::array<std::span<double const>, sizeof...(Rs)> states;
  for (std::span<double const>& one : states) {
    expects<ConfigError>(!all.empty() && all[0] >= 0 &&
                             all[0] <= static_cast<double>(all.size() - 1) &&
                             all[0] == std::floor(all[0]),
                         sentence);
    auto const length = static_cast<std::size_t>(all[0]);
    one = all.subspan(1, length);
    all = all.subspan(1 + length);
  }
  expects<ConfigError>(all.empty(), sentence);
  std::size_t k = 0;
  (restore_reward(rewards, states[k++]), ...);
}

/// The parts of a combinator that treats them alike.
template <ResponseReward... Rs>
class Parts {
  static_assert(sizeof...(Rs) >= 1, "a combined reward needs a part");

 public:
  explicit Parts(Rs... rewards) : rewards_(std::move(rewards)...) {}

  /// Calls f(k, scores) with the checked scores of each part, in order.
  template <class F>
  void score(EpisodeBatch const& episodes, ScoreLog& log, std::string_view whole, F const& f) {
    std::size_t k = 0;
    auto const one = [&](auto& reward) {
      auto const name = part_name(reward, "part " + std::to_string(k + 1), whole);
      f(k, score_episodes(reward, episodes, log, name));
      ++k;
    };
    std::apply([&one](Rs&... rewards) { (one(rewards), ...); }, rewards_);
  }

  std::vector<double> state() const {
    return std::apply([](Rs const&... rewards) { return join_states(rewards...); }, rewards_);
  }
  void restore(std::span<double const> state) {
    std::apply([state](Rs&... rewards) { restore_states(state, rewards...); }, rewards_);
  }

 private:
  std::tuple<Rs...> rewards_;
};

}  // namespace detail

/// A reward and its weight in a sum.
template <ResponseReward R>
struct Weighted {
  double weight;
  R reward;
};
// clang 14 does not deduce an aggregate's arguments by itself.
template <ResponseReward R>
Weighted(double, R) -> Weighted<R>;

/// A weighted sum of rewards:  score = sum_k w_k r_k.  Weights may be negative and need not sum
/// to 1. A part of weight 0 is asked, checked and logged all the same: a way to watch a score
/// without training on it.
///   rl::WeightedSum reward{rl::Weighted{0.7, empathy}, rl::Weighted{0.3, varied}};
///   auto reward = rl::weighted_sum(0.7, empathy, 0.3, varied);   // the same
template <ResponseReward... Rs>
class WeightedSum {
 public:
  /// @throws ConfigError unless every weight is finite
  explicit WeightedSum(Weighted<Rs>... parts)
      : weights_{parts.weight...}, parts_(std::move(parts.reward)...) {
    for (std::size_t k = 0; k < weights_.size(); ++k) {
      expects<ConfigError>(std::isfinite(weights_[k]),
                           "weight " + std::to_string(k + 1) + " of a weighted sum must be finite");
    }
  }

  void operator()(EpisodeBatch const& episodes, std::span<float> scores, ScoreLog& log) {
    std::vector<double> sum(episodes.size(), 0.0);
    parts_.score(episodes, log, "a weighted sum",
                 [&](std::size_t k, std::vector<double> const& part) {
                   for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += weights_[k] * part[i];
                 });
    detail::write_scores(sum, scores);
  }

  std::vector<double> state() const requires(detail::Remembers<Rs> || ...) {
    return parts_.state();
  }
  void restore(std::span<double const> state) requires(detail::Remembers<Rs> || ...) {
    parts_.restore(state);
  }

 private:
  std::array<double, sizeof...(Rs)> weights_;
  detail::Parts<Rs...> parts_;
};

/// A WeightedSum from weight, reward, weight, reward, ...
/// @throws ConfigError unless every weight is finite
template <class... Args>
auto weighted_sum(Args... args) {
  static_assert(sizeof...(Args) >= 2 && sizeof...(Args) % 2 == 0,
                "weighted_sum takes a weight and a reward for every part");
  auto all = std::tie(args...);
  return [&all]<std::size_t... K>(std::index_sequence<K...>) {
    return WeightedSum(Weighted{static_cast<double>(std::get<2 * K>(all)),
                                std::move(std::get<2 * K + 1>(all))}...);
  }
  (std::make_index_sequence<sizeof...(Args) / 2>{});
}

namespace detail {

struct Multiply {
  static constexpr std::string_view whole = "a product";
  static constexpr double start = 1.0;
  double operator()(double a, double b) const { return a * b; }
};

struct Least {
  static constexpr std::string_view whole = "a minimum";
  static constexpr double start = std::numeric_limits<double>::infinity();
  double operator()(double a, double b) const { return std::min(a, b); }
};

/// Scores of several parts, combined two by two.
template <class Combine, ResponseReward... Rs>
class Folded {
 public:
  explicit Folded(Rs... rewards) : parts_(std::move(rewards)...) {}

  void operator()(EpisodeBatch const& episodes, std::span<float> scores, ScoreLog& log) {
    std::vector<double> result(episodes.size(), Combine::start);
    parts_.score(episodes, log, Combine::whole, [&](std::size_t, std::vector<double> const& part) {
      for (std::size_t i = 0; i < result.size(); ++i) result[i] = Combine{}(result[i], part[i]);
    });
    write_scores(result, scores);
  }

  std::vector<double> state() const requires(Remembers<Rs> || ...) { return parts_.state(); }
  void restore(std::span<double const> state) requires(Remembers<Rs> || ...) {
    parts_.restore(state);
  }

 private:
  Parts<Rs...> parts_;
};

}  // namespace detail

/// A product of rewards:  score = prod_k r_k.  With parts in [0, 1] a soft "and": a response must
/// do well by all of them. Two negative parts make a positive product.
template <ResponseReward... Rs>
class Product : public detail::Folded<detail::Multiply, Rs...> {
 public:
  explicit Product(Rs... rewards)
      : detail::Folded<detail::Multiply, Rs...>(std::move(rewards)...) {}
};

/// rl::product(fluent, kind): a Product, even of a single product.
template <ResponseReward... Rs>
Product<Rs...> product(Rs... rewards) {
  return Product<Rs...>(std::move(rewards)...);
}

/// The worst of several rewards:  score = min_k r_k.  Only the weakest side of a response is
/// trained, so parts must share a scale.
template <ResponseReward... Rs>
class Minimum : public detail::Folded<detail::Least, Rs...> {
 public:
  explicit Minimum(Rs... rewards) : detail::Folded<detail::Least, Rs...>(std::move(rewards)...) {}
};

/// rl::minimum(fluent, kind): a Minimum, even of a single minimum.
template <ResponseReward... Rs>
Minimum<Rs...> minimum(Rs... rewards) {
  return Minimum<Rs...>(std::move(rewards)...);
}

/// A reward kept between bounds:  score = min(max(r, low), high).  Beyond a bound nothing is
/// learned, which takes the motive to exploit a reward's extremes. A bound may be infinite.
template <ResponseReward R>
class Clipped : public detail::OnePart<R> {
 public:
  /// @throws ConfigError unless low is at most high and finite scores lie between them
  Clipped(R reward, double low, double high)
      : detail::OnePart<R>(std::move(reward)), low_(low), high_(high) {
    constexpr double infinity = std::numeric_limits<double>::infinity();
    expects<ConfigError>(low <= high && low < infinity && high > -infinity,
                         "the bounds of a clipped reward must be numbers, low at most high");
  }

  void operator()(EpisodeBatch const& episodes, std::span<float> scores, ScoreLog& log) {
    auto result = detail::score_part(this->reward_, episodes, log, "a clipped reward");
    for (double& s : result) s = std::clamp(s, low_, high_);
    detail::write_scores(result, scores);
  }

 private:
  double low_;
  double high_;
};

/// A reward on another scale:  score = scale r + shift.  A negative scale turns a penalty into a
/// reward.
template <ResponseReward R>
class Affine : public detail::OnePart<R> {
 public:
  /// @throws ConfigError unless both numbers are finite
  Affine(R reward, double scale, double shift = 0)
      : detail::OnePart<R>(std::move(reward)), scale_(scale), shift_(shift) {
    expects<ConfigError>(std::isfinite(scale), "the scale of an affine reward must be finite");
    expects<ConfigError>(std::isfinite(shift), "the shift of an affine reward must be finite");
  }

  void operator()(EpisodeBatch const& episodes, std::span<float> scores, ScoreLog& log) {
    auto result = detail::score_part(this->reward_, episodes, log, "an affine reward");
    for (double& s : result) s = scale_ * s + shift_;
    detail::write_scores(result, scores);
  }

 private:
  double scale_;
  double shift_;
};

/// A reward in deviations from its own mean so far:  score = (r - mean) / (deviation + 1.19e-7),
/// over all scores seen, this batch included. It makes parts of unlike scales comparable before
/// they are weighed; PPO's score_scaling does the same to the final score only.
///
/// It changes with every batch it is asked about, also in a step of PPO that fails later, and in an
/// evaluation: evaluate with the reward inside. A batch whose inner reward fails changes nothing.
///
/// State. Combinators nest, and so do their states: state() of the outermost combinator holds those
/// of all its parts, those behind Named and std::ref too, and restore() gives them back.
/// reward_state() and restore_reward() (rewards.hpp) do so for any reward. The trainer refers to
/// its reward and does not save it; who owns the reward does:
///   auto reward = rl::weighted_sum(1.0, rl::Normalised{style}, 1.0, rl::Normalised{length});
///   std::vector<double> const saved = reward.state();   // beside the trainer's state
///   reward.restore(saved);                              // into a reward built alike
/// The numbers are mean, variance, deviation and count, then those of the reward inside.
template <ResponseReward R>
class Normalised {
 public:
  explicit Normalised(R reward) : reward_(std::move(reward)) {}

  void operator()(EpisodeBatch const& episodes, std::span<float> scores, ScoreLog& log) {
    auto result = detail::score_part(reward_, episodes, log, "a normalised reward");
    moments_.update(result);
    scale_scores(result, moments_, ScoreScaling::normalise);
    detail::write_scores(result, scores);
  }

  RunningMoments const& moments() const { return moments_; }

  std::vector<double> state() const {
    std::vector<double> all{moments_.mean, moments_.variance, moments_.deviation, moments_.count};
    std::vector<double> const inner = reward_state(reward_);
    all.insert(all.end(), inner.begin(), inner.end());
    return all;
  }

  /// @throws ConfigError if the numbers are not from state()
  void restore(std::span<double const> state) {
    bool const valid = state.size() >= 4 && std::isfinite(state[0]) && std::isfinite(state[1]) &&
                       state[1] >= 0 && std::isfinite(state[2]) && state[2] >= 0 &&
                       std::isfinite(state[3]) && state[3] > 0;
    expects<ConfigError>(valid,
                         "the saved state of a normalised reward is a mean, a variance, a "
                         "deviation and a count, and the state of the reward inside");
    restore_reward(reward_, state.subspan(4));
    moments_ = {state[0], state[1], state[2], state[3]};
  }

 private:
  R reward_;
  RunningMoments moments_;
};

/// A reward for responses that are not too long:  score = r where the response has at most `tokens`
/// generated tokens, the end token included, else score_beyond. The reward is asked about every
/// response, so that what it logs is over all. Choose a floor below what the reward gives: one
/// above would pay for running on.
template <ResponseReward R>
class LengthCapped : public detail::OnePart<R> {
 public:
  /// @throws ConfigError unless tokens is at least 1 and score_beyond is finite as a float
  LengthCapped(R reward, index_t tokens, double score_beyond)
      : detail::OnePart<R>(std::move(reward)), tokens_(tokens), score_beyond_(score_beyond) {
    expects<ConfigError>(tokens >= 1, "the tokens of a length-capped reward must be at least 1");
    expects<ConfigError>(detail::finite_score(score_beyond),
                         "the score_beyond of a length-capped reward must be finite as a float");
  }

  void operator()(EpisodeBatch const& episodes, std::span<float> scores, ScoreLog& log) {
    auto result = detail::score_part(this->reward_, episodes, log, "a length-capped reward");
    for (std::size_t i = 0; i < result.size(); ++i) {
      if (static_cast<index_t>(episodes[i].response_ids.size()) > tokens_) {
        result[i] = score_beyond_;
      }
    }
    detail::write_scores(result, scores);
  }

 private:
  index_t tokens_;
  double score_beyond_;
};

/// A reward of tokens from one of responses, in equal shares:  scores[t] = r / n for each of the n
/// generated tokens, the end token included. The sum is r; what changes is where the credit lands:
/// with r on the last token, as PPO does otherwise, gamma and lambda below 1 leave less of it for
/// early tokens. A response without a token has none to credit.
template <ResponseReward R>
class Spread : public detail::OnePart<R> {
 public:
  explicit Spread(R reward) : detail::OnePart<R>(std::move(reward)) {}

  void operator()(EpisodeBatch const& episodes, TokenScores scores, ScoreLog& log) {
    auto const whole = detail::score_part(this->reward_, episodes, log, "a spread reward");
    expects(scores.size() == whole.size(), "a reward of tokens writes the tokens of every episode");
    for (std::size_t i = 0; i < whole.size(); ++i) {
      std::span<float> const row = scores.row(i);
      std::ranges::fill(row, static_cast<float>(whole[i] / static_cast<double>(row.size())));
    }
  }
};

/// A reward that must be earned first:  score = r where the gate's score is above 0, else
/// `otherwise`.  The reward is asked about the episodes that pass only, as a smaller batch in the
/// same order: a cheap rule can spare an expensive model its calls.
///
/// The log needs one number an episode. What the reward inside logs is therefore 0 for the episodes
/// it was not asked about, and the mean of a part is its mean among those that passed times their
/// share; Named around the gate shows the share of a gate of 0 and 1. A batch of which none passes
/// does not ask the reward at all, and its parts are missing from that batch's log. What the gate
/// logs is over all episodes.
template <ResponseReward G, ResponseReward R>
class Gated {
 public:
  /// @throws ConfigError unless `otherwise` is finite as a float
  Gated(G gate, R reward, double otherwise)
      : gate_(std::move(gate)), reward_(std::move(reward)), otherwise_(otherwise) {
    expects<ConfigError>(detail::finite_score(otherwise),
                         "the `otherwise` of a gated reward must be finite as a float");
  }

  void operator()(EpisodeBatch const& episodes, std::span<float> scores, ScoreLog& log) {
    auto const gate =
        score_episodes(gate_, episodes, log, detail::part_name(gate_, "the gate", whole));
    std::vector<Episode> passing;
    std::vector<std::size_t> places;
    for (std::size_t i = 0; i < gate.size(); ++i) {
      if (gate[i] <= 0) continue;
      passing.push_back(episodes[i]);
      places.push_back(i);
    }
    std::vector<float> result(episodes.size(), static_cast<float>(otherwise_));
    if (!passing.empty()) {
      std::vector<float> asked(passing.size(), std::numeric_limits<float>::quiet_NaN());
      ScoreLog inner(passing.size());
      call_reward(reward_, EpisodeBatch{passing, episodes.step}, std::span<float>(asked), inner);
      auto const spread = [&](auto const& from, std::vector<float>& to) {
        for (std::size_t j = 0; j < places.size(); ++j) to[places[j]] = static_cast<float>(from[j]);
      };
      spread(asked, result);
      // Here and not on the smaller batch, whose numbers of episodes mean nothing to a reader.
      check_scores(episodes, result, detail::part_name(reward_, "the part", whole));
      for (ScoreLog::Component const& c : inner.components()) {
        std::vector<float> values(episodes.size(), 0.0F);
        spread(c.values, values);
        log.add(c.name, values);
      }
    }
    expects(scores.size() == result.size(), "a reward writes one score an episode");
    std::copy(result.begin(), result.end(), scores.begin());
  }

  std::vector<double> state() const requires(detail::Remembers<G> || detail::Remembers<R>) {
    return detail::join_states(gate_, reward_);
  }
  void restore(std::span<double const> state) requires(detail::Remembers<G> ||
                                                       detail::Remembers<R>) {
    detail::restore_states(state, gate_, reward_);
  }

 private:
  static constexpr std::string_view whole = "a gated reward";

  G gate_;
  R reward_;
  double otherwise_;
};

}  // namespace emprl::rl
