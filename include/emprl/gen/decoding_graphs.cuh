// SPDX-License-Identifier: Apache-2.0
#pragma once

// The generation loop on the GPU, and what it keeps from one batch to the next. Tokens are drawn
// where the logits are, and rows are moved on there (gen/decoding_rows.cuh): a step does not depend
// on anything that the host knows. So its launches are captured once as a CUDA graph
// (cuda/graph.cuh) and replayed, one call a token, and the host looks every few tokens only,
// whether a row is left that goes on.
//
// Neither does a step depend on which batch it belongs to, as long as the batch fits: contexts,
// lengths, seed and the number of rows in use are in the GPU's memory. To capture a step and to
// make it ready takes milliseconds, as long as dozens of replays; a graph that is kept, with the
// memory that it refers to, serves every batch of its shape.

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "emprl/core/ragged.hpp"
#include "emprl/cuda/buffer.cuh"
#include "emprl/cuda/graph.cuh"
#include "emprl/cuda/host_copy.cuh"
#include "emprl/gen/decoding_rows.cuh"
#include "emprl/gen/device_decoder.cuh"
#include "emprl/gen/sampling.cuh"

namespace emprl::gen {

/// The rows that a batch of `rows` is decoded with: the next multiple of 8, which is what tensor
/// cores multiply at once, or, from 129 rows on, of a sixteenth of the next power of two. A
/// function of the batch alone: products of other sizes may round in another way, and what was
/// generated before must not show.
inline index_t bucket_rows(index_t rows) {
  auto const whole = static_cast<index_t>(std::bit_ceil(static_cast<std::uint64_t>(rows)));
  index_t const step = std::max<index_t>(8, whole / 16);
  return (rows + step - 1) / step * step;
}

namespace detail {

/// While it lives, a context's temporaries come from another arena.
class OtherScratch {
 public:
  OtherScratch(Cuda& dev, DeviceArena& arena) : dev_(dev), arena_(arena) {
    arena.poison(dev.scratch.poisons());
    std::swap(dev.scratch, arena);
  }
  ~OtherScratch() { std::swap(dev_.scratch, arena_); }
  OtherScratch(OtherScratch const&) = delete;
  OtherScratch& operator=(OtherScratch const&) = delete;

 private:
  Cuda& dev_;
  DeviceArena& arena_;
};

}  // namespace detail

/// Generates with one model on the GPU, and keeps graphs for the shapes of batches that came last.
///
///   DecodingGraphs graphs(dev, decoder);
///   for (...) Ragged const responses = graphs.generate(contexts, config, seed, step, row_ids);
///
/// A graph belongs to a number of rows (bucket_rows) and a SamplingConfig. It serves contexts of up
/// to as many tokens together as it has memory for, a power of two; a larger batch replaces it. The
/// memory of a T5-base in 16 bits for 32 rows, 8192 tokens of contexts and 30 of responses is 340
/// MB.
///
/// A graph refers to the model's weights where they lie. It reads what is in them at the replay, so
/// that an optimiser may have moved them meanwhile. Where anything else has changed that its
/// launches are made from (M::Bindings: a LoRA attached, a prefix replaced; how dev multiplies,
/// algorithms that were read from a list, cuda::Products::restore, among it; whether its launches
/// overlap), which is looked at in every call, all graphs go.
///
/// With dev.decoding_graphs off, nothing is captured; the same steps are launched one by one, and
/// the same tokens come.
template <DeviceDecoder M>
class DecodingGraphs {
 public:
  /// @param dev   the context whose stream `model` works on; like the model it must outlive this
  /// @param most  how many graphs are kept at most, each with its memory; the one that was not used
  /// for the longest time goes
  /// @throws ConfigError if `most` is 0
  /// @throws CudaError
  DecodingGraphs(Cuda& dev, M& model, std::size_t most = 4)
      : dev_(dev), model_(model), most_(most) {
    expects<ConfigError>(most >= 1, "at least one decoding graph must be kept");
  }
  DecodingGraphs(DecodingGraphs const&) = delete;
  DecodingGraphs& operator=(DecodingGraphs const&) = delete;

  /// Generates one response for each context: those of generate() of gen/generate.hpp, but for what
  /// gen/sampling.cuh says of rounding, and the same whatever was generated before. The host waits
  /// for the GPU once in `look_every` tokens and stops when all rows have ended: up to look_every -
  /// 1 tokens are drawn for nobody. A row that has ended stays in the batch; attention and sampling
  /// skip it.
  ///
  /// A shape that is new: memory for max_new_tokens of every row is taken before the first. The
  /// first token is launched step by step, which also chooses the algorithms of its products; the
  /// second is captured, and it and all that follow are replays.
  /// @param look_every  how many tokens are drawn before the host looks whether rows are left
  /// @throws ConfigError if the configuration or look_every is out of range, or if the
  /// configuration asks which tokens came before (repetition_penalty, no_repeat_ngram), which the
  /// GPU's draw does not know; ShapeError if the number of ids is not the number of contexts, Error
  /// if a logit is NaN or +inf, naming the row
  /// @throws CudaError
  Ragged generate(RaggedView contexts, SamplingConfig const& config, std::uint64_t seed,
                  std::uint32_t step, std::span<std::uint32_t const> row_ids,
                  index_t look_every = 8) {
    config.validate();
    expect_no_history(config);
    expects<ConfigError>(look_every >= 1, "look_every must be at least 1");
    expects(static_cast<index_t>(row_ids.size()) == contexts.rows(),
            "generation needs one row id for each context");
    if (row_ids.empty()) return {};

    Kept& kept = kept_for(contexts, config);
    start_rows(dev_, kept.rows, row_ids, {seed, step}, config.start);
    model_.start_in_place(kept.state, contexts);
    index_t t = 0;
    while (t < config.max_new_tokens) {
      step_rows(kept);
      ++t;
      if (t % look_every == 0 && t < config.max_new_tokens) {
        left_.begin(dev_, kept.rows.left);
        if (left_.wait()[0] == 0) break;
      }
    }
    return fetch_responses(dev_, kept.rows, row_ids, config.eos, t);
  }

  /// As above; the ids of the rows are first_row, first_row + 1, ...
  Ragged generate(RaggedView contexts, SamplingConfig const& config, std::uint64_t seed,
                  std::uint32_t step, std::uint32_t first_row = 0) {
    std::vector<std::uint32_t> ids(static_cast<std::size_t>(contexts.rows()));
    for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = first_row + static_cast<std::uint32_t>(i);
    return generate(contexts, config, seed, step, std::span<std::uint32_t const>(ids));
  }

  /// How many shapes there is memory for now.
  std::size_t kept() const { return kept_.size(); }
  /// How many steps have been captured so far, those that are no longer kept included.
  std::size_t captures() const { return captures_; }
  /// Gives all graphs and their memory back.
  void clear() {
    kept_.clear();
    scratch_ = DeviceArena();
  }

 private:
  /// What is kept for one shape: the memory, and the step as a graph over it.
  struct Kept {
    Kept(Cuda& dev, M& model, index_t its_rows, index_t its_tokens, SamplingConfig const& its)
        : context_tokens(its_tokens),
          config(its),
          state(model.in_place(its_rows, its_tokens, its.max_new_tokens)) {
      memory.poison(dev.scratch.poisons());
      rows = allocate_rows(memory, its_rows, its.max_new_tokens);
      barred = on_device(dev, memory, std::span<std::int32_t const>(config.barred));
    }

    index_t context_tokens;  // of all rows together, at most
    SamplingConfig config;
    typename M::InPlaceState state;
    DeviceArena memory{std::size_t{1} << 16};  // of rows and barred
    DecodingRows rows;
    TensorView<std::int32_t const, 1, Cuda> barred;
    bool launched = false;  // a step has been, as it must be before it is captured
    cuda::CudaGraph graph;  // of nothing until it is
  };

  /// All that graphs are made from and that may change between two batches.
  struct Bindings {
    typename M::Bindings model;
    cuda::Float32Products float32;
    index_t few_rows;
    std::uint64_t algorithms;  // ProductPlans::revision
    bool overlaps;

    bool operator==(Bindings const&) const = default;
  };

  /// The memory for a batch, with the graph if there is one; now the last used.
  Kept& kept_for(RaggedView contexts, SamplingConfig const& config) {
    Bindings now{model_.bindings(), dev_.products.float32, dev_.products.few_rows,
                 dev_.products.plans.revision(), dev_.overlap_launches};
    if (bindings_ != now) {
      clear();
      bindings_ = std::move(now);
    }
    index_t const rows = bucket_rows(contexts.rows());
    auto const same = std::find_if(kept_.begin(), kept_.end(), [&](Kept const& k) {
      return k.rows.ids.extent(0) == rows && k.config == config;
    });
    if (same != kept_.end() && same->context_tokens >= contexts.tokens()) {
      kept_.splice(kept_.begin(), kept_, same);
      return kept_.front();
    }
    // What goes leaves its memory to what comes.
    if (same != kept_.end()) {
      kept_.erase(same);
    } else if (kept_.size() == most_) {
      kept_.pop_back();
    }
    // A shape that grows is captured anew at most as often as its size can double.
    constexpr std::uint64_t least = 256;
    auto const tokens = static_cast<index_t>(
        std::bit_ceil(std::max(least, static_cast<std::uint64_t>(contexts.tokens()))));
    kept_.emplace_front(dev_, model_, rows, tokens, config);
    return kept_.front();
  }

  /// Draws a token of every row that goes on.
  void step_rows(Kept& kept) {
    if (dev_.decoding_graphs && kept.launched) {
      if (kept.graph.size() == 0) {
        kept.graph = cuda::CudaGraph::capture(dev_, [&] { launch_step(kept); });
        ++captures_;
      }
      kept.graph.replay(dev_);
    } else {
      launch_step(kept);
      kept.launched = true;
    }
  }

  /// The launches of a step. Their temporaries are not the context's: a replay writes them wherever
  /// others may have put theirs meanwhile. All graphs share them, for a step ends before the next.
  void launch_step(Kept& kept) {
    detail::OtherScratch const other(dev_, scratch_);
    ArenaScope const scope(dev_.scratch);
    DecodingRows const& rows = kept.rows;
    auto const logits =
        dev_.scratch.allocate<float, 2>({rows.ids.extent(0), index_t{model_.vocabulary()}});
    model_.step_in_place(kept.state, rows.newest, rows.length, logits);
    sample_tokens(dev_, {.token = rows.drawn, .logp = {}, .lse = {}, .entropy = {}}, logits,
                  kept.config, kept.barred,
                  {.row_ids = rows.ids, .generated = rows.generated, .key = rows.key});
    advance_rows(dev_, rows, kept.config.eos);
  }

  Cuda& dev_;
  M& model_;
  std::size_t most_;
  std::optional<Bindings> bindings_;
  DeviceArena scratch_;   // temporaries of all graphs
  std::list<Kept> kept_;  // the last used first
  cuda::HostCopy<std::int32_t> left_{1};
  std::size_t captures_ = 0;
};

}  // namespace emprl::gen
