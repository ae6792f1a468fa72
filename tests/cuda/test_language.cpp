// SPDX-License-Identifier: Apache-2.0
// What each word of kernels does: shuffles, votes, barriers, atomics, packs, cp.async, ldmatrix and
// mma.sync, each against its definition. Compiled without nvcc they run on the host executor.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "emprl/core/half.hpp"
#include "emprl/core/rng.hpp"
#include "emprl/cuda/async_copy.hpp"
#include "emprl/cuda/kernel.hpp"
#include "emprl/cuda/launch.cuh"
#include "emprl/cuda/mma.hpp"
#include "emprl/cuda/pack.hpp"
#include "emprl/cuda/shared.hpp"
#include "support/catch.hpp"
#include "support/device_array.hpp"

using emprl::Bf16;
using emprl::Fp16;
using emprl::index_t;
using emprl::cuda::launch;
using emprl::cuda::LaunchShape;
using support::DeviceArray;

namespace cuda = emprl::cuda;

namespace {

constexpr LaunchShape one_warp{.grid = {1}, .block = {32}};
constexpr int schedules = 4;

/// rank, thread, block, block size and grid size of every thread of the grid.
EMPRL_KERNEL positions_kernel(int* y) {
  cuda::Dim3 const t = cuda::thread_index();
  cuda::Dim3 const b = cuda::block_index();
  cuda::Dim3 const s = cuda::block_size();
  cuda::Dim3 const g = cuda::grid_size();
  int const block = b.x + g.x * (b.y + g.y * b.z);
  int* const mine = y + (block * s.x * s.y * s.z + cuda::thread_rank()) * 6;
  mine[0] = t.x + 100 * t.y + 10000 * t.z;
  mine[1] = b.x + 100 * b.y + 10000 * b.z;
  mine[2] = s.x + 100 * s.y + 10000 * s.z;
  mine[3] = g.x + 100 * g.y + 10000 * g.z;
  mine[4] = cuda::lane_index() + 100 * cuda::warp_index();
  mine[5] = static_cast<int>(cuda::global_thread_x() + 1000 * cuda::global_size_x());
}

template <class T>
EMPRL_KERNEL shuffles_kernel(T* y) {
  int const lane = cuda::lane_index();
  T const x = static_cast<T>(lane + 1);
  T* const mine = y + lane * 4;
  mine[0] = cuda::shuffle(x, (lane * 7 + 3) % 32);
  mine[1] = cuda::shuffle_up(x, 5);
  mine[2] = cuda::shuffle_down(x, 5);
  mine[3] = cuda::shuffle_xor(x, 21);
}

EMPRL_KERNEL votes_kernel(unsigned* y) {
  int const lane = cuda::lane_index();
  // Two halves vote apart from each other.
  cuda::LaneMask const half = lane < 16 ? 0xffffu : 0xffff0000u;
  y[lane * 4] = cuda::ballot(lane % 3 == 0);
  y[lane * 4 + 1] = cuda::ballot(lane % 3 == 0, half);
  y[lane * 4 + 2] = cuda::any(lane == 20, half) ? 1u : 0u;
  y[lane * 4 + 3] = cuda::all(lane != 20, half) ? 1u : 0u;
}

template <class T>
EMPRL_KERNEL atomics_kernel(T* global, int* seen) {
  EMPRL_SHARED(T, cell, 1);
  if (cuda::thread_rank() == 0) cell[0] = T(0);
  cuda::sync_threads();
  T const before = cuda::atomic_add(cell.at(0), T(1));
  cuda::atomic_add(seen + static_cast<int>(before), 1);
  cuda::atomic_add(global, T(2));
  cuda::sync_threads();
  if (cuda::thread_rank() == 0) cuda::atomic_add(global, static_cast<T>(cell[0]));
}

/// y = x reversed in packs of four, through shared memory seen as packs and as elements.
EMPRL_KERNEL packs_kernel(float* y, float const* x) {
  EMPRL_SHARED(float, tile, 128);
  int const lane = cuda::lane_index();
  cuda::Shared<cuda::Pack<float, 4>> const packs = tile.as<cuda::Pack<float, 4>>();
  packs[lane] = cuda::load_pack<4>(x + lane * 4);
  cuda::sync_warp();
  tile[4 * lane] += 1.0f;
  cuda::sync_warp();
  cuda::Pack<float, 4> const pack = packs[31 - lane];
  cuda::store_pack(y + lane * 4, pack);
}

/// Every thread brings 16 bytes, of which `valid` come from memory.
template <int Bytes>
EMPRL_KERNEL copies_kernel(std::uint8_t* y, std::uint8_t const* x) {
  EMPRL_SHARED(std::uint8_t, tile, 32 * Bytes);
  int const lane = cuda::lane_index();
  cuda::copy_async<Bytes>(tile.at(lane * Bytes), x + lane * Bytes, lane % (Bytes + 1));
  cuda::commit_copies();
  cuda::wait_copies<0>();
  cuda::sync_warp();
  for (int i = 0; i < Bytes; ++i) y[lane * Bytes + i] = tile[lane * Bytes + i];
}

/// Three groups under way; the sums of what has come after each wait.
EMPRL_KERNEL groups_kernel(int* y, int const* x) {
  EMPRL_SHARED(int, tile, 3 * 32);
  int const lane = cuda::lane_index();
  for (int group = 0; group < 3; ++group) {
    cuda::copy_async<4>(tile.at(group * 32 + lane), x + group * 32 + lane);
    cuda::commit_copies();
  }
  cuda::wait_copies<2>();
  y[lane] = tile[lane];
  cuda::wait_copies<1>();
  y[32 + lane] = tile[32 + lane];
  cuda::wait_copies<0>();
  y[64 + lane] = tile[64 + lane];
}

/// What each lane holds after ldmatrix of N matrices whose rows lie one after the other.
template <int N, bool Transposed>
EMPRL_KERNEL load_matrix_kernel(unsigned* y, std::uint16_t const* x) {
  EMPRL_SHARED(std::uint16_t, tile, 4 * 64);
  int const lane = cuda::lane_index();
  for (int i = lane; i < 4 * 64; i += 32) tile[i] = x[i];
  cuda::sync_warp();
  std::uint32_t piece[N];
  if constexpr (Transposed) {
    cuda::load_matrix_transposed(piece, tile.at(lane * 8));
  } else {
    cuda::load_matrix(piece, tile.at(lane * 8));
  }
  for (int i = 0; i < N; ++i) y[lane * N + i] = piece[i];
}

/// C += A B for one tile, the operands placed as the header's table says.
template <class T>
EMPRL_KERNEL mma_half_kernel(float* c, T const* a, T const* b) {
  int const lane = cuda::lane_index();
  int const g = lane / 4;
  int const t = lane % 4;
  auto const pair = [](T low, T high) {
    return std::uint32_t{low.bits} | std::uint32_t{high.bits} << 16;
  };
  auto const row_pair = [&](int row, int k) { return pair(a[row * 16 + k], a[row * 16 + k + 1]); };
  auto const column_pair = [&](int k, int n) { return pair(b[k * 8 + n], b[(k + 1) * 8 + n]); };
  std::uint32_t const left[4] = {row_pair(g, 2 * t), row_pair(g + 8, 2 * t), row_pair(g, 2 * t + 8),
                                 row_pair(g + 8, 2 * t + 8)};
  float sum[4];
  for (int i = 0; i < 4; ++i) {
    sum[i] = c[cuda::accumulator_row(lane, i) * 8 + cuda::accumulator_column(lane, i)];
  }
  cuda::mma_m16n8k16<T>(sum, left, column_pair(2 * t, g), column_pair(2 * t + 8, g));
  for (int i = 0; i < 4; ++i) {
    c[cuda::accumulator_row(lane, i) * 8 + cuda::accumulator_column(lane, i)] = sum[i];
  }
}

EMPRL_KERNEL mma_tf32_kernel(float* c, float const* a, float const* b) {
  int const lane = cuda::lane_index();
  int const g = lane / 4;
  int const t = lane % 4;
  std::uint32_t const left[4] = {cuda::tf32_bits(a[g * 8 + t]), cuda::tf32_bits(a[(g + 8) * 8 + t]),
                                 cuda::tf32_bits(a[g * 8 + t + 4]),
                                 cuda::tf32_bits(a[(g + 8) * 8 + t + 4])};
  float sum[4];
  for (int i = 0; i < 4; ++i) {
    sum[i] = c[cuda::accumulator_row(lane, i) * 8 + cuda::accumulator_column(lane, i)];
  }
  cuda::mma_m16n8k8_tf32(sum, left, cuda::tf32_bits(b[t * 8 + g]),
                         cuda::tf32_bits(b[(t + 4) * 8 + g]));
  for (int i = 0; i < 4; ++i) {
    c[cuda::accumulator_row(lane, i) * 8 + cuda::accumulator_column(lane, i)] = sum[i];
  }
}

/// Conversions as the device makes them.
EMPRL_KERNEL halves_kernel(std::uint16_t* bf16, std::uint16_t* fp16, unsigned* tf32,
                           unsigned* pairs, float const* x, int n) {
  for (int i = cuda::thread_rank(); i < n; i += cuda::block_size().x) {
    bf16[i] = Bf16(x[i]).bits;
    fp16[i] = Fp16(x[i]).bits;
    tf32[i] = cuda::tf32_bits(x[i]);
    pairs[2 * i] = cuda::pack_halves<Bf16>(x[i], 1.0f);
    pairs[2 * i + 1] = cuda::pack_halves<Fp16>(1.0f, x[i]);
  }
}

EMPRL_KERNEL widen_kernel(float* bf16, float* fp16) {
  for (int i = cuda::thread_rank(); i < 65536; i += cuda::block_size().x) {
    bf16[i] = static_cast<float>(Bf16::from_bits(static_cast<std::uint16_t>(i)));
    fp16[i] = static_cast<float>(Fp16::from_bits(static_cast<std::uint16_t>(i)));
  }
}

template <class T>
std::vector<T> numbers(std::size_t n, std::uint64_t seed) {
  emprl::RandomSequence random(seed, emprl::Stream::initialise);
  std::vector<T> x(n);
  for (T& v : x) v = T(static_cast<float>(random.normal()));
  return x;
}

}  // namespace

TEST_CASE("language: positions count x fastest", "[cuda][language]") {
  constexpr cuda::Dim3 block{5, 3, 4};
  constexpr cuda::Dim3 grid{2, 3, 2};
  support::for_each_schedule(schedules, [&] {
    auto y = DeviceArray<int>::poisoned(5 * 3 * 4 * 2 * 3 * 2 * 6);
    launch<positions_kernel>(nullptr, {.grid = grid, .block = block}, y.data());
    auto const all = y.values();
    std::size_t at = 0;
    int wrong = 0;
    for (int b = 0; b < 12; ++b) {
      for (int t = 0; t < 60; ++t) {
        int const expected[] = {t % 5 + 100 * (t / 5 % 3) + 10000 * (t / 15),
                                b % 2 + 100 * (b / 2 % 3) + 10000 * (b / 6),
                                5 + 300 + 40000,
                                2 + 300 + 20000,
                                t % 32 + 100 * (t / 32),
                                b % 2 * 5 + t % 5 + 10000};
        for (int const e : expected) {
          if (all[at++] != e) ++wrong;
        }
      }
    }
    CHECK(wrong == 0);
  });
}

TEMPLATE_TEST_CASE("language: shuffles bring the value of the named lane", "[cuda][language]", int,
                   float, double, std::int64_t) {
  support::for_each_schedule(schedules, [] {
    auto y = DeviceArray<TestType>::poisoned(32 * 4);
    launch<shuffles_kernel<TestType>>(nullptr, one_warp, y.data());
    auto const all = y.values();
    int wrong = 0;
    for (int lane = 0; lane < 32; ++lane) {
      int const sources[] = {(lane * 7 + 3) % 32, lane < 5 ? lane : lane - 5,
                             lane > 26 ? lane : lane + 5, lane ^ 21};
      for (int i = 0; i < 4; ++i) {
        if (all[static_cast<std::size_t>(lane * 4 + i)] != static_cast<TestType>(sources[i] + 1)) {
          ++wrong;
        }
      }
    }
    CHECK(wrong == 0);
  });
}

TEST_CASE("language: votes count the lanes of their mask only", "[cuda][language]") {
  support::for_each_schedule(schedules, [] {
    auto y = DeviceArray<unsigned>::poisoned(32 * 4);
    launch<votes_kernel>(nullptr, one_warp, y.data());
    auto const all = y.values();
    constexpr unsigned thirds = 0x49249249u;
    int wrong = 0;
    for (unsigned lane = 0; lane < 32; ++lane) {
      unsigned const expected[] = {thirds, lane < 16 ? thirds & 0xffffu : thirds & 0xffff0000u,
                                   lane < 16 ? 0u : 1u, lane < 16 ? 1u : 0u};
      for (unsigned i = 0; i < 4; ++i) {
        if (all[lane * 4 + i] != expected[i]) ++wrong;
      }
    }
    CHECK(wrong == 0);
  });
}

TEMPLATE_TEST_CASE("language: atomic sums give every thread another value before",
                   "[cuda][language]", int, unsigned, float, double) {
  support::for_each_schedule(schedules, [] {
    DeviceArray<TestType> sum(std::vector<TestType>(1, TestType(7)));
    DeviceArray<int> seen(std::vector<int>(96, 0));
    launch<atomics_kernel<TestType>>(nullptr, {.grid = {2}, .block = {96}}, sum.data(),
                                     seen.data());
    CHECK(sum.values()[0] == TestType(7 + 2 * 96 * 3));
    CHECK(seen.values() == std::vector<int>(96, 2));
  });
}

TEST_CASE("language: packs move four elements as they stand", "[cuda][language]") {
  support::for_each_schedule(schedules, [] {
    auto const x = numbers<float>(128, 1);
    DeviceArray<float> on_device(x);
    auto y = DeviceArray<float>::poisoned(128);
    launch<packs_kernel>(nullptr, one_warp, y.data(), on_device.data());
    auto const moved = y.values();
    int wrong = 0;
    for (std::size_t i = 0; i < 128; ++i) {
      std::size_t const from = (31 - i / 4) * 4 + i % 4;
      if (moved[i] != x[from] + (i % 4 == 0 ? 1.0f : 0.0f)) ++wrong;
    }
    CHECK(wrong == 0);
  });
}

TEST_CASE("language: cp.async brings the valid bytes and zeros behind them", "[cuda][language]") {
  support::for_each_schedule(schedules, [] {
    auto const run = [](auto bytes) {
      constexpr int n = decltype(bytes)::value;
      std::vector<std::uint8_t> x(32 * n);
      for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<std::uint8_t>(i % 251 + 1);
      DeviceArray<std::uint8_t> on_device(x);
      auto y = DeviceArray<std::uint8_t>::poisoned(32 * n);
      launch<copies_kernel<n>>(nullptr, one_warp, y.data(), on_device.data());
      std::vector<std::uint8_t> expected = x;
      for (std::size_t lane = 0; lane < 32; ++lane) {
        for (std::size_t i = lane % (n + 1); i < n; ++i) expected[lane * n + i] = 0;
      }
      CHECK(y.values() == expected);
    };
    run(std::integral_constant<int, 4>{});
    run(std::integral_constant<int, 8>{});
    run(std::integral_constant<int, 16>{});
  });
}

TEST_CASE("language: wait_copies lets the oldest groups arrive", "[cuda][language]") {
  support::for_each_schedule(schedules, [] {
    std::vector<int> x(96);
    for (std::size_t i = 0; i < 96; ++i) x[i] = static_cast<int>(i * i);
    DeviceArray<int> on_device(x);
    auto y = DeviceArray<int>::poisoned(96);
    launch<groups_kernel>(nullptr, one_warp, y.data(), on_device.data());
    CHECK(y.values() == x);
  });
}

TEST_CASE("language: ldmatrix places rows, or columns when it transposes", "[cuda][language]") {
  support::for_each_schedule(schedules, [] {
    std::vector<std::uint16_t> x(4 * 64);
    for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<std::uint16_t>(i + 1);
    DeviceArray<std::uint16_t> on_device(x);
    auto const run = [&](auto count, auto transposed) {
      constexpr int n = decltype(count)::value;
      constexpr bool turned = decltype(transposed)::value;
      auto y = DeviceArray<unsigned>::poisoned(32 * n);
      launch<load_matrix_kernel<n, turned>>(nullptr, one_warp, y.data(), on_device.data());
      auto const pieces = y.values();
      int wrong = 0;
      for (unsigned lane = 0; lane < 32; ++lane) {
        for (unsigned m = 0; m < n; ++m) {
          for (unsigned half = 0; half < 2; ++half) {
            unsigned const g = lane / 4;
            unsigned const k = lane % 4 * 2 + half;
            unsigned const expected = m * 64 + (turned ? k * 8 + g : g * 8 + k) + 1;
            if ((pieces[lane * n + m] >> 16 * half & 0xffffu) != expected) ++wrong;
          }
        }
      }
      CHECK(wrong == 0);
    };
    using std::bool_constant;
    using std::integral_constant;
    run(integral_constant<int, 1>{}, bool_constant<false>{});
    run(integral_constant<int, 2>{}, bool_constant<false>{});
    run(integral_constant<int, 4>{}, bool_constant<false>{});
    run(integral_constant<int, 1>{}, bool_constant<true>{});
    run(integral_constant<int, 2>{}, bool_constant<true>{});
    run(integral_constant<int, 4>{}, bool_constant<true>{});
  });
}

namespace {

/// Checks |c - (c0 + a b)| against k additions that each may lose a unit in the last place of the
/// sum of sizes: tensor cores truncate.
void check_product(std::vector<float> const& c, std::vector<float> const& c0,
                   std::vector<double> const& a, std::vector<double> const& b, std::size_t k) {
  int wrong = 0;
  for (std::size_t i = 0; i < 16; ++i) {
    for (std::size_t j = 0; j < 8; ++j) {
      double sum = static_cast<double>(c0[i * 8 + j]);
      double size = std::abs(sum);
      for (std::size_t l = 0; l < k; ++l) {
        sum += a[i * k + l] * b[l * 8 + j];
        size += std::abs(a[i * k + l] * b[l * 8 + j]);
      }
      double const error = std::abs(static_cast<double>(c[i * 8 + j]) - sum);
      if (!(error <= static_cast<double>(k) * 0x1p-23 * size)) ++wrong;
    }
  }
  CHECK(wrong == 0);
}

}  // namespace

TEMPLATE_TEST_CASE("language: mma m16n8k16 multiplies what its fragments say", "[cuda][language]",
                   Bf16, Fp16) {
  support::for_each_schedule(schedules, [] {
    auto const a = numbers<TestType>(16 * 16, 2);
    auto const b = numbers<TestType>(16 * 8, 3);
    auto const c0 = numbers<float>(16 * 8, 4);
    DeviceArray<TestType> left(a);
    DeviceArray<TestType> right(b);
    DeviceArray<float> c(c0);
    launch<mma_half_kernel<TestType>>(nullptr, one_warp, c.data(), left.data(), right.data());
    auto const wide = [](std::vector<TestType> const& x) {
      std::vector<double> y;
      for (TestType const v : x) y.push_back(static_cast<double>(static_cast<float>(v)));
      return y;
    };
    check_product(c.values(), c0, wide(a), wide(b), 16);
  });
}

TEST_CASE("language: mma m16n8k8 multiplies numbers rounded to TF32", "[cuda][language]") {
  support::for_each_schedule(schedules, [] {
    auto const a = numbers<float>(16 * 8, 5);
    auto const b = numbers<float>(8 * 8, 6);
    auto const c0 = numbers<float>(16 * 8, 7);
    DeviceArray<float> left(a);
    DeviceArray<float> right(b);
    DeviceArray<float> c(c0);
    launch<mma_tf32_kernel>(nullptr, one_warp, c.data(), left.data(), right.data());
    // To 11 significant bits, ties away from zero.
    auto const rounded = [](std::vector<float> const& x) {
      std::vector<double> y;
      for (float const v : x) {
        int exponent = 0;
        double const fraction = std::frexp(static_cast<double>(v), &exponent);
        y.push_back(std::ldexp(std::round(std::ldexp(fraction, 11)), exponent - 11));
      }
      return y;
    };
    check_product(c.values(), c0, rounded(a), rounded(b), 8);
  });
}

TEST_CASE("language: the device's conversions give the bits of the host's", "[cuda][language]") {
  // Random bits meet every exponent, subnormals, infinities and NaN.
  emprl::RandomSequence random(8, emprl::Stream::initialise);
  std::vector<float> x(20000);
  for (float& v : x) {
    std::uint32_t const bits = random.next();
    std::memcpy(&v, &bits, 4);
  }
  // Ties of Bf16 and of Fp16.
  for (std::size_t i = 0; i < 4000; ++i) {
    std::uint32_t const bits = random.next();
    std::uint32_t const tie = i % 2 == 0 ? (bits & 0xffff0000u) | 0x8000u
                                         : (0x38800000u + (bits & 0x0effe000u)) | 0x1000u;
    std::memcpy(&x[i], &tie, 4);
  }
  auto const n = static_cast<index_t>(x.size());
  DeviceArray<float> on_device(x);
  auto bf16 = DeviceArray<std::uint16_t>::poisoned(n);
  auto fp16 = DeviceArray<std::uint16_t>::poisoned(n);
  auto tf32 = DeviceArray<unsigned>::poisoned(n);
  auto pairs = DeviceArray<unsigned>::poisoned(2 * n);
  launch<halves_kernel>(nullptr, {.grid = {1}, .block = {256}}, bf16.data(), fp16.data(),
                        tf32.data(), pairs.data(), on_device.data(), static_cast<int>(n));
  int wrong = 0;
  auto const bf16_values = bf16.values();
  auto const fp16_values = fp16.values();
  auto const tf32_values = tf32.values();
  auto const pair_values = pairs.values();
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (bf16_values[i] != Bf16(x[i]).bits) ++wrong;
    if (fp16_values[i] != Fp16(x[i]).bits) ++wrong;
    if (pair_values[2 * i] != (0x3f800000u | Bf16(x[i]).bits)) ++wrong;
    if (pair_values[2 * i + 1] != (0x3c00u | std::uint32_t{Fp16(x[i]).bits} << 16)) ++wrong;
    if (std::isfinite(x[i]) && std::abs(x[i]) < 0x1p127f) {
      float y = 0;
      std::memcpy(&y, &tf32_values[i], 4);
      // At most half a unit of eleven bits, or of the last of them where the format ends.
      double const unit = std::max(std::ldexp(1.0, std::ilogb(x[i]) - 10), 0x1p-136);
      if (x[i] != 0 && std::abs(static_cast<double>(y) - static_cast<double>(x[i])) > unit / 2) {
        ++wrong;
      }
    }
  }
  CHECK(wrong == 0);

  auto wide_bf16 = DeviceArray<float>::poisoned(65536);
  auto wide_fp16 = DeviceArray<float>::poisoned(65536);
  launch<widen_kernel>(nullptr, {.grid = {1}, .block = {256}}, wide_bf16.data(), wide_fp16.data());
  auto const wide_bf16_values = wide_bf16.values();
  auto const wide_fp16_values = wide_fp16.values();
  auto const same = [](float a, float b) {
    return std::memcmp(&a, &b, 4) == 0 || (std::isnan(a) && std::isnan(b));
  };
  for (std::size_t i = 0; i < 65536; ++i) {
    auto const bits = static_cast<std::uint16_t>(i);
    if (!same(wide_bf16_values[i], static_cast<float>(Bf16::from_bits(bits)))) ++wrong;
    if (!same(wide_fp16_values[i], static_cast<float>(Fp16::from_bits(bits)))) ++wrong;
  }
  CHECK(wrong == 0);
}
