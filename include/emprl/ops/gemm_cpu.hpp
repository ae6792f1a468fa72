// SPDX-License-Identifier: Apache-2.0
#pragma once

// Matrix multiplication on the CPU: float by oneDNN where the build found it, all else by Eigen.
// oneDNN is used through its C interface, which has not changed between versions 1 and 3.

#include <Eigen/Core>

#include "emprl/core/device.hpp"
#include "emprl/core/parallel.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/ops/gemm.hpp"
#include "emprl/ops/view.hpp"

#ifdef EMPRL_HAS_ONEDNN
#include <dnnl.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

namespace emprl {

namespace detail {

template <class T>
void gemm_eigen(Trans ta, Trans tb, T alpha, TensorView<T const, 2, Cpu> a,
                TensorView<T const, 2, Cpu> b, T beta, TensorView<T, 2, Cpu> c) {
  using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using Stride = Eigen::OuterStride<>;
  Eigen::Map<Matrix const, 0, Stride> const ma(a.data(), a.extent(0), a.extent(1),
                                               Stride(a.stride(0)));
  Eigen::Map<Matrix const, 0, Stride> const mb(b.data(), b.extent(0), b.extent(1),
                                               Stride(b.stride(0)));
  Eigen::Map<Matrix, 0, Stride> mc(c.data(), c.extent(0), c.extent(1), Stride(c.stride(0)));
  if (beta == T(0)) {
    mc.setZero();
  } else if (beta != T(1)) {
    mc *= beta;
  }
  if (ta == Trans::no && tb == Trans::no) mc.noalias() += alpha * (ma * mb);
  if (ta == Trans::no && tb == Trans::yes) mc.noalias() += alpha * (ma * mb.transpose());
  if (ta == Trans::yes && tb == Trans::no) mc.noalias() += alpha * (ma.transpose() * mb);
  if (ta == Trans::yes && tb == Trans::yes)
    mc.noalias() += alpha * (ma.transpose() * mb.transpose());
}

/// While it lives, OpenMP regions that this thread opens have one thread. oneDNN and Eigen would
/// else take every processor for a product that was found too small to split, or that was asked to
/// stay on one thread.
class OneThread {
 public:
#ifdef _OPENMP
  OneThread() : before_(omp_get_max_threads()) {
    omp_set_num_threads(1);
  }
  ~OneThread() {
    omp_set_num_threads(before_);
  }
#else
  OneThread() = default;
#endif
  OneThread(OneThread const&) = delete;
  OneThread& operator=(OneThread const&) = delete;

#ifdef _OPENMP
 private:
  int before_;
#endif
};

}  // namespace detail

/// c = alpha op(a) op(b) + beta c (see ops/gemm.hpp).
/// Work is split among threads by rows or columns of c, never along K: every sum is taken whole, by
/// one thread.
/// @throws ShapeError if the extents disagree
template <Scalar T>
void gemm(Cpu& dev, Trans ta, Trans tb, std::type_identity_t<T> alpha, In<T, 2, Cpu> a,
          In<T, 2, Cpu> b, std::type_identity_t<T> beta, Out<T, 2, Cpu> c) {
  index_t const m = ta == Trans::no ? a.extent(0) : a.extent(1);
  index_t const k = ta == Trans::no ? a.extent(1) : a.extent(0);
  index_t const n = tb == Trans::no ? b.extent(1) : b.extent(0);
  index_t const kb = tb == Trans::no ? b.extent(0) : b.extent(1);
  if (k != kb || c.extent(0) != m || c.extent(1) != n) {
    throw ShapeError("gemm: the shapes do not fit: a " + shape_string(a) + ", b " +
                     shape_string(b) + ", c " + shape_string(c));
  }
  if (m == 0 || n == 0) return;
  if (k == 0) {
    for (index_t i = 0; i < m; ++i) {
      for (index_t j = 0; j < n; ++j) c(i, j) = beta == T(0) ? T(0) : beta * c(i, j);
    }
    return;
  }
  auto const rows_of = [](Trans t, TensorView<T const, 2, Cpu> x, index_t begin, index_t end) {
    return t == Trans::no ? x.rows(begin, end) : x.columns(begin, end);
  };
  auto const columns_of = [](Trans t, TensorView<T const, 2, Cpu> x, index_t begin, index_t end) {
    return t == Trans::no ? x.columns(begin, end) : x.rows(begin, end);
  };
  auto const block = [&](TensorView<T const, 2, Cpu> pa, TensorView<T const, 2, Cpu> pb,
                         TensorView<T, 2, Cpu> pc) {
    [[maybe_unused]] detail::OneThread const guard;
#ifdef EMPRL_HAS_ONEDNN
    if constexpr (std::same_as<T, float>) {
      dnnl_status_t const status = dnnl_sgemm(
          ta == Trans::no ? 'N' : 'T', tb == Trans::no ? 'N' : 'T', pc.extent(0), pc.extent(1), k,
          alpha, pa.data(), pa.stride(0), pb.data(), pb.stride(0), beta, pc.data(), pc.stride(0));
      if (status != dnnl_success) {
        throw Error("gemm: oneDNN refused the product with status " + std::to_string(status));
      }
      return;
    }
#endif
    detail::gemm_eigen<T>(ta, tb, alpha, pa, pb, beta, pc);
  };
  // A thread should have at least this many multiply-adds to do, or waking it costs more than it
  // saves.
  constexpr index_t worth_a_thread = 1 << 15;
  if (m >= n) {
    index_t const grain = std::max<index_t>(8, worth_a_thread / (n * k));
    parallel_for(dev, m, grain, [&](index_t begin, index_t end) {
      block(rows_of(ta, a, begin, end), b, c.rows(begin, end));
    });
  } else {
    index_t const grain = std::max<index_t>(8, worth_a_thread / (m * k));
    parallel_for(dev, n, grain, [&](index_t begin, index_t end) {
      block(a, columns_of(tb, b, begin, end), c.columns(begin, end));
    });
  }
}

}  // namespace emprl
