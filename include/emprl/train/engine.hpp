// SPDX-License-Identifier: Apache-2.0
#pragma once

// The seam between a program and the device that computes for it. Models, layers and PPO are
// templates on the device, and stay so for who writes their own; a program that takes `--device` at
// run time cannot be one, and its text side (tokenizers, JSON, files) cannot be compiled by nvcc.
// So what programs ask of a device stands here as a few classes with virtual functions, which speak
// of host memory alone: token ids go in, one number a token comes out. A call is a whole pass of a
// model: what it costs to find the function is nothing beside it.
//
// * engine.load(weights): a frozen T5, or an identifier: log-probabilities, generation, levels.
// * engine.device()->train(...): the same in training: losses, PPO's two passes, AdamW.
//
// There are two kinds of engine. CpuEngine (cpu_engine.hpp) refers to the weights where they lie;
// training on the CPU is done by the templates on Cpu themselves, with engine.cpu(). CudaEngine<T>
// (cuda_engine.cuh), with T float or Bf16, holds copies in the GPU's memory, and training goes on
// there: weights go up once, and come home where they are saved. In Bf16 a model's weights are
// rounded copies of float32 ones, which the optimiser moves. Whatever an engine trains, what comes
// home is float32 and in the order in which the CPU's own training has it, so that folders and
// checkpoints do not depend on the device.
//
// Nothing falls back: whatever a device cannot do does not compile, or is an error.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "emprl/core/ragged.hpp"
#include "emprl/core/tensor.hpp"
#include "emprl/empathy/identifier.hpp"
#include "emprl/gen/generate.hpp"
#include "emprl/optim/adamw.hpp"
#include "emprl/rl/types.hpp"
#include "emprl/train/t5_weights.hpp"

namespace emprl::train {

/// The format in which a model's passes are computed.
enum class Precision {
  float32,
  bf16  ///< on a GPU: operands of 16 bits, sums in float32; the weights that are trained are
        ///< float32
};

/// @throws ConfigError for a name that is none
inline Precision precision_of(std::string_view name) {
  if (name == "float32") return Precision::float32;
  if (name == "bf16") return Precision::bf16;
  throw ConfigError("precision \"" + std::string(name) +
                    "\" is unknown; float32 and bf16 are understood.");
}

/// Whether the same command must give the same bits again, and a run that was stopped those of one
/// that never was; on the same machine, by the same build and library.
///
/// The host gives them in any case: what it computes is a function of configuration, seed, data and
/// number of threads. So do the GPU's kernels: they add floats in a fixed order, never atomically,
/// and which kernel runs, over how many blocks, depends on the batch alone, not on the memory that
/// is free or on what was decoded before. What is left are the products of cuBLASLt. By one
/// algorithm they too are the same in every run: it has one stream and a workspace of its own, and
/// a sum that it splits is put together in a fixed order (ops/gemm.cuh); cuBLAS promises as much
/// for one of its versions on GPUs of one kind. But two algorithms round differently. With `off` a
/// clock decides between them, once a bucket of shapes; a checkpoint keeps what was found so far,
/// and a bucket that is met later is timed then. With `on` each shape is taken by the algorithm
/// that the library thinks best, and no clock is asked; that one may be slower.
enum class Determinism { off, on };

/// Rows in one pass of a frozen model over many, where nobody says.
inline constexpr index_t rows_in_a_pass = 64;

/// A frozen T5 on an engine's device.
class EngineT5 {
 public:
  /// What decoding remembers of a batch.
  struct State {
    virtual ~State() = default;
  };

  EngineT5() = default;
  EngineT5(EngineT5 const&) = delete;
  EngineT5& operator=(EngineT5 const&) = delete;
  virtual ~EngineT5() = default;

  virtual t5::Config const& config() const = 0;

  /// As train::token_logprobs: log p of each response token at temperature 1, one number a token.
  /// @param entropy  of the distribution that each token was chosen from, in nats; empty if not
  /// needed
  /// @throws ShapeError if the numbers are not as many as the tokens
  virtual void logprobs(RaggedView contexts, RaggedView responses, std::span<float> logp,
                        std::span<float> entropy) = 0;

  void logprobs(RaggedView contexts, RaggedView responses, std::span<float> logp) {
    logprobs(contexts, responses, logp, {});
  }

  /// As gen::generate: one response for each context, each drawn at its site. A GPU draws where the
  /// logits are, which knows neither the tokens before (repetition_penalty, no_repeat_ngram) nor
  /// several seeds or steps in one batch: there the host draws from the GPU's logits.
  /// @throws ConfigError if the configuration is out of range, ShapeError if the number of sites is
  /// not the number of contexts, Error if a logit is not a number
  virtual Ragged generate(RaggedView contexts, gen::SamplingConfig const& config,
                          std::span<gen::DrawSite const> sites) = 0;

  /// The functions of a gen::BeamDecoder, logits on the host. @see EngineDecoder
  virtual std::unique_ptr<State> start(RaggedView contexts) = 0;
  virtual void step(State& state, std::span<index_t const> rows,
                    std::span<std::int32_t const> tokens, TensorView<float, 2, Cpu> logits) = 0;
  virtual void reorder(State& state, std::span<index_t const> sources) = 0;

  /// As generate, each response drawn at its row's id. @throws ShapeError likewise
  Ragged generate(RaggedView contexts, gen::SamplingConfig const& config, std::uint64_t seed,
                  std::uint32_t step, std::span<std::uint32_t const> row_ids) {
    std::vector<gen::DrawSite> sites;
    for (std::uint32_t const id : row_ids) sites.push_back({seed, step, id});
    return generate(contexts, config, std::span<gen::DrawSite const>(sites));
  }

  /// As generate; the ids of the rows are first_row, first_row + 1, ...
  Ragged generate(RaggedView contexts, gen::SamplingConfig const& config, std::uint64_t seed,
                  std::uint32_t step, std::uint32_t first_row = 0) {
    std::vector<std::uint32_t> ids(static_cast<std::size_t>(contexts.rows()));
    for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = first_row + static_cast<std::uint32_t>(i);
    return generate(contexts, config, seed, step, std::span<std::uint32_t const>(ids));
  }
};

/// An engine's T5 as a gen::BeamDecoder, for ways of decoding that look at logits on the host: beam
/// search, several responses a context, details of tokens. Refers to the model, which outlives it.
class EngineDecoder {
 public:
  using value_type = float;
  using State = std::unique_ptr<EngineT5::State>;

  explicit EngineDecoder(EngineT5& model) : model_(model) {}

  index_t vocabulary() const { return model_.config().vocab_size; }
  State start(RaggedView contexts) { return model_.start(contexts); }
  void step(State& state, std::span<index_t const> rows, std::span<std::int32_t const> tokens,
            TensorView<float, 2, Cpu> logits) {
    model_.step(*state, rows, tokens, logits);
  }
  void reorder(State& state, std::span<index_t const> sources) { model_.reorder(*state, sources); }

 private:
  EngineT5& model_;
};

static_assert(gen::BeamDecoder<EngineDecoder>);

/// A frozen identifier on an engine's device.
class EngineIdentifier {
 public:
  EngineIdentifier() = default;
  EngineIdentifier(EngineIdentifier const&) = delete;
  EngineIdentifier& operator=(EngineIdentifier const&) = delete;
  virtual ~EngineIdentifier() = default;

  /// logits (B, 3) of each pair of rows.
  virtual void logits(RaggedView contexts, RaggedView responses, TensorView<float, 2, Cpu> out) = 0;
};

/// What AdamW remembers: the steps it took and its moments, in the order of the parameters.
struct OptimizerState {
  index_t steps = 0;
  std::vector<float> first_moment, second_moment;
};

/// Parameters that AdamW moves on a device. An rl::Optimizer.
class EngineTraining {
 public:
  EngineTraining() = default;
  EngineTraining(EngineTraining const&) = delete;
  EngineTraining& operator=(EngineTraining const&) = delete;
  virtual ~EngineTraining() = default;

  /// How many parameters are trained.
  virtual index_t size() const = 0;
  /// The trained parameters, in float32. @throws ShapeError unless there are size() numbers
  virtual void fetch(std::span<float> to) = 0;
  virtual void put(std::span<float const> from) = 0;

  virtual void zero_gradients() = 0;
  /// One step of AdamW, gradients clipped to `max_norm` (0: not clipped).
  /// @return the gradients' norm before clipping
  /// @throws Error if the norm is not finite; nothing has moved then
  virtual double step(double learning_rate, double max_norm) = 0;

  virtual OptimizerState optimizer() = 0;
  /// @throws ShapeError if the state is of another number of parameters
  virtual void restore(OptimizerState const& state) = 0;
};

/// An identifier in training: all its weights.
class EngineIdentifierTraining : public EngineTraining {
 public:
  /// sum_i shares[i] -log p(targets[i]) with dropout; its gradient is added to the others.
  virtual double loss(RaggedView contexts, RaggedView responses,
                      std::span<std::int32_t const> targets, std::span<float const> shares,
                      DropoutSites sites) = 0;
  /// The identifier as it is now.
  virtual EngineIdentifier& model() = 0;
};

/// What of a T5 is trained, and how.
struct T5TrainingOptions {
  enum class Part {
    weights,        ///< all weights
    prefix,         ///< the prefix that the model has
    lora,           ///< the LoRA that the model has
    prefix_network  ///< a new prefix, by the network that makes it (nn::PrefixNetwork)
  };
  Part part = Part::weights;
  bool value_head = false;    ///< the value head too
  float temperature = 1;      ///< divides the logits of PPO's log-probabilities
  index_t prefix_length = 0;  ///< of a prefix network
  index_t prefix_hidden = 0;  ///< and its width
  std::uint64_t seed = 42;    ///< and where its numbers start
  optim::AdamWConfig optimizer;
};

/// A T5 in training. Parameters are in this order: the weights, the prefix or its network, or the
/// LoRA; then the value head, if it is trained.
class EngineT5Training : public EngineTraining {
 public:
  /// What a forward pass of PPO keeps for the backward pass.
  struct Pass {
    virtual ~Pass() = default;
  };

  /// As train::sequence_loss: the mean cross-entropy of given responses; its gradient is added.
  virtual double sequence_loss(RaggedView contexts, RaggedView responses, DropoutSites sites) = 0;

  /// The functions of an rl::ActorCritic. @see EngineActor
  virtual std::unique_ptr<Pass> forward(rl::TokenBatch const& batch, std::span<float> logp,
                                        std::span<float> values) = 0;
  virtual void inference(rl::TokenBatch const& batch, std::span<float> logp,
                         std::span<float> values) = 0;
  virtual void entropy(std::span<float> out, Pass const& pass) const = 0;
  virtual void backward(std::span<float const> dlogp, std::span<float const> dvalues,
                        std::span<float const> dentropy, Pass& pass) = 0;
  /// The functions of the reference: log-probabilities of the T5 that training began with.
  virtual void reference_logprobs(rl::TokenBatch const& batch, std::span<float> logp) = 0;
  virtual void full_kl(rl::TokenBatch const& batch, std::span<float> kl) = 0;

  /// The T5 as it is now. After a step of a prefix network it has the prefix of before, until
  /// update_prefix or sequence_loss.
  virtual EngineT5& model() = 0;
  virtual void update_prefix() = 0;

  /// host = the T5 as it is now, in float32.
  /// @throws ShapeError unless host is of the same configuration, adapter and value head included
  virtual void bring_home(T5Weights<float, Cpu>& host) = 0;
};

/// An engine's T5 in training as an rl::ActorCritic. Refers to it.
class EngineActor {
 public:
  using Scalar = float;
  using In = std::span<float const>;
  struct Context {
    std::unique_ptr<EngineT5Training::Pass> pass;
  };

  explicit EngineActor(EngineT5Training& model) : model_(model) {}

  void forward(rl::TokenBatch const& batch, std::span<float> logp, std::span<float> values,
               Context& context) {
    context.pass.reset();  // what it kept goes before the next is kept
    context.pass = model_.forward(batch, logp, values);
  }
  void inference(rl::TokenBatch const& batch, std::span<float> logp, std::span<float> values) {
    model_.inference(batch, logp, values);
  }
  void entropy(std::span<float> out, Context const& context) const {
    model_.entropy(out, *context.pass);
  }
  void backward(In dlogp, In dvalues, Context& context) { backward(dlogp, dvalues, {}, context); }
  void backward(In dlogp, In dvalues, In dentropy, Context& context) {
    model_.backward(dlogp, dvalues, dentropy, *context.pass);
    context.pass.reset();
  }
  template <class Reference>
  void full_kl(Reference&, rl::TokenBatch const& batch, std::span<float> kl) {
    model_.full_kl(batch, kl);
  }

 private:
  EngineT5Training& model_;
};

/// The T5 that training began with, as an rl::ReferencePolicy.
class EngineReference {
 public:
  using Scalar = float;
  explicit EngineReference(EngineT5Training& model) : model_(model) {}
  void logprobs(rl::TokenBatch const& batch, std::span<float> logp) {
    model_.reference_logprobs(batch, logp);
  }

 private:
  EngineT5Training& model_;
};

class DeviceEngine;

/// A device, ready to compute. What it makes refers to it. One engine serves one thread of control
/// at a time.
class Engine {
 public:
  Engine() = default;
  Engine(Engine const&) = delete;
  Engine& operator=(Engine const&) = delete;
  virtual ~Engine() = default;

  /// The host's context, if the engine is the host; and the engine as one that trains, if not. One
  /// of the two is null.
  virtual Cpu* cpu() = 0;
  virtual DeviceEngine* device() = 0;
  virtual Precision precision() const = 0;
  /// As it was asked for: a setting of a run, which checkpoints keep.
  virtual Determinism determinism() const = 0;

  /// A frozen T5 with the adapter that it has. The host's engine refers to `host`, which outlives
  /// it; a device with a memory of its own has a copy when this returns, `host` may go, and later
  /// changes of it are not seen.
  virtual std::unique_ptr<EngineT5> load(T5Weights<float, Cpu> const& host) = 0;
  /// The same for an identifier.
  virtual std::unique_ptr<EngineIdentifier> load(
      empathy::Identifier<float, Cpu> const& model,
      empathy::IdentifierParameters<float, Cpu> const& host) = 0;
};

/// An engine with a memory of its own, where training goes on.
class DeviceEngine : public Engine {
 public:
  Cpu* cpu() final { return nullptr; }
  DeviceEngine* device() final { return this; }

  /// By which algorithms it multiplies matrices, as lines of text. Where they are found by timing
  /// (Determinism::off) a run that goes on from a checkpoint takes them from there, for two of them
  /// round differently; else none is named, and the text says only what they are a function of.
  virtual std::string products() const = 0;
  /// Takes over what products() gave, from now on.
  /// @return false, and nothing changes, if it was of another kind of device or library
  /// @throws ConfigError if products() did not write it
  virtual bool restore_products(std::string_view text) = 0;

  /// A T5 in training, which begins with what `host` has; PPO's reference stays so.
  /// @param reference  whether there is to be a reference
  /// @throws ConfigError if the options ask for a value head or an adapter that `host` does not
  /// have
  virtual std::unique_ptr<EngineT5Training> train(T5Weights<float, Cpu> const& host,
                                                  T5TrainingOptions const& options,
                                                  bool reference) = 0;
  virtual std::unique_ptr<EngineIdentifierTraining> train(
      t5::Config const& config, empathy::IdentifierParameters<float, Cpu> const& host,
      optim::AdamWConfig const& optimizer) = 0;
};

}  // namespace emprl::train
