// SPDX-License-Identifier: Apache-2.0
#pragma once

// Shared memory. Kernels see it through Shared<T>: on the device a pointer and nothing else, in the
// host executor a view that reports every access, so that races, reads of what was never written
// and indices out of bounds are found.
//
//   EMPRL_SHARED(float, partial, 32);            // static: Shared<float> of 32 elements
//   DynamicShared memory;                        // what the launch gave, from its beginning
//   auto const q = memory.take<Bf16>(64 * 72);   // Shared<Bf16>; 16-byte aligned
//   auto const k = memory.take<Bf16>(2 * 64 * 72);
//   auto const k1 = k.part(64 * 72, 64 * 72);    // a piece with bounds of its own
//   q[i] = x;  float const y = partial[lane];    // elements
//   q.as<Pack<Bf16, 8>>()[i / 8] = eight;        // 16 bytes at once
//
// An element read from shared memory is given a type: `float const y = partial[i]`. With `auto` the
// executor's build does not compile, because it would be read where y is used.

#include <cstddef>
#include <cstring>
#include <type_traits>

#include "emprl/cuda/host.hpp"
#include "emprl/cuda/kernel.hpp"
#include "emprl/cuda/language.hpp"

namespace emprl::cuda {

/// Bytes that DynamicShared::take<T>(count) uses, for the sum that the launch asks for.
template <class T>
constexpr std::size_t shared_bytes(int count) {
  return (static_cast<std::size_t>(count) * sizeof(T) + 15) / 16 * 16;
}

/// Shared memory that a block may have on every GPU that kernels are compiled for: that of sm_80;
/// sm_90 has 227 KB, sm_86 and sm_89 have 99.
inline constexpr std::size_t most_shared_bytes = 163 * 1024;

#if defined(__CUDACC__)

/// The address of an element, for the instructions that take one.
template <class T>
struct SharedAddress {
  T* pointer;
  /// In the window of shared memory, as PTX wants it.
  __device__ unsigned window() const {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
  }
};

/// A piece of shared memory that holds elements of type T.
template <class T>
class Shared {
 public:
  __device__ explicit Shared(T* data) : data_(data) {}
  __device__ T& operator[](int i) const { return data_[i]; }
  /// The address of element i.
  __device__ SharedAddress<T> at(int i) const { return {data_ + i}; }
  /// Elements [begin, begin + count).
  __device__ Shared part(int begin, [[maybe_unused]] int count) const {
    return Shared(data_ + begin);
  }
  /// The same bytes as elements of type U: T's, packed, or a larger number type.
  template <class U>
  __device__ Shared<U> as() const {
    return Shared<U>(reinterpret_cast<U*>(data_));
  }

 private:
  T* data_;
};

#define EMPRL_SHARED(T, name, count)             \
  __shared__ alignas(16) T name##_memory[count]; \
  ::emprl::cuda::Shared<T> const name(name##_memory)

/// Hands out the block's dynamic shared memory, piece after piece.
class DynamicShared {
 public:
  template <class T>
  __device__ Shared<T> take(int count) {
    extern __shared__ __align__(16) unsigned char emprl_dynamic_shared[];
    T* const data = reinterpret_cast<T*>(emprl_dynamic_shared + used_);
    used_ += static_cast<int>(shared_bytes<T>(count));
    return Shared<T>(data);
  }

 private:
  int used_ = 0;
};

/// *to += value as one step. @return the value before
template <AtomicNumber T>
EMPRL_DEVICE T atomic_add(SharedAddress<T> to, std::type_identity_t<T> value,
                          Site = Site::current()) {
  return atomicAdd(to.pointer, value);
}

#else

/// The address of an element: the array, and the bytes of it that may be touched from there on.
template <class T>
struct SharedAddress {
  host::SharedArray* array;
  int offset;
  int end;

  /// The next `bytes` bytes, which must lie inside and start at a multiple of `alignment`.
  std::byte* pointer(int bytes, int alignment, Site where) const {
    if (offset + bytes > end) {
      host::fault(host::Fault::bounds,
                  std::to_string(bytes) + " bytes from element " +
                      std::to_string(offset / array->element_bytes) + " of " + array->name +
                      " reach past its end",
                  where);
    }
    if (offset % alignment != 0) {
      host::fault(host::Fault::alignment,
                  "element " + std::to_string(offset / array->element_bytes) + " of " +
                      array->name + " does not lie at a multiple of " + std::to_string(alignment) +
                      " bytes",
                  where);
    }
    return array->data + offset;
  }
};

/// An index that knows in which line it was written.
struct SharedIndex {
  int value;
  Site where;
  SharedIndex(int i, Site at = Site::current()) : value(i), where(at) {}
};

/// An element, between its being named and its being read or written.
template <class T>
class SharedElement {
 public:
  SharedElement(SharedAddress<T> at, Site where) : at_(at), where_(where) {}
  SharedElement(SharedElement const&) = delete;

  operator T() const&& { return load(); }
  /// A 16-bit number as a float.
  template <class U>
  requires(std::is_class_v<T>&& std::is_arithmetic_v<U>) explicit operator U() const&& {
    return static_cast<U>(load());
  }
  void operator=(SharedElement&& other) && { store(other.load()); }
  void operator=(T const& value) && { store(value); }
  void operator+=(T const& value) && requires std::is_arithmetic_v<T> {
    store(static_cast<T>(load() + value));
  }
  void operator-=(T const& value) && requires std::is_arithmetic_v<T> {
    store(static_cast<T>(load() - value));
  }
  void operator*=(T const& value) && requires std::is_arithmetic_v<T> {
    store(static_cast<T>(load() * value));
  }

 private:
  T load() const {
    host::access(*at_.array, at_.offset, sizeof(T), host::Access::load, where_);
    T value;
    std::memcpy(&value, at_.array->data + at_.offset, sizeof(T));
    return value;
  }
  void store(T const& value) const {
    host::access(*at_.array, at_.offset, sizeof(T), host::Access::store, where_);
    std::memcpy(at_.array->data + at_.offset, &value, sizeof(T));
  }

  SharedAddress<T> at_;
  Site where_;
};

template <class T>
class Shared {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Shared(host::SharedArray& array, int begin, int size)
      : array_(&array), begin_(begin), size_(size) {}

  SharedElement<T> operator[](SharedIndex i) const {
    if (i.value < 0 || i.value >= size_) out_of_bounds(i.value, i.where);
    return {address(i.value), i.where};
  }
  SharedAddress<T> at(SharedIndex i) const {
    if (i.value < 0 || i.value >= size_) out_of_bounds(i.value, i.where);
    return address(i.value);
  }
  Shared part(int begin, int count, Site where = Site::current()) const {
    if (begin < 0 || count < 0 || begin + count > size_) out_of_bounds(begin + count, where);
    return {*array_, begin_ + begin * bytes, count};
  }
  template <class U>
  Shared<U> as(Site where = Site::current()) const {
    if (static_cast<int>(sizeof(U)) < array_->element_bytes || begin_ % int{alignof(U)} != 0 ||
        size_ * bytes % int{sizeof(U)} != 0) {
      host::fault(host::Fault::alignment,
                  std::string(array_->name) + " cannot be seen as elements of " +
                      std::to_string(sizeof(U)) +
                      " bytes: they must be no smaller than its own, start at a multiple of their "
                      "alignment and fill it",
                  where);
    }
    return {*array_, begin_, size_ * bytes / int{sizeof(U)}};
  }

 private:
  static constexpr int bytes = int{sizeof(T)};

  SharedAddress<T> address(int i) const {
    return {array_, begin_ + i * bytes, begin_ + size_ * bytes};
  }
  [[noreturn]] void out_of_bounds(int i, Site where) const {
    host::fault(host::Fault::bounds,
                "index " + std::to_string(i) + " of " + array_->name + ", which has " +
                    std::to_string(size_) + " elements from byte " + std::to_string(begin_) + " on",
                where);
  }

  host::SharedArray* array_;
  int begin_;
  int size_;
};

#define EMPRL_SHARED(T, name, count)                                                            \
  static char const name##_key = 0;                                                             \
  ::emprl::cuda::Shared<T> const name(                                                          \
      ::emprl::cuda::host::static_array(&name##_key, #name, static_cast<int>(sizeof(T)), count, \
                                        ::emprl::cuda::Site::current()),                        \
      0, count)

class DynamicShared {
 public:
  template <class T>
  Shared<T> take(int count, Site where = Site::current()) {
    host::SharedArray& array =
        host::dynamic_array(used_, static_cast<int>(sizeof(T)), count, where);
    used_ += static_cast<int>(shared_bytes<T>(count));
    return {array, 0, count};
  }

 private:
  int used_ = 0;
};

template <AtomicNumber T>
T atomic_add(SharedAddress<T> to, std::type_identity_t<T> value, Site where = Site::current()) {
  std::byte* const p = to.pointer(sizeof(T), sizeof(T), where);
  host::access(*to.array, to.offset, sizeof(T), host::Access::atomic, where);
  T before;
  std::memcpy(&before, p, sizeof(T));
  T const after = before + value;
  std::memcpy(p, &after, sizeof(T));
  return before;
}

#endif

}  // namespace emprl::cuda
