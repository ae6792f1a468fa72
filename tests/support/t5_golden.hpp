// SPDX-License-Identifier: Apache-2.0
#pragma once

// The recorded T5 models, and random ones of the same shapes.

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
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

  /// Checks one result: in float within twice transformers' own float error, in double to ten
  /// digits.
  void check(std::string const& name, std::vector<T> const& actual) const {
    bool const is_double = std::is_same_v<T, double>;
    double const plain = is_double ? 0.0 : expected["float32_error/" + name].values.at(0);
    check_error(name, actual, expected[name].values, plain,
                is_double ? 1e-10 / rounding<double> : 8);
  }

  emprl::t5::Config config;
  GoldenFile weights, expected;
  emprl::t5::Parameters<T, Cpu> parameters;
  emprl::t5::Model<T, Cpu> model;
  emprl::Ragged contexts, responses;
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
