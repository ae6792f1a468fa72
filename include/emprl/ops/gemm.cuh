// SPDX-License-Identifier: Apache-2.0
#pragma once

// Matrix multiplication on the GPU, by cuBLASLt. Sums are taken in float whatever the operands are.
// cuBLASLt counts columns first: a row-major matrix is to it the transposed one, so that it is
// asked for c^T = op(b)^T op(a)^T.
//
// Without nvcc the product is the CPU's, over the memory that the host executor shares with it:
// whoever instantiates it includes ops/gemm_cpu.hpp, as for the CPU.

#include <algorithm>
#include <array>
#include <concepts>
#include <cstdint>
#include <iterator>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "emprl/core/half.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/cuda/buffer.cuh"
#include "emprl/cuda/context.cuh"
#include "emprl/ops/gemm.hpp"
#include "emprl/ops/gemm_few_rows.cuh"
#include "emprl/ops/view.hpp"

namespace emprl {

/// Rows of a mask of one bit an element for a (m, n) matrix: cuBLASLt asks for multiples of 128
/// bits.
inline std::array<index_t, 2> relu_mask_extents(index_t m, index_t n) {
  return {m, (n + 127) / 128 * 16};
}

namespace detail {

/// What happens to a product before it is written.
enum class Epilogue { none, bias, relu, relu_bias, relu_backward };

/// c = epilogue(alpha op(a) op(b) + beta added). T operands, R result.
template <CudaElement T, CudaElement R>
struct Product {
  Trans ta = Trans::no, tb = Trans::no;
  float alpha = 1, beta = 0;
  TensorView<T const, 2, Cuda> a, b;
  TensorView<R, 2, Cuda> c;
  TensorView<R const, 2, Cuda> added = c;  // not read if beta is 0
  Epilogue epilogue = Epilogue::none;
  T const* bias = nullptr;
  TensorView<std::uint8_t, 2, Cuda> mask = {};

  index_t m() const { return c.extent(0); }
  index_t n() const { return c.extent(1); }
  index_t k() const { return ta == Trans::no ? a.extent(1) : a.extent(0); }
  bool in_place() const { return beta != 0 && added.data() == c.data(); }
};

#if defined(__CUDACC__)

template <CudaElement T>
inline constexpr cudaDataType_t product_type = std::same_as<T, float> ? CUDA_R_32F : CUDA_R_16BF;

/// A product in cuBLASLt's words, and the ways to take it: a cuda::ProductLibrary.
template <CudaElement T, CudaElement R>
class LtProduct {
 public:
  LtProduct(Cuda& dev, Product<T, R> const& p) : dev_(dev), p_(p) {
    bool const tf32 = std::same_as<T, float> && dev.products.float32 == cuda::Float32Products::tf32;
    cublasComputeType_t const arithmetic = tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    cuda::cublas_try(cublasLtMatmulDescInit(&operation_, arithmetic, CUDA_R_32F), "gemm");
    // The operands change places, their transpositions with them.
    set(CUBLASLT_MATMUL_DESC_TRANSA, p.tb == Trans::no ? CUBLAS_OP_N : CUBLAS_OP_T);
    set(CUBLASLT_MATMUL_DESC_TRANSB, p.ta == Trans::no ? CUBLAS_OP_N : CUBLAS_OP_T);
    cublasLtEpilogue_t const epilogue = lt_epilogue();
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
    if (p.bias != nullptr) {
      set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, static_cast<void const*>(p.bias));
    }
    if (!p.mask.empty()) {
      set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, static_cast<void*>(p.mask.data()));
      set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, std::int64_t{8 * p.mask.stride(0)});
    }
    lay_out(a_, p.a);
    lay_out(b_, p.b);
    lay_out(c_, p.c);
    lay_out(added_, p.added);
    key_ = {
        .m = p.m(),
        .n = p.n(),
        .k = p.k(),
        .a_stride = p.a.stride(0),
        .b_stride = p.b.stride(0),
        .c_stride = p.c.stride(0),
        .a_transposed = p.ta == Trans::yes,
        .b_transposed = p.tb == Trans::yes,
        .operand = product_type<T>,
        .result = product_type<R>,
        .arithmetic = arithmetic,
        .accumulate = p.beta != 0,
        .epilogue = epilogue,
        .alignment = std::min({alignment(p.a), alignment(p.b), alignment(p.c), alignment(p.added)}),
        .bias_alignment = p.bias == nullptr ? 0 : alignment(address(p.bias))};
  }

  void run() {
    cuda::Products& products = dev_.products;
    auto const algorithm = products.plans.choose(key_, products.choice, *this);
    cublasStatus_t const status = multiply(algorithm, p_.c.data());
    // The sentence is made where it is needed: a pass has hundreds of products.
    if (status != CUBLAS_STATUS_SUCCESS) cuda::cublas_try(status, "gemm " + shape());
  }

  /// What the heuristic proposes, its favourite first.
  std::vector<cuda::ProductAlgorithm> candidates(int most) {
    cublasLtMatmulPreferenceOpaque_t preference;
    cuda::cublas_try(cublasLtMatmulPreferenceInit(&preference), "gemm");
    auto const prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      cuda::cublas_try(
          cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof value),
          "gemm");
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, cuda::Products::workspace_bytes);
    // A sum split along k is put together in float and in a fixed order, or not split.
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
           std::uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
    for (auto const attribute :
         {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
          CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
      prefer(attribute, static_cast<std::uint32_t>(key_.alignment));
    }
    std::vector<cublasLtMatmulHeuristicResult_t> found(static_cast<std::size_t>(most));
    int count = 0;
    cuda::cublas_try(
        cublasLtMatmulAlgoGetHeuristic(dev_.products.handle(), &operation_, &b_, &a_, &added_, &c_,
                                       &preference, most, found.data(), &count),
        "gemm: cuBLASLt has no algorithm for " + shape());
    std::vector<cuda::ProductAlgorithm> algorithms;
    for (auto const& proposed : std::span(found).first(static_cast<std::size_t>(count))) {
      // Of one with another state nothing else is valid.
      if (proposed.state != CUBLAS_STATUS_SUCCESS) continue;
      std::copy(std::begin(proposed.algo.data), std::end(proposed.algo.data),
                algorithms.emplace_back().begin());
    }
    if (algorithms.empty()) throw CudaError("gemm: cuBLASLt has no algorithm for " + shape());
    return algorithms;
  }

  /// Whether this product can be taken by an algorithm that was found for another shape.
  bool accepts(cuda::ProductAlgorithm const& algorithm) {
    cublasLtMatmulAlgo_t const lt = lt_algorithm(algorithm);
    cublasLtMatmulHeuristicResult_t result;
    return cublasLtMatmulAlgoCheck(dev_.products.handle(), &operation_, &b_, &a_, &added_, &c_, &lt,
                                   &result) == CUBLAS_STATUS_SUCCESS &&
           result.workspaceSize <= cuda::Products::workspace_bytes;
  }

  /// The time of a few products one after the other; none if the algorithm refuses.
  /// @throws CudaError while a graph is captured
  std::optional<float> milliseconds(cuda::ProductAlgorithm const& algorithm) {
    cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
    cuda::cuda_try(cudaStreamIsCapturing(dev_.stream, &capturing), "gemm");
    if (capturing != cudaStreamCaptureStatusNone) {
      throw CudaError("gemm: " + shape() +
                      " is a new shape, and algorithms cannot be timed while a graph is captured; "
                      "run the pass once before, or restore a list of algorithms");
    }
    // Where c is read, trials write elsewhere.
    ArenaScope scope(dev_.scratch);
    R* to = p_.c.data();
    if (p_.in_place()) {
      to = dev_.scratch.template allocate<R, 1>({(p_.m() - 1) * p_.c.stride(0) + p_.n()}).data();
    }
    struct Event {
      cudaEvent_t event = nullptr;
      Event() { cuda::cuda_try(cudaEventCreate(&event), "gemm: timing"); }
      ~Event() { static_cast<void>(cudaEventDestroy(event)); }
      Event(Event const&) = delete;
      Event& operator=(Event const&) = delete;
    };
    Event begin, end;
    constexpr int warm_up = 1, repeats = 3;
    for (int i = 0; i < warm_up + repeats; ++i) {
      if (i == warm_up) cuda::cuda_try(cudaEventRecord(begin.event, dev_.stream), "gemm: timing");
      if (multiply(algorithm, to) != CUBLAS_STATUS_SUCCESS) return {};
    }
    cuda::cuda_try(cudaEventRecord(end.event, dev_.stream), "gemm: timing");
    cuda::cuda_try(cudaEventSynchronize(end.event), "gemm: timing");
    float time = 0;
    cuda::cuda_try(cudaEventElapsedTime(&time, begin.event, end.event), "gemm: timing");
    return time;
  }

 private:
  template <class V>
  void set(cublasLtMatmulDescAttributes_t attribute, V const& value) {
    cuda::cublas_try(cublasLtMatmulDescSetAttribute(&operation_, attribute, &value, sizeof value),
                     "gemm");
  }

  template <class V>
  static void lay_out(cublasLtMatrixLayoutOpaque_t& layout, TensorView<V, 2, Cuda> x) {
    // At least the columns: a single row may have any stride.
    cuda::cublas_try(cublasLtMatrixLayoutInit(&layout, product_type<std::remove_const_t<V>>,
                                              static_cast<std::uint64_t>(x.extent(1)),
                                              static_cast<std::uint64_t>(x.extent(0)),
                                              std::max(x.stride(0), x.extent(1))),
                     "gemm");
  }

  static std::uintptr_t address(void const* p) { return reinterpret_cast<std::uintptr_t>(p); }

  /// The largest power of two, up to 256, that divides a number.
  static index_t alignment(std::uintptr_t bytes) {
    std::uintptr_t const bits = bytes | 256u;
    return static_cast<index_t>(bits & (~bits + 1));
  }

  /// The same of the address of every row.
  template <class V>
  static index_t alignment(TensorView<V, 2, Cuda> x) {
    return alignment(address(x.data()) | static_cast<std::uintptr_t>(x.stride(0)) * sizeof(V));
  }

  cublasLtEpilogue_t lt_epilogue() const {
    bool const mask = !p_.mask.empty();
    switch (p_.epilogue) {
      case Epilogue::bias:
        return CUBLASLT_EPILOGUE_BIAS;
      case Epilogue::relu:
        return mask ? CUBLASLT_EPILOGUE_RELU_AUX : CUBLASLT_EPILOGUE_RELU;
      case Epilogue::relu_bias:
        return mask ? CUBLASLT_EPILOGUE_RELU_AUX_BIAS : CUBLASLT_EPILOGUE_RELU_BIAS;
      case Epilogue::relu_backward:
        return CUBLASLT_EPILOGUE_DRELU;
      case Epilogue::none:
        break;
    }
    return CUBLASLT_EPILOGUE_DEFAULT;
  }

  std::string shape() const {
    return "(" + std::to_string(key_.m) + ", " + std::to_string(key_.k) + ") x (" +
           std::to_string(key_.k) + ", " + std::to_string(key_.n) + ")";
  }

  static cublasLtMatmulAlgo_t lt_algorithm(cuda::ProductAlgorithm const& algorithm) {
    cublasLtMatmulAlgo_t lt;
    static_assert(sizeof lt.data == sizeof algorithm);
    std::copy(algorithm.begin(), algorithm.end(), lt.data);
    return lt;
  }

  cublasStatus_t multiply(cuda::ProductAlgorithm const& algorithm, R* to) {
    cublasLtMatmulAlgo_t const lt = lt_algorithm(algorithm);
    cuda::Products& products = dev_.products;
    return cublasLtMatmul(products.handle(), &operation_, &p_.alpha, p_.b.data(), &b_, p_.a.data(),
                          &a_, &p_.beta, p_.added.data(), &added_, to, &c_, &lt,
                          products.workspace(), cuda::Products::workspace_bytes, dev_.stream);
  }

  Cuda& dev_;
  Product<T, R> const& p_;
  cublasLtMatmulDescOpaque_t operation_;
  cublasLtMatrixLayoutOpaque_t a_, b_, added_, c_;
  cuda::ProductKey key_;
};

template <CudaElement T, CudaElement R>
void multiply(Cuda& dev, Product<T, R> const& p) {
  LtProduct<T, R>(dev, p).run();
}

/// c = 0, rows with their stride.
template <class R>
void clear_rows(Cuda& dev, TensorView<R, 2, Cuda> c) {
  cuda::cuda_try(cudaMemset2DAsync(c.data(), static_cast<std::size_t>(c.stride(0)) * sizeof(R), 0,
                                   static_cast<std::size_t>(c.extent(1)) * sizeof(R),
                                   static_cast<std::size_t>(c.extent(0)), dev.stream),
                 "gemm");
}

#else

template <class T>
TensorView<T, 2, Cpu> on_host(TensorView<T, 2, Cuda> x) {
  return {x.data(), x.extents(), x.strides()};
}

/// A matrix of the executor's as float: itself, or a copy that begins with the same values.
template <class T>
class AsFloat {
 public:
  AsFloat(TensorView<T, 2, Cuda> x, bool read) : from_(on_host(x)) {
    if constexpr (!std::same_as<T const, float const>) {
      copy_ = Tensor<float, 2, Cpu>(x.extents());
      for (index_t i = 0; i < x.extent(0) && read; ++i) {
        for (index_t j = 0; j < x.extent(1); ++j) copy_(i, j) = static_cast<float>(from_(i, j));
      }
    }
  }

  auto view() const {
    if constexpr (std::same_as<T const, float const>) {
      return from_;
    } else {
      return copy_.view();
    }
  }

  /// Writes the copy back, rounded.
  void round() const {
    if constexpr (!std::same_as<T, float>) {
      for (index_t i = 0; i < from_.extent(0); ++i) {
        for (index_t j = 0; j < from_.extent(1); ++j) from_(i, j) = T(copy_(i, j));
      }
    }
  }

 private:
  TensorView<T, 2, Cpu> from_;
  Tensor<float, 2, Cpu> copy_;
};

template <CudaElement T, CudaElement R>
void multiply_on_host(Product<T, R> const& p) {
  Cpu host(1);
  if (p.beta != 0 && !p.in_place()) {
    for (index_t i = 0; i < p.m(); ++i) std::copy_n(p.added.row(i), p.n(), p.c.row(i));
  }
  AsFloat<T const> const a(p.a, true), b(p.b, true);
  AsFloat<R> const c(p.c, p.beta != 0);
  TensorView<float, 2, Cpu> const to = c.view();
  gemm(host, p.ta, p.tb, p.alpha, a.view(), b.view(), p.beta, to);
  for (index_t i = 0; i < p.m(); ++i) {
    for (index_t j = 0; j < p.n(); ++j) {
      if (p.bias != nullptr) to(i, j) += static_cast<float>(p.bias[j]);
      std::uint8_t* const bits = p.mask.empty() ? nullptr : p.mask.row(i) + j / 8;
      auto const bit = static_cast<std::uint8_t>(1u << j % 8);
      if (p.epilogue == Epilogue::relu_backward) {
        if ((*bits & bit) == 0) to(i, j) = 0;
      } else if (p.epilogue == Epilogue::relu || p.epilogue == Epilogue::relu_bias) {
        bool const positive = to(i, j) > 0;
        if (!positive) to(i, j) = 0;
        if (bits != nullptr) {
          *bits = static_cast<std::uint8_t>(positive ? *bits | bit : *bits & ~bit);
        }
      }
    }
  }
  c.round();
}

template <CudaElement T, CudaElement R>
void multiply(Cuda&, Product<T, R> const& p) {
  cuda::host::enqueue([p] { multiply_on_host(p); });
}

template <class R>
void clear_rows(Cuda&, TensorView<R, 2, Cuda> c) {
  cuda::host::enqueue([c] {
    for (index_t i = 0; i < c.extent(0); ++i) std::fill_n(c.row(i), c.extent(1), R(0.0f));
  });
}

#endif

/// Takes y = x W^T, with what goes along, by the kernel for few rows, if it can and is wanted.
/// @param norm  RMSNorm of x, or empty for none
inline bool multiplied_as_few_rows(Cuda& dev, TensorView<Bf16, 2, Cuda> y, In<Bf16, 2, Cuda> x,
                                   In<Bf16, 2, Cuda> weight, float alpha, In<Bf16, 1, Cuda> norm,
                                   double eps, Bf16 const* bias, In<Bf16, 2, Cuda> added,
                                   FewRowsTail tail) {
  if (y.extent(0) > std::min<index_t>(dev.products.few_rows, few_rows_most) ||
      weight.extent(0) > few_rows_most_columns || x.extent(1) > few_rows_most_columns) {
    return false;
  }
  FewRowsProduct const p{.y = y.data(),
                         .x = x.data(),
                         .weight = weight.data(),
                         .norm = data_or_null(norm),
                         .bias = bias,
                         .added = data_or_null(added),
                         .y_pitch = y.stride(0),
                         .x_pitch = x.stride(0),
                         .weight_pitch = weight.stride(0),
                         .added_pitch = added.stride(0),
                         .m = static_cast<int>(y.extent(0)),
                         .n = static_cast<int>(y.extent(1)),
                         .k = static_cast<int>(x.extent(1)),
                         .alpha = alpha,
                         .eps = static_cast<float>(eps)};
  if (!few_rows_fit(p)) return false;
  multiply_few_rows(dev, p, tail);
  return true;
}

/// Checks the shapes; what is empty needs no library.
template <CudaElement T, CudaElement R>
void checked_multiply(Cuda& dev, Product<T, R> const& p) {
  index_t const ma = p.ta == Trans::no ? p.a.extent(0) : p.a.extent(1);
  index_t const kb = p.tb == Trans::no ? p.b.extent(0) : p.b.extent(1);
  index_t const nb = p.tb == Trans::no ? p.b.extent(1) : p.b.extent(0);
  if (p.k() != kb || p.m() != ma || p.n() != nb) {
    throw ShapeError("gemm: the shapes do not fit: a " + shape_string(p.a) + ", b " +
                     shape_string(p.b) + ", c " + shape_string(p.c));
  }
  expects(p.added.extents() == p.c.extents(),
          "gemm: what is added must be as large as the product");
  expects(p.mask.empty() || p.mask.extents() == relu_mask_extents(p.m(), p.n()),
          "gemm: the mask needs one bit an element, in rows of multiples of 128 bits");
  if (p.m() == 0 || p.n() == 0) return;
  if (p.k() == 0) {
    expects(p.epilogue == Epilogue::none && (p.beta == 0 || (p.beta == 1 && p.in_place())),
            "gemm: a product of no terms is zero, or adds nothing");
    if (p.beta == 0) clear_rows(dev, p.c);
    return;
  }
  if constexpr (std::same_as<T, Bf16> && std::same_as<R, Bf16>) {
    bool const plain = p.epilogue == Epilogue::none || p.epilogue == Epilogue::bias;
    if (p.ta == Trans::no && p.tb == Trans::yes && plain && (p.beta == 0 || p.beta == 1) &&
        multiplied_as_few_rows(dev, p.c, p.a, p.b, p.alpha, {}, 0, p.bias,
                               p.beta == 0 ? TensorView<Bf16 const, 2, Cuda>() : p.added,
                               FewRowsTail::none)) {
      return;
    }
  }
  multiply(dev, p);
}

}  // namespace detail

/// c = alpha op(a) op(b) + beta c (see ops/gemm.hpp), sums in float. Ordered on dev.stream; the
/// first product of a bucket of shapes waits for the GPU while it tries algorithms
/// (cuda::AlgorithmChoice::timed).
/// @throws ShapeError if the extents disagree
/// @throws CudaError if cuBLASLt refuses
template <CudaElement T>
void gemm(Cuda& dev, Trans ta, Trans tb, float alpha, In<T, 2, Cuda> a, In<T, 2, Cuda> b,
          float beta, Out<T, 2, Cuda> c) {
  detail::checked_multiply<T, T>(
      dev, {.ta = ta, .tb = tb, .alpha = alpha, .beta = beta, .a = a, .b = b, .c = c});
}

/// The same of 16-bit operands, the result in float: logits, and gradients that are accumulated.
template <std::same_as<float> R>
void gemm(Cuda& dev, Trans ta, Trans tb, float alpha, In<Bf16, 2, Cuda> a, In<Bf16, 2, Cuda> b,
          float beta, Out<R, 2, Cuda> c) {
  detail::checked_multiply<Bf16, R>(
      dev, {.ta = ta, .tb = tb, .alpha = alpha, .beta = beta, .a = a, .b = b, .c = c});
}

/// c[i,j] = (alpha op(a) op(b))[i,j] + added[i,j] + bias[j], in one call and with one rounding.
/// @param c (M, N), written      @param bias (N), empty for none
/// @param added (M, N), empty for none; may be c
/// @throws ShapeError if the extents disagree
/// @throws CudaError if cuBLASLt refuses
template <CudaElement T>
void gemm_add(Cuda& dev, Trans ta, Trans tb, float alpha, In<T, 2, Cuda> a, In<T, 2, Cuda> b,
              Out<T, 2, Cuda> c, In<T, 1, Cuda> bias, In<T, 2, Cuda> added) {
  expects(bias.empty() || bias.extent(0) == c.extent(1),
          "gemm: the bias must have one element a column");
  detail::checked_multiply<T, T>(
      dev, {.ta = ta,
            .tb = tb,
            .alpha = alpha,
            .beta = added.empty() ? 0.0f : 1.0f,
            .a = a,
            .b = b,
            .c = c,
            .added = added.empty() ? In<T, 2, Cuda>(c) : added,
            .epilogue = bias.empty() ? detail::Epilogue::none : detail::Epilogue::bias,
            .bias = data_or_null(bias)});
}

/// c[i,j] = max((alpha op(a) op(b))[i,j] + bias[j], 0), in one call; mask says which are positive.
/// @param c (M, N), written      @param bias (N), empty for none
/// @param mask  of relu_mask_extents(M, N), written, for gemm_relu_backward alone to read: the
/// order of its bits is cuBLASLt's; empty if not needed
/// @throws ShapeError if the extents disagree
/// @throws CudaError if cuBLASLt refuses
template <CudaElement T>
void gemm_relu(Cuda& dev, Trans ta, Trans tb, float alpha, In<T, 2, Cuda> a, In<T, 2, Cuda> b,
               Out<T, 2, Cuda> c, In<T, 1, Cuda> bias, OptionalOut<std::uint8_t, 2, Cuda> mask) {
  expects(bias.empty() || bias.extent(0) == c.extent(1),
          "gemm: the bias must have one element a column");
  detail::checked_multiply<T, T>(
      dev, {.ta = ta,
            .tb = tb,
            .alpha = alpha,
            .a = a,
            .b = b,
            .c = c,
            .epilogue = bias.empty() ? detail::Epilogue::relu : detail::Epilogue::relu_bias,
            .bias = data_or_null(bias),
            .mask = mask});
}

/// c[i,j] = (alpha op(a) op(b))[i,j] where gemm_relu found a positive number, else 0: the gradient
/// before the ReLU, from the gradient behind the next layer.
/// @param c (M, N), written      @param mask  of relu_mask_extents(M, N), as gemm_relu wrote it
/// @throws ShapeError if the extents disagree
/// @throws CudaError if cuBLASLt refuses
template <CudaElement T>
void gemm_relu_backward(Cuda& dev, Trans ta, Trans tb, float alpha, In<T, 2, Cuda> a,
                        In<T, 2, Cuda> b, Out<T, 2, Cuda> c,
                        OptionalOut<std::uint8_t, 2, Cuda> mask) {
  expects(!mask.empty() || c.empty(), "gemm: the gradient of ReLU needs the mask");
  detail::checked_multiply<T, T>(dev, {.ta = ta,
                                       .tb = tb,
                                       .alpha = alpha,
                                       .a = a,
                                       .b = b,
                                       .c = c,
                                       .epilogue = detail::Epilogue::relu_backward,
                                       .mask = mask});
}

}  // namespace emprl
