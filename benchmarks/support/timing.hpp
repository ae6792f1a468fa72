// SPDX-License-Identifier: Apache-2.0
#pragma once

// Clocks, and what many measurements of one thing say together.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

#include "emprl/core/error.hpp"

namespace emprl::bench {

/// Seconds of a clock that never goes back.
inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Makes the compiler assume that the memory behind p is read and changed here, so that work whose
/// result nobody else reads is done all the same.
template <class T>
void keep(T const* p) {
  asm volatile("" : : "g"(p) : "memory");
}

/// Time spent in one part of a program, and how often.
struct Part {
  double seconds = 0;
  long calls = 0;
};

/// Adds the time of its own life to a part.
class Stopwatch {
 public:
  explicit Stopwatch(Part& part) : part_(part), begin_(now()) {}
  Stopwatch(Stopwatch const&) = delete;
  Stopwatch& operator=(Stopwatch const&) = delete;
  ~Stopwatch() {
    part_.seconds += now() - begin_;
    ++part_.calls;
  }

 private:
  Part& part_;
  double begin_;
};

/// The q-quantile, 0 <= q <= 1, interpolated between the two nearest numbers.
/// @throws ShapeError if there are no numbers
inline double quantile(std::vector<double> x, double q) {
  expects(!x.empty(), "a quantile needs at least one number");
  std::sort(x.begin(), x.end());
  double const at = q * static_cast<double>(x.size() - 1);
  auto const below = static_cast<std::size_t>(at);
  std::size_t const above = std::min(below + 1, x.size() - 1);
  return x[below] + (at - std::floor(at)) * (x[above] - x[below]);
}

/// The middle of many measurements and the half of them around it. Not mean and deviation: whoever
/// disturbs a machine only ever adds time.
struct Spread {
  double median = 0;
  double low = 0;   ///< lower quartile
  double high = 0;  ///< upper quartile
};

inline Spread spread_of(std::vector<double> const& x) {
  return {quantile(x, 0.5), quantile(x, 0.25), quantile(x, 0.75)};
}

/// Seconds of two pieces of work, one pair a repetition.
struct PairedTimes {
  std::vector<double> first, second;

  /// first / second of each repetition.
  std::vector<double> ratios() const {
    std::vector<double> r;
    for (std::size_t i = 0; i < first.size(); ++i) r.push_back(first[i] / second[i]);
    return r;
  }
};

/// Does two pieces of work in turns, first second, second first, ..., so that a machine that
/// changes its clock or its company meanwhile does so to both. One repetition ahead is not counted.
template <class F, class G>
PairedTimes time_in_turns(int repetitions, F&& first, G&& second) {
  auto const seconds_of = [](auto& work) {
    double const begin = now();
    work();
    return now() - begin;
  };
  PairedTimes times;
  for (int i = -1; i < repetitions; ++i) {
    double a = 0, b = 0;
    if (i % 2 == 0) {
      a = seconds_of(first);
      b = seconds_of(second);
    } else {
      b = seconds_of(second);
      a = seconds_of(first);
    }
    if (i < 0) continue;
    times.first.push_back(a);
    times.second.push_back(b);
  }
  return times;
}

}  // namespace emprl::bench
