// SPDX-License-Identifier: Apache-2.0
#pragma once

// Tensor cores: mma.sync with float accumulators, and ldmatrix, which fills its operands from
// shared memory. One source for sm_80 to sm_90. A warp acts as a whole; its 32 lanes hold the
// matrices in pieces. With  g = lane / 4  and  t = lane % 4  (PTX ISA, "Matrix Fragments for mma"):
//
// m16n8k16, Bf16 and Fp16. A register holds two elements, the one with the smaller index in its low
// half.
//   A (16 x 16)   a[0]: A[g][2t, 2t+1]        a[1]: A[g+8][2t, 2t+1]
//                 a[2]: A[g][2t+8, 2t+9]      a[3]: A[g+8][2t+8, 2t+9]
//   B (16 x 8)    b0:   B[2t, 2t+1][g]        b1:   B[2t+8, 2t+9][g]
//   C (16 x 8)    c[0]: C[g][2t]  c[1]: C[g][2t+1]  c[2]: C[g+8][2t]  c[3]: C[g+8][2t+1]
//
// m16n8k8, TF32. A register holds one element as the bits of a float.
//   A (16 x 8)    a[0]: A[g][t]   a[1]: A[g+8][t]   a[2]: A[g][t+4]   a[3]: A[g+8][t+4]
//   B (8 x 8)     b0:   B[t][g]   b1:   B[t+4][g]          C as above
//
// C of one product has the layout of A of the next: pack(c[0], c[1]) of columns 0..7 is a[0],
// pack(c[2], c[3]) is a[1], and columns 8..15 give a[2] and a[3].
//
// ldmatrix reads 1, 2 or 4 matrices of 8 x 8 16-bit elements. Lane 8m + i brings the address of row
// i of matrix m, 16 bytes at a multiple of 16. Register m of a lane then holds
//   straight     M[g][2t, 2t+1]
//   transposed   M[2t, 2t+1][g]
// So with A in rows of k, four matrices in the order (rows 0-7, k 0-7), (8-15, 0-7), (0-7, 8-15),
// (8-15, 8-15) are a[0..3]. With B^T in rows of k (n x k, as weights and keys are kept), straight
// gives b0 and b1; with B in rows of n (k x n, as values are kept), transposed does.
//
// The executor adds the products one after the other in float. Tensor cores add groups of products
// with truncation: results agree within the error of a float sum, not in bits.

#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "emprl/core/half.hpp"
#include "emprl/cuda/host.hpp"
#include "emprl/cuda/kernel.hpp"
#include "emprl/cuda/shared.hpp"

namespace emprl::cuda {

/// A 16-bit operand of tensor cores.
template <class T>
concept MmaHalf = std::same_as<T, Bf16> || std::same_as<T, Fp16>;

/// The row and the column of c[i] in the 16 x 8 accumulator.
EMPRL_HD constexpr int accumulator_row(int lane, int i) {
  return lane / 4 + i / 2 * 8;
}
EMPRL_HD constexpr int accumulator_column(int lane, int i) {
  return lane % 4 * 2 + i % 2;
}

/// Two numbers, rounded to T, as one operand register.
template <MmaHalf T>
EMPRL_DEVICE std::uint32_t pack_halves(float low, float high) {
#if defined(__CUDACC__)
  std::uint32_t packed;
  if constexpr (std::is_same_v<T, Bf16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  }
  return packed;
#else
  return std::uint32_t{T(low).bits} | std::uint32_t{T(high).bits} << 16;
#endif
}

/// A number rounded to TF32 (10 fraction bits; to nearest, ties away from zero) as an operand.
EMPRL_DEVICE std::uint32_t tf32_bits(float x) {
#if defined(__CUDACC__)
  std::uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
#else
  std::uint32_t const bits = std::bit_cast<std::uint32_t>(x);
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits;
  return (bits + 0x1000u) & 0xffffe000u;
#endif
}

#if !defined(__CUDACC__)
namespace detail {

struct Mma {
  float* c;
  std::uint32_t const* a;
  std::uint32_t b[2];
};

/// c += a b, from whole matrices put together of the lanes' pieces.
template <int K>
void multiply_tile(void* const* lanes, float const (&a)[16][K], float const (&b)[K][8]) {
  float c[16][8];
  auto const piece = [&](int lane, int i) -> float& {
    return static_cast<Mma*>(lanes[lane])->c[i];
  };
  for (int lane = 0; lane < warp_size; ++lane) {
    for (int i = 0; i < 4; ++i) {
      c[accumulator_row(lane, i)][accumulator_column(lane, i)] = piece(lane, i);
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < K; ++k) {
      for (int column = 0; column < 8; ++column) c[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int lane = 0; lane < warp_size; ++lane) {
    for (int i = 0; i < 4; ++i) {
      piece(lane, i) = c[accumulator_row(lane, i)][accumulator_column(lane, i)];
    }
  }
}

template <MmaHalf T>
float half_of(std::uint32_t packed, int which) {
  return static_cast<float>(T::from_bits(static_cast<std::uint16_t>(packed >> 16 * which)));
}

template <MmaHalf T>
void apply_mma_half(void* const* lanes, LaneMask) {
  float a[16][16];
  float b[16][8];
  for (int lane = 0; lane < warp_size; ++lane) {
    auto const& mine = *static_cast<Mma const*>(lanes[lane]);
    int const g = lane / 4;
    int const t = lane % 4;
    for (int h = 0; h < 2; ++h) {
      for (int i = 0; i < 4; ++i)
        a[g + i % 2 * 8][2 * t + i / 2 * 8 + h] = half_of<T>(mine.a[i], h);
      for (int i = 0; i < 2; ++i) b[2 * t + i * 8 + h][g] = half_of<T>(mine.b[i], h);
    }
  }
  multiply_tile(lanes, a, b);
}

inline void apply_mma_tf32(void* const* lanes, LaneMask) {
  float a[16][8];
  float b[8][8];
  // The device reads the upper 19 bits of an operand and no others.
  auto const number = [](std::uint32_t bits) { return std::bit_cast<float>(bits & 0xffffe000u); };
  for (int lane = 0; lane < warp_size; ++lane) {
    auto const& mine = *static_cast<Mma const*>(lanes[lane]);
    int const g = lane / 4;
    int const t = lane % 4;
    for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][t + i / 2 * 4] = number(mine.a[i]);
    for (int i = 0; i < 2; ++i) b[t + i * 4][g] = number(mine.b[i]);
  }
  multiply_tile(lanes, a, b);
}

/// What a lane brings to ldmatrix: the row it names, and where its pieces go.
struct LoadMatrix {
  std::byte const* row;
  std::uint32_t* to;
};

template <int N, bool Transposed>
void apply_load_matrix(void* const* lanes, LaneMask) {
  for (int m = 0; m < N; ++m) {
    std::uint16_t matrix[8][8];
    for (int i = 0; i < 8; ++i) {
      std::memcpy(matrix[i], static_cast<LoadMatrix const*>(lanes[8 * m + i])->row, 16);
    }
    for (int lane = 0; lane < warp_size; ++lane) {
      int const g = lane / 4;
      int const t = lane % 4 * 2;
      std::uint32_t const low = Transposed ? matrix[t][g] : matrix[g][t];
      std::uint32_t const high = Transposed ? matrix[t + 1][g] : matrix[g][t + 1];
      static_cast<LoadMatrix*>(lanes[lane])->to[m] = low | high << 16;
    }
  }
}

template <bool Transposed, int N, class T>
void load_matrix(std::uint32_t (&to)[N], SharedAddress<T> row, Site where) {
  LoadMatrix mine{nullptr, to};
  if (lane_index() < 8 * N) {
    mine.row = row.pointer(16, 16, where);
    host::access(*row.array, row.offset, 16, host::Access::load, where);
  }
  host::collective({Transposed ? "load_matrix_transposed" : "load_matrix", false,
                    apply_load_matrix<N, Transposed>},
                   full_warp, &mine, where);
}

}  // namespace detail
#endif

/// ldmatrix: N (1, 2 or 4) matrices of 8 x 8 16-bit elements, one register each. All lanes call;
/// the rows that lanes 8N and above name are ignored.
template <int N, class T>
requires(N == 1 || N == 2 || N == 4) EMPRL_DEVICE
    void load_matrix(std::uint32_t (&to)[N], SharedAddress<T> row,
                     [[maybe_unused]] Site where = Site::current()) {
  static_assert(sizeof(T) == 2, "ldmatrix moves 16-bit elements");
#if defined(__CUDACC__)
  if constexpr (N == 1) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(to[0])
                 : "r"(row.window())
                 : "memory");
  } else if constexpr (N == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(row.window())
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row.window())
                 : "memory");
  }
#else
  detail::load_matrix<false>(to, row, where);
#endif
}

/// The same, each matrix transposed.
template <int N, class T>
requires(N == 1 || N == 2 || N == 4) EMPRL_DEVICE
    void load_matrix_transposed(std::uint32_t (&to)[N], SharedAddress<T> row,
                                [[maybe_unused]] Site where = Site::current()) {
  static_assert(sizeof(T) == 2, "ldmatrix moves 16-bit elements");
#if defined(__CUDACC__)
  if constexpr (N == 1) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(to[0])
                 : "r"(row.window())
                 : "memory");
  } else if constexpr (N == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(row.window())
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(row.window())
                 : "memory");
  }
#else
  detail::load_matrix<true>(to, row, where);
#endif
}

/// c (16 x 8) += A (16 x 16) B (16 x 8) in Bf16 or Fp16. All lanes call.
template <MmaHalf T>
EMPRL_DEVICE void mma_m16n8k16(float (&c)[4], std::uint32_t const (&a)[4], std::uint32_t b0,
                               std::uint32_t b1, [[maybe_unused]] Site where = Site::current()) {
#if defined(__CUDACC__)
  if constexpr (std::is_same_v<T, Bf16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
#else
  detail::Mma mine{c, a, {b0, b1}};
  host::collective({"mma_m16n8k16", false, detail::apply_mma_half<T>}, full_warp, &mine, where);
#endif
}

/// c (16 x 8) += A (16 x 8) B (8 x 8) in TF32, operands as tf32_bits gives them. All lanes call.
EMPRL_DEVICE void mma_m16n8k8_tf32(float (&c)[4], std::uint32_t const (&a)[4], std::uint32_t b0,
                                   std::uint32_t b1,
                                   [[maybe_unused]] Site where = Site::current()) {
#if defined(__CUDACC__)
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  detail::Mma mine{c, a, {b0, b1}};
  host::collective({"mma_m16n8k8_tf32", false, detail::apply_mma_tf32}, full_warp, &mine, where);
#endif
}

}  // namespace emprl::cuda
