// SPDX-License-Identifier: Apache-2.0
#pragma once

// Proof that a serialized sentencepiece model may be handed to sentencepiece.
//
// The library checks much, but not the table of its normaliser, a double-array trie (Aoe 1989) that
// it walks without looking at bounds: a damaged file makes it read outside of memory at the first
// text. Here the trie is walked once with every possible byte, and each place that any text could
// lead to is shown to lie inside. A file cut between two fields, which still parses, is told from a
// whole one too.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace emprl::text::detail {

/// A field of a serialized protocol buffer message; `bytes` is empty for fields that are numbers.
struct ProtoField {
  std::uint64_t number = 0;
  bool is_bytes = false;
  std::string_view bytes;
};

/// Walks over the fields of a message.
class ProtoReader {
 public:
  explicit ProtoReader(std::string_view message) : rest_(message) {}

  bool done() const { return rest_.empty(); }

  /// The next field; nothing if the bytes are no field.
  std::optional<ProtoField> next() {
    auto const tag = varint();
    if (!tag) return std::nullopt;
    ProtoField field{*tag >> 3, false, {}};
    switch (*tag & 7) {
      case 0:
        if (!varint()) return std::nullopt;
        return field;
      case 1:
        return take(8) ? std::optional(field) : std::nullopt;
      case 2: {
        auto const length = varint();
        if (!length) return std::nullopt;
        auto const bytes = take(*length);
        if (!bytes) return std::nullopt;
        field.is_bytes = true;
        field.bytes = *bytes;
        return field;
      }
      case 5:
        return take(4) ? std::optional(field) : std::nullopt;
      default:
        return std::nullopt;
    }
  }

 private:
  std::optional<std::uint64_t> varint() {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
      auto const byte = static_cast<unsigned char>(rest_.front());
      rest_.remove_prefix(1);
      value |= std::uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return value;
    }
    return std::nullopt;
  }

  std::optional<std::string_view> take(std::uint64_t n) {
    if (n > rest_.size()) return std::nullopt;
    std::string_view const bytes = rest_.substr(0, static_cast<std::size_t>(n));
    rest_.remove_prefix(static_cast<std::size_t>(n));
    return bytes;
  }

  std::string_view rest_;
};

/// Whether a normaliser's table is safe to walk: 4 bytes with the trie's size, the trie, then
/// strings that end in NUL. The units of the trie are those of darts-clone: label in bits 0-7 and
/// 31, a leaf below in bit 8, offset in bits 9-30.
inline bool is_safe_normaliser_table(std::string_view table) {
  if (table.empty()) return true;
  std::uint32_t trie_bytes = 0;
  if (table.size() <= sizeof trie_bytes) return false;
  std::memcpy(&trie_bytes, table.data(), sizeof trie_bytes);
  table.remove_prefix(sizeof trie_bytes);
  if (trie_bytes < 4 || trie_bytes % 4 != 0 || trie_bytes >= table.size()) return false;
  std::vector<std::uint32_t> units(trie_bytes / 4);
  std::memcpy(units.data(), table.data(), trie_bytes);
  std::string_view const strings = table.substr(trie_bytes);
  if (strings.back() != '\0') return false;

  auto const offset_of = [](std::uint32_t unit) { return (unit >> 10) << ((unit & 0x200u) >> 6); };
  constexpr std::uint32_t label_bits = 0x800000FFu;
  constexpr std::uint32_t leaf_bit = 0x100u;
  constexpr std::uint32_t value_bits = 0x7FFFFFFFu;
  // A state is where the children of a node lie: child c is unit state ^ c. All 256 must be inside.
  auto const is_inside = [&](std::uint32_t state) { return (state | 0xFFu) < units.size(); };

  // sentencepiece has room for 32 matches of one text, so no path may be longer; a cycle is endless
  // and fails as well.
  constexpr std::uint8_t max_depth = 32;
  std::vector<std::uint8_t> seen_at(units.size(), 0);
  std::vector<std::uint32_t> level{offset_of(units[0])};
  for (std::uint8_t depth = 1; !level.empty(); ++depth) {
    if (depth > max_depth) return false;
    std::vector<std::uint32_t> below;
    for (std::uint32_t const state : level) {
      if (!is_inside(state)) return false;
      for (std::uint32_t c = 0; c < 256; ++c) {
        std::uint32_t const at = state ^ c;
        std::uint32_t const unit = units[at];
        if ((unit & label_bits) != c || seen_at[at] == depth) continue;
        // A unit may be met by several paths, but its children depend on it alone.
        seen_at[at] = depth;
        std::uint32_t const next = at ^ offset_of(unit);
        if (next >= units.size()) return false;
        if ((unit & leaf_bit) != 0 && (units[next] & value_bits) >= strings.size()) return false;
        below.push_back(next);
      }
    }
    level = std::move(below);
  }
  return true;
}

/// What is wrong with a serialized model, in a few words; nothing if sentencepiece may load it.
inline std::optional<std::string> find_fault_in_model(std::string_view bytes) {
  // Fields of sentencepiece_model.proto.
  constexpr std::uint64_t pieces = 1, trainer = 2, normaliser = 3, denormaliser = 5;
  constexpr std::uint64_t precompiled_table = 2;
  bool has[4] = {};
  ProtoReader model(bytes);
  while (!model.done()) {
    auto const field = model.next();
    if (!field) return "it is damaged or no sentencepiece model";
    if (field->number >= pieces && field->number <= normaliser) has[field->number] = true;
    if (field->number != normaliser && field->number != denormaliser) continue;
    ProtoReader settings(field->bytes);
    while (!settings.done()) {
      auto const setting = settings.next();
      if (!setting) return "the settings of its normaliser are damaged";
      if (setting->number == precompiled_table && !is_safe_normaliser_table(setting->bytes)) {
        return "the table of its normaliser is damaged";
      }
    }
  }
  if (!has[pieces] || !has[trainer] || !has[normaliser]) return "it is cut short";
  return std::nullopt;
}

}  // namespace emprl::text::detail
