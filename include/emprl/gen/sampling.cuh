// SPDX-License-Identifier: Apache-2.0
#pragma once

// One token from each row of a matrix of logits, on the GPU: the draw of gen/sampling.hpp from the
// same random number, and beside it the log-probability that PPO asks for.
//
// A block is one row. Nothing sorts the row. Floats are compared as integers of the same order
// (ordered_key), and a threshold is found by bisection over them:
//   * Up to `sample_list` logits that can be among the kept ones are gathered in shared memory,
//     sorted there, and the rest of the row is done with. The threshold of the gathering is the
//     k-th largest of the threads' own maxima: k logits at least are no smaller, and few more. A
//     nucleus without top-k is sought among the 512 largest first.
//   * Where that does not do (all tokens kept, k above `sample_list`, more ties than fit, a nucleus
//     of more than 512 tokens) the thresholds are bisected over the whole row, some 30 passes
//     through the cache. Slower, and the same result.
// Weights and their sums are double as on the CPU; a draw can differ only where the sum of the
// weights before a token, added in another order, meets the random number within its rounding.

#include <cmath>
#include <cstdint>
#include <limits>
#if !defined(__CUDACC__)
#include <bit>
#endif

#include "emprl/cuda/context.cuh"
#include "emprl/cuda/row.hpp"
#include "emprl/gen/sampling.hpp"

namespace emprl::gen {

/// What stands for a token where sample_token throws on the CPU.
inline constexpr std::int32_t sample_diverged = -1;   ///< a logit is NaN or +inf
inline constexpr std::int32_t sample_exhausted = -2;  ///< no token is left to draw

/// What sample_tokens writes, (R) each. The statistics are of the row's logits as they came:
/// without temperature, filters or bars. Empty: not needed.
struct SampledTokens {
  TensorView<std::int32_t, 1, Cuda> token;
  TensorView<float, 1, Cuda> logp;     // of the token; NaN if there is none
  TensorView<float, 1, Cuda> lse;      // log sum_v exp(x_v)
  TensorView<float, 1, Cuda> entropy;  // of softmax(x)
};

/// What all draws of a batch share.
struct SampleKey {
  std::uint64_t seed = 0;
  std::uint32_t step = 0;
};

/// Where the rows' draws are taken: {seed, Stream::sample, step, row_ids[r], generated[r]}.
struct SampleSites {
  std::uint64_t seed = 0;
  std::uint32_t step = 0;
  TensorView<std::uint32_t const, 1, Cuda> row_ids;  // (R)
  /// Tokens that each response already has, the start token excluded. A row with a negative number
  /// is left out: nothing of it is read or written.
  TensorView<index_t const, 1, Cuda> generated;  // (R)
  /// Seed and step as the GPU finds them when it draws, in place of those above, for launches that
  /// are captured; empty: those above.
  TensorView<SampleKey const, 1, Cuda> key = {};  // (1)
};

namespace detail {

/// Logits that the list in shared memory holds.
inline constexpr int sample_list = 2048;
/// Among so many of the largest a nucleus without top-k is sought first.
inline constexpr int sample_nucleus = 512;
/// Vocabularies from this size on are read by 1024 threads, smaller ones by 256.
inline constexpr index_t sample_wide = 8192;
inline constexpr int sample_threads = 1024;

struct SampleArguments {
  std::int32_t* token;
  float* logp;
  float* lse;
  float* entropy;
  float* logits;
  index_t pitch;
  int columns;
  std::int32_t const* barred;
  int barred_count;
  std::uint32_t const* row_ids;
  index_t const* generated;
  SampleKey key;
  SampleKey const* key_there;  // in place of key, or null
  bool greedy;
  double inverse_temperature;
  int top_k;
  double top_p;
  index_t min_new_tokens;
  std::int32_t eos;
};

/// An integer that is larger for a larger float; both zeros have the same. Not for NaN.
EMPRL_HD inline std::uint32_t ordered_key(float x) {
  std::uint32_t const bits = std::bit_cast<std::uint32_t>(x + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
EMPRL_HD inline float key_value(std::uint32_t key) {
  return std::bit_cast<float>((key & 0x80000000u) != 0 ? key ^ 0x80000000u : ~key);
}
/// The key of the lowest finite float.
inline constexpr std::uint32_t lowest_key = 0x00800000u;

EMPRL_DEVICE int lowest_lane(cuda::LaneMask mask) {
#if defined(__CUDACC__)
  return __ffs(static_cast<int>(mask)) - 1;
#else
  return std::countr_zero(mask);
#endif
}
EMPRL_DEVICE int highest_lane(cuda::LaneMask mask) {
#if defined(__CUDACC__)
  return 31 - __clz(static_cast<int>(mask));
#else
  return 31 - std::countl_zero(mask);
#endif
}

/// The place where a running sum meets its goal.
struct Crossing {
  /// The first that meets it; if none does, the last with a weight; -1 if there is no weight.
  int at;
  bool met;
};

/// The first i in [0, n) for which met(before + weight(0) + ... + weight(i)) holds and weight(i) is
/// not 0. For a whole warp; every lane gets the same.
template <class Weight, class Met>
EMPRL_DEVICE Crossing warp_crossing(int n, double before, Weight weight, Met met) {
  int const lane = cuda::lane_index();
  int last = -1;
  for (int first = 0; first < n; first += cuda::warp_size) {
    double const mine = first + lane < n ? weight(first + lane) : 0.0;
    double sum = mine;
    EMPRL_UNROLL
    for (int distance = 1; distance < cuda::warp_size; distance *= 2) {
      double const below = cuda::shuffle_up(sum, distance);
      if (lane >= distance) sum += below;
    }
    sum += before;
    cuda::LaneMask const weighty = cuda::ballot(mine > 0.0);
    cuda::LaneMask const hits = cuda::ballot(mine > 0.0 && met(sum));
    if (hits != 0) return {first + lowest_lane(hits), true};
    if (weighty != 0) last = first + highest_lane(weighty);
    before = cuda::shuffle(sum, cuda::warp_size - 1);
  }
  return {last, false};
}

/// The largest key in [low, high] above which there is `least` at least; an earlier one if no more
/// than `most` is above it. `above(key)` does not rise with the key; all threads get the same from
/// it. If even `low` has less above it, low.
template <class N, class Above>
EMPRL_DEVICE std::uint32_t bisect_keys(std::uint32_t low, std::uint32_t high, N least, N most,
                                       Above above) {
  while (low < high) {
    std::uint32_t const middle = low + (high - low - 1) / 2 + 1;
    N const there = above(middle);
    if (there < least) {
      high = middle - 1;
      continue;
    }
    low = middle;
    if (there <= most) break;
  }
  return low;
}

/// Sorts n numbers, a power of two of them, in ascending order. Barriers begin and end it.
EMPRL_DEVICE void block_sort(cuda::Shared<std::uint64_t> x, int n) {
  int const threads = cuda::block_size().x;
  for (int size = 2; size <= n; size *= 2) {
    for (int stride = size / 2; stride > 0; stride /= 2) {
      cuda::sync_threads();
      for (int i = cuda::thread_rank(); i < n / 2; i += threads) {
        int const low = 2 * i - (i & (stride - 1));
        int const high = low + stride;
        std::uint64_t const a = x[low];
        std::uint64_t const b = x[high];
        if ((a > b) == ((low & size) == 0)) {
          x[low] = b;
          x[high] = a;
        }
      }
    }
  }
  cuda::sync_threads();
}

/// The smallest power of two that is no smaller.
EMPRL_HD inline int power_of_two(int n) {
  int p = 1;
  while (p < n) p *= 2;
  return p;
}

/// One row while it is sampled from; but for `my_key` the same in every thread of the block.
struct SampleRow {
  float const* x;
  int n;
  std::uint32_t top;     ///< key of the largest
  std::uint32_t my_key;  ///< key of the largest that this thread has read
  double inverse_temperature;
  int top_k;  ///< 0 for all
  double top_p;

  cuda::Shared<float> scratch;       // 64
  cuda::Shared<std::uint64_t> list;  // sample_list
  cuda::Shared<double> weights;      // sample_list
  cuda::Shared<int> notes;           // 2
  cuda::Shared<double> chunks;       // a warp each, and one more
  cuda::Shared<double> random;       // 1

  EMPRL_DEVICE bool nucleus() const { return top_p < 1.0; }

  /// exp((x - largest) / temperature)
  EMPRL_DEVICE double weight(float value) const {
    return std::exp((static_cast<double>(value) - static_cast<double>(key_value(top))) *
                    inverse_temperature);
  }

  /// How many logits are no smaller than the key, and how much they weigh.
  EMPRL_DEVICE int count_above(std::uint32_t key) const {
    int count = 0;
    cuda::for_each_in_row(x, n, [&](int, auto const& part) {
      for (float const value : part.x) count += ordered_key(value) >= key ? 1 : 0;
    });
    return cuda::block_sum(count, scratch.part(0, cuda::warp_size).template as<int>());
  }
  EMPRL_DEVICE double weight_above(std::uint32_t key) const {
    double sum = 0.0;
    cuda::for_each_in_row(x, n, [&](int, auto const& part) {
      for (float const value : part.x) {
        if (ordered_key(value) >= key) sum += weight(value);
      }
    });
    return cuda::block_sum(sum, scratch.template as<double>());
  }

  /// Puts the logits that are no smaller than the key into the list, in any order, as
  /// (descending key, id). @return how many there are; the list is whole if they fit
  EMPRL_DEVICE int gather(std::uint32_t key) const {
    if (cuda::thread_rank() == 0) notes[0] = 0;
    cuda::sync_threads();
    cuda::for_each_in_row(x, n, [&](int first, auto const& part) {
      int id = first;
      for (float const value : part.x) {
        std::uint32_t const its_key = ordered_key(value);
        if (its_key >= key) {
          int const place = cuda::atomic_add(notes.at(0), 1);
          if (place < sample_list) {
            list[place] = std::uint64_t{~its_key} << 32 | static_cast<std::uint32_t>(id);
          }
        }
        ++id;
      }
    });
    cuda::sync_threads();
    int const count = notes[0];
    cuda::sync_threads();
    return count;
  }

  /// Gathers at least the `wanted` largest. @return how many; 0 if no list can hold them
  EMPRL_DEVICE int gather_largest(int wanted) const {
    int const threads = cuda::block_size().x;
    if (n <= sample_list) return gather(lowest_key);
    if (wanted > sample_list || wanted == 0) return 0;
    if (wanted <= threads / 4) {
      auto const maxima_above = [&](std::uint32_t key) {
        return cuda::block_sum(my_key >= key ? 1 : 0,
                               scratch.part(0, cuda::warp_size).template as<int>());
      };
      auto const threshold = bisect_keys(lowest_key, top, wanted, 2 * wanted, maxima_above);
      int const count = gather(threshold);
      if (count <= sample_list) return count;
    }
    auto const threshold = bisect_keys(lowest_key, top, wanted, int{sample_list},
                                       [&](std::uint32_t key) { return count_above(key); });
    int const count = gather(threshold);
    return count <= sample_list ? count : 0;
  }

  /// Sorts the first `count` of the list.
  EMPRL_DEVICE void sort_list(int count) const {
    int const size = power_of_two(count);
    for (int i = count + cuda::thread_rank(); i < size; i += cuda::block_size().x) {
      list[i] = ~std::uint64_t{0};
    }
    block_sort(list, size);
  }

  /// weights[i] for i < count, from keys that key_of takes out of the list's elements. Ends in a
  /// barrier. @return their sum
  template <class KeyOf>
  EMPRL_DEVICE double weigh_list(int count, KeyOf key_of) const {
    double sum = 0.0;
    for (int i = cuda::thread_rank(); i < count; i += cuda::block_size().x) {
      std::uint64_t const element = list[i];
      double const w = weight(key_value(key_of(element)));
      weights[i] = w;
      sum += w;
    }
    return cuda::block_sum(sum, scratch.template as<double>());
  }

  /// warp_crossing over the weights of the list, by one warp for all.
  template <class Met>
  EMPRL_DEVICE Crossing list_crossing(int count, Met met) const {
    if (cuda::warp_index() == 0) {
      auto const found = warp_crossing(
          count, 0.0,
          [&](int i) {
            double const w = weights[i];
            return w;
          },
          met);
      if (cuda::lane_index() == 0) {
        notes[0] = found.at;
        notes[1] = found.met ? 1 : 0;
      }
    }
    cuda::sync_threads();
    int const at = notes[0];
    int const was_met = notes[1];
    cuda::sync_threads();
    return {at, was_met != 0};
  }

  /// Draws among the `count` elements of the list. @return the token; -1 if the list does not hold
  /// the whole nucleus
  EMPRL_DEVICE int draw_from_list(int count) const {
    sort_list(count);
    auto const descending_key = [](std::uint64_t element) {
      return ~static_cast<std::uint32_t>(element >> 32);
    };
    bool const whole = n <= sample_list;
    int kept = count;
    if (top_k > 0 && top_k < count) {
      std::uint64_t const last = list[top_k - 1];
      int mine = 0;
      for (int i = cuda::thread_rank(); i < count; i += cuda::block_size().x) {
        std::uint64_t const element = list[i];
        mine += element >> 32 <= last >> 32 ? 1 : 0;
      }
      kept = cuda::block_sum(mine, scratch.part(0, cuda::warp_size).template as<int>());
    }
    if (nucleus()) {
      double total = weigh_list(kept, descending_key);
      if (top_k == 0 && !whole) total = weight_above(lowest_key);
      double const goal = top_p * total;
      auto const end = list_crossing(kept, [&](double sum) { return sum >= goal; });
      if (!end.met && top_k == 0 && !whole) return -1;
      kept = end.at + 1;
    }
    // The draw walks through the tokens in the order of their ids.
    for (int i = cuda::thread_rank(); i < kept; i += cuda::block_size().x) {
      std::uint64_t const element = list[i];
      list[i] = element << 32 | descending_key(element);
    }
    sort_list(kept);
    double const total =
        weigh_list(kept, [](std::uint64_t element) { return static_cast<std::uint32_t>(element); });
    double const goal = random[0] * total;
    auto const drawn = list_crossing(kept, [&](double sum) { return sum > goal; });
    std::uint64_t const element = list[drawn.at];
    return static_cast<int>(element >> 32);
  }

  /// The first id for which met(sum of its_weight up to it) holds. Each warp adds up a piece of the
  /// row, the one whose piece meets the goal looks closer.
  template <class Weight, class Met>
  EMPRL_DEVICE int row_crossing(Weight its_weight, Met met) const {
    int const warps = cuda::block_size().x / cuda::warp_size;
    int const warp = cuda::warp_index();
    int const lane = cuda::lane_index();
    int const piece = (n + warps - 1) / warps;
    int const begin = warp * piece < n ? warp * piece : n;
    int const end = begin + piece < n ? begin + piece : n;
    double sum = 0.0;
    for (int i = begin + lane; i < end; i += cuda::warp_size) sum += its_weight(i);
    sum = cuda::warp_sum(sum);
    if (lane == 0) chunks[warp] = sum;
    cuda::sync_threads();
    if (warp == 0) {
      auto const chunk = [&](int w) {
        double const s = chunks[w];
        return s;
      };
      auto const found = warp_crossing(warps, 0.0, chunk, met);
      double const before = cuda::warp_sum(lane < found.at ? chunk(lane) : 0.0);
      if (lane == 0) {
        notes[0] = found.at;
        chunks[warps] = before;
      }
    }
    cuda::sync_threads();
    int const chosen = notes[0];
    if (warp == chosen) {
      double const before = chunks[warps];
      auto const found = warp_crossing(
          end - begin, before, [&](int i) { return its_weight(begin + i); }, met);
      if (lane == 0) notes[1] = begin + found.at;
    }
    cuda::sync_threads();
    int const at = notes[1];
    cuda::sync_threads();
    return at;
  }

  /// Draws among all logits of the row, without a list.
  EMPRL_DEVICE int draw_from_row() const {
    std::uint32_t threshold = lowest_key;
    if (top_k > 0) {
      threshold = bisect_keys(lowest_key, top, top_k, -1,
                              [&](std::uint32_t key) { return count_above(key); });
    }
    double total = weight_above(threshold);
    int last_tie = n;
    if (nucleus()) {
      double const goal = top_p * total;
      threshold = bisect_keys(threshold, top, goal, -1.0,
                              [&](std::uint32_t key) { return weight_above(key); });
      // Of the tokens as heavy as the lightest kept one the lowest ids stay, as many as are needed.
      double const heavier = weight_above(threshold + 1);
      double const needed = std::ceil((goal - heavier) / weight(key_value(threshold)));
      last_tie = row_crossing([&](int i) { return ordered_key(x[i]) == threshold ? 1.0 : 0.0; },
                              [&](double ties) { return ties >= needed; });
    }
    auto const kept_weight = [&](int i) {
      std::uint32_t const key = ordered_key(x[i]);
      return key > threshold || (key == threshold && i <= last_tie) ? weight(x[i]) : 0.0;
    };
    if (nucleus()) {
      double sum = 0.0;
      for (int i = cuda::thread_rank(); i < n; i += cuda::block_size().x) sum += kept_weight(i);
      total = cuda::block_sum(sum, scratch.template as<double>());
    }
    double const goal = random[0] * total;
    return row_crossing(kept_weight, [&](double sum) { return sum > goal; });
  }

  EMPRL_DEVICE int draw() const {
    int const most = n < sample_nucleus ? n : sample_nucleus;
    int wanted = nucleus() ? most : 0;
    if (top_k > 0) wanted = top_k;
    int const count = gather_largest(wanted);
    if (count > 0) {
      int const token = draw_from_list(count);
      if (token >= 0) return token;
    }
    return draw_from_row();
  }
};

/// PRECOND: a block a row, whole warps, sample_threads at most
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(sample_threads) sample_tokens_kernel(SampleArguments in) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  EMPRL_SHARED(float, scratch, 64);
  EMPRL_SHARED(std::uint64_t, list, sample_list);
  EMPRL_SHARED(double, weights, sample_list);
  EMPRL_SHARED(int, notes, 2);
  EMPRL_SHARED(double, chunks, cuda::warp_size + 1);
  EMPRL_SHARED(double, random, 1);
  EMPRL_SHARED(float, raw, 2);
  int const r = cuda::block_index().x;
  int const n = in.columns;
  index_t const generated = in.generated[r];
  if (generated < 0) return;
  float* const x = in.logits + r * in.pitch;
  auto const floats = scratch.part(0, cuda::warp_size);

  bool const statistics = in.logp != nullptr || in.lse != nullptr || in.entropy != nullptr;
  SoftmaxSums sums;
  int unsound = 0;
  cuda::for_each_in_row(x, n, [&](int, auto const& part) {
    if (statistics) sums.add(part.x);
    for (float const value : part.x) unsound += value < infinity ? 0 : 1;
  });
  if (statistics) sums = cuda::block_softmax_sums(sums, floats);
  bool const diverged = cuda::block_sum(unsound, floats.as<int>()) > 0;

  // What is not needed by all waits in shared memory: registers are scarce in a block of 1024.
  if (cuda::thread_rank() == 0) {
    raw[0] = sums.most;
    raw[1] = sums.log_sum();
    SampleKey const at = in.key_there != nullptr ? *in.key_there : in.key;
    random[0] = uniform(RngAddress{at.seed, Stream::sample, at.step, in.row_ids[r],
                                   static_cast<std::uint32_t>(generated)});
    if (in.lse != nullptr) in.lse[r] = sums.log_sum_exp();
    if (in.entropy != nullptr) in.entropy[r] = sums.entropy();
  }
  // Every thread has read the row. What is barred leaves it, so that nothing below need know.
  if (cuda::thread_rank() == 0 && generated + 1 < in.min_new_tokens && in.eos < n) {
    x[in.eos] = -infinity;
  }
  for (int i = cuda::thread_rank(); i < in.barred_count; i += cuda::block_size().x) {
    std::int32_t const token = in.barred[i];
    if (token >= 0 && token < n) x[token] = -infinity;
  }
  cuda::sync_threads();

  // Key above, inverted id below: the maximum is the largest logit of the lowest id.
  std::uint32_t key = 0;
  int id = 0;
  cuda::for_each_in_row(x, n, [&](int first, auto const& part) {
    int i = first;
    for (float const value : part.x) {
      std::uint32_t const its_key = ordered_key(value);
      if (its_key > key) {
        key = its_key;
        id = i;
      }
      ++i;
    }
  });
  std::uint64_t const best = cuda::block_reduce(
      cuda::Maximum{}, std::uint64_t{key} << 32 | ~static_cast<std::uint32_t>(id),
      scratch.as<std::uint64_t>());
  auto const top = static_cast<std::uint32_t>(best >> 32);
  std::int32_t token = static_cast<std::int32_t>(~static_cast<std::uint32_t>(best));
  if (diverged) {
    token = sample_diverged;
  } else if (top < lowest_key) {
    token = sample_exhausted;
  } else if (!in.greedy) {
    SampleRow const row{x,        n,        top,     key,  in.inverse_temperature,
                        in.top_k, in.top_p, scratch, list, weights,
                        notes,    chunks,   random};
    token = row.draw();
  }
  if (cuda::thread_rank() != 0) return;
  in.token[r] = token;
  if (in.logp == nullptr) return;
  float logp = std::numeric_limits<float>::quiet_NaN();
  if (token >= 0) {
    float const most = raw[0];
    float const log_sum = raw[1];
    logp = (x[token] - most) - log_sum;
  }
  in.logp[r] = logp;
}

}  // namespace detail

/// @throws ConfigError if the draw asks which tokens came before, which the GPU's does not know
inline void expect_no_history(SamplingConfig const& config) {
  expects<ConfigError>(!config.needs_history(),
                       "repetition_penalty and no_repeat_ngram are not drawn with on the GPU; "
                       "leave them off, or draw on the host with gen::generate(decoder, ...)");
}

/// Draws one token from each row of logits: what sample_token draws from the row at its site
/// (above). Where that throws, the token is sample_diverged or sample_exhausted, and the caller
/// looks at it.
/// @param dev     work is ordered on dev.stream, no synchronisation
/// @param out     (R) each, written
/// @param logits  (R, V); -inf is a token of probability 0. Barred ids are overwritten with -inf
/// @param barred  config.barred in device memory
/// @throws ConfigError if the configuration is out of range or asks which tokens came before,
/// ShapeError if extents disagree
inline void sample_tokens(Cuda& dev, SampledTokens const& out, TensorView<float, 2, Cuda> logits,
                          SamplingConfig const& config,
                          TensorView<std::int32_t const, 1, Cuda> barred,
                          SampleSites const& sites) {
  config.validate();
  expect_no_history(config);
  index_t const rows = logits.extent(0);
  auto const fits = [&](auto const& x) { return x.empty() || x.extent(0) == rows; };
  expects(out.token.extent(0) == rows && fits(out.logp) && fits(out.lse) && fits(out.entropy) &&
              sites.row_ids.extent(0) == rows && sites.generated.extent(0) == rows &&
              sites.key.extent(0) <= 1,
          "sampling: one token, one row id and one number of generated tokens for each row");
  expects(barred.extent(0) == static_cast<index_t>(config.barred.size()),
          "sampling: the barred tokens on the device must be those of the configuration");
  expects(logits.extent(1) <= std::numeric_limits<std::int32_t>::max() &&
              barred.extent(0) <= std::numeric_limits<std::int32_t>::max(),
          "sampling: more tokens than token ids can name");
  if (rows == 0) return;
  detail::SampleArguments const in{
      .token = out.token.data(),
      .logp = data_or_null(out.logp),
      .lse = data_or_null(out.lse),
      .entropy = data_or_null(out.entropy),
      .logits = logits.data(),
      .pitch = logits.stride(0),
      .columns = static_cast<int>(logits.extent(1)),
      .barred = barred.data(),
      .barred_count = static_cast<int>(barred.extent(0)),
      .row_ids = sites.row_ids.data(),
      .generated = sites.generated.data(),
      .key = {sites.seed, sites.step},
      .key_there = data_or_null(sites.key),
      .greedy = config.greedy,
      .inverse_temperature = 1.0 / config.temperature,
      .top_k = config.top_k < logits.extent(1) ? static_cast<int>(config.top_k) : 0,
      .top_p = config.top_p,
      .min_new_tokens = config.min_new_tokens,
      .eos = config.eos};
  int const threads = logits.extent(1) >= detail::sample_wide ? detail::sample_threads : 256;
  cuda::launch<detail::sample_tokens_kernel>(
      dev.stream, {.grid = {cuda::blocks_for(rows, 1)}, .block = {threads}}, in);
}

}  // namespace emprl::gen
