// SPDX-License-Identifier: Apache-2.0
#include "emprl/gen/decoding_rows.cuh"

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "emprl/core/rng.hpp"
#include "emprl/ops/running_lengths.cuh"
#include "support/catch.hpp"

using namespace emprl;
using gen::DecodingRows;

namespace cuda_decoding_rows {

constexpr std::int32_t eos = 1;

template <class T>
std::vector<T> back(Cuda& dev, TensorView<T, 1, Cuda> x) {
  std::vector<T> values(static_cast<std::size_t>(x.size()));
  copy(dev, std::span<T>(values), x);
  return values;
}

/// Rows 100, 101, ... that are moved on by tokens of the test's choice.
struct Batch {
  Batch(Cuda& device, index_t rows, index_t most, index_t unused = 0) : dev(device) {
    for (index_t r = 0; r < rows; ++r) ids.push_back(100 + static_cast<std::uint32_t>(r));
    state = gen::allocate_rows(dev.scratch, rows + unused, most);
    gen::start_rows(dev, state, ids, {.seed = 5, .step = 6}, 7);
  }

  void advance(std::vector<std::int32_t> const& drawn) {
    copy(dev, state.drawn, drawn);
    gen::advance_rows(dev, state, eos);
  }
  std::int32_t left() { return back(dev, state.left)[0]; }
  Ragged responses(index_t steps) { return gen::fetch_responses(dev, state, ids, eos, steps); }

  Cuda& dev;
  std::vector<std::uint32_t> ids;
  DecodingRows state;
};

}  // namespace cuda_decoding_rows

TEST_CASE("cuda: rows are moved on by what was drawn until each has ended", "[cuda][gen]") {
  using cuda_decoding_rows::Batch;
  using cuda_decoding_rows::eos;
  Cuda dev;
  dev.scratch.poison(true);
  index_t const most = 9;
  // More rows than the kernel has threads, and a few.
  for (index_t const rows : {1, 31, 600}) {
    CAPTURE(rows);
    ArenaScope const scope(dev.scratch);
    Batch batch(dev, rows, most);
    auto const n = static_cast<std::size_t>(rows);
    std::vector<std::vector<std::int32_t>> expected(n);
    std::vector<std::int32_t> newest(n, 7);
    CHECK(cuda_decoding_rows::back(dev, batch.state.newest) == newest);
    CHECK(cuda_decoding_rows::back(dev, batch.state.length) == std::vector<index_t>(n, 1));
    RandomSequence random(3, Stream::permute);
    std::vector<bool> ended(n, false);
    for (index_t t = 0; t < most; ++t) {
      std::vector<std::int32_t> drawn(n);
      std::vector<index_t> length(n, 0), generated(n, -1);
      std::int32_t left = 0;
      for (std::size_t r = 0; r < n; ++r) {
        drawn[r] = static_cast<std::int32_t>(random.below(8)) + 1;
        if (ended[r]) {
          // What is drawn for an ended row does not count, not even a failure.
          drawn[r] = gen::sample_diverged;
          continue;
        }
        expected[r].push_back(drawn[r]);
        ended[r] = drawn[r] == eos || t + 1 == most;
        if (ended[r]) continue;
        newest[r] = drawn[r];
        generated[r] = t + 1;
        length[r] = t + 2;
        ++left;
      }
      batch.advance(drawn);
      CHECK(batch.left() == left);
      CHECK(cuda_decoding_rows::back(dev, batch.state.newest) == newest);
      CHECK(cuda_decoding_rows::back(dev, batch.state.length) == length);
      CHECK(cuda_decoding_rows::back(dev, batch.state.generated) == generated);
    }
    auto const responses = batch.responses(most);
    REQUIRE(responses.rows() == rows);
    for (std::size_t r = 0; r < n; ++r) {
      auto const row = responses.row(static_cast<index_t>(r));
      CHECK(std::vector<std::int32_t>(row.begin(), row.end()) == expected[r]);
    }
  }
}

TEST_CASE("cuda: rows of which one fails stop, and the earliest failure is named", "[cuda][gen]") {
  using Catch::Matchers::ContainsSubstring;
  using cuda_decoding_rows::Batch;
  Cuda dev;
  ArenaScope const scope(dev.scratch);
  Batch batch(dev, 4, 5);
  batch.advance({3, 3, 3, cuda_decoding_rows::eos});
  CHECK(batch.left() == 3);
  batch.advance({4, 4, gen::sample_exhausted, 0});
  CHECK(batch.left() == 0);
  // Later steps do not take it back; row 100 fails after row 102.
  batch.advance({gen::sample_diverged, 4, 4, 0});
  CHECK(batch.left() == 0);
  CHECK_THROWS_WITH(batch.responses(3),
                    ContainsSubstring("response 102, token 1: no token is left"));
  // Before the failure there was none.
  CHECK(batch.responses(1).ids == std::vector<std::int32_t>{3, 3, 3, cuda_decoding_rows::eos});
}

TEST_CASE("cuda: rows that a batch leaves unused are as rows that have ended, and begin anew",
          "[cuda][gen]") {
  using cuda_decoding_rows::back;
  using cuda_decoding_rows::Batch;
  using cuda_decoding_rows::eos;
  Cuda dev;
  dev.scratch.poison(true);
  ArenaScope const scope(dev.scratch);
  Batch batch(dev, 2, 3, 300);
  index_t const rows = batch.state.ids.extent(0);
  REQUIRE(rows == 302);
  auto const of_used = [&](index_t used, index_t others, std::vector<index_t> first) {
    first.resize(static_cast<std::size_t>(used), first.front());
    first.resize(static_cast<std::size_t>(rows), others);
    return first;
  };
  auto const check_begun = [&](index_t used) {
    CHECK(batch.left() == used);
    CHECK(back(dev, batch.state.newest) ==
          std::vector<std::int32_t>(static_cast<std::size_t>(rows), 7));
    CHECK(back(dev, batch.state.length) == of_used(used, 0, {1}));
    CHECK(back(dev, batch.state.generated) == of_used(used, -1, {0}));
  };
  check_begun(2);
  std::vector<std::int32_t> drawn(static_cast<std::size_t>(rows), gen::sample_diverged);
  drawn[0] = 4;
  drawn[1] = eos;
  batch.advance(drawn);
  CHECK(batch.left() == 1);
  CHECK(back(dev, batch.state.length) == of_used(2, 0, {2, 0}));
  CHECK(batch.responses(1).ids == std::vector<std::int32_t>{4, eos});

  // The next batch of the same memory has more rows and another key.
  batch.ids.assign(301, 9);
  gen::start_rows(dev, batch.state, batch.ids, {.seed = 1, .step = 8}, 7);
  check_begun(301);
  CHECK(back(dev, batch.state.ids.rows(0, 301)) == batch.ids);
  auto const key = back(dev, batch.state.key)[0];
  CHECK(key.seed == 1);
  CHECK(key.step == 8);
  batch.ids.assign(303, 9);
  CHECK_THROWS_AS(gen::start_rows(dev, batch.state, batch.ids, {}, 7), ShapeError);
}

TEST_CASE("cuda: lengths of rows that run are kept, of the others they are 0", "[cuda][gen]") {
  Cuda dev;
  Cpu host;
  for (std::size_t const n : {1u, 2u, 31u, 257u, 1025u}) {
    std::vector<index_t> length, running, expected;
    for (std::size_t i = 0; i < n; ++i) {
      length.push_back(static_cast<index_t>(i) + 5);
      running.push_back(static_cast<index_t>(i * 7 % 3) - 1);
      expected.push_back(running.back() > 0 ? length.back() : 0);
    }
    auto const extents = std::array<index_t, 1>{static_cast<index_t>(n)};
    std::vector<index_t> out(n, -1);
    running_lengths(host, {out.data(), extents}, {length.data(), extents},
                    {running.data(), extents});
    CHECK(out == expected);
    ArenaScope const scope(dev.scratch);
    auto const there = on_device(dev, dev.scratch, std::span<index_t const>(length));
    auto const flags = on_device(dev, dev.scratch, std::span<index_t const>(running));
    auto const result = dev.scratch.allocate<index_t, 1>(extents);
    running_lengths(dev, result, there, flags);
    CHECK(cuda_decoding_rows::back(dev, result) == expected);
    CHECK_THROWS_AS(running_lengths(dev, result, there.rows(1, there.extent(0)), flags),
                    ShapeError);
  }
}
