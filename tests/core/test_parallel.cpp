// SPDX-License-Identifier: Apache-2.0
#include "emprl/core/parallel.hpp"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <mutex>
#include <utility>
#include <vector>

#include "support/catch.hpp"

using emprl::Cpu;
using emprl::index_t;

TEST_CASE("parallel_for: covers every index exactly once", "[core][parallel][unit]") {
  for (int const threads : {1, 2, 3, 8}) {
    Cpu const dev(threads);
    for (index_t const n : {0, 1, 2, 31, 33, 97, 257}) {
      for (index_t const grain : {0, 1, 10, 1000}) {
        std::vector<std::atomic<int>> seen(static_cast<std::size_t>(n));
        emprl::parallel_for(dev, n, grain, [&](index_t begin, index_t end) {
          for (index_t i = begin; i < end; ++i) ++seen[static_cast<std::size_t>(i)];
        });
        for (auto const& count : seen) REQUIRE(count == 1);
      }
    }
  }
}

TEST_CASE("parallel_for: ranges are the same every time", "[core][parallel][unit]") {
  Cpu const dev(2);
  auto const ranges = [&] {
    std::vector<std::pair<index_t, index_t>> list;
    std::mutex mutex;
    emprl::parallel_for(dev, 101, 1, [&](index_t begin, index_t end) {
      std::lock_guard const lock(mutex);
      list.emplace_back(begin, end);
    });
    std::sort(list.begin(), list.end());
    return list;
  };
  auto const first = ranges();
  for (int i = 0; i < 20; ++i) CHECK(ranges() == first);
}

TEST_CASE("parallel_for: less than a grain is done in one piece", "[core][parallel][unit]") {
  Cpu const dev(4);
  std::atomic<int> calls{0};
  emprl::parallel_for(dev, 9, 10, [&](index_t, index_t) { ++calls; });
  CHECK(calls == 1);
  emprl::parallel_for(dev, -3, 10, [&](index_t, index_t) { ++calls; });
  CHECK(calls == 1);
}

TEST_CASE("parallel_for: nested loops still cover everything", "[core][parallel][unit]") {
  Cpu const dev(2);
  std::vector<std::atomic<int>> seen(100);
  emprl::parallel_for(dev, 10, 1, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      emprl::parallel_for(dev, 10, 1, [&](index_t b, index_t e) {
        for (index_t j = b; j < e; ++j) ++seen[static_cast<std::size_t>(10 * i + j)];
      });
    }
  });
  for (auto const& count : seen) CHECK(count == 1);
}
