// SPDX-License-Identifier: Apache-2.0
#include "emprl/cuda/graph.cuh"

#include <cstdint>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include "emprl/cuda/buffer.cuh"
#include "emprl/cuda/host_copy.cuh"
#include "emprl/ops/elementwise.cuh"
#include "emprl/ops/gemm.cuh"
#include "support/catch.hpp"
#include "support/compare.hpp"
#if !defined(__CUDACC__)
#include "emprl/ops/gemm_cpu.hpp"
#endif

using namespace emprl;
using cuda::CudaGraph;

namespace cuda_graph {

constexpr index_t size = 33;

/// Matrices in the GPU's memory, and a piece of work that reads what the last piece has written.
struct Work {
  explicit Work(Cuda& device) : dev(device) {
    copy(dev, x.view(), support::random_values<float>(size * size, 1));
    copy(dev, y.view(), support::random_values<float>(size * size, 2));
  }

  /// y = s ((x y) + x), over scratch memory; z = 0.
  void operator()() const {
    ArenaScope const scope(dev.scratch);
    auto const product = dev.scratch.allocate<float, 2>({size, size});
    gemm(dev, Trans::no, Trans::no, 1.0f, x.view(), y.view(), 0.0f, product);
    add(dev, product, x.view());
    float const by = factor;
    scale(dev, product, by);
    copy(dev, y.view(), TensorView<float const, 2, Cuda>(product));
    clear(dev, z.view());
  }

  std::vector<float> result() const {
    std::vector<float> values(static_cast<std::size_t>(size * size));
    copy(dev, std::span<float>(values), TensorView<float const, 2, Cuda>(y));
    return values;
  }

  Cuda& dev;
  float factor = 0.25f;
  Tensor<float, 2, Cuda> x{{size, size}}, y{{size, size}}, z{{size, size}};
};

}  // namespace cuda_graph

TEST_CASE("cuda: a graph replays what was captured, in its order and no sooner", "[cuda][graph]") {
  Cuda dev;
  dev.scratch.poison(true);
  std::vector<std::vector<float>> expected;
  {
    cuda_graph::Work const work(dev);
    for (int i = 0; i < 4; ++i) {
      work();
      expected.push_back(work.result());
    }
  }
  cuda_graph::Work work(dev);
  work();
  CudaGraph graph = CudaGraph::capture(dev, work);
  // A product, three kernels and a fill.
  CHECK(graph.size() == 5);
  CHECK(dev.scratch.poisons());
  CHECK(work.result() == expected[0]);
  // Arguments are those of the capture; memory is read at the replay.
  work.factor = 100;
  for (std::size_t i = 1; i < 4; ++i) {
    graph.replay(dev);
    CHECK(work.result() == expected[i]);
  }
  CudaGraph const moved = std::move(graph);
  copy(dev, work.y.view(), support::random_values<float>(cuda_graph::size * cuda_graph::size, 2));
  moved.replay(dev);
  CHECK(work.result() == expected[0]);
  CudaGraph const nothing;
  nothing.replay(dev);
  CHECK(work.result() == expected[0]);
  CHECK(nothing.size() == 0);
  CHECK(CudaGraph::capture(dev, [] {}).size() == 0);
}

TEST_CASE("cuda: what depends on the host is not captured but reported", "[cuda][graph]") {
  using Catch::Matchers::ContainsSubstring;
  Cuda dev;
  cuda_graph::Work const work(dev);
  work();
  auto const before = work.result();
  std::vector<float> values(before.size());
  auto const captured = [&](auto const& more) {
    return CudaGraph::capture(dev, [&] {
      work();
      more();
    });
  };
  SECTION("a copy to the GPU") {
    CHECK_THROWS_WITH(captured([&] { copy(dev, work.z.view(), values); }),
                      ContainsSubstring("copying memory"));
  }
  SECTION("numbers of the host as an argument") {
    CHECK_THROWS_WITH(captured([&] {
                        ArenaScope const scope(dev.scratch);
                        on_device(dev, dev.scratch, std::span<float const>(values));
                      }),
                      ContainsSubstring("copying memory"));
  }
  SECTION("a copy to the host") {
    CHECK_THROWS_WITH(
        captured(
            [&] { copy(dev, std::span<float>(values), TensorView<float const, 2, Cuda>(work.z)); }),
        ContainsSubstring("copying memory"));
  }
  SECTION("a copy to pinned memory") {
    cuda::HostCopy<float> pinned(before.size());
    CHECK_THROWS_WITH(captured([&] {
                        pinned.begin(dev, {work.z.data(), {work.z.size()}});
                      }),
                      ContainsSubstring("copying memory"));
  }
  SECTION("waiting") {
    CHECK_THROWS_WITH(captured([&] { dev.synchronize(); }), ContainsSubstring("waiting"));
  }
  SECTION("memory") {
    CHECK_THROWS_WITH(captured([&] {
                        Tensor<float, 2, Cuda>({3, 3});
                      }),
                      ContainsSubstring("cudaMalloc"));
  }
  SECTION("an arena that has to grow") {
    CHECK_THROWS_WITH(captured([&] {
                        ArenaScope const scope(dev.scratch);
                        dev.scratch.allocate<float, 2>({4096, 4096});
                      }),
                      ContainsSubstring("cudaMalloc"));
  }
  SECTION("memory given back, of which no exception tells") {
    Tensor<float, 2, Cuda> given_back({3, 3});
    CHECK_THROWS_WITH(captured([&] { given_back = {}; }),
                      ContainsSubstring("cudaStreamEndCapture"));
  }
  SECTION("a capture in a capture") {
    CHECK_THROWS_WITH(captured([&] { CudaGraph::capture(dev, work); }),
                      ContainsSubstring("cudaStreamBeginCapture"));
  }
  SECTION("an exception of the work's own") {
    CHECK_THROWS_AS(captured([] { throw std::out_of_range("mine"); }), std::out_of_range);
  }
  // Nothing was done, and the stream works as before.
  CHECK(work.result() == before);
  CudaGraph const graph = CudaGraph::capture(dev, work);
  graph.replay(dev);
  auto const after = work.result();
  copy(dev, work.y.view(), before);
  work();
  CHECK(after == work.result());
}

TEST_CASE("cuda: a number comes to the host by a copy that does not hold up the stream",
          "[cuda][graph]") {
  Cuda dev;
  Tensor<std::int32_t, 1, Cuda> const there({3});
  cuda::HostCopy<std::int32_t> here(3);
  for (std::int32_t i = 0; i < 3; ++i) {
    std::vector<std::int32_t> const values{i, 10 * i, -i};
    copy(dev, there.view(), values);
    here.begin(dev, there.view());
    auto const arrived = here.wait();
    CHECK(std::vector<std::int32_t>(arrived.begin(), arrived.end()) == values);
  }
  CHECK_THROWS_AS(here.begin(dev, there.view().rows(0, 2)), ShapeError);
}
