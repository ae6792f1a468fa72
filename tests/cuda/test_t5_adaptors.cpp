// SPDX-License-Identifier: Apache-2.0
// T5 as actor, critic and reference on the GPU's kernels against the same on the CPU.
#include "emprl/train/t5_adaptors.hpp"

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/t5_on_device.hpp"

using namespace emprl;
using train::T5ActorCritic;
using train::T5Reference;
using train::T5Weights;

// The roles do not change with the device.
static_assert(rl::InferringActor<T5ActorCritic<float, Cuda>> &&
              rl::TrainsEntropy<T5ActorCritic<float, Cuda>> &&
              rl::ReportsFullKl<T5ActorCritic<float, Cuda>, T5Reference<float, Cuda>>);
static_assert(rl::InferringActor<rl::PolicyOnly<train::T5Policy<float, Cuda>>>);
static_assert(rl::ReferencePolicy<T5Reference<float, Cuda>, float>);
static_assert(rl::TrainsEntropy<T5ActorCritic<Bf16, Cuda>> &&
              std::same_as<T5ActorCritic<Bf16, Cuda>::Scalar, float>);

namespace {

template <class S>
struct Outcome {
  std::vector<S> logp, values, entropy, inferred, inferred_values, kl, reference;
  std::vector<S> gradients, prefix_gradients, value_gradients;
};

Ragged contexts() {
  return support::random_rows({5, 0, 9, 33}, support::device_config().vocab_size, 6);
}
Ragged responses() {
  return support::random_rows({2, 6, 1, 3}, support::device_config().vocab_size, 7);
}

/// All that the roles are asked, of weights in format T, which are rounded from S, with the models'
/// units in that order.
template <class T, class D>
Outcome<Accumulator<T>> run(D& dev, std::uint64_t order = 0) {
  using S = Accumulator<T>;
  dev.scratch.poison(true);
  dev.saved.poison(true);
  support::UnitOrders const units(support::device_config(), order);
  auto const on_host = support::small_t5<S>(4, 2, units);
  auto const frozen_on_host = support::small_t5<S>(40, 0, units);
  t5::Config const& c = on_host.config();
  T5Weights<T, D> const model(dev, on_host);
  T5Weights<T, D> const frozen(dev, frozen_on_host);
  t5::Parameters<S, D> const gradients(dev, c);
  train::PrefixParameters<S, D> const prefix_gradients(
      dev, typename t5::Prefixes<S, D>::Shape{c, on_host.prefix_length()});
  train::ValueHeadParameters<S, D> const value_gradients(dev, c.d_model);
  S const temperature = S(0.75);
  T5ActorCritic<T, D> actor(dev, model, gradients.views(), prefix_gradients.views(),
                            value_gradients.views(), temperature);
  T5Reference<T, D> reference(dev, frozen, temperature);

  Ragged const from = contexts();
  Ragged const to = responses();
  rl::TokenBatch const batch{from.view(), to.view()};
  std::size_t const n = to.ids.size();
  auto const numbers = [n](std::uint64_t seed) {
    return support::random_values<S>(static_cast<index_t>(n), seed, 0.1);
  };
  Outcome<S> o;
  for (auto* x :
       {&o.logp, &o.values, &o.entropy, &o.inferred, &o.inferred_values, &o.kl, &o.reference}) {
    x->resize(n);
  }
  actor.inference(batch, std::span<S>(o.inferred), std::span<S>(o.inferred_values));
  actor.full_kl(reference, batch, std::span<S>(o.kl));
  reference.logprobs(batch, std::span<S>(o.reference));
  typename T5ActorCritic<T, D>::Context context;
  actor.forward(batch, std::span<S>(o.logp), std::span<S>(o.values), context);
  actor.entropy(std::span<S>(o.entropy), context);
  auto const dlogp = numbers(1), dvalues = numbers(2), dentropy = numbers(3);
  actor.backward(std::span<S const>(dlogp), std::span<S const>(dvalues),
                 std::span<S const>(dentropy), context);
  auto const home = [&](auto const& store) {
    return units.undo(support::to_host(dev, store), store.infos());
  };
  o.gradients = home(gradients);
  o.prefix_gradients = home(prefix_gradients);
  o.value_gradients = home(value_gradients);
  return o;
}

}  // namespace

TEST_CASE("cuda: T5 as actor, critic and reference errs at most twice as much as the CPU",
          "[cuda][train]") {
  Cpu host(2);
  auto const truth = run<double>(host);
  Cuda dev;
  auto const weights = support::small_t5<float>(4, 2);
  auto const results = [&weights]<class S>(Outcome<S> const& x) {
    support::Results<S> all{{"logp", x.logp},
                            {"values", x.values},
                            {"entropy", x.entropy},
                            {"inferred", x.inferred},
                            {"inferred values", x.inferred_values},
                            {"full KL", x.kl},
                            {"reference", x.reference}};
    support::add_parts(all, "gradient of ", weights.weights.infos(), x.gradients);
    support::add_parts(all, "gradient of ", weights.prefix.infos(), x.prefix_gradients);
    support::add_parts(all, "gradient of ", weights.value_head.infos(), x.value_gradients);
    return all;
  };
  support::check_in_orders<float>(
      results(run<float>(dev)), results(truth),
      [&](std::uint64_t order) { return results(run<float>(host, order)); });
  // A single number that is 0 would agree with anything.
  CHECK(support::max_abs(truth.kl) > 0.1);
  CHECK(support::max_abs(truth.value_gradients) > 0.1);
}

TEST_CASE("cuda: an actor in 16 bits has logits, values and gradients in float", "[cuda][train]") {
  Cpu host(2);
  auto const truth = run<double>(host);
  Cuda dev;
  auto const cuda = run<Bf16>(dev);
  // As test_model.cpp has it for the model alone.
  auto const check = [](char const* what, std::vector<float> const& actual,
                        std::vector<double> const& exact) {
    INFO(what << ": largest value " << support::max_abs(exact));
    CHECK(support::max_difference(actual, exact) <= 12 * 0x1p-8 * support::max_abs(exact));
  };
  check("logp", cuda.logp, truth.logp);
  check("values", cuda.values, truth.values);
  check("entropy", cuda.entropy, truth.entropy);
  check("value gradients", cuda.value_gradients, truth.value_gradients);
  // Float's own digits, not those of numbers that were stored in 16 bits.
  auto const in_float = [](std::vector<float> const& x) {
    return std::any_of(x.begin(), x.end(),
                       [](float v) { return static_cast<float>(Bf16(v)) != v; });
  };
  CHECK(in_float(cuda.logp));
  CHECK(in_float(cuda.values));
  CHECK(in_float(cuda.value_gradients));
}

TEST_CASE("cuda: weights on the device are a copy, and come home by another", "[cuda][train]") {
  Cuda dev;
  auto model = support::small_t5<float>(4, 2);
  auto const before = std::vector<float>(model.weights.span().begin(), model.weights.span().end());
  T5Weights<float, Cuda> const there(dev, model);
  for (float& x : model.weights.span()) x = 0;
  CHECK(support::to_host(dev, there.weights) == before);
  train::copy_weights(dev, model, there);
  CHECK(std::equal(before.begin(), before.end(), model.weights.span().begin()));
  auto const other = support::small_t5<float>(4, 2);
  CHECK(std::equal(other.prefix.span().begin(), other.prefix.span().end(),
                   model.prefix.span().begin()));
  CHECK(std::equal(other.value_head.span().begin(), other.value_head.span().end(),
                   model.value_head.span().begin()));
  auto without = support::small_t5<float>(4, 0);
  CHECK_THROWS_AS(train::copy_weights(dev, without, there), ShapeError);
}
