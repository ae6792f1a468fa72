// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a number is worth: answers that need no generator, scored by the same identifiers as every
// system, and probes of the identifiers themselves. A reward that a constant reaches says nothing
// about empathy.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/core/rng.hpp"
#include "emprl/data/dialogue.hpp"
#include "emprl/empathy/levels.hpp"
#include "emprl/io/json.hpp"
#include "emprl/train/evaluation.hpp"
#include "emprl/train/text_table.hpp"

namespace emprl::train {

/// Short neutral answers that fit anywhere.
inline constexpr std::array<std::string_view, 8> constant_answers{
    "cool",
    "Oh no.",
    "That is great!",
    "I see.",
    "Wow, that is awesome!",
    "Oh, I am sorry to hear that.",
    "I know what you mean.",
    "That is good, I hope it works out for you."};

/// Short questions that fit anywhere.
inline constexpr std::array<std::string_view, 4> question_answers{
    "What happened?", "Why?", "Oh no, what happened?", "Really? How did that go?"};

/// The rule of the two templates, fixed beforehand: ask while little has been said. In
/// EmpatheticDialogues a listener asks in about 60 % of replies to contexts of fewer than 20 words
/// and in 25 % of replies to longer ones.
inline constexpr index_t opening_words = 20;

/// Whether a context is an opening: fewer than opening_words words between white space.
inline bool is_opening(std::string_view context) {
  index_t words = 0;
  bool inside = false;
  for (char const c : context) {
    bool const space = c == ' ' || c == '\t' || c == '\n' || c == '\r';
    if (!space && !inside) ++words;
    inside = !space;
  }
  return words < opening_words;
}

/// The answers that need nothing but a rule, with the mean reward that they had where they were
/// chosen.
struct Templates {
  std::string constant;
  double constant_reward = 0.0;  ///< of answering the constant always
  std::string other;             ///< the constant of the two templates; may differ from `constant`
  std::string question;
  double pair_reward = 0.0;  ///< of the question at openings and the constant elsewhere
};

/// Chooses the best constant and the best two templates by mean reward. Choose on training pairs,
/// judge on others.
/// @param pairs with target levels; a few hundred suffice: every candidate is scored on every pair
/// @throws ConfigError without pairs, levels or candidates
template <ResponseScorer Scorer>
Templates choose_templates(std::span<data::Pair const> pairs, Scorer& scorer,
                           empathy::MechanismMask const& mechanisms = empathy::every_mechanism,
                           std::span<std::string_view const> constants = constant_answers,
                           std::span<std::string_view const> questions = question_answers) {
  expects<ConfigError>(!pairs.empty(), "templates cannot be chosen without pairs.");
  expects<ConfigError>(!constants.empty() && !questions.empty(),
                       "templates cannot be chosen without candidates.");
  std::vector<std::string> contexts;
  std::vector<bool> opening;
  for (data::Pair const& pair : pairs) {
    contexts.push_back(pair.context);
    opening.push_back(is_opening(pair.context));
  }
  struct Sums {
    double openings = 0.0;
    double others = 0.0;
  };
  auto const score = [&](std::string_view answer) {
    std::vector<std::string> const responses(pairs.size(), std::string(answer));
    std::vector<double> const rewards =
        score_responses(pairs, contexts, responses, scorer, mechanisms).rewards;
    Sums sums;
    for (std::size_t i = 0; i < rewards.size(); ++i) {
      (opening[i] ? sums.openings : sums.others) += rewards[i];
    }
    return sums;
  };
  double const n = static_cast<double>(pairs.size());
  Templates best;
  double best_constant = -1.0, best_elsewhere = -1.0, best_question = -1.0;
  for (std::string_view const answer : constants) {
    Sums const sums = score(answer);
    if (sums.openings + sums.others > best_constant) {
      best_constant = sums.openings + sums.others;
      best.constant = answer;
    }
    if (sums.others > best_elsewhere) {
      best_elsewhere = sums.others;
      best.other = answer;
    }
  }
  for (std::string_view const answer : questions) {
    Sums const sums = score(answer);
    if (sums.openings > best_question) {
      best_question = sums.openings;
      best.question = answer;
    }
  }
  best.constant_reward = best_constant / n;
  best.pair_reward = (best_elsewhere + best_question) / n;
  return best;
}

/// The constant for every pair.
inline std::vector<std::string> constant_responses(std::span<data::Pair const> pairs,
                                                   Templates const& templates) {
  return std::vector<std::string>(pairs.size(), templates.constant);
}

/// The question at openings, the constant elsewhere.
inline std::vector<std::string> template_responses(std::span<data::Pair const> pairs,
                                                   Templates const& templates) {
  std::vector<std::string> out;
  for (data::Pair const& pair : pairs) {
    out.push_back(is_opening(pair.context) ? templates.question : templates.other);
  }
  return out;
}

/// The human replies themselves: what the identifiers say of the answers whose levels they set.
inline std::vector<std::string> target_responses(std::span<data::Pair const> pairs) {
  std::vector<std::string> out;
  for (data::Pair const& pair : pairs) out.push_back(pair.response);
  return out;
}

/// For each pair the index of a pair of another dialogue: a permutation, so that every pair is used
/// once. A pair whose context begins with the context before it continues the same dialogue. The
/// dialogues are shuffled, laid end to end and turned by the length of the longest, so that none
/// meets itself.
/// @throws ConfigError if one dialogue has more than half of the pairs
inline std::vector<std::size_t> other_dialogue(std::span<data::Pair const> pairs,
                                               std::uint64_t seed) {
  std::vector<std::vector<std::size_t>> dialogues;
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    bool const continues = i > 0 && pairs[i].context.starts_with(pairs[i - 1].context);
    if (!continues) dialogues.emplace_back();
    dialogues.back().push_back(i);
  }
  std::size_t longest = 0;
  for (auto const& dialogue : dialogues) longest = std::max(longest, dialogue.size());
  expects<ConfigError>(
      2 * longest <= pairs.size(),
      "replies cannot be exchanged: one dialogue has more than half of the pairs.");
  RandomSequence(seed, Stream::permute).shuffle(std::span<std::vector<std::size_t>>(dialogues));
  std::vector<std::size_t> line;
  for (auto const& dialogue : dialogues) line.insert(line.end(), dialogue.begin(), dialogue.end());
  std::vector<std::size_t> out(pairs.size());
  for (std::size_t p = 0; p < line.size(); ++p) {
    out[line[p]] = line[(p + longest) % line.size()];
  }
  return out;
}

/// Another dialogue's human reply for every pair.
/// @throws ConfigError as other_dialogue
inline std::vector<std::string> other_replies(std::span<data::Pair const> pairs,
                                              std::uint64_t seed) {
  std::vector<std::string> out;
  for (std::size_t const i : other_dialogue(pairs, seed)) out.push_back(pairs[i].response);
  return out;
}

/// The pairs with the contexts of other dialogues: a generator that listens finds the responses
/// less likely.
/// @throws ConfigError as other_dialogue
inline std::vector<data::Pair> shuffled_contexts(std::span<data::Pair const> pairs,
                                                 std::uint64_t seed) {
  std::vector<data::Pair> out(pairs.begin(), pairs.end());
  std::vector<std::size_t> const from = other_dialogue(pairs, seed);
  for (std::size_t i = 0; i < out.size(); ++i) out[i].context = pairs[from[i]].context;
  return out;
}

/// Several answers of one generator to each context, with the tokens that each cost.
struct AnswerSamples {
  std::vector<std::vector<std::string>> texts;  ///< [pair][sample]
  std::vector<std::vector<index_t>> tokens;     ///< [pair][sample]
};

/// The best of several answers.
struct BestOfN {
  std::vector<std::string> responses;
  double mean_n = 0.0;           ///< answers considered for a context, on average
  index_t generated_tokens = 0;  ///< of the answers considered
};

/// Of the samples of each context the one with the highest reward towards `targets`, the first of
/// equals. Samples are considered in rounds, one of every context, while a whole round fits the
/// budget of generated tokens; the first round always counts. With the budget set to what another
/// system generated, the two are compared at equal generated tokens. With the pairs' own levels as
/// targets this is an oracle: it knows what no system is told.
/// @param targets one for each pair
/// @throws ConfigError if a context has no sample or the sizes differ
template <ResponseScorer Scorer>
BestOfN best_of_n(std::span<data::Pair const> pairs, std::span<empathy::Levels const> targets,
                  AnswerSamples const& samples, Scorer& scorer,
                  empathy::MechanismMask const& mechanisms = empathy::every_mechanism,
                  index_t token_budget = std::numeric_limits<index_t>::max()) {
  std::size_t const n = pairs.size();
  expects<ConfigError>(
      n > 0 && targets.size() == n && samples.texts.size() == n && samples.tokens.size() == n,
      "best of n needs targets, samples and token counts for every pair.");
  std::size_t rounds = std::numeric_limits<std::size_t>::max();
  for (std::size_t i = 0; i < n; ++i) {
    expects<ConfigError>(
        !samples.texts[i].empty() && samples.texts[i].size() == samples.tokens[i].size(),
        "best of n needs at least one sample, with its token count, for every pair.");
    rounds = std::min(rounds, samples.texts[i].size());
  }
  std::vector<std::string> contexts;
  for (data::Pair const& pair : pairs) contexts.push_back(pair.context);
  BestOfN out;
  std::vector<double> best(n, -1.0);
  out.responses.resize(n);
  std::size_t used = 0;
  for (; used < rounds; ++used) {
    index_t cost = 0;
    for (std::size_t i = 0; i < n; ++i) cost += samples.tokens[i][used];
    if (used > 0 && cost > token_budget - out.generated_tokens) break;
    out.generated_tokens += cost;
    std::vector<std::string> responses;
    for (std::size_t i = 0; i < n; ++i) responses.push_back(samples.texts[i][used]);
    std::vector<empathy::LevelProbabilities> const p =
        checked_scores(std::span<std::string const>(contexts), responses, scorer);
    for (std::size_t i = 0; i < n; ++i) {
      double const reward = empathy::empathy_reward(p[i], targets[i], mechanisms);
      if (reward > best[i]) {
        best[i] = reward;
        out.responses[i] = responses[i];
      }
    }
  }
  out.mean_n = static_cast<double>(used);
  return out;
}

/// How an edit that changes nothing about listening moves an identifier.
struct Probe {
  std::string name;
  data::Mechanism mechanism = data::Mechanism::ex;
  double before = 0.0;  ///< share of replies with a level above 0, in [0, 1]
  double after = 0.0;   ///< the same after the edit
};

/// The two probes on the pairs' own replies: "?" appended, which should move explorations but
/// little, and "I'm sorry. " put in front, which should not make an emotional reaction of every
/// reply.
/// @throws ConfigError without pairs
template <ResponseScorer Scorer>
std::vector<Probe> probe_identifiers(std::span<data::Pair const> pairs, Scorer& scorer) {
  expects<ConfigError>(!pairs.empty(), "the identifiers cannot be probed without pairs.");
  std::vector<std::string> contexts, plain, asking, sorry;
  for (data::Pair const& pair : pairs) {
    contexts.push_back(pair.context);
    plain.push_back(pair.response);
    asking.push_back(pair.response + "?");
    sorry.push_back("I'm sorry. " + pair.response);
  }
  auto const share = [&](std::vector<empathy::LevelProbabilities> const& p, data::Mechanism m) {
    auto const above = std::count_if(p.begin(), p.end(), [m](auto const& one) {
      return empathy::most_probable(one[static_cast<std::size_t>(m)]) > 0;
    });
    return static_cast<double>(above) / static_cast<double>(p.size());
  };
  std::span<std::string const> const c(contexts);
  auto const before = checked_scores(c, plain, scorer);
  using data::Mechanism;
  return {{"\"?\" appended", Mechanism::ex, share(before, Mechanism::ex),
           share(checked_scores(c, asking, scorer), Mechanism::ex)},
          {"\"I'm sorry\" in front", Mechanism::er, share(before, Mechanism::er),
           share(checked_scores(c, sorry, scorer), Mechanism::er)}};
}

/// [{"name", "mechanism": "er"|"ip"|"ex", "before": share, "after": share}].
inline io::Json probes_to_json(std::span<Probe const> probes) {
  io::Json out = io::Json::array();
  for (Probe const& probe : probes) {
    out.push_back({{"name", probe.name},
                   {"mechanism", data::mechanism_name(probe.mechanism)},
                   {"before", probe.before},
                   {"after", probe.after}});
  }
  return out;
}

/// The probes as a table.
inline TextTable probes_table(std::span<Probe const> probes) {
  TextTable table{"Probes of the identifiers: replies above level 0 (%)",
                  {"human replies, edited", "mechanism", "before", "after"},
                  {},
                  {}};
  for (Probe const& probe : probes) {
    table.rows.push_back({probe.name, std::string(data::mechanism_title(probe.mechanism)),
                          fixed_text(100.0 * probe.before, 1), fixed_text(100.0 * probe.after, 1)});
  }
  return table;
}

/// Evaluates the floors that need no generator: the constant, the two templates, another dialogue's
/// reply, and, as the ceiling of these identifiers, the target itself.
/// @param pairs     with target levels; what the systems are judged on
/// @param templates chosen on other pairs
/// @throws ConfigError as evaluate_responses and other_dialogue
template <ResponseScorer Scorer>
std::vector<SystemEvaluation> evaluate_floors(std::span<data::Pair const> pairs,
                                              Templates const& templates, Scorer& scorer,
                                              EvaluationOptions const& options = {}) {
  std::vector<SystemEvaluation> out;
  auto const add = [&](std::string name, SystemKind kind, std::string note,
                       std::vector<std::string> const& responses) {
    out.push_back(evaluate_responses(std::move(name), pairs, responses, scorer, options));
    out.back().kind = kind;
    out.back().note = std::move(note);
  };
  add("constant answer", SystemKind::floor,
      "\"" + templates.constant + "\" to everything, the best of a short list on training pairs",
      constant_responses(pairs, templates));
  add("two templates", SystemKind::floor,
      "\"" + templates.question + "\" to contexts of fewer than " + std::to_string(opening_words) +
          " words, \"" + templates.other + "\" to others, chosen on training pairs",
      template_responses(pairs, templates));
  add("another's reply", SystemKind::floor, "the human reply of another dialogue",
      other_replies(pairs, options.seed));
  add("human target", SystemKind::control, "the reply whose levels are the target",
      target_responses(pairs));
  return out;
}

/// Evaluates the oracle: of each context's samples the one that the identifiers like best given the
/// target levels.
/// @throws ConfigError as best_of_n and evaluate_responses
template <ResponseScorer Scorer>
SystemEvaluation evaluate_best_of_n(std::span<data::Pair const> pairs, AnswerSamples const& samples,
                                    Scorer& scorer, EvaluationOptions const& options = {},
                                    index_t token_budget = std::numeric_limits<index_t>::max()) {
  std::vector<empathy::Levels> const targets = target_levels(pairs);
  BestOfN const best = best_of_n(pairs, targets, samples, scorer, options.mechanisms, token_budget);
  std::string const n = fixed_text(best.mean_n, 0);
  SystemEvaluation out =
      evaluate_responses("oracle best of " + n, pairs, best.responses, scorer, options);
  out.kind = SystemKind::floor;
  out.note = "the best of " + n + " samples by the reward itself, knowing the target levels; " +
             std::to_string(best.generated_tokens) + " tokens generated";
  return out;
}

}  // namespace emprl::train
