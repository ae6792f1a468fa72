// SPDX-License-Identifier: Apache-2.0
#pragma once

// Several neighbouring elements as one load or store. A thread that moves 16 bytes at a time needs
// a quarter of the instructions of one that moves floats, and keeps more bytes in flight.

#include <cstdint>
#include <cstring>

#include "emprl/cuda/host.hpp"
#include "emprl/cuda/language.hpp"

namespace emprl::cuda {

/// N neighbouring elements, aligned as a whole.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  static_assert(N > 0 && (sizeof(T) * N == 2 || sizeof(T) * N == 4 || sizeof(T) * N == 8 ||
                          sizeof(T) * N == 16),
                "a pack is one load of 2, 4, 8 or 16 bytes");
  T x[N];
};

/// Elements of a load of 16 bytes, the widest there is.
template <class T>
inline constexpr int pack_elements = 16 / static_cast<int>(sizeof(T));

#if !defined(__CUDACC__)
namespace detail {
inline void check_aligned(void const* p, std::size_t bytes, char const* what, Site where) {
  if (reinterpret_cast<std::uintptr_t>(p) % bytes != 0) {
    host::fault(host::Fault::alignment,
                std::string(what) + " of " + std::to_string(bytes) +
                    " bytes at an address that is no multiple of them",
                where);
  }
}
}  // namespace detail
#endif

/// The N elements from `p` on, which is aligned to them as a whole. Global memory.
template <int N, class T>
EMPRL_DEVICE Pack<T, N> load_pack(T const* p, [[maybe_unused]] Site where = Site::current()) {
#if defined(__CUDACC__)
  return *reinterpret_cast<Pack<T, N> const*>(p);
#else
  detail::check_aligned(p, sizeof(Pack<T, N>), "a load", where);
  Pack<T, N> pack;
  std::memcpy(&pack, p, sizeof pack);
  return pack;
#endif
}

/// Writes the N elements from `p` on, which is aligned to them as a whole. Global memory.
template <class T, int N>
EMPRL_DEVICE void store_pack(T* p, Pack<T, N> const& pack,
                             [[maybe_unused]] Site where = Site::current()) {
#if defined(__CUDACC__)
  *reinterpret_cast<Pack<T, N>*>(p) = pack;
#else
  detail::check_aligned(p, sizeof pack, "a store", where);
  std::memcpy(p, &pack, sizeof pack);
#endif
}

}  // namespace emprl::cuda
