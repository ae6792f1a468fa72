// SPDX-License-Identifier: Apache-2.0
#include "emprl/core/arena.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <new>

#include "emprl/core/device.hpp"
#include "emprl/core/rng.hpp"
#include "support/catch.hpp"

using emprl::Arena;
using emprl::ArenaScope;
using emprl::index_t;

TEST_CASE("Arena: allocations are aligned and do not overlap", "[core][arena][unit]") {
  Arena arena(256);
  float* end = nullptr;
  for (index_t const n : {1, 2, 31, 33, 97, 257}) {
    auto const x = arena.allocate<float, 1>({n});
    CHECK(reinterpret_cast<std::uintptr_t>(x.data()) % 64 == 0);
    CHECK((x.data() >= end || end >= x.data() + n));
    for (float& v : x.span()) v = static_cast<float>(n);
    end = x.data() + n;
  }
}

TEST_CASE("Arena: views stay valid while it grows", "[core][arena][unit]") {
  Arena arena(128);
  auto const first = arena.allocate<double, 2>({2, 3});
  first(1, 2) = 42;
  for (int i = 0; i < 100; ++i) {
    auto const x = arena.allocate<double, 1>({50});
    for (double& v : x.span()) v = -1;
  }
  CHECK(first(1, 2) == 42);
}

TEST_CASE("Arena: a scope gives its memory back and only its own", "[core][arena][unit]") {
  Arena arena(1024);
  auto const kept = arena.allocate<int, 1>({10});
  kept(9) = 5;
  int* reused = nullptr;
  std::size_t capacity = 0;
  for (int i = 0; i < 5; ++i) {
    ArenaScope const scope(arena);
    auto const a = arena.allocate<int, 1>({20});
    for (int& v : a.span()) v = 0;
    // Larger than a block, so that the scope crosses blocks.
    auto const b = arena.allocate<int, 1>({2000});
    for (int& v : b.span()) v = 0;
    if (i == 0) {
      reused = a.data();
      capacity = arena.capacity();
    }
    CHECK(a.data() == reused);
    CHECK(arena.capacity() == capacity);
  }
  CHECK(kept(9) == 5);
}

TEST_CASE("Arena: scopes nest", "[core][arena][unit]") {
  Arena arena(256);
  ArenaScope const outer(arena);
  auto const a = arena.allocate<int, 1>({40});
  int* inner_data = nullptr;
  {
    ArenaScope const inner(arena);
    inner_data = arena.allocate<int, 1>({100}).data();
  }
  auto const b = arena.allocate<int, 1>({100});
  CHECK(b.data() == inner_data);
  CHECK((b.data() >= a.data() + 40 || a.data() >= b.data() + 100));
}

TEST_CASE("Arena: ragged batches leave it with half as much again as the largest needs, at most",
          "[core][arena][unit]") {
  Arena arena(256);
  std::size_t most = 0;
  emprl::RandomSequence random(7, emprl::Stream::permute);
  for (int batch = 0; batch < 2000; ++batch) {
    // More and more tokens, and from batch to batch others.
    auto const tokens = 100 + batch / 10 + static_cast<index_t>(random.below(200));
    ArenaScope const scope(arena);
    std::size_t needed = 0;
    for (int layer = 0; layer < 24; ++layer) {
      for (index_t const columns : {16, 1, 48, 16, 16, 64}) {
        arena.allocate<float, 2>({tokens, columns});
        needed += static_cast<std::size_t>(tokens * columns) * sizeof(float);
      }
    }
    most = std::max(most, needed);
  }
  CHECK(arena.capacity() >= most);
  CHECK(arena.capacity() <= most + most / 2);
}

namespace {

/// Memory that gives out so much and no more.
struct ScarceMemory : emprl::HostMemory {
  static constexpr std::size_t limit = 9024;
  static inline std::size_t given = 0;

  static void* allocate(std::size_t bytes) {
    if (given + bytes > limit) throw std::bad_alloc();
    given += bytes;
    return emprl::HostMemory::allocate(bytes);
  }
};

}  // namespace

TEST_CASE("Arena: where memory is scarce it takes no more than it is asked for",
          "[core][arena][unit]") {
  emprl::BasicArena<emprl::Cpu, ScarceMemory> arena(256);
  // Blocks of 1024, five times, then of quarters, 1280 and 1600; for one of 2000 it is too late.
  for (int i = 0; i < 8; ++i) arena.allocate<std::byte, 1>({1024});
  CHECK(ScarceMemory::given == ScarceMemory::limit);
  CHECK_THROWS_AS((arena.allocate<std::byte, 1>({1})), std::bad_alloc);
}

TEST_CASE("Arena: poisoned memory is not a number", "[core][arena][unit]") {
  Arena arena;
  arena.poison(true);
  for (int round = 0; round < 2; ++round) {
    ArenaScope const scope(arena);
    auto const f = arena.allocate<float, 1>({33});
    auto const d = arena.allocate<double, 2>({3, 5});
    for (float& v : f.span()) {
      CHECK(std::isnan(v));
      v = 1;
    }
    for (double& v : d.span()) {
      CHECK(std::isnan(v));
      v = 1;
    }
  }
}

TEST_CASE("Arena: impossible extents are refused", "[core][arena][unit]") {
  Arena arena;
  CHECK_THROWS_AS((arena.allocate<float, 1>({-1})), emprl::ShapeError);
  CHECK_THROWS_AS((arena.allocate<double, 2>({index_t{1} << 40, index_t{1} << 40})),
                  emprl::ShapeError);
  CHECK(arena.allocate<float, 2>({0, 7}).empty());
}
