// SPDX-License-Identifier: Apache-2.0

// Numbers in 16 bits, as files hold them, read into wider ones.

#include <bit>
#include <cmath>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "emprl/io/safetensors.hpp"
#include "io/temporary_folder.hpp"
#include "support/catch.hpp"

namespace float_formats_test {

using emprl::Bf16;
using emprl::Fp16;
using emprl::index_t;
using emprl::io::SafeTensorsFile;
using emprl::io::TensorToWrite;
using emprl::test::TemporaryFolder;

/// What 16 bits mean, from the definition of a format with `fraction` fraction bits.
double meaning(std::uint32_t bits, int fraction) {
  int const exponent_bits = 15 - fraction;
  int const bias = (1 << (exponent_bits - 1)) - 1;
  double const sign = (bits >> 15) != 0 ? -1.0 : 1.0;
  int const exponent = static_cast<int>(bits >> fraction) & ((1 << exponent_bits) - 1);
  double const f = std::ldexp(static_cast<double>(bits & ((1U << fraction) - 1)), -fraction);
  if (exponent == (1 << exponent_bits) - 1) {
    return f == 0 ? sign * HUGE_VAL : std::nan("");
  }
  return sign * (exponent == 0 ? std::ldexp(f, 1 - bias) : std::ldexp(1 + f, exponent - bias));
}

/// All 65536 patterns, enough for several of the reader's blocks and a broken one.
std::vector<std::uint16_t> all_patterns() {
  std::vector<std::uint16_t> bits;
  for (std::uint32_t i = 0; i <= 0xFFFF; ++i) bits.push_back(static_cast<std::uint16_t>(i));
  bits.push_back(0x1234);
  return bits;
}

template <class T>
int wrong_numbers(SafeTensorsFile const& file, std::vector<std::uint16_t> const& bits,
                  int fraction) {
  std::vector<T> values(bits.size());
  file.copy_to("x", std::span(values), {static_cast<index_t>(bits.size())});
  int wrong = 0;
  for (std::size_t i = 0; i < bits.size(); ++i) {
    double const is = static_cast<double>(values[i]);
    double const should = meaning(bits[i], fraction);
    bool const same = std::isnan(should) ? std::isnan(is)
                                         : is == should && std::signbit(is) == std::signbit(should);
    if (!same) ++wrong;
  }
  return wrong;
}

TEMPLATE_TEST_CASE("float formats: every 16-bit pattern is read as the number that it stands for",
                   "[io][safetensors][unit]", Bf16, Fp16) {
  constexpr int fraction = std::is_same_v<TestType, Bf16> ? 7 : 10;
  TemporaryFolder const folder;
  std::vector<std::uint16_t> const bits = all_patterns();
  std::vector<TensorToWrite> const tensors{{"x",
                                            emprl::io::dtype_of<TestType>(),
                                            {static_cast<index_t>(bits.size())},
                                            std::as_bytes(std::span(bits))}};
  emprl::io::write_safetensors(folder / "t", tensors);
  SafeTensorsFile const file(folder / "t");
  CHECK(emprl::io::dtype_name(file.info("x").dtype) == (fraction == 7 ? "BF16" : "F16"));
  CHECK(wrong_numbers<float>(file, bits, fraction) == 0);
  CHECK(wrong_numbers<double>(file, bits, fraction) == 0);

  // In their own format they come as they are, payloads of NaN included.
  std::vector<TestType> same(bits.size());
  file.copy_to("x", std::span(same), {static_cast<index_t>(bits.size())});
  int wrong = 0;
  for (std::size_t i = 0; i < bits.size(); ++i) wrong += same[i].bits != bits[i];
  CHECK(wrong == 0);
}

TEST_CASE("float formats: a wide number is not read into a narrow one",
          "[io][safetensors][bad_input]") {
  TemporaryFolder const folder;
  std::vector<float> const values{1.0F, 2.0F};
  std::vector<TensorToWrite> const tensors{emprl::io::tensor_to_write("x", {2}, std::span(values))};
  emprl::io::write_safetensors(folder / "t", tensors);
  SafeTensorsFile const file(folder / "t");
  std::vector<Bf16> narrow(2);
  CHECK_THROWS_AS(file.copy_to("x", std::span(narrow), {2}), emprl::IoError);
}

TEST_CASE("float formats: a part of a tensor is its bytes, and must lie in it",
          "[io][safetensors][unit]") {
  TemporaryFolder const folder;
  std::vector<std::uint8_t> const values{1, 2, 3, 4, 5};
  std::vector<std::uint8_t> const more{6, 7};
  std::vector<TensorToWrite> const tensors{emprl::io::tensor_to_write("x", {5}, std::span(values)),
                                           emprl::io::tensor_to_write("y", {2}, std::span(more))};
  emprl::io::write_safetensors(folder / "t", tensors);
  SafeTensorsFile const file(folder / "t");
  std::vector<std::uint8_t> out(3);
  file.read_part(file.info("x"), 2, std::as_writable_bytes(std::span(out)));
  CHECK(out == std::vector<std::uint8_t>{3, 4, 5});
  CHECK_THROWS_AS(file.read_part(file.info("x"), 3, std::as_writable_bytes(std::span(out))),
                  emprl::ShapeError);
  CHECK_THROWS_AS(
      file.read_part(file.info("x"), ~std::uint64_t{0}, std::as_writable_bytes(std::span(out))),
      emprl::ShapeError);
}

}  // namespace float_formats_test
