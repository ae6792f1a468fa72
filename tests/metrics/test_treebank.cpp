// SPDX-License-Identifier: Apache-2.0
#include "emprl/metrics/treebank.hpp"

#include <string>
#include <utility>
#include <vector>

#include "support/catch.hpp"

using emprl::metrics::treebank_tokenize;

namespace {

std::string joined(std::string const& text) {
  std::string line;
  for (auto const& token : treebank_tokenize(text)) line += (line.empty() ? "" : " ") + token;
  return line;
}

}  // namespace

TEST_CASE("treebank: the tokens are NLTK 3.8.1's", "[metrics][treebank][golden]") {
  // Sentence, and TreebankWordTokenizer's tokens with spaces between.
  std::vector<std::pair<std::string, std::string>> const cases{
      {"Good muffins cost $3.88\nin New York.  Please buy me\ntwo of them.\nThanks.",
       R"~(Good muffins cost $ 3.88 in New York. Please buy me two of them. Thanks .)~"},
      {R"~(They'll save and invest more.)~", R"~(They 'll save and invest more .)~"},
      {R"~(hi, my name can't hello,)~", R"~(hi , my name ca n't hello ,)~"},
      {R"~("Hello," she said. "Bye.")~", R"~(`` Hello , '' she said. `` Bye . '')~"},
      {R"~(I cannot gimme that; d'ye wanna? 'Tis  more'n enough, 'twas gonna)~",
       R"~(I can not gim me that ; d 'ye wan na ? 'T is more 'n enough , 't was gon na)~"},
      {R"~(Wait... what?! No way!!)~", R"~(Wait ... what ? ! No way ! !)~"},
      {R"~(He said (quietly): "no".  )~", R"~(He said ( quietly ) : `` no '' .)~"},
      {R"~(the dogs' bowls' and Bob's 'quoted' words)~",
       R"~(the dogs ' bowls ' and Bob 's 'quoted ' words)~"},
      {R"~(rock 'n' roll, 10:30, 3,000 dollars: ok)~",
       R"~(rock 'n ' roll , 10:30 , 3,000 dollars : ok)~"},
      {R"~(well--maybe, or -- not.)~", R"~(well -- maybe , or -- not .)~"},
      {R"~(Ya'll won't've DON'T I'D she's)~", R"~(Ya 'll won't 've DO N'T I 'D she 's)~"},
      {R"~(a.b. c.. d.)~", R"~(a.b. c.. d .)~"},
      {R"~(''fancy'' ``quotes`` ("x" [''y'']))~",
       R"~('' fancy '' `` quotes `` ( `` x '' [ `` y '' ] ))~"},
      {R"~(.)~", R"~(.)~"},
      {R"~()~", R"~()~"},
      {R"~(  )~", R"~()~"},
      {R"~(...)~", R"~(...)~"},
      {R"~(can't?don't!)~", R"~(ca n't ? do n't !)~"},
      {R"~(Café costs 5€… naïve’s)~", R"~(Café costs 5€… naïve’s)~"},
      {R"~(#tag @you 50% A&B <b> {c})~", R"~(# tag @ you 50 % A & B < b > { c })~"},
      {"end:\n", R"~(end :)~"},
      {R"~(wannabe wanna)~", R"~(wannabe wan na)~"},
      {R"~(cannot. CanNot cannoté)~", R"~(can not . Can Not cannoté)~"},
      {R"~(I'm, you're: we've' o'clock')~", R"~(I 'm , you 're : we 've ' o'clock ')~"},
  };
  for (auto const& [text, tokens] : cases) {
    CAPTURE(text);
    CHECK(joined(text) == tokens);
  }
}

TEST_CASE("treebank: spaces of every kind separate", "[metrics][treebank][unit]") {
  CHECK(treebank_tokenize("a\tb\nc\u00a0d\u2003e\u3000f") ==
        std::vector<std::string>{"a", "b", "c", "d", "e", "f"});
}

TEST_CASE("treebank: bytes that are not UTF-8 pass through", "[metrics][treebank][unit]") {
  // A lone continuation, a cut-off sequence, an overlong zero, a surrogate, a code point beyond the
  // last.
  for (std::string const bad : {"\x80", "\xE2\x82", "\xC0\x80", "\xED\xA0\x80", "\xF5\x80\x80\x80",
                                "\xF4\x90\x80\x80", "\xFF"}) {
    CHECK(treebank_tokenize("x" + bad + ", y") == std::vector<std::string>{"x" + bad, ",", "y"});
    CHECK(treebank_tokenize(bad) == std::vector<std::string>{bad});
  }
  CHECK(treebank_tokenize("\xF0\x9F\x98\x80!") ==
        std::vector<std::string>{"\xF0\x9F\x98\x80", "!"});
}
