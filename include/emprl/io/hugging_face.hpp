// SPDX-License-Identifier: Apache-2.0
#pragma once

// Folders in Hugging Face's layout:
//   config.json                   the model's shape
//   model.safetensors             its weights, or
//   model.safetensors.index.json  {"metadata": {"total_size": bytes}, "weight_map": {tensor: file}}
//                                 and the files (shards) that it names, each a safetensors file
//   spiece.model                  the tokenizer
//   tokenizer.json                the same tokenizer once more, as Hugging Face's fast tokenizers
//                                 have it
// Where model.safetensors and an index are both there, the former counts, as in transformers.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <filesystem>
#include <limits>
#include <map>
#include <set>
#include <span>
#include <string>
#include <system_error>
#include <unordered_map>
#include <utility>
#include <vector>

#include "emprl/core/error.hpp"
#include "emprl/io/file.hpp"
#include "emprl/io/json.hpp"
#include "emprl/io/safetensors.hpp"

namespace emprl::io {

/// The names of the files in a model folder.
struct HuggingFaceFolder {
  std::filesystem::path path;

  std::filesystem::path config() const { return path / "config.json"; }
  std::filesystem::path weights() const { return path / "model.safetensors"; }
  std::filesystem::path index() const { return path / "model.safetensors.index.json"; }
  std::filesystem::path tokenizer() const { return path / "spiece.model"; }
  std::filesystem::path fast_tokenizer() const { return path / "tokenizer.json"; }
};

namespace detail {

inline void expect_folder(HuggingFaceFolder const& folder) {
  std::error_code error;
  if (std::filesystem::is_directory(folder.path, error)) return;
  bool const there = std::filesystem::exists(folder.path, error);
  throw IoError("the model folder " + folder.path.string() +
                (there ? " is a file; a folder was expected." : " does not exist."));
}

inline bool is_file(std::filesystem::path const& path) {
  std::error_code error;
  return std::filesystem::is_regular_file(path, error);
}

/// What an index says.
struct WeightIndex {
  std::map<std::string, std::string> file_of;  ///< tensor to file
  std::uint64_t total_size = 0;                ///< bytes of all tensors; 0 where it is not said
};

/// @throws IoError naming the file and what is wrong in it; in particular, a shard's name must be
/// that of a file in the folder itself, so that an index cannot reach for other files
inline WeightIndex read_weight_index(std::filesystem::path const& path) {
  std::string const where = path.string();
  Json const json =
      parse_json(without_byte_order_mark(read_file(path)), where, DuplicateKeys::refuse);
  if (!json.is_object()) throw IoError(where + ": a JSON object was expected.");
  auto const map = json.find("weight_map");
  if (map == json.end() || !map->is_object() || map->empty()) {
    throw IoError(where + ": there is no \"weight_map\" that says which file has which tensor.");
  }
  WeightIndex index;
  for (auto const& [tensor, file] : map->items()) {
    if (!file.is_string()) {
      throw IoError(where + ": the file of tensor \"" + tensor + "\" is not a text.");
    }
    auto const& name = file.get_ref<std::string const&>();
    bool const plain = name.find('/') == std::string::npos &&
                       name.find('\\') == std::string::npos &&
                       name.find('\0') == std::string::npos && name.ends_with(".safetensors");
    if (!plain) {
      throw IoError(where + ": tensor \"" + tensor + "\" is said to lie in \"" + name +
                    "\"; only safetensors files of the same folder are read.");
    }
    index.file_of[tensor] = name;
  }
  if (auto const metadata = json.find("metadata"); metadata != json.end()) {
    if (!metadata->is_object()) throw IoError(where + ": \"metadata\" is not an object.");
    if (auto const size = metadata->find("total_size"); size != metadata->end()) {
      // Some tools write the number of bytes with a decimal point.
      double const bytes = size->is_number() ? size->get<double>() : -1.0;
      if (!(bytes >= 0 && bytes < 9e18)) {
        throw IoError(where + ": \"total_size\" is not a number of bytes.");
      }
      index.total_size = static_cast<std::uint64_t>(bytes);
    }
  }
  return index;
}

}  // namespace detail

/// config.json as it stands.
/// @throws IoError if the folder or the file is missing, or the file holds anything but a JSON
/// object
inline Json read_config(HuggingFaceFolder const& folder) {
  detail::expect_folder(folder);
  if (!detail::is_file(folder.config())) {
    throw IoError("the model folder " + folder.path.string() + " has no config.json.");
  }
  return read_json_file(folder.config());
}

/// Writes config.json, all or nothing, and the folder if it is not there.
/// @throws IoError naming the path
inline void write_config(HuggingFaceFolder const& folder, Json const& config) {
  ensure_directory(folder.path);
  write_json_file(folder.config(), config);
}

/// The path of model.safetensors or, where the weights are split, of their index.
/// @throws IoError that says what is there instead: pickles are refused, because opening one runs
/// code from the file
inline std::filesystem::path find_weights(HuggingFaceFolder const& folder) {
  detail::expect_folder(folder);
  if (detail::is_file(folder.weights())) return folder.weights();
  if (detail::is_file(folder.index())) return folder.index();
  std::string const start =
      "the model folder " + folder.path.string() + " has no model.safetensors";
  for (char const* const name : {"pytorch_model.bin", "pytorch_model.bin.index.json"}) {
    if (!detail::is_file(folder.path / name)) continue;
    throw IoError(start + " but a " + name +
                  ", which stands for pickles: pickles are refused, because opening one can run "
                  "code; make a safetensors folder of it with: python examples/convert/convert.py "
                  "--model " +
                  folder.path.string() + " --out FOLDER");
  }
  throw IoError(start + ".");
}

/// The weights of a model folder, in one file or in several. All headers are read and held against
/// the index on construction, a tensor when it is asked for.
class FolderWeights {
 public:
  /// @throws IoError if there are none, or they are pickles
  /// @throws IoError naming the file and the tensor if an index and its shards disagree: a shard
  /// that is missing, a tensor that is in none of them, in another than the index says, in two, or
  /// not in the index
  explicit FolderWeights(HuggingFaceFolder const& folder) : path_(find_weights(folder)) {
    if (path_ == folder.weights()) {
      files_.emplace_back(path_);
      for (auto const& name : files_.front().names()) add(name, files_.front());
      if (detail::is_file(folder.index())) {
        warnings_.push_back(folder.index().string() +
                            " is not read, because model.safetensors is beside it.");
      }
      return;
    }
    read_shards(folder);
  }

  /// model.safetensors, or the index.
  std::filesystem::path const& path() const { return path_; }
  /// Tensor names, those of the first file first.
  std::vector<std::string> const& names() const { return names_; }
  bool contains(std::string const& name) const { return file_of_.count(name) != 0; }
  /// What is odd but does no harm.
  std::vector<std::string> const& warnings() const { return warnings_; }

  /// The file that a tensor lies in.
  /// @throws IoError that names the file or the index if there is no such tensor
  SafeTensorsFile const& file_of(std::string const& name) const {
    auto const found = file_of_.find(name);
    if (found == file_of_.end()) {
      throw IoError(path_.string() + " has no tensor \"" + name + "\".");
    }
    return *found->second;
  }

  /// @throws IoError that names the file or the index if there is no such tensor
  TensorInfo const& info(std::string const& name) const { return file_of(name).info(name); }

  /// Copies a tensor out. @see SafeTensorsFile::copy_to
  template <class T>
  void copy_to(std::string const& name, std::span<T> out, std::span<index_t const> shape) const {
    file_of(name).copy_to(name, out, shape);
  }

  /// True if two tensors have the same type, shape and bytes.
  /// @throws IoError if one is missing
  bool same_contents(std::string const& a, std::string const& b) const {
    TensorInfo const& x = info(a);
    TensorInfo const& y = info(b);
    if (x.dtype != y.dtype || x.shape != y.shape) return false;
    std::uint64_t const bytes = x.end - x.begin;
    std::vector<std::byte> left(static_cast<std::size_t>(std::min<std::uint64_t>(bytes, 1 << 20)));
    std::vector<std::byte> right(left.size());
    for (std::uint64_t at = 0; at < bytes; at += left.size()) {
      auto const n = static_cast<std::size_t>(std::min<std::uint64_t>(left.size(), bytes - at));
      file_of(a).read_part(x, at, std::span(left).first(n));
      file_of(b).read_part(y, at, std::span(right).first(n));
      if (std::memcmp(left.data(), right.data(), n) != 0) return false;
    }
    return true;
  }

 private:
  void add(std::string const& name, SafeTensorsFile const& file) {
    names_.push_back(name);
    file_of_.emplace(name, &file);
  }

  void read_shards(HuggingFaceFolder const& folder) {
    detail::WeightIndex const index = detail::read_weight_index(path_);
    // Sorted, so that the same folder gives the same order and the same first complaint.
    std::map<std::string, std::string> shards;  // file to one of its tensors
    for (auto const& [tensor, name] : index.file_of) shards.emplace(name, tensor);
    std::uint64_t bytes = 0;
    for (auto const& [name, tensor] : shards) {
      auto const path = folder.path / name;
      if (!detail::is_file(path)) {
        throw IoError(path.string() + " is missing: " + path_.string() + " says that tensor \"" +
                      tensor + "\" lies in it.");
      }
      SafeTensorsFile const& file = files_.emplace_back(path);
      for (auto const& held : file.names()) {
        if (contains(held)) {
          throw IoError("tensor \"" + held + "\" lies in two files: " +
                        file_of(held).path().string() + " and " + path.string() + ".");
        }
        if (index.file_of.count(held) == 0) {
          throw IoError(path.string() + " has tensor \"" + held + "\", which " + path_.string() +
                        " does not list.");
        }
        add(held, file);
        TensorInfo const& info = file.info(held);
        bytes += info.end - info.begin;
      }
    }
    for (auto const& [tensor, name] : index.file_of) {
      if (!contains(tensor)) {
        throw IoError((folder.path / name).string() + " has no tensor \"" + tensor + "\", which " +
                      path_.string() + " says lies in it.");
      }
      if (file_of(tensor).path() != folder.path / name) {
        throw IoError("tensor \"" + tensor + "\" lies in " + file_of(tensor).path().string() +
                      ", and " + path_.string() + " says that it lies in " + name + ".");
      }
    }
    if (index.total_size != 0 && index.total_size != bytes) {
      warnings_.push_back(path_.string() + " says that there are " +
                          std::to_string(index.total_size) + " bytes of tensors; there are " +
                          std::to_string(bytes) + ".");
    }
  }

  std::filesystem::path path_;
  std::deque<SafeTensorsFile> files_;  // a deque, for pointers into it must stay good
  std::vector<std::string> names_;
  std::unordered_map<std::string, SafeTensorsFile const*> file_of_;
  std::vector<std::string> warnings_;
};

/// No limit on the size of a weight file.
inline constexpr std::uint64_t one_file = std::numeric_limits<std::uint64_t>::max();

namespace detail {

/// The shards that a folder's index names; none where there is no index, or one that cannot be
/// read: nothing is removed on its word.
inline std::set<std::string> indexed_shards(HuggingFaceFolder const& folder) {
  std::set<std::string> shards;
  if (!is_file(folder.index())) return shards;
  try {
    for (auto const& [tensor, name] : read_weight_index(folder.index()).file_of) {
      shards.insert(name);
    }
  } catch (IoError const&) {
    shards.clear();
  }
  return shards;
}

}  // namespace detail

/// Writes the weights of a model folder: model.safetensors or, where they are more than
/// `max_shard_bytes`, model-00001-of-0000N.safetensors and so on with their index. Shards are
/// filled in the order of `tensors`; one that is larger than a shard has one for itself. Weights
/// that were there before go.
///
/// Everything is on the disk under temporary names before anything takes its place, so that a full
/// disk leaves the old weights as they were. Then the shards take their names, and last the file
/// that makes them count. Whoever reads in between finds the old weights; or, where old shards and
/// new ones have the same names, none, but never a mixture.
/// @return the number of files, the index not counted
/// @throws ShapeError if a tensor's bytes do not fit its shape, or two have one name
/// @throws ConfigError if a shard may have no bytes
/// @throws IoError naming the file that cannot be written
inline std::size_t write_weights(HuggingFaceFolder const& folder,
                                 std::span<TensorToWrite const> tensors,
                                 std::uint64_t max_shard_bytes = one_file,
                                 std::map<std::string, std::string> const& metadata = {
                                     {"format", "pt"}}) {
  expects<ConfigError>(max_shard_bytes > 0, "a shard must be allowed at least one byte.");
  static_cast<void>(detail::order_of_writing(tensors));  // names must differ across shards, too
  ensure_directory(folder.path);
  std::vector<std::vector<TensorToWrite>> shards(1);
  std::uint64_t filled = 0;
  std::uint64_t total = 0;
  for (auto const& tensor : tensors) {
    std::uint64_t const bytes = tensor.bytes.size();
    if (!shards.back().empty() && (filled > max_shard_bytes || bytes > max_shard_bytes - filled)) {
      shards.emplace_back();
      filled = 0;
    }
    shards.back().push_back(tensor);
    filled += bytes;
    total += bytes;
  }
  std::set<std::string> old = detail::indexed_shards(folder);
  std::error_code ignored;
  auto const remove_old = [&] {
    for (auto const& name : old) std::filesystem::remove(folder.path / name, ignored);
  };
  if (shards.size() == 1) {
    write_safetensors(folder.weights(), tensors, metadata);
    std::filesystem::remove(folder.index(), ignored);
    remove_old();
    return 1;
  }

  auto const number = [](std::size_t n) {
    std::string const digits = std::to_string(n);
    return std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits;
  };
  std::deque<AtomicFile> files;
  Json map = Json::object();
  bool same_names = false;
  for (std::size_t i = 0; i < shards.size(); ++i) {
    std::string const name =
        "model-" + number(i + 1) + "-of-" + number(shards.size()) + ".safetensors";
    detail::write_tensors(files.emplace_back(folder.path / name), shards[i], metadata);
    for (auto const& tensor : shards[i]) map[tensor.name] = name;
    if (old.erase(name) != 0) same_names = true;
  }
  Json const index{{"metadata", {{"total_size", total}}}, {"weight_map", std::move(map)}};
  files.emplace_back(folder.index())
      .write(index.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");

  for (AtomicFile& file : files) file.flush();
  if (same_names) std::filesystem::remove(folder.index(), ignored);
  for (AtomicFile& file : files) file.commit();
  // While this file is there it counts, not the index.
  std::filesystem::remove(folder.weights(), ignored);
  remove_old();
  return shards.size();
}

/// The path of spiece.model, which is there.
/// @throws IoError that says so if it is not
inline std::filesystem::path find_spiece_model(HuggingFaceFolder const& folder) {
  detail::expect_folder(folder);
  if (detail::is_file(folder.tokenizer())) return folder.tokenizer();
  std::string const start = "the model folder " + folder.path.string() + " has no spiece.model";
  if (detail::is_file(folder.fast_tokenizer())) {
    throw IoError(start +
                  " but a tokenizer.json, from which no text is cut here: copy the spiece.model "
                  "that the model came with into the folder, or make one of it with: python "
                  "examples/convert/convert.py --model " +
                  folder.path.string() + " --out FOLDER");
  }
  throw IoError(start + ".");
}

/// The vocabulary of a tokenizer.json.
struct FastTokenizer {
  struct Piece {
    std::string text;
    double score = 0;
  };
  std::vector<Piece> pieces;                  ///< by id
  std::map<std::int64_t, std::string> added;  ///< tokens beside the model, by id
};

/// Reads the vocabulary of a tokenizer.json of the kind that T5 has (a unigram model).
/// @throws IoError naming the file and what is wrong in it
inline FastTokenizer read_fast_tokenizer(std::filesystem::path const& path) {
  std::string const where = path.string();
  Json const json = read_json_file(path);
  auto const model = json.find("model");
  if (model == json.end() || !model->is_object()) throw IoError(where + ": there is no \"model\".");
  auto const type = model->find("type");
  if (type != model->end() && *type != "Unigram") {
    throw IoError(where + ": the tokenizer is of type " + type->dump() +
                  "; T5's is of type \"Unigram\".");
  }
  auto const vocabulary = model->find("vocab");
  if (vocabulary == model->end() || !vocabulary->is_array()) {
    throw IoError(where + ": the model has no list \"vocab\".");
  }
  FastTokenizer tokenizer;
  for (auto const& entry : *vocabulary) {
    if (!entry.is_array() || entry.size() != 2 || !entry[0].is_string() || !entry[1].is_number()) {
      throw IoError(where + ": entry " + std::to_string(tokenizer.pieces.size()) +
                    " of \"vocab\" is not a piece with its score.");
    }
    tokenizer.pieces.push_back({entry[0].get<std::string>(), entry[1].get<double>()});
  }
  auto const added = json.find("added_tokens");
  if (added == json.end() || added->is_null()) return tokenizer;
  if (!added->is_array()) throw IoError(where + ": \"added_tokens\" is not a list.");
  for (auto const& entry : *added) {
    auto const id = entry.is_object() ? entry.find("id") : entry.end();
    auto const content = entry.is_object() ? entry.find("content") : entry.end();
    if (id == entry.end() || !id->is_number_integer() || content == entry.end() ||
        !content->is_string()) {
      throw IoError(where + ": an entry of \"added_tokens\" has no \"id\" and \"content\".");
    }
    tokenizer.added[id->get<std::int64_t>()] = content->get<std::string>();
  }
  return tokenizer;
}

}  // namespace emprl::io
