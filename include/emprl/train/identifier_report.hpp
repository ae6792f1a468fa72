// SPDX-License-Identifier: Apache-2.0
#pragma once

// How good an identifier is on held-out posts, beside what needs no learning (the majority class)
// and what needs little (a bag of words). One seeker's post has several rows, which are not
// independent: intervals resample seekers.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/data/dialogue.hpp"
#include "emprl/data/mental_health.hpp"
#include "emprl/io/json.hpp"
#include "emprl/metrics/agreement.hpp"
#include "emprl/metrics/bootstrap.hpp"
#include "emprl/metrics/bootstrap_many.hpp"
#include "emprl/train/text_table.hpp"

namespace emprl::train {

/// One classifier's levels of the held-out posts, in their order.
struct IdentifierPredictions {
  std::string name;
  std::vector<int> levels;
};

/// One classifier on the held-out posts; fractions, with 95 % intervals.
struct IdentifierScores {
  std::string name;
  metrics::Interval accuracy;
  metrics::Interval macro_f1;
  metrics::Interval weighted_f1;
  metrics::Interval kappa;
  std::array<index_t, 3> predicted{};  ///< how often it said level 0, 1, 2
};

/// The first classifier's kappa minus another's, on the same resamples.
struct IdentifierGain {
  std::string over;
  metrics::Interval kappa;
};

/// All classifiers of one mechanism.
struct IdentifierReport {
  data::Mechanism mechanism = data::Mechanism::er;
  index_t n = 0;                          ///< held-out posts
  index_t seekers = 0;                    ///< among how many seekers
  std::array<index_t, 3> train_counts{};  ///< posts of level 0, 1, 2 that were trained on
  std::array<index_t, 3> counts{};        ///< and that are held out
  std::vector<IdentifierScores> systems;
  std::vector<IdentifierGain> gains;
};

/// The commonest level of the training posts, said of every held-out post; the lowest of equals.
/// @throws ConfigError without training posts
inline IdentifierPredictions majority_class(std::span<data::Post const> train,
                                            std::size_t held_out) {
  expects<ConfigError>(!train.empty(), "the majority class needs posts to count.");
  auto const counts = data::level_counts(train);
  auto const level =
      static_cast<int>(std::max_element(counts.begin(), counts.end()) - counts.begin());
  return {"majority class", std::vector<int>(held_out, level)};
}

/// Scores classifiers on held-out posts: the identifier first, then what it is compared with.
/// A resample draws as many seekers as there are, with replacement, each with all its rows; all
/// classifiers see the same.
/// @param train_counts posts of level 0, 1, 2 that were trained on, for the record
/// @throws ConfigError without posts or classifiers, for a level outside 0 .. 2; ShapeError unless
/// each classifier has
///         one level for each post
inline IdentifierReport report_identifiers(data::Mechanism mechanism,
                                           std::span<data::Post const> held_out,
                                           std::span<IdentifierPredictions const> systems,
                                           std::array<index_t, 3> const& train_counts,
                                           metrics::BootstrapConfig const& config = {}) {
  expects<ConfigError>(!held_out.empty() && !systems.empty(),
                       "an identifier report needs held-out posts and classifiers.");
  auto const is_level = [](int level) { return level >= 0 && level < data::level_count; };
  for (data::Post const& post : held_out) {
    expects<ConfigError>(is_level(post.level), "a post has a level outside 0 to 2.");
  }
  for (IdentifierPredictions const& system : systems) {
    expects(system.levels.size() == held_out.size(),
            system.name + " must give one level for each held-out post.");
    expects<ConfigError>(std::all_of(system.levels.begin(), system.levels.end(), is_level),
                         system.name + " gave a level outside 0 to 2.");
  }

  IdentifierReport report;
  report.mechanism = mechanism;
  report.n = static_cast<index_t>(held_out.size());
  report.train_counts = train_counts;
  report.counts = data::level_counts(held_out);

  // Counts of (gold, predicted) by seeker, so that a resample adds up small tables.
  using Cells = std::array<index_t, 9>;
  std::vector<std::vector<Cells>> cells(systems.size());  // [system][seeker]
  std::unordered_map<std::string, std::size_t> seekers;
  for (std::size_t i = 0; i < held_out.size(); ++i) {
    std::size_t const seeker =
        seekers.try_emplace(held_out[i].seeker_id, seekers.size()).first->second;
    for (std::size_t s = 0; s < systems.size(); ++s) {
      if (seeker == cells[s].size()) cells[s].push_back({});
      ++cells[s][seeker][static_cast<std::size_t>(held_out[i].level * 3 + systems[s].levels[i])];
    }
  }
  report.seekers = static_cast<index_t>(seekers.size());

  constexpr std::size_t kinds = 4;
  std::size_t const scores = kinds * systems.size();
  auto const intervals = metrics::bootstrap_many(
      report.seekers, scores + systems.size() - 1,
      [&](std::span<index_t const> rows, std::span<double> values) {
        for (std::size_t s = 0; s < systems.size(); ++s) {
          Cells sum{};
          for (index_t const row : rows) {
            Cells const& one = cells[s][static_cast<std::size_t>(row)];
            for (std::size_t c = 0; c < sum.size(); ++c) sum[c] += one[c];
          }
          metrics::Confusion m(data::level_count);
          for (int c = 0; c < 9; ++c) {
            index_t const times = sum[static_cast<std::size_t>(c)];
            for (index_t i = 0; i < times; ++i) m.add(c / 3, c % 3);
          }
          values[kinds * s] = metrics::accuracy(m);
          values[kinds * s + 1] = metrics::macro_f1(m);
          values[kinds * s + 2] = metrics::weighted_f1(m);
          values[kinds * s + 3] = metrics::cohen_kappa(m);
          if (s > 0) values[scores + s - 1] = values[3] - values[kinds * s + 3];
        }
      },
      config);
  for (std::size_t s = 0; s < systems.size(); ++s) {
    IdentifierScores one;
    one.name = systems[s].name;
    one.accuracy = intervals[kinds * s];
    one.macro_f1 = intervals[kinds * s + 1];
    one.weighted_f1 = intervals[kinds * s + 2];
    one.kappa = intervals[kinds * s + 3];
    for (int const level : systems[s].levels) ++one.predicted[static_cast<std::size_t>(level)];
    report.systems.push_back(std::move(one));
    if (s > 0) report.gains.push_back({systems[s].name, intervals[scores + s - 1]});
  }
  return report;
}

/// One report. NUMBER is {"value", "low", "high"}, a 95 % interval; all are fractions.
///
///     {"name": "emotional reactions", "mechanism": "er", "n": 308, "seekers": 150,
///      "train_counts": [posts of level 0, 1, 2], "counts": [held-out posts of level 0, 1, 2],
///      "systems": [{"name": "identifier", "n": 308, "kappa": NUMBER, "macro_f1": NUMBER,
///      "weighted_f1": NUMBER,
///                   "accuracy": NUMBER, "predicted": [times it said level 0, 1, 2]}],
///      "kappa_gains": [{"over": "bag of words", "kappa": NUMBER}]}
inline io::Json identifier_report_to_json(IdentifierReport const& report) {
  auto const number = [](metrics::Interval const& x) {
    return io::Json{{"value", x.value}, {"low", x.low}, {"high", x.high}};
  };
  io::Json systems = io::Json::array();
  for (IdentifierScores const& s : report.systems) {
    systems.push_back({{"name", s.name},
                       {"n", report.n},
                       {"kappa", number(s.kappa)},
                       {"macro_f1", number(s.macro_f1)},
                       {"weighted_f1", number(s.weighted_f1)},
                       {"accuracy", number(s.accuracy)},
                       {"predicted", s.predicted}});
  }
  io::Json gains = io::Json::array();
  for (IdentifierGain const& g : report.gains) {
    gains.push_back({{"over", g.over}, {"kappa", number(g.kappa)}});
  }
  return {{"name", data::mechanism_title(report.mechanism)},
          {"mechanism", data::mechanism_name(report.mechanism)},
          {"n", report.n},
          {"seekers", report.seekers},
          {"train_counts", report.train_counts},
          {"counts", report.counts},
          {"systems", std::move(systems)},
          {"kappa_gains", std::move(gains)}};
}

/// The report as a table: a classifier a line; class balance, and who beats whom, below.
inline TextTable identifier_table(IdentifierReport const& report) {
  auto const balance = [](std::array<index_t, 3> const& counts) {
    double const n = static_cast<double>(std::max<index_t>(counts[0] + counts[1] + counts[2], 1));
    std::string out;
    for (std::size_t level = 0; level < counts.size(); ++level) {
      if (level > 0) out += ", ";
      out += std::to_string(counts[level]) + " (" +
             fixed_text(100.0 * static_cast<double>(counts[level]) / n, 0) + " %)";
    }
    return out;
  };
  TextTable table;
  table.title = "Identifier of " + std::string(data::mechanism_title(report.mechanism)) + ": " +
                std::to_string(report.n) + " held-out posts of " + std::to_string(report.seekers) +
                " seekers";
  table.header = {"", "kappa", "macro F1", "weighted F1", "accuracy"};
  for (IdentifierScores const& s : report.systems) {
    table.rows.push_back({s.name, interval_text(s.kappa, 2), interval_text(s.macro_f1, 2),
                          fixed_text(s.weighted_f1.value, 2), fixed_text(s.accuracy.value, 2)});
  }
  table.notes = {"Posts of level 0, 1, 2: trained on " + balance(report.train_counts) +
                 "; held out " + balance(report.counts) + "."};
  for (IdentifierGain const& g : report.gains) {
    std::string const verdict = !g.kappa.excludes_zero() ? "is not distinguishable from"
                                : g.kappa.value > 0.0    ? "is better than"
                                                         : "is worse than";
    table.notes.push_back("By kappa the " + report.systems.front().name + " " + verdict + " the " +
                          g.over + ": " + gain_text(g.kappa, 2) + ".");
  }
  return table;
}

}  // namespace emprl::train
