// SPDX-License-Identifier: Apache-2.0

#include "emprl/empathy/identifier.hpp"

#include <string>
#include <vector>

#include "emprl/ops/gemm_cpu.hpp"
#include "support/catch.hpp"
#include "support/gradient_check.hpp"
#include "support/t5_golden.hpp"

using namespace emprl;

namespace {

/// A small identifier in double with everything away from zero.
struct Small {
  // Gated GELU: ReLU has kinks, and central differences step over them.
  t5::Config config = support::small_config(true);
  empathy::IdentifierParameters<double, Cpu> parameters{config};
  empathy::IdentifierParameters<double, Cpu> gradients{config};
  empathy::Identifier<double, Cpu> identifier{config};
  Cpu dev{2};
  Ragged contexts, responses;
  std::vector<std::int32_t> labels{0, 2, 1};

  Small() {
    RandomSequence random(7, Stream::initialise);
    for (nn::ParameterInfo const& info : parameters.infos()) {
      bool const norm = info.name.find("norm") != std::string::npos;
      for (double& x : parameters.span(info)) x = (norm ? 1.0 : 0.0) + 0.3 * random.normal();
    }
    contexts = support::random_rows({5, 1, 9}, config.vocab_size, 1);
    responses = support::random_rows({3, 4, 1}, config.vocab_size, 2);
    dev.saved.poison(true);
    dev.scratch.poison(true);
  }

  std::vector<double> infer() {
    Tensor<double, 2, Cpu> logits({responses.rows(), empathy::level_count});
    identifier.inference(dev, parameters.views(), contexts.view(), responses.view(), logits.view());
    return {logits.span().begin(), logits.span().end()};
  }

  /// Cross-entropy of the labels; with `backward`, its gradients are added.
  double loss(bool backward, double dropout = 0) {
    ArenaScope saved(dev.saved), scratch(dev.scratch);
    typename empathy::Identifier<double, Cpu>::Context context;
    DropoutSites sites(dropout, 3, 4);
    auto logits = dev.scratch.allocate<double, 2>({3, empathy::level_count});
    auto logp = dev.scratch.allocate<double, 1>({3});
    auto lse = dev.scratch.allocate<double, 1>({3});
    TensorView<std::int32_t const, 1, Cpu> const targets(labels.data(), {3});
    identifier.forward(dev, parameters.views(), contexts.view(), responses.view(), logits, context,
                       sites);
    token_logprob_forward(dev, logp, lse, {}, logits, targets);
    double const value = -(logp(0) + logp(1) + logp(2));
    if (backward) {
      Tensor<double, 1, Cpu> const d({3}, -1.0);
      token_logprob_backward(dev, logits, d, lse, targets);
      identifier.backward(dev, parameters.views(), gradients.views(), logits, context);
    }
    return value;
  }
};

}  // namespace

TEST_CASE("identifier: every gradient matches central differences", "[empathy][identifier][grad]") {
  double const dropout = GENERATE(0.0, 0.2);
  Small s;
  s.loss(true, dropout);
  std::vector<support::GradientInput> inputs;
  for (nn::ParameterInfo const& info : s.parameters.infos()) {
    auto const g = s.gradients.span(info);
    inputs.push_back({info.name, s.parameters.span(info), {g.begin(), g.end()}});
  }
  support::GradientCheckOptions options;
  options.most = 12;
  // The layers in sequence bend more than one layer: a smaller step keeps the formula's own error,
  // of order step^4, below.
  options.step = 2e-4;
  support::check_gradients([&] { return s.loss(false, dropout); }, inputs, options);
}

TEST_CASE("identifier: inference equals forward without dropout, and gradients accumulate",
          "[empathy][identifier][contract]") {
  Small s;
  std::vector<double> const logits = s.infer();
  double expected = 0;
  for (std::size_t i = 0; i < 3; ++i) {
    double sum = 0;
    for (std::size_t l = 0; l < 3; ++l) sum += std::exp(logits[3 * i + l]);
    expected += std::log(sum) - logits[3 * i + static_cast<std::size_t>(s.labels[i])];
  }
  CHECK(s.loss(true) == Approx(expected).epsilon(1e-12));
  std::vector<double> const once(s.gradients.span().begin(), s.gradients.span().end());
  s.loss(true);
  for (std::size_t i = 0; i < once.size(); ++i) {
    REQUIRE(s.gradients.span()[i] == Approx(2 * once[i]).epsilon(1e-12).margin(1e-14));
  }
}

TEST_CASE("identifier: a row's logits do not depend on the other rows",
          "[empathy][identifier][contract]") {
  Small s;
  std::vector<double> const together = s.infer();
  Ragged const contexts = s.contexts, responses = s.responses;
  for (index_t i = 0; i < 3; ++i) {
    index_t const row[] = {i};
    s.contexts = gather_rows(contexts.view(), row);
    s.responses = gather_rows(responses.view(), row);
    std::vector<double> const alone = s.infer();
    for (std::size_t l = 0; l < 3; ++l) {
      CHECK(alone[l] == Approx(together[static_cast<std::size_t>(3 * i) + l]).epsilon(1e-12));
    }
  }
}

TEST_CASE("identifier: both encoders start from the given T5, the head within its bounds",
          "[empathy][identifier][unit]") {
  t5::Config const config = support::small_config(false);
  t5::Parameters<double, Cpu> t5(config);
  t5::initialise(t5, config, 11);
  empathy::IdentifierParameters<double, Cpu> parameters(config);
  empathy::initialise(parameters, config, t5, 12);
  auto const& v = parameters.views();
  for (index_t i = 0; i < t5.views().shared.size(); ++i) {
    REQUIRE(v.context_encoder.shared.data()[i] == t5.views().shared.data()[i]);
    REQUIRE(v.response_encoder.shared.data()[i] == t5.views().shared.data()[i]);
  }
  double const bound = 1.0 / std::sqrt(static_cast<double>(config.d_model));
  for (double const x : v.attention.q.span()) REQUIRE(std::abs(x) <= bound);
}
