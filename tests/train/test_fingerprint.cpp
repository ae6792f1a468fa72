// SPDX-License-Identifier: Apache-2.0
#include "emprl/train/fingerprint.hpp"

#include <bit>
#include <cstddef>
#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "support/catch.hpp"

using emprl::train::Fingerprint;

TEST_CASE("fingerprint: of bytes it is FNV-1a as published", "[train][fingerprint][golden]") {
  auto const of = [](std::string_view text) {
    Fingerprint f;
    f.bytes(text);
    return f.value();
  };
  // Test vectors of the algorithm's authors.
  CHECK(of("") == 0xcbf29ce484222325u);
  CHECK(of("a") == 0xaf63dc4c8601ec8cu);
  CHECK(of("foobar") == 0x85944171f73967e8u);
  CHECK(Fingerprint().name() == "cbf29ce484222325");
}

TEST_CASE("fingerprint: where a text ends counts, and every bit of a number",
          "[train][fingerprint][unit]") {
  auto const of_texts = [](std::vector<std::string> const& texts) {
    Fingerprint f;
    for (std::string const& text : texts) f.text(text);
    return f.name();
  };
  CHECK(of_texts({"ab", "c"}) != of_texts({"a", "bc"}));
  CHECK(of_texts({"ab", ""}) != of_texts({"", "ab"}));
  CHECK(of_texts({"ab", "c"}) == of_texts({"ab", "c"}));

  std::vector<float> x(33, 1.5f);
  auto const name = [&] {
    Fingerprint f;
    f.numbers(std::span<float const>(x));
    return f.name();
  };
  std::set<std::string> seen{name()};
  for (std::size_t i = 0; i < x.size(); ++i) {
    for (unsigned bit = 0; bit < 32; ++bit) {
      float const before = x[i];
      x[i] = std::bit_cast<float>(std::bit_cast<std::uint32_t>(before) ^ (1u << bit));
      seen.insert(name());
      x[i] = before;
    }
  }
  CHECK(seen.size() == 1 + 33 * 32);
  // Signs that change in pairs do not cancel.
  x[3] = x[7] = -1.5f;
  CHECK(seen.insert(name()).second);
}
