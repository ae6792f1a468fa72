// SPDX-License-Identifier: Apache-2.0
#pragma once

// What matrix products on the GPU share: cuBLASLt's handle and workspace, how float32 is
// multiplied, and which algorithm serves which shape. ops/gemm.cuh multiplies.

#include <cstddef>
#include <string>
#include <string_view>

#include "emprl/cuda/memory.cuh"
#include "emprl/cuda/product_plans.hpp"

#if defined(__CUDACC__)
#include <cublasLt.h>
#endif

namespace emprl::cuda {

/// How products of float operands are taken. `exact` multiplies and adds in float32; `tf32` rounds
/// the operands to 10 bits of fraction first, which tensor cores multiply several times as fast.
enum class Float32Products { exact, tf32 };

#if defined(__CUDACC__)

/// @throws CudaError with cuBLASLt's own words if `status` is an error
inline void cublas_try(cublasStatus_t status, std::string_view what,
                       SourceLocation where = SourceLocation::current()) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw CudaError(std::string(what) + ": " + cublasLtGetStatusName(status) + " (" +
                  cublasLtGetStatusString(status) + ") [" + where.file + ":" +
                  std::to_string(where.line) + "]");
}

#endif

/// The state of a context's matrix products.
class Products {
 public:
  Float32Products float32 = Float32Products::exact;
  AlgorithmChoice choice = AlgorithmChoice::timed;
  /// Products x W^T of at most so many rows in 16 bits, at most 64, are taken by a kernel of this
  /// library (ops/gemm_few_rows.cuh), those of more, or of any other form, by cuBLASLt.
  index_t few_rows = 64;
  ProductPlans plans;

  Products() = default;
  Products(Products const&) = delete;
  Products& operator=(Products const&) = delete;

  /// The algorithms found so far, as lines of text. @see ProductPlans::text
  /// @throws CudaError
  std::string list() const { return plans.text(environment()); }

  /// Whether a list was made with this cuBLASLt on this kind of GPU.
  /// @throws ConfigError if it is none; CudaError
  bool made_here(std::string_view text) const {
    return ProductPlans::place_of(text) == environment();
  }

  /// Takes over the algorithms of a list.
  /// @throws ConfigError if it was made with another cuBLASLt or another kind of GPU, or is damaged
  /// @throws CudaError
  void restore(std::string_view text) { plans.restore(text, environment()); }

#if defined(__CUDACC__)
  /// What NVIDIA advises for its newest GPUs.
  static constexpr std::size_t workspace_bytes = std::size_t{32} << 20;

  ~Products() {
    if (workspace_ != nullptr) DeviceMemory::release(workspace_);
    if (handle_ != nullptr) static_cast<void>(cublasLtDestroy(handle_));
  }

  /// @throws CudaError
  cublasLtHandle_t handle() {
    if (handle_ == nullptr) cublas_try(cublasLtCreate(&handle_), "starting cuBLASLt");
    return handle_;
  }

  /// Memory for one product at a time, which the order of the stream guarantees. @throws CudaError
  void* workspace() {
    if (workspace_ == nullptr) workspace_ = DeviceMemory::allocate(workspace_bytes);
    return workspace_;
  }

 private:
  static std::string environment() {
    int device = 0;
    cuda_try(cudaGetDevice(&device), "asking for the GPU");
    cudaDeviceProp properties;
    cuda_try(cudaGetDeviceProperties(&properties, device), "asking for the GPU");
    return "cuBLASLt " + std::to_string(cublasLtGetVersion()) + " on " + properties.name;
  }

  cublasLtHandle_t handle_ = nullptr;
  void* workspace_ = nullptr;
#else
 private:
  static std::string environment() {
    return "the host executor";
  }
#endif
};

}  // namespace emprl::cuda
