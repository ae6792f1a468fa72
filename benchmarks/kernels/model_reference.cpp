// SPDX-License-Identifier: Apache-2.0

// The reference of model.cu: the library's own templates on the CPU, in double. A file of its own,
// as nvcc must not see the CPU's matrix products.

#include "emprl/ops/gemm_cpu.hpp"
//
#include "kernels/model.hpp"

#include <limits>
#include <numeric>

#include "emprl/gen/generate.hpp"
#include "emprl/train/sequence_loss.hpp"
#include "emprl/train/t5_adaptors.hpp"

namespace emprl::bench {

namespace {

struct Optimizer {
  Cpu& dev;
  optim::AdamW<double> adamw;
  void zero_gradients() { adamw.zero_gradients(); }
  double step(double rate, double max_norm) { return adamw.step(dev, rate, max_norm); }
};

std::vector<double> logprobs(Cpu& dev, train::T5Weights<double> const& model,
                             TinyWork const& work) {
  std::vector<double> logp(work.responses.ids.size());
  train::token_logprobs(dev, model, work.contexts.view(), work.responses.view(),
                        std::span<double>(logp));
  return logp;
}

void train_supervised(Cpu& dev, TinyWork const& work, TinyTruth& truth) {
  auto const model = random_model<double>(tiny_model());
  t5::Parameters<double, Cpu> const gradients(model.config());
  optim::AdamW<double> adamw(work.adam, model.weights.span(), gradients.span());
  for (std::size_t i = 0; i < truth.losses.size(); ++i) {
    adamw.zero_gradients();
    truth.losses[i] = train::sequence_loss(
        dev, model, work.contexts.view(), work.responses.view(), gradients.views(), {},
        DropoutSites(model.config().dropout_rate, 4, static_cast<std::uint32_t>(i)));
    adamw.step(dev, work.learning_rate, work.adam.max_gradient_norm);
  }
  truth.after_training = logprobs(dev, model, work);
}

void train_by_ppo(Cpu& dev, TinyWork const& work, TinyTruth& truth) {
  auto const model = random_model<double>(tiny_model());
  auto const frozen = random_model<double>(tiny_model());
  t5::Config const& c = model.config();
  t5::Parameters<double, Cpu> const gradients(c);
  train::ValueHeadParameters<double> const head(c.d_model);
  train::T5ActorCritic<double> actor(dev, model, gradients.views(), {}, head.views());
  train::T5Reference<double> reference(dev, frozen);
  Optimizer optimizer{
      dev,
      {work.adam,
       {{model.weights.span(), gradients.span()}, {model.value_head.span(), head.span()}}}};
  empathy::Identifier<double, Cpu> const identifier(c);
  std::vector<empathy::IdentifierParameters<double, Cpu>> identifiers;
  for (std::uint64_t k = 0; k < 3; ++k) identifiers.push_back(random_identifier(frozen, k));
  auto reward = [&](rl::EpisodeBatch const& episodes, std::span<float> scores) {
    score_by_identifiers(episodes, scores, [&](std::size_t k, RaggedView from, RaggedView to) {
      std::vector<double> logits(scores.size() * 3);
      identifier.inference(dev, identifiers[k].views(), from, to,
                           {logits.data(), {to.rows(), empathy::level_count}});
      return logits;
    });
  };
  truth.ppo = ppo_numbers(work, actor, reference, reward, optimizer);
  truth.after_ppo = logprobs(dev, model, work);
}

}  // namespace

TinyTruth tiny_truth(TinyWork const& work) {
  Cpu dev(1);
  TinyTruth truth;
  auto const model = random_model<double>(tiny_model());
  train::T5Decoder<double> decoder(dev, model);
  truth.decoded = gen::generate(decoder, work.contexts.view(), work.decoding, 1, 0);
  truth.logprobs = logprobs(dev, model, work);
  train_supervised(dev, work, truth);
  train_by_ppo(dev, work, truth);
  return truth;
}

std::vector<double> regrets(TinyWork const& work, RaggedView decoded) {
  Cpu dev(1);
  auto const model = random_model<double>(tiny_model());
  train::T5Decoder<double> decoder(dev, model);
  auto state = decoder.start(work.contexts.view());
  index_t const rows = decoded.rows();
  std::vector<index_t> all(static_cast<std::size_t>(rows));
  std::iota(all.begin(), all.end(), index_t{0});
  std::vector<std::int32_t> tokens(all.size(), t5::decoder_start_id);
  Tensor<double, 2, Cpu> const logits({rows, decoder.vocabulary()});
  std::vector<double> regret;
  for (index_t t = 0; t < work.decoding.max_new_tokens; ++t) {
    decoder.step(state, all, tokens, logits.view());
    for (index_t i = 0; i < rows; ++i) {
      // As the draw bars it.
      if (t + 1 < work.decoding.min_new_tokens) {
        logits(i, t5::end_id) = -std::numeric_limits<double>::infinity();
      }
      std::span<double const> const row(logits.view().row(i),
                                        static_cast<std::size_t>(decoder.vocabulary()));
      expects(t < decoded.length(i), "a row has ended early");
      std::int32_t const token = decoded.row(i)[static_cast<std::size_t>(t)];
      tokens[static_cast<std::size_t>(i)] = token;
      regret.push_back(*std::max_element(row.begin(), row.end()) -
                       row[static_cast<std::size_t>(token)]);
    }
  }
  return regret;
}

}  // namespace emprl::bench
