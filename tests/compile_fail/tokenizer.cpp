// SPDX-License-Identifier: Apache-2.0
// A tokenizer is used from several threads: it encodes through a const reference.
// expect: t.encode(text)
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "emprl/text/concepts.hpp"

using namespace emprl;

struct Words {
#ifdef EMPRL_COMPILE_FAIL
  std::vector<std::int32_t> encode(std::string_view text);
#else
  std::vector<std::int32_t> encode(std::string_view text) const;
#endif
  std::string decode(std::span<std::int32_t const> ids) const;
  index_t size() const;
};

static_assert(text::Tokenizer<Words>);
