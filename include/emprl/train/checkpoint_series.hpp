// SPDX-License-Identifier: Apache-2.0
#pragma once

// The checkpoints of one run, side by side in a folder:
//
//   FOLDER/step-000050/   what the run put there, and checkpoint.json: {"step": 50, "score": 0.31}
//   FOLDER/step-000100/
//
// The newest few stay and, besides, the best by the score that the run gives each. Every one is
// written all or nothing (checkpoint.hpp); one that is no longer wanted goes after the new one is
// on the disk, and first takes a name that does not count. So whenever the process dies, the newest
// complete checkpoint is the last one whose save returned, or a later one, and the best one is
// there too. Whatever else lies in the folder stays as it is.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/io/file.hpp"
#include "emprl/io/json.hpp"
#include "emprl/train/checkpoint.hpp"

namespace emprl::train {

/// Which checkpoints of a series stay.
struct CheckpointsToKeep {
  index_t last = 2;  ///< the newest so many; at least 1
  bool best = true;  ///< and, besides, the one with the largest score; the first of equals

  /// @throws ConfigError naming the setting that is out of range
  void validate() const {
    expects<ConfigError>(last >= 1,
                         "the number of checkpoints to keep must be at least 1, but is " +
                             std::to_string(last) + ".");
  }
};

/// One complete checkpoint of a series.
struct CheckpointEntry {
  index_t step = 0;
  std::filesystem::path folder;
  std::optional<double> score;  ///< larger is better; none: not judged
};

namespace detail {

inline constexpr char const* series_file = "checkpoint.json";

/// "step-000050"; six digits, or as many as it takes.
inline std::string step_name(index_t step) {
  std::string digits = std::to_string(step);
  if (digits.size() < 6) digits.insert(0, 6 - digits.size(), '0');
  return "step-" + digits;
}

/// The step that a folder is named for; none for any other name.
inline std::optional<index_t> step_of_name(std::string_view name) {
  constexpr std::string_view prefix = "step-";
  if (!name.starts_with(prefix)) return std::nullopt;
  std::string const digits(name.substr(prefix.size()));
  if (digits.size() < 6 || digits.size() > 18 ||
      digits.find_first_not_of("0123456789") != std::string::npos) {
    return std::nullopt;
  }
  auto const step = static_cast<index_t>(std::stoll(digits));
  if (step_name(step) != name) return std::nullopt;
  return step;
}

/// The steps for which anything in the folder is named, `.old` and `.tmp-` ones too; ascending.
inline std::set<index_t> steps_named_in(std::filesystem::path const& place) {
  std::set<index_t> steps;
  if (!is_there(place)) return steps;
  std::error_code error;
  for (std::filesystem::directory_iterator at(place, error), end; !error && at != end;
       at.increment(error)) {
    std::string const name = at->path().filename().string();
    if (auto const step = step_of_name(name.substr(0, name.find('.')))) steps.insert(*step);
  }
  if (error) io::detail::fail("read the folder", place, error.value());
  return steps;
}

/// What a checkpoint says of itself; none if it is not of a series, or of another step.
inline std::optional<CheckpointEntry> read_entry(std::filesystem::path const& folder,
                                                 index_t step) {
  auto const path = folder / series_file;
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(path, ignored)) return std::nullopt;
  io::Json const json = io::read_json_file(path);
  try {
    if (io::whole_number(json.at("step"), path.string()) != step) return std::nullopt;
    CheckpointEntry entry{step, folder, {}};
    if (!json.at("score").is_null()) entry.score = json.at("score").get<double>();
    return entry;
  } catch (io::Json::exception const&) {
    throw IoError(path.string() + ": a step and a score were expected.");
  }
}

/// The complete checkpoints, by step. Puts right what a process that died while saving left.
inline std::vector<CheckpointEntry> series_entries(std::filesystem::path const& place) {
  expects<IoError>(
      !is_complete(place),
      place.string() +
          " is one checkpoint, as other commands and earlier versions write it, where "
          "a folder of checkpoints was expected; remove it, or choose another folder.");
  std::vector<CheckpointEntry> entries;
  for (index_t const step : steps_named_in(place)) {
    auto const found = recover_checkpoint(place / step_name(step));
    if (!found) continue;
    if (auto entry = read_entry(*found, step)) entries.push_back(std::move(*entry));
  }
  return entries;
}

/// The one with the largest score, the first of equals.
inline std::optional<CheckpointEntry> best_entry(std::vector<CheckpointEntry> const& entries) {
  CheckpointEntry const* best = nullptr;
  for (CheckpointEntry const& entry : entries) {
    if (entry.score && (best == nullptr || *entry.score > *best->score)) best = &entry;
  }
  if (best == nullptr) return std::nullopt;
  return *best;
}

/// Removes what processes that died left of one step: half-written parts, and a checkpoint whose
/// successor is there.
inline void remove_remains(std::filesystem::path const& own) {
  auto const old = with_suffix(own, ".old");
  if (is_complete(own) && is_complete(old)) remove_checkpoint(old, own);
  remove_leftovers(own);
}

/// Removes what is no longer wanted, telling `reached` of each, and what processes that died left.
template <class Reached>
void thin_out(std::filesystem::path const& place, std::vector<CheckpointEntry> const& entries,
              CheckpointsToKeep const& keep, Reached&& reached) {
  auto const best = keep.best ? best_entry(entries) : std::nullopt;
  std::size_t const last = std::min(entries.size(), static_cast<std::size_t>(keep.last));
  for (std::size_t i = 0; i < entries.size() - last; ++i) {
    CheckpointEntry const& entry = entries[i];
    if (best && entry.step == best->step) continue;
    remove_checkpoint(entry.folder, place / step_name(entry.step));
    reached("removed one");
  }
  for (index_t const step : steps_named_in(place)) remove_remains(place / step_name(step));
}

/// `CheckpointSeries::save`, telling `reached` of each point that it has passed.
template <class Fill, class Reached>
void save_in_series(std::filesystem::path const& folder, CheckpointsToKeep const& keep,
                    index_t step, std::optional<double> score, Fill&& fill, Reached&& reached) {
  keep.validate();
  expects<ConfigError>(step >= 0, "the step of a checkpoint must not be negative, but is " +
                                      std::to_string(step) + ".");
  expects<Error>(!score || std::isfinite(*score),
                 "the score of the checkpoint of step " + std::to_string(step) + " is not finite.");
  auto const place = checkpoint_place(folder);
  bool const is_new = !is_there(place);
  auto const before = series_entries(place);
  if (!before.empty() && before.back().step > step) {
    throw ConfigError("a checkpoint of step " + std::to_string(step) + " cannot follow " +
                      before.back().folder.string() +
                      "; go on from there, or choose another folder.");
  }
  auto const own = place / step_name(step);
  expects<IoError>(!is_complete(own) || (!before.empty() && before.back().step == step),
                   "cannot save a checkpoint as " + own.string() +
                       ": a checkpoint that is not of this series is there.");
  // Before the new one is written: a death may have left more than there is room for.
  thin_out(place, before, keep, reached);
  reached("thinned out before");
  save_checkpoint(
      own,
      [&](std::filesystem::path const& path) {
        fill(path);
        io::write_json_file(path / series_file,
                            {{"step", step}, {"score", score ? io::Json(*score) : io::Json()}});
      },
      reached);
  if (is_new) io::detail::sync_directory(io::detail::parent_of(place));
  reached("saved");
  thin_out(place, series_entries(place), keep, reached);
  reached("thinned out");
}

}  // namespace detail

/// The checkpoints of one run in a folder that is theirs. The folder need not be there before the
/// first save. One process at a time may save; others may look.
class CheckpointSeries {
 public:
  /// @param folder a link stands for what it points to
  explicit CheckpointSeries(std::filesystem::path folder, CheckpointsToKeep keep = {})
      : folder_(std::move(folder)), keep_(keep) {}

  /// Adds a checkpoint, all or nothing, then removes those that are no longer to be kept. One of
  /// the same step is replaced.
  /// @param step  how far the run is: not below any in the folder, which are of another run if they
  /// are ahead
  /// @param score by which it is judged, larger is better; none: never the best
  /// @param fill  fill(path) writes the contents into an empty folder; checkpoint.json is written
  /// beside them
  /// @throws ConfigError if the step is below one that is there, or if fewer than one is to be kept
  /// @throws Error if the score is not finite
  /// @throws IoError naming the path, and whatever `fill` throws; what was there before is then
  /// still there
  template <class Fill>
  void save(index_t step, std::optional<double> score, Fill&& fill) const {
    detail::save_in_series(folder_, keep_, step, score, std::forward<Fill>(fill),
                           [](std::string_view) {});
  }

  /// All complete checkpoints, by step. Puts right what a process that died while saving left.
  /// @throws IoError naming the folder, or a checkpoint.json that cannot be read
  std::vector<CheckpointEntry> entries() const {
    return detail::series_entries(detail::checkpoint_place(folder_));
  }

  /// The one to go on from. @throws as entries()
  std::optional<CheckpointEntry> newest() const {
    auto all = entries();
    if (all.empty()) return std::nullopt;
    return std::move(all.back());
  }

  /// The one with the largest score, the first of equals; none if none is judged. With
  /// CheckpointsToKeep::best it is the best of all that were ever saved.
  /// @throws as entries()
  std::optional<CheckpointEntry> best() const { return detail::best_entry(entries()); }

  /// Removes the checkpoints of a run that is over and has written its result elsewhere, and the
  /// folder if nothing else is in it. The newest goes first: after a death on the way the run goes
  /// on from an earlier one, and comes to the same result and the same best. @throws as entries()
  void discard() const {
    auto const place = detail::checkpoint_place(folder_);
    auto all = entries();
    std::reverse(all.begin(), all.end());
    for (CheckpointEntry const& entry : all) {
      auto const own = place / detail::step_name(entry.step);
      detail::remove_remains(own);
      detail::remove_checkpoint(entry.folder, own);
    }
    for (index_t const step : detail::steps_named_in(place)) {
      detail::remove_remains(place / detail::step_name(step));
    }
    std::error_code ignored;
    std::filesystem::remove(place, ignored);
  }

  std::filesystem::path const& folder() const { return folder_; }

 private:
  std::filesystem::path folder_;
  CheckpointsToKeep keep_;
};

}  // namespace emprl::train
