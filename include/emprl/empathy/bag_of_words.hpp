// SPDX-License-Identifier: Apache-2.0
#pragma once

// A small identifier of another family: multinomial logistic regression on the words and pairs of
// words of a response. The baseline that encoders have to beat, and a judge or a reward that shares
// nothing with them.
//
//   x = tf-idf of the text, of length 1:  x_f ~ (1 + log count_f) * idf_f,  idf_f = 1 + log((1 + N)
//   / (1 + documents_f)) p = softmax(W x + b),  loss = mean_i w_i * CE_i + l2 / (2 N) * |W|^2
// w_i is 1, or grows with the rarity of example i's level. The loss is convex and minimised over
// all examples at once by L-BFGS: the same data give the same model.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <deque>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/empathy/levels.hpp"
#include "emprl/io/json.hpp"

namespace emprl::empathy {

/// Settings of training.
struct BagOfWordsConfig {
  /// Features of fewer training texts are left out.
  int min_documents = 2;
  /// Strength of the penalty, as the inverse of scikit-learn's C.
  double l2 = 0.2;
  /// Weight of an example: (N / (3 * examples of its level))^balance. 0 weighs all alike, 1 all
  /// levels alike.
  double balance = 1.0;
  /// At most this many steps of L-BFGS.
  int iterations = 500;
  /// Training stops when no component of N times the gradient is larger.
  double tolerance = 1e-3;

  /// @throws ConfigError naming the field that is out of range
  void validate() const {
    expects<ConfigError>(min_documents >= 1, "min_documents must be at least 1");
    expects<ConfigError>(l2 > 0.0 && std::isfinite(l2), "l2 must be above 0");
    expects<ConfigError>(balance >= 0.0 && balance <= 1.0, "balance must lie in [0, 1]");
    expects<ConfigError>(iterations >= 1, "iterations must be at least 1");
    expects<ConfigError>(tolerance >= 0.0, "tolerance must not be negative");
  }
};

namespace detail {

/// Lower-cased words and single punctuation marks. Bytes beyond ASCII are letters, but for the
/// block of dashes and quotes, of which the apostrophe is ASCII's.
inline std::vector<std::string> bag_tokens(std::string_view text) {
  std::vector<std::string> tokens;
  bool inside = false;
  auto const letter = [&](char c) {
    if (!inside) tokens.emplace_back();
    inside = true;
    tokens.back().push_back(c);
  };
  for (std::size_t i = 0; i < text.size(); ++i) {
    char const c = text[i];
    if (text.substr(i, 2) == "\xE2\x80" && i + 2 < text.size()) {
      std::string_view const mark = text.substr(i, 3);
      i += 2;
      if (mark == "\xE2\x80\x98" || mark == "\xE2\x80\x99") {
        letter('\'');
      } else {
        inside = false;
        tokens.emplace_back(mark);
      }
    } else if (c >= 'A' && c <= 'Z') {
      letter(static_cast<char>(c + 32));
    } else if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '\'' || c == '_' ||
               static_cast<unsigned char>(c) >= 0x80) {
      letter(c);
    } else {
      inside = false;
      if (static_cast<unsigned char>(c) > ' ') tokens.emplace_back(1, c);
    }
  }
  return tokens;
}

/// How often each word and each pair of words occurs, by name; features of a context have a tab in
/// front.
inline void count_features(std::string_view text, std::string_view prefix,
                           std::map<std::string, int>& counts) {
  std::string before;
  for (std::string const& token : bag_tokens(text)) {
    ++counts[std::string(prefix) + token];
    if (!before.empty()) ++counts[std::string(prefix) + before + " " + token];
    before = token;
  }
}

/// Rows of (feature, value).
using SparseRow = std::vector<std::pair<std::size_t, double>>;

/// Minimises a smooth convex function from x by L-BFGS with ten pairs and backtracking (Nocedal &
/// Wright, chapter 7). `f(x, gradient)` returns the value and writes the gradient.
template <class F>
void minimise(F&& f, std::vector<double>& x, int iterations, double tolerance) {
  constexpr std::size_t memory = 10;
  std::size_t const n = x.size();
  auto const dot = [n](std::vector<double> const& a, std::vector<double> const& b) {
    double sum = 0.0;
    for (std::size_t i = 0; i < n; ++i) sum += a[i] * b[i];
    return sum;
  };
  struct Pair {
    std::vector<double> step, change;
    double curvature;
  };
  std::deque<Pair> pairs;
  std::vector<double> gradient(n), direction(n), next(n), next_gradient(n);
  double value = f(x, gradient);
  for (int iteration = 0; iteration < iterations; ++iteration) {
    double steepest = 0.0;
    for (double const g : gradient) steepest = std::max(steepest, std::abs(g));
    if (steepest <= tolerance) return;

    direction = gradient;
    std::array<double, memory> projection{};
    for (std::size_t k = pairs.size(); k-- > 0;) {
      projection[k] = dot(pairs[k].step, direction) / pairs[k].curvature;
      for (std::size_t i = 0; i < n; ++i) direction[i] -= projection[k] * pairs[k].change[i];
    }
    double const scale =
        pairs.empty() ? 1.0 / std::max(1.0, std::sqrt(dot(gradient, gradient)))
                      : pairs.back().curvature / dot(pairs.back().change, pairs.back().change);
    for (double& d : direction) d *= scale;
    for (std::size_t k = 0; k < pairs.size(); ++k) {
      double const correction =
          projection[k] - dot(pairs[k].change, direction) / pairs[k].curvature;
      for (std::size_t i = 0; i < n; ++i) direction[i] += correction * pairs[k].step[i];
    }

    double const slope = dot(gradient, direction);
    double length = 1.0;
    double next_value = 0.0;
    for (;; length *= 0.5) {
      // Below this no representable step improves: the minimum is reached within rounding.
      if (length < 1e-12) return;
      for (std::size_t i = 0; i < n; ++i) next[i] = x[i] - length * direction[i];
      next_value = f(next, next_gradient);
      if (next_value <= value - 1e-4 * length * slope) break;
    }
    Pair pair{std::vector<double>(n), std::vector<double>(n), 0.0};
    for (std::size_t i = 0; i < n; ++i) {
      pair.step[i] = next[i] - x[i];
      pair.change[i] = next_gradient[i] - gradient[i];
    }
    pair.curvature = dot(pair.step, pair.change);
    x.swap(next);
    gradient.swap(next_gradient);
    value = next_value;
    if (pair.curvature > 0.0) {
      if (pairs.size() == memory) pairs.pop_front();
      pairs.push_back(std::move(pair));
    }
  }
}

}  // namespace detail

/// A trained bag of words for one mechanism.
class BagOfWords {
 public:
  /// One word or pair of words.
  struct Feature {
    std::string name;
    double idf = 1.0;
    std::array<double, 3> weight{};
  };

  /// @throws ConfigError if a feature comes twice or a number is not finite
  BagOfWords(std::vector<Feature> features, std::array<double, 3> bias, bool with_context)
      : features_(std::move(features)), bias_(bias), with_context_(with_context) {
    bool finite = true;
    for (double const b : bias_) finite = finite && std::isfinite(b);
    for (std::size_t i = 0; i < features_.size(); ++i) {
      finite = finite && std::isfinite(features_[i].idf);
      for (double const w : features_[i].weight) finite = finite && std::isfinite(w);
      expects<ConfigError>(index_.emplace(features_[i].name, i).second,
                           "the bag of words has the feature \"" + features_[i].name + "\" twice");
    }
    expects<ConfigError>(finite, "the bag of words has a number that is not finite");
  }

  /// p(level) for levels 0, 1, 2. A text without known words gets the probabilities of the bias
  /// alone.
  /// @param context  ignored by a model that was trained on responses alone
  MechanismProbabilities probabilities(std::string_view response,
                                       std::string_view context = {}) const {
    std::array<double, 3> z = bias_;
    for (auto const& [feature, x] : vectorise(response, context)) {
      for (std::size_t c = 0; c < 3; ++c) z[c] += features_[feature].weight[c] * x;
    }
    double const top = std::max({z[0], z[1], z[2]});
    double sum = 0.0;
    for (double& value : z) sum += value = std::exp(value - top);
    for (double& value : z) value /= sum;
    return z;
  }

  /// The features of a text, of Euclidean length 1 (or none).
  detail::SparseRow vectorise(std::string_view response, std::string_view context = {}) const {
    std::map<std::string, int> counts;
    detail::count_features(response, "", counts);
    if (with_context_) detail::count_features(context, "\t", counts);
    detail::SparseRow row;
    double squares = 0.0;
    for (auto const& [name, count] : counts) {
      auto const found = index_.find(name);
      if (found == index_.end()) continue;
      double const x = (1.0 + std::log(static_cast<double>(count))) * features_[found->second].idf;
      row.emplace_back(found->second, x);
      squares += x * x;
    }
    for (auto& entry : row) entry.second /= std::sqrt(squares);
    return row;
  }

  std::vector<Feature> const& features() const { return features_; }
  std::array<double, 3> const& bias() const { return bias_; }
  /// Were contexts part of the training?
  bool with_context() const { return with_context_; }

 private:
  std::vector<Feature> features_;
  std::array<double, 3> bias_;
  bool with_context_;
  std::unordered_map<std::string, std::size_t> index_;
};

/// Trains on responses and their levels, and on the contexts where they are given.
/// @param contexts  one a response, or none
/// @throws ShapeError if there are not as many levels (or contexts) as responses; Error if there
/// are no responses or a level
///         is not 0, 1 or 2; ConfigError as BagOfWordsConfig
inline BagOfWords train_bag_of_words(std::span<std::string const> responses,
                                     std::span<int const> levels,
                                     BagOfWordsConfig const& config = {},
                                     std::span<std::string const> contexts = {}) {
  config.validate();
  std::size_t const n = responses.size();
  expects<Error>(n > 0, "a bag of words needs at least one response to learn from");
  expects(levels.size() == n, "a bag of words needs one level for each response");
  expects(contexts.empty() || contexts.size() == n,
          "a bag of words needs one context for each response, or none");
  bool const with_context = !contexts.empty();
  std::array<double, 3> support{};
  for (int const level : levels) {
    expects<Error>(level >= 0 && level < 3, "a level is not 0, 1 or 2");
    support[static_cast<std::size_t>(level)] += 1.0;
  }

  std::map<std::string, int> documents;
  for (std::size_t i = 0; i < n; ++i) {
    std::map<std::string, int> counts;
    detail::count_features(responses[i], "", counts);
    if (with_context) detail::count_features(contexts[i], "\t", counts);
    for (auto const& entry : counts) ++documents[entry.first];
  }
  auto const total = static_cast<double>(n);
  std::vector<BagOfWords::Feature> features;
  for (auto const& [name, count] : documents) {
    if (count < config.min_documents) continue;
    features.push_back({name, 1.0 + std::log((1.0 + total) / (1.0 + count)), {}});
  }
  std::size_t const width = features.size();
  BagOfWords const untrained(features, {}, with_context);
  std::vector<detail::SparseRow> rows(n);
  std::vector<double> weights(n);
  for (std::size_t i = 0; i < n; ++i) {
    rows[i] = untrained.vectorise(responses[i], with_context ? std::string_view(contexts[i]) : "");
    double const share = support[static_cast<std::size_t>(levels[i])] / total;
    weights[i] = std::pow(1.0 / (3.0 * share), config.balance) / total;
  }

  // Parameters: three weights a feature, then three biases.
  auto const objective = [&](std::vector<double> const& x, std::vector<double>& gradient) {
    double const penalty = config.l2 / total;
    double loss = 0.0;
    for (std::size_t i = 0; i < 3 * width; ++i) {
      loss += 0.5 * penalty * x[i] * x[i];
      gradient[i] = penalty * x[i];
    }
    std::fill(gradient.begin() + static_cast<std::ptrdiff_t>(3 * width), gradient.end(), 0.0);
    for (std::size_t i = 0; i < n; ++i) {
      std::array<double, 3> z{x[3 * width], x[3 * width + 1], x[3 * width + 2]};
      for (auto const& [f, v] : rows[i]) {
        for (std::size_t c = 0; c < 3; ++c) z[c] += x[3 * f + c] * v;
      }
      auto const level = static_cast<std::size_t>(levels[i]);
      double const top = std::max({z[0], z[1], z[2]});
      double const target = z[level] - top;
      double sum = 0.0;
      for (double& value : z) sum += value = std::exp(value - top);
      loss += weights[i] * (std::log(sum) - target);
      for (std::size_t c = 0; c < 3; ++c) {
        z[c] = weights[i] * (z[c] / sum - (c == level ? 1.0 : 0.0));
        gradient[3 * width + c] += z[c];
      }
      for (auto const& [f, v] : rows[i]) {
        for (std::size_t c = 0; c < 3; ++c) gradient[3 * f + c] += z[c] * v;
      }
    }
    return loss;
  };
  std::vector<double> x(3 * width + 3, 0.0);
  detail::minimise(objective, x, config.iterations, config.tolerance / total);
  for (std::size_t f = 0; f < width; ++f) {
    for (std::size_t c = 0; c < 3; ++c) features[f].weight[c] = x[3 * f + c];
  }
  return BagOfWords(std::move(features), {x[3 * width], x[3 * width + 1], x[3 * width + 2]},
                    with_context);
}

/// Writes a model as JSON: {"format", "with_context", "bias", "features": [[name, idf, w0, w1, w2],
/// ...]}.
/// @throws IoError naming the file
inline void save_bag_of_words(std::filesystem::path const& path, BagOfWords const& model) {
  io::Json features = io::Json::array();
  for (auto const& f : model.features()) {
    features.push_back({f.name, f.idf, f.weight[0], f.weight[1], f.weight[2]});
  }
  io::write_json_file(path, {{"format", "emprl bag of words 1"},
                             {"with_context", model.with_context()},
                             {"bias", model.bias()},
                             {"features", std::move(features)}});
}

/// Reads what save_bag_of_words wrote.
/// @throws IoError naming the file and what is wrong with it
inline BagOfWords load_bag_of_words(std::filesystem::path const& path) {
  io::Json const json = io::read_json_file(path);
  auto const fail = [&](std::string const& what) {
    return IoError(path.string() + ": " + what + ".");
  };
  if (json.value("format", io::Json()) != "emprl bag of words 1") {
    throw fail("this is no bag of words (\"format\" must be \"emprl bag of words 1\")");
  }
  try {
    std::vector<BagOfWords::Feature> features;
    for (io::Json const& f : json.at("features")) {
      if (f.size() != 5) throw fail("a feature does not have five entries");
      features.push_back({f.at(0).get<std::string>(),
                          f.at(1).get<double>(),
                          {f.at(2).get<double>(), f.at(3).get<double>(), f.at(4).get<double>()}});
    }
    return BagOfWords(std::move(features), json.at("bias").get<std::array<double, 3>>(),
                      json.at("with_context").get<bool>());
  } catch (io::Json::exception const& error) {
    throw fail(std::string("the bag of words is incomplete (") + error.what() + ")");
  } catch (ConfigError const& error) {
    throw fail(error.what());
  }
}

}  // namespace emprl::empathy
