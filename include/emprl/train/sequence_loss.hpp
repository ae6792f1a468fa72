// SPDX-License-Identifier: Apache-2.0
#pragma once

// The loss of supervised learning and its gradient, on any device. On a GPU a program includes
// emprl.cuh besides.

#include <algorithm>
#include <span>
#include <vector>

#include "emprl/train/t5_adaptors.hpp"

namespace emprl::train {

/// Mean cross-entropy in nats over the tokens of given responses, -1/N sum_n log p(y_n), and its
/// gradient. What it keeps for that is released when it returns. Waits for a device once.
/// @param gradients, prefix_gradients  += ; empty views: frozen
/// @param sites  where dropout is drawn
/// @return the loss; 0 if there is no token
/// @throws ShapeError if contexts and responses differ in rows
template <Element T, Device D>
double sequence_loss(D& dev, T5Weights<T, D> const& g, RaggedView contexts, RaggedView responses,
                     t5::Params<Accumulator<T>, D> const& gradients,
                     t5::Prefixes<Accumulator<T>, D> const& prefix_gradients, DropoutSites sites) {
  using S = Accumulator<T>;
  ArenaScope saved(dev.saved);
  ArenaScope scratch(dev.scratch);
  index_t const n = responses.tokens();
  typename t5::Model<T, D>::Context context;
  auto hidden = dev.saved.template allocate<T, 2>({n, g.config().d_model});
  g.model.forward(dev, g.weights.views(), g.prefixes(), contexts, responses, hidden, context,
                  sites);
  auto const targets = on_device(dev, dev.scratch, responses.ids);
  auto dhidden = dev.scratch.template allocate<T, 2>(hidden.extents());
  index_t const chunk = std::min(n, logit_rows);
  auto logits = dev.scratch.template allocate<S, 2>({chunk, g.config().vocab_size});
  auto logp = dev.scratch.template allocate<S, 2>({1, n});
  auto lse = dev.scratch.template allocate<S, 1>({chunk});
  std::vector<S> const same(static_cast<std::size_t>(chunk), S(-1) / static_cast<S>(n));
  auto const dlogp = on_device(dev, dev.scratch, std::span<S const>(same));
  // The gradient of a token's loss needs no other token's, so that logits exist a chunk at a time.
  for (index_t begin = 0; begin < n; begin += chunk) {
    index_t const end = std::min(n, begin + chunk);
    auto const part = logits.rows(0, end - begin);
    auto const their_lse = lse.rows(0, end - begin);
    detail::logits_and_logprobs<T>(dev, g, hidden.rows(begin, end), targets.rows(begin, end), S(1),
                                   part, detail::vector_of_row(logp, 0).rows(begin, end),
                                   their_lse);
    token_logprob_backward<S>(dev, part, dlogp.rows(0, end - begin), their_lse,
                              targets.rows(begin, end));
    g.model.logits_backward(dev, g.weights.views(), gradients, part, hidden.rows(begin, end),
                            dhidden.rows(begin, end));
  }
  g.model.backward(dev, g.weights.views(), gradients, prefix_gradients, dhidden, context);
  std::vector<S> numbers(static_cast<std::size_t>(n));
  detail::fetch_rows(dev, logp, std::span<S>(numbers));
  double total = 0;
  for (S const x : numbers) total -= static_cast<double>(x);
  return n > 0 ? total / static_cast<double>(n) : 0.0;
}

}  // namespace emprl::train
