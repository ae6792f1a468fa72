// SPDX-License-Identifier: Apache-2.0
#pragma once

// Words as the Penn Treebank writes them: punctuation apart, "can't" as "ca" "n't". The tokens are
// those of NLTK's TreebankWordTokenizer, with which published Distinct-n and BLEU were counted. Its
// rules are a sequence of substitutions; here each is a scan by hand.

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace emprl::metrics {

namespace detail {

/// Code points of UTF-8. A byte that belongs to no valid sequence becomes U+DC00 + byte and comes
/// back unchanged.
inline std::u32string decode_utf8(std::string_view text) {
  std::u32string out;
  out.reserve(text.size() + 2);
  std::size_t i = 0;
  while (i < text.size()) {
    auto const lead = static_cast<unsigned char>(text[i]);
    if (lead < 0x80) {
      out.push_back(lead);
      ++i;
      continue;
    }
    std::size_t const length = lead >= 0xF0 && lead <= 0xF4   ? 4
                               : lead >= 0xE0 && lead <= 0xEF ? 3
                               : lead >= 0xC2 && lead <= 0xDF ? 2
                                                              : 1;
    bool valid = length > 1 && i + length <= text.size();
    char32_t code = valid ? lead & (0x7FU >> length) : 0U;
    for (std::size_t j = 1; valid && j < length; ++j) {
      auto const next = static_cast<unsigned char>(text[i + j]);
      valid = (next & 0xC0U) == 0x80U;
      code = code << 6 | (next & 0x3FU);
    }
    constexpr std::array<char32_t, 5> smallest{0, 0, 0x80, 0x800, 0x10000};
    valid = valid && code >= smallest[length] && code <= 0x10FFFF &&
            !(code >= 0xD800 && code <= 0xDFFF);
    out.push_back(valid ? code : 0xDC00U + lead);
    i += valid ? length : 1;
  }
  return out;
}

inline void append_utf8(std::string& out, char32_t code) {
  auto const put = [&](char32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    put(code);
  } else if (code >= 0xDC00 && code <= 0xDCFF) {
    put(code - 0xDC00);
  } else if (code < 0x800) {
    put(0xC0U | code >> 6);
    put(0x80U | (code & 0x3FU));
  } else if (code < 0x10000) {
    put(0xE0U | code >> 12);
    put(0x80U | (code >> 6 & 0x3FU));
    put(0x80U | (code & 0x3FU));
  } else {
    put(0xF0U | code >> 18);
    put(0x80U | (code >> 12 & 0x3FU));
    put(0x80U | (code >> 6 & 0x3FU));
    put(0x80U | (code & 0x3FU));
  }
}

/// Unicode white space as Python's str.split sees it.
inline bool is_space(char32_t c) {
  if (c < 0x80) return (c >= 0x9 && c <= 0xD) || (c >= 0x1C && c <= 0x20);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
         c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

/// Decimal digits: ASCII's, and those of the scripts that a dialogue may come in.
inline bool is_digit(char32_t c) {
  if (c < 0x80) return c >= '0' && c <= '9';
  constexpr std::array<char32_t, 20> zeros{0x660, 0x6F0, 0x7C0,  0x966,  0x9E6,  0xA66, 0xAE6,
                                           0xB66, 0xBE6, 0xC66,  0xCE6,  0xD66,  0xDE6, 0xE50,
                                           0xED0, 0xF20, 0x1040, 0x17E0, 0x1810, 0xFF10};
  return std::any_of(zeros.begin(), zeros.end(),
                     [&](char32_t zero) { return c >= zero && c <= zero + 9; });
}

/// Letters, digits and the underscore. Beyond ASCII by blocks: all but symbols, punctuation,
/// combining marks and emoji.
inline bool is_word(char32_t c) {
  if (c < 0x80) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
  }
  if (c < 0xC0)
    return c == 0xAA || c == 0xB2 || c == 0xB3 || c == 0xB5 || c == 0xB9 || c == 0xBA ||
           (c >= 0xBC && c <= 0xBE);
  if (c == 0xD7 || c == 0xF7 || is_space(c)) return false;
  return !(c >= 0x300 && c <= 0x36F) && !(c >= 0x2000 && c <= 0x206F) &&
         !(c >= 0x20A0 && c <= 0x20FF) && !(c >= 0x2190 && c <= 0x245F) &&
         !(c >= 0x2500 && c <= 0x2BFF) && !(c >= 0x3000 && c <= 0x3004) &&
         !(c >= 0xD800 && c <= 0xF8FF) && !(c >= 0xFE00 && c <= 0xFE0F) && c != 0xFFFD &&
         !(c >= 0x1F000 && c <= 0x1FAFF);
}

inline char32_t ascii_lower(char32_t c) {
  return c >= 'A' && c <= 'Z' ? c + 32 : c;
}

inline bool is_any_of(char32_t c, std::u32string_view set) {
  return set.find(c) != std::u32string_view::npos;
}

/// Does `text` hold `literal` at i?
inline bool holds(std::u32string_view text, std::size_t i, std::u32string_view literal) {
  return text.substr(std::min(i, text.size()), literal.size()) == literal;
}

inline bool holds_caseless(std::u32string_view text, std::size_t i, std::u32string_view literal) {
  if (i + literal.size() > text.size()) return false;
  for (std::size_t j = 0; j < literal.size(); ++j) {
    if (ascii_lower(text[i + j]) != literal[j]) return false;
  }
  return true;
}

/// One substitution from left to right. `rule(text, i, out)` either writes the replacement of what
/// starts at i and returns how many code points it consumed, or returns 0.
template <class Rule>
void substitute(std::u32string& text, std::u32string& spare, Rule const& rule) {
  spare.clear();
  std::size_t i = 0;
  while (i < text.size()) {
    std::size_t const consumed = rule(std::u32string_view(text), i, spare);
    if (consumed == 0) spare.push_back(text[i]);
    i += std::max<std::size_t>(consumed, 1);
  }
  text.swap(spare);
}

/// Splits `first` + `second`, in any case, where words begin and end; `before_space`: a space must
/// follow.
struct Contraction {
  std::u32string_view first, second;
  bool before_space = false;
};

inline constexpr std::array<Contraction, 8> contractions{{{U"can", U"not"},
                                                          {U"d", U"'ye"},
                                                          {U"gim", U"me"},
                                                          {U"gon", U"na"},
                                                          {U"got", U"ta"},
                                                          {U"lem", U"me"},
                                                          {U"more", U"'n"},
                                                          {U"wan", U"na", true}}};

}  // namespace detail

/// The Treebank tokens of a sentence, in order. Bytes that are not UTF-8 pass through inside their
/// tokens.
inline std::vector<std::string> treebank_tokenize(std::string_view sentence) {
  using View = std::u32string_view;
  using Out = std::u32string;
  std::u32string text = detail::decode_utf8(sentence);
  std::u32string spare;
  auto const apply = [&](auto const& rule) { detail::substitute(text, spare, rule); };
  auto const pad = [&](View literal) {
    apply([literal](View t, std::size_t i, Out& out) -> std::size_t {
      if (t[i] != literal[0] || !detail::holds(t, i, literal)) return 0;
      (out += U' ').append(literal) += U' ';
      return literal.size();
    });
  };
  auto const pad_any = [&](View set) {
    apply([set](View t, std::size_t i, Out& out) -> std::size_t {
      if (!detail::is_any_of(t[i], set)) return 0;
      ((out += U' ') += t[i]) += U' ';
      return 1;
    });
  };

  // Opening quotes.
  if (!text.empty() && text[0] == U'"') text.replace(0, 1, U"``");
  pad(U"``");
  apply([](View t, std::size_t i, Out& out) -> std::size_t {
    if (!detail::is_any_of(t[i], U" ([{<")) return 0;
    std::size_t const quote = detail::holds(t, i + 1, U"\"")   ? 1
                              : detail::holds(t, i + 1, U"''") ? 2
                                                               : 0;
    if (quote == 0) return 0;
    (out += t[i]).append(U" `` ");
    return 1 + quote;
  });

  // Punctuation. A comma or colon stays in a number.
  apply([](View t, std::size_t i, Out& out) -> std::size_t {
    if (!detail::is_any_of(t[i], U":,") || i + 1 >= t.size() || detail::is_digit(t[i + 1]))
      return 0;
    (((out += U' ') += t[i]) += U' ') += t[i + 1];
    return 2;
  });
  apply([](View t, std::size_t i, Out& out) -> std::size_t {
    bool const last = i + 1 == t.size() || (i + 2 == t.size() && t[i + 1] == U'\n');
    if (!last || !detail::is_any_of(t[i], U":,")) return 0;
    ((out += U' ') += t[i]) += U' ';
    return 1;
  });
  pad(U"...");
  pad_any(U";@#$%&");
  // The full stop of the sentence, before closing brackets and quotes.
  {
    std::size_t end = text.size();
    while (end > 0 && detail::is_space(text[end - 1])) --end;
    std::size_t stop = end;
    while (stop > 0 && detail::is_any_of(text[stop - 1], U"])}>\"'")) --stop;
    if (stop >= 2 && text[stop - 1] == U'.' && text[stop - 2] != U'.') {
      text.resize(end);
      text.push_back(U' ');
      text.insert(stop - 1, 1, U' ');
    }
  }
  pad_any(U"?!");
  apply([](View t, std::size_t i, Out& out) -> std::size_t {
    if (t[i] == U'\'' || !detail::holds(t, i + 1, U"' ")) return 0;
    (out += t[i]).append(U" ' ");
    return 3;
  });
  pad_any(U"][(){}<>");
  pad(U"--");

  // Closing quotes and clitics.
  text.insert(0, 1, U' ');
  text.push_back(U' ');
  pad(U"''");
  apply([](View t, std::size_t i, Out& out) -> std::size_t {
    if (t[i] != U'"') return 0;
    out.append(U" '' ");
    return 1;
  });
  apply([](View t, std::size_t i, Out& out) -> std::size_t {
    if (detail::is_any_of(t[i], U"' ") || !detail::holds(t, i + 1, U"'")) return 0;
    bool const lettered =
        i + 3 < t.size() && detail::is_any_of(t[i + 2], U"sSmMdD") && t[i + 3] == U' ';
    if (!lettered && !detail::holds(t, i + 2, U" ")) return 0;
    ((out += t[i]) += U' ').append(lettered ? t.substr(i + 1, 2) : t.substr(i + 1, 1)) += U' ';
    return lettered ? 4 : 3;
  });
  apply([](View t, std::size_t i, Out& out) -> std::size_t {
    if (detail::is_any_of(t[i], U"' ") || i + 4 >= t.size() || t[i + 4] != U' ') return 0;
    View const clitic = t.substr(i + 1, 3);
    if (clitic != U"'ll" && clitic != U"'LL" && clitic != U"'re" && clitic != U"'RE" &&
        clitic != U"'ve" && clitic != U"'VE" && clitic != U"n't" && clitic != U"N'T") {
      return 0;
    }
    ((out += t[i]) += U' ').append(clitic) += U' ';
    return 5;
  });

  // Words that are two.
  for (auto const& c : detail::contractions) {
    apply([&c](View t, std::size_t i, Out& out) -> std::size_t {
      if (detail::ascii_lower(t[i]) != c.first[0] || (i > 0 && detail::is_word(t[i - 1]))) return 0;
      std::size_t const middle = i + c.first.size();
      std::size_t const end = middle + c.second.size();
      if (!detail::holds_caseless(t, i, c.first) || !detail::holds_caseless(t, middle, c.second)) {
        return 0;
      }
      if (end < t.size() && detail::is_word(t[end])) return 0;
      if (c.before_space && (end >= t.size() || !detail::is_space(t[end]))) return 0;
      (out += U' ').append(t.substr(i, c.first.size()));
      (out += U' ').append(t.substr(middle, c.second.size()));
      out += U' ';
      return end - i;
    });
  }
  for (View const verb : {View(U"is"), View(U"was")}) {
    apply([verb](View t, std::size_t i, Out& out) -> std::size_t {
      std::size_t const end = i + 3 + verb.size();
      if (t[i] != U' ' || !detail::holds_caseless(t, i + 1, U"'t") ||
          !detail::holds_caseless(t, i + 3, verb) || (end < t.size() && detail::is_word(t[end]))) {
        return 0;
      }
      (out += U' ').append(t.substr(i + 1, 2));
      (out += U' ').append(t.substr(i + 3, verb.size()));
      out += U' ';
      return end - i;
    });
  }

  std::vector<std::string> tokens;
  bool inside = false;
  for (char32_t const c : text) {
    if (detail::is_space(c)) {
      inside = false;
      continue;
    }
    if (!inside) tokens.emplace_back();
    inside = true;
    detail::append_utf8(tokens.back(), c);
  }
  return tokens;
}

}  // namespace emprl::metrics
