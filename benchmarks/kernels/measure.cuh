// SPDX-License-Identifier: Apache-2.0
#pragma once

// How a kernel is timed: by CUDA's events, after a warm-up, with an L2 cache that holds nothing of
// its data. Without nvcc the host executor runs the kernels and the times are its own: they say
// that the program works, and nothing of a GPU.

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "emprl/core/half.hpp"
#include "emprl/core/rng.hpp"
#include "emprl/cuda/buffer.cuh"
#include "emprl/cuda/context.cuh"
#include "emprl/cuda/kernel.hpp"
#include "emprl/cuda/launch.cuh"
#include "kernels/measure.hpp"

namespace emprl::bench {

template <class T>
inline constexpr char const* format_name = std::is_same_v<T, Bf16> ? "Bf16" : "float";

/// Half the distance from 1 to the next number of format T: what one rounding may cost.
template <class T>
inline constexpr double unit = std::is_same_v<T, Bf16> ? 0x1p-8 : 0x1p-24;

/// x[i] uniform in [-scale, scale).
template <class T>
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(256)
    random_kernel(T* x, index_t n, std::uint64_t seed, float scale) {
  index_t const i = cuda::global_thread_x();
  if (i >= n) return;
  double const u = uniform({seed, Stream::initialise, 0, static_cast<std::uint32_t>(i >> 32),
                            static_cast<std::uint32_t>(i)});
  x[i] = T(scale * static_cast<float>(2.0 * u - 1.0));
}

/// Reads n numbers. They are 0, so that nothing is written, which no compiler can know.
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(256) read_kernel(float* sink, float const* x, index_t n) {
  float sum = 0.0f;
  index_t const step = index_t{cuda::grid_size().x} * cuda::block_size().x;
  for (index_t i = cuda::global_thread_x(); i < n; i += step) sum += x[i];
  if (sum != 0.0f) *sink = sum;
}

#if defined(__CUDACC__)

/// A point in the order of a stream, with the time at which the GPU came to it.
class Event {
 public:
  Event() { cuda::cuda_try(cudaEventCreate(&event_), "timing"); }
  ~Event() {
    if (event_ != nullptr) static_cast<void>(cudaEventDestroy(event_));
  }
  Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Event(Event const&) = delete;
  Event& operator=(Event const&) = delete;

  void record(Cuda& dev) { cuda::cuda_try(cudaEventRecord(event_, dev.stream), "timing"); }
  void wait() const { cuda::cuda_try(cudaEventSynchronize(event_), "timing"); }
  /// Both have been recorded, and this one has been waited for.
  double microseconds_since(Event const& begin) const {
    float milliseconds = 0;
    cuda::cuda_try(cudaEventElapsedTime(&milliseconds, begin.event_, event_), "timing");
    return 1e3 * static_cast<double>(milliseconds);
  }

 private:
  cudaEvent_t event_ = nullptr;
};

#endif

/// A GPU, and what measuring on it takes.
class KernelBench {
 public:
  Cuda dev;
  KernelRun& run;

  explicit KernelBench(KernelRun& its_run) : run(its_run) {
#if defined(__CUDACC__)
    int bytes = 0;
    cuda::cuda_try(cudaDeviceGetAttribute(&bytes, cudaDevAttrL2CacheSize, 0), "asking for the L2");
    // Four times as much: lines leave in no order that CUDA promises.
    cold_ = Tensor<float, 1, Cuda>({index_t{bytes} + 1});
    clear(dev, cold_.view());
#endif
  }

  /// A tensor of uniform random numbers in [-scale, scale).
  template <class T, int Rank>
  Tensor<T, Rank, Cuda> random(std::array<index_t, Rank> extents, std::uint64_t seed,
                               float scale = 1.0f) {
    Tensor<T, Rank, Cuda> x(extents);
    cuda::launch<random_kernel<T>>(dev.stream,
                                   {.grid = {cuda::blocks_for(x.size(), 256)}, .block = {256}},
                                   x.data(), x.size(), seed, scale);
    return x;
  }

  template <class T, int Rank>
  Tensor<T, Rank, Cuda> zeros(std::array<index_t, Rank> extents) {
    Tensor<T, Rank, Cuda> x(extents);
    clear(dev, x.view());
    return x;
  }

  template <class T>
  Tensor<T, 1, Cuda> upload(std::vector<T> const& values) {
    Tensor<T, 1, Cuda> x({static_cast<index_t>(values.size())});
    copy(dev, x.view(), values);
    return x;
  }

  template <class T, int Rank>
  std::vector<T> fetch(Tensor<T, Rank, Cuda> const& x) {
    std::vector<T> values(static_cast<std::size_t>(x.size()));
    copy(dev, std::span<T>(values), x.view());
    return values;
  }

  /// The elements on the host, in double, which holds every format exactly.
  template <class T, int Rank>
  std::vector<double> numbers(Tensor<T, Rank, Cuda> const& x) {
    std::vector<double> y;
    for (T const v : fetch(x)) y.push_back(static_cast<double>(static_cast<float>(v)));
    return y;
  }

  /// The same as a tensor for the CPU's ops.
  template <class T, int Rank>
  Tensor<double, Rank, Cpu> on_host(Tensor<T, Rank, Cuda> const& x) {
    Tensor<double, Rank, Cpu> y(x.view().extents());
    auto const values = numbers(x);
    std::copy(values.begin(), values.end(), y.data());
    return y;
  }

  /// Times work() and keeps the result. Each repetition finds a cold L2. The host is ahead of the
  /// GPU while that is emptied, so that the time between the events is the GPU's alone, with what
  /// an op's kernels wait for one another.
  template <class F>
  void time(KernelCase what, F&& work) {
    if (!run.validate_only) keep(std::move(what), microseconds(dev, work));
  }

  void keep(KernelCase what, std::vector<double> const& times) {
    run.results.push_back({std::move(what), spread_of(times), static_cast<int>(times.size())});
  }

  /// The times of some repetitions of work(), which is ordered on the stream of `where`.
  template <class F>
  std::vector<double> microseconds(Cuda& where, F&& work) {
#if defined(__CUDACC__)
    constexpr int warm_up = 3;
    double slowest = 0;
    for (int i = 0; i < warm_up; ++i) slowest = timed(where, work);
    int const affordable = static_cast<int>(std::min(1e6, 1e6 * run.seconds / slowest));
    int const repetitions = std::min(run.repetitions, std::max(5, affordable));
    std::vector<double> times;
    for (int i = 0; i < repetitions; ++i) times.push_back(timed(where, work));
    return times;
#else
    static_cast<void>(where);
    double const begin = now();
    work();
    return {1e6 * (now() - begin)};
#endif
  }

 private:
#if defined(__CUDACC__)
  /// One repetition. The cache is emptied by reading: lines that are written there would have to
  /// be written back within the measured time.
  template <class F>
  double timed(Cuda& where, F& work) {
    cuda::launch<read_kernel>(where.stream, {.grid = {1056}, .block = {256}}, cold_.data(),
                              static_cast<float const*>(cold_.data() + 1), cold_.size() - 1);
    begin_.record(where);
    work();
    end_.record(where);
    end_.wait();
    return end_.microseconds_since(begin_);
  }

  Event begin_, end_;
  Tensor<float, 1, Cuda> cold_;
#endif
};

/// "32 x 200"
inline std::string shape_of(std::initializer_list<index_t> extents) {
  std::string text;
  for (index_t const e : extents) text += (text.empty() ? "" : " x ") + std::to_string(e);
  return text;
}

}  // namespace emprl::bench
