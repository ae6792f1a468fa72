// SPDX-License-Identifier: Apache-2.0
#pragma once

// The rows of a batch while responses are generated on the GPU: how far each one is and what it has
// got are in the GPU's memory and are moved on there, so that every step of the loop launches the
// same work with the same arguments. So does every batch that takes the same rows: how many of them
// it needs, and where its draws are taken, are in that memory too.

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "emprl/core/ragged.hpp"
#include "emprl/cuda/buffer.cuh"
#include "emprl/cuda/kernel.hpp"
#include "emprl/cuda/launch.cuh"
#include "emprl/cuda/reduce.hpp"
#include "emprl/cuda/shared.hpp"
#include "emprl/gen/sampling.cuh"

namespace emprl::gen {

/// B rows in the GPU's memory. A batch may leave the last ones unused: they are as rows that have
/// ended.
struct DecodingRows {
  TensorView<std::uint32_t, 1, Cuda> ids;    // (B), whose draws they are; of unused rows not read
  TensorView<std::int32_t, 1, Cuda> newest;  // (B), read next; of an ended row its last but one
  TensorView<std::int32_t, 1, Cuda> drawn;   // (B), by the sampler, in this step
  TensorView<index_t, 1, Cuda> length;       // (B), tokens read once `newest` is; 0 if it has ended
  TensorView<index_t, 1, Cuda> generated;    // (B), tokens of the response; -1 if it has ended
  TensorView<std::int32_t, 2, Cuda> responses;  // (B, max_new_tokens), as far as generated
  TensorView<std::int32_t, 1, Cuda> left;       // (1), rows that go on; 0 if one cannot
  TensorView<SampleKey, 1, Cuda> key;           // (1), of all draws of the batch
};

/// Memory for `rows` rows of up to max_new_tokens tokens, in `arena`.
/// @throws CudaError
inline DecodingRows allocate_rows(DeviceArena& arena, index_t rows, index_t max_new_tokens) {
  expects<ConfigError>(rows <= std::numeric_limits<std::int32_t>::max(),
                       "generation on the GPU takes at most 2147483647 rows at once");
  return {.ids = arena.allocate<std::uint32_t, 1>({rows}),
          .newest = arena.allocate<std::int32_t, 1>({rows}),
          .drawn = arena.allocate<std::int32_t, 1>({rows}),
          .length = arena.allocate<index_t, 1>({rows}),
          .generated = arena.allocate<index_t, 1>({rows}),
          .responses = arena.allocate<std::int32_t, 2>({rows, max_new_tokens}),
          .left = arena.allocate<std::int32_t, 1>({1}),
          .key = arena.allocate<SampleKey, 1>({1})};
}

namespace detail {

inline constexpr int start_threads = 256;

/// The first `used` rows before their first token, the others as ended.
/// PRECOND: a thread a row
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(start_threads)
    start_rows_kernel(DecodingRows rows, std::int32_t used, std::int32_t start, SampleKey key) {
  index_t const r = cuda::global_thread_x();
  if (r == 0) {
    rows.left.data()[0] = used;
    rows.key.data()[0] = key;
  }
  if (r >= rows.newest.extent(0)) return;
  rows.newest.data()[r] = start;  // a token of the vocabulary, which an unused row reads as well
  rows.length.data()[r] = r < used ? 1 : 0;
  rows.generated.data()[r] = r < used ? 0 : -1;
}

}  // namespace detail

/// Begins a batch of row_ids.size() rows, which read `start` first; the other rows are unused.
/// @param dev  work is ordered on dev.stream; the ids may change as soon as this returns
/// @throws ShapeError if there are more ids than rows
/// @throws CudaError
inline void start_rows(Cuda& dev, DecodingRows const& rows, std::span<std::uint32_t const> row_ids,
                       SampleKey key, std::int32_t start) {
  auto const used = static_cast<index_t>(row_ids.size());
  expects(used <= rows.ids.extent(0), "a batch has more rows than there is memory for");
  copy(dev, rows.ids.rows(0, used), row_ids);
  cuda::launch<detail::start_rows_kernel>(
      dev.stream,
      {.grid = {cuda::blocks_for(rows.ids.extent(0), detail::start_threads)},
       .block = {detail::start_threads}},
      rows, static_cast<std::int32_t>(used), start, key);
}

namespace detail {

inline constexpr int advance_threads = 256;

/// PRECOND: one block, advance_threads of it
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(advance_threads)
    advance_rows_kernel(DecodingRows rows, std::int32_t eos) {
  EMPRL_SHARED(int, scratch, cuda::warp_size);
  int going_on = 0;
  int failed = 0;
  for (index_t r = cuda::thread_rank(); r < rows.drawn.extent(0); r += advance_threads) {
    index_t const before = rows.generated.data()[r];
    if (before < 0) continue;
    std::int32_t const token = rows.drawn.data()[r];
    rows.responses.row(r)[before] = token;
    bool const on = token >= 0 && token != eos && before + 1 < rows.responses.extent(1);
    rows.generated.data()[r] = on ? before + 1 : -1;
    rows.length.data()[r] = on ? before + 2 : 0;
    if (on) rows.newest.data()[r] = token;
    going_on += on ? 1 : 0;
    failed += token < 0 ? 1 : 0;
  }
  going_on = cuda::block_sum(going_on, scratch);
  failed = cuda::block_sum(failed, scratch);
  if (cuda::thread_rank() == 0) {
    std::int32_t* const left = rows.left.data();
    // Once nothing is left to do it stays so.
    if (*left > 0) *left = failed > 0 ? 0 : going_on;
  }
}

}  // namespace detail

/// Takes the drawn tokens over: each goes to its row's response and is what the row reads next,
/// unless it ends the row. A row ends with `eos`, with its max_new_tokens-th token, or where no
/// token could be drawn (sample_diverged, sample_exhausted).
/// @param dev  work is ordered on dev.stream, no synchronisation
/// @throws CudaError
inline void advance_rows(Cuda& dev, DecodingRows const& rows, std::int32_t eos) {
  cuda::launch<detail::advance_rows_kernel>(
      dev.stream, {.grid = {1}, .block = {detail::advance_threads}}, rows, eos);
}

/// The responses of the batch's rows after `steps` steps. Waits for the GPU.
/// @throws Error naming the response and the token where the first draw failed
/// @throws CudaError
inline Ragged fetch_responses(Cuda& dev, DecodingRows const& rows,
                              std::span<std::uint32_t const> row_ids, std::int32_t eos,
                              index_t steps) {
  index_t const width = rows.responses.extent(1);
  auto const used = rows.responses.rows(0, static_cast<index_t>(row_ids.size()));
  std::vector<std::int32_t> all(static_cast<std::size_t>(used.size()));
  copy(dev, std::span<std::int32_t>(all), used);
  Ragged responses;
  std::size_t failed = 0;  // the row of the earliest failure
  index_t failed_at = steps;
  for (std::size_t r = 0; r < row_ids.size(); ++r) {
    std::span<std::int32_t const> const row(all.data() + r * static_cast<std::size_t>(width),
                                            static_cast<std::size_t>(steps));
    std::size_t length = 0;
    bool ended = false;
    while (length < row.size() && !ended) {
      std::int32_t const token = row[length++];
      ended = token < 0 || token == eos;
      if (token < 0 && static_cast<index_t>(length) <= failed_at) {
        failed = r;
        failed_at = static_cast<index_t>(length) - 1;
      }
    }
    responses.push_back(row.first(length));
  }
  if (failed_at < steps) {
    auto const token =
        all[failed * static_cast<std::size_t>(width) + static_cast<std::size_t>(failed_at)];
    throw Error("response " + std::to_string(row_ids[failed]) + ", token " +
                std::to_string(failed_at) + ": " +
                (token == sample_diverged ? "a logit is NaN or +inf; the model has diverged"
                                          : "no token is left to draw"));
  }
  return responses;
}

}  // namespace emprl::gen
