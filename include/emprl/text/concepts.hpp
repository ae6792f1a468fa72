// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the library asks of a tokenizer, and the ids that T5 gives a meaning of their own.

#include <concepts>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "emprl/core/config.hpp"

namespace emprl::text {

inline constexpr std::int32_t pad_id = 0;  ///< `<pad>`
inline constexpr std::int32_t eos_id = 1;  ///< `</s>`, ends every sequence
inline constexpr std::int32_t unk_id = 2;  ///< `<unk>`, stands for what the vocabulary cannot spell
/// What a decoder reads before its first token.
inline constexpr std::int32_t decoder_start_id = pad_id;

// -------------------------------------------------------------------------------------------------
// Tokenizer: turns text into token ids and back. All that stands between text and models:
// batching (text/batching.hpp) needs no more.
//
//   t.encode(text) -> std::vector<std::int32_t>   the ids of a text, without `</s>`
//   t.decode(ids) -> std::string                  the text of ids
//   t.size() -> index_t                           one more than the largest id that encode may
//                                                 return; a model needs at least so many rows
//
// All three are const and may be called from several threads at once.
//
// Invariants. encode is a function of the text alone, and takes any bytes: text comes from outside.
// It never returns pad_id or eos_id, whatever the text spells, so that nobody ends a sequence by
// writing `</s>`; the caller appends eos_id (encode_with_end). unk_id may stand for what the
// vocabulary cannot spell. decode takes any ids that are not negative, for a model samples what it
// likes: `<pad>`, `</s>`, `<unk>` and the rows of a vocabulary that no piece uses give nothing.
// Whether decode(encode(text)) is the text is up to the tokenizer: T5's normalises white space.
//
//   struct Bytes {                          // one token a byte
//     std::vector<std::int32_t> encode(std::string_view text) const {
//       std::vector<std::int32_t> ids;
//       for (char const c : text) ids.push_back(3 + static_cast<unsigned char>(c));
//       return ids;
//     }
//     std::string decode(std::span<std::int32_t const> ids) const {
//       std::string text;
//       for (auto const id : ids) {
//         if (id >= 3 && id < 259) text += static_cast<char>(id - 3);
//       }
//       return text;
//     }
//     index_t size() const { return 259; }
//   };
//
// Models: SentencePieceTokenizer (tokenizer.hpp).
// -------------------------------------------------------------------------------------------------
template <class T>
concept Tokenizer = requires(T const& t, std::string_view text, std::span<std::int32_t const> ids) {
  { t.encode(text) } -> std::same_as<std::vector<std::int32_t>>;
  { t.decode(ids) } -> std::same_as<std::string>;
  { t.size() } -> std::same_as<index_t>;
};

}  // namespace emprl::text
