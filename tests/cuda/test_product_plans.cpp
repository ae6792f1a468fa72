// SPDX-License-Identifier: Apache-2.0
#include "emprl/cuda/product_plans.hpp"

#include <cstdint>
#include <string>

#include "emprl/cuda/context.cuh"
#include "support/catch.hpp"

using emprl::ConfigError;
using emprl::cuda::ProductAlgorithm;
using emprl::cuda::ProductKey;
using emprl::cuda::ProductPlans;

namespace {

ProductPlans two_plans() {
  ProductPlans plans;
  plans.insert({.m = 6400, .n = 768, .k = 3072, .a_stride = 3072, .alignment = 256},
               {1, 2, 3, 0, 0, 0, 0, std::uint64_t(-1)});
  plans.insert({.m = 1, .b_transposed = 1}, {0xabc});
  return plans;
}

}  // namespace

TEST_CASE("product plans: a shape is found by all of its numbers", "[cuda][gemm]") {
  auto const plans = two_plans();
  REQUIRE(plans.size() == 2);
  REQUIRE(plans.find({.m = 1, .b_transposed = 1}) != nullptr);
  CHECK(*plans.find({.m = 1, .b_transposed = 1}) == ProductAlgorithm{0xabc});
  for (auto const field : emprl::cuda::product_key_fields) {
    ProductKey other{.m = 1, .b_transposed = 1};
    other.*field += 1;
    CHECK(plans.find(other) == nullptr);
  }
}

TEST_CASE("product plans: what is read again is what was written", "[cuda][gemm]") {
  auto const text = two_plans().text("library 1 on a GPU");
  ProductPlans plans;
  plans.insert({.m = 1, .b_transposed = 1}, {7});
  plans.insert({.m = 2}, {8});
  plans.restore(text, "library 1 on a GPU");
  CHECK(plans.size() == 3);
  CHECK(*plans.find({.m = 1, .b_transposed = 1}) == ProductAlgorithm{0xabc});
  CHECK(*plans.find({.m = 2}) == ProductAlgorithm{8});
  ProductPlans again;
  again.restore(text, "library 1 on a GPU");
  CHECK(again.text("library 1 on a GPU") == text);
}

TEST_CASE("product plans: a list of another library or a damaged one changes nothing",
          "[cuda][gemm]") {
  auto const text = two_plans().text("library 1");
  ProductPlans plans;
  CHECK_THROWS_WITH(plans.restore(text, "library 2"),
                    Catch::Contains("is for library 1, and this is library 2"));
  for (std::string const& damaged : {std::string(), std::string("something else"), text + "1 2 3\n",
                                     text.substr(0, text.size() - 3), text + "\n", "x" + text}) {
    INFO(damaged);
    CHECK_THROWS_AS(plans.restore(damaged, "library 1"), ConfigError);
  }
  CHECK(plans.size() == 0);
}

TEST_CASE("product plans: a context lists its algorithms and takes them back", "[cuda][gemm]") {
  emprl::Cuda first, second;
  first.products.plans = two_plans();
  second.products.restore(first.products.list());
  CHECK(second.products.list() == first.products.list());
  CHECK(second.products.plans.size() == 2);
}
