// SPDX-License-Identifier: Apache-2.0
#include "emprl/train/checkpoint.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "io/temporary_folder.hpp"
#include "support/catch.hpp"

namespace {

using namespace emprl;
namespace fs = std::filesystem;
using train::find_checkpoint;
using train::save_checkpoint;

/// Two files and a folder that must agree: a mixture of two checkpoints would show.
void fill_with(fs::path const& folder, std::string const& text) {
  io::write_file_atomically(folder / "weights", std::string_view(text));
  fs::create_directory(folder / "tokenizer");
  std::ofstream(folder / "tokenizer" / "pieces") << text;
}

auto filler(std::string const& text) {
  return [text](fs::path const& folder) { fill_with(folder, text); };
}

/// The text of the checkpoint there; empty without one.
std::string load(fs::path const& folder) {
  auto const found = find_checkpoint(folder);
  if (!found) return {};
  std::string const text = test::slurp(*found / "weights");
  return test::slurp(*found / "tokenizer" / "pieces") == text ? text : "a mixture";
}

/// Runs `f` in a process of its own. @return its exit status
template <class F>
int exit_of_child(F&& f) {
  pid_t const child = ::fork();
  if (child == 0) ::_exit(f());
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/// Saves in a process that dies at the n-th point. @return whether it got there
bool save_and_die(fs::path const& folder, std::string const& text, int n) {
  return exit_of_child([&] {
           int passed = 0;
           auto const die = [&](std::string_view) {
             if (passed++ == n) ::_exit(9);
           };
           train::detail::save_checkpoint(
               folder,
               [&](fs::path const& path) {
                 io::write_file_atomically(path / "weights", std::string_view(text));
                 die("half filled");
                 fs::create_directory(path / "tokenizer");
                 std::ofstream(path / "tokenizer" / "pieces") << text;
               },
               die);
           return 0;
         }) == 9;
}

}  // namespace

TEST_CASE("checkpoint: saved, found, and replaced", "[train][checkpoint][unit]") {
  test::TemporaryFolder const folder;
  auto const place = folder / "run/checkpoint";
  CHECK_FALSE(find_checkpoint(place));
  save_checkpoint(place, filler("first"));
  CHECK(find_checkpoint(place) == place);
  CHECK(load(place) == "first");
  save_checkpoint(fs::path(place.string() + "/"), filler("second"));
  CHECK(load(place) == "second");
  CHECK(std::distance(fs::directory_iterator(folder / "run"), fs::directory_iterator()) == 1);
}

TEST_CASE("checkpoint: a process that dies between any two steps leaves the old one or the new one",
          "[train][checkpoint][unit]") {
  int points = 0;
  bool old_seen = false;
  bool new_seen = false;
  for (bool reached = true; reached; ++points) {
    test::TemporaryFolder const folder;
    auto const place = folder / "checkpoint";
    save_checkpoint(place, filler("old"));
    reached = save_and_die(place, "new", points);
    // It can be loaded at once,
    std::string const text = load(place);
    CAPTURE(points, text);
    CHECK((text == "old" || text == "new"));
    old_seen = old_seen || text == "old";
    new_seen = new_seen || text == "new";
    // and the next save goes through and leaves nothing else behind.
    save_checkpoint(place, filler("next"));
    CHECK(load(place) == "next");
    CHECK(folder.entries() == 1);
  }
  CHECK(points > 10);
  CHECK(old_seen);
  CHECK(new_seen);
}

TEST_CASE("checkpoint: deaths in a row, each saving over the last, lose nothing",
          "[train][checkpoint][unit]") {
  test::TemporaryFolder const folder;
  auto const place = folder / "checkpoint";
  save_checkpoint(place, filler("0"));
  int newest = 0;
  for (int first = 0; first < 12; ++first) {
    for (int second = 0; second < 12; ++second) {
      // No look between the two: the second save has to put right what the first left.
      save_and_die(place, std::to_string(newest + 1), first);
      save_and_die(place, std::to_string(newest + 2), second);
      std::string const text = load(place);
      REQUIRE_FALSE(text.empty());
      int const now = std::stoi(text);
      CHECK(now >= newest);
      newest = now + 2;
      save_checkpoint(place, filler(std::to_string(newest)));
      CHECK(folder.entries() == 1);
    }
  }
}

TEST_CASE("checkpoint: a first save that dies leaves none or a whole one",
          "[train][checkpoint][unit]") {
  for (int point = 0; point < 14; ++point) {
    test::TemporaryFolder const folder;
    auto const place = folder / "checkpoint";
    save_and_die(place, "new", point);
    std::string const text = load(place);
    CHECK((text.empty() || text == "new"));
  }
}

TEST_CASE("checkpoint: on a full disk the old one stays", "[train][checkpoint][unit]") {
  test::TemporaryFolder const folder;
  auto const place = folder / "checkpoint";
  save_checkpoint(place, filler("old"));
  CHECK(exit_of_child([&] {
          test::FullDisk const full(1000);
          try {
            save_checkpoint(place, filler(std::string(5000, 'n')));
          } catch (IoError const&) {
            return 7;
          }
          return 1;
        }) == 7);
  CHECK(load(place) == "old");
  CHECK(folder.entries() == 1);
}

TEST_CASE("checkpoint: an error while filling passes through and changes nothing",
          "[train][checkpoint][unit]") {
  test::TemporaryFolder const folder;
  auto const place = folder / "checkpoint";
  auto const failing = [](fs::path const& path) {
    fill_with(path, "half");
    throw std::runtime_error("no weights");
  };
  CHECK_THROWS_AS(save_checkpoint(place, failing), std::runtime_error);
  CHECK(folder.entries() == 0);
  save_checkpoint(place, filler("old"));
  CHECK_THROWS_AS(save_checkpoint(place, failing), std::runtime_error);
  CHECK(load(place) == "old");
  CHECK(folder.entries() == 1);
}

TEST_CASE("checkpoint: a folder that is not one is never replaced", "[train][checkpoint][unit]") {
  test::TemporaryFolder const folder;
  folder.put("mine/thesis", "dear");
  CHECK(test::message_of<IoError>([&] {
          save_checkpoint(folder / "mine", filler("new"));
        }).find("is there and is not a checkpoint") != std::string::npos);
  CHECK_FALSE(find_checkpoint(folder / "mine"));
  CHECK(test::slurp(folder / "mine/thesis") == "dear");

  save_checkpoint(folder / "run", filler("old"));
  folder.put("run.old/thesis", "dear");
  CHECK_THROWS_AS(save_checkpoint(folder / "run", filler("new")), IoError);
  CHECK(test::slurp(folder / "run.old/thesis") == "dear");
  CHECK(load(folder / "run") == "old");
  CHECK(folder.entries() == 3);
}

TEST_CASE("checkpoint: an empty folder is taken, and a link stays a link",
          "[train][checkpoint][unit]") {
  test::TemporaryFolder const folder;
  fs::create_directory(folder / "empty");
  save_checkpoint(folder / "empty", filler("new"));
  CHECK(load(folder / "empty") == "new");
  fs::create_directory_symlink(folder / "empty", folder / "link");
  save_checkpoint(folder / "link", filler("newer"));
  CHECK(fs::is_symlink(folder / "link"));
  CHECK(load(folder / "empty") == "newer");
  CHECK(load(folder / "link") == "newer");
}

TEST_CASE("checkpoint: what a living process writes, and names alike, are left alone",
          "[train][checkpoint][unit]") {
  test::TemporaryFolder const folder;
  std::string const living = "run.tmp-" + std::to_string(::getppid());
  for (std::string const& name : {living, std::string("run.tmp-notes"), std::string("run.tmp-"),
                                  std::string("other.tmp-999999999")}) {
    folder.put(name + "/file", "x");
  }
  // No process has a number that high.
  folder.put("run.tmp-999999999/file", "x");
  folder.put("run.tmp-999999998-old/complete", "x");
  save_checkpoint(folder / "run", filler("new"));
  CHECK(fs::exists(folder / living));
  CHECK(fs::exists(folder / "run.tmp-notes"));
  CHECK(fs::exists(folder / "run.tmp-"));
  CHECK(fs::exists(folder / "other.tmp-999999999"));
  CHECK_FALSE(fs::exists(folder / "run.tmp-999999999"));
  CHECK_FALSE(fs::exists(folder / "run.tmp-999999998-old"));
}

TEMPLATE_TEST_CASE("checkpoint: an optimiser taken up goes on bit for bit",
                   "[train][checkpoint][unit]", float, double) {
  using T = TestType;
  test::TemporaryFolder const folder;
  Cpu dev;
  std::vector<T> p(97), g(97);
  auto const step = [&](auto& optimizer, int k) {
    for (std::size_t i = 0; i < p.size(); ++i) {
      g[i] = static_cast<T>(std::sin(0.37 * static_cast<double>(i) + k));
    }
    optimizer.step(dev, 1e-2);
  };
  optim::AdamWConfig const config;
  optim::AdamW<T> whole(config, std::span<T>(p), std::span<T>(g));
  for (int k = 0; k < 5; ++k) step(whole, k);
  train::write_optimizer(folder.path(), whole);
  auto const saved = p;
  for (int k = 5; k < 9; ++k) step(whole, k);
  auto const expected = p;

  p = saved;
  optim::AdamW<T> resumed(config, std::span<T>(p), std::span<T>(g));
  train::read_optimizer(folder.path(), resumed);
  CHECK(resumed.steps() == 5);
  for (int k = 5; k < 9; ++k) step(resumed, k);
  CHECK(p == expected);
}

TEST_CASE("checkpoint: an optimiser of another size or type is refused",
          "[train][checkpoint][unit]") {
  test::TemporaryFolder const folder;
  std::vector<float> p(8), g(8);
  optim::AdamW<float> const small({}, std::span<float>(p), std::span<float>(g));
  train::write_optimizer(folder.path(), small, "policy.safetensors");

  std::vector<float> p9(9), g9(9);
  optim::AdamW<float> larger({}, std::span<float>(p9), std::span<float>(g9));
  CHECK(test::message_of<IoError>([&] {
          train::read_optimizer(folder.path(), larger, "policy.safetensors");
        }).find("shape [8] where shape [9]") != std::string::npos);
  std::vector<double> d(8), dg(8);
  optim::AdamW<double> other({}, std::span<double>(d), std::span<double>(dg));
  CHECK(test::message_of<IoError>([&] {
          train::read_optimizer(folder.path(), other, "policy.safetensors");
        }).find("of type F32 where F64 was expected") != std::string::npos);
  CHECK_THROWS_AS(train::read_optimizer(folder.path(), other), IoError);
}

TEST_CASE("checkpoint: the numbers of a trainer come back bit for bit",
          "[train][checkpoint][unit]") {
  test::TemporaryFolder const folder;
  train::TrainerState state;
  state.numbers["step"] = 1'000'000'000'000;
  state.numbers["seed"] = std::numeric_limits<std::uint64_t>::max();
  state.numbers["kl"] = {0.1, 1.0 / 3.0, 5e-324, -0.0, 1.7976931348623157e308};
  train::write_trainer_state(folder.path(), state);
  auto const read = train::read_trainer_state(folder.path());
  CHECK(read.numbers == state.numbers);
  CHECK(read.numbers["seed"].get<std::uint64_t>() == std::numeric_limits<std::uint64_t>::max());
  CHECK(std::signbit(read.numbers["kl"][3].get<double>()));

  state.numbers["kl"] = std::numeric_limits<double>::quiet_NaN();
  CHECK_THROWS_AS(train::write_trainer_state(folder.path(), state), Error);
  CHECK(train::read_trainer_state(folder.path()).numbers == read.numbers);
}

TEST_CASE("checkpoint: a run goes on with its own state, and another is told the first difference",
          "[train][checkpoint][unit]") {
  test::TemporaryFolder const folder;
  io::Json const identity{{"phase", "align"},
                          {"seed", 42},
                          {"ppo", {{"learning_rate", 0.1}, {"epochs", 4}}},
                          {"barred", {1, 2}}};
  train::write_run_state(folder.path(), identity, {{"step", 7}});
  CHECK(train::read_run_state(folder.path(), identity) == io::Json{{"step", 7}});

  auto const message = [&](auto change) {
    io::Json other = identity;
    change(other);
    return test::message_of<ConfigError>(
        [&] { static_cast<void>(train::read_run_state(folder.path(), other)); });
  };
  auto const says = [](std::string const& text, std::string const& part) {
    CAPTURE(text, part);
    CHECK(text.find(part) != std::string::npos);
  };
  says(message([](io::Json& j) { j["seed"] = 43; }), "seed is 42 there and 43 here");
  says(message([](io::Json& j) { j["seed"] = 43; }), folder.path().string());
  // The first of several, in the order in which the run names them.
  says(message([](io::Json& j) {
         j["barred"] = {1, 3};
         j["ppo"]["epochs"] = 5;
       }),
       "ppo.epochs is 4 there and 5 here");
  says(message([](io::Json& j) { j["ppo"]["learning_rate"] = std::nextafter(0.1, 1.0); }),
       "ppo.learning_rate is 0.1 there and 0.10000000000000002 here");
  says(message([](io::Json& j) { j["barred"] = {1, 3}; }), "barred is [1,2] there and [1,3] here");
  says(message([](io::Json& j) { j["decay"] = "linear"; }),
       "decay is not recorded there and \"linear\" here");
  says(message([](io::Json& j) { j.erase("barred"); }), "barred is [1,2] there and not set here");
  says(message([](io::Json& j) { j["ppo"] = 3; }), "ppo is {");

  train::write_trainer_state(folder.path(), {});
  CHECK(test::message_of<IoError>([&] {
          static_cast<void>(train::read_run_state(folder.path(), identity));
        }).find("state.json: this is not the state of a run") != std::string::npos);
}

TEST_CASE("checkpoint: discarding takes a checkpoint and nothing else",
          "[train][checkpoint][unit]") {
  test::TemporaryFolder const folder;
  save_checkpoint(folder / "run", filler("old"));
  fs::rename(folder / "run", folder / "run.old");
  save_checkpoint(folder / "saved", filler("new"));
  folder.put("mine/thesis", "dear");
  for (char const* name : {"run", "saved", "mine", "nowhere"}) {
    train::discard_checkpoint(folder / name);
  }
  CHECK(folder.entries() == 1);
  CHECK(test::slurp(folder / "mine/thesis") == "dear");
}
