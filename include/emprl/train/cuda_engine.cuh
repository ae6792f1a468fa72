// SPDX-License-Identifier: Apache-2.0
#pragma once

// A GPU as an engine: models in its memory, in float32 or Bf16, and their training there.

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "emprl/emprl.cuh"
#include "emprl/train/engine_models.hpp"
#include "emprl/train/prefix_training.hpp"
#include "emprl/train/sequence_loss.hpp"

namespace emprl::train {

namespace detail {

/// A store of parameters in training on the GPU: float32, its gradients beside it, and, where the
/// model computes in 16 bits, the model's own as a rounded copy.
template <class Master>
struct CudaTrained {
  Master master;  // without elements where the model's own are float32
  Master gradients;
  optim::CudaParameterSpan span;

  CudaTrained() = default;

  /// @param used  what the model computes with      @param host  the values to begin with
  template <class Used, class Host, class Shape>
  CudaTrained(Cuda& dev, Used const& used, Host const& host, Shape const& shape)
      : gradients(dev, shape) {
    if constexpr (std::same_as<Used, Master>) {
      span = {used.all(), gradients.all(), {}};
    } else {
      master = Master(dev, shape);
      upload(dev, master, host);
      span = {master.all(), gradients.all(), used.all()};
    }
  }
};

/// copy = parameters, rounded.
inline void round_copy(Cuda& dev, optim::CudaParameterSpan const& span) {
  index_t const n = span.copy.extent(0);
  if (n == 0) return;
  convert(dev, TensorView<Bf16, 2, Cuda>(span.copy.data(), {1, n}),
          TensorView<float const, 2, Cuda>(span.parameters.data(), {1, n}));
}

/// AdamW over spans on the GPU behind the functions of EngineTraining.
template <class Interface>
class CudaTraining : public Interface {
 public:
  index_t size() const override {
    index_t n = 0;
    for (auto const& s : spans_) n += s.parameters.extent(0);
    return n;
  }

  void fetch(std::span<float> to) override {
    expect_all(to.size());
    for_each_part([&](optim::CudaParameterSpan const& s, std::size_t begin, std::size_t n) {
      copy(dev_, to.subspan(begin, n), s.parameters);
    });
  }

  void put(std::span<float const> from) override {
    expect_all(from.size());
    for_each_part([&](optim::CudaParameterSpan const& s, std::size_t begin, std::size_t n) {
      copy(dev_, s.parameters, from.subspan(begin, n));
      round_copy(dev_, s);
    });
    dev_.synchronize();
  }

  void zero_gradients() override { adamw_->zero_gradients(); }

  double step(double learning_rate, double max_norm) override {
    adamw_->step(learning_rate, max_norm);
    optim::AdamWProgress const progress = adamw_->progress();
    if (!std::isfinite(progress.gradient_norm)) {
      throw Error("the gradient norm is not finite at optimiser step " +
                  std::to_string(progress.steps + 1) + "; the parameters were left as they were");
    }
    return progress.gradient_norm;
  }

  OptimizerState optimizer() override {
    return {adamw_->progress().steps, adamw_->first_moment(), adamw_->second_moment()};
  }

  void restore(OptimizerState const& state) override {
    adamw_->restore(state.steps, state.first_moment, state.second_moment);
  }

 protected:
  explicit CudaTraining(Cuda& dev) : dev_(dev) {}

  void optimise(optim::AdamWConfig const& config, std::vector<optim::CudaParameterSpan> spans) {
    spans_ = std::move(spans);
    adamw_.emplace(dev_, config, spans_);
  }

  Cuda& dev_;

 private:
  void expect_all(std::size_t n) const {
    expects(n == static_cast<std::size_t>(size()),
            "one number is needed for each parameter in training");
  }

  template <class F>
  void for_each_part(F f) const {
    std::size_t begin = 0;
    for (auto const& s : spans_) {
      auto const n = static_cast<std::size_t>(s.parameters.extent(0));
      f(s, begin, n);
      begin += n;
    }
  }

  std::vector<optim::CudaParameterSpan> spans_;
  std::optional<optim::CudaAdamW> adamw_;
};

}  // namespace detail

/// On the GPU tokens are drawn where the logits are, by graphs that are kept from batch to batch.
/// What that draw does not know is drawn on the host: which tokens came before, and responses of
/// several seeds or steps in one batch.
template <Element T>
class T5Generation<T, Cuda> {
 public:
  /// The decoder must outlive it.
  T5Generation(Cuda& dev, T5Decoder<T, Cuda>& decoder) : decoder_(decoder), graphs_(dev, decoder) {}

  /// @throws as gen::generate
  Ragged operator()(RaggedView contexts, gen::SamplingConfig const& config,
                    std::span<gen::DrawSite const> sites) {
    bool const one_draw = std::all_of(sites.begin(), sites.end(), [&](gen::DrawSite const& site) {
      return site.seed == sites.front().seed && site.step == sites.front().step;
    });
    if (sites.empty() || !one_draw || config.needs_history()) {
      return gen::generate(decoder_, contexts, config, sites);
    }
    std::vector<std::uint32_t> ids;
    for (gen::DrawSite const& site : sites) ids.push_back(site.row);
    return graphs_.generate(contexts, config, sites.front().seed, sites.front().step,
                            std::span<std::uint32_t const>(ids));
  }

 private:
  T5Decoder<T, Cuda>& decoder_;
  gen::DecodingGraphs<T5Decoder<T, Cuda>> graphs_;
};

/// A T5 in training on the GPU.
template <CudaElement T>
class CudaT5Training final : public detail::CudaTraining<EngineT5Training> {
  using Base = detail::CudaTraining<EngineT5Training>;
  using Part = T5TrainingOptions::Part;
  using Actor = T5ActorCritic<T, Cuda>;
  using Base::dev_;

 public:
  CudaT5Training(Cuda& dev, T5Weights<float, Cpu> const& host, T5TrainingOptions const& options,
                 bool reference)
      : Base(dev), model_(std::make_shared<T5Weights<T, Cuda>>(dev, host)), loaded_(dev, model_) {
    t5::Config const& c = host.config();
    expects<ConfigError>(options.part != Part::prefix || host.prefix.size() > 0,
                         "a prefix is to be trained, and the model has none.");
    expects<ConfigError>(options.part != Part::lora || host.lora().size() > 0,
                         "a LoRA is to be trained, and the model has none.");
    expects<ConfigError>(!options.value_head || host.value_head.size() > 0,
                         "a value head is to be trained, and the model has none.");
    std::vector<optim::CudaParameterSpan> spans;
    if (options.part == Part::weights) {
      weights_ = {dev, model_->weights, host.weights, c};
      gradient_views_ = weights_.gradients.views();
      spans.push_back(weights_.span);
    } else if (options.part == Part::prefix) {
      prefix_ = {dev, model_->prefix, host.prefix, PrefixShape{c, host.prefix_length()}};
      spans.push_back(prefix_.span);
    } else if (options.part == Part::lora) {
      lora_ = {dev, model_->lora(), host.lora(), host.lora_shape()};
      lora_.gradients.views().attach(host.lora_shape(), gradient_views_);
      spans.push_back(lora_.span);
    } else {
      expects<ConfigError>(options.prefix_length >= 1,
                           "prefix-tuning needs a prefix of at least one position.");
      model_->prefix = PrefixParameters<T, Cuda>(
          dev, typename t5::Prefixes<T, Cuda>::Shape{c, options.prefix_length});
      if constexpr (!std::same_as<T, float>) {
        flat_ = PrefixParameters<float, Cuda>(dev, PrefixShape{c, options.prefix_length});
      }
      network_.emplace(dev,
                       typename PrefixTraining<float, Cuda>::Shape{c, options.prefix_length,
                                                                   options.prefix_hidden},
                       options.seed);
      spans.push_back({network_->parameters.all(), network_->gradients.all(), {}});
      update_prefix();
    }
    if (options.value_head) {
      value_head_ = {dev, model_->value_head, host.value_head, c.d_model};
      spans.push_back(value_head_.span);
    }
    Base::optimise(options.optimizer, std::move(spans));
    if (options.value_head) {
      actor_.emplace(dev, *model_, gradient_views_, prefix_.gradients.views(),
                     value_head_.gradients.views(), options.temperature);
    }
    policy_.emplace(dev, *model_, gradient_views_, prefix_.gradients.views(), options.temperature);
    if (reference) {
      frozen_ = std::make_unique<T5Weights<T, Cuda>>(dev, host);
      reference_.emplace(dev, *frozen_, options.temperature);
    }
    dev.synchronize();
  }

  void put(std::span<float const> from) override {
    Base::put(from);
    update_prefix();
  }

  double sequence_loss(RaggedView contexts, RaggedView responses, DropoutSites sites) override {
    ArenaScope saved(dev_.saved);
    if (network_) {
      network_->forward(dev_, float_prefixes());
      round_prefix();
    }
    double const mean = train::sequence_loss(
        dev_, *model_, contexts, responses, gradient_views_,
        network_ ? network_->prefix_gradients() : prefix_.gradients.views(), sites);
    if (network_) network_->backward(dev_);
    return mean;
  }

  std::unique_ptr<Pass> forward(rl::TokenBatch const& batch, std::span<float> logp,
                                std::span<float> values) override {
    auto pass = std::make_unique<Kept>();
    if (actor_) {
      actor_->forward(batch, logp, values, pass->context);
    } else {
      policy_->forward(batch, logp, pass->context.policy);
      std::fill(values.begin(), values.end(), 0.0f);
    }
    return pass;
  }

  void inference(rl::TokenBatch const& batch, std::span<float> logp,
                 std::span<float> values) override {
    if (actor_) {
      actor_->inference(batch, logp, values);
    } else {
      policy_->inference(batch, logp);
      std::fill(values.begin(), values.end(), 0.0f);
    }
  }

  void entropy(std::span<float> out, Pass const& pass) const override {
    // Here and below: forward() has made it.
    policy_->entropy(out, static_cast<Kept const&>(pass).context.policy);
  }

  void backward(std::span<float const> dlogp, std::span<float const> dvalues,
                std::span<float const> dentropy, Pass& pass) override {
    auto& context = static_cast<Kept&>(pass).context;
    if (actor_) {
      actor_->backward(dlogp, dvalues, dentropy, context);
    } else {
      policy_->backward(dlogp, dentropy, context.policy);
    }
  }

  void reference_logprobs(rl::TokenBatch const& batch, std::span<float> logp) override {
    expect_reference();
    reference_->logprobs(batch, logp);
  }

  void full_kl(rl::TokenBatch const& batch, std::span<float> kl) override {
    expect_reference();
    policy_->full_kl(*reference_, batch, kl);
  }

  EngineT5& model() override { return loaded_; }

  void update_prefix() override {
    if (!network_) return;
    network_->inference(dev_, float_prefixes());
    round_prefix();
  }

  void bring_home(T5Weights<float, Cpu>& host) override {
    auto const home = [&](auto const& trained, std::span<float> to) {
      if (trained.span.parameters.extent(0) > 0) copy(dev_, to, trained.span.parameters);
    };
    home(weights_, host.weights.span());
    home(prefix_, host.prefix.span());
    home(lora_, host.lora().span());
    home(value_head_, host.value_head.span());
    if (network_) {
      update_prefix();
      copy(dev_, host.prefix.span(), float_prefix_store().all());
    }
  }

 private:
  using PrefixShape = typename t5::Prefixes<float, Cuda>::Shape;
  struct Kept final : Pass {
    typename Actor::Context context;
  };

  void expect_reference() const {
    expects<ConfigError>(reference_.has_value(), "training began without a reference.");
  }

  /// Where the network writes: the model's own prefix, or what is then rounded to it.
  PrefixParameters<float, Cuda> const& float_prefix_store() const {
    if constexpr (std::same_as<T, float>) {
      return model_->prefix;
    } else {
      return flat_;
    }
  }
  t5::Prefixes<float, Cuda> const& float_prefixes() const { return float_prefix_store().views(); }
  void round_prefix() {
    if constexpr (!std::same_as<T, float>) {
      detail::round_copy(dev_, {flat_.all(), {}, model_->prefix.all()});
    }
  }

  std::shared_ptr<T5Weights<T, Cuda>> model_;
  DeviceT5<T, Cuda> loaded_;
  detail::CudaTrained<t5::Parameters<float, Cuda>> weights_;
  detail::CudaTrained<PrefixParameters<float, Cuda>> prefix_;
  detail::CudaTrained<t5::LoraParameters<float, Cuda>> lora_;
  detail::CudaTrained<ValueHeadParameters<float, Cuda>> value_head_;
  t5::Params<float, Cuda> gradient_views_;  // of weights or LoRA; empty where frozen
  std::optional<PrefixTraining<float, Cuda>> network_;
  PrefixParameters<float, Cuda> flat_;
  std::optional<Actor> actor_;
  std::optional<T5Policy<T, Cuda>> policy_;
  std::unique_ptr<T5Weights<T, Cuda>> frozen_;
  std::optional<T5Reference<T, Cuda>> reference_;
};

/// An identifier in training on the GPU.
template <CudaElement T>
class CudaIdentifierTraining final : public detail::CudaTraining<EngineIdentifierTraining> {
  using Base = detail::CudaTraining<EngineIdentifierTraining>;
  using Base::dev_;

 public:
  CudaIdentifierTraining(Cuda& dev, t5::Config const& config,
                         empathy::IdentifierParameters<float, Cpu> const& host,
                         optim::AdamWConfig const& optimizer)
      : Base(dev),
        model_(config),
        weights_(std::make_shared<empathy::IdentifierParameters<T, Cuda>>(dev, config)),
        loaded_(dev, config, weights_) {
    detail::upload(dev, *weights_, host);
    trained_ = {dev, *weights_, host, config};
    Base::optimise(optimizer, {trained_.span});
    dev.synchronize();
  }

  double loss(RaggedView contexts, RaggedView responses, std::span<std::int32_t const> targets,
              std::span<float const> shares, DropoutSites sites) override {
    expects(
        targets.size() == shares.size() && static_cast<index_t>(targets.size()) == responses.rows(),
        "an identifier's loss needs a target and a share for each pair");
    ArenaScope saved(dev_.saved);
    ArenaScope scratch(dev_.scratch);
    auto const n = static_cast<index_t>(targets.size());
    typename empathy::Identifier<T, Cuda>::Context context;
    auto const logits = dev_.scratch.template allocate<T, 2>({n, empathy::level_count});
    auto const logp = dev_.scratch.template allocate<float, 2>({1, n});
    auto const lse = dev_.scratch.template allocate<float, 1>({n});
    std::vector<float> gradient(shares.begin(), shares.end());
    for (float& x : gradient) x = -x;
    auto const dlogp = on_device(dev_, dev_.scratch, std::span<float const>(gradient));
    auto const labels = on_device(dev_, dev_.scratch, targets);
    model_.forward(dev_, weights_->views(), contexts, responses, logits, context, sites);
    token_logprob_forward<T>(dev_, detail::vector_of_row(logp, 0), lse, {}, logits, labels);
    token_logprob_backward<T>(dev_, logits, dlogp, lse, labels);
    model_.backward(dev_, weights_->views(), trained_.gradients.views(), logits, context);
    std::vector<float> numbers(targets.size());
    copy(dev_, std::span<float>(numbers), logp);
    double total = 0;
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      total -= static_cast<double>(shares[i] * numbers[i]);
    }
    return total;
  }

  EngineIdentifier& model() override { return loaded_; }

 private:
  empathy::Identifier<T, Cuda> model_;
  std::shared_ptr<empathy::IdentifierParameters<T, Cuda>> weights_;
  DeviceIdentifier<T, Cuda> loaded_;
  detail::CudaTrained<empathy::IdentifierParameters<float, Cuda>> trained_;
};

/// One GPU, the calling thread's current one. T is the format that models compute in.
template <CudaElement T>
class CudaEngine final : public DeviceEngine {
 public:
  /// @throws CudaError if there is no GPU, none that the driver can use, or one that the program
  /// was not compiled for
  explicit CudaEngine(Determinism determinism = Determinism::off) {
    if (determinism == Determinism::on) dev_.products.choice = cuda::AlgorithmChoice::first;
  }

  Precision precision() const override {
    return std::same_as<T, float> ? Precision::float32 : Precision::bf16;
  }

  Determinism determinism() const override {
    return dev_.products.choice == cuda::AlgorithmChoice::first ? Determinism::on
                                                                : Determinism::off;
  }

  /// For tests, which fill new memory with NaN.
  Cuda& context() { return dev_; }

  std::string products() const override { return dev_.products.list(); }
  bool restore_products(std::string_view text) override {
    if (!dev_.products.made_here(text)) return false;
    dev_.products.restore(text);
    return true;
  }

  std::unique_ptr<EngineT5> load(T5Weights<float, Cpu> const& host) override {
    return std::make_unique<DeviceT5<T, Cuda>>(dev_,
                                               std::make_shared<T5Weights<T, Cuda>>(dev_, host));
  }

  std::unique_ptr<EngineIdentifier> load(
      empathy::Identifier<float, Cpu> const& model,
      empathy::IdentifierParameters<float, Cpu> const& host) override {
    auto weights = std::make_shared<empathy::IdentifierParameters<T, Cuda>>(dev_, model.config());
    detail::upload(dev_, *weights, host);
    return std::make_unique<DeviceIdentifier<T, Cuda>>(dev_, model.config(), std::move(weights));
  }

  std::unique_ptr<EngineT5Training> train(T5Weights<float, Cpu> const& host,
                                          T5TrainingOptions const& options,
                                          bool reference) override {
    return std::make_unique<CudaT5Training<T>>(dev_, host, options, reference);
  }

  std::unique_ptr<EngineIdentifierTraining> train(
      t5::Config const& config, empathy::IdentifierParameters<float, Cpu> const& host,
      optim::AdamWConfig const& optimizer) override {
    return std::make_unique<CudaIdentifierTraining<T>>(dev_, config, host, optimizer);
  }

 private:
  Cuda dev_;
};

}  // namespace emprl::train
