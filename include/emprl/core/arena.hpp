// SPDX-License-Identifier: Apache-2.0
#pragma once

// A bump allocator for the activations of a pass. Allocation is an addition; release is a rewind to
// a mark. Memory is kept between passes, so that after the first steps of a training run no pass
// allocates.
//
// Passes are of ragged batches, hardly two of one size. Blocks that each had the size of a tensor
// would serve the next larger batch no more, one after the other: a run held ten times what its
// largest pass needs. So a block that is added is a quarter of all that are there, at least. Few
// blocks then hold many tensors each, whatever their sizes, and what is left over at the ends of
// blocks is little.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <exception>
#include <memory>
#include <utility>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/tensor.hpp"

namespace emprl {

/// Where an arena of host memory gets its blocks.
struct HostMemory {
  static void* allocate(std::size_t bytes) {
    return ::operator new (bytes, std::align_val_t{detail::buffer_alignment});
  }
  static void release(void* p) noexcept {
    ::operator delete (p, std::align_val_t{detail::buffer_alignment});
  }
  /// All bits set is a quiet NaN in every IEEE format.
  static void poison(void* p, std::size_t bytes) { std::memset(p, 0xff, bytes); }
  /// Allocations begin at multiples of it.
  static constexpr std::size_t alignment = detail::buffer_alignment;
};

/// Memory of device D in blocks that never move, so that views stay valid while the arena grows.
/// Memory says where the blocks come from.
template <class D, class Memory>
class BasicArena {
 public:
  /// A position to rewind to.
  struct Mark {
    std::size_t block = 0;
    std::size_t used = 0;
  };

  explicit BasicArena(std::size_t block_bytes = std::size_t{1} << 24) : block_bytes_(block_bytes) {}

  /// An uninitialised dense tensor that lives until the arena is rewound past it.
  /// @throws ShapeError if the extents are negative or too large
  template <class T, int Rank>
  TensorView<T, Rank, D> allocate(std::array<index_t, Rank> extents) {
    index_t const n = checked_size(extents, sizeof(T));
    auto* const p = static_cast<T*>(allocate_bytes(static_cast<std::size_t>(n) * sizeof(T)));
    return {p, extents};
  }

  Mark mark() const { return {current_, current_ < blocks_.size() ? blocks_[current_].used : 0}; }

  /// Gives back everything allocated since `mark`.
  void rewind(Mark mark) {
    for (std::size_t i = mark.block + 1; i < blocks_.size(); ++i) blocks_[i].used = 0;
    if (mark.block < blocks_.size()) blocks_[mark.block].used = mark.used;
    current_ = mark.block;
  }

  /// Fill every new allocation with NaN bytes. Tests set it to prove that nothing is read before it
  /// is written.
  void poison(bool on) { poison_ = on; }
  bool poisons() const { return poison_; }

  /// Bytes held, used or not.
  std::size_t capacity() const {
    std::size_t total = 0;
    for (Block const& block : blocks_) total += block.size;
    return total;
  }

 private:
  struct Release {
    void operator()(std::byte* p) const noexcept { Memory::release(p); }
  };
  struct Block {
    std::unique_ptr<std::byte, Release> memory;
    std::size_t size = 0;
    std::size_t used = 0;
  };

  void* allocate_bytes(std::size_t bytes) {
    constexpr std::size_t a = Memory::alignment;
    bytes = (std::max<std::size_t>(bytes, 1) + a - 1) / a * a;
    while (current_ < blocks_.size() && blocks_[current_].size - blocks_[current_].used < bytes) {
      ++current_;
      if (current_ < blocks_.size()) blocks_[current_].used = 0;
    }
    if (current_ == blocks_.size()) blocks_.push_back(new_block(bytes));
    Block& block = blocks_[current_];
    std::byte* const p = block.memory.get() + block.used;
    block.used += bytes;
    if (poison_) Memory::poison(p, bytes);
    return p;
  }

  /// A block that `bytes` fit into. Where there is no memory for a large one, a small one.
  Block new_block(std::size_t bytes) const {
    auto const of_size = [](std::size_t size) {
      return Block{
          std::unique_ptr<std::byte, Release>(static_cast<std::byte*>(Memory::allocate(size))),
          size, 0};
    };
    std::size_t const least = std::max(bytes, block_bytes_);
    std::size_t const share = capacity() / 4 / Memory::alignment * Memory::alignment;
    if (share > least) {
      try {
        return of_size(share);
      } catch (std::exception const&) {
        // Not so much is left. What the caller is told, if that is the end, is what it asked for.
      }
    }
    return of_size(least);
  }

  std::vector<Block> blocks_;
  std::size_t current_ = 0;
  std::size_t block_bytes_;
  bool poison_ = false;
};

/// Host memory for the activations of a pass.
using Arena = BasicArena<Cpu, HostMemory>;

/// Rewinds an arena at the end of a scope.
template <class A = Arena>
class ArenaScope {
 public:
  explicit ArenaScope(A& arena) : arena_(arena), mark_(arena.mark()) {}
  ~ArenaScope() { arena_.rewind(mark_); }
  ArenaScope(ArenaScope const&) = delete;
  ArenaScope& operator=(ArenaScope const&) = delete;

 private:
  A& arena_;
  typename A::Mark mark_;
};

}  // namespace emprl
