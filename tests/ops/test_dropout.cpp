// SPDX-License-Identifier: Apache-2.0
#include "emprl/ops/dropout.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <set>
#include <vector>

#include "support/catch.hpp"
#include "support/compare.hpp"

using emprl::Cpu;
using emprl::DropoutKey;
using emprl::DropoutSites;
using emprl::index_t;
using emprl::Tensor;
using support::values;

namespace {

std::vector<float> mask(DropoutKey const& key, index_t rows = 40, index_t columns = 257,
                        int threads = 1) {
  Cpu dev(threads);
  Tensor<float, 2, Cpu> x({rows, columns}, 1.0f);
  emprl::dropout_apply(dev, x.view(), key);
  return values(x);
}

}  // namespace

TEST_CASE("dropout: probability 0 changes nothing", "[ops][dropout][unit]") {
  for (float const v : mask({0.0, 1, 2, 3})) CHECK(v == 1.0f);
}

TEST_CASE("dropout: zeros at the stated rate, survivors scaled so that the mean stays",
          "[ops][dropout][unit]") {
  for (double const p : {0.1, 0.5, 0.9}) {
    auto const m = mask({p, 42, 0, 0}, 400, 257);
    auto const n = static_cast<double>(m.size());
    double zeros = 0;
    double sum = 0;
    for (float const v : m) {
      if (v == 0.0f) zeros += 1;
      if (v != 0.0f) REQUIRE(v == Approx(1 / (1 - p)).epsilon(1e-3));
      sum += static_cast<double>(v);
    }
    CHECK(std::abs(zeros / n - p) < 5 * std::sqrt(p * (1 - p) / n) + 0x1p-17);
    CHECK(std::abs(sum / n - 1) < 5 * std::sqrt(p / (1 - p) / n));
  }
}

TEST_CASE("dropout: the same key draws the same mask, whatever the threads",
          "[ops][dropout][unit]") {
  DropoutKey const key{0.3, 7, 11, 13};
  CHECK(mask(key) == mask(key));
  CHECK(mask(key, 400, 97, 1) == mask(key, 400, 97, 2));
}

TEST_CASE("dropout: seed, step, site and row each change the mask", "[ops][dropout][unit]") {
  DropoutKey const key{0.5, 7, 11, 13};
  std::set<std::vector<float>> masks{mask(key)};
  masks.insert(mask({0.5, 8, 11, 13}));
  masks.insert(mask({0.5, 7 + (std::uint64_t{1} << 32), 11, 13}));
  masks.insert(mask({0.5, 7, 12, 13}));
  masks.insert(mask({0.5, 7, 11, 14}));
  CHECK(masks.size() == 5);
  auto const m = mask(key, 50, 128);
  std::set<std::vector<float>> rows;
  for (std::ptrdiff_t i = 0; i < 50; ++i) {
    rows.insert(std::vector<float>(m.begin() + i * 128, m.begin() + (i + 1) * 128));
  }
  CHECK(rows.size() == 50);
}

TEST_CASE("dropout: a mask does not depend on how wide the matrix is", "[ops][dropout][unit]") {
  DropoutKey const key{0.5, 3, 1, 4};
  auto const wide = mask(key, 1, 1537);
  for (index_t const c : {1, 2, 31, 128, 512, 513}) {
    auto const narrow = mask(key, 1, c);
    CHECK(std::equal(narrow.begin(), narrow.end(), wide.begin()));
  }
}

TEST_CASE("dropout: neighbouring decisions are independent", "[ops][dropout][unit]") {
  auto const m = mask({0.5, 99, 0, 0}, 400, 256);
  for (std::size_t const lag : {1u, 2u, 16u, 32u, 128u, 256u}) {
    double agree = 0;
    double const n = static_cast<double>(m.size() - lag);
    for (std::size_t i = lag; i < m.size(); ++i) {
      if ((m[i] == 0.0f) == (m[i - lag] == 0.0f)) agree += 1;
    }
    INFO("lag " << lag);
    CHECK(std::abs(agree / n - 0.5) < 5 * 0.5 / std::sqrt(n));
  }
}

TEST_CASE("DropoutSites: every site of a pass is another", "[ops][dropout][unit]") {
  DropoutSites sites(0.1, 5, 6);
  auto const a = sites.next();
  auto const b = sites.next();
  CHECK(a.site != b.site);
  CHECK(a.seed == 5);
  CHECK(a.step == 6);
  CHECK(a.active());
  CHECK_FALSE(DropoutSites().next().active());
}

TEST_CASE("dropout: another output gets the same mask, and what is added is not dropped",
          "[ops][dropout][unit]") {
  DropoutKey const key{0.3, 7, 11, 13};
  auto const x = support::random_matrix<float>(40, 531, 1);
  auto const added = support::random_matrix<float>(40, 531, 2);
  auto const factor = mask(key, 40, 531);
  std::vector<float> dropped, sum;
  for (std::size_t i = 0; i < factor.size(); ++i) {
    dropped.push_back(x.values[i] * factor[i]);
    sum.push_back(added.values[i] + dropped.back());
  }
  Cpu dev(2);
  auto const in = support::to_tensor(x), more = support::to_tensor(added);
  auto y = support::poisoned<float, 2>({40, 531});
  emprl::dropout_forward<float>(dev, y.view(), in, key);
  CHECK(values(y) == dropped);
  // One rounding less where the compiler multiplies and adds at once.
  y = support::poisoned<float, 2>({40, 531});
  emprl::dropout_add<float>(dev, y.view(), in, more, key);
  CHECK(support::max_difference(values(y), sum) <= 0x1p-23 * support::max_abs(sum));
  auto const apart = values(y);
  emprl::dropout_add<float>(dev, more.view(), in, more, key);
  CHECK(values(more) == apart);
  emprl::dropout_add<float>(dev, in.view(), in, support::to_tensor(added), key);
  CHECK(values(in) == apart);
  Tensor<float, 2, Cpu> const narrow({40, 530});
  CHECK_THROWS_AS(emprl::dropout_forward<float>(dev, y.view(), narrow, key), emprl::ShapeError);
  CHECK_THROWS_AS(emprl::dropout_add<float>(dev, y.view(), in, narrow, key), emprl::ShapeError);
}
