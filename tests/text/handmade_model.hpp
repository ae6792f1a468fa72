// SPDX-License-Identifier: Apache-2.0
#pragma once

// A sentencepiece model of any size, put together from the fields of its format
// (sentencepiece_model.proto) without training one.

#include <cstddef>
#include <cstdint>
#include <string>

#include "emprl/core/config.hpp"

namespace emprl::test {

namespace detail {

inline std::string proto_varint(std::uint64_t x) {
  std::string bytes;
  for (; x >= 0x80; x >>= 7) bytes += static_cast<char>((x & 0x7F) | 0x80);
  return bytes + static_cast<char>(x);
}

inline std::string proto_number(std::uint64_t field, std::uint64_t value) {
  return proto_varint(field << 3) + proto_varint(value);
}

inline std::string proto_bytes(std::uint64_t field, std::string const& bytes) {
  return proto_varint(field << 3 | 2) + proto_varint(bytes.size()) + bytes;
}

}  // namespace detail

/// A serialized unigram model in T5's conventions of `pieces` ids: <pad>, </s>, <unk>, and words
/// "w3", "w4", ... named by their ids, so that "w3 w7" has the ids 3 and 7.
/// @param has_sentinel  whether the last piece is <extra_id_0>: then no sentinels are added above
inline std::string handmade_spiece_model(index_t pieces, bool has_sentinel) {
  // Values of SentencePiece.Type.
  constexpr std::uint64_t normal = 1, unknown = 2, control = 3, user_defined = 4;
  std::string model;
  for (index_t id = 0; id < pieces; ++id) {
    bool const sentinel = has_sentinel && id == pieces - 1;
    std::string const name = id == 0    ? "<pad>"
                             : id == 1  ? "</s>"
                             : id == 2  ? "<unk>"
                             : sentinel ? "<extra_id_0>"
                                        : "\xE2\x96\x81w" + std::to_string(id);
    std::uint64_t const type = id == 2    ? unknown
                               : id < 2   ? control
                               : sentinel ? user_defined
                                          : normal;
    // The score, field 2, is a float of 4 bytes: 0, as the words share no letters in more than one
    // way.
    model += detail::proto_bytes(1, detail::proto_bytes(1, name) + "\x15" + std::string(4, '\0') +
                                        detail::proto_number(3, type));
  }
  constexpr std::uint64_t unigram = 1;
  model += detail::proto_bytes(2, detail::proto_number(3, unigram) +
                                      detail::proto_number(4, static_cast<std::uint64_t>(pieces)) +
                                      detail::proto_number(40, 2) + detail::proto_number(42, 1) +
                                      detail::proto_number(43, 0));
  return model + detail::proto_bytes(3, detail::proto_bytes(1, "identity"));
}

}  // namespace emprl::test
