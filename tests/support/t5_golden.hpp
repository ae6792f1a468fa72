// SPDX-License-Identifier: Apache-2.0
#pragma once

// The recorded T5 models, and random ones of the same shapes.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "emprl/core/ragged.hpp"
#include "emprl/ops/gemm_cpu.hpp"
#include "emprl/ops/token_logprob.hpp"
#include "emprl/t5/model.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/golden.hpp"
#include "support/random_t5.hpp"

namespace support {

/// Every folder that tests/golden/make_t5_goldens.py writes, and what is in it is said there.
inline constexpr char const* t5_goldens[] = {
    "t5_v1_0", "t5_v1_1", "t5_flan", "t5_deep_encoder", "t5_one_token", "t5_wide_vocabulary"};

/// The configuration of a golden folder, read field by field.
inline emprl::t5::Config golden_config(std::string const& folder) {
  std::ifstream file(std::string(EMPRL_GOLDEN_DIR) + "/" + folder + "/config.json");
  auto const json = nlohmann::json::parse(file);
  emprl::t5::Config c;
  c.vocab_size = json.at("vocab_size").get<index_t>();
  c.d_model = json.at("d_model").get<index_t>();
  c.d_kv = json.at("d_kv").get<index_t>();
  c.d_ff = json.at("d_ff").get<index_t>();
  c.num_layers = json.at("num_layers").get<index_t>();
  c.num_decoder_layers = json.at("num_decoder_layers").get<index_t>();
  c.num_heads = json.at("num_heads").get<index_t>();
  c.relative_attention_num_buckets = json.at("relative_attention_num_buckets").get<int>();
  c.relative_attention_max_distance = json.at("relative_attention_max_distance").get<int>();
  c.dropout_rate = json.at("dropout_rate").get<double>();
  c.layer_norm_epsilon = json.at("layer_norm_epsilon").get<double>();
  c.feed_forward = json.at("feed_forward_proj").get<std::string>() == "relu"
                       ? emprl::nn::Activation::relu
                       : emprl::nn::Activation::gated_gelu;
  c.tie_word_embeddings = json.value("tie_word_embeddings", true);
  return c;
}

/// A golden folder loaded in format T.
template <class T>
struct GoldenT5 {
  explicit GoldenT5(std::string const& folder)
      : config(golden_config(folder)),
        weights(folder + "/model.safetensors"),
        expected(folder + "/expected.safetensors"),
        parameters(config),
        model(config) {
    contexts.ids = expected.template integers<std::int32_t>("input_ids");
    contexts.offsets = expected.template integers<index_t>("input_offsets");
    responses.ids = expected.template integers<std::int32_t>("labels");
    responses.offsets = expected.template integers<index_t>("label_offsets");
    // Every weight of the file is a parameter of that shape, and every parameter is in the file.
    REQUIRE(parameters.infos().size() == weights.tensors().size());
    for (auto const& info : parameters.infos()) {
      INFO(info.name);
      GoldenTensor const& tensor = weights[info.name];
      REQUIRE(tensor.shape == info.shape);
      auto const to = parameters.span(info);
      std::transform(tensor.values.begin(), tensor.values.end(), to.begin(),
                     [](double x) { return static_cast<T>(x); });
    }
  }

  emprl::t5::Params<T, Cpu> const& params() const { return parameters.views(); }

  /// Checks one result, elements row after row, by the rule of parity with transformers:
  ///   max |actual - expected| <= max(2 * E, 8 * 2^-24 * max |expected|)   in float,
  /// where `expected` is transformers in float64 and E what transformers in float32 is away from
  /// it (the worst of 25 orders of summation, recorded with the result). In double: ten digits
  /// of the largest value. Where the file has a sample of a result, the sample is compared, and
  /// the projection that stands for all elements: there the Euclidean norm takes the place of the
  /// largest value.
  void check(std::string const& name, std::span<T const> actual) const {
    std::vector<double> const& values = expected[name].values;
    if (!expected.has("projection/" + name)) {
      compare<T>(name, {actual.begin(), actual.end()}, values, max_abs(values));
      return;
    }
    auto const ids = expected.template integers<std::size_t>("sampled_ids");
    auto const& shape = expected[name].shape;
    REQUIRE(shape.size() == 2);
    auto const vocabulary = static_cast<std::size_t>(config.vocab_size);
    bool const columns = shape[1] == static_cast<std::int64_t>(ids.size());
    auto const others = static_cast<std::size_t>(columns ? shape[0] : shape[1]);
    REQUIRE(shape[columns ? 1 : 0] == static_cast<std::int64_t>(ids.size()));
    REQUIRE(actual.size() == others * vocabulary);
    std::vector<T> sample;
    for (std::size_t i = 0; i < values.size(); ++i) {
      sample.push_back(columns ? actual[i / ids.size() * vocabulary + ids[i % ids.size()]]
                               : actual[ids[i / others] * others + i % others]);
    }
    compare(name, sample, values, max_abs(values));
    double projection = 0;
    double squares = 0;
    for (std::size_t i = 0; i < actual.size(); ++i) {
      auto const x = static_cast<double>(actual[i]);
      projection += x * std::cos(static_cast<double>(i));
      squares += x * x;
    }
    compare<double>("projection/" + name, {projection}, expected["projection/" + name].values,
                    std::sqrt(squares));
  }

  emprl::t5::Config config;
  GoldenFile weights, expected;
  emprl::t5::Parameters<T, Cpu> parameters;
  emprl::t5::Model<T, Cpu> model;
  emprl::Ragged contexts, responses;

 private:
  template <class V>
  void compare(std::string const& name, std::vector<V> const& actual,
               std::vector<double> const& values, double scale) const {
    double const own = expected["float32_error/" + name].values.at(0);
    double const error = max_difference(actual, values);
    double const allowed =
        std::is_same_v<T, double> ? 1e-10 * scale : std::max(2 * own, 8 * rounding<float> * scale);
    INFO(name << ": error " << error << ", allowed " << allowed << ", transformers in float32 "
              << own << ", scale " << scale);
    CHECK(error <= allowed);
  }
};

/// What a whole pass over (contexts, responses) gives.
template <class T>
struct Pass {
  std::vector<T> hidden, logits, logprobs;
  double loss = 0;
};

/// Mean cross-entropy over all response tokens: forward, and backward into `grads` and `dprefixes`
/// if they are given.
template <class T>
Pass<T> run_pass(Cpu& dev, emprl::t5::Model<T, Cpu> const& model,
                 emprl::t5::Params<T, Cpu> const& p, emprl::t5::Prefixes<T, Cpu> const& prefixes,
                 emprl::RaggedView contexts, emprl::RaggedView responses,
                 emprl::DropoutSites sites = {}, emprl::t5::Params<T, Cpu> const* grads = nullptr,
                 emprl::t5::Prefixes<T, Cpu> const* dprefixes = nullptr) {
  emprl::ArenaScope const scope(dev.saved);
  index_t const n = responses.tokens();
  auto hidden = poisoned<T, 2>({n, model.config().d_model});
  auto logits = poisoned<T, 2>({n, model.config().vocab_size});
  auto logprobs = poisoned<T, 1>({n});
  auto lse = poisoned<T, 1>({n});
  typename emprl::t5::Model<T, Cpu>::Context context;
  model.forward(dev, p, prefixes, contexts, responses, hidden.view(), context, sites);
  model.logits(dev, p, hidden, logits.view());
  TensorView<std::int32_t const, 1, Cpu> const targets(responses.ids.data(), {n});
  emprl::token_logprob_forward<T>(dev, logprobs.view(), lse, {}, logits, targets);
  Pass<T> pass{values(hidden), values(logits), values(logprobs)};
  for (T const x : logprobs.span()) pass.loss -= static_cast<double>(x) / static_cast<double>(n);
  if (grads == nullptr) return pass;
  Tensor<T, 1, Cpu> const dlogprobs({n}, T(-1) / static_cast<T>(n));
  emprl::token_logprob_backward<T>(dev, logits.view(), dlogprobs, lse, targets);
  auto dhidden = poisoned<T, 2>({n, model.config().d_model});
  model.logits_backward(dev, p, *grads, logits, hidden, dhidden.view());
  model.backward(dev, p, *grads, dprefixes != nullptr ? *dprefixes : emprl::t5::Prefixes<T, Cpu>{},
                 dhidden.view(), context);
  return pass;
}

}  // namespace support
