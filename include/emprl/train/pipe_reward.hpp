// SPDX-License-Identifier: Apache-2.0
#pragma once

// A reward that another program computes: a model in Python, a rule set in any language. It is
// started once and asked over pipes, one JSON object a line, UTF-8.
//
// For every episode it reads one request from standard input
//   {"id": 7, "episode": "file:3", "context": "...", "response": "...", "reference": "..."}
// and prints one answer to standard output, in any order within a batch:
//   {"id": 7, "score": 0.25}
//   {"id": 7, "score": 0.25, "components": {"fluency": 0.5, "length": -0.25}}
// After each `batch` requests (the last batch of a call may be smaller) no more come until all of
// them are answered. A program may thus answer line by line, as long as it flushes its output. The
// "id" of a request is a number of its own, never used again for another; "episode" is the name
// that messages use. Standard output is for answers alone; anything else belongs on standard error.
// The end of its input is the program's signal to leave.
//
// See examples/pipe_reward/reward.py.

#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/io/child_process.hpp"
#include "emprl/io/json.hpp"
#include "emprl/io/json_lines.hpp"
#include "emprl/io/utf8.hpp"
#include "emprl/rl/concepts.hpp"
#include "emprl/rl/types.hpp"

namespace emprl::train {

/// How to run a reward program.
struct PipeRewardSettings {
  /// What to run, by `sh -c`.
  std::string command = {};
  /// How long one batch of requests may take, the program's start included where it is its first.
  std::chrono::milliseconds timeout{60000};
  /// How often, in one call, a program that ended or was late is started again.
  int restarts = 1;
  /// Requests that are sent before their answers are waited for.
  index_t batch = 64;

  /// @throws ConfigError naming the setting
  void validate() const {
    expects<ConfigError>(!io::is_blank(command),
                         "command is empty; a reward program needs a command for the shell, such "
                         "as \"python3 reward.py\"");
    expects<ConfigError>(command.find('\0') == std::string::npos,
                         "command holds a zero byte, where the shell would stop reading");
    // The upper bound keeps a deadline within what a clock can count.
    expects<ConfigError>(timeout.count() > 0 && timeout <= std::chrono::hours(24 * 365),
                         "timeout is " + std::to_string(timeout.count()) +
                             " ms; it must be above 0 and at most a year");
    expects<ConfigError>(restarts >= 0,
                         "restarts is " + std::to_string(restarts) + "; it must not be below 0");
    expects<ConfigError>(batch >= 1,
                         "batch is " + std::to_string(batch) + "; it must be at least 1");
  }
};

/// A reward model that asks another program (protocol above).
///
///   train::PipeReward reward{{.command = "python3 examples/pipe_reward/reward.py"}};
///
/// The program is started by the first call that has an episode, and lives as long as this object
/// or until it fails. Bytes of an episode that are not UTF-8 reach it as U+FFFD. Components are
/// recorded in the score log, so all answers of a call must have the same ones.
///
/// A program that ends or is late is started again, up to `restarts` times a call, and gets the
/// batch anew: its answers should not depend on what it was asked before. An answer that breaks the
/// protocol is an error at once, for it would be broken again.
class PipeReward {
 public:
  /// @throws ConfigError if a setting is out of range
  explicit PipeReward(PipeRewardSettings settings) : settings_(std::move(settings)) {
    settings_.validate();
  }

  /// @throws IoError naming the command, the episode, what was found, and the program's last words
  void operator()(rl::EpisodeBatch const& episodes, std::span<float> scores, rl::ScoreLog& log) {
    expects(scores.size() == episodes.size(), "a reward has one score an episode");
    std::vector<Component> parts;
    int restarts_left = settings_.restarts;
    std::size_t const step = static_cast<std::size_t>(settings_.batch);
    for (std::size_t first = 0; first < episodes.size(); first += step) {
      auto const batch = episodes.episodes.subspan(
          first, step < episodes.size() - first ? step : episodes.size() - first);
      auto const answers = ask_patiently(batch, restarts_left);
      for (std::size_t i = 0; i < batch.size(); ++i) {
        scores[first + i] = answers[i].score;
        if (first + i == 0) {
          for (auto const& [name, value] : answers[i].parts) {
            parts.push_back({name, std::vector<float>(episodes.size())});
          }
        }
        keep_parts(answers[i], batch[i], first + i, parts);
      }
    }
    for (Component const& part : parts) log.add(part.name, part.values);
  }

  PipeRewardSettings const& settings() const { return settings_; }

 private:
  struct Component {
    std::string name;
    std::vector<float> values;
  };

  struct Answer {
    float score = 0;
    std::vector<std::pair<std::string, float>> parts;
  };

  using Episodes = std::span<rl::Episode const>;

  // Answers to one batch, with restarts. A program that failed in any way is not asked again: what
  // it has still to say would be taken for something else.
  std::vector<Answer> ask_patiently(Episodes batch, int& restarts_left) {
    for (;;) {
      std::vector<std::optional<Answer>> answers(batch.size());
      try {
        ask(batch, answers);
        std::vector<Answer> out;
        for (auto& answer : answers) out.push_back(std::move(*answer));
        next_id_ += static_cast<std::int64_t>(batch.size());
        return out;
      } catch (io::ChildEnded const& error) {
        child_.reset();
        if (restarts_left == 0) throw_failed("failed", error.what(), batch, answers);
      } catch (io::ChildTimedOut const& error) {
        child_.reset();
        if (restarts_left == 0) {
          throw_failed("exceeded its timeout of " + std::to_string(settings_.timeout.count()) +
                           " ms for a batch",
                       error.what(), batch, answers);
        }
      } catch (...) {
        child_.reset();
        throw;
      }
      --restarts_left;
    }
  }

  void ask(Episodes batch, std::vector<std::optional<Answer>>& answers) {
    auto const deadline = io::ChildProcess::Clock::now() + settings_.timeout;
    if (!child_) child_ = std::make_unique<io::ChildProcess>(settings_.command);
    for (std::size_t i = 0; i < batch.size(); ++i) {
      io::Json request;
      request["id"] = next_id_ + static_cast<std::int64_t>(i);
      request["episode"] = std::string(batch[i].id);
      request["context"] = std::string(batch[i].context);
      request["response"] = std::string(batch[i].response);
      request["reference"] = std::string(batch[i].reference);
      child_->write_line(io::to_json_line(request), deadline);
    }
    for (std::size_t n = 0; n < batch.size(); ++n) {
      take(child_->read_line(deadline), batch, answers);
    }
  }

  // Reads one answer into its place.
  void take(std::string const& line, Episodes batch, std::vector<std::optional<Answer>>& answers) {
    auto const refuse = [&](std::string const& what) { throw_refused(what, line, batch, answers); };
    io::Json value;
    try {
      value = io::parse_json(line, "its answer", io::DuplicateKeys::refuse);
    } catch (IoError const& error) {
      refuse(std::string(error.what()) +
             " One JSON object a line was expected, and JSON knows neither NaN nor Infinity; "
             "anything else belongs on standard error.");
    }
    if (!value.is_object()) refuse("An answer is a JSON object, {\"id\": ..., \"score\": ...}.");
    auto const id = value.find("id");
    if (id == value.end()) refuse("The answer has no \"id\".");
    if (!id->is_number_integer()) refuse("The \"id\" is not the whole number of a request.");
    // Compared without a sum that could overflow.
    bool const huge =
        id->is_number_unsigned() &&
        id->get<std::uint64_t>() > std::uint64_t{std::numeric_limits<std::int64_t>::max()};
    std::int64_t const number = huge ? -1 : id->get<std::int64_t>();
    auto const size = static_cast<std::int64_t>(batch.size());
    if (number < next_id_ || number - next_id_ >= size) {
      refuse("Nobody waits for the id " + id->dump() + ": requests " + std::to_string(next_id_) +
             " to " + std::to_string(next_id_ + size - 1) + " are open.");
    }
    auto const i = static_cast<std::size_t>(number - next_id_);
    std::string const episode = "episode \"" + std::string(batch[i].id) + "\"";
    if (answers[i]) {
      refuse("Request " + std::to_string(number) + " (" + episode + ") was answered twice.");
    }
    Answer answer;
    auto const score = value.find("score");
    if (score == value.end()) refuse("The answer for " + episode + " has no \"score\".");
    if (!is_finite_float(*score)) {
      refuse("The score of " + episode + " is not a finite number that a float can hold.");
    }
    answer.score = score->get<float>();
    if (auto const parts = value.find("components"); parts != value.end()) {
      if (!parts->is_object()) refuse("The components of " + episode + " are not an object.");
      for (auto const& [name, part] : parts->items()) {
        if (!is_finite_float(part)) {
          refuse("The component \"" + name + "\" of " + episode +
                 " is not a finite number that a float can hold.");
        }
        answer.parts.emplace_back(name, part.template get<float>());
      }
    }
    answers[i] = std::move(answer);
  }

  static bool is_finite_float(io::Json const& value) {
    if (!value.is_number()) return false;
    // Not a NaN either: that is not below anything.
    return std::abs(value.get<double>()) <= double{std::numeric_limits<float>::max()};
  }

  void keep_parts(Answer const& answer, rl::Episode const& episode, std::size_t at,
                  std::vector<Component>& parts) {
    bool same = answer.parts.size() == parts.size();
    for (auto const& [name, value] : answer.parts) {
      bool found = false;
      for (Component& part : parts) {
        if (part.name != name) continue;
        part.values[at] = value;
        found = true;
      }
      same = same && found;
    }
    if (same) return;
    auto const list = [](auto const& all, auto&& name_of) {
      std::string names;
      for (auto const& one : all) names += (names.empty() ? "" : ", ") + name_of(one);
      return names.empty() ? std::string("none") : names;
    };
    throw IoError("the reward program \"" + settings_.command +
                  "\" named its components differently: the first answer has (" +
                  list(parts, [](Component const& c) { return c.name; }) +
                  "), that for episode \"" + std::string(episode.id) + "\" has (" +
                  list(answer.parts, [](auto const& part) { return part.first; }) +
                  "). All answers must have the same ones. " + last_words());
  }

  std::string last_words() const {
    return child_ ? child_->last_words_sentence() : "It is not running.";
  }

  // Which request waits longest, for messages.
  std::string waiting(Episodes batch, std::vector<std::optional<Answer>> const& answers) const {
    std::size_t done = 0;
    std::size_t first = batch.size();
    for (std::size_t i = 0; i < batch.size(); ++i) {
      if (answers[i]) {
        ++done;
      } else if (first == batch.size()) {
        first = i;
      }
    }
    std::string text =
        std::to_string(done) + " of " + std::to_string(batch.size()) + " answers of the batch came";
    if (first < batch.size()) {
      text += "; the first request without one is " +
              std::to_string(next_id_ + static_cast<std::int64_t>(first)) + ", episode \"" +
              std::string(batch[first].id) + "\"";
    }
    return text + ".";
  }

  [[noreturn]] void throw_failed(std::string const& what, std::string const& reason, Episodes batch,
                                 std::vector<std::optional<Answer>> const& answers) const {
    std::string const starts = settings_.restarts == 0 ? "" : ", restarts included";
    throw IoError("the reward program " + what + starts + ": " + reason + " " +
                  waiting(batch, answers) +
                  " Try the command by hand with one request line, or raise the timeout.");
  }

  [[noreturn]] void throw_refused(std::string const& what, std::string const& line, Episodes batch,
                                  std::vector<std::optional<Answer>> const& answers) const {
    constexpr std::size_t shown = 200;
    std::string found = io::detail::mended_utf8(std::string_view(line).substr(0, shown));
    if (line.size() > shown) found += "...";
    throw IoError("the reward program \"" + settings_.command + "\" broke the protocol: " + what +
                  " " + waiting(batch, answers) + " " + last_words() + " The line was: " + found);
  }

  PipeRewardSettings settings_;
  std::unique_ptr<io::ChildProcess> child_;
  std::int64_t next_id_ = 0;
};

static_assert(rl::LoggingRewardModel<PipeReward>, "PipeReward records the parts of its score");
static_assert(rl::RewardModel<PipeReward>);

}  // namespace emprl::train
