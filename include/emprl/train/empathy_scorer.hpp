// SPDX-License-Identifier: Apache-2.0
#pragma once

// The three identifiers as they lie in a folder (er/, ip/, ex/), and the function from text to
// level probabilities that they make.

#include <algorithm>
#include <cmath>
#include <concepts>
#include <filesystem>
#include <functional>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "emprl/empathy/identifier.hpp"
#include "emprl/empathy/levels.hpp"
#include "emprl/text/batching.hpp"
#include "emprl/train/engine.hpp"
#include "emprl/train/model_folder.hpp"

namespace emprl::train {

/// One identifier with its tokenizer. Move-only.
template <Scalar T>
struct IdentifierModel {
  empathy::Identifier<T, Cpu> model;
  empathy::IdentifierParameters<T, Cpu> weights;
  text::SentencePieceTokenizer tokenizer;
  FolderOrigin origin;                ///< of the folder that it was read from
  std::vector<std::string> warnings;  ///< of loading: tensors that were not used

  /// All weights zero.
  IdentifierModel(t5::Config const& config, text::SentencePieceTokenizer spiece)
      : model(config), weights(config), tokenizer(std::move(spiece)) {
    expect_room();
  }

  /// With weights that the caller writes before anything reads them.
  IdentifierModel(nn::Unset unset, t5::Config const& config, text::SentencePieceTokenizer spiece)
      : model(config), weights(unset, config), tokenizer(std::move(spiece)) {
    expect_room();
  }

 private:
  void expect_room() const {
    expects<ConfigError>(tokenizer.size() <= model.config().vocab_size,
                         "the tokenizer has more ids than the identifier's vocabulary.");
  }
};

/// @throws IoError naming the file, and the field or tensor in it, that is missing or wrong
template <Scalar T>
IdentifierModel<T> load_identifier(std::filesystem::path const& path) {
  io::HuggingFaceFolder const folder{path};
  io::Json json = io::read_config(folder);
  t5::Config const config = config_from_json(json, folder.config().string());
  io::FolderWeights const file(folder);
  std::vector<std::string> warnings = file.warnings();
  detail::expect_tensors(file, empathy::IdentifierParameters<T, Cpu>::layout(config));
  IdentifierModel<T> identifier(nn::Unset{}, config, read_tokenizer(folder, warnings));
  auto const extra = read_parameters(file, identifier.weights);
  if (!extra.empty()) {
    warnings.push_back(file.path().string() + ": the identifier has no use for " +
                       (extra.size() == 1 ? "the tensor " : "the tensors ") +
                       detail::some_of(extra) + ".");
  }
  identifier.origin = read_origin(path, std::move(json));
  identifier.warnings = std::move(warnings);
  return identifier;
}

/// Writes an identifier's folder: the encoders' configuration, the weights under the published
/// names, the tokenizer.
/// @throws IoError if a file cannot be written
template <Scalar T>
void save_identifier(std::filesystem::path const& path, IdentifierModel<T> const& identifier) {
  io::ensure_directory(path);
  io::HuggingFaceFolder const folder{path};
  io::Json config = config_to_json(identifier.model.config(), identifier.origin.config);
  config["architectures"] = {"EmpathyIdentifier"};
  io::write_config(folder, config);
  detail::write_tokenizer(folder, identifier.tokenizer, identifier.origin);
  io::write_weights(folder, detail::tensors_of(identifier.weights));
}

namespace detail {

/// p[row][level]; logits(contexts, responses, out) writes a part's logits (rows, 3) to the host.
template <Scalar T, class Logits>
std::vector<empathy::MechanismProbabilities> level_probabilities(Logits&& logits_of,
                                                                 text::EncodedPairs const& pairs,
                                                                 index_t rows_at_once) {
  std::vector<empathy::MechanismProbabilities> all;
  std::vector<index_t> rows;
  for (index_t begin = 0; begin < pairs.rows(); begin += rows_at_once) {
    rows.resize(static_cast<std::size_t>(std::min(rows_at_once, pairs.rows() - begin)));
    std::iota(rows.begin(), rows.end(), begin);
    text::EncodedPairs const part = text::gather_pairs(pairs, rows);
    Tensor<T, 2, Cpu> const logits({part.rows(), empathy::level_count});
    logits_of(part.contexts.view(), part.responses.view(), logits.view());
    for (index_t i = 0; i < part.rows(); ++i) {
      empathy::MechanismProbabilities p{};
      double const most = static_cast<double>(std::max({logits(i, 0), logits(i, 1), logits(i, 2)}));
      for (std::size_t l = 0; l < p.size(); ++l) {
        p[l] = std::exp(static_cast<double>(logits(i, static_cast<index_t>(l))) - most);
      }
      double const sum = p[0] + p[1] + p[2];
      for (double& x : p) x /= sum;
      all.push_back(p);
    }
  }
  return all;
}

}  // namespace detail

/// p[row][level] of one identifier for encoded pairs, `rows_at_once` rows in one pass.
template <Scalar T>
std::vector<empathy::MechanismProbabilities> level_probabilities(
    Cpu& dev, IdentifierModel<T> const& identifier, text::EncodedPairs const& pairs,
    index_t rows_at_once = rows_in_a_pass) {
  return detail::level_probabilities<T>(
      [&](RaggedView contexts, RaggedView responses, TensorView<T, 2, Cpu> out) {
        identifier.model.inference(dev, identifier.weights.views(), contexts, responses, out);
      },
      pairs, rows_at_once);
}

/// The same on an engine's device.
inline std::vector<empathy::MechanismProbabilities> level_probabilities(
    EngineIdentifier& identifier, text::EncodedPairs const& pairs,
    index_t rows_at_once = rows_in_a_pass) {
  return detail::level_probabilities<float>(
      [&](RaggedView contexts, RaggedView responses, TensorView<float, 2, Cpu> out) {
        identifier.logits(contexts, responses, out);
      },
      pairs, rows_at_once);
}

/// p[row][level] of an identifier for encoded pairs, at most so many rows in one pass: the model
/// and the device that it is on, in one function.
using LevelFunction = std::function<std::vector<empathy::MechanismProbabilities>(
    text::EncodedPairs const& pairs, index_t rows_at_once)>;

/// An identifier as such a function, which owns it. Its tokenizer may be moved out of it before.
/// @param dev  outlives the function
template <Scalar T>
LevelFunction level_function(Cpu& dev, IdentifierModel<T> identifier) {
  auto const model = std::make_shared<IdentifierModel<T> const>(std::move(identifier));
  return [&dev, model](text::EncodedPairs const& pairs, index_t rows_at_once) {
    return level_probabilities(dev, *model, pairs, rows_at_once);
  };
}

/// The same on an engine's device.
/// @param engine  outlives the function
inline LevelFunction level_function(Engine& engine, IdentifierModel<float> identifier) {
  auto model = std::make_shared<IdentifierModel<float> const>(std::move(identifier));
  std::shared_ptr<EngineIdentifier> const there = engine.load(model->model, model->weights);
  // The host's weights are those of the host's engine, and nobody's where they have gone up.
  if (engine.cpu() == nullptr) model = nullptr;
  return [model, there](text::EncodedPairs const& pairs, index_t rows_at_once) {
    return level_probabilities(*there, pairs, rows_at_once);
  };
}

/// The three identifiers of a folder as one function of text.
template <Scalar T>
class EmpathyScorer {
 public:
  /// @param dev     outlives the scorer
  /// @param folder  holds er/, ip/ and ex/
  /// @throws IoError naming what is missing or wrong
  EmpathyScorer(Cpu& dev, std::filesystem::path const& folder) : threads_(dev.threads) {
    load(dev, folder);
  }

  /// The same on an engine's device.
  /// @param engine  outlives the scorer
  EmpathyScorer(Engine& engine,
                std::filesystem::path const& folder) requires(std::same_as<T, float>)
      : threads_(engine.cpu() != nullptr ? engine.cpu()->threads : beside_a_device) {
    load(engine, folder);
  }

  /// Of loading: tensors that were not used.
  std::vector<std::string> const& warnings() const { return warnings_; }

  /// p[row][mechanism][level] of each response to its context, encoded anew with each identifier's
  /// own tokenizer.
  /// @throws ShapeError if there is not one response for each context
  std::vector<empathy::LevelProbabilities> operator()(
      std::span<std::string const> contexts, std::span<std::string const> responses) const {
    expects(contexts.size() == responses.size(),
            "the identifiers need one response for each context");
    std::vector<empathy::LevelProbabilities> all(contexts.size());
    text::TokenLimits const limits;
    text::EncodedPairs pairs;
    for (std::size_t k = 0; k < tokenizers_.size(); ++k) {
      auto const& tokenizer = tokenizers_[k];
      if (k == 0 || tokenizer.serialized() != tokenizers_[k - 1].serialized()) {
        pairs.contexts = text::encode_texts(tokenizer, contexts, limits.context, threads_);
        pairs.responses = text::encode_texts(tokenizer, responses, limits.response, threads_);
      }
      auto const one = levels_[k](pairs, rows_in_a_pass);
      for (std::size_t i = 0; i < one.size(); ++i) all[i][k] = one[i];
    }
    return all;
  }

 private:
  template <class Place>
  void load(Place& place, std::filesystem::path const& folder) {
    for (data::Mechanism const mechanism : data::all_mechanisms) {
      auto identifier = load_identifier<T>(folder / std::string(data::mechanism_name(mechanism)));
      warnings_.insert(warnings_.end(), identifier.warnings.begin(), identifier.warnings.end());
      tokenizers_.push_back(std::move(identifier.tokenizer));
      levels_.push_back(level_function(place, std::move(identifier)));
    }
  }

  /// Threads that read text while a device with a memory of its own has nothing to do.
  static constexpr int beside_a_device = 4;

  int threads_;
  std::vector<text::SentencePieceTokenizer> tokenizers_;
  std::vector<LevelFunction> levels_;
  std::vector<std::string> warnings_;
};

}  // namespace emprl::train
