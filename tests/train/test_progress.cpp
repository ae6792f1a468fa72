// SPDX-License-Identifier: Apache-2.0
#include "emprl/train/progress.hpp"

#include <string>
#include <string_view>
#include <vector>

#include "emprl/io/utf8.hpp"
#include "support/catch.hpp"

namespace {

using namespace emprl;
using train::Progress;

/// A clock that is set by hand and a sink that remembers each piece.
struct Stage {
  double now = 100.0;
  index_t width = 0;
  std::vector<std::string> pieces;

  train::ProgressOutput output() {
    return {[this](std::string_view text) { pieces.emplace_back(text); }, [this] { return now; },
            [this] { return width; }};
  }
};

/// What a piece leaves on a terminal's line.
std::string line_of(std::string piece) {
  if (piece.starts_with("\r")) piece.erase(0, 1);
  if (piece.ends_with("\n")) piece.pop_back();
  std::string_view const erase = "\x1b[K";
  if (piece.ends_with(erase)) piece.resize(piece.size() - erase.size());
  return piece;
}

}  // namespace

TEST_CASE("progress: without a terminal the first and the last line and one every ten seconds",
          "[train][progress][unit]") {
  Stage stage;
  {
    Progress progress("align", 100, "steps", 0, stage.output());
    for (index_t i = 1; i <= 100; ++i) {
      stage.now += 0.25;
      progress.advance(i, "loss 0.5");
    }
    progress.finish();
    progress.finish();
  }
  REQUIRE(stage.pieces.size() == 4);
  CHECK(stage.pieces[0] == "align: 0/100 steps\n");
  CHECK(stage.pieces[1] == "align: 40/100 steps, 4.0/s, 0:15 left, loss 0.5\n");
  CHECK(stage.pieces[2] == "align: 80/100 steps, 4.0/s, 0:05 left, loss 0.5\n");
  CHECK(stage.pieces[3] == "align: 100/100 steps, 4.0/s, took 0:25, loss 0.5\n");
}

TEST_CASE("progress: a terminal's line is rewritten at most ten times a second",
          "[train][progress][unit]") {
  Stage stage;
  stage.width = 80;
  Progress progress("finetune", 1000, "steps", 0, stage.output());
  for (index_t i = 1; i <= 1000; ++i) {
    stage.now += 0.01;
    progress.advance(i);
  }
  CHECK(stage.pieces.size() <= 101);
  CHECK(stage.pieces.size() >= 90);
  progress.finish();
  for (auto const& piece : stage.pieces) {
    CHECK(piece.starts_with("\r"));
    CHECK(line_of(piece).size() < 80);
  }
  CHECK(stage.pieces.front().find('\n') == std::string::npos);
  CHECK(stage.pieces.back().ends_with("\x1b[K\n"));
  CHECK(line_of(stage.pieces.back()) ==
        "finetune [##############################] 1000/1000 steps, 100/s, took 0:10");
}

TEST_CASE("progress: no line reaches the last column or cuts a character",
          "[train][progress][unit]") {
  std::string const note = "la perte \xC3\xA9gale 0,5 \xE2\x80\x94 \xE6\x84\x9F\xE6\x83\x85 ok";
  for (index_t width = 1; width < 140; ++width) {
    Stage stage;
    stage.width = width;
    {
      Progress progress("ajust\xC3\xA9", 10, "pas", 0, stage.output());
      stage.now += 1.0;
      progress.advance(3, note);
    }
    REQUIRE(stage.pieces.size() == 3);
    std::string const line = line_of(stage.pieces[1]);
    CHECK(io::is_valid_utf8(line));
    CHECK(train::detail::fit_to_columns(line, 1000).columns < width);
    CHECK(train::detail::fit_to_columns(line, 1000).text == line);
    if (width > 110) CHECK(line.ends_with(note));
  }
}

TEST_CASE("progress: text is made fit for a terminal", "[train][progress][unit]") {
  using train::detail::fit_to_columns;
  CHECK(fit_to_columns("a\nb\x1b[31m\tc", 80).text == "a b [31m c");
  CHECK(fit_to_columns("a\xFF"
                       "b\xC3",
                       80)
            .text == "a?b?");
  CHECK(fit_to_columns("\xE6\x84\x9F\xE6\x83\x85", 3).text == "\xE6\x84\x9F");
  CHECK(fit_to_columns("e\xCC\x81xyz", 2).text == "e\xCC\x81x");
  CHECK(fit_to_columns("abc", 0).text.empty());
  CHECK(fit_to_columns("abc", -5).text.empty());
}

TEST_CASE("progress: rates and durations read well", "[train][progress][unit]") {
  using train::detail::duration_text;
  using train::detail::rate_text;
  CHECK(duration_text(0.4) == "0:00");
  CHECK(duration_text(75.0) == "1:15");
  CHECK(duration_text(3725.0) == "1:02:05");
  CHECK(duration_text(1e300) == "100000:00:00");
  CHECK(rate_text(12.34) == "12.3/s");
  CHECK(rate_text(1234.5) == "1234/s");
  CHECK(rate_text(0.25) == "4.0 s each");
  CHECK(rate_text(0.001) == "1000 s each");
}

TEST_CASE("progress: units of an earlier run do not count for the rate",
          "[train][progress][unit]") {
  Stage stage;
  Progress progress("align", 200, "steps", 100, stage.output());
  stage.now += 20.0;
  progress.advance(110);
  CHECK(stage.pieces.back() == "align: 110/200 steps, 2.0 s each, 3:00 left\n");
}

TEST_CASE("progress: an unknown total shows no bar and no time left", "[train][progress][unit]") {
  Stage stage;
  stage.width = 80;
  Progress progress("read", 0, "lines", 0, stage.output());
  stage.now += 2.0;
  progress.advance(50);
  CHECK(line_of(stage.pieces.back()) == "read 50 lines, 25.0/s");
}

TEST_CASE("progress: an error on its way starts on a new line, and so does a message",
          "[train][progress][unit]") {
  Stage stage;
  stage.width = 80;
  {
    Progress progress("align", 10, "steps", 0, stage.output());
    progress.print("saved");
    CHECK(stage.pieces[1] == "\r\x1b[Ksaved\n");
    CHECK(line_of(stage.pieces[2]).starts_with("align "));
  }
  CHECK(stage.pieces.back() == "\n");
}
