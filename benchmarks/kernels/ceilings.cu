// SPDX-License-Identifier: Apache-2.0

// What this machine does at best: copy memory, multiply matrices, start a kernel. And what machine
// it is.

#include <string>

#include "emprl/cuda/pack.hpp"
#include "emprl/ops/gemm.cuh"
#include "kernels/measure.cuh"
#if !defined(__CUDACC__)
#include "emprl/ops/gemm_cpu.hpp"
#endif

namespace emprl::bench {

namespace {

EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(256) copy_kernel(float* y, float const* x, index_t packs) {
  index_t const i = cuda::global_thread_x();
  if (i < packs) cuda::store_pack(y + 4 * i, cuda::load_pack<4>(x + 4 * i));
}

EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(32) empty_kernel() {}

/// c = a b^T of n x n, which takes 2 n^3 flops and moves three matrices.
template <class T>
double product(KernelBench& bench, index_t n) {
  auto const a = bench.random<T, 2>({n, n}, 1);
  auto const b = bench.random<T, 2>({n, n}, 2);
  Tensor<T, 2, Cuda> c({n, n});
  double const size = static_cast<double>(n);
  double const flops = 2 * size * size * size;
  bench.time(
      {"cuBLASLt product", format_name<T>, shape_of({n, n, n}), 3 * size * size * sizeof(T), flops},
      [&] { gemm<T>(bench.dev, Trans::no, Trans::yes, 1.0f, a, b, 0.0f, c.view()); });
  return bench.run.results.empty() ? 0 : 1e6 * flops / bench.run.results.back().microseconds.median;
}

}  // namespace

void bench_ceilings(KernelRun& run) {
  if (run.validate_only) return;
  KernelBench bench(run);
  index_t const packs = run.small ? index_t{1} << 10 : index_t{1} << 25;
  auto const x = bench.random<float, 1>({4 * packs}, 3);
  Tensor<float, 1, Cuda> y({4 * packs});
  // Read once, written once.
  double const bytes = 2.0 * 16.0 * static_cast<double>(packs);
  bench.time({"copy", "float", shape_of({4 * packs}), bytes, 0}, [&] {
    cuda::launch<copy_kernel>(bench.dev.stream,
                              {.grid = {cuda::blocks_for(packs, 256)}, .block = {256}}, y.data(),
                              static_cast<float const*>(x.data()), packs);
  });
  run.check("copy", bench.numbers(y), bench.numbers(x), 0);
  double const copied = 1e6 * bytes / run.results.back().microseconds.median;
  double const bf16 = product<Bf16>(bench, run.small ? 64 : 8192);
  double const exact = product<float>(bench, run.small ? 64 : 4096);
  bench.time({"empty kernel", "float", "1", 0, 0},
             [&] { cuda::launch<empty_kernel>(bench.dev.stream, {.grid = {1}, .block = {32}}); });
  run.ceilings.launch = run.results.back().microseconds.median;
  // What is small, or run on the host, is nobody's limit.
  if (run.small) return;
  run.ceilings.bytes_per_second = copied;
  run.ceilings.bf16_flops = bf16;
  run.ceilings.float_flops = exact;
}

std::vector<std::pair<std::string, std::string>> describe_device() {
#if defined(__CUDACC__)
  auto const attribute = [](cudaDeviceAttr which) {
    int value = 0;
    cuda::cuda_try(cudaDeviceGetAttribute(&value, which, 0), "asking for the GPU");
    return value;
  };
  auto const version = [](int v) {
    return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10);
  };
  cudaDeviceProp properties;
  cuda::cuda_try(cudaGetDeviceProperties(&properties, 0), "asking for the GPU");
  int driver = 0, runtime = 0;
  cuda::cuda_try(cudaDriverGetVersion(&driver), "asking for the driver");
  cuda::cuda_try(cudaRuntimeGetVersion(&runtime), "asking for the runtime");
  return {{"gpu", properties.name},
          {"compute_capability",
           std::to_string(properties.major) + "." + std::to_string(properties.minor)},
          {"multiprocessors", std::to_string(properties.multiProcessorCount)},
          {"memory_mib", std::to_string(properties.totalGlobalMem >> 20)},
          {"l2_bytes", std::to_string(properties.l2CacheSize)},
          {"clock_mhz", std::to_string(attribute(cudaDevAttrClockRate) / 1000)},
          {"memory_clock_mhz", std::to_string(attribute(cudaDevAttrMemoryClockRate) / 1000)},
          {"driver_cuda", version(driver)},
          {"runtime_cuda", version(runtime)},
          {"cublaslt", std::to_string(cublasLtGetVersion())}};
#else
  return {{"gpu", "none: the host executor runs the kernels, its times say nothing of a GPU"}};
#endif
}

}  // namespace emprl::bench
