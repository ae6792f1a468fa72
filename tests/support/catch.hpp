// SPDX-License-Identifier: Apache-2.0
// Catch2, version 3 where it is installed (Ubuntu 24.04), else version 2 (Debian 12). A test
// written against this header compiles with both.
#pragma once

#if __has_include(<catch2/catch_test_macros.hpp>)

#include <catch2/catch_approx.hpp>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators_all.hpp>
#include <catch2/matchers/catch_matchers_all.hpp>

using Catch::Approx;

#else

#include <catch2/catch.hpp>

#include <string>

namespace Catch::Matchers {

/// Version 3's name for what version 2 calls Contains.
inline auto ContainsSubstring(std::string const& text,
                              CaseSensitive::Choice choice = CaseSensitive::Yes) {
  return Contains(text, choice);
}

}  // namespace Catch::Matchers

#endif
