// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "../../examples/corpus/writer.hpp"
#include "emprl/data/empathetic_dialogues.hpp"
#include "emprl/data/mental_health.hpp"
#include "emprl/io/csv.hpp"
#include "emprl/io/file.hpp"
#include "support/catch.hpp"

namespace {

namespace fs = std::filesystem;
using emprl::index_t;
using namespace emprl::corpus;

/// A folder of its own for each test, removed at the end.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(std::string const& name)
      : path_(fs::temp_directory_path() / ("emprl_test_" + name)) {
    fs::remove_all(path_);
    fs::create_directories(path_);
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TemporaryFolder(TemporaryFolder const&) = delete;
  TemporaryFolder& operator=(TemporaryFolder const&) = delete;
  fs::path const& path() const { return path_; }

 private:
  fs::path path_;
};

struct Row {
  std::string id, emotion, prompt, speaker, utterance;
  int index = 0;
};

std::vector<Row> read_dialogues(fs::path const& path) {
  std::istringstream lines(emprl::io::read_file(path));
  std::string line;
  std::getline(lines, line);
  REQUIRE(line == "conv_id,utterance_idx,context,prompt,speaker_idx,utterance,selfeval,tags");
  std::vector<Row> rows;
  while (std::getline(lines, line)) {
    auto const f = emprl::io::split_unquoted_csv(line);
    REQUIRE(f.size() == 8);
    rows.push_back({std::string(f[0]), std::string(f[2]), std::string(f[3]), std::string(f[4]),
                    std::string(f[5]), std::stoi(std::string(f[1]))});
  }
  return rows;
}

std::vector<std::vector<std::string>> read_posts(fs::path const& path) {
  emprl::io::QuotedCsvReader reader(path);
  std::vector<std::vector<std::string>> rows;
  std::vector<std::string> fields;
  while (reader.next(fields)) rows.push_back(fields);
  REQUIRE(!rows.empty());
  REQUIRE(rows.front() == std::vector<std::string>{"sp_id", "rp_id", "seeker_post", "response_post",
                                                   "level", "rationales"});
  rows.erase(rows.begin());
  return rows;
}

/// The longest part of a template that no slot can change.
std::string_view fixed_part(std::string_view line) {
  std::string_view best;
  while (!line.empty()) {
    std::size_t const open = line.find('{');
    std::string_view const part = line.substr(0, open);
    if (part.size() > best.size()) best = part;
    if (open == std::string_view::npos) break;
    line.remove_prefix(line.find('}', open) + 1);
  }
  return best;
}

bool has_any(std::string const& text, Lines const& lines) {
  for (std::string_view const line : lines) {
    if (text.find(fixed_part(line)) != std::string::npos) return true;
  }
  return false;
}

std::map<std::string, std::string> conversations(std::vector<Row> const& rows) {
  std::map<std::string, std::string> out;
  for (Row const& row : rows) out[row.id] += row.utterance + "\n";
  return out;
}

}  // namespace

TEST_CASE("corpus: every situation names exactly one topic and every slot is known",
          "[corpus][unit]") {
  REQUIRE(emotions().size() == 32);
  std::set<std::string_view> names;
  for (Emotion const& emotion : emotions()) {
    names.insert(emotion.name);
    for (std::string_view const situation : emotion.situations) {
      INFO(situation);
      std::size_t topic_slots = 0;
      for (Topic const& topic : topics()) {
        std::string const slot = "{" + std::string(topic.name) + "}";
        if (situation.find(slot) != std::string_view::npos) ++topic_slots;
      }
      CHECK(topic_slots == 1);
      CHECK(situation.find(',') != 0);
      emprl::RandomSequence random(1, emprl::Stream::corpus);
      detail::Scene scene = detail::begin_scene(random, emotion);
      std::string const text = detail::fill(random, scene, situation);
      CHECK(text.find('{') == std::string::npos);
      REQUIRE(scene.topic != nullptr);
      CHECK(!scene.noun.empty());
    }
  }
  CHECK(names.size() == 32);
}

TEST_CASE("corpus: polish capitalises sentences and chooses an before vowels", "[corpus][unit]") {
  CHECK(detail::polish("a apple. you ate a pear? a old one") ==
        "An apple. You ate a pear? An old one");
  CHECK(detail::polish("") == "");
}

TEST_CASE("corpus: a composed response has exactly the levels that were asked for",
          "[corpus][unit]") {
  emprl::RandomSequence random(7, emprl::Stream::corpus);
  for (int round = 0; round < 2000; ++round) {
    Emotion const& emotion = emotions()[static_cast<std::size_t>(round) % emotions().size()];
    detail::Scene scene = detail::begin_scene(random, emotion);
    detail::fill(random, scene, emotion.situations[static_cast<std::size_t>(round) % 5]);
    Levels const levels{static_cast<int>(random.below(3)), static_cast<int>(random.below(3)),
                        static_cast<int>(random.below(3))};
    Act const act = static_cast<Act>(random.below(5));
    std::string const text = compose(random, scene, levels, act, 0.5).text;
    INFO(text);
    REQUIRE(!text.empty());
    CHECK(has_any(text, detail::reactions(emotion.group, 1)) == (levels[0] == 1));
    CHECK(has_any(text, detail::reactions(emotion.group, 2)) == (levels[0] == 2));
    CHECK(has_any(text, detail::weak_interpretations()) == (levels[1] == 1));
    bool const strong = has_any(text, detail::inferences()) || has_any(text, scene.topic->shared);
    CHECK(strong == (levels[1] == 2));
    CHECK(has_any(text, detail::weak_explorations()) == (levels[2] == 1));
    CHECK((text.find('?') != std::string::npos) == (levels[2] > 0));
  }
}

TEST_CASE("corpus: dialogues come in the official layout with all 32 emotions and known levels",
          "[corpus][unit]") {
  TemporaryFolder folder("corpus_dialogues");
  CorpusConfig config;
  auto const counts = write_corpus(folder.path(), config);
  CHECK(counts.dialogues == std::array<index_t, 3>{2400, 300, 300});
  CHECK(counts.pairs > 6500);

  std::map<std::pair<std::string, int>, std::string> utterances;
  std::set<std::string> whole;
  std::map<std::string, std::string> opening_split;
  index_t pairs = 0;
  for (std::string_view const split : split_names) {
    auto const rows = read_dialogues(folder.path() / "dialogues" / (std::string(split) + ".csv"));
    std::set<std::string> seen;
    int expected = 1;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      Row const& row = rows[i];
      expected = i > 0 && rows[i - 1].id == row.id ? expected + 1 : 1;
      CHECK(row.index == expected);
      CHECK(row.index <= 6);
      CHECK(row.speaker == (row.index % 2 == 1 ? "0" : "1"));
      CHECK(!row.prompt.empty());
      CHECK(!row.utterance.empty());
      seen.insert(row.emotion);
      if (row.index % 2 == 0) ++pairs;
      utterances[{row.id, row.index}] = row.utterance;
      if (row.index == 1) {
        auto const at = opening_split.try_emplace(row.utterance, split).first;
        CHECK(at->second == split);
      }
    }
    CHECK(seen.size() == 32);
    for (auto const& [id, text] : conversations(rows)) CHECK(whole.insert(text).second);
  }
  CHECK(whole.size() == 3000);
  CHECK(pairs == counts.pairs);

  // The side file names the levels of every listener's turn, one line each.
  std::istringstream lines(emprl::io::read_file(folder.path() / "dialogues" / "levels.jsonl"));
  std::string line;
  std::array<std::array<index_t, 3>, 3> marginals{};
  std::map<std::string, index_t> likely_triples;
  index_t n = 0;
  while (std::getline(lines, line)) {
    auto const field = [&](std::string const& key, std::size_t from) {
      std::size_t const at = line.find("\"" + key + "\": ", from);
      REQUIRE(at != std::string::npos);
      return line.substr(at + key.size() + 4);
    };
    std::string const id = field("conv_id", 0).substr(1, field("conv_id", 0).find('"', 1) - 1);
    int const index = std::stoi(field("utterance_idx", 0));
    REQUIRE(utterances.count({id, index}) == 1);
    std::size_t const levels = line.find("\"levels\"");
    std::array<std::string, 3> const keys{"er", "ip", "ex"};
    for (std::size_t k = 0; k < 3; ++k) {
      int const level = std::stoi(field(keys[k], levels));
      REQUIRE((level >= 0 && level <= 2));
      ++marginals[k][static_cast<std::size_t>(level)];
    }
    bool const asks = utterances[{id, index}].find('?') != std::string::npos;
    CHECK(asks == (std::stoi(field("ex", levels)) > 0));
    ++likely_triples[line.substr(line.find("\"likely\""))];
    ++n;
  }
  CHECK(n == counts.pairs);
  for (auto const& mechanism : marginals) {
    for (index_t const count : mechanism) CHECK(count * 100 >= n * 12);
  }
  // What alignment can gain: contexts have likely levels, and no triple is likely everywhere.
  CHECK(counts.mode_share > 0.55);
  CHECK(counts.mode_share < 0.70);
  CHECK(likely_triples.size() > 12);
  for (auto const& [triple, count] : likely_triples) {
    INFO(triple);
    CHECK(count * 100 < n * 20);
  }
}

TEST_CASE("corpus: posts are quoted, shared by the mechanisms, grouped by seeker and balanced",
          "[corpus][unit]") {
  TemporaryFolder folder("corpus_posts");
  CorpusConfig config;
  config.dialogues = 10;
  write_corpus(folder.path(), config);
  std::vector<std::vector<std::string>> first;
  for (std::string_view const mechanism : mechanism_names) {
    auto const rows =
        read_posts(folder.path() / "empathy" / (std::string(mechanism) + "-reddit.csv"));
    REQUIRE(rows.size() == 900);
    std::map<std::string, int> by_seeker;
    std::array<int, 3> levels{};
    int newlines = 0, quotes = 0;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      REQUIRE(rows[i].size() == 6);
      ++by_seeker[rows[i][0]];
      int const level = std::stoi(rows[i][4]);
      REQUIRE((level >= 0 && level <= 2));
      ++levels[static_cast<std::size_t>(level)];
      newlines += rows[i][2].find('\n') != std::string::npos ? 1 : 0;
      quotes += rows[i][2].find('"') != std::string::npos ? 1 : 0;
      if (level == 0) CHECK(rows[i][5].empty());
      if (!first.empty()) {
        for (std::size_t c = 0; c < 4; ++c) CHECK(rows[i][c] == first[i][c]);
      }
    }
    for (int const count : levels) CHECK(count >= 108);
    CHECK(newlines > 50);
    CHECK(quotes > 50);
    CHECK(by_seeker.size() > 300);
    CHECK(by_seeker.size() < 700);
    if (first.empty()) first = rows;
  }
}

TEST_CASE("corpus: the readers of the real data sets read it without a warning", "[corpus][unit]") {
  TemporaryFolder folder("corpus_readers");
  CorpusConfig config;
  config.dialogues = 400;
  config.posts = 200;
  auto const counts = write_corpus(folder.path(), config);
  index_t pairs = 0;
  for (std::string_view const split : split_names) {
    auto const read = emprl::data::read_empathetic_dialogues(folder.path() / "dialogues" /
                                                             (std::string(split) + ".csv"));
    CHECK(read.warnings.empty());
    for (auto const& conversation : read.conversations) {
      CHECK(emprl::data::emotion_index(conversation.emotion).has_value());
    }
    pairs += static_cast<index_t>(emprl::data::listener_pairs(read).size());
  }
  CHECK(pairs == counts.pairs);
  for (std::string_view const mechanism : mechanism_names) {
    fs::path const file = folder.path() / "empathy" / (std::string(mechanism) + "-reddit.csv");
    CHECK(emprl::data::read_posts(file).size() == 200);
  }
}

TEST_CASE("corpus: label noise replaces about the asked share of the posts' levels",
          "[corpus][unit]") {
  TemporaryFolder folder("corpus_noise");
  CorpusConfig config;
  config.dialogues = 10;
  config.posts = 3000;
  write_corpus(folder.path(), config);
  auto const rows = read_posts(folder.path() / "empathy" / "explorations-reddit.csv");
  int wrong = 0;
  for (auto const& row : rows) {
    int true_level = row[3].find('?') == std::string::npos ? 0 : 2;
    if (has_any(row[3], detail::weak_explorations())) true_level = 1;
    wrong += true_level != std::stoi(row[4]) ? 1 : 0;
  }
  CHECK(wrong > 60);
  CHECK(wrong < 180);
}

TEST_CASE("corpus: the same seed writes the same bytes and another seed does not",
          "[corpus][unit]") {
  TemporaryFolder a("corpus_seed_a"), b("corpus_seed_b"), c("corpus_seed_c");
  CorpusConfig config;
  config.dialogues = 120;
  config.posts = 60;
  write_corpus(a.path(), config);
  write_corpus(b.path(), config);
  config.seed = 2;
  write_corpus(c.path(), config);
  int files = 0;
  for (auto const& entry : fs::recursive_directory_iterator(a.path())) {
    if (!entry.is_regular_file()) continue;
    ++files;
    fs::path const relative = fs::relative(entry.path(), a.path());
    std::string const bytes = emprl::io::read_file(entry.path());
    CHECK(bytes == emprl::io::read_file(b.path() / relative));
    CHECK(bytes != emprl::io::read_file(c.path() / relative));
  }
  CHECK(files == 8);
  CHECK(emprl::io::read_file(a.path() / "README.txt").find("synthetic") != std::string::npos);
}

TEST_CASE("corpus: settings out of range and an output below a file are refused",
          "[corpus][unit]") {
  TemporaryFolder folder("corpus_errors");
  CorpusConfig config;
  config.dialogues = 5;
  CHECK_THROWS_AS(write_corpus(folder.path(), config), emprl::ConfigError);
  CHECK(fs::is_empty(folder.path()));
  config = {};
  config.label_noise = 1.5;
  CHECK_THROWS_AS(write_corpus(folder.path(), config), emprl::ConfigError);
  config = {};
  config.dialogues = 10;
  fs::path const file = folder.path() / "file";
  std::ofstream(file) << "mine\n";
  CHECK_THROWS_AS(write_corpus(file / "below", config), emprl::IoError);
  CHECK(emprl::io::read_file(file) == "mine\n");
}
