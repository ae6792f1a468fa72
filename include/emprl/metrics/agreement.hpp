// SPDX-License-Identifier: Apache-2.0
#pragma once

// Agreement of two labellings by a few classes: accuracy, F1, Cohen's kappa, and how far apart the
// marginals are. All are functions of the confusion matrix.

#include <cmath>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"

namespace emprl::metrics {

/// counts(t, p): how many items of true class t were given class p.
class Confusion {
 public:
  /// An empty matrix. @throws ConfigError if there is no class
  explicit Confusion(int classes) : classes_(classes) {
    expects<ConfigError>(classes >= 1, "a confusion matrix needs at least one class");
    counts_.assign(static_cast<std::size_t>(classes) * static_cast<std::size_t>(classes), 0);
  }

  /// @throws ShapeError if the two are not as many, Error if a class is out of range
  Confusion(int classes, std::span<int const> truth, std::span<int const> predicted)
      : Confusion(classes) {
    expects(truth.size() == predicted.size(), "agreement needs two labels for each item");
    for (std::size_t i = 0; i < truth.size(); ++i) add(truth[i], predicted[i]);
  }

  /// Counts one item. @throws Error if a class is out of range
  void add(int truth, int predicted) {
    expects<Error>(truth >= 0 && truth < classes_ && predicted >= 0 && predicted < classes_,
                   "a class lies outside 0 to " + std::to_string(classes_ - 1));
    ++counts_[at(truth, predicted)];
    ++total_;
  }

  int classes() const { return classes_; }
  index_t total() const { return total_; }
  index_t count(int truth, int predicted) const { return counts_[at(truth, predicted)]; }
  index_t truth(int c) const {
    index_t sum = 0;
    for (int p = 0; p < classes_; ++p) sum += count(c, p);
    return sum;
  }
  index_t predicted(int c) const {
    index_t sum = 0;
    for (int t = 0; t < classes_; ++t) sum += count(t, c);
    return sum;
  }

 private:
  std::size_t at(int truth, int predicted) const {
    return static_cast<std::size_t>(truth) * static_cast<std::size_t>(classes_) +
           static_cast<std::size_t>(predicted);
  }

  int classes_;
  index_t total_ = 0;
  std::vector<index_t> counts_;
};

/// Scores of one class; a ratio of nothing is 0.
struct ClassScore {
  double precision = 0.0;
  double recall = 0.0;
  double f1 = 0.0;
  index_t support = 0;
};

inline ClassScore class_score(Confusion const& m, int c) {
  auto const ratio = [](index_t a, index_t b) {
    return b == 0 ? 0.0 : static_cast<double>(a) / static_cast<double>(b);
  };
  index_t const hits = m.count(c, c);
  return {ratio(hits, m.predicted(c)), ratio(hits, m.truth(c)),
          ratio(2 * hits, m.truth(c) + m.predicted(c)), m.truth(c)};
}

/// The share of items whose two labels agree. 0 of nothing, here and below.
inline double accuracy(Confusion const& m) {
  index_t hits = 0;
  for (int c = 0; c < m.classes(); ++c) hits += m.count(c, c);
  return m.total() == 0 ? 0.0 : static_cast<double>(hits) / static_cast<double>(m.total());
}

/// The mean F1 of the classes that occur in either labelling.
inline double macro_f1(Confusion const& m) {
  double sum = 0.0;
  int occurring = 0;
  for (int c = 0; c < m.classes(); ++c) {
    if (m.truth(c) + m.predicted(c) == 0) continue;
    sum += class_score(m, c).f1;
    ++occurring;
  }
  return occurring == 0 ? 0.0 : sum / occurring;
}

/// The mean F1 of the classes, weighted by how often each is true.
inline double weighted_f1(Confusion const& m) {
  double sum = 0.0;
  for (int c = 0; c < m.classes(); ++c) {
    ClassScore const score = class_score(m, c);
    sum += score.f1 * static_cast<double>(score.support);
  }
  return m.total() == 0 ? 0.0 : sum / static_cast<double>(m.total());
}

/// Cohen's kappa: (agreement - chance) / (1 - chance), chance from the marginals. 0 where chance
/// alone agrees always (both labellings give everything the same class): nothing was shown beyond
/// it.
inline double cohen_kappa(Confusion const& m) {
  if (m.total() == 0) return 0.0;
  auto const n = static_cast<double>(m.total());
  double chance = 0.0;
  for (int c = 0; c < m.classes(); ++c) {
    chance += static_cast<double>(m.truth(c)) / n * (static_cast<double>(m.predicted(c)) / n);
  }
  return chance >= 1.0 ? 0.0 : (accuracy(m) - chance) / (1.0 - chance);
}

/// The Jensen-Shannon divergence of two distributions in bits: 0 if equal, 1 if disjoint.
/// @throws ShapeError if they have different numbers of classes
inline double jensen_shannon(std::span<double const> p, std::span<double const> q) {
  expects(p.size() == q.size(), "a divergence needs two distributions over the same classes");
  double sum = 0.0;
  for (std::size_t c = 0; c < p.size(); ++c) {
    double const middle = 0.5 * (p[c] + q[c]);
    if (p[c] > 0.0) sum += 0.5 * p[c] * std::log2(p[c] / middle);
    if (q[c] > 0.0) sum += 0.5 * q[c] * std::log2(q[c] / middle);
  }
  return sum < 0.0 ? 0.0 : sum;
}

/// The share of each class among the true and among the predicted labels.
struct Marginals {
  std::vector<double> truth, predicted;
};

inline Marginals marginals(Confusion const& m) {
  Marginals result;
  double const n = m.total() == 0 ? 1.0 : static_cast<double>(m.total());
  for (int c = 0; c < m.classes(); ++c) {
    result.truth.push_back(static_cast<double>(m.truth(c)) / n);
    result.predicted.push_back(static_cast<double>(m.predicted(c)) / n);
  }
  return result;
}

/// The divergence of the two labellings' marginals, in bits.
inline double marginal_divergence(Confusion const& m) {
  Marginals const shares = marginals(m);
  return jensen_shannon(shares.truth, shares.predicted);
}

}  // namespace emprl::metrics
