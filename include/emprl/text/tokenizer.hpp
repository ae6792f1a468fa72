// SPDX-License-Identifier: Apache-2.0
#pragma once

// T5's tokenizer: a sentencepiece unigram model and 100 sentinels above its pieces, <extra_id_k> =
// pieces + 99 - k (Raffel et al. 2020).
//
// Of transformers' tokenizers, which differ among themselves, this one follows T5Tokenizer with
// legacy=True, the default: it is sentencepiece itself, by which T5 was trained, and so are its ids
// and its text, with these conventions:
//   sentinels   are recognised in text as they are spelled, before normalisation. White space on
//               either side goes; what follows starts a word ("<extra_id_0>b" and "<extra_id_0> b"
//               are the same). Decoded, a sentinel has a space on each side. (legacy=False joins
//               what follows to the sentinel; T5TokenizerFast decodes "dog<extra_id_0> happy".)
//   spaces      at the ends of a text are dropped, in both directions, and several are one.
//   specials    "</s>", "<pad>" and "<unk>" in text from outside are text, so that nobody ends a
//               sequence by writing so. Here alone this differs from T5Tokenizer, which makes the
//               special tokens of them. Decoded, the special tokens give nothing, as with
//               skip_special_tokens=True.
//   bytes       NUL is a character like others. A byte that is not UTF-8 counts as U+FFFD would if
//               the normalisation left it: <unk>.
// T5TokenizerFast is another normaliser (grapheme by grapheme) and breaks ties between equally
// likely pieces otherwise: on text with combining marks, or one letter hundreds of times, its ids
// are not T5Tokenizer's. Sentencepiece itself breaks such ties one way up to 0.2.1 ("A ww w") and
// another in 0.2.3 ("A w ww"): here it is what the linked library does. tests/live/tokenizer.py
// compares.

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <sentencepiece_processor.h>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/text/concepts.hpp"
#include "emprl/text/sentencepiece_model.hpp"

namespace emprl::text {

/// How many sentinels T5 has.
inline constexpr index_t sentinel_count = 100;

namespace detail {

/// The sentinel that a text starts with: its number and its length in bytes.
struct SentinelMatch {
  index_t number;
  std::size_t length;
};

inline constexpr std::string_view sentinel_prefix = "<extra_id_";

inline std::optional<SentinelMatch> match_sentinel(std::string_view text) {
  if (!text.starts_with(sentinel_prefix)) return std::nullopt;
  std::size_t at = sentinel_prefix.size();
  index_t number = 0;
  std::size_t digits = 0;
  while (at < text.size() && text[at] >= '0' && text[at] <= '9' && digits < 2) {
    number = number * 10 + (text[at] - '0');
    ++at;
    ++digits;
  }
  bool const leading_zero = digits == 2 && number < 10;
  if (digits == 0 || leading_zero || at >= text.size() || text[at] != '>') return std::nullopt;
  return SentinelMatch{number, at + 1};
}

/// The white space that goes from around sentinels: Python's, of which sentencepiece's
/// normalisation does not know all.
inline constexpr std::string_view white_space[] = {" ",
                                                   "\t",
                                                   "\n",
                                                   "\v",
                                                   "\f",
                                                   "\r",
                                                   "\x1C",
                                                   "\x1D",
                                                   "\x1E",
                                                   "\x1F",
                                                   "\xC2\x85",
                                                   "\xC2\xA0",
                                                   "\xE1\x9A\x80",
                                                   "\xE2\x80\x80",
                                                   "\xE2\x80\x81",
                                                   "\xE2\x80\x82",
                                                   "\xE2\x80\x83",
                                                   "\xE2\x80\x84",
                                                   "\xE2\x80\x85",
                                                   "\xE2\x80\x86",
                                                   "\xE2\x80\x87",
                                                   "\xE2\x80\x88",
                                                   "\xE2\x80\x89",
                                                   "\xE2\x80\x8A",
                                                   "\xE2\x80\xA8",
                                                   "\xE2\x80\xA9",
                                                   "\xE2\x80\xAF",
                                                   "\xE2\x81\x9F",
                                                   "\xE3\x80\x80"};

inline std::string_view without_space_before(std::string_view text) {
  for (bool found = true; found;) {
    found = false;
    for (std::string_view const space : white_space) {
      if (!text.starts_with(space)) continue;
      text.remove_prefix(space.size());
      found = true;
    }
  }
  return text;
}

inline std::string_view without_space_behind(std::string_view text) {
  for (bool found = true; found;) {
    found = false;
    for (std::string_view const space : white_space) {
      if (!text.ends_with(space)) continue;
      text.remove_suffix(space.size());
      found = true;
    }
  }
  return text;
}

}  // namespace detail

/// A sentencepiece model with T5's sentinels. Const and safe to use from several threads.
class SentencePieceTokenizer {
 public:
  /// @param spiece_model a serialized sentencepiece model, as in a Hugging Face folder's
  /// spiece.model
  /// @throws IoError naming the file if it is missing, empty, truncated, or does not follow T5's
  /// ids for <pad>, </s>
  ///         and <unk>
  explicit SentencePieceTokenizer(std::filesystem::path const& spiece_model)
      : SentencePieceTokenizer(read(spiece_model), spiece_model.string()) {}

  /// From bytes in memory, called `name` in messages.
  SentencePieceTokenizer(std::string bytes, std::string const& name)
      : bytes_(std::move(bytes)),
        processor_(std::make_unique<sentencepiece::SentencePieceProcessor>()) {
    expects<IoError>(!bytes_.empty(),
                     name + ": the file is empty; a sentencepiece model was expected.");
    auto const fault = detail::find_fault_in_model(bytes_);
    if (fault) throw IoError(name + ": this is not a whole sentencepiece model: " + *fault + ".");
    std::string refusal;
    try {
      auto const status = processor_->LoadFromSerializedProto(bytes_);
      if (!status.ok()) refusal = status.message();
    } catch (std::exception const& error) {
      refusal = error.what();
    }
    if (!refusal.empty()) {
      throw IoError(name + ": this is not a sentencepiece model (" + refusal + ").");
    }
    expects<IoError>(processor_->pad_id() == pad_id && processor_->eos_id() == eos_id &&
                         processor_->unk_id() == unk_id,
                     name + ": the model does not follow T5: <pad> must be 0, </s> 1 and <unk> 2.");
    pieces_ = processor_->GetPieceSize();
    first_sentinel_is_piece_ = processor_->PieceToId("<extra_id_0>") != static_cast<int>(unk_id);
  }

  /// The ids of a text, without `</s>`.
  std::vector<std::int32_t> encode(std::string_view text) const {
    std::vector<std::int32_t> ids;
    std::string_view rest = text;
    std::size_t at =
        first_sentinel_is_piece_ ? std::string_view::npos : rest.find(detail::sentinel_prefix);
    while (at != std::string_view::npos) {
      auto const sentinel = detail::match_sentinel(rest.substr(at));
      if (!sentinel) {
        at = rest.find(detail::sentinel_prefix, at + 1);
        continue;
      }
      append(ids, detail::without_space_behind(rest.substr(0, at)));
      ids.push_back(sentinel_id(sentinel->number));
      rest = detail::without_space_before(rest.substr(at + sentinel->length));
      at = rest.find(detail::sentinel_prefix);
    }
    append(ids, rest);
    return ids;
  }

  /// The text of ids. `<pad>`, `</s>`, `<unk>` and ids from size() on give nothing; sentinels give
  /// "<extra_id_k>", with a space on each side.
  /// @throws ShapeError for a negative id
  std::string decode(std::span<std::int32_t const> ids) const {
    std::string text;
    auto const add = [&](std::string_view part) {
      if (!text.empty() && !part.empty()) text += ' ';
      text += part;
    };
    std::vector<int> run;
    auto const flush = [&] {
      if (run.empty()) return;
      std::string part;
      auto const status = processor_->Decode(run, &part);
      expects(status.ok(), "sentencepiece could not decode: " + std::string(status.message()));
      std::string_view bare = part;
      bare.remove_prefix(std::min(bare.find_first_not_of(' '), bare.size()));
      add(bare.substr(0, bare.find_last_not_of(' ') + 1));
      run.clear();
    };
    for (std::int32_t const id : ids) {
      expects(id >= 0, "a token id must not be negative, and one is " + std::to_string(id));
      if (id >= pieces_) {
        if (id >= size()) continue;
        flush();
        add(std::string(detail::sentinel_prefix) + std::to_string(pieces_ + 99 - id) + ">");
      } else if (!processor_->IsControl(id) && !processor_->IsUnknown(id)) {
        run.push_back(id);
      }
    }
    flush();
    return text;
  }

  /// Pieces and sentinels together.
  index_t size() const { return pieces_ + (first_sentinel_is_piece_ ? 0 : sentinel_count); }
  /// Pieces of the sentencepiece model alone.
  index_t pieces() const { return pieces_; }

  /// The id of <extra_id_k>, k = 0 .. 99.
  std::int32_t sentinel_id(index_t k) const {
    expects(k >= 0 && k < sentinel_count, "sentinels are numbered 0 to 99");
    if (first_sentinel_is_piece_) {
      return processor_->PieceToId(std::string(detail::sentinel_prefix) + std::to_string(k) + ">");
    }
    return static_cast<std::int32_t>(pieces_ + sentinel_count - 1 - k);
  }

  /// The ids of <extra_id_0>, <extra_id_1>, ...: all 100, or, where they are pieces of the model,
  /// as many as it has.
  std::vector<std::int32_t> sentinel_ids() const {
    std::vector<std::int32_t> ids;
    for (index_t k = 0; k < sentinel_count; ++k) {
      std::int32_t const id = sentinel_id(k);
      if (id == unk_id) break;
      ids.push_back(id);
    }
    return ids;
  }

  /// The piece of an id, as sentencepiece spells it; for ids below pieces().
  std::string piece(std::int32_t id) const {
    expects(id >= 0 && id < pieces_, "there is no such piece");
    return processor_->IdToPiece(id);
  }

  /// The logarithm of a piece's probability, by which texts are cut into pieces; for ids below
  /// pieces().
  float score(std::int32_t id) const {
    expects(id >= 0 && id < pieces_, "there is no such piece");
    return processor_->GetScore(id);
  }
  /// Whether the sentinels are pieces of the sentencepiece model, not ids above them.
  bool has_sentinel_pieces() const { return first_sentinel_is_piece_; }

  /// The serialized model: what belongs in a folder's spiece.model.
  std::string const& serialized() const { return bytes_; }

 private:
  static std::string read(std::filesystem::path const& path) {
    std::error_code error;
    if (std::filesystem::is_directory(path, error)) {
      throw IoError("cannot read " + path.string() + ": it is a folder.");
    }
    std::ifstream in(path, std::ios::binary);
    if (!in) throw IoError("cannot read " + path.string() + ": " + std::strerror(errno) + ".");
    std::string bytes{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
    if (in.bad()) throw IoError("cannot read " + path.string() + ".");
    return bytes;
  }

  void append(std::vector<std::int32_t>& ids, std::string_view text) const {
    std::vector<int> part;
    auto const status = processor_->Encode({text.data(), text.size()}, &part);
    expects(status.ok(), "sentencepiece could not encode: " + std::string(status.message()));
    ids.insert(ids.end(), part.begin(), part.end());
  }

  std::string bytes_;
  std::unique_ptr<sentencepiece::SentencePieceProcessor> processor_;
  index_t pieces_ = 0;
  bool first_sentinel_is_piece_ = false;
};

static_assert(Tokenizer<SentencePieceTokenizer>);

}  // namespace emprl::text
