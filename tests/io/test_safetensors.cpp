// SPDX-License-Identifier: Apache-2.0
#include "emprl/io/safetensors.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "io/temporary_folder.hpp"
#include "support/catch.hpp"

using Catch::Matchers::ContainsSubstring;
using emprl::index_t;
using emprl::IoError;
using emprl::io::SafeTensorsFile;
using emprl::io::tensor_to_write;
using emprl::io::TensorToWrite;
using emprl::test::message_of;
using emprl::test::TemporaryFolder;

namespace {

std::string file_of(std::string const& header, std::string const& data = "") {
  std::uint64_t const n = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &n, 8);
  return bytes + header + data;
}

std::string entry(std::string const& name, std::string const& dtype, std::string const& shape,
                  std::string const& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
         ",\"data_offsets\":" + offsets + "}";
}

std::string refusal(TemporaryFolder const& folder, std::string const& bytes) {
  auto const path = folder.put("bad.safetensors", bytes);
  std::string const message = message_of<IoError>([&] { SafeTensorsFile const file(path); });
  CHECK_THAT(message, ContainsSubstring(path.string()));
  return message;
}

/// The same for a header and the data behind it.
std::string refused(TemporaryFolder const& folder, std::string const& header,
                    std::string const& data) {
  return refusal(folder, file_of(header, data));
}

SafeTensorsFile taken(TemporaryFolder const& folder, std::string const& header,
                      std::string const& data) {
  return SafeTensorsFile(folder.put("good.safetensors", file_of(header, data)));
}

}  // namespace

TEST_CASE("safetensors: tensors of every type come back as they were", "[io][safetensors][unit]") {
  TemporaryFolder const folder;
  std::vector<float> const weight{1.0F, -2.5F, 3.25F, 0.0F, 1e-30F, -0.0F};
  std::vector<double> const exact{0.1, -1e300};
  std::vector<std::int64_t> const ids{-1, std::numeric_limits<std::int64_t>::max()};
  std::vector<std::uint8_t> const flags{0, 255, 7};
  std::vector<float> const scalar{42.0F};
  std::vector<float> const none;
  std::vector<TensorToWrite> const tensors{tensor_to_write("weight", {2, 3}, std::span(weight)),
                                           tensor_to_write("flags", {3}, std::span(flags)),
                                           tensor_to_write("exact", {2}, std::span(exact)),
                                           tensor_to_write("ids", {1, 2}, std::span(ids)),
                                           tensor_to_write("scalar", {}, std::span(scalar)),
                                           tensor_to_write("none", {0, 5}, std::span(none))};
  auto const path = folder / "t.safetensors";
  emprl::io::write_safetensors(path, tensors, {{"format", "pt"}, {"step", "7 \"quoted\""}});

  SafeTensorsFile const file(path);
  CHECK(file.names().size() == 6);
  CHECK(file.contains("weight"));
  CHECK_FALSE(file.contains("bias"));
  CHECK(file.metadata().at("step") == "7 \"quoted\"");
  CHECK(file.info("weight").shape == std::vector<index_t>{2, 3});
  CHECK(file.info("none").size() == 0);
  CHECK(file.info("exact").begin % 8 == 0);

  std::vector<float> weight_back(6);
  file.copy_to("weight", std::span(weight_back), {2, 3});
  CHECK(weight_back == weight);
  std::vector<double> widened(6);
  file.copy_to("weight", std::span(widened), {2, 3});
  CHECK(widened[2] == 3.25);
  std::vector<double> exact_back(2);
  file.copy_to("exact", std::span(exact_back), {2});
  CHECK(exact_back == exact);
  std::vector<std::int64_t> ids_back(2);
  file.copy_to("ids", std::span(ids_back), {1, 2});
  CHECK(ids_back == ids);
  std::vector<std::uint8_t> flags_back(3);
  file.copy_to("flags", std::span(flags_back), {3});
  CHECK(flags_back == flags);
  float scalar_back = 0;
  file.copy_to("scalar", std::span(&scalar_back, 1), {});
  CHECK(scalar_back == 42.0F);
  file.copy_to("none", std::span<float>(), {0, 5});
}

TEST_CASE("safetensors: half and bfloat16 widen exactly", "[io][safetensors][unit]") {
  TemporaryFolder const folder;
  std::vector<std::pair<std::uint16_t, float>> const halves{
      {0x3C00, 1.0F},     {0xC000, -2.0F},           {0x7BFF, 65504.0F},
      {0x0001, 0x1p-24F}, {0x03FF, 1023 * 0x1p-24F}, {0x0400, 0x1p-14F},
      {0x8000, -0.0F},    {0x3555, 0.333251953125F}};
  std::vector<std::uint16_t> bits;
  for (auto const& pair : halves) bits.push_back(pair.first);
  bits.push_back(0x7C00);
  bits.push_back(0x7E01);
  std::vector<std::uint16_t> const brain{0x3F80, 0xC049, 0x7F80};
  std::vector<TensorToWrite> const tensors{
      {"half", emprl::io::DType::f16, {10}, std::as_bytes(std::span(bits))},
      {"brain", emprl::io::DType::bf16, {3}, std::as_bytes(std::span(brain))}};
  emprl::io::write_safetensors(folder / "t", tensors);
  SafeTensorsFile const file(folder / "t");
  std::vector<float> out(10);
  file.copy_to("half", std::span(out), {10});
  for (std::size_t i = 0; i < halves.size(); ++i) {
    CHECK(out[i] == halves[i].second);
    CHECK(std::signbit(out[i]) == std::signbit(halves[i].second));
  }
  CHECK(std::isinf(out[8]));
  CHECK(std::isnan(out[9]));
  std::vector<double> wide(3);
  file.copy_to("brain", std::span(wide), {3});
  CHECK(wide[0] == 1.0);
  CHECK(wide[1] == -3.140625);
  CHECK(std::isinf(wide[2]));
}

TEST_CASE("safetensors: the bytes do not depend on the order in which tensors are given",
          "[io][safetensors][unit]") {
  TemporaryFolder const folder;
  std::vector<float> const a(3, 1.0F);
  std::vector<std::uint8_t> const b(5, 2);
  std::vector<TensorToWrite> tensors{tensor_to_write("b", {5}, std::span(b)),
                                     tensor_to_write("a", {3}, std::span(a))};
  emprl::io::write_safetensors(folder / "one", tensors);
  std::swap(tensors[0], tensors[1]);
  emprl::io::write_safetensors(folder / "two", tensors);
  CHECK(emprl::test::slurp(folder / "one") == emprl::test::slurp(folder / "two"));
  CHECK(emprl::test::slurp(folder / "one").substr(8) ==
        R"({"__metadata__":{"format":"pt"},)"
        R"("a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},)"
        R"("b":{"dtype":"U8","shape":[5],"data_offsets":[12,17]}})"
        "    " +
            std::string(reinterpret_cast<char const*>(a.data()), 12) + std::string(5, '\x02'));
}

TEST_CASE("safetensors: files of the wrong length are refused", "[io][safetensors][bad_input]") {
  TemporaryFolder const folder;
  CHECK_THAT(refusal(folder, ""), ContainsSubstring("is empty"));
  CHECK_THAT(refusal(folder, "abc"), ContainsSubstring("too short"));
  CHECK_THAT(refusal(folder, std::string(8, '\xFF')), ContainsSubstring("18446744073709551615"));
  CHECK_THAT(refusal(folder, std::string(8, '\xFF') + "{}"), ContainsSubstring("header"));
  std::string const good = file_of("{" + entry("a", "F32", "[2]", "[0,8]") + "}", "12345678");
  SafeTensorsFile const file(folder.put("good", good));
  for (std::size_t n = 0; n < good.size(); ++n) {
    INFO("cut to " << n << " bytes");
    CHECK_FALSE(refusal(folder, good.substr(0, n)).empty());
  }
  CHECK_THAT(refusal(folder, good + "x"), ContainsSubstring("1 bytes after its last tensor"));
}

TEST_CASE("safetensors: a header may have 100000000 bytes and not one more",
          "[io][safetensors][bad_input]") {
  TemporaryFolder const folder;
  std::string claims = file_of("{}");
  auto const claim = [&](std::uint64_t n) {
    std::memcpy(claims.data(), &n, 8);
    return refusal(folder, claims);
  };
  CHECK_THAT(claim(100'000'000), ContainsSubstring("truncated"));
  CHECK_THAT(claim(100'000'001), ContainsSubstring("the format allows 100000000"));
  CHECK_THAT(claim(3), ContainsSubstring("truncated"));
}

TEST_CASE("safetensors: a header starts with { and may end in spaces",
          "[io][safetensors][bad_input]") {
  TemporaryFolder const folder;
  std::string const a = entry("a", "F32", "[1]", "[0,4]");
  CHECK(taken(folder, "{" + a + "}     ", "1234").names() == std::vector<std::string>{"a"});
  CHECK(taken(folder, "{}", "").names().empty());
  for (std::string const before : {" ", "\n", "\xEF\xBB\xBF", "["}) {
    INFO("before: " << before);
    CHECK_THAT(refused(folder, before + "{" + a + "}", "1234"), ContainsSubstring("start with {"));
  }
  CHECK_THAT(refused(folder, "", ""), ContainsSubstring("start with {"));
  CHECK_THAT(refused(folder, "{" + a + "}x", "1234"), ContainsSubstring("not valid JSON"));
  CHECK_THAT(refused(folder, "{" + a + "}" + std::string(1, '\0'), "1234"),
             ContainsSubstring("not valid JSON"));
  CHECK_THAT(refused(folder, "{\"a\":", ""), ContainsSubstring("not valid JSON"));
}

TEST_CASE("safetensors: no key appears twice in one object", "[io][safetensors][bad_input]") {
  TemporaryFolder const folder;
  std::string const a = entry("a", "F32", "[1]", "[0,4]");
  CHECK_THAT(refused(folder, "{" + a + "," + a + "}", "1234"),
             ContainsSubstring("\"a\" appears twice"));
  // The same name, spelled with an escape.
  CHECK_THAT(
      refused(folder, "{" + a + "," + entry("\\u0061", "F32", "[1]", "[4,8]") + "}", "12345678"),
      ContainsSubstring("\"a\" appears twice"));
  for (std::string const twice :
       {R"("dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4])",
        R"("dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4])",
        R"("dtype":"F32","shape":[1],"data_offsets":[0,4],"data_offsets":[0,4])"}) {
    INFO(twice);
    CHECK_THAT(refused(folder, "{\"a\":{" + twice + "}}", "1234"),
               ContainsSubstring("appears twice"));
  }
  CHECK_THAT(refused(folder, R"({"__metadata__":{"x":"1","x":"2"}})", ""),
             ContainsSubstring("\"x\" appears twice"));
  CHECK_THAT(refused(folder, R"({"__metadata__":{},"__metadata__":{}})", ""),
             ContainsSubstring("appears twice"));
  // One name in two objects is none twice.
  CHECK_NOTHROW(taken(folder, R"({"__metadata__":{"a":"1"},)" + a + "}", "1234"));
}

TEST_CASE("safetensors: tensors follow one another without gap or overlap, in any order of entries",
          "[io][safetensors][bad_input]") {
  TemporaryFolder const folder;
  std::string const a = entry("a", "F32", "[1]", "[0,4]");
  std::string const b = entry("b", "F32", "[1]", "[4,8]");
  CHECK(taken(folder, "{" + b + "," + a + "}", "12345678").names() ==
        std::vector<std::string>{"a", "b"});
  CHECK_THAT(refused(folder, "{" + a + "," + entry("b", "F32", "[1]", "[3,7]") + "}", "12345678"),
             ContainsSubstring("overlap"));
  CHECK_THAT(refused(folder, "{" + a + "," + entry("b", "F32", "[1]", "[0,4]") + "}", "1234"),
             ContainsSubstring("overlap"));
  CHECK_THAT(refused(folder, "{" + b + "}", "12345678"), ContainsSubstring("gap"));
  CHECK_THAT(refused(folder, "{" + a + "," + entry("c", "F32", "[1]", "[5,9]") + "}", "123456789"),
             ContainsSubstring("gap"));
  CHECK_THAT(refused(folder, "{" + a + "}", "12345678"),
             ContainsSubstring("4 bytes after its last tensor"));
  CHECK_THAT(refused(folder, "{}", "1"), ContainsSubstring("1 bytes after its last tensor"));
  CHECK_THAT(refused(folder, "{" + entry("a", "F32", "[4]", "[0,16]") + "}", "12345678"),
             ContainsSubstring("truncated"));
}

TEST_CASE("safetensors: data_offsets are two whole numbers, the second not below the first",
          "[io][safetensors][bad_input]") {
  TemporaryFolder const folder;
  CHECK_THAT(refused(folder, "{" + entry("a", "F32", "[1]", "[4,0]") + "}", "1234"),
             ContainsSubstring("end before they begin"));
  for (std::string const offsets : {"[0,4,8]", "[4]", "[]", "4", "[0,4.0]", "[-4,0]", "[\"0\",4]",
                                    "[0,18446744073709551616]", "null", "{\"0\":4}"}) {
    INFO(offsets);
    CHECK_THAT(refused(folder, "{" + entry("a", "F32", "[1]", offsets) + "}", "1234"),
               ContainsSubstring("data_offsets"));
  }
  CHECK_THAT(
      refused(folder,
              "{" + entry("a", "F32", "[1]", "[18446744073709551611,18446744073709551615]") + "}",
              "1234"),
      ContainsSubstring("truncated"));
}

TEST_CASE("safetensors: a type is one of the format's", "[io][safetensors][bad_input]") {
  TemporaryFolder const folder;
  for (std::string const type : {"F99", "f32", "F32 ", "", "FLOAT"}) {
    INFO(type);
    CHECK_THAT(refused(folder, "{" + entry("a", type, "[1]", "[0,4]") + "}", "1234"),
               ContainsSubstring("unknown type \"" + type + "\""));
  }
  CHECK_THAT(refused(folder, R"({"a":{"dtype":7,"shape":[1],"data_offsets":[0,4]}})", "1234"),
             ContainsSubstring("dtype is not a string"));
}

TEST_CASE("safetensors: shape times type is the number of bytes, by products that are checked",
          "[io][safetensors][bad_input]") {
  TemporaryFolder const folder;
  auto const refused_shape = [&](std::string const& shape, std::string const& offsets,
                                 std::string const& data, std::string const& type = "F32") {
    INFO(shape);
    return refused(folder, "{" + entry("a", type, shape, offsets) + "}", data);
  };
  CHECK_THAT(refused_shape("[2]", "[0,4]", "1234"), ContainsSubstring("need 8"));
  CHECK_THAT(refused_shape("[1]", "[0,8]", "12345678"), ContainsSubstring("need 4"));
  CHECK_THAT(refused_shape("[0]", "[0,4]", "1234"), ContainsSubstring("need 0"));
  CHECK_THAT(refused_shape("[]", "[0,8]", "12345678"), ContainsSubstring("need 4"));
  // 2^62 * 4 wraps to 0, and 2^32 * 2^32 too; so does what a factor of 0 would hide.
  CHECK_THAT(refused_shape("[4611686018427387904]", "[0,0]", ""), ContainsSubstring("no memory"));
  CHECK_THAT(refused_shape("[4294967296,4294967296]", "[0,0]", "", "U8"),
             ContainsSubstring("no memory"));
  CHECK_THAT(refused_shape("[4294967296,4294967296,0]", "[0,0]", "", "U8"),
             ContainsSubstring("no memory"));
  for (std::string const extent : {"-1", "1.5", "1.0", "99999999999999999999", "true", "\"1\"",
                                   "null", "[1]", "9223372036854775808"}) {
    CHECK_THAT(refused_shape("[" + extent + "]", "[0,4]", "1234"),
               ContainsSubstring("whole number"));
  }
  CHECK_THAT(refused_shape("1", "[0,4]", "1234"), ContainsSubstring("not a list"));
}

TEST_CASE("safetensors: tensors without elements lie anywhere between others",
          "[io][safetensors][unit]") {
  TemporaryFolder const folder;
  auto const file =
      taken(folder,
            "{" + entry("first", "F32", "[0]", "[0,0]") + "," + entry("a", "U8", "[2]", "[0,2]") +
                "," + entry("between", "F64", "[3,0]", "[2,2]") + "," +
                entry("same", "I8", "[0]", "[2,2]") + "," + entry("b", "U8", "[1]", "[2,3]") + "," +
                entry("last", "F16", "[0,7]", "[3,3]") + "}",
            "xyz");
  CHECK(file.names().size() == 6);
  for (char const* name : {"first", "between", "same", "last"}) {
    CHECK(file.info(name).size() == 0);
    CHECK(file.bytes(name).empty());
  }
  CHECK(file.info("between").shape == std::vector<index_t>{3, 0});
  CHECK(file.bytes("b") == std::vector<std::byte>{std::byte{'z'}});
  CHECK_THAT(refused(folder,
                     "{" + entry("a", "U8", "[2]", "[0,2]") + "," +
                         entry("inside", "U8", "[0]", "[1,1]") + "}",
                     "xy"),
             ContainsSubstring("overlap"));
}

TEST_CASE("safetensors: a shape without extents is one element", "[io][safetensors][unit]") {
  TemporaryFolder const folder;
  float const x = 2.5F;
  std::string data(4, '\0');
  std::memcpy(data.data(), &x, 4);
  auto const file = taken(folder, "{" + entry("a", "F32", "[]", "[0,4]") + "}", data);
  CHECK(file.info("a").shape.empty());
  CHECK(file.info("a").size() == 1);
  float back = 0;
  file.copy_to("a", std::span(&back, 1), {});
  CHECK(back == x);
}

TEST_CASE("safetensors: an entry is a type, a shape and offsets", "[io][safetensors][bad_input]") {
  TemporaryFolder const folder;
  for (std::string const value :
       {"7", "[]", "{}", "null", R"({"dtype":"U8","shape":[1]})",
        R"({"dtype":"U8","data_offsets":[0,1]})", R"({"shape":[1],"data_offsets":[0,1]})",
        R"({"dtype":"U8","shape":[1],"data_offsets":[0,1],"more":0})"}) {
    INFO(value);
    CHECK_THAT(refused(folder, "{\"a\":" + value + "}", "x"), ContainsSubstring("entry"));
  }
}

TEST_CASE("safetensors: metadata are texts by name", "[io][safetensors][bad_input]") {
  TemporaryFolder const folder;
  CHECK(taken(folder, R"({"__metadata__":{"format":"pt","":"empty"}})", "").metadata() ==
        std::map<std::string, std::string>{{"format", "pt"}, {"", "empty"}});
  for (std::string const value : {"[]", "\"x\"", "null", "1"}) {
    INFO(value);
    CHECK_THAT(refused(folder, "{\"__metadata__\":" + value + "}", ""),
               ContainsSubstring("__metadata__"));
  }
  for (std::string const value : {"1", "null", "[\"x\"]", "{\"y\":\"z\"}", "true"}) {
    INFO(value);
    CHECK_THAT(refused(folder, "{\"__metadata__\":{\"x\":" + value + "}}", ""),
               ContainsSubstring("metadata \"x\" that is not a string"));
  }
}

TEST_CASE("safetensors: a header is UTF-8", "[io][safetensors][bad_input]") {
  TemporaryFolder const folder;
  CHECK(
      taken(folder, "{" + entry("\xC3\xA9", "U8", "[1]", "[0,1]") + "}", "x").contains("\xC3\xA9"));
  // A byte that begins nothing, an overlong form, a surrogate, beyond U+10FFFF, and one cut short.
  for (std::string const bytes :
       {"\xFF", "\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xE2\x96"}) {
    CHECK_THAT(refused(folder, "{" + entry("a" + bytes, "U8", "[1]", "[0,1]") + "}", "x"),
               ContainsSubstring("UTF-8"));
  }
  CHECK_THAT(refused(folder, R"({"__metadata__":{"x":"\ud800"}})", ""),
             ContainsSubstring("not valid JSON"));
}

TEST_CASE("safetensors: a header that is nested deeply is refused before it is built",
          "[io][safetensors][bad_input]") {
  TemporaryFolder const folder;
  std::string const deep = std::string(200'000, '[') + std::string(200'000, ']');
  CHECK_THAT(refused(folder, "{\"a\":" + deep + "}", ""), ContainsSubstring("nested"));
  CHECK_THAT(refused(folder, "{\"a\":" + std::string(200'000, '[') + "}", ""),
             ContainsSubstring("nested"));
}

TEST_CASE("safetensors: an empty set of tensors is a valid file", "[io][safetensors][unit]") {
  TemporaryFolder const folder;
  emprl::io::write_safetensors(folder / "t", {}, {});
  CHECK(SafeTensorsFile(folder / "t").names().empty());
}

TEST_CASE("safetensors: missing tensors, wrong shapes and wrong types are named",
          "[io][safetensors][bad_input]") {
  TemporaryFolder const folder;
  std::vector<float> const x(6, 1.0F);
  std::vector<TensorToWrite> const tensors{tensor_to_write("x", {2, 3}, std::span(x))};
  emprl::io::write_safetensors(folder / "t", tensors);
  SafeTensorsFile const file(folder / "t");
  std::vector<float> out(6);
  CHECK_THAT(
      message_of<IoError>([&] { file.copy_to("y", std::span(out), {6}); }),
      ContainsSubstring("has no tensor \"y\"") && ContainsSubstring((folder / "t").string()));
  CHECK_THAT(message_of<IoError>([&] {
               file.copy_to("x", std::span(out), {3, 2});
             }),
             ContainsSubstring("[2, 3]") && ContainsSubstring("[3, 2]"));
  CHECK_THAT(message_of<IoError>([&] { file.copy_to("x", std::span(out), {6}); }),
             ContainsSubstring("[6]"));
  std::vector<std::int32_t> whole(6);
  CHECK_THAT(message_of<IoError>([&] {
               file.copy_to("x", std::span(whole), {2, 3});
             }),
             ContainsSubstring("F32") && ContainsSubstring("I32"));
  CHECK_THROWS_AS(file.copy_to("x", std::span(out).first(5), {2, 3}), emprl::ShapeError);
}

TEST_CASE("safetensors: a writer refuses bytes that do not fit and names used twice",
          "[io][safetensors]") {
  TemporaryFolder const folder;
  std::vector<float> const x(6, 1.0F);
  std::vector<TensorToWrite> const short_bytes{tensor_to_write("x", {7}, std::span(x))};
  CHECK_THROWS_AS(emprl::io::write_safetensors(folder / "t", short_bytes), emprl::ShapeError);
  std::vector<TensorToWrite> const twice{tensor_to_write("x", {6}, std::span(x)),
                                         tensor_to_write("x", {6}, std::span(x))};
  CHECK_THROWS_AS(emprl::io::write_safetensors(folder / "t", twice), emprl::ShapeError);
  CHECK(folder.entries() == 0);
}

TEST_CASE("safetensors: a full disk leaves the old file", "[io][safetensors][bad_input]") {
  TemporaryFolder const folder;
  auto const path = folder / "t";
  std::vector<float> const small(2, 1.0F);
  std::vector<float> const large(100'000, 1.0F);
  std::vector<TensorToWrite> const before{tensor_to_write("x", {2}, std::span(small))};
  std::vector<TensorToWrite> const after{tensor_to_write("x", {100'000}, std::span(large))};
  emprl::io::write_safetensors(path, before);
  std::string message;
  {
    emprl::test::FullDisk const full(10'000);
    message = message_of<IoError>([&] { emprl::io::write_safetensors(path, after); });
  }
  CHECK_THAT(message, ContainsSubstring(path.string()));
  CHECK(SafeTensorsFile(path).info("x").shape == std::vector<index_t>{2});
  CHECK(folder.entries() == 1);
}
