// SPDX-License-Identifier: Apache-2.0
#pragma once

// Tables of results as text, before anybody decides how they look: a title, a header, rows of
// cells, notes. The first column holds names, the others numbers.

#include <array>
#include <charconv>
#include <cmath>
#include <string>
#include <vector>

#include "emprl/metrics/bootstrap.hpp"

namespace emprl::train {

/// A table of cells. Every row has as many cells as the header.
struct TextTable {
  std::string title;
  std::vector<std::string> header;
  std::vector<std::vector<std::string>> rows;
  std::vector<std::string> notes;  ///< sentences below the table
};

/// A number with a fixed count of decimals and no negative zero; "-" if it is not finite.
inline std::string fixed_text(double x, int decimals) {
  if (!std::isfinite(x)) return "-";
  std::array<char, 400> buffer{};
  auto const end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), x,
                                 std::chars_format::fixed, decimals);
  std::string out(buffer.data(), end.ptr);
  bool const zero = out.find_first_not_of("-0.") == std::string::npos;
  return zero && out.front() == '-' ? out.substr(1) : out;
}

/// "0.312 [0.305,0.319]".
inline std::string interval_text(metrics::Interval const& e, int decimals) {
  return fixed_text(e.value, decimals) + " [" + fixed_text(e.low, decimals) + "," +
         fixed_text(e.high, decimals) + "]";
}

/// A difference: "+0.081 [0.070,0.092]".
inline std::string gain_text(metrics::Interval const& e, int decimals) {
  std::string const text = interval_text(e, decimals);
  bool const positive = e.value > 0.0 && fixed_text(e.value, decimals) != fixed_text(0.0, decimals);
  return (positive ? "+" : "") + text;
}

}  // namespace emprl::train
