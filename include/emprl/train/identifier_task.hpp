// SPDX-License-Identifier: Apache-2.0
#pragma once

// Supervised learning of an empathy identifier: cross-entropy of the annotated levels.

#include <algorithm>
#include <array>
#include <cmath>
#include <span>
#include <string>
#include <vector>

#include "emprl/data/mental_health.hpp"
#include "emprl/train/empathy_scorer.hpp"

namespace emprl::train {

/// Posts as token rows, with their levels.
struct EncodedPosts {
  text::EncodedPairs pairs;
  std::vector<std::int32_t> levels;

  index_t rows() const { return pairs.rows(); }
};

/// Encodes seeker posts as contexts and response posts as responses.
inline EncodedPosts encode_posts(text::SentencePieceTokenizer const& tokenizer,
                                 std::span<data::Post const> posts,
                                 text::TokenLimits const& limits = {}) {
  EncodedPosts encoded;
  for (data::Post const& post : posts) {
    encoded.pairs.contexts.push_back(text::encode_with_end(tokenizer, post.seeker, limits.context));
    encoded.pairs.responses.push_back(
        text::encode_with_end(tokenizer, post.response, limits.response));
    encoded.levels.push_back(post.level);
  }
  return encoded;
}

/// How the rarer levels are made to count.
enum class ClassWeights {
  none,     ///< every post counts the same
  balanced  ///< a post counts N / (3 n_level): every level counts the same in sum
};

namespace detail {

/// What a post of each level counts.
template <Scalar T>
std::array<T, 3> level_weights(EncodedPosts const& posts, ClassWeights how) {
  std::array<T, 3> weight;
  weight.fill(T(1));
  if (how == ClassWeights::none) return weight;
  std::array<index_t, 3> count{};
  for (std::int32_t const level : posts.levels) ++count[static_cast<std::size_t>(level)];
  for (std::size_t l = 0; l < 3; ++l) {
    if (count[l] > 0) weight[l] = static_cast<T>(posts.rows()) / (T(3) * static_cast<T>(count[l]));
  }
  return weight;
}

/// What each of some posts counts in their weighted mean; their levels go to `targets`.
template <Scalar T>
std::vector<T> level_shares(EncodedPosts const& posts, std::span<index_t const> rows,
                            std::array<T, 3> const& weight, std::vector<std::int32_t>& targets) {
  T sum = T(0);
  for (index_t const i : rows) {
    targets.push_back(posts.levels[static_cast<std::size_t>(i)]);
    sum += weight[static_cast<std::size_t>(targets.back())];
  }
  std::vector<T> shares;
  for (std::int32_t const level : targets) {
    shares.push_back(weight[static_cast<std::size_t>(level)] / sum);
  }
  return shares;
}

/// -1/N sum_i log p_i(levels[i]), unweighted; 0 of nothing.
inline double mean_cross_entropy(std::span<empathy::MechanismProbabilities const> p,
                                 std::span<std::int32_t const> levels) {
  double total = 0;
  for (std::size_t i = 0; i < p.size(); ++i) {
    total -= std::log(std::max(p[i][static_cast<std::size_t>(levels[i])], 1e-30));
  }
  return p.empty() ? 0.0 : total / static_cast<double>(p.size());
}

}  // namespace detail

/// The task of train::fit that teaches an identifier its levels.
template <Scalar T>
class IdentifierTask {
 public:
  using Scalar = T;

  struct Options {
    double dropout = 0.1;
    std::uint64_t seed = 42;
    ClassWeights class_weights = ClassWeights::none;
  };

  /// @throws ConfigError if there are no training posts
  IdentifierTask(Cpu& dev, IdentifierModel<T>& identifier, EncodedPosts const& train,
                 EncodedPosts const& valid, Options const& options)
      : dev_(dev),
        identifier_(identifier),
        train_(train),
        valid_(valid),
        options_(options),
        gradients_(identifier.model.config()) {
    expects<ConfigError>(train.rows() > 0, "an identifier needs posts to train on.");
    weight_ = detail::level_weights<T>(train, options.class_weights);
  }

  index_t examples() const { return train_.rows(); }
  std::span<T> parameters() const { return identifier_.weights.span(); }
  std::span<T> gradients() const { return gradients_.span(); }

  /// Weighted mean cross-entropy of some training posts; its gradient is added to gradients().
  double loss(std::span<index_t const> rows, std::uint32_t step) {
    ArenaScope saved(dev_.saved);
    ArenaScope scratch(dev_.scratch);
    text::EncodedPairs const batch = text::gather_pairs(train_.pairs, rows);
    std::vector<std::int32_t> targets;
    std::vector<T> const shares = detail::level_shares<T>(train_, rows, weight_, targets);
    auto const n = static_cast<index_t>(rows.size());
    DropoutSites sites(options_.dropout, options_.seed, step);
    typename empathy::Identifier<T, Cpu>::Context context;
    auto logits = dev_.scratch.template allocate<T, 2>({n, empathy::level_count});
    auto logp = dev_.scratch.template allocate<T, 1>({n});
    auto lse = dev_.scratch.template allocate<T, 1>({n});
    auto dlogp = dev_.scratch.template allocate<T, 1>({n});
    TensorView<std::int32_t const, 1, Cpu> const labels(targets.data(), {n});
    identifier_.model.forward(dev_, identifier_.weights.views(), batch.contexts.view(),
                              batch.responses.view(), logits, context, sites);
    token_logprob_forward(dev_, logp, lse, {}, logits, labels);
    double total = 0;
    for (index_t i = 0; i < n; ++i) {
      T const share = shares[static_cast<std::size_t>(i)];
      dlogp(i) = -share;
      total -= static_cast<double>(share * logp(i));
    }
    token_logprob_backward(dev_, logits, dlogp, lse, labels);
    identifier_.model.backward(dev_, identifier_.weights.views(), gradients_.views(), logits,
                               context);
    return total;
  }

  /// Mean cross-entropy a post on the validation part, unweighted: lower is better.
  double validate() const {
    return detail::mean_cross_entropy(level_probabilities(dev_, identifier_, valid_.pairs),
                                      valid_.levels);
  }
  bool has_validation() const { return valid_.rows() > 0; }
  void finish() {}

 private:
  Cpu& dev_;
  IdentifierModel<T>& identifier_;
  EncodedPosts const& train_;
  EncodedPosts const& valid_;
  Options options_;
  empathy::IdentifierParameters<T, Cpu> gradients_;
  std::array<T, 3> weight_{};
};

}  // namespace emprl::train
