// SPDX-License-Identifier: Apache-2.0
#pragma once

// Adapters as they lie in folders of their own, apart from the model that they belong to.
//
// LoRA, as PEFT writes and reads it:
//   adapter_config.json        peft_type LORA, r, lora_alpha, target_modules, ...
//   adapter_model.safetensors  base_model.model.<module>.lora_A.weight (R, I), lora_B.weight (O, R)
//
// Prefixes, in a layout of ours:
//   adapter_config.json        adapter_type prefix, length
//   adapter.safetensors        prefix.encoder, prefix.decoder, prefix.cross, each
//                              (length, layers * 2 * inner): key and value of layer 0, of layer 1,
//                              ...
//
// PEFT's own prefixes (peft_type PREFIX_TUNING, one matrix prompt_embeddings) cannot be such
// prefixes on a T5. PEFT hands its vectors to transformers as keys and values of the past, the same
// ones to the decoder's self-attention and to cross-attention. Nothing goes to the encoder.
// Cross-attention drops them; with PEFT 0.12 and transformers 4.44 a prefix as long as the
// encoder's output even replaces that (0.21 and 5.24: no more). In self-attention they have a place
// before the first token, and the relative bias of it. Reading such a folder would give another
// function than the one that was trained, so it is refused.

#include <algorithm>
#include <bitset>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "emprl/io/file.hpp"
#include "emprl/io/json.hpp"
#include "emprl/io/safetensors.hpp"
#include "emprl/train/parameter_file.hpp"
#include "emprl/train/t5_weights.hpp"

namespace emprl::train {

namespace detail {

inline constexpr char const* adapter_config = "adapter_config.json";
inline constexpr char const* lora_file = "adapter_model.safetensors";
inline constexpr char const* prefix_file = "adapter.safetensors";
/// What PEFT puts before the names of a model's tensors.
inline constexpr char const* peft_root = "base_model.model.";

/// A key of PEFT's rank_pattern and alpha_pattern: a regular expression for the end of a module's
/// name, from its start or after a dot. Understood are characters, ".", classes in brackets, \d,
/// \w, each of them alone or with *, + or ?, and alternatives without parentheses. Matching takes
/// time in proportion to both lengths.
class ModulePattern {
 public:
  /// @throws IoError naming the file and the key if it holds anything else
  ModulePattern(std::string_view key, std::string const& where) {
    auto const refuse = [&] {
      throw IoError(where + ": the pattern \"" + std::string(key) +
                    "\" is a regular expression beyond what is understood here; name the modules "
                    "one by one.");
    };
    ways_.emplace_back();
    for (std::size_t i = 0; i < key.size(); ++i) {
      Atom atom;
      char const c = key[i];
      if (c == '|') {
        ways_.emplace_back();
        continue;
      }
      if (static_cast<unsigned char>(c) >= 128 || std::string_view("(){}^$*+?]").find(c) != npos)
        refuse();
      if (c == '.') {
        atom.accepts.set();
      } else if (c == '\\') {
        if (++i == key.size() || !escape(key[i], atom.accepts)) refuse();
      } else if (c == '[') {
        if (!read_class(key, i, atom.accepts)) refuse();
      } else {
        accept(atom.accepts, c);
      }
      if (i + 1 < key.size() && std::string_view("*+?").find(key[i + 1]) != npos)
        atom.often = key[++i];
      // "*?" and the like would be other operators.
      if (atom.often != '1' && i + 1 < key.size() &&
          std::string_view("*+?").find(key[i + 1]) != npos) {
        refuse();
      }
      ways_.back().push_back(atom);
    }
  }

  bool matches(std::string_view module) const {
    return std::any_of(ways_.begin(), ways_.end(),
                       [&](std::vector<Atom> const& way) { return matches(way, module); });
  }

 private:
  static constexpr std::size_t npos = std::string_view::npos;
  using Characters = std::bitset<128>;
  struct Atom {
    Characters accepts;
    char often = '1';
  };

  static void accept(Characters& set, char c) { set.set(static_cast<unsigned char>(c)); }

  static bool escape(char c, Characters& set) {
    bool const word = c == 'w';
    if (c == 'd' || word) {
      for (char x = '0'; x <= '9'; ++x) accept(set, x);
      for (char x = 'a'; word && x <= 'z'; ++x) accept(set, x);
      for (char x = 'A'; word && x <= 'Z'; ++x) accept(set, x);
      if (word) accept(set, '_');
      return true;
    }
    // Other letters and digits are operators.
    bool const letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (letter || static_cast<unsigned char>(c) >= 128) return false;
    accept(set, c);
    return true;
  }

  /// From "[" at i to its "]", where i then is.
  static bool read_class(std::string_view key, std::size_t& i, Characters& set) {
    std::size_t at = i + 1;
    bool const negated = at < key.size() && key[at] == '^';
    if (negated) ++at;
    std::size_t const first = at;
    for (; at < key.size() && (key[at] != ']' || at == first); ++at) {
      char const c = key[at];
      if (static_cast<unsigned char>(c) >= 128 || c == '[') return false;
      if (c == '\\') {
        if (++at == key.size() || !escape(key[at], set)) return false;
      } else if (at + 2 < key.size() && key[at + 1] == '-' && key[at + 2] != ']') {
        char const last = key[at + 2];
        if (static_cast<unsigned char>(last) >= 128 || last == '\\' || last < c) return false;
        for (int x = c; x <= last; ++x) set.set(static_cast<std::size_t>(x));
        at += 2;
      } else {
        accept(set, c);
      }
    }
    if (at >= key.size()) return false;
    if (negated) set.flip();
    i = at;
    return true;
  }

  /// Where in the name a match of the atoms so far may end, one atom after the other.
  static bool matches(std::vector<Atom> const& way, std::string_view module) {
    std::size_t const n = module.size();
    std::vector<bool> reached(n + 1, false);
    reached[0] = true;
    for (std::size_t i = 0; i < n; ++i) {
      if (module[i] == '.') reached[i + 1] = true;
    }
    for (Atom const& atom : way) {
      std::vector<bool> next(n + 1, false);
      for (std::size_t i = 0; i <= n; ++i) {
        if (reached[i] && (atom.often == '*' || atom.often == '?')) next[i] = true;
        bool const again = (atom.often == '*' || atom.often == '+') && next[i];
        bool const takes = i < n && static_cast<unsigned char>(module[i]) < 128 &&
                           atom.accepts.test(static_cast<unsigned char>(module[i]));
        if (takes && (reached[i] || again)) next[i + 1] = true;
      }
      reached = std::move(next);
    }
    return reached[n];
  }

  std::vector<std::vector<Atom>> ways_;
};

/// The numbers that a pattern gives to some modules.
class PatternNumbers {
 public:
  /// @throws IoError naming the file and the field
  PatternNumbers(io::Json const& json, char const* field, std::string const& where) {
    auto const it = json.find(field);
    if (it == json.end() || it->is_null()) return;
    expects<IoError>(it->is_object() && it->size() <= 4096,
                     where + ": the field \"" + field + "\" must be an object of numbers.");
    for (auto const& [key, value] : it->items()) {
      expects<IoError>(value.is_number() && key.size() <= 256,
                       where + ": the field \"" + field + "\" must be an object of numbers.");
      keys_.emplace_back(ModulePattern(key, where), value.template get<double>());
    }
  }

  /// That of the first key that matches.
  double of(std::string const& module, double otherwise) const {
    for (auto const& [pattern, number] : keys_) {
      if (pattern.matches(module)) return number;
    }
    return otherwise;
  }

 private:
  std::vector<std::pair<ModulePattern, double>> keys_;
};

/// Whether a field of PEFT's configuration says anything: it is there, and not null, false or
/// empty.
inline bool says_something(io::Json const& json, char const* field) {
  auto const it = json.find(field);
  return it != json.end() && !it->is_null() && *it != io::Json(false) &&
         !(it->is_structured() && it->empty());
}

/// @throws IoError naming the first field that asks for something else than a plain LoRA
inline void check_plain_lora(io::Json const& json, std::string const& where) {
  std::pair<char const*, char const*> const refused[] = {
      {"use_dora", "weight-decomposed LoRA (DoRA) is not supported"},
      {"lora_bias", "biases in a LoRA are not supported"},
      {"fan_in_fan_out", "T5 has no weights that lie the other way round"},
      {"modules_to_save", "modules that are trained whole are not read; merge the adapter first"},
      {"layer_replication", "repeated layers are not supported"},
      {"trainable_token_indices", "trained rows of the embedding are not supported"},
      {"target_parameters", "single parameters as targets are not supported"},
      {"megatron_config", "layers of Megatron are not supported"},
      {"use_qalora", "quantised LoRA (QALoRA) is not supported"},
      {"alora_invocation_tokens", "a LoRA that some tokens invoke is not supported"},
      {"arrow_config", "a mixture of LoRAs is not supported"},
      {"use_bdlora", "block-diagonal LoRA is not supported"},
  };
  for (auto const& [field, why] : refused) {
    if (says_something(json, field)) throw IoError(where + ": " + field + " is set; " + why + ".");
  }
  // T5's projections have no biases: there is nothing that could be trained.
  std::string const bias = json_field<std::string>(json, "bias", "none", false, where);
  if (bias != "none" && bias != "all" && bias != "lora_only") {
    throw IoError(where + ": bias is \"" + bias + "\"; \"none\" is understood.");
  }
  std::string const task = json_field<std::string>(json, "task_type", "SEQ_2_SEQ_LM", false, where);
  if (task != "SEQ_2_SEQ_LM") {
    throw IoError(where + ": task_type is \"" + task +
                  "\"; an adapter of a generator has SEQ_2_SEQ_LM.");
  }
  // Some ways to begin change the base model's weights, which are then others than those here.
  auto const begin = json.find("init_lora_weights");
  if (begin != json.end() && begin->is_string()) {
    auto const way = begin->get<std::string>();
    if (way != "gaussian" && way != "eva" && way != "orthogonal") {
      throw IoError(where + ": init_lora_weights is \"" + way +
                    "\", which changes the weights of the base model; convert the adapter to a "
                    "plain LoRA first.");
    }
  }
}

/// The module and the matrix, 'A' or 'B', that a tensor of a LoRA's file is.
/// @throws IoError naming the tensor if it is none
inline std::pair<std::string, char> lora_tensor(std::string const& name, std::string const& where) {
  std::string_view rest = name;
  bool const rooted = rest.starts_with(peft_root);
  if (rooted) rest.remove_prefix(std::string_view(peft_root).size());
  for (char const matrix : {'A', 'B'}) {
    std::string const end = std::string(".lora_") + matrix + ".weight";
    if (rooted && rest.ends_with(end)) {
      return {std::string(rest.substr(0, rest.size() - end.size())), matrix};
    }
  }
  throw IoError(where + " has the tensor \"" + name +
                "\", which is no matrix of a LoRA on a projection; embeddings, biases and whole "
                "modules are not read.");
}

/// @throws IoError that says what is there instead
inline std::filesystem::path find_lora_file(std::filesystem::path const& path) {
  std::error_code ignored;
  if (std::filesystem::is_regular_file(path / lora_file, ignored)) return path / lora_file;
  std::string const start = "the adapter folder " + path.string() + " has no " + lora_file;
  if (std::filesystem::is_regular_file(path / "adapter_model.bin", ignored)) {
    throw IoError(start + " but an adapter_model.bin, which is a pickle: pickles are refused, " +
                  "because opening one can run code; save the adapter as safetensors.");
  }
  throw IoError(start + ".");
}

/// Which modules a configuration and its file say have a LoRA, with rank and alpha.
/// @throws IoError naming file and field or tensor where the two contradict each other
inline t5::LoraShape read_lora_shape(t5::Config const& model, io::Json const& json,
                                     std::string const& where, io::SafeTensorsFile const& file) {
  check_plain_lora(json, where);
  std::string const tensors = file.path().string();
  t5::LoraShape shape{model, {}, 0, false};
  shape.dropout = json_field<double>(json, "lora_dropout", 0.0, false, where);
  expects<IoError>(shape.dropout >= 0 && shape.dropout < 1,
                   where + ": lora_dropout must be in [0, 1).");
  shape.rank_stabilised = json_field<bool>(json, "use_rslora", false, false, where);
  auto const rank = static_cast<double>(json_field<index_t>(json, "r", 8, true, where));
  auto const alpha = json_field<double>(json, "lora_alpha", 8.0, true, where);
  PatternNumbers const ranks(json, "rank_pattern", where);
  PatternNumbers const alphas(json, "alpha_pattern", where);

  std::map<std::string, std::set<char>> found;
  for (std::string const& name : file.names()) {
    auto const [module, matrix] = lora_tensor(name, tensors);
    found[module].insert(matrix);
  }
  // A list names modules whole or from a dot on. A text is a regular expression, for which the
  // file's tensors speak.
  auto const targets = json.find("target_modules");
  std::vector<std::string> names;
  if (targets != json.end() && targets->is_array()) {
    for (auto const& target : *targets) {
      expects<IoError>(target.is_string(),
                       where + ": the field \"target_modules\" must be a list of names.");
      names.push_back(target.template get<std::string>());
    }
  } else if (targets != json.end() && *targets == io::Json("all-linear")) {
    names.emplace_back("all-linear");
  }
  bool const some_layers =
      says_something(json, "layers_to_transform") || says_something(json, "exclude_modules");
  for (t5::LoraModule& module : t5::projections(model)) {
    bool const named = std::any_of(names.begin(), names.end(), [&](std::string const& target) {
      return t5::is_target(module.name, target);
    });
    auto const it = found.find(module.name);
    if (it == found.end()) {
      expects<IoError>(!named || some_layers, tensors + " has no LoRA of " + module.name +
                                                  ", which target_modules of " + where + " names.");
      continue;
    }
    expects<IoError>(named || names.empty(), tensors + " has a LoRA of " + module.name +
                                                 ", which target_modules of " + where +
                                                 " does not name.");
    expects<IoError>(it->second.size() == 2, tensors + " has only one matrix of " + module.name +
                                                 "; lora_A and lora_B belong together.");
    auto const& a = file.info(std::string(peft_root) + module.name + ".lora_A.weight").shape;
    expects<IoError>(a.size() == 2 && a[0] >= 1,
                     tensors + ": lora_A of " + module.name + " is no matrix.");
    module.rank = a[0];
    double const expected = ranks.of(module.name, rank);
    if (static_cast<double>(module.rank) != expected) {
      throw IoError(tensors + ": lora_A of " + module.name + " has rank " +
                    std::to_string(module.rank) + " where " + where + " says " +
                    std::to_string(static_cast<index_t>(std::clamp(expected, -1e15, 1e15))) + ".");
    }
    module.alpha = alphas.of(module.name, alpha);
    expects<IoError>(std::isfinite(module.alpha), where + ": the alpha of LoRA must be finite.");
    shape.modules.push_back(module);
    found.erase(it);
  }
  if (!found.empty()) {
    throw IoError(tensors + " has a LoRA of " + found.begin()->first +
                  ", which is no projection in the layers of this model.");
  }
  expects<IoError>(!shape.modules.empty(), tensors + " holds no LoRA.");
  return shape;
}

/// What PEFT reads: the fields that all its versions know.
inline io::Json lora_config_to_json(t5::LoraShape const& shape, std::string const& base) {
  auto const number = [](double x) {
    bool const whole = std::abs(x) < 1e15 && std::floor(x) == x;
    return whole ? io::Json(static_cast<std::int64_t>(x)) : io::Json(x);
  };
  auto const last_part = [](std::string const& name) { return name.substr(name.rfind('.') + 1); };
  t5::LoraModule const first = shape.modules.empty() ? t5::LoraModule{} : shape.modules.front();
  std::set<std::string> chosen, kinds;
  io::Json ranks = io::Json::object(), alphas = io::Json::object();
  for (t5::LoraModule const& m : shape.modules) {
    chosen.insert(m.name);
    kinds.insert(last_part(m.name));
    if (m.rank != first.rank) ranks[m.name] = m.rank;
    if (m.alpha != first.alpha) alphas[m.name] = number(m.alpha);
  }
  // Short names where they say the same.
  bool whole_kinds = true;
  for (t5::LoraModule const& m : t5::projections(shape.model)) {
    if (kinds.count(last_part(m.name)) != 0 && chosen.count(m.name) == 0) whole_kinds = false;
  }
  return {{"alpha_pattern", alphas},
          {"auto_mapping", nullptr},
          {"base_model_name_or_path", base.empty() ? io::Json() : io::Json(base)},
          {"bias", "none"},
          {"fan_in_fan_out", false},
          {"inference_mode", true},
          {"init_lora_weights", true},
          {"layers_pattern", nullptr},
          {"layers_to_transform", nullptr},
          {"lora_alpha", number(first.alpha)},
          {"lora_dropout", shape.dropout},
          {"modules_to_save", nullptr},
          {"peft_type", "LORA"},
          {"r", first.rank},
          {"rank_pattern", ranks},
          {"revision", nullptr},
          {"target_modules", whole_kinds ? kinds : chosen},
          {"task_type", "SEQ_2_SEQ_LM"},
          {"use_dora", false},
          {"use_rslora", shape.rank_stabilised}};
}

}  // namespace detail

/// Reads prefixes that save_prefix wrote, in place of those that are there.
/// @throws IoError if they do not belong to a model of this shape
template <Scalar T>
void load_prefix(std::filesystem::path const& path, T5Weights<T, Cpu>& generator) {
  auto const where = path / detail::adapter_config;
  io::Json const json = io::read_json_file(where);
  std::string const type =
      detail::json_field<std::string>(json, "adapter_type", "", true, where.string());
  if (type != "prefix") {
    throw IoError(where.string() + ": adapter_type is \"" + type +
                  "\"; \"prefix\" is understood, and the LoRA of PEFT.");
  }
  auto const length = detail::json_field<index_t>(json, "length", 0, true, where.string());
  if (length < 0 || length > 4096) {
    throw IoError(where.string() + ": a prefix of " + std::to_string(length) +
                  " positions is not plausible.");
  }
  PrefixParameters<T> prefix(typename t5::Prefixes<T, Cpu>::Shape{generator.config(), length});
  read_parameters(io::SafeTensorsFile(path / detail::prefix_file), prefix);
  generator.prefix = std::move(prefix);
}

/// Writes the prefixes alone, in place of an adapter that was there.
/// @throws IoError if a file cannot be written
template <Scalar T>
void save_prefix(std::filesystem::path const& path, T5Weights<T, Cpu> const& generator) {
  io::ensure_directory(path);
  write_parameters(path / detail::prefix_file, generator.prefix);
  io::write_json_file(path / detail::adapter_config,
                      {{"adapter_type", "prefix"}, {"length", generator.prefix_length()}});
  std::error_code ignored;
  std::filesystem::remove(path / detail::lora_file, ignored);
}

/// Reads a LoRA that PEFT or save_lora wrote, and attaches it in place of the one that is there.
/// Ranks are those of the file's matrices. Keys of alpha_pattern are taken as current PEFT takes
/// them: the first one that matches, whatever rank_pattern has.
/// @throws IoError naming the file, and the field or tensor in it, that is missing, wrong, of
/// another model, or asks for more than a plain LoRA
template <Scalar T>
void load_lora(std::filesystem::path const& path, T5Weights<T, Cpu>& generator) {
  std::string const where = (path / detail::adapter_config).string();
  io::Json const json = io::read_json_file(where);
  io::SafeTensorsFile const file(detail::find_lora_file(path));
  t5::LoraShape shape = detail::read_lora_shape(generator.config(), json, where, file);
  // Shapes are proven before memory for the matrices is asked for.
  for (t5::LoraModule const& m : shape.modules) {
    auto const expect = [&](char const* matrix, std::vector<index_t> const& extents) {
      std::string const name = detail::peft_root + m.name + matrix;
      expects<IoError>(file.info(name).shape == extents,
                       file.path().string() + " has tensor \"" + name +
                           "\" of another shape than this model's; the adapter belongs to another "
                           "model.");
    };
    expect(".lora_A.weight", {m.rank, m.inputs});
    expect(".lora_B.weight", {m.outputs, m.rank});
  }
  t5::LoraParameters<T, Cpu> matrices(shape);
  read_parameters(file, matrices, detail::peft_root);
  generator.attach_lora(std::move(shape), std::move(matrices));
}

/// Writes the LoRA alone, as PEFT reads it, in place of an adapter that was there.
/// @param base  what base_model_name_or_path says: where the model lies; empty for nothing
/// @throws IoError if a file cannot be written
template <Scalar T>
void save_lora(std::filesystem::path const& path, T5Weights<T, Cpu> const& generator,
               std::string const& base = {}) {
  io::ensure_directory(path);
  write_parameters(path / detail::lora_file, generator.lora(), detail::peft_root);
  io::write_json_file(path / detail::adapter_config,
                      detail::lora_config_to_json(generator.lora_shape(), base));
  std::error_code ignored;
  std::filesystem::remove(path / detail::prefix_file, ignored);
}

/// Whether there is an adapter.
template <Element T, Device D>
bool has_adapter(T5Weights<T, D> const& generator) {
  return generator.prefix.size() > 0 || generator.lora().size() > 0;
}

/// Reads an adapter of either kind.
/// @throws IoError as load_prefix and load_lora, and for an adapter of another kind, saying which
template <Scalar T>
void load_adapter(std::filesystem::path const& path, T5Weights<T, Cpu>& generator) {
  auto const where = path / detail::adapter_config;
  io::Json const json = io::read_json_file(where);
  if (!json.contains("peft_type")) return load_prefix(path, generator);
  std::string const type =
      detail::json_field<std::string>(json, "peft_type", "", true, where.string());
  if (type == "PREFIX_TUNING") {
    throw IoError(
        where.string() +
        ": peft_type is PREFIX_TUNING. On a T5 PEFT's prefixes are others than those here: they "
        "reach the decoder's self-attention alone, under the relative bias; train the prefix with "
        "emprl finetune --tuning prefix.");
  }
  if (type != "LORA") {
    throw IoError(where.string() + ": peft_type is \"" + type +
                  "\"; LORA is understood, and prefixes that emprl wrote.");
  }
  load_lora(path, generator);
}

/// Writes the adapter that there is, of either kind.
/// @throws ConfigError if there is none, or one of each kind
template <Scalar T>
void save_adapter(std::filesystem::path const& path, T5Weights<T, Cpu> const& generator,
                  std::string const& base = {}) {
  bool const lora = generator.lora().size() > 0;
  expects<ConfigError>(has_adapter(generator), "there is no adapter that could be saved.");
  expects<ConfigError>(!lora || generator.prefix.size() == 0,
                       "a prefix and a LoRA at once cannot be saved in one folder.");
  if (lora) {
    save_lora(path, generator, base);
  } else {
    save_prefix(path, generator);
  }
}

}  // namespace emprl::train
