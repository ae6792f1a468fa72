// SPDX-License-Identifier: Apache-2.0
#include "emprl/nn/pre_norm.hpp"

#include <cstdint>
#include <tuple>
#include <vector>

#include "emprl/ops/dropout.cuh"
#include "emprl/ops/elementwise.cuh"
#include "emprl/ops/rms_norm.cuh"
#include "support/catch.hpp"
#include "support/device_matrix.hpp"

using emprl::Cpu;
using emprl::Cuda;
using emprl::DropoutSites;
using emprl::In;
using emprl::index_t;
using emprl::TensorView;
using support::DeviceMatrix;

namespace {

struct Passes {
  std::vector<double> y, dx, dweight, inference;
};

/// Forward, backward and inference around a sub-layer that takes half of its input, on any device.
template <class T, class D>
void run(D& dev, double dropout, TensorView<T, 2, D> x, TensorView<T, 1, D> weight,
         TensorView<T, 2, D> y, TensorView<T, 2, D> dx, TensorView<T, 1, D> dweight) {
  emprl::nn::PreNorm<T, D> const layer(1e-6);
  auto const half = [&](In<T, 2, D> in, TensorView<T, 2, D> out) {
    emprl::copy(dev, out, in);
    emprl::scale(dev, out, T(0.5));
  };
  auto const add_half = [&](In<T, 2, D> in, In<T, 2, D> residual, TensorView<T, 2, D> out) {
    emprl::ArenaScope const scope(dev.scratch);
    auto const branch = dev.scratch.template allocate<T, 2>(in.extents());
    half(in, branch);
    if (residual.empty()) {
      emprl::copy(dev, out, branch);
    } else {
      if (residual.data() != out.data()) emprl::copy(dev, out, residual);
      emprl::add(dev, out, branch);
    }
  };
  typename emprl::nn::PreNorm<T, D>::Context context;
  DropoutSites sites(dropout, 7, 1);
  layer.forward(dev, {weight}, x, y, context, sites, add_half);
  layer.backward(dev, {weight}, {dweight}, dx, context, half);
  layer.inference(dev, {weight}, x, add_half);
}

template <class T>
Passes on_host(double dropout, reference::Matrix<float> const& x, std::vector<float> const& weight,
               reference::Matrix<float> const& dy) {
  Cpu dev;
  auto const in = support::to_tensor(reference::convert<T>(x));
  auto const w = support::to_tensor(reference::convert<T>(weight));
  auto const dx = support::to_tensor(reference::convert<T>(dy));
  auto y = support::poisoned<T, 2>({x.rows, x.cols});
  emprl::Tensor<T, 1, Cpu> dw({x.cols}, T(0));
  run<T, Cpu>(dev, dropout, in.view(), w.view(), y.view(), dx.view(), dw.view());
  auto const list = [](auto const& t) { return reference::convert<double>(support::values(t)); };
  return {list(y), list(dx), list(dw), list(in)};
}

}  // namespace

TEST_CASE("pre_norm: the layer runs on the GPU as it is, and as exactly", "[cuda][pre_norm]") {
  // Without dropout the sub-layer adds the residual, with it the layer does.
  for (auto const& [rows, columns, dropout] : {std::tuple<index_t, index_t, double>{1, 8, 0.25},
                                               {5, 33, 0.25},
                                               {33, 96, 0.25},
                                               {33, 96, 0}}) {
    auto const in = support::random_matrix<float>(rows, columns, 1);
    auto const up = support::random_matrix<float>(rows, columns, 2);
    auto const weight = support::random_matrix<float>(1, columns, 3);
    auto const truth = on_host<double>(dropout, in, weight.values, up);
    auto const plain = on_host<float>(dropout, in, weight.values, up);
    Cuda dev;
    dev.scratch.poison(true);
    dev.saved.poison(true);
    DeviceMatrix<float> x(in);
    DeviceMatrix<float> w(weight);
    DeviceMatrix<float> dx(up);
    DeviceMatrix<float> dweight(reference::Matrix<float>(1, columns));
    auto y = DeviceMatrix<float>::poisoned(rows, columns);
    run<float, Cuda>(dev, dropout, x.view(), as_row(w), y.view(), dx.view(), as_row(dweight));
    auto const check = [](char const* what, std::vector<float> const& actual,
                          std::vector<double> const& naive, std::vector<double> const& exact) {
      support::check_two_times(what, actual, reference::convert<float>(naive), exact);
    };
    check("y", y.values(), plain.y, truth.y);
    check("dx", dx.values(), plain.dx, truth.dx);
    check("dweight", dweight.values(), plain.dweight, truth.dweight);
    check("inference", x.values(), plain.inference, truth.inference);
  }
}
