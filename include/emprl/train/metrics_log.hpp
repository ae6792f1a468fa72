// SPDX-License-Identifier: Apache-2.0
#pragma once

// The numbers of a run: FOLDER/metrics.jsonl, one object a line, and a TensorBoard event file
// beside it with the same numbers under the tags "phase/name".

#include <cmath>
#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/io/file.hpp"
#include "emprl/io/json.hpp"
#include "emprl/io/lines.hpp"
#include "emprl/train/event_file.hpp"

namespace emprl::train {

/// Appends to the log of a folder. A line is in the file when `write` returns; one that cannot be
/// written in full is taken back. One log at a time may write to a folder.
class MetricsLog {
 public:
  /// Takes up the log of a folder, or starts one; a last line that a killed run left unfinished is
  /// dropped.
  /// @throws IoError naming what cannot be read or written
  explicit MetricsLog(std::filesystem::path folder) : folder_(std::move(folder)) {
    io::ensure_directory(folder_);
    drop_torn_tail();
  }

  /// metrics.jsonl of the folder.
  std::filesystem::path path() const { return folder_ / "metrics.jsonl"; }

  /// Goes on with a phase after a step: what the log holds of that phase beyond the step (-1: all
  /// of it) is dropped, from the lines and from the event files, so that the run that goes on has
  /// each step once.
  /// @throws IoError naming the file, and the line if it is not one of a log
  void resume(std::string_view phase, index_t step) {
    check_phase(phase);
    lines_.reset();
    events_.reset();
    drop_lines(phase, step);
    drop_events(phase, step);
  }

  /// Appends {"phase": phase, "step": step, name: number, ...}. A number that is not finite is null
  /// there, and itself in the event file.
  /// @throws ConfigError if a phase has a '/' in it, or a number is called "phase" or "step"
  /// @throws IoError naming the file
  void write(std::string_view phase, index_t step, Metrics const& numbers) {
    check_phase(phase);
    io::Json line = {{"phase", phase}, {"step", step}};
    Metrics tagged;
    tagged.reserve(numbers.size());
    for (auto const& [name, value] : numbers) {
      expects<ConfigError>(name != "phase" && name != "step",
                           "a metric must not be called \"" + name + "\"");
      line[name] = std::isfinite(value) ? io::Json(value) : io::Json();
      tagged.emplace_back(std::string(phase) + "/" + name, value);
    }
    if (!lines_) lines_.emplace(path(), detail::AppendFile::Mode::open_or_make);
    lines_->append(line.dump(-1, ' ', false, io::Json::error_handler_t::replace) + "\n");
    if (!events_) events_.emplace(folder_);
    events_->write(step, tagged);
  }

  /// Flushes to the disk: before a checkpoint, so that no power cut leaves a checkpoint ahead of
  /// its log.
  void sync() {
    if (lines_) lines_->sync();
    if (events_) events_->sync();
  }

 private:
  // Tags are split at their first '/', so a phase cannot hold one.
  static void check_phase(std::string_view phase) {
    expects<ConfigError>(!phase.empty() && phase.find('/') == std::string_view::npos,
                         "the name of a phase must not be empty or hold a '/'");
  }

  bool has_lines() const {
    std::error_code ignored;
    return std::filesystem::exists(path(), ignored);
  }

  void drop_torn_tail() const {
    if (!has_lines()) return;
    std::string const text = io::read_file(path());
    if (text.empty() || text.back() == '\n') return;
    std::size_t const end = text.rfind('\n');
    io::write_file_atomically(
        path(), std::string_view(text).substr(0, end == std::string::npos ? 0 : end + 1));
  }

  void drop_lines(std::string_view phase, index_t step) const {
    if (!has_lines()) return;
    std::string const text = io::read_file(path());
    io::LineReader reader(text, path().string());
    std::string kept;
    for (std::string_view line; reader.next(line);) {
      if (io::is_blank(line)) continue;
      io::Json const value = io::parse_json(line, reader.where());
      expects<IoError>(value.is_object() && value.contains("phase") && value.contains("step") &&
                           value["phase"].is_string() && value["step"].is_number_integer(),
                       reader.where() + ": this is not a line of metrics with a phase and a step.");
      if (value["phase"].get_ref<std::string const&>() == phase &&
          value["step"].get<index_t>() > step) {
        continue;
      }
      kept += line;
      kept += '\n';
    }
    if (kept != text) io::write_file_atomically(path(), kept);
  }

  // Records of others (another program's images, another phase) are kept as they are, byte for
  // byte.
  void drop_events(std::string_view phase, index_t step) const {
    std::vector<std::filesystem::path> files;
    try {
      for (auto const& entry : std::filesystem::directory_iterator(folder_)) {
        // The name of a temporary file left by a killed run starts alike.
        std::string const name = entry.path().filename().string();
        if (name.starts_with("events.out.tfevents.") && name.find(".tmp-") == std::string::npos &&
            entry.is_regular_file()) {
          files.push_back(entry.path());
        }
      }
    } catch (std::filesystem::filesystem_error const& error) {
      throw IoError("cannot read the folder " + folder_.string() + ": " + error.code().message() +
                    ".");
    }
    std::string const prefix = std::string(phase) + "/";
    for (auto const& file : files) {
      std::string const text = io::read_file(file);
      std::string_view rest = text;
      std::string_view record;
      std::string kept;
      bool dropped = false;
      while (auto const event = next_event(rest, &record)) {
        bool later = event->step > step && !event->scalars.empty();
        for (auto const& scalar : event->scalars) {
          later = later && scalar.first.starts_with(prefix);
        }
        if (later) {
          dropped = true;
        } else {
          kept += record;
        }
      }
      if (dropped) io::write_file_atomically(file, kept);
    }
  }

  std::filesystem::path folder_;
  std::optional<detail::AppendFile> lines_;
  std::optional<EventFile> events_;
};

}  // namespace emprl::train
