// SPDX-License-Identifier: Apache-2.0
#include "emprl/train/checkpoint_series.hpp"

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "emprl/core/rng.hpp"
#include "io/temporary_folder.hpp"
#include "support/catch.hpp"

namespace {

using namespace emprl;
namespace fs = std::filesystem;
using train::CheckpointEntry;
using train::CheckpointSeries;
using Steps = std::vector<index_t>;

/// Files of a step, of a length of its own: a mixture of two steps would show.
std::string content(index_t step, std::string_view file, std::string const& version = {}) {
  std::string const line = std::string(file) + " of step " + std::to_string(step) + version + "\n";
  std::string text;
  for (index_t i = 0; i < 200 + 37 * (step % 11); ++i) text += line;
  return text;
}

void fill_with(fs::path const& folder, index_t step, std::string const& version = {}) {
  io::write_file_atomically(folder / "weights", content(step, "weights", version));
  fs::create_directory(folder / "tokenizer");
  std::ofstream(folder / "tokenizer" / "pieces") << content(step, "pieces", version);
}

auto filler(index_t step) {
  return [step](fs::path const& folder) { fill_with(folder, step); };
}

bool is_whole(fs::path const& folder, index_t step, std::string const& version = {}) {
  return test::slurp(folder / "weights") == content(step, "weights", version) &&
         test::slurp(folder / "tokenizer" / "pieces") == content(step, "pieces", version);
}

bool is_whole(CheckpointEntry const& entry) {
  return is_whole(entry.folder, entry.step);
}

Steps steps_of(CheckpointSeries const& series) {
  Steps steps;
  for (CheckpointEntry const& entry : series.entries()) steps.push_back(entry.step);
  return steps;
}

std::ptrdiff_t entries_of(fs::path const& folder) {
  return std::distance(fs::directory_iterator(folder), fs::directory_iterator());
}

/// Saves in a process that dies at the n-th point. @return whether it got there
bool save_and_die(fs::path const& folder, index_t step, std::optional<double> score, int n,
                  std::string const& version = {}) {
  pid_t const child = ::fork();
  if (child == 0) {
    int passed = 0;
    auto const die = [&](std::string_view) {
      if (passed++ == n) ::_exit(9);
    };
    auto const fill = [&](fs::path const& path) {
      io::write_file_atomically(path / "weights", content(step, "weights", version));
      die("half filled");
      fs::create_directory(path / "tokenizer");
      std::ofstream(path / "tokenizer" / "pieces") << content(step, "pieces", version);
    };
    train::detail::save_in_series(folder, {2, true}, step, score, fill, die);
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 9;
}

/// What a child that saves tells its parent; it stays when the child is killed.
struct Told {
  std::atomic<index_t> begun{0};
  std::atomic<index_t> done{0};
};

struct Shared {
  Shared() {
    void* const memory =
        ::mmap(nullptr, sizeof(Told), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("mmap failed");
    told = new (memory) Told;
  }
  Shared(Shared const&) = delete;
  Shared& operator=(Shared const&) = delete;
  ~Shared() { ::munmap(told, sizeof(Told)); }
  Told* told = nullptr;
};

/// Fifty times a child saves one step after the other and is killed 0 to 30 ms after it began, or
/// after its first save; each goes on after the step that was found.
/// @param save  save(step)
/// @param found found() looks for the newest checkpoint, checks it, and returns its step
/// @return how many kills fell inside a save
template <class Save, class Found>
int kill_fifty_times(std::uint64_t seed, Save save, Found found) {
  Shared const shared;
  RandomSequence random(seed, Stream::split);
  save(0);
  index_t newest = 0;
  int inside = 0;
  for (int kill = 0; kill < 50; ++kill) {
    shared.told->begun = shared.told->done = newest;
    pid_t const child = ::fork();
    if (child == 0) {
      ::alarm(60);  // should the parent be gone
      try {
        for (index_t step = newest + 1;; ++step) {
          shared.told->begun = step;
          save(step);
          shared.told->done = step;
        }
      } catch (...) {
        ::_exit(1);
      }
    }
    // After one save or none, so that the run gets on also where the disk is slow.
    index_t const at_least = newest + random.below(2);
    for (int wait = 0; wait < 10000 && shared.told->done < at_least; ++wait) ::usleep(500);
    ::usleep(static_cast<useconds_t>(random.below(30001)));
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    CAPTURE(kill, status);
    REQUIRE((WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL));
    index_t const begun = shared.told->begun;
    index_t const done = shared.told->done;
    if (begun != done) ++inside;
    CAPTURE(newest, begun, done);
    newest = found();
    // Nothing that a save had promised is lost, and nothing is there that none wrote.
    REQUIRE(newest >= done);
    REQUIRE(newest <= begun);
  }
  CHECK(newest > 10);
  return inside;
}

}  // namespace

TEST_CASE("checkpoint series: the last two stay and the best, by number and not by name",
          "[train][checkpoint][unit]") {
  test::TemporaryFolder const folder;
  CheckpointSeries const series(folder / "run/checkpoint/");
  CHECK(series.entries().empty());
  CHECK_FALSE(series.newest());
  CHECK_FALSE(series.best());
  series.save(50, 0.7, filler(50));
  CHECK(series.newest()->folder.filename() == "step-000050");
  series.save(999998, 0.2, filler(999998));
  series.save(999999, std::nullopt, filler(999999));
  CHECK(steps_of(series) == Steps{50, 999998, 999999});
  // Its name comes before that of step 999999 in the order of letters.
  series.save(1000000, 0.3, filler(1000000));
  CHECK(steps_of(series) == Steps{50, 999999, 1000000});
  CHECK(series.newest()->step == 1000000);
  CHECK(series.newest()->score == 0.3);
  CHECK_FALSE(series.entries()[1].score);
  CHECK(series.best()->step == 50);
  CHECK(series.best()->score == 0.7);
  for (CheckpointEntry const& entry : series.entries()) CHECK(is_whole(entry));
  // The best is not counted twice.
  series.save(1000001, 0.9, filler(1000001));
  CHECK(steps_of(series) == Steps{1000000, 1000001});
  CHECK(entries_of(folder / "run/checkpoint") == 2);
  series.discard();
  CHECK(entries_of(folder / "run") == 0);
}

TEST_CASE("checkpoint series: of equal scores the first is the best, and without a score none is",
          "[train][checkpoint][unit]") {
  test::TemporaryFolder const folder;
  CheckpointSeries const series(folder / "run", {1, true});
  series.save(1, std::nullopt, filler(1));
  CHECK_FALSE(series.best());
  series.save(2, -0.5, filler(2));
  series.save(3, -0.5, filler(3));
  series.save(4, std::nullopt, filler(4));
  CHECK(steps_of(series) == Steps{2, 4});
  CHECK(series.best()->step == 2);
  series.save(5, std::nextafter(-0.5, 0.0), filler(5));
  CHECK(steps_of(series) == Steps{5});

  CheckpointSeries const newest_only(folder / "other", {3, false});
  for (index_t const step : {1, 2, 3, 4, 5}) newest_only.save(step, 0.5, filler(step));
  CHECK(steps_of(newest_only) == Steps{3, 4, 5});
}

TEST_CASE(
    "checkpoint series: a process that dies at any point loses neither the newest nor the best",
    "[train][checkpoint][unit]") {
  int points = 0;
  bool old_seen = false;
  bool new_seen = false;
  for (bool reached = true; reached; ++points) {
    test::TemporaryFolder const folder;
    CheckpointSeries const series(folder / "run");
    for (auto const& [step, score] : {std::pair{10, 0.9}, std::pair{20, 0.1}, std::pair{30, 0.2}}) {
      series.save(step, score, filler(step));
    }
    reached = save_and_die(folder / "run", 40, 0.3, points);
    CAPTURE(points);
    index_t const newest = series.newest()->step;
    CHECK((newest == 30 || newest == 40));
    old_seen = old_seen || newest == 30;
    new_seen = new_seen || newest == 40;
    CHECK(series.best()->step == 10);
    for (CheckpointEntry const& entry : series.entries()) CHECK(is_whole(entry));
    Steps const steps = steps_of(series);
    if (newest == 30) CHECK(steps == Steps{10, 20, 30});
    if (newest == 40) CHECK((steps == Steps{10, 20, 30, 40} || steps == Steps{10, 30, 40}));
    // The next save leaves the last two and the best, and nothing half-written.
    series.save(50, 0.4, filler(50));
    CHECK(steps_of(series) == Steps{10, newest, 50});
    CHECK(entries_of(folder / "run") == 3);
  }
  CHECK(points > 15);
  CHECK(old_seen);
  CHECK(new_seen);
}

TEST_CASE(
    "checkpoint series: a step that is saved again is the old one or the new one after a death",
    "[train][checkpoint][unit]") {
  bool old_seen = false;
  bool new_seen = false;
  int points = 0;
  for (bool reached = true; reached; ++points) {
    test::TemporaryFolder const folder;
    CheckpointSeries const series(folder / "run");
    series.save(20, 0.5, filler(20));
    series.save(30, 0.2, filler(30));
    reached = save_and_die(folder / "run", 30, 0.7, points, ", again");
    CAPTURE(points);
    auto const newest = series.newest();
    REQUIRE(newest->step == 30);
    bool const again = newest->score == 0.7;
    CHECK(is_whole(newest->folder, 30, again ? ", again" : ""));
    CHECK(series.best()->step == (again ? 30 : 20));
    old_seen = old_seen || !again;
    new_seen = new_seen || again;
    if (points % 2 == 0) {
      series.save(40, 0.1, filler(40));
      CHECK(steps_of(series) == (again ? Steps{30, 40} : Steps{20, 30, 40}));
      CHECK(entries_of(folder / "run") == (again ? 2 : 3));
    }
    series.discard();
    CHECK(folder.entries() == 0);
  }
  CHECK(old_seen);
  CHECK(new_seen);
}

TEST_CASE("checkpoint series: what is not a checkpoint of its own stays",
          "[train][checkpoint][unit]") {
  test::TemporaryFolder const folder;
  std::vector<std::string> const foreign{"run/notes.txt",
                                         "run/step-12/thesis",
                                         "run/step-000012/thesis",
                                         "run/step-000013/complete",
                                         "run/step-000014/complete",
                                         "run/best/complete",
                                         "run/step-0000015/complete",
                                         "run/step-000016.tmp-notes",
                                         "run/step-000017.tmp-9/thesis.txt",
                                         "run/step-000018.old/thesis"};
  for (std::string const& name : foreign) {
    // One of them seems to be written by a process that lives.
    std::string place = name;
    if (auto const at = place.find(".tmp-9"); at != std::string::npos) {
      place.replace(at, 6, ".tmp-" + std::to_string(::getppid()));
    }
    folder.put(place, "dear");
  }
  folder.put("run/step-000014/checkpoint.json", R"({"step": 99, "score": 5.0})");
  auto const before = entries_of(folder / "run");
  CheckpointSeries const series(folder / "run", {1, false});
  CHECK(series.entries().empty());
  for (index_t const step : {2, 3, 20, 30}) series.save(step, 0.5, filler(step));
  CHECK(steps_of(series) == Steps{30});
  CHECK(entries_of(folder / "run") == before + 1);
  series.discard();
  CHECK(entries_of(folder / "run") == before);
  for (char const* name : {"run/step-000012/thesis", "run/step-000013/complete",
                           "run/step-000014/complete", "run/step-000018.old/thesis"}) {
    CHECK(test::slurp(folder / name) == "dear");
  }
  // Nor is it replaced.
  for (index_t const step : {12, 13, 14, 18}) {
    CAPTURE(step);
    CHECK_THROWS_AS(series.save(step, 0.5, filler(step)), IoError);
  }
  CHECK(entries_of(folder / "run") == before);
}

TEST_CASE("checkpoint series: mistakes are sentences", "[train][checkpoint][unit]") {
  test::TemporaryFolder const folder;
  CheckpointSeries const series(folder / "run");
  series.save(20, 0.5, filler(20));
  CHECK(test::message_of<ConfigError>([&] {
          series.save(10, 0.5, filler(10));
        }).find("a checkpoint of step 10 cannot follow " + (folder / "run/step-000020").string()) ==
        0);
  CHECK(test::message_of<ConfigError>([&] {
          series.save(-1, 0.5, filler(1));
        }).find("must not be negative, but is -1") != std::string::npos);
  CHECK(test::message_of<ConfigError>([&] {
          CheckpointSeries(folder / "run", {0, true}).save(30, 0.5, filler(30));
        }).find("must be at least 1, but is 0") != std::string::npos);
  CHECK_THROWS_AS(series.save(30, std::numeric_limits<double>::quiet_NaN(), filler(30)), Error);
  CHECK(steps_of(series) == Steps{20});

  train::save_checkpoint(folder / "single", filler(1));
  CHECK(test::message_of<IoError>([&] {
          CheckpointSeries(folder / "single").newest();
        }).find("is one checkpoint") != std::string::npos);
  folder.put("run/step-000020/checkpoint.json", R"({"step": 20, "score": "high"})");
  CHECK(test::message_of<IoError>([&] { series.entries(); }).find("step-000020/checkpoint.json") !=
        std::string::npos);
}

TEST_CASE("checkpoint series: an error while filling, or a full disk, changes nothing",
          "[train][checkpoint][unit]") {
  test::TemporaryFolder const folder;
  CheckpointSeries const series(folder / "run", {1, true});
  series.save(1, 0.5, filler(1));
  CHECK_THROWS_AS(series.save(2, 0.9,
                              [](fs::path const& path) {
                                fill_with(path, 2);
                                throw std::runtime_error("no weights");
                              }),
                  std::runtime_error);
  auto const on_full_disk = [&] {
    test::FullDisk const full(1000);
    return test::message_of<IoError>([&] { series.save(2, 0.9, filler(2)); });
  };
  CHECK_FALSE(on_full_disk().empty());
  CHECK(steps_of(series) == Steps{1});
  CHECK(is_whole(*series.newest()));
  CHECK(entries_of(folder / "run") == 1);
}

TEST_CASE("checkpoint series: fifty kills at random moments lose nothing that a save had promised",
          "[train][checkpoint][kill]") {
  test::TemporaryFolder const folder;
  CheckpointSeries const series(folder / "run");
  auto const score = [](index_t step) { return static_cast<double>(step * 37 % 101); };
  auto const save = [&](index_t step) { series.save(step, score(step), filler(step)); };
  auto const found = [&] {
    auto const all = series.entries();
    REQUIRE_FALSE(all.empty());
    for (CheckpointEntry const& entry : all) REQUIRE(is_whole(entry));
    index_t const newest = series.newest()->step;
    // Every step up to the newest was saved: the best of them is known.
    index_t best = 0;
    for (index_t step = 1; step <= newest; ++step) {
      if (score(step) > score(best)) best = step;
    }
    REQUIRE(series.best()->step == best);
    return newest;
  };
  int const inside = kill_fifty_times(1, save, found);
  INFO(inside << " of 50 kills fell inside a save, " << series.newest()->step << " saves");
  CHECK(inside >= 25);
  save(series.newest()->step + 1);
  CHECK(entries_of(folder / "run") <= 3);
}

TEST_CASE("checkpoint: fifty kills at random moments leave the last one or the next",
          "[train][checkpoint][kill]") {
  test::TemporaryFolder const folder;
  auto const place = folder / "checkpoint";
  auto const save = [&](index_t step) {
    train::save_checkpoint(place, [&](fs::path const& path) {
      fill_with(path, step);
      io::write_file_atomically(path / "step", std::to_string(step));
    });
  };
  auto const found = [&] {
    auto const folder_found = train::find_checkpoint(place);
    REQUIRE(folder_found);
    index_t const step = std::stoll(test::slurp(*folder_found / "step"));
    REQUIRE(is_whole(*folder_found, step));
    return step;
  };
  int const inside = kill_fifty_times(2, save, found);
  INFO(inside << " of 50 kills fell inside a save, " << found() << " saves");
  CHECK(inside >= 25);
  save(found() + 1);
  CHECK(folder.entries() == 1);
}
