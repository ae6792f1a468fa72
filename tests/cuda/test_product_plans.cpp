// SPDX-License-Identifier: Apache-2.0
#include "emprl/cuda/product_plans.hpp"

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "emprl/cuda/context.cuh"
#include "support/catch.hpp"

using emprl::ConfigError;
using emprl::index_t;
using emprl::cuda::AlgorithmChoice;
using emprl::cuda::product_bucket;
using emprl::cuda::ProductAlgorithm;
using emprl::cuda::ProductKey;
using emprl::cuda::ProductPlans;

namespace {

void insert_two(ProductPlans& plans) {
  plans.insert({.m = 6400, .n = 768, .k = 3072, .a_stride = 3072, .alignment = 256},
               {1, 2, 3, 0, 0, 0, 0, std::uint64_t(-1)});
  plans.insert({.m = 1, .b_transposed = 1}, {0xabc});
}

ProductPlans two_plans() {
  ProductPlans plans;
  insert_two(plans);
  return plans;
}

/// Algorithm i of a library that is made of numbers.
ProductAlgorithm algorithm(std::uint64_t i) {
  return {i};
}

/// Algorithms 0, 1, ... in the order that the library prefers, with the time that each takes (none:
/// it fails), and those that this shape refuses.
struct FakeLibrary {
  std::vector<std::optional<float>> times = {};
  std::vector<ProductAlgorithm> refused = {};
  int asked = 0, timed = 0;

  std::vector<ProductAlgorithm> candidates(int most) {
    ++asked;
    std::vector<ProductAlgorithm> all;
    for (std::size_t i = 0; i < times.size() && all.size() < static_cast<std::size_t>(most); ++i) {
      all.push_back(algorithm(i));
    }
    return all;
  }
  bool accepts(ProductAlgorithm const& a) const {
    return std::find(refused.begin(), refused.end(), a) == refused.end();
  }
  std::optional<float> milliseconds(ProductAlgorithm const& a) {
    ++timed;
    return times[a[0]];
  }
};

/// Three algorithms, in an order that the shape decides, which also bars one; how long they take is
/// a matter of chance.
struct RestlessLibrary {
  index_t tokens;
  std::minstd_rand& clock;

  std::vector<ProductAlgorithm> candidates(int most) const {
    std::vector<ProductAlgorithm> all;
    for (int i = 0; i < std::min(most, 3); ++i) {
      all.push_back(algorithm(static_cast<std::uint64_t>((tokens + i) % 3)));
    }
    return all;
  }
  bool accepts(ProductAlgorithm const& a) const {
    return a != algorithm(static_cast<std::uint64_t>(tokens % 7));
  }
  std::optional<float> milliseconds(ProductAlgorithm const&) {
    return static_cast<float>(1 + clock() % 100);
  }
};

static_assert(emprl::cuda::ProductLibrary<FakeLibrary>);
static_assert(emprl::cuda::ProductLibrary<RestlessLibrary>);

/// y = x W^T of so many tokens.
ProductKey of_tokens(index_t tokens) {
  return {.m = tokens, .n = 768, .k = 3072, .a_stride = 3072, .b_stride = 3072, .c_stride = 768};
}

}  // namespace

TEST_CASE("product plans: buckets are whole numbers, then four steps to the next power of two",
          "[cuda][gemm]") {
  for (index_t n = 0; n <= 8; ++n) CHECK(product_bucket(n) == n);
  CHECK(product_bucket(9) == 10);
  CHECK(product_bucket(16) == 16);
  CHECK(product_bucket(17) == 20);
  CHECK(product_bucket(4097) == 5120);
  CHECK(product_bucket(5120) == 5120);
  CHECK(product_bucket(index_t{1} << 40) == index_t{1} << 40);
  index_t last = 0;
  for (index_t n = 1; n < 20000; ++n) {
    index_t const bucket = product_bucket(n);
    bool const good =
        bucket >= n && bucket >= last && 4 * bucket <= 5 * n && product_bucket(bucket) == bucket;
    if (!good) FAIL("bucket " << bucket << " of " << n);
    last = bucket;
  }
  // The widths of T5's layers, but for the widest, are buckets of their own.
  for (index_t const n : {512, 768, 1024, 1536, 2048, 3072}) CHECK(product_bucket(n) == n);
  auto const key = emprl::cuda::bucket_of({.m = 33, .k = 17, .b_stride = 100, .alignment = 48});
  CHECK(key == ProductKey{.m = 40, .k = 20, .b_stride = 112, .alignment = 48});
}

TEST_CASE("product plans: the fastest candidate serves its bucket, and is timed once",
          "[cuda][gemm]") {
  ProductPlans plans;
  FakeLibrary library{.times = {5.0f, std::nullopt, 2.0f, 3.0f}};
  CHECK(plans.choose(of_tokens(1000), AlgorithmChoice::timed, library) == algorithm(2));
  CHECK(library.timed == 4);
  CHECK(plans.size() == 1);
  // Others of the bucket, whatever they would take themselves.
  library.times = {1.0f, 1.0f, 9.0f};
  for (index_t const tokens : {897, 960, 1024, 1000}) {
    CHECK(plans.choose(of_tokens(tokens), AlgorithmChoice::timed, library) == algorithm(2));
  }
  CHECK(library.timed == 4);
  CHECK(library.asked == 1);
  CHECK(plans.choose(of_tokens(1025), AlgorithmChoice::timed, library) == algorithm(0));
  CHECK(plans.size() == 2);
}

TEST_CASE("product plans: a candidate must be clearly faster than one that the library prefers",
          "[cuda][gemm]") {
  ProductPlans plans;
  FakeLibrary library{.times = {1.00f, 0.98f, 1.20f}};
  CHECK(plans.choose(of_tokens(7), AlgorithmChoice::timed, library) == algorithm(0));
  library.times = {1.00f, 0.90f, 0.88f};
  CHECK(plans.choose(of_tokens(8), AlgorithmChoice::timed, library) == algorithm(1));
  // What is alone need not be timed; more than eight are not asked for.
  library = {.times = {std::nullopt}};
  CHECK(plans.choose(of_tokens(9), AlgorithmChoice::timed, library) == algorithm(0));
  CHECK(library.timed == 0);
  library = {.times = std::vector<std::optional<float>>(20, 1.0f)};
  plans.choose(of_tokens(11), AlgorithmChoice::timed, library);
  CHECK(library.timed == 8);
  library = {.times = {std::nullopt, std::nullopt}};
  CHECK_THROWS_AS(plans.choose(of_tokens(100), AlgorithmChoice::timed, library), emprl::CudaError);
}

TEST_CASE(
    "product plans: a shape that refuses its bucket's algorithm takes the library's favourite",
    "[cuda][gemm]") {
  ProductPlans plans;
  FakeLibrary library{.times = {5.0f, 2.0f}};
  CHECK(plans.choose(of_tokens(1000), AlgorithmChoice::timed, library) == algorithm(1));
  FakeLibrary other{.times = {5.0f, 2.0f}, .refused = {algorithm(1)}};
  CHECK(plans.choose(of_tokens(1001), AlgorithmChoice::timed, other) == algorithm(0));
  CHECK(other.timed == 0);
  // It keeps that, and the bucket its own.
  CHECK(plans.choose(of_tokens(1001), AlgorithmChoice::timed, library) == algorithm(0));
  CHECK(plans.choose(of_tokens(1002), AlgorithmChoice::timed, library) == algorithm(1));
  CHECK(plans.size() == 1);
}

TEST_CASE("product plans: without timing nothing is measured or kept, and a list still holds",
          "[cuda][gemm]") {
  ProductPlans plans;
  FakeLibrary library{.times = {5.0f, 2.0f}};
  CHECK(plans.choose(of_tokens(1000), AlgorithmChoice::first, library) == algorithm(0));
  CHECK(library.timed == 0);
  CHECK(plans.size() == 0);
  ProductPlans found;
  found.choose(of_tokens(1001), AlgorithmChoice::timed, library);
  plans.restore(found.text("here"), "here");
  // Also for a shape that was met before.
  CHECK(plans.choose(of_tokens(1000), AlgorithmChoice::first, library) == algorithm(1));
}

TEST_CASE("product plans: untimed, a run that goes on takes what one that never stopped takes",
          "[cuda][gemm]") {
  // Sixty steps by so many processes, each of which begins with the list of the one before.
  auto const run = [](AlgorithmChoice how, std::vector<std::uint32_t> const& clocks) {
    std::vector<ProductAlgorithm> taken;
    std::string list = ProductPlans().text("here");
    std::size_t const steps = 60 / clocks.size();
    for (std::uint32_t const seed : clocks) {
      ProductPlans plans;
      plans.restore(list, "here");
      std::minstd_rand clock(seed);
      for (std::size_t i = 0; i < steps; ++i) {
        // New buckets all along, and old ones again.
        auto const tokens = static_cast<index_t>(100 + 370 * taken.size() % 3001);
        RestlessLibrary library{tokens, clock};
        taken.push_back(plans.choose(of_tokens(tokens), how, library));
      }
      list = plans.text("here");
    }
    if (how == AlgorithmChoice::first) CHECK(list == ProductPlans().text("here"));
    return taken;
  };
  auto const straight = run(AlgorithmChoice::first, {1});
  CHECK(run(AlgorithmChoice::first, {2}) == straight);
  CHECK(run(AlgorithmChoice::first, {1, 2}) == straight);
  CHECK(run(AlgorithmChoice::first, {3, 4, 5}) == straight);
  // Timed, the second half's new buckets are another process's to try.
  auto const timed = run(AlgorithmChoice::timed, {1});
  auto const resumed = run(AlgorithmChoice::timed, {1, 2});
  CHECK(std::equal(timed.begin(), timed.begin() + 30, resumed.begin()));
  CHECK(timed != resumed);
}

TEST_CASE("product plans: what may change a choice made before is told by the revision",
          "[cuda][gemm]") {
  ProductPlans plans;
  FakeLibrary library{.times = {5.0f, 2.0f}};
  auto const start = plans.revision();
  plans.choose(of_tokens(1000), AlgorithmChoice::timed, library);
  plans.choose(of_tokens(3000), AlgorithmChoice::first, library);
  CHECK_THROWS_AS(plans.restore("something else", "here"), ConfigError);
  CHECK(plans.revision() == start);
  plans.insert(emprl::cuda::bucket_of(of_tokens(3000)), algorithm(1));
  CHECK(plans.choose(of_tokens(3000), AlgorithmChoice::first, library) == algorithm(1));
  auto const inserted = plans.revision();
  CHECK(inserted != start);
  plans.restore(two_plans().text("here"), "here");
  CHECK(plans.revision() != inserted);
  CHECK(plans.revision() != start);
}

TEST_CASE("product plans: of ragged batches without end, every shape keeps its bucket's algorithm",
          "[cuda][gemm]") {
  ProductPlans plans;
  FakeLibrary library{.times = {5.0f, 2.0f}};
  std::map<index_t, ProductAlgorithm> taken;
  for (index_t tokens = 1; tokens <= 20000; ++tokens) {
    // Another is the fastest each time.
    std::swap(library.times[0], library.times[1]);
    auto const a = plans.choose(of_tokens(tokens), AlgorithmChoice::timed, library);
    auto const [first, is_new] = taken.emplace(product_bucket(tokens), a);
    if (a != first->second) FAIL(tokens << " tokens have left their bucket");
  }
  CHECK(plans.size() == taken.size());
  CHECK(library.timed == 2 * static_cast<int>(taken.size()));
  ProductPlans again;
  again.restore(plans.text("here"), "here");
  for (index_t tokens = 1; tokens <= 20000; tokens += 111) {
    CHECK(again.choose(of_tokens(tokens), AlgorithmChoice::timed, library) ==
          taken.at(product_bucket(tokens)));
  }
  CHECK(library.timed == 2 * static_cast<int>(taken.size()));
}

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
  insert_two(first.products.plans);
  second.products.restore(first.products.list());
  CHECK(second.products.list() == first.products.list());
  CHECK(second.products.plans.size() == 2);
  CHECK(first.products.made_here(second.products.list()));
  CHECK_FALSE(first.products.made_here(two_plans().text("another GPU")));
  CHECK_THROWS_AS(first.products.made_here("something else"), ConfigError);
}
