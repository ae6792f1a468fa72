// SPDX-License-Identifier: Apache-2.0
#include "emprl/cuda/uploads.cuh"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <list>
#include <span>
#include <string>
#include <vector>

#include "emprl/core/rng.hpp"
#include "emprl/cuda/buffer.cuh"
#include "support/catch.hpp"

using emprl::Cuda;
using emprl::index_t;
using emprl::Tensor;
using emprl::TensorView;
using emprl::cuda::Staging;

namespace {

/// A device that does nothing before it is waited for.
class LateDevice {
 public:
  int waited = 0;

  void copy(void* to, std::byte const* from, std::size_t bytes) {
    ordered_.push_back({to, from, bytes});
  }
  void mark(int half) { marked_.at(static_cast<std::size_t>(half)) = ordered_.size() + done_; }
  void wait(int half) {
    ++waited;
    while (done_ < marked_.at(static_cast<std::size_t>(half))) next();
  }
  void finish() {
    while (!ordered_.empty()) next();
  }

 private:
  struct Copy {
    void* to;
    std::byte const* from;
    std::size_t bytes;
  };

  void next() {
    std::memcpy(ordered_.front().to, ordered_.front().from, ordered_.front().bytes);
    ordered_.pop_front();
    ++done_;
  }

  std::list<Copy> ordered_;
  std::size_t done_ = 0;
  std::array<std::size_t, 2> marked_{};
};

static_assert(emprl::cuda::StagingPort<LateDevice>);

constexpr std::size_t half_bytes = 4096;

/// Copies one piece after the other, each from memory that changes behind the copy.
/// @return how often the device was waited for
int copy_pieces(std::vector<std::size_t> const& sizes) {
  std::vector<std::byte> memory(2 * half_bytes);
  Staging staging(memory.data(), half_bytes);
  LateDevice device;
  emprl::RandomSequence random(3, emprl::Stream::permute);
  std::list<std::vector<std::byte>> sent, arrived;
  for (std::size_t const n : sizes) {
    std::vector<std::byte> values(n);
    for (std::byte& x : values) x = static_cast<std::byte>(random.below(256));
    sent.push_back(values);
    arrived.emplace_back(n);
    staging.copy(device, arrived.back().data(), values.data(), n);
    std::ranges::fill(values, std::byte{0xee});
  }
  device.finish();
  bool const as_sent = sent == arrived;
  CHECK(as_sent);
  return device.waited;
}

}  // namespace

TEST_CASE("cuda: what is staged arrives however late the device reads it", "[cuda][buffer]") {
  emprl::RandomSequence random(5, emprl::Stream::permute);
  std::vector<std::size_t> many;
  for (int i = 0; i < 300; ++i) {
    // Mostly small ones, some larger than both halves together.
    index_t const most = i % 20 == 0 ? index_t{5 * half_bytes} : index_t{200};
    many.push_back(static_cast<std::size_t>(random.below(most)));
  }
  CHECK(copy_pieces(many) > 0);
  CHECK(copy_pieces({7 * half_bytes + 13}) == 6);
}

TEST_CASE("cuda: the host waits for a device only where both halves are full", "[cuda][buffer]") {
  CHECK(copy_pieces({0, 1, 63, 64, 65, half_bytes - 320}) == 0);
  CHECK(copy_pieces({half_bytes, half_bytes}) == 0);
  CHECK(copy_pieces({2 * half_bytes}) == 0);
  CHECK(copy_pieces({2 * half_bytes, 1}) == 1);
}

TEST_CASE("cuda: values may change as soon as they have been copied, many or few",
          "[cuda][buffer]") {
  Cuda dev;
  // More than the staging memory holds.
  for (index_t const n : {1, 1000, 1 << 20}) {
    Tensor<std::int32_t, 1, Cuda> const there({n});
    std::vector<std::int32_t> values(static_cast<std::size_t>(n)), back(values.size());
    for (int round = 0; round < 3; ++round) {
      for (std::size_t i = 0; i < values.size(); ++i) {
        values[i] = static_cast<std::int32_t>(i) + round;
      }
      std::vector<std::int32_t> const expected = values;
      copy(dev, there.view(), values);
      std::ranges::fill(values, -1);
      copy(dev, std::span<std::int32_t>(back), there.view());
      CHECK(back == expected);
    }
  }
}

TEST_CASE("cuda: where memory is short the sentence says how much there is", "[cuda][buffer]") {
  CHECK(emprl::cuda::out_of_memory(892000000, 300400000, 25390000000) ==
        "the GPU has not enough memory: 892 MB more are needed, and 300 of its 25390 MB are free; "
        "fewer rows at once need less");
}
