// SPDX-License-Identifier: Apache-2.0
#pragma once

// The two-times rule for results of many sums (a whole attention, a whole model), by largest
// errors. The largest error hangs on two or three sums that nearly cancel, and from one order of
// summation to another it changes by a factor of up to fifteen. So one run of a plain
// implementation says little about what its format costs: its error is the worst of 25 runs, each
// with its sums in another order, which is how the goldens of transformers have it
// (golden/make_t5_goldens.py).
//
//   max |actual - truth| <= max(2 * worst, 8 * 2^-24 * max |truth|)
//
// Runs go on while something is larger than the rule allows so far: more could only allow more.

#include <algorithm>
#include <cstdint>
#include <map>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "emprl/core/rng.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"

namespace support {

inline constexpr std::uint64_t orders_of_summation = 25;

/// 0 .. n-1 in the order of that number; order 0 is the natural one.
inline std::vector<index_t> shuffled(index_t n, std::uint64_t order, std::uint32_t which = 0) {
  std::vector<index_t> x(static_cast<std::size_t>(n));
  std::iota(x.begin(), x.end(), index_t{0});
  emprl::RandomSequence random(order, emprl::Stream::corpus, which);
  if (order > 0) random.shuffle(std::span<index_t>(x));
  return x;
}

/// Results by name, element after element.
template <class T>
using Results = std::map<std::string, std::vector<T>>;

/// Checks each result by the rule above. errors(order) gives by name the largest errors of a plain
/// run in the format of the actual results.
/// @param sane  what a plain run may err by, relative to the largest value of all results: a wrong
///              one would excuse anything
template <class T, class Errors>
void check_errors(Results<T> const& actual, Results<double> const& truth, Errors errors,
                  double sane = 0x1p-8) {
  struct Line {
    double error, floor, natural = 0, worst = 0;
    double allowed() const { return std::max(2 * worst, floor); }
  };
  std::map<std::string, Line> lines;
  double largest = 0;
  for (auto const& [name, values] : truth) {
    INFO(name);
    REQUIRE(actual.count(name) == 1);
    double const size = max_abs(values);
    largest = std::max(largest, size);
    lines[name] = {max_difference(actual.at(name), values), 8 * rounding<float> * size};
  }
  CHECK(actual.size() == truth.size());
  auto const outside = [](auto const& line) {
    return !(line.second.error <= line.second.allowed());
  };
  for (std::uint64_t order = 0; order < orders_of_summation; ++order) {
    if (order > 0 && std::none_of(lines.begin(), lines.end(), outside)) break;
    std::map<std::string, double> const run = errors(order);
    for (auto& [name, line] : lines) {
      if (order == 0) line.natural = run.at(name);
      line.worst = std::max(line.worst, run.at(name));
    }
  }
  for (auto const& [name, line] : lines) {
    INFO(name << ": error " << line.error << ", allowed " << line.allowed()
              << "; plain implementation " << line.natural << ", at its worst " << line.worst
              << "; largest value " << max_abs(truth.at(name)));
    CHECK(line.worst <= sane * largest);
    CHECK(line.error <= line.allowed());
  }
}

/// The largest error of each result.
template <class T>
std::map<std::string, double> largest_errors(Results<T> const& actual,
                                             Results<double> const& truth) {
  std::map<std::string, double> errors;
  for (auto const& [name, values] : truth) errors[name] = max_difference(actual.at(name), values);
  return errors;
}

/// The same, of a plain implementation whose results in an order are plain(order).
template <class T, class Plain>
void check_in_orders(Results<T> const& actual, Results<double> const& truth, Plain plain,
                     double sane = 0x1p-8) {
  check_errors(
      actual, truth, [&](std::uint64_t order) { return largest_errors(plain(order), truth); },
      sane);
}

}  // namespace support
