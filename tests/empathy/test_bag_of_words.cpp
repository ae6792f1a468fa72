// SPDX-License-Identifier: Apache-2.0
#include "emprl/empathy/bag_of_words.hpp"

#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include <unistd.h>

#include "emprl/io/file.hpp"
#include "support/catch.hpp"

using namespace emprl;
using Catch::Matchers::ContainsSubstring;
using empathy::BagOfWords;
using empathy::BagOfWordsConfig;

namespace {

std::vector<std::string> const texts{"I am so sorry to hear that.",
                                     "That sounds hard, I am sorry!",
                                     "What happened to you?",
                                     "Why do you feel that way?",
                                     "ok",
                                     "cool, that is nice",
                                     "I am sorry. What happened?",
                                     "nice nice nice",
                                     "so sorry, so so sorry"};
std::vector<int> const levels{2, 2, 0, 0, 1, 1, 2, 1, 2};

void check_probabilities(empathy::MechanismProbabilities const& p,
                         empathy::MechanismProbabilities const& expected, double tolerance) {
  for (std::size_t c = 0; c < 3; ++c) CHECK(std::abs(p[c] - expected[c]) < tolerance);
}

/// A file that is gone when the test ends.
struct ScratchFile {
  std::filesystem::path path;
  explicit ScratchFile(std::string const& name)
      : path(std::filesystem::temp_directory_path() /
             ("emprl_" + std::to_string(::getpid()) + "_" + name)) {}
  ScratchFile(ScratchFile const&) = delete;
  ScratchFile& operator=(ScratchFile const&) = delete;
  ~ScratchFile() {
    std::error_code ignored;
    std::filesystem::remove(path, ignored);
  }
};

}  // namespace

TEST_CASE("bag_of_words: features and probabilities are scikit-learn's",
          "[empathy][bag_of_words][golden]") {
  // TfidfVectorizer(ngram_range=(1, 2), token_pattern="[\w']+|[^\w\s]", sublinear_tf=True) and
  // LogisticRegression(C=5, class_weight="balanced", solver="newton-cg", tol=1e-14). A loss known
  // to 1e-16 fixes its minimum to about 1e-8: scikit-learn's own solvers differ by 3e-8.
  BagOfWordsConfig config;
  config.min_documents = 1;
  config.l2 = 0.2;
  config.tolerance = 1e-10;
  BagOfWords const model = empathy::train_bag_of_words(texts, levels, config);
  check_probabilities(model.probabilities("I am sorry, what happened?"),
                      {0.1786518475966767, 0.11918939291471152, 0.7021587594886118}, 1e-7);
  check_probabilities(model.probabilities("nice"),
                      {0.11243617728672105, 0.7529457785910195, 0.13461804412225942}, 1e-7);
  check_probabilities(model.probabilities("unknown words only here"),
                      {0.26377787835878436, 0.38566406339911546, 0.3505580582421003}, 1e-7);
  check_probabilities(model.probabilities(""), model.probabilities("unknown"), 1e-15);
}

TEST_CASE("bag_of_words: words are lower case, marks stand alone",
          "[empathy][bag_of_words][unit]") {
  CHECK(empathy::detail::bag_tokens("I'm SO sorry...  really?!\n(caf\xC3\xA9)") ==
        std::vector<std::string>{"i'm", "so", "sorry", ".", ".", ".", "really", "?", "!", "(",
                                 "caf\xC3\xA9", ")"});
  CHECK(empathy::detail::bag_tokens("it\xE2\x80\x99s\xE2\x80\xA6 no") ==
        std::vector<std::string>{"it's", "\xE2\x80\xA6", "no"});
  CHECK(empathy::detail::bag_tokens("cut off \xE2\x80") ==
        std::vector<std::string>{"cut", "off", "\xE2\x80"});
}

TEST_CASE("bag_of_words: training is the same every time and rare features are left out",
          "[empathy][bag_of_words][unit]") {
  BagOfWords const a = empathy::train_bag_of_words(texts, levels);
  BagOfWords const b = empathy::train_bag_of_words(texts, levels);
  CHECK(a.bias() == b.bias());
  REQUIRE(a.features().size() == b.features().size());
  bool found = false;
  for (std::size_t i = 0; i < a.features().size(); ++i) {
    CHECK(a.features()[i].weight == b.features()[i].weight);
    CHECK(a.features()[i].name != "cool");
    found = found || a.features()[i].name == "i am";
  }
  CHECK(found);
}

TEST_CASE("bag_of_words: contexts count where they are given", "[empathy][bag_of_words][unit]") {
  // The response says nothing; the context says all, and its words are not the response's.
  std::vector<std::string> responses(8, "ok");
  std::vector<std::string> contexts;
  std::vector<int> wanted;
  for (int i = 0; i < 8; ++i) {
    contexts.emplace_back(i % 2 == 0 ? "my dog died" : "we won a prize");
    wanted.push_back(i % 2 == 0 ? 2 : 0);
  }
  BagOfWords const model = empathy::train_bag_of_words(responses, wanted, {}, contexts);
  CHECK(model.with_context());
  CHECK(empathy::most_probable(model.probabilities("ok", "her dog died")) == 2);
  CHECK(empathy::most_probable(model.probabilities("ok", "they won")) == 0);
  check_probabilities(model.probabilities("ok dog died"), model.probabilities("ok"), 1e-15);
  BagOfWords const blind = empathy::train_bag_of_words(responses, wanted);
  check_probabilities(blind.probabilities("ok", "her dog died"), blind.probabilities("ok"), 1e-15);
}

TEST_CASE("bag_of_words: a level without examples gets next to no probability",
          "[empathy][bag_of_words][unit]") {
  std::vector<int> const one_level(texts.size(), 1);
  auto const p = empathy::train_bag_of_words(texts, one_level).probabilities("sorry");
  CHECK(p[1] > 0.99);
  CHECK(p[0] + p[1] + p[2] == Approx(1.0));
}

TEST_CASE("bag_of_words: a saved model gives the same numbers", "[empathy][bag_of_words][unit]") {
  ScratchFile const file("bag.json");
  BagOfWords const model = empathy::train_bag_of_words(texts, levels, {}, texts);
  empathy::save_bag_of_words(file.path, model);
  BagOfWords const loaded = empathy::load_bag_of_words(file.path);
  CHECK(loaded.with_context());
  for (auto const& text : texts) {
    CHECK(loaded.probabilities(text, "so sorry") == model.probabilities(text, "so sorry"));
  }
}

TEST_CASE("bag_of_words: a wrong file is refused by name", "[empathy][bag_of_words][unit]") {
  ScratchFile const file("wrong.json");
  auto const refused = [&](std::string const& text, std::string const& why) {
    io::write_file_atomically(file.path, text);
    CHECK_THROWS_AS(empathy::load_bag_of_words(file.path), IoError);
    CHECK_THROWS_WITH(empathy::load_bag_of_words(file.path),
                      ContainsSubstring(file.path.string()) && ContainsSubstring(why));
  };
  std::string const head = R"({"format": "emprl bag of words 1", "with_context": false, )";
  refused("", "empty");
  refused("{}", "no bag of words");
  refused(R"({"format": 3})", "no bag of words");
  refused(head + R"("bias": [0, 0, 0]})", "incomplete");
  refused(head + R"("bias": [0, 0], "features": []})", "incomplete");
  refused(head + R"("bias": [0, 0, 0], "features": [["a", 1, 0, 0]]})", "five");
  refused(head + R"("bias": [0, 0, 0], "features": [["a", 1, 0, 0, "x"]]})", "incomplete");
  refused(head + R"("bias": [0, 0, 0], "features": [["a",1,0,0,0], ["a",1,0,0,0]]})", "twice");
  refused(head + R"("bias": [0, 0, null], "features": []})", "incomplete");
  std::filesystem::remove(file.path);
  CHECK_THROWS_AS(empathy::load_bag_of_words(file.path), IoError);
}

TEST_CASE("bag_of_words: mistakes are errors", "[empathy][bag_of_words][unit]") {
  std::vector<int> const short_by_one(levels.begin(), levels.end() - 1);
  std::vector<int> beyond = levels;
  beyond[0] = 3;
  std::vector<std::string> const none;
  CHECK_THROWS_AS(empathy::train_bag_of_words(texts, short_by_one), ShapeError);
  CHECK_THROWS_AS(empathy::train_bag_of_words(texts, beyond), Error);
  CHECK_THROWS_AS(empathy::train_bag_of_words(none, {}), Error);
  BagOfWordsConfig config;
  config.l2 = 0.0;
  CHECK_THROWS_WITH(empathy::train_bag_of_words(texts, levels, config), ContainsSubstring("l2"));
}
