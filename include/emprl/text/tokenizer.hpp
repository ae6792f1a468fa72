// SPDX-License-Identifier: Apache-2.0
#pragma once

// T5's tokenizer: a sentencepiece unigram model and 100 sentinels above its pieces, <extra_id_k> =
// pieces + 99 - k (Raffel et al. 2020). Sentinels are recognised in text; "</s>", "<pad>" and
// "<unk>" are not: in text from outside they are text, so that nobody ends a sequence by writing
// so.

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
    std::size_t begin = 0;
    if (!first_sentinel_is_piece_) {
      for (std::size_t at = text.find(detail::sentinel_prefix); at != std::string_view::npos;
           at = text.find(detail::sentinel_prefix, at)) {
        auto const sentinel = detail::match_sentinel(text.substr(at));
        if (!sentinel) {
          ++at;
          continue;
        }
        append(ids, text.substr(begin, at - begin));
        ids.push_back(sentinel_id(sentinel->number));
        at += sentinel->length;
        begin = at;
      }
    }
    append(ids, text.substr(begin));
    return ids;
  }

  /// The text of ids. `<pad>`, `</s>`, `<unk>` and ids from size() on give nothing; sentinels give
  /// "<extra_id_k>".
  /// @throws ShapeError for a negative id
  std::string decode(std::span<std::int32_t const> ids) const {
    std::string text;
    std::vector<int> run;
    auto const flush = [&] {
      if (run.empty()) return;
      // The space that a word's first piece stands for is dropped at the start of a text only.
      bool const starts_word = processor_->IdToPiece(run.front()).starts_with(word_mark);
      if (starts_word && !text.empty()) text += ' ';
      std::string part;
      auto const status = processor_->Decode(run, &part);
      expects(status.ok(), "sentencepiece could not decode: " + std::string(status.message()));
      text += part;
      run.clear();
    };
    for (std::int32_t const id : ids) {
      expects(id >= 0, "a token id must not be negative, and one is " + std::to_string(id));
      if (id >= pieces_) {
        if (id >= size()) continue;
        flush();
        text += std::string(detail::sentinel_prefix) + std::to_string(pieces_ + 99 - id) + ">";
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
  /// U+2581, which stands for a space.
  static constexpr std::string_view word_mark = "\xE2\x96\x81";

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
