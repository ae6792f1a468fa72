// SPDX-License-Identifier: Apache-2.0
#include "emprl/nn/value_head.hpp"

#include <utility>
#include <vector>

#include "emprl/cuda/buffer.cuh"
#include "emprl/ops/convert.cuh"
#include "emprl/ops/linear.cuh"
#include "support/catch.hpp"
#include "support/device_matrix.hpp"
#if !defined(__CUDACC__)
#include "emprl/ops/gemm_cpu.hpp"
#endif

using emprl::Bf16;
using emprl::Cuda;
using emprl::index_t;
using support::DeviceMatrix;

namespace {

/// What the layer computes and adds, as loops.
template <class T>
struct Expected {
  std::vector<T> value, dx, dweight, dbias;

  Expected(reference::Matrix<float> const& x, reference::Matrix<float> const& weight, float bias,
           reference::Matrix<float> const& dvalue, float before)
      : dx(x.values.size(), T(before)),
        dweight(static_cast<std::size_t>(x.cols), T(before)),
        dbias(1, T(before)) {
    for (index_t n = 0; n < x.rows; ++n) {
      T sum = 0;
      T const d = static_cast<T>(dvalue(n, 0));
      for (index_t c = 0; c < x.cols; ++c) {
        sum += static_cast<T>(x(n, c)) * static_cast<T>(weight(0, c));
        dx[static_cast<std::size_t>(n * x.cols + c)] += d * static_cast<T>(weight(0, c));
        dweight[static_cast<std::size_t>(c)] += d * static_cast<T>(x(n, c));
      }
      value.push_back(sum + static_cast<T>(bias));
      dbias[0] += d;
    }
  }
};

}  // namespace

TEMPLATE_TEST_CASE("value head: on the GPU, values, and gradients that are added to what is there",
                   "[cuda][value_head]", float, Bf16) {
  using T = TestType;
  for (auto const& [rows, columns] : {std::pair<index_t, index_t>{1, 8}, {5, 33}, {33, 96}}) {
    auto const in = support::random_in_format<T>(rows, columns, 1);
    auto const w = support::random_in_format<T>(1, columns, 2);
    float const b = 0.75f;
    float const before = 0.5f;
    auto const up = support::random_in_format<T>(rows, 1, 3);
    auto const filled = [&](index_t r, index_t c) {
      reference::Matrix<float> m(r, c);
      for (float& v : m.values) v = before;
      return m;
    };
    reference::Matrix<float> one(1, 1);
    one.values[0] = b;
    Expected<double> const truth(in, w, b, up, before);
    Expected<float> const plain(in, w, b, up, before);

    Cuda dev;
    dev.scratch.poison(true);
    DeviceMatrix<T> x(in), weight(w), bias(one), dx(filled(rows, columns));
    DeviceMatrix<float> dvalue(up), dweight(filled(1, columns)), dbias(filled(1, 1));
    auto value = DeviceMatrix<float>::poisoned(rows, 1);
    auto const column = [](DeviceMatrix<float>& m) {
      return emprl::TensorView<float, 1, Cuda>(m.view().data(), {m.view().extent(0)});
    };
    emprl::nn::ValueHead<T, Cuda> const layer;
    typename emprl::nn::ValueHead<T, Cuda>::Context context;
    layer.forward(dev, {weight, as_row(bias)}, x, column(value), context);
    layer.backward(dev, {weight, as_row(bias)}, {dweight.view(), as_row(dbias)}, column(dvalue),
                   dx.view(), context);
    dev.synchronize();
    support::check_two_times("value", value.values(), plain.value, truth.value);
    support::check_two_times("dweight", dweight.values(), plain.dweight, truth.dweight);
    support::check_two_times("dbias", dbias.values(), plain.dbias, truth.dbias);
    support::check_stored<T>("dx", dx.values(), plain.dx, truth.dx);
  }
}
