// SPDX-License-Identifier: Apache-2.0
// Every ability of the host executor, by a kernel with a planted bug and its corrected twin: the
// bug is caught under every one of several schedules, the twin passes under all of them.
#include "support/host_executor/executor.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "emprl/core/half.hpp"
#include "emprl/cuda/async_copy.hpp"
#include "emprl/cuda/kernel.hpp"
#include "emprl/cuda/launch.cuh"
#include "emprl/cuda/mma.hpp"
#include "emprl/cuda/pack.hpp"
#include "emprl/cuda/reduce.hpp"
#include "emprl/cuda/shared.hpp"
#include "support/catch.hpp"
#include "support/device_array.hpp"

using Catch::Matchers::ContainsSubstring;
using emprl::Bf16;
using emprl::cuda::launch;
using emprl::cuda::LaunchShape;
using host_executor::Fault;
using host_executor::KernelFault;
using host_executor::WithOptions;
using support::DeviceArray;

namespace cuda = emprl::cuda;

namespace {

constexpr int schedules = 8;

/// Whether the twin with the bug or the corrected one is meant.
enum class Twin { wrong, right };

/// `run` ends with a fault of this kind, under every schedule, and the report holds each text.
template <class F>
void check_caught(Fault kind, std::vector<std::string> const& texts, F run,
                  bool report_unwritten = true) {
  for (int seed = 0; seed < schedules; ++seed) {
    INFO("seed " << seed);
    WithOptions const with(
        {.seed = static_cast<std::uint64_t>(seed), .report_unwritten = report_unwritten});
    bool caught = false;
    try {
      run();
    } catch (KernelFault const& fault) {
      caught = true;
      std::string const report = fault.what();
      INFO(report);
      CHECK(static_cast<int>(fault.kind()) == static_cast<int>(kind));
      for (std::string const& text : texts) CHECK_THAT(report, ContainsSubstring(text));
    }
    CHECK(caught);
  }
}

/// `run` has a race that every schedule shows. One in which the reader comes first may be reported
/// as a read of what nobody wrote; with that report switched off it is a race.
template <class F>
void check_race(std::vector<std::string> const& texts, F run) {
  check_caught(Fault::race, texts, run, false);
  for (int seed = 0; seed < schedules; ++seed) {
    WithOptions const with({.seed = static_cast<std::uint64_t>(seed)});
    CHECK_THROWS_AS(run(), KernelFault);
  }
}

template <class F>
void check_passes(F run) {
  support::for_each_schedule(schedules, [&] { CHECK_NOTHROW(run()); });
}

/// Both twins of a kernel without arguments.
template <auto Wrong, auto Right>
void check_twins(LaunchShape const& shape, Fault kind, std::vector<std::string> const& texts) {
  check_caught(kind, texts, [&] { launch<Wrong>(nullptr, shape); });
  check_passes([&] { launch<Right>(nullptr, shape); });
}

// ---- launches that overlap

template <Twin twin>
EMPRL_KERNEL overlapping_kernel(int* y) {
  int const i = cuda::thread_rank();
  cuda::begin_next();
  // Whoever has nothing to do must wait as well.
  if (twin == Twin::wrong && i >= 40) return;
  cuda::wait_for_previous();
  if (i < 40) y[i] = i;
}

// ---- barriers

template <Twin twin>
EMPRL_KERNEL reverse_kernel(int* y) {
  EMPRL_SHARED(int, tile, 64);
  int const i = cuda::thread_rank();
  tile[i] = i;
  if constexpr (twin == Twin::right) cuda::sync_threads();
  y[i] = tile[63 - i];
}

template <Twin twin>
EMPRL_KERNEL rotate_kernel(int* y) {
  EMPRL_SHARED(int, tile, 64);
  int const i = cuda::thread_rank();
  int value = i;
  for (int round = 0; round < 3; ++round) {
    tile[i] = value;
    cuda::sync_threads();
    value = tile[(i + 33) % 64];
    // The next round overwrites what others may not have read yet.
    if constexpr (twin == Twin::right) cuda::sync_threads();
  }
  y[i] = value;
}

template <Twin twin>
EMPRL_KERNEL branch_kernel() {
  if constexpr (twin == Twin::wrong) {
    if (cuda::thread_rank() < 32) {
      cuda::sync_threads();
    } else {
      cuda::sync_threads();
    }
  } else {
    cuda::sync_threads();
  }
}

template <Twin twin>
EMPRL_KERNEL early_return_kernel() {
  if (twin == Twin::wrong && cuda::thread_rank() >= 40) return;
  cuda::sync_threads();
}

template <Twin twin>
EMPRL_KERNEL loop_kernel() {
  int const rounds = twin == Twin::wrong && cuda::thread_rank() == 7 ? 2 : 3;
  for (int i = 0; i < rounds; ++i) cuda::sync_threads();
}

template <Twin twin>
EMPRL_KERNEL deadlock_kernel() {
  if (twin == Twin::wrong && cuda::lane_index() < 16) cuda::sync_threads();
  cuda::sync_warp();
  cuda::sync_threads();
}

// ---- warps

template <Twin twin>
EMPRL_KERNEL own_mask_kernel() {
  cuda::LaneMask const mask = twin == Twin::wrong ? 0xffffu : 0xffff0000u;
  if (cuda::lane_index() >= 16) cuda::shuffle_xor(1.0f, 1, mask);
}

template <Twin twin>
EMPRL_KERNEL absent_lane_kernel() {
  cuda::LaneMask const mask = twin == Twin::wrong ? cuda::full_warp : 0xffffu;
  if (cuda::lane_index() < 16) cuda::shuffle_xor(1.0f, 1, mask);
}

template <Twin twin>
EMPRL_KERNEL two_masks_kernel() {
  bool const low = cuda::lane_index() < 16;
  cuda::LaneMask const half = low ? 0xffffu : 0xffff0000u;
  cuda::ballot(true, twin == Twin::wrong && !low ? cuda::full_warp : half);
}

EMPRL_KERNEL whole_warps_kernel() {
  cuda::sync_warp();
}

template <Twin twin>
EMPRL_KERNEL different_lines_kernel() {
  if constexpr (twin == Twin::wrong) {
    if (cuda::lane_index() % 2 == 0) {
      cuda::shuffle(1, 0);
    } else {
      cuda::shuffle(2, 0);
    }
  } else {
    cuda::shuffle(cuda::lane_index() % 2 == 0 ? 1 : 2, 0);
  }
}

EMPRL_KERNEL outside_kernel(float* y) {
  int const lane = cuda::lane_index();
  if (lane < 16) y[lane] = cuda::shuffle_down(static_cast<float>(lane), 8, 0xffffu);
}

EMPRL_KERNEL far_lane_kernel() {
  cuda::shuffle(1, 32);
}

/// What lies between a lane's store and its neighbour's load.
enum class Between { nothing, shuffle, half_barrier, wrong_half_barrier, barrier };

template <Between between>
EMPRL_KERNEL neighbour_kernel(int* y) {
  EMPRL_SHARED(int, tile, 32);
  int const i = cuda::lane_index();
  tile[i] = i;
  int neighbour = i ^ 1;
  if constexpr (between == Between::shuffle) cuda::shuffle_xor(0, 1);
  if constexpr (between == Between::barrier) cuda::sync_warp();
  if constexpr (between == Between::half_barrier || between == Between::wrong_half_barrier) {
    cuda::sync_warp(i < 16 ? 0xffffu : 0xffff0000u);
  }
  if constexpr (between == Between::wrong_half_barrier) neighbour = i ^ 16;
  y[i] = tile[neighbour];
}

/// Every lane has read when the shuffle is over, but the shuffle orders nothing.
template <Twin twin>
EMPRL_KERNEL overwrite_kernel() {
  EMPRL_SHARED(int, tile, 32);
  int const i = cuda::lane_index();
  tile[i] = i;
  cuda::sync_warp();
  int const neighbour = tile[i ^ 1];
  cuda::shuffle(neighbour, 0);
  if constexpr (twin == Twin::right) cuda::sync_warp();
  tile[i] = neighbour;
}

/// Lanes 0 and 1 meet, then 1 and 2: what 0 wrote has come to 2.
EMPRL_KERNEL chain_kernel(int* y) {
  EMPRL_SHARED(int, cell, 1);
  int const i = cuda::lane_index();
  if (i == 0) cell[0] = 5;
  if (i < 2) cuda::sync_warp(0b011);
  if (i == 1 || i == 2) cuda::sync_warp(0b110);
  if (i == 2) y[0] = cell[0];
}

// ---- races that are none, and some that are

EMPRL_KERNEL small_elements_kernel() {
  EMPRL_SHARED(std::uint8_t, bytes, 64);
  EMPRL_SHARED(Bf16, halves, 64);
  int const i = cuda::thread_rank();
  bytes[i] = std::uint8_t{1};
  halves[i] = Bf16(1.0f);
}

template <Twin twin>
EMPRL_KERNEL same_cell_kernel() {
  EMPRL_SHARED(int, cell, 1);
  if (twin == Twin::wrong || cuda::thread_rank() == 33) cell[0] = 1;
}

template <Twin twin>
EMPRL_KERNEL broadcast_kernel() {
  EMPRL_SHARED(int, cell, 1);
  if (cuda::thread_rank() == 0) cell[0] = 1;
  cuda::sync_threads();
  int const value = cell[0];
  if constexpr (twin == Twin::right) cuda::sync_threads();
  if (cuda::thread_rank() == 63) cell[0] = value + 1;
}

template <Twin twin>
EMPRL_KERNEL atomic_kernel(int* y) {
  EMPRL_SHARED(int, cell, 1);
  if (cuda::thread_rank() == 0) cell[0] = 0;
  cuda::sync_threads();
  cuda::atomic_add(cell.at(0), 1);
  if constexpr (twin == Twin::right) cuda::sync_threads();
  if (cuda::thread_rank() == 0) y[0] = cell[0];
}

/// Each warp has a cell of its own and needs no barrier of the block.
template <Twin twin>
EMPRL_KERNEL warp_atomic_kernel(int* y) {
  EMPRL_SHARED(int, cell, 2);
  int const warp = cuda::warp_index();
  if (cuda::lane_index() == 5) cell[warp] = 0;
  cuda::sync_warp();
  cuda::atomic_add(cell.at(twin == Twin::right ? warp : 0), 1);
  cuda::sync_warp();
  if (cuda::lane_index() == 31) y[warp] = cell[warp];
}

// ---- bounds and alignment

template <int index>
EMPRL_KERNEL store_kernel() {
  EMPRL_SHARED(float, tile, 8);
  tile[index] = 1.0f;
}

template <int index>
EMPRL_KERNEL part_kernel() {
  EMPRL_SHARED(float, tile, 8);
  tile.part(2, 4)[index] = 1.0f;
}

template <int index>
EMPRL_KERNEL vector_kernel() {
  EMPRL_SHARED(float, tile, 8);
  tile.as<cuda::Pack<float, 4>>()[index] = cuda::Pack<float, 4>{{1, 2, 3, 4}};
}

template <int first>
EMPRL_KERNEL matrix_rows_kernel() {
  EMPRL_SHARED(Bf16, tile, 8 * 8);
  int const lane = cuda::lane_index();
  tile[lane] = Bf16(0.0f);
  tile[32 + lane] = Bf16(0.0f);
  cuda::sync_threads();
  std::uint32_t piece[1];
  cuda::load_matrix(piece, tile.at(lane < 8 ? lane * 8 + first : 0));
}

template <int count>
EMPRL_KERNEL dynamic_kernel() {
  cuda::DynamicShared memory;
  memory.take<float>(4);
  memory.take<double>(count);
}

template <Twin twin>
EMPRL_KERNEL two_layouts_kernel() {
  cuda::DynamicShared memory;
  memory.take<float>(twin == Twin::wrong && cuda::thread_rank() == 5 ? 16 : 12);
}

EMPRL_KERNEL narrow_view_kernel() {
  EMPRL_SHARED(float, tile, 8);
  tile.as<Bf16>();
}

EMPRL_KERNEL pack_kernel(float* y, int offset) {
  cuda::store_pack(y + offset, cuda::load_pack<4>(y + offset));
}

// ---- memory that nobody wrote

/// Block 0 writes both arrays, block 1 leaves the last element of each as it was.
EMPRL_KERNEL unwritten_kernel(float* y, bool everything) {
  EMPRL_SHARED(float, tile, 32);
  cuda::DynamicShared memory;
  cuda::Shared<float> const other = memory.take<float>(32);
  int const i = cuda::lane_index();
  int const block = cuda::block_index().x;
  if (everything || block == 0 || i < 31) {
    tile[i] = 1.0f;
    other[i] = 1.0f;
  }
  y[block * 64 + i] = tile[i];
  y[block * 64 + 32 + i] = other[i];
}

// ---- cp.async

/// What is left out between a copy and its use.
enum class Missing { nothing, commit, wait, group, barrier };

template <Missing missing>
EMPRL_KERNEL copy_kernel(float* y, float const* x) {
  EMPRL_SHARED(float, tile, 64);
  int const i = cuda::thread_rank();
  cuda::copy_async<4>(tile.at(i), x + i);
  if constexpr (missing != Missing::commit) cuda::commit_copies();
  if constexpr (missing == Missing::group) cuda::wait_copies<1>();
  if constexpr (missing != Missing::wait && missing != Missing::group) cuda::wait_copies<0>();
  if constexpr (missing != Missing::barrier) cuda::sync_threads();
  y[i] = tile[63 - i];
}

/// Two rounds through one buffer: the second copy must not start before all have read the first.
template <Twin twin>
EMPRL_KERNEL refill_kernel(float* y, float const* x) {
  EMPRL_SHARED(float, tile, 64);
  int const i = cuda::thread_rank();
  float sum = 0;
  for (int round = 0; round < 2; ++round) {
    cuda::copy_async<4>(tile.at(i), x + i);
    cuda::commit_copies();
    cuda::wait_copies<0>();
    cuda::sync_threads();
    sum += tile[63 - i];
    if constexpr (twin == Twin::right) cuda::sync_threads();
  }
  y[i] = sum;
}

/// All have waited when the shuffle is over; the barrier came too early to order what arrived.
template <Twin twin>
EMPRL_KERNEL early_barrier_kernel(float* y, float const* x) {
  EMPRL_SHARED(float, tile, 32);
  int const i = cuda::lane_index();
  cuda::copy_async<4>(tile.at(i), x + i);
  cuda::commit_copies();
  if constexpr (twin == Twin::wrong) cuda::sync_warp();
  cuda::wait_copies<0>();
  cuda::shuffle(0, 0);
  if constexpr (twin == Twin::right) cuda::sync_warp();
  y[i] = tile[i ^ 1];
}

/// Nobody waits for the copies and nobody touches them.
EMPRL_KERNEL forgotten_copy_kernel(float const* x) {
  EMPRL_SHARED(float, tile, 64);
  int const i = cuda::thread_rank();
  cuda::copy_async<4>(tile.at(i), x + i);
}

template <int bytes>
EMPRL_KERNEL misaligned_copy_kernel(float const* x, int to, int from, int valid) {
  EMPRL_SHARED(float, tile, 8);
  cuda::copy_async<bytes>(tile.at(to), x + from, valid);
}

// ---- the rest

EMPRL_KERNEL order_kernel(int* order, int* taken) {
  order[cuda::atomic_add(taken, 1)] = cuda::block_index().x * 64 + cuda::thread_rank();
  cuda::sync_threads();
  order[cuda::atomic_add(taken, 1)] = cuda::block_index().x * 64 + cuda::thread_rank();
}

struct CountsItself {
  explicit CountsItself(int* alive) : count(alive) { ++*count; }
  ~CountsItself() { --*count; }
  int* count;
};

EMPRL_KERNEL owning_kernel(int* alive) {
  CountsItself const one(alive);
  if (cuda::thread_rank() != 9) cuda::sync_threads();
}

EMPRL_KERNEL throwing_kernel() {
  if (cuda::thread_rank() == 3) throw std::out_of_range("the kernel's own");
  cuda::sync_threads();
}

template <bool whole_block>
EMPRL_KERNEL waiting_kernel(int rounds) {
  for (int i = 0; i < rounds; ++i) {
    if constexpr (whole_block) {
      cuda::sync_threads();
    } else {
      cuda::sync_warp();
    }
  }
}

EMPRL_KERNEL touching_kernel(int rounds) {
  EMPRL_SHARED(float, tile, 256);
  int const i = cuda::thread_rank();
  tile[i] = 0.0f;
  for (int round = 0; round < rounds; ++round) tile[i] += 1.0f;
}

EMPRL_KERNEL multiplying_kernel(int rounds) {
  float c[4] = {};
  std::uint32_t const a[4] = {};
  for (int i = 0; i < rounds; ++i) cuda::mma_m16n8k16<Bf16>(c, a, 0, 0);
}

constexpr LaunchShape two_warps{.grid = {3}, .block = {64}};

}  // namespace

TEST_CASE("host executor: a missing barrier is caught", "[host_executor]") {
  auto y = DeviceArray<int>::poisoned(64);
  check_race({"reverse_kernel", "tile", "no barrier lies between"},
             [&] { launch<reverse_kernel<Twin::wrong>>(nullptr, two_warps, y.data()); });
  check_passes([&] {
    launch<reverse_kernel<Twin::right>>(nullptr, two_warps, y.data());
    CHECK(y.values()[0] == 63);
  });
  check_race({"rotate_kernel"},
             [&] { launch<rotate_kernel<Twin::wrong>>(nullptr, two_warps, y.data()); });
  check_passes([&] {
    launch<rotate_kernel<Twin::right>>(nullptr, two_warps, y.data());
    CHECK(y.values()[0] == 99 % 64);
  });
}

TEST_CASE("host executor: a race names both threads and both lines", "[host_executor]") {
  auto y = DeviceArray<int>::poisoned(64);
  WithOptions const with({.seed = 0, .report_unwritten = false});
  try {
    launch<reverse_kernel<Twin::wrong>>(nullptr, {.grid = {1}, .block = {64}}, y.data());
    FAIL("the race was not caught");
  } catch (KernelFault const& fault) {
    std::string const report = fault.what();
    INFO(report);
    std::size_t lines = 0;
    for (std::size_t at = 0; (at = report.find("test_host_executor.cpp:", at)) != report.npos;
         ++at) {
      ++lines;
    }
    // Where the array is declared, and the two accesses.
    CHECK(lines == 3);
    CHECK_THAT(report, ContainsSubstring("block (0, 0, 0), thread ("));
  }
}

TEST_CASE("host executor: barriers that not all threads reach are caught", "[host_executor]") {
  check_twins<branch_kernel<Twin::wrong>, branch_kernel<Twin::right>>(
      two_warps, Fault::stuck, {"divergent barrier", "test_host_executor.cpp:"});
  check_twins<early_return_kernel<Twin::wrong>, early_return_kernel<Twin::right>>(
      two_warps, Fault::stuck,
      {"threads 0-39 wait in sync_threads [", "threads 40-63 returned", "early_return_kernel"});
  check_twins<loop_kernel<Twin::wrong>, loop_kernel<Twin::right>>(
      two_warps, Fault::stuck, {"threads 0-6, 8-63 wait in sync_threads", "threads 7 returned"});
}

TEST_CASE("host executor: a deadlock lists who waits where", "[host_executor]") {
  check_twins<deadlock_kernel<Twin::wrong>, deadlock_kernel<Twin::right>>(
      two_warps, Fault::stuck,
      {"threads 0-15, 32-47 wait in sync_threads", "threads 16-31, 48-63 wait in sync_warp"});
}

TEST_CASE("host executor: wrong masks are caught", "[host_executor]") {
  check_twins<own_mask_kernel<Twin::wrong>, own_mask_kernel<Twin::right>>(
      two_warps, Fault::lanes, {"0x0000ffff, which does not name the calling lane"});
  check_twins<absent_lane_kernel<Twin::wrong>, absent_lane_kernel<Twin::right>>(
      two_warps, Fault::stuck,
      {"wait in shuffle_xor", "with the mask 0xffffffff", "threads 16-31, 48-63 returned"});
  // Which lanes come first decides whether they are seen to disagree or to wait for ever.
  for (int seed = 0; seed < schedules; ++seed) {
    WithOptions const with({.seed = static_cast<std::uint64_t>(seed)});
    CHECK_THROWS_AS(launch<two_masks_kernel<Twin::wrong>>(nullptr, two_warps), KernelFault);
  }
  check_passes([] { launch<two_masks_kernel<Twin::right>>(nullptr, two_warps); });
  check_caught(Fault::stuck, {"names lanes that the block does not have"},
               [] { launch<whole_warps_kernel>(nullptr, {.grid = {1}, .block = {48}}); });
  check_passes([] { launch<whole_warps_kernel>(nullptr, {.grid = {1}, .block = {16, 4}}); });
  check_twins<different_lines_kernel<Twin::wrong>, different_lines_kernel<Twin::right>>(
      two_warps, Fault::lanes, {"come to the same line"});
  check_caught(Fault::lanes, {"asks for lane 32"},
               [] { launch<far_lane_kernel>(nullptr, two_warps); });
}

TEST_CASE("host executor: within a warp a barrier orders memory and a shuffle does not",
          "[host_executor]") {
  constexpr LaunchShape warp{.grid = {2}, .block = {32}};
  auto y = DeviceArray<int>::poisoned(32);
  check_race({}, [&] { launch<neighbour_kernel<Between::nothing>>(nullptr, warp, y.data()); });
  check_race({}, [&] { launch<neighbour_kernel<Between::shuffle>>(nullptr, warp, y.data()); });
  check_race(
      {}, [&] { launch<neighbour_kernel<Between::wrong_half_barrier>>(nullptr, warp, y.data()); });
  check_passes([&] { launch<neighbour_kernel<Between::barrier>>(nullptr, warp, y.data()); });
  check_passes([&] { launch<neighbour_kernel<Between::half_barrier>>(nullptr, warp, y.data()); });
  check_race({"writes element", "read it"},
             [&] { launch<overwrite_kernel<Twin::wrong>>(nullptr, warp); });
  check_passes([&] { launch<overwrite_kernel<Twin::right>>(nullptr, warp); });
  check_passes([&] {
    launch<chain_kernel>(nullptr, warp, y.data());
    CHECK(y.values()[0] == 5);
  });
}

TEST_CASE("host executor: two writers of one element race, neighbours and atomics do not",
          "[host_executor]") {
  check_passes([] { launch<small_elements_kernel>(nullptr, two_warps); });
  check_twins<same_cell_kernel<Twin::wrong>, same_cell_kernel<Twin::right>>(two_warps, Fault::race,
                                                                            {"writes element 0"});
  check_race({"element 0 of cell"},
             [] { launch<broadcast_kernel<Twin::wrong>>(nullptr, two_warps); });
  check_passes([] { launch<broadcast_kernel<Twin::right>>(nullptr, two_warps); });
  auto y = DeviceArray<int>::poisoned(1);
  check_race({}, [&] { launch<atomic_kernel<Twin::wrong>>(nullptr, two_warps, y.data()); });
  check_passes([&] {
    launch<atomic_kernel<Twin::right>>(nullptr, two_warps, y.data());
    CHECK(y.values()[0] == 64);
  });
}

TEST_CASE("host executor: a warp's own cell needs no barrier of the block", "[host_executor]") {
  auto y = DeviceArray<int>::poisoned(2);
  check_race({}, [&] { launch<warp_atomic_kernel<Twin::wrong>>(nullptr, two_warps, y.data()); });
  check_passes([&] {
    launch<warp_atomic_kernel<Twin::right>>(nullptr, two_warps, y.data());
    CHECK(y.values() == std::vector<int>{32, 32});
  });
}

TEST_CASE("host executor: a lane outside the mask gives NaN", "[host_executor]") {
  support::for_each_schedule(schedules, [] {
    DeviceArray<float> y(std::vector<float>(32, 0.0f));
    launch<outside_kernel>(nullptr, {.grid = {1}, .block = {32}}, y.data());
    CHECK(y.values()[7] == 15.0f);
    CHECK(std::isnan(y.values()[8]));
  });
}

TEST_CASE("host executor: what lies outside a shared array is caught", "[host_executor]") {
  constexpr LaunchShape one{.grid = {1}, .block = {1}};
  check_twins<store_kernel<8>, store_kernel<7>>(one, Fault::bounds, {"index 8 of tile"});
  check_twins<store_kernel<-1>, store_kernel<0>>(one, Fault::bounds, {"index -1 of tile"});
  check_twins<part_kernel<4>, part_kernel<3>>(one, Fault::bounds, {"index 4 of tile"});
  check_twins<vector_kernel<2>, vector_kernel<1>>(one, Fault::bounds, {"index 2 of tile"});
  constexpr LaunchShape warp{.grid = {1}, .block = {32}};
  check_twins<matrix_rows_kernel<8>, matrix_rows_kernel<0>>(warp, Fault::bounds,
                                                            {"index 64 of tile"});
  check_caught(Fault::bounds, {"the launch gave 48 bytes", "takes 56"}, [] {
    launch<dynamic_kernel<5>>(nullptr, {.grid = {1}, .block = {1}, .shared_bytes = 48});
  });
  check_passes(
      [] { launch<dynamic_kernel<4>>(nullptr, {.grid = {1}, .block = {1}, .shared_bytes = 48}); });
  constexpr LaunchShape dynamic{.grid = {1}, .block = {32}, .shared_bytes = 64};
  check_twins<two_layouts_kernel<Twin::wrong>, two_layouts_kernel<Twin::right>>(
      dynamic, Fault::bounds, {"laid out a second time"});
}

TEST_CASE("host executor: misaligned accesses are caught", "[host_executor]") {
  constexpr LaunchShape one{.grid = {1}, .block = {1}};
  check_caught(Fault::alignment, {"tile"}, [&] { launch<narrow_view_kernel>(nullptr, one); });
  check_caught(Fault::alignment, {"multiple of 16 bytes"},
               [] { launch<matrix_rows_kernel<4>>(nullptr, {.grid = {1}, .block = {32}}); });
  // Sixteen elements: among any four in a row one is the beginning of 16 aligned bytes.
  DeviceArray<float> x(std::vector<float>(16));
  int const aligned =
      static_cast<int>((16 - reinterpret_cast<std::uintptr_t>(x.data()) % 16) % 16 / 4);
  check_caught(Fault::alignment, {"of 16 bytes"},
               [&] { launch<pack_kernel>(nullptr, one, x.data(), aligned + 1); });
  check_passes([&] { launch<pack_kernel>(nullptr, one, x.data(), aligned); });
  check_caught(Fault::alignment, {"element 2 of tile"},
               [&] { launch<misaligned_copy_kernel<16>>(nullptr, one, x.data(), 2, aligned, 16); });
  check_caught(Fault::alignment, {"cp.async of 16 bytes"}, [&] {
    launch<misaligned_copy_kernel<16>>(nullptr, one, x.data(), 4, aligned + 1, 16);
  });
  // Even where nothing is read: the address goes to the instruction.
  check_caught(Fault::alignment, {"cp.async of 16 bytes"}, [&] {
    launch<misaligned_copy_kernel<16>>(nullptr, one, x.data(), 4, aligned + 1, 0);
  });
  check_passes(
      [&] { launch<misaligned_copy_kernel<16>>(nullptr, one, x.data(), 4, aligned + 4, 0); });
  check_caught(Fault::bounds, {"16 bytes from element 5 of tile"},
               [&] { launch<misaligned_copy_kernel<16>>(nullptr, one, x.data(), 5, aligned, 16); });
  check_passes([&] { launch<misaligned_copy_kernel<16>>(nullptr, one, x.data(), 4, aligned, 16); });
}

TEST_CASE("host executor: shared memory that nobody wrote is reported, or gives NaN",
          "[host_executor]") {
  constexpr LaunchShape warp{.grid = {2}, .block = {32}, .shared_bytes = 32 * sizeof(float)};
  auto y = DeviceArray<float>::poisoned(128);
  check_caught(Fault::unwritten, {"element 31 of tile", "nobody has written it yet"},
               [&] { launch<unwritten_kernel>(nullptr, warp, y.data(), false); });
  check_passes([&] {
    launch<unwritten_kernel>(nullptr, warp, y.data(), true);
    CHECK(y.values() == std::vector<float>(128, 1.0f));
  });
  for (int seed = 0; seed < schedules; ++seed) {
    WithOptions const with({.seed = static_cast<std::uint64_t>(seed), .report_unwritten = false});
    DeviceArray<float> z(std::vector<float>(128, 0.0f));
    launch<unwritten_kernel>(nullptr, warp, z.data(), false);
    auto const out = z.values();
    CHECK(out[31] == 1.0f);
    // Whichever block runs first: the other one does not find what that one left.
    CHECK(std::isnan(out[64 + 31]));
    CHECK(std::isnan(out[64 + 32 + 31]));
    CHECK(std::count_if(out.begin(), out.end(), [](float v) { return std::isnan(v); }) == 2);
  }
}

TEST_CASE("host executor: data of cp.async is there after the wait and a barrier, not before",
          "[host_executor]") {
  DeviceArray<float> x(std::vector<float>(64, 2.0f));
  auto y = DeviceArray<float>::poisoned(64);
  auto const run = [&]<Missing missing>(std::integral_constant<Missing, missing>) {
    launch<copy_kernel<missing>>(nullptr, two_warps, y.data(), static_cast<float const*>(x.data()));
  };
  for (int i = 0; i < 3; ++i) {
    check_caught(Fault::async_copy, {"copy_kernel", "of tile", "wait_copies must come before"},
                 [&] {
                   if (i == 0) run(std::integral_constant<Missing, Missing::wait>{});
                   if (i == 1) run(std::integral_constant<Missing, Missing::commit>{});
                   if (i == 2) run(std::integral_constant<Missing, Missing::group>{});
                 });
  }
  // Without the barrier a thread finds the other's copy under way or unordered, by the schedule.
  for (int seed = 0; seed < schedules; ++seed) {
    WithOptions const with({.seed = static_cast<std::uint64_t>(seed)});
    CHECK_THROWS_AS(run(std::integral_constant<Missing, Missing::barrier>{}), KernelFault);
  }
  check_passes([&] { run(std::integral_constant<Missing, Missing::nothing>{}); });
  CHECK(y.values() == std::vector<float>(64, 2.0f));

  check_race({"refill_kernel"}, [&] {
    launch<refill_kernel<Twin::wrong>>(nullptr, two_warps, y.data(),
                                       static_cast<float const*>(x.data()));
  });
  check_passes([&] {
    launch<refill_kernel<Twin::right>>(nullptr, two_warps, y.data(),
                                       static_cast<float const*>(x.data()));
    CHECK(y.values() == std::vector<float>(64, 4.0f));
  });
}

TEST_CASE("host executor: a barrier before the wait does not show others what a copy brought",
          "[host_executor]") {
  constexpr LaunchShape warp{.grid = {2}, .block = {32}};
  DeviceArray<float> x(std::vector<float>(64, 2.0f));
  auto y = DeviceArray<float>::poisoned(32);
  check_race({}, [&] {
    launch<early_barrier_kernel<Twin::wrong>>(nullptr, warp, y.data(),
                                              static_cast<float const*>(x.data()));
  });
  check_passes([&] {
    launch<early_barrier_kernel<Twin::right>>(nullptr, warp, y.data(),
                                              static_cast<float const*>(x.data()));
  });
  // What a block leaves under way does not trouble the next one.
  check_passes([&] {
    launch<forgotten_copy_kernel>(nullptr, two_warps, static_cast<float const*>(x.data()));
  });
}

TEST_CASE("host executor: launches that no device takes are refused", "[host_executor]") {
  auto const refused = [](LaunchShape const& shape) {
    check_caught(Fault::launch, {"whole_warps_kernel"},
                 [&] { launch<whole_warps_kernel>(nullptr, shape); });
  };
  refused({.grid = {0}, .block = {32}});
  refused({.grid = {1, 65536}, .block = {32}});
  refused({.grid = {1}, .block = {1056}});
  refused({.grid = {1}, .block = {0}});
  refused({.grid = {1}, .block = {1, 1, 96}});
  refused({.grid = {1}, .block = {32}, .shared_bytes = 227 * 1024 + 1});
  check_passes([] {
    launch<whole_warps_kernel>(nullptr,
                               {.grid = {1, 2}, .block = {1024}, .shared_bytes = 227 * 1024});
  });
}

TEST_CASE("host executor: a thread of an overlapping launch that does not wait is caught",
          "[host_executor]") {
  constexpr LaunchShape overlapping{.grid = {2}, .block = {64}, .overlaps = true};
  auto y = DeviceArray<int>::poisoned(64);
  check_caught(Fault::order, {"overlapping_kernel", "ends without wait_for_previous"},
               [&] { launch<overlapping_kernel<Twin::wrong>>(nullptr, overlapping, y.data()); });
  check_passes([&] { launch<overlapping_kernel<Twin::right>>(nullptr, overlapping, y.data()); });
  CHECK(y.values()[39] == 39);
  // Without overlap there is nothing to wait for.
  check_passes([&] { launch<overlapping_kernel<Twin::wrong>>(nullptr, two_warps, y.data()); });
}

TEST_CASE("host executor: the seed fixes the order of blocks and threads, and orders differ",
          "[host_executor]") {
  std::set<std::vector<int>> orders;
  std::set<int> first_blocks;
  for (int seed = 0; seed < schedules; ++seed) {
    WithOptions const with({.seed = static_cast<std::uint64_t>(seed)});
    std::vector<int> first;
    for (int again = 0; again < 2; ++again) {
      auto order = DeviceArray<int>::poisoned(2 * 64 * 3);
      DeviceArray<int> taken(std::vector<int>{0});
      launch<order_kernel>(nullptr, two_warps, order.data(), taken.data());
      if (again == 0) first = order.values();
      CHECK(order.values() == first);
    }
    // Every thread came twice.
    CHECK(std::multiset<int>(first.begin(), first.end()).count(100) == 2);
    orders.insert(first);
    first_blocks.insert(first[0] / 64);
  }
  CHECK(orders.size() == schedules);
  CHECK(first_blocks.size() > 1);
}

TEST_CASE("host executor: a failed kernel leaves nothing behind", "[host_executor]") {
  int alive = 0;
  check_caught(Fault::stuck, {"threads 9 returned"},
               [&] { launch<owning_kernel>(nullptr, two_warps, &alive); });
  // The destructors of the threads that were stuck have run.
  CHECK(alive == 0);
  CHECK_THROWS_WITH(launch<throwing_kernel>(nullptr, two_warps), "the kernel's own");
  auto y = DeviceArray<int>::poisoned(64);
  launch<reverse_kernel<Twin::right>>(nullptr, two_warps, y.data());
  CHECK(y.values()[63] == 0);
  CHECK_THROWS_AS(cuda::sync_threads(), std::logic_error);
}

// Not a test of behaviour: `emprl_tests "[measure]"` prints what the executor's header promises.
TEST_CASE("host executor: what it costs", "[host_executor][.measure]") {
  constexpr int rounds = 2000;
  constexpr LaunchShape block{.grid = {1}, .block = {256}};
  auto const nanoseconds = [](auto run) {
    run();
    auto const begin = std::chrono::steady_clock::now();
    run();
    return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - begin)
        .count();
  };
  auto const before = host_executor::counts().switches;
  double const warps = nanoseconds([&] { launch<waiting_kernel<false>>(nullptr, block, rounds); });
  double const switches = static_cast<double>(host_executor::counts().switches - before) / 2;
  double const blocks = nanoseconds([&] { launch<waiting_kernel<true>>(nullptr, block, rounds); });
  double const touches = nanoseconds([&] { launch<touching_kernel>(nullptr, block, rounds); });
  double const products = nanoseconds([&] { launch<multiplying_kernel>(nullptr, block, rounds); });
  WARN("a switch of fibers " << warps / switches << " ns, a barrier of 256 threads "
                             << blocks / rounds << " ns, an access to shared memory "
                             << touches / rounds / 256 / 2 << " ns, an mma.sync "
                             << products / rounds / 8 << " ns");
  CHECK(warps / switches < 40);
}
