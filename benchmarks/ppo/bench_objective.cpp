// SPDX-License-Identifier: Apache-2.0

// What it costs that the objective is differentiated by dual numbers: rl::evaluate_objective of
// PPO's clipped loss against the same loop with a gradient derived by hand, in turns in one run.
// Both give the same gradients and sums, which is checked before anything is timed.
//   bench_objective [--tokens N,N] [--repetitions N] [--json FILE]

#include "emprl/rl/objective.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "emprl/core/error.hpp"
#include "emprl/core/rng.hpp"
#include "support/program.hpp"
#include "support/timing.hpp"

namespace emprl::bench {
namespace {

using rl::ObjectiveSums;
using rl::PpoClipObjective;
using rl::TokenContext;

/// A mini-batch as the loss sees it, and room for its gradients.
template <class T>
struct Tokens {
  std::vector<T> logp, value, dlogp, dvalue;
  std::vector<TokenContext> context;
  std::vector<std::uint8_t> mask;

  std::size_t size() const { return context.size(); }

  void push_back(double log_probability, double v, TokenContext const& t, bool trained = true) {
    logp.push_back(static_cast<T>(log_probability));
    value.push_back(static_cast<T>(v));
    dlogp.push_back(T(0));
    dvalue.push_back(T(0));
    context.push_back(t);
    mask.push_back(trained ? 1 : 0);
  }
};

/// Tokens of which one in 32 is masked, under a policy and a value function that have moved by
/// `drift` (a standard deviation) since sampling. With 0.15 a sixth of the tokens is clipped, with
/// 0 the first epoch's ties are everywhere.
template <class T>
Tokens<T> random_tokens(std::size_t n, double drift) {
  auto const rounded = [](double x) { return static_cast<double>(static_cast<T>(x)); };
  RandomSequence random(11, Stream::initialise);
  Tokens<T> tokens;
  for (std::size_t i = 0; i < n; ++i) {
    TokenContext t;
    t.old_logp = rounded(-3 * random.uniform());
    t.old_value = rounded(random.normal());
    t.advantage = random.normal();
    t.ret = t.old_value + 0.5 * random.normal();
    double const logp = t.old_logp + drift * random.normal();
    double const value = t.old_value + drift * random.normal();
    tokens.push_back(logp, value, t, random.below(32) != 0);
  }
  return tokens;
}

/// The objective of the ties below: its bounds are numbers of the format.
PpoClipObjective objective_with_ties() {
  return {.policy_clip = std::exp(0.5) - 1.0, .value_clip = 0.25, .value_coefficient = 0.1};
}

/// Tokens that lie on every kink of objective_with_ties().
template <class T>
Tokens<T> tokens_on_kinks() {
  Tokens<T> tokens;
  for (double const advantage : {1.0, -1.0, 0.0}) {
    for (double const log_ratio : {0.0, 0.5, -0.25, 2.0, -3.0}) {
      for (double const v : {0.0, 0.25, -0.25, 0.75, -0.75}) {
        // A return of 0.5 makes both squared errors of v = 0.75 equal, -0.5 those of -0.75.
        for (double const ret : {0.5, -0.5, 0.0, 2.0}) {
          tokens.push_back(-1 + log_ratio, v, {-1, 0, advantage, ret, 0});
        }
      }
    }
  }
  return tokens;
}

/// rl::evaluate_objective of PpoClipObjective as one would write it without dual numbers. At a tie
/// each branch gets half of the gradient.
template <class T>
ObjectiveSums evaluate_by_hand(PpoClipObjective const& o, std::span<T const> logp,
                               std::span<T const> value, std::span<TokenContext const> tokens,
                               rl::MaskView mask, double normaliser, std::span<T> dlogp,
                               std::span<T> dvalue) {
  std::size_t const n = tokens.size();
  expects(logp.size() == n && value.size() == n && mask.size() == n && dlogp.size() == n &&
              dvalue.size() == n,
          "an objective needs a log-probability, a value and a mask entry for every token");
  ObjectiveSums sums;
  for (std::size_t t = 0; t < n; ++t) {
    dlogp[t] = T(0);
    dvalue[t] = T(0);
    if (mask[t] == 0) continue;
    TokenContext const& token = tokens[t];
    double const lp = static_cast<double>(logp[t]);
    double const v = static_cast<double>(value[t]);

    double const log_ratio = lp - token.old_logp;
    double const ratio = std::exp(log_ratio);
    double const held_ratio = std::min(std::max(ratio, 1.0 - o.policy_clip), 1.0 + o.policy_clip);
    double const plain = -token.advantage * ratio;
    double const held = -token.advantage * held_ratio;
    double const policy = std::max(plain, held);
    // d ratio / d logp = ratio. Where both branches are equal, either the ratio is within its
    // bounds and they have one gradient, or the advantage is 0 and so is the gradient.
    double const dpolicy = plain < held ? 0.0 : plain;

    double const high = token.old_value + o.value_clip;
    double const low = token.old_value - o.value_clip;
    double const clipped = std::max(std::min(v, high), low);
    double const slope = v < high && v > low ? 1.0 : (v == high || v == low ? 0.5 : 0.0);
    double const error = v - token.ret;
    double const clipped_error = clipped - token.ret;
    double const square = error * error;
    double const clipped_square = clipped_error * clipped_error;
    double const value_term = 0.5 * std::max(square, clipped_square);
    double const branch = clipped_error * slope;
    double const dterm = square > clipped_square
                             ? error
                             : (square < clipped_square ? branch : 0.5 * (error + branch));

    dlogp[t] = static_cast<T>(dpolicy / normaliser);
    dvalue[t] = static_cast<T>(o.value_coefficient * dterm / normaliser);
    sums.tokens += 1;
    sums.loss += policy + o.value_coefficient * value_term;
    sums.policy += policy;
    sums.value += value_term;
    sums.clipped += held > plain ? 1.0 : 0.0;
    sums.ratio += ratio;
    sums.k1 -= log_ratio;
    sums.k3 += ratio - 1.0 - log_ratio;
    if (std::abs(ratio - 1.0) > sums.worst_ratio_error) {
      sums.worst_ratio_error = std::abs(ratio - 1.0);
      sums.worst_token = t;
    }
  }
  return sums;
}

// Both are calls of their own, so that neither sees the objective's numbers or the sizes when it is
// compiled.

template <class T>
[[gnu::noinline]] ObjectiveSums with_duals(PpoClipObjective const& objective, Tokens<T>& x) {
  return rl::evaluate_objective<T>(
      objective, std::span<T const>(x.logp), std::span<T const>(x.value), x.context, x.mask,
      static_cast<double>(x.size()), std::span<T>(x.dlogp), std::span<T>(x.dvalue));
}

template <class T>
[[gnu::noinline]] ObjectiveSums by_hand(PpoClipObjective const& objective, Tokens<T>& x) {
  return evaluate_by_hand<T>(objective, std::span<T const>(x.logp), std::span<T const>(x.value),
                             x.context, x.mask, static_cast<double>(x.size()),
                             std::span<T>(x.dlogp), std::span<T>(x.dvalue));
}

/// Gradients may differ by the roundings of a few operations; sums of n terms, added in the same
/// order, by n roundings of partial sums, which stay below 10 n here.
/// @throws Error naming what differs, and where
template <class T>
void validate(PpoClipObjective const& objective, Tokens<T> x, std::string_view what) {
  ObjectiveSums const duals = with_duals(objective, x);
  std::vector<T> const dlogp = x.dlogp;
  std::vector<T> const dvalue = x.dvalue;
  ObjectiveSums const hand = by_hand(objective, x);
  auto const same = [&](double a, double b, double allowed, std::string const& name) {
    expects<Error>(
        std::abs(a - b) <= allowed,
        fmt::format("{}: {} is {:.17g} by dual numbers and {:.17g} by hand", what, name, a, b));
  };
  constexpr double gradient_rounding = 8 * static_cast<double>(std::numeric_limits<T>::epsilon());
  for (std::size_t t = 0; t < x.size(); ++t) {
    auto const compare = [&](T a, T b, char const* name) {
      double const p = static_cast<double>(a), q = static_cast<double>(b);
      same(p, q, gradient_rounding * std::max(std::abs(p), std::abs(q)),
           fmt::format("{} of token {}", name, t));
    };
    compare(dlogp[t], x.dlogp[t], "dlogp");
    compare(dvalue[t], x.dvalue[t], "dvalue");
  }
  double const n = static_cast<double>(x.size());
  auto const compare_sum = [&](double a, double b, char const* name) {
    same(a, b, n * std::numeric_limits<double>::epsilon() * 10 * n, name);
  };
  compare_sum(duals.tokens, hand.tokens, "the number of tokens");
  compare_sum(duals.loss, hand.loss, "the loss");
  compare_sum(duals.policy, hand.policy, "the policy term");
  compare_sum(duals.value, hand.value, "the value term");
  compare_sum(duals.clipped, hand.clipped, "the number of clipped tokens");
  compare_sum(duals.ratio, hand.ratio, "the ratio");
  compare_sum(duals.k1, hand.k1, "k1");
  compare_sum(duals.k3, hand.k3, "k3");
  same(duals.worst_ratio_error, hand.worst_ratio_error, 0, "the worst ratio error");
  same(static_cast<double>(duals.worst_token), static_cast<double>(hand.worst_token), 0,
       "the worst token");
}

struct Options {
  std::vector<std::size_t> tokens{1024, 16384, 262144};
  int repetitions = 51;
  double limit = 0;
  bool validate_only = false;
  std::string json;
};

struct Result {
  std::string format;
  std::size_t tokens = 0;
  double drift = 0;
  Spread duals, hand;  // nanoseconds a token
  Spread ratio;
  double fastest = 0;  // ratio of the shortest times
};

io::Json to_json(Spread const& s) {
  return {{"median", s.median}, {"lower_quartile", s.low}, {"upper_quartile", s.high}};
}

template <class T>
Result measure(char const* format, std::size_t n, double drift, int repetitions) {
  PpoClipObjective const objective;
  Tokens<T> x = random_tokens<T>(n, drift);
  // A sample takes a few milliseconds, whatever the number of tokens.
  std::size_t const passes = std::max<std::size_t>(1, 262144 / n);
  ObjectiveSums sums;
  auto const repeat = [&](auto const& evaluate) {
    for (std::size_t i = 0; i < passes; ++i) {
      sums = evaluate(objective, x);
      keep(&sums);
      keep(x.dlogp.data());
    }
  };
  PairedTimes times = time_in_turns(
      repetitions, [&] { repeat(with_duals<T>); }, [&] { repeat(by_hand<T>); });
  Result result{format, n, drift, {}, {}, spread_of(times.ratios()), 0};
  result.fastest = std::ranges::min(times.first) / std::ranges::min(times.second);
  double const scale = 1e9 / static_cast<double>(n * passes);
  for (double& s : times.first) s *= scale;
  for (double& s : times.second) s *= scale;
  result.duals = spread_of(times.first);
  result.hand = spread_of(times.second);
  return result;
}

template <class T>
void validate_all() {
  for (double const drift : {0.0, 0.15, 1.0}) {
    validate(PpoClipObjective{}, random_tokens<T>(1000, drift),
             fmt::format("tokens that drifted by {}", drift));
  }
  validate(objective_with_ties(), tokens_on_kinks<T>(), "tokens on kinks");
}

int benchmark(Options const& options) {
  validate_all<float>();
  validate_all<double>();
  fmt::print("Dual numbers and the gradient by hand agree, on kinks too.\n\n");
  if (options.validate_only) return 0;

  io::Json const machine = describe_machine(1);
  print_machine(machine);
  fmt::print(
      "Nanoseconds a token, median of {} repetitions; ratio: duals / by hand of the same "
      "repetition,\nmedian [quartiles], and of the shortest times. Drift: how far policy and "
      "values have "
      "moved since\nsampling.\n\n",
      options.repetitions);
  std::vector<Result> results;
  for (std::size_t const n : options.tokens) {
    for (double const drift : {0.0, 0.15}) {
      results.push_back(measure<float>("float", n, drift, options.repetitions));
      results.push_back(measure<double>("double", n, drift, options.repetitions));
    }
  }
  std::vector<std::vector<std::string>> table{
      {"format", "tokens", "drift", "duals", "by hand", "ratio", "shortest"}};
  io::Json list = io::Json::array();
  double worst = 0;
  for (Result const& r : results) {
    table.push_back(
        {r.format, std::to_string(r.tokens), fmt::format("{}", r.drift),
         fmt::format("{:.2f}", r.duals.median), fmt::format("{:.2f}", r.hand.median),
         fmt::format("{:.3f} [{:.3f},{:.3f}]", r.ratio.median, r.ratio.low, r.ratio.high),
         fmt::format("{:.3f}", r.fastest)});
    list.push_back({{"format", r.format},
                    {"tokens", r.tokens},
                    {"drift", r.drift},
                    {"duals_ns", to_json(r.duals)},
                    {"by_hand_ns", to_json(r.hand)},
                    {"ratio", to_json(r.ratio)},
                    {"ratio_of_shortest", r.fastest}});
    worst = std::max(worst, r.ratio.median);
  }
  print_table(table);
  fmt::print("\nThe largest median ratio is {:.3f}.\n", worst);
  if (!options.json.empty()) {
    io::write_json_file(options.json, {{"benchmark", "objective"},
                                       {"machine", machine},
                                       {"repetitions", options.repetitions},
                                       {"results", list}});
  }
  if (options.limit > 0 && worst > options.limit) {
    fmt::print(stderr, "bench_objective: error: that is more than --limit {}.\n", options.limit);
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace emprl::bench

int main(int argc, char** argv) {
  using namespace emprl::bench;
  Options o;
  CLI::App app{
      "The cost of dual numbers: rl::evaluate_objective of PPO's clipped loss against the same "
      "loop "
      "with a gradient derived by hand, on one thread.",
      "bench_objective"};
  app.add_option("--tokens", o.tokens, "Tokens of a mini-batch, one or more numbers")
      ->delimiter(',')
      ->check(CLI::Range(std::size_t{1}, std::size_t{1} << 26))
      ->capture_default_str();
  app.add_option("--repetitions", o.repetitions, "Pairs of measurements for each line")
      ->check(CLI::Range(3, 100000))
      ->capture_default_str();
  app.add_option("--limit", o.limit, "Fail if a median ratio is above this; 0: only report")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_flag("--validate-only", o.validate_only, "Compare the gradients and stop");
  app.add_option("--json", o.json, "Write everything to this file too");
  return run(app, argc, argv, [&] { return benchmark(o); });
}
