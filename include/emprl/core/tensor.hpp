// SPDX-License-Identifier: Apache-2.0
#pragma once

// Views of tensors, and the memory behind them. The device is part of the type: a view of host
// memory does not convert to a view of device memory, and overloads are chosen by it.

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <new>
#include <span>
#include <string>
#include <type_traits>
#include <utility>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"

namespace emprl {

struct Cpu;
struct Cuda;

/// A row-major view of `Rank` dimensions. The last dimension is dense; the others have strides, so
/// that a slice of columns (the query part of a fused query-key-value projection, say) is a view
/// too. Copying copies the view, never the elements.
template <class T, int Rank, class D>
class TensorView {
  static_assert(Rank >= 1);

 public:
  using value_type = std::remove_cv_t<T>;

  constexpr TensorView() = default;

  /// A dense view of `extents` at `data`.
  EMPRL_HD constexpr TensorView(T* data, std::array<index_t, Rank> extents)
      : data_(data), extents_(extents) {
    index_t stride = 1;
    for (int i = Rank - 1; i >= 0; --i) {
      strides_[static_cast<std::size_t>(i)] = stride;
      stride *= extents[static_cast<std::size_t>(i)];
    }
  }

  EMPRL_HD constexpr TensorView(T* data, std::array<index_t, Rank> extents,
                                std::array<index_t, Rank> strides)
      : data_(data), extents_(extents), strides_(strides) {}

  /// A view of mutable elements reads as a view of const ones.
  template <class U>
  requires(std::is_same_v<U const, T> && !std::is_const_v<U>) EMPRL_HD
      constexpr TensorView(TensorView<U, Rank, D> const& other)
      : data_(other.data()), extents_(other.extents()), strides_(other.strides()) {}

  EMPRL_HD constexpr T* data() const { return data_; }
  EMPRL_HD constexpr index_t extent(int i) const { return extents_[static_cast<std::size_t>(i)]; }
  EMPRL_HD constexpr index_t stride(int i) const { return strides_[static_cast<std::size_t>(i)]; }
  EMPRL_HD constexpr std::array<index_t, Rank> const& extents() const { return extents_; }
  EMPRL_HD constexpr std::array<index_t, Rank> const& strides() const { return strides_; }

  /// The number of elements.
  EMPRL_HD constexpr index_t size() const {
    index_t n = 1;
    for (index_t const e : extents_) n *= e;
    return n;
  }

  EMPRL_HD constexpr bool empty() const { return size() == 0; }

  /// True if the elements lie one after the other without gaps.
  EMPRL_HD constexpr bool is_contiguous() const {
    index_t stride = 1;
    for (int i = Rank - 1; i >= 0; --i) {
      auto const u = static_cast<std::size_t>(i);
      if (extents_[u] != 1 && strides_[u] != stride) return false;
      stride *= extents_[u];
    }
    return true;
  }

  template <class... I>
  requires(sizeof...(I) == Rank) EMPRL_HD constexpr T& operator()(I... i) const {
    index_t offset = 0;
    std::size_t axis = 0;
    ((offset += static_cast<index_t>(i) * strides_[axis++]), ...);
    return data_[offset];
  }

  /// Row i of a matrix, as a pointer to its first element.
  EMPRL_HD constexpr T* row(index_t i) const requires(Rank == 2) { return data_ + i * strides_[0]; }

  /// Rows [begin, end) along the first dimension.
  EMPRL_HD constexpr TensorView rows(index_t begin, index_t end) const {
    TensorView part = *this;
    part.data_ += begin * strides_[0];
    part.extents_[0] = end - begin;
    return part;
  }

  /// Columns [begin, end) of a matrix; the row stride stays.
  EMPRL_HD constexpr TensorView columns(index_t begin, index_t end) const requires(Rank == 2) {
    TensorView part = *this;
    part.data_ += begin;
    part.extents_[1] = end - begin;
    return part;
  }

  /// The elements as a span. @throws ShapeError if the view has gaps
  constexpr std::span<T> span() const {
    expects(is_contiguous(), "a tensor view with gaps was asked for a span");
    return {data_, static_cast<std::size_t>(size())};
  }

  /// Whether both view the same place in the same shape. The elements are not looked at.
  friend constexpr bool operator==(TensorView const&, TensorView const&) = default;

 private:
  T* data_ = nullptr;
  std::array<index_t, Rank> extents_{};
  std::array<index_t, Rank> strides_{};
};

/// The elements of a view that may be left out, for a kernel: null if it is empty, for an empty
/// view may point anywhere (an arena's does point into its memory).
template <class T, int Rank, class D>
T* data_or_null(TensorView<T, Rank, D> const& x) {
  return x.empty() ? nullptr : x.data();
}

/// "(3, 128)": the extents of a view, for messages.
template <class T, int Rank, class D>
std::string shape_string(TensorView<T, Rank, D> const& x) {
  std::string text = "(";
  for (int i = 0; i < Rank; ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(x.extent(i));
  }
  return text + ")";
}

/// The product of extents. @throws ShapeError if one is negative or the product of bytes would not
/// fit in 63 bits
template <std::size_t Rank>
index_t checked_size(std::array<index_t, Rank> const& extents, std::size_t bytes_per_element) {
  index_t n = 1;
  for (index_t const e : extents) {
    expects(e >= 0, "a tensor extent is negative");
    expects(e == 0 || n <= std::numeric_limits<index_t>::max() / e, "a tensor is too large");
    n *= e;
  }
  expects(n <= std::numeric_limits<index_t>::max() / static_cast<index_t>(bytes_per_element),
          "a tensor is too large");
  return n;
}

namespace detail {

/// Cache-line alignment: SIMD loads never straddle, and two buffers never share a line between
/// threads.
inline constexpr std::size_t buffer_alignment = 64;

struct AlignedDelete {
  void operator()(std::byte* p) const noexcept {
    ::operator delete (p, std::align_val_t{buffer_alignment});
  }
};

}  // namespace detail

/// Owned elements in the memory of device D. Elements are not initialised: who reads before writing
/// finds what was there.
template <class T, class D>
class Buffer;

template <class T>
class Buffer<T, Cpu> {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Buffer() = default;
  explicit Buffer(index_t size) : size_(checked_size<1>({size}, sizeof(T))) {
    if (size_ > 0) {
      data_ = static_cast<T*>(::operator new (static_cast<std::size_t>(size_) * sizeof(T),
                                              std::align_val_t{detail::buffer_alignment}));
    }
  }
  Buffer(index_t size, T value) : Buffer(size) { fill(value); }
  Buffer(Buffer const&) = delete;
  Buffer& operator=(Buffer const&) = delete;
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Buffer() {
    if (data_ != nullptr) ::operator delete (data_, std::align_val_t{detail::buffer_alignment});
  }

  T* data() const { return data_; }
  index_t size() const { return size_; }
  std::span<T> span() const { return {data_, static_cast<std::size_t>(size_)}; }
  void fill(T value) {
    for (T& x : span()) x = value;
  }

 private:
  T* data_ = nullptr;
  index_t size_ = 0;
};

/// An owned dense tensor.
template <class T, int Rank, class D>
class Tensor {
 public:
  Tensor() = default;
  explicit Tensor(std::array<index_t, Rank> extents)
      : buffer_(checked_size(extents, sizeof(T))), view_(buffer_.data(), extents) {}
  Tensor(std::array<index_t, Rank> extents, T value) : Tensor(extents) { buffer_.fill(value); }

  TensorView<T, Rank, D> view() const { return view_; }
  operator TensorView<T, Rank, D>() const { return view_; }
  operator TensorView<T const, Rank, D>() const { return view_; }
  T* data() const { return buffer_.data(); }
  index_t extent(int i) const { return view_.extent(i); }
  index_t size() const { return buffer_.size(); }
  std::span<T> span() const { return buffer_.span(); }
  template <class... I>
  T& operator()(I... i) const requires(std::is_same_v<D, Cpu>) {
    return view_(i...);
  }

 private:
  Buffer<T, D> buffer_;
  TensorView<T, Rank, D> view_;
};

}  // namespace emprl
