// SPDX-License-Identifier: Apache-2.0
#pragma once

// Checkpoints of a run under way. A checkpoint is a folder that is replaced as a whole:
//
//   1  the new one is written to FOLDER.tmp-<pid>, flushed, and marked by a last file, `complete`
//   2  FOLDER is renamed to FOLDER.old
//   3  FOLDER.tmp-<pid> is renamed to FOLDER
//   4  FOLDER.old is removed
//
// A process that dies at any point, or a disk that fills up, leaves the old checkpoint or the new
// one: between 2 and 3 it is FOLDER.old, which whoever looks next renames back. What dead processes
// left half-written goes with the next save.

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/io/file.hpp"
#include "emprl/io/json.hpp"
#include "emprl/io/safetensors.hpp"
#include "emprl/optim/adamw.hpp"

namespace emprl::train {

namespace detail {

inline constexpr char const* complete_marker = "complete";

/// A path without the slash at its end; a link stands for what it points to.
inline std::filesystem::path checkpoint_place(std::filesystem::path folder) {
  if (!folder.has_filename()) folder = folder.parent_path();
  std::error_code error;
  if (std::filesystem::is_symlink(folder, error)) {
    auto const target = std::filesystem::weakly_canonical(folder, error);
    if (!error && !target.empty()) return target;
  }
  return folder;
}

inline std::filesystem::path with_suffix(std::filesystem::path path, std::string const& suffix) {
  path += suffix;
  return path;
}

inline bool is_complete(std::filesystem::path const& folder) {
  std::error_code ignored;
  return std::filesystem::is_regular_file(folder / complete_marker, ignored);
}

inline bool is_there(std::filesystem::path const& path) {
  std::error_code ignored;
  return std::filesystem::exists(std::filesystem::symlink_status(path, ignored));
}

inline bool is_missing_or_empty(std::filesystem::path const& folder) {
  std::error_code error;
  if (!is_there(folder)) return true;
  bool const empty =
      std::filesystem::is_directory(folder, error) && std::filesystem::is_empty(folder, error);
  return empty && !error;
}

/// rename(2); a folder may take the place of an empty one. @return 0 or errno
inline int rename_folder(std::filesystem::path const& from, std::filesystem::path const& to) {
  return std::rename(from.c_str(), to.c_str()) == 0 ? 0 : errno;
}

/// Removes a checkpoint that is in nobody's way any more. It first takes a name that marks it as
/// left over, so that dying in the middle never leaves a part of it under a name that counts. What
/// cannot be removed is left for the next save.
inline void remove_checkpoint(std::filesystem::path const& folder,
                              std::filesystem::path const& place) {
  auto const rubbish = with_suffix(place, ".tmp-" + std::to_string(::getpid()) + "-old");
  std::error_code ignored;
  std::filesystem::remove_all(rubbish, ignored);
  if (rename_folder(folder, rubbish) != 0) return;
  std::filesystem::remove_all(rubbish, ignored);
}

/// If a process died between steps 2 and 3, undoes step 2. @return where the checkpoint is, if
/// there is one
inline std::optional<std::filesystem::path> recover_checkpoint(std::filesystem::path const& place) {
  if (is_complete(place)) return place;
  auto const old = with_suffix(place, ".old");
  if (!is_complete(old)) return std::nullopt;
  if (!is_missing_or_empty(place) || rename_folder(old, place) != 0) return old;
  io::detail::sync_directory(io::detail::parent_of(place));
  return place;
}

/// Removes what dead processes, and this one, left half-written.
inline void remove_leftovers(std::filesystem::path const& place) {
  std::string const prefix = place.filename().string() + ".tmp-";
  std::error_code error;
  std::vector<std::filesystem::path> found;
  for (std::filesystem::directory_iterator at(io::detail::parent_of(place), error), end;
       !error && at != end; at.increment(error)) {
    std::string const name = at->path().filename().string();
    if (!name.starts_with(prefix)) continue;
    std::string owner = name.substr(prefix.size());
    if (owner.ends_with("-old")) owner.resize(owner.size() - 4);
    if (owner.empty() || owner.size() > 9 ||
        owner.find_first_not_of("0123456789") != std::string::npos) {
      continue;
    }
    auto const pid = static_cast<pid_t>(std::stol(owner));
    bool const dead = pid == ::getpid() || (pid > 0 && ::kill(pid, 0) != 0 && errno == ESRCH);
    if (dead) found.push_back(at->path());
  }
  for (auto const& path : found) std::filesystem::remove_all(path, error);
}

/// Flushes every file and folder of a tree. @throws IoError naming the file
inline void sync_tree(std::filesystem::path const& folder) {
  auto const sync = [](std::filesystem::path const& path, int flags) {
    io::detail::Descriptor const fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | flags));
    if (fd.get() < 0) io::detail::fail("open", path, errno);
    // Some file systems do not flush folders; a file that cannot be flushed may not be on the disk.
    if (::fsync(fd.get()) != 0 && flags == 0) io::detail::fail("write", path, errno);
  };
  std::error_code error;
  for (std::filesystem::recursive_directory_iterator at(folder, error), end; !error && at != end;
       at.increment(error)) {
    std::error_code ignored;
    if (at->is_symlink(ignored)) continue;
    if (at->is_regular_file(ignored)) sync(at->path(), 0);
    if (at->is_directory(ignored)) sync(at->path(), O_DIRECTORY);
  }
  if (error) io::detail::fail("read the folder", folder, error.value());
  sync(folder, O_DIRECTORY);
}

/// `save_checkpoint`, telling `reached` of each point that it has passed.
template <class Fill, class Reached>
void save_checkpoint(std::filesystem::path const& folder, Fill&& fill, Reached&& reached) {
  auto const place = checkpoint_place(folder);
  auto const parent = io::detail::parent_of(place);
  auto const old = with_suffix(place, ".old");
  auto const temporary = with_suffix(place, ".tmp-" + std::to_string(::getpid()));
  io::ensure_directory(parent);
  static_cast<void>(recover_checkpoint(place));
  for (auto const& path : {place, old}) {
    expects<IoError>(is_complete(path) || is_missing_or_empty(path),
                     "cannot save a checkpoint as " + folder.string() + ": " + path.string() +
                         " is there and is not a checkpoint.");
  }
  remove_leftovers(place);
  reached("recovered");
  // A complete FOLDER beside FOLDER.old means that only step 4 was missing.
  if (is_complete(place) && is_there(old)) remove_checkpoint(old, place);
  reached("cleaned");
  try {
    io::ensure_directory(temporary);
    reached("made");
    fill(std::filesystem::path(temporary));
    reached("filled");
    sync_tree(temporary);
    reached("flushed");
    io::write_file_atomically(temporary / complete_marker, std::string_view("1\n"));
    reached("marked");
    bool const replaces = is_complete(place);
    if (replaces) {
      if (int const error = rename_folder(place, old)) io::detail::fail("rename", place, error);
    }
    reached("set aside");
    if (int const error = rename_folder(temporary, place)) {
      if (replaces) static_cast<void>(rename_folder(old, place));
      io::detail::fail("write", place, error);
    }
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove_all(temporary, ignored);
    throw;
  }
  reached("renamed");
  io::detail::sync_directory(parent);
  reached("renamed on the disk");
  if (is_there(old)) remove_checkpoint(old, place);
  reached("done");
}

}  // namespace detail

/// Replaces the checkpoint in a folder, all or nothing.
/// @param folder where it is to be; must not hold anything else
/// @param fill   fill(path) writes the contents into an empty folder
/// @throws IoError naming the path, and whatever `fill` throws; the checkpoint that was there is
/// then still there
template <class Fill>
void save_checkpoint(std::filesystem::path const& folder, Fill&& fill) {
  detail::save_checkpoint(folder, std::forward<Fill>(fill), [](std::string_view) {});
}

/// The checkpoint in a folder, if there is a complete one; puts right what a process that died
/// while saving left.
inline std::optional<std::filesystem::path> find_checkpoint(std::filesystem::path const& folder) {
  return detail::recover_checkpoint(detail::checkpoint_place(folder));
}

/// Removes the checkpoint of a run that is over and has written its result elsewhere. A folder that
/// is none is left alone.
inline void discard_checkpoint(std::filesystem::path const& folder) {
  auto const place = detail::checkpoint_place(folder);
  auto const old = detail::with_suffix(place, ".old");
  // The old one first: without the new one it would count.
  for (auto const& path : {old, place}) {
    if (detail::is_complete(path)) detail::remove_checkpoint(path, place);
  }
  detail::remove_leftovers(place);
}

/// What a device adds to a checkpoint: by which algorithms it multiplied matrices. A run on the CPU
/// neither reads nor writes it, and one from a checkpoint without it chooses anew.
inline constexpr char const* products_file = "matrix_products.txt";

/// What a trainer needs to go on, other than weights and moments: counters, seeds, coefficients,
/// running statistics.
struct TrainerState {
  io::Json numbers = io::Json::object();
};

/// Writes state.json. Floating-point numbers come back bit for bit.
/// @throws Error if a number is not finite, which JSON cannot hold; IoError naming the file
inline void write_trainer_state(std::filesystem::path const& folder, TrainerState const& state) {
  auto const path = folder / "state.json";
  auto const text = state.numbers.dump(-1, ' ', false, io::Json::error_handler_t::replace);
  expects<Error>(io::parse_json(text, path.string()) == state.numbers,
                 "the state of the trainer holds a number that is not finite, or text that is not "
                 "UTF-8, and cannot be saved to " +
                     path.string() + ".");
  io::write_json_file(path, state.numbers);
}

/// Reads state.json. @throws IoError naming the file
inline TrainerState read_trainer_state(std::filesystem::path const& folder) {
  return {io::read_json_file(folder / "state.json")};
}

namespace detail {

/// A setting as a message shows it.
inline std::string setting_text(io::Json const& value) {
  constexpr std::size_t most = 400;
  std::string text = value.dump(-1, ' ', true, io::Json::error_handler_t::replace);
  if (text.size() > most) text = text.substr(0, most) + "...";
  return text;
}

/// The first setting in which a run differs from the one that wrote a checkpoint.
struct Difference {
  std::string name;  // of a setting within another: outer.inner
  std::string saved;
  std::string now;
};

inline std::optional<Difference> first_difference(io::Json const& saved, io::Json const& now,
                                                  std::string const& name = {}) {
  if (!saved.is_object() || !now.is_object()) {
    if (saved == now) return std::nullopt;
    return Difference{name, setting_text(saved), setting_text(now)};
  }
  std::string const prefix = name.empty() ? name : name + ".";
  for (auto const& [key, value] : now.items()) {
    auto const it = saved.find(key);
    if (it == saved.end()) return Difference{prefix + key, "not recorded", setting_text(value)};
    if (auto inner = first_difference(*it, value, prefix + key)) return inner;
  }
  for (auto const& [key, value] : saved.items()) {
    if (!now.contains(key)) return Difference{prefix + key, setting_text(value), "not set"};
  }
  return std::nullopt;
}

}  // namespace detail

/// Writes state.json of a run that others may only go on with if they are the same run.
/// @param identity every setting on which the arithmetic depends, by name; may nest
/// @param state    where the run stands
/// @throws Error if a number is not finite, IoError naming the file
inline void write_run_state(std::filesystem::path const& folder, io::Json const& identity,
                            io::Json const& state) {
  TrainerState both;
  both.numbers["identity"] = identity;
  both.numbers["state"] = state;
  write_trainer_state(folder, both);
}

/// Reads what `write_run_state` wrote. @return the state
/// @throws ConfigError naming the first setting that differs from `identity`, with both values
/// @throws IoError naming the file if it is not the state of a run
inline io::Json read_run_state(std::filesystem::path const& folder, io::Json const& identity) {
  io::Json const numbers = read_trainer_state(folder).numbers;
  expects<IoError>(numbers.contains("identity") && numbers.contains("state"),
                   (folder / "state.json").string() + ": this is not the state of a run.");
  if (auto const other = detail::first_difference(numbers["identity"], identity)) {
    throw ConfigError("the checkpoint " + folder.string() +
                      " belongs to a run with other options or data: " + other->name + " is " +
                      other->saved + " there and " + other->now +
                      " here; give the same to go on with it, remove it, or choose another output "
                      "folder.");
  }
  return numbers["state"];
}

/// Writes an optimiser's moments and steps as safetensors: first_moment and second_moment (N), in
/// the optimiser's own element type, and steps (1), I64.
/// @param name the file's name, for trainers with several optimisers
/// @throws IoError naming the file
template <Scalar T>
void write_moments(std::filesystem::path const& folder, std::int64_t steps,
                   std::span<T const> first, std::span<T const> second,
                   std::string const& name = "optimizer.safetensors") {
  auto const size = static_cast<index_t>(first.size());
  std::vector<io::TensorToWrite> const tensors{
      io::tensor_to_write("first_moment", {size}, first),
      io::tensor_to_write("second_moment", {size}, second),
      io::tensor_to_write("steps", {1}, std::span<std::int64_t const>(&steps, 1))};
  io::write_safetensors(folder / name, tensors);
}

/// The same of an optimiser on the CPU. @throws IoError naming the file
template <Scalar T>
void write_optimizer(std::filesystem::path const& folder, optim::AdamW<T> const& optimizer,
                     std::string const& name = "optimizer.safetensors") {
  write_moments<T>(folder, optimizer.steps(), optimizer.first_moment(), optimizer.second_moment(),
                   name);
}

/// Reads what `write_moments` wrote into spans of the optimiser's size. @return the steps
/// @throws IoError naming the file if it is of another number of parameters or another element
/// type: converted moments would not go on bit for bit
template <Scalar T>
std::int64_t read_moments(std::filesystem::path const& folder, std::span<T> first,
                          std::span<T> second, std::string const& name = "optimizer.safetensors") {
  io::SafeTensorsFile const file(folder / name);
  std::int64_t steps = 0;
  for (char const* const tensor : {"first_moment", "second_moment"}) {
    expects<IoError>(file.info(tensor).dtype == io::dtype_of<T>(),
                     file.path().string() + " has tensor \"" + tensor + "\" of type " +
                         std::string(io::dtype_name(file.info(tensor).dtype)) + " where " +
                         std::string(io::dtype_name(io::dtype_of<T>())) + " was expected.");
  }
  file.copy_to("first_moment", first, {static_cast<index_t>(first.size())});
  file.copy_to("second_moment", second, {static_cast<index_t>(second.size())});
  file.copy_to("steps", std::span<std::int64_t>(&steps, 1), {1});
  expects<IoError>(steps >= 0, file.path().string() + " has a negative number of steps.");
  return steps;
}

/// Takes up the moments and steps that `write_optimizer` wrote.
/// @throws IoError as read_moments
template <Scalar T>
void read_optimizer(std::filesystem::path const& folder, optim::AdamW<T>& optimizer,
                    std::string const& name = "optimizer.safetensors") {
  std::vector<T> first(optimizer.first_moment().size());
  std::vector<T> second(optimizer.second_moment().size());
  std::int64_t const steps = read_moments<T>(folder, first, second, name);
  optimizer.restore(steps, first, second);
}

}  // namespace emprl::train
