// SPDX-License-Identifier: Apache-2.0
#pragma once

// The safetensors format (https://huggingface.co/docs/safetensors), to its own rules.
//
//   8 bytes   length n of the header, little-endian
//   n bytes   JSON: {"name": {"dtype": "F32", "shape": [..], "data_offsets": [begin, end]}, ..,
//                    "__metadata__": {"key": "text", ..}}
//   the rest  the tensors, little-endian, row-major, without gap or overlap, to the file's end
//
// Nothing in the file is trusted: lengths are checked against the file before anything is
// allocated, products and sums are checked for overflow, keys must be unique, the nesting is
// bounded.

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <initializer_list>
#include <limits>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/core/half.hpp"
#include "emprl/io/file.hpp"
#include "emprl/io/json.hpp"
#include "emprl/io/utf8.hpp"

namespace emprl::io {

static_assert(std::endian::native == std::endian::little,
              "safetensors files are little-endian, and so must be the machine");

/// Element types of the format.
enum class DType { f64, f32, f16, bf16, i64, i32, i16, i8, u64, u32, u16, u8, boolean };

namespace detail {

struct DTypeRow {
  DType dtype;
  std::string_view name;
  std::uint64_t bytes;
};

inline constexpr std::array<DTypeRow, 13> dtype_table{{{DType::f64, "F64", 8},
                                                       {DType::f32, "F32", 4},
                                                       {DType::f16, "F16", 2},
                                                       {DType::bf16, "BF16", 2},
                                                       {DType::i64, "I64", 8},
                                                       {DType::i32, "I32", 4},
                                                       {DType::i16, "I16", 2},
                                                       {DType::i8, "I8", 1},
                                                       {DType::u64, "U64", 8},
                                                       {DType::u32, "U32", 4},
                                                       {DType::u16, "U16", 2},
                                                       {DType::u8, "U8", 1},
                                                       {DType::boolean, "BOOL", 1}}};

inline DTypeRow const& row_of(DType dtype) {
  return dtype_table[static_cast<std::size_t>(dtype)];
}

template <class T>
constexpr bool always_false = false;

/// a * b in `out`; false when it does not fit.
inline bool checked_product(std::uint64_t a, std::uint64_t b, std::uint64_t& out) {
  return !__builtin_mul_overflow(a, b, &out);
}

}  // namespace detail

/// The format's name of an element type.
inline std::string_view dtype_name(DType dtype) {
  return detail::row_of(dtype).name;
}
/// Bytes of one element.
inline std::uint64_t dtype_size(DType dtype) {
  return detail::row_of(dtype).bytes;
}

/// The element type that stands for a C++ type.
template <class T>
constexpr DType dtype_of() {
  if constexpr (std::is_same_v<T, double>) {
    return DType::f64;
  } else if constexpr (std::is_same_v<T, float>) {
    return DType::f32;
  } else if constexpr (std::is_same_v<T, Fp16>) {
    return DType::f16;
  } else if constexpr (std::is_same_v<T, Bf16>) {
    return DType::bf16;
  } else if constexpr (std::is_same_v<T, std::int64_t>) {
    return DType::i64;
  } else if constexpr (std::is_same_v<T, std::int32_t>) {
    return DType::i32;
  } else if constexpr (std::is_same_v<T, std::int16_t>) {
    return DType::i16;
  } else if constexpr (std::is_same_v<T, std::int8_t>) {
    return DType::i8;
  } else if constexpr (std::is_same_v<T, std::uint64_t>) {
    return DType::u64;
  } else if constexpr (std::is_same_v<T, std::uint32_t>) {
    return DType::u32;
  } else if constexpr (std::is_same_v<T, std::uint16_t>) {
    return DType::u16;
  } else if constexpr (std::is_same_v<T, std::uint8_t>) {
    return DType::u8;
  } else if constexpr (std::is_same_v<T, bool>) {
    return DType::boolean;
  } else {
    static_assert(detail::always_false<T>, "safetensors has no element type for this C++ type");
  }
}

/// "[2, 3]", as messages show a shape.
inline std::string shape_text(std::span<index_t const> shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  }
  return text + "]";
}

/// What the header says of one tensor; its bytes are [begin, end) of the file.
struct TensorInfo {
  DType dtype = DType::f32;
  std::vector<index_t> shape;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;

  /// The number of elements.
  index_t size() const { return static_cast<index_t>((end - begin) / dtype_size(dtype)); }
};

/// A safetensors file open for reading. The header is read and proven on construction, a tensor
/// when it is asked for.
class SafeTensorsFile {
 public:
  /// The longest header that the format allows.
  static constexpr std::uint64_t max_header_bytes = 100'000'000;

  /// @throws IoError that names the file and what breaks the format's rules
  explicit SafeTensorsFile(std::filesystem::path const& path) : file_(path) {
    std::uint64_t const size = file_.size();
    if (!file_.is_regular()) fail("is not a regular file");
    if (size == 0) fail("is empty");
    if (size < 8) fail("is too short for a safetensors file");
    std::uint64_t header_bytes = 0;
    file_.read_at(0, std::as_writable_bytes(std::span(&header_bytes, 1)));
    if (header_bytes > max_header_bytes) {
      fail("claims a header of " + std::to_string(header_bytes) + " bytes; the format allows " +
           std::to_string(max_header_bytes));
    }
    if (header_bytes > size - 8) {
      fail("is truncated: it claims a header of " + std::to_string(header_bytes) +
           " bytes and has " + std::to_string(size) + " in all");
    }
    std::string header(static_cast<std::size_t>(header_bytes), '\0');
    file_.read_at(8, std::as_writable_bytes(std::span(header.data(), header.size())));
    if (!header.starts_with('{')) fail("has a header that does not start with {");
    read_header(parse_json(header, path.string() + " (header)", DuplicateKeys::refuse),
                8 + header_bytes);
    check_layout(8 + header_bytes, size);
  }

  std::filesystem::path const& path() const { return file_.path(); }
  /// Tensor names in the order in which their bytes lie in the file.
  std::vector<std::string> const& names() const { return names_; }
  bool contains(std::string const& name) const { return tensors_.count(name) != 0; }
  /// The `__metadata__` map; empty where there is none.
  std::map<std::string, std::string> const& metadata() const { return metadata_; }

  /// @throws IoError that names the file if there is no such tensor
  TensorInfo const& info(std::string const& name) const {
    auto const found = tensors_.find(name);
    if (found == tensors_.end()) fail("has no tensor \"" + name + "\"");
    return found->second;
  }

  /// The bytes of a tensor as they lie in the file.
  std::vector<std::byte> bytes(std::string const& name) const {
    TensorInfo const& tensor = info(name);
    std::vector<std::byte> out(static_cast<std::size_t>(tensor.end - tensor.begin));
    file_.read_at(tensor.begin, out);
    return out;
  }

  /// Fills `out` with a tensor's bytes from byte `begin` of it on, as they lie in the file.
  /// @throws ShapeError if the tensor ends before that
  void read_part(TensorInfo const& tensor, std::uint64_t begin, std::span<std::byte> out) const {
    std::uint64_t const bytes = tensor.end - tensor.begin;
    expects(begin <= bytes && out.size() <= bytes - begin, "a part of a tensor must lie in it");
    file_.read_at(tensor.begin + begin, out);
  }

  /// Copies a tensor out, straight from the file where it is of type T. T = float or double takes
  /// any of F64, F32, F16 and BF16; other types take their own only.
  /// @param shape what the caller expects; out.size() must be its product
  /// @throws IoError that names the file and the tensor if it is missing or its shape or element
  /// type is another
  /// @throws ShapeError if `out` does not fit `shape`
  template <class T>
  void copy_to(std::string const& name, std::span<T> out, std::span<index_t const> shape) const {
    TensorInfo const& tensor = info(name);
    if (!std::equal(shape.begin(), shape.end(), tensor.shape.begin(), tensor.shape.end())) {
      fail("has tensor \"" + name + "\" of shape " + shape_text(tensor.shape) + " where shape " +
           shape_text(shape) + " was expected");
    }
    expects(static_cast<index_t>(out.size()) == tensor.size(),
            "the place for tensor \"" + name + "\" must have as many elements as its shape");
    if (tensor.dtype == dtype_of<T>()) {
      if constexpr (std::is_same_v<T, bool>) {
        // Any byte but 0 and 1 in a C++ bool is undefined behaviour.
        convert<std::uint8_t>(tensor, out, [](std::uint8_t x) { return x != 0; });
      } else {
        file_.read_at(tensor.begin, std::as_writable_bytes(out));
      }
      return;
    }
    if constexpr (std::is_floating_point_v<T>) {
      switch (tensor.dtype) {
        case DType::f64:
          return convert<double>(tensor, out, [](double x) { return static_cast<T>(x); });
        case DType::f32:
          return convert<float>(tensor, out, [](float x) { return static_cast<T>(x); });
        case DType::f16:
          return convert<Fp16>(tensor, out,
                               [](Fp16 x) { return static_cast<T>(static_cast<float>(x)); });
        case DType::bf16:
          return convert<Bf16>(tensor, out,
                               [](Bf16 x) { return static_cast<T>(static_cast<float>(x)); });
        default:
          break;
      }
    }
    fail("has tensor \"" + name + "\" of type " + std::string(dtype_name(tensor.dtype)) +
         " where " + std::string(dtype_name(dtype_of<T>())) + " was expected");
  }

  /// The same with the shape written in place: copy_to("weight", out, {rows, columns}).
  template <class T>
  void copy_to(std::string const& name, std::span<T> out,
               std::initializer_list<index_t> shape) const {
    copy_to(name, out, std::span<index_t const>(shape.begin(), shape.size()));
  }

 private:
  [[noreturn]] void fail(std::string const& what) const {
    throw IoError(file_.path().string() + " " + what + ".");
  }

  template <class Stored, class T, class Convert>
  void convert(TensorInfo const& tensor, std::span<T> out, Convert to) const {
    constexpr std::size_t block = std::size_t{1} << 14;
    std::vector<Stored> stored(std::min(block, out.size()));
    std::uint64_t at = tensor.begin;
    for (std::size_t done = 0; done < out.size();) {
      std::size_t const n = std::min(stored.size(), out.size() - done);
      file_.read_at(at, std::as_writable_bytes(std::span(stored.data(), n)));
      std::transform(stored.begin(), stored.begin() + static_cast<std::ptrdiff_t>(n),
                     out.begin() + static_cast<std::ptrdiff_t>(done), to);
      at += n * sizeof(Stored);
      done += n;
    }
  }

  void read_header(Json const& header, std::uint64_t data_begin) {
    for (auto const& [name, value] : header.items()) {
      if (name == "__metadata__") {
        if (!value.is_object()) fail("has a __metadata__ that is not an object");
        for (auto const& [key, text] : value.items()) {
          if (!text.is_string()) fail("has metadata \"" + key + "\" that is not a string");
          metadata_[key] = text.template get<std::string>();
        }
        continue;
      }
      tensors_.emplace(name, read_tensor(name, value, data_begin));
      names_.push_back(name);
    }
  }

  TensorInfo read_tensor(std::string const& name, Json const& value, std::uint64_t data_begin) {
    std::string const tensor = "has tensor \"" + name + "\" ";
    if (!value.is_object() || value.size() != 3 || !value.contains("dtype") ||
        !value.contains("shape") || !value.contains("data_offsets")) {
      fail(tensor + "whose entry is not {dtype, shape, data_offsets}");
    }
    TensorInfo info;
    Json const& dtype = value["dtype"];
    if (!dtype.is_string()) fail(tensor + "whose dtype is not a string");
    auto const& type_name = dtype.get_ref<std::string const&>();
    auto const row = std::find_if(detail::dtype_table.begin(), detail::dtype_table.end(),
                                  [&](auto const& r) { return r.name == type_name; });
    if (row == detail::dtype_table.end()) fail(tensor + "of unknown type \"" + type_name + "\"");
    info.dtype = row->dtype;

    Json const& shape = value["shape"];
    if (!shape.is_array()) fail(tensor + "whose shape is not a list");
    std::uint64_t bytes = row->bytes;
    constexpr auto most = static_cast<std::uint64_t>(std::numeric_limits<index_t>::max());
    for (auto const& extent : shape) {
      if (!extent.is_number_unsigned() || extent.get<std::uint64_t>() > most) {
        fail(tensor + "with an extent that is not a whole number");
      }
      info.shape.push_back(static_cast<index_t>(extent.get<std::uint64_t>()));
      if (!detail::checked_product(bytes, extent.get<std::uint64_t>(), bytes)) {
        fail(tensor + "of a size that no memory could hold");
      }
    }

    Json const& offsets = value["data_offsets"];
    if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
        !offsets[1].is_number_unsigned()) {
      fail(tensor + "whose data_offsets are not two whole numbers");
    }
    auto const begin = offsets[0].get<std::uint64_t>();
    auto const end = offsets[1].get<std::uint64_t>();
    std::uint64_t const data_bytes = file_.size() - data_begin;
    if (begin > end) fail(tensor + "whose bytes end before they begin");
    if (end > data_bytes) {
      fail("is truncated: tensor \"" + name + "\" ends at byte " + std::to_string(end) + " of " +
           std::to_string(data_bytes) + " bytes of data");
    }
    if (end - begin != bytes) {
      fail(tensor + "of " + std::to_string(end - begin) + " bytes where its type and shape need " +
           std::to_string(bytes));
    }
    info.begin = data_begin + begin;
    info.end = data_begin + end;
    return info;
  }

  void check_layout(std::uint64_t data_begin, std::uint64_t size) {
    std::stable_sort(names_.begin(), names_.end(), [&](auto const& a, auto const& b) {
      TensorInfo const& x = tensors_.at(a);
      TensorInfo const& y = tensors_.at(b);
      return std::pair(x.begin, x.end) < std::pair(y.begin, y.end);
    });
    std::uint64_t at = data_begin;
    for (auto const& name : names_) {
      TensorInfo const& tensor = tensors_.at(name);
      if (tensor.begin != at) {
        fail("has a " + std::string(tensor.begin > at ? "gap" : "overlap") +
             " in its data before tensor \"" + name + "\"");
      }
      at = tensor.end;
    }
    if (at != size) {
      fail("has " + std::to_string(size - at) + " bytes after its last tensor");
    }
  }

  InputFile file_;
  std::vector<std::string> names_;
  std::unordered_map<std::string, TensorInfo> tensors_;
  std::map<std::string, std::string> metadata_;
};

/// One tensor for `write_safetensors`; the bytes are the caller's and must outlive the call.
struct TensorToWrite {
  std::string name;
  DType dtype = DType::f32;
  std::vector<index_t> shape;
  std::span<std::byte const> bytes;
};

/// A tensor for `write_safetensors` from its elements, row-major.
template <class T>
TensorToWrite tensor_to_write(std::string name, std::vector<index_t> shape,
                              std::span<T const> elements) {
  return {std::move(name), dtype_of<T>(), std::move(shape), std::as_bytes(elements)};
}

namespace detail {

/// The tensors in the order in which a file holds them: by falling element size, then by name.
/// @throws ShapeError if a tensor's bytes do not fit its shape, or two have one name
inline std::vector<TensorToWrite const*> order_of_writing(std::span<TensorToWrite const> tensors) {
  std::vector<TensorToWrite const*> order;
  order.reserve(tensors.size());
  std::set<std::string_view> names;
  for (auto const& tensor : tensors) {
    std::uint64_t bytes = dtype_size(tensor.dtype);
    bool fits = true;
    for (index_t const extent : tensor.shape) {
      fits =
          fits && extent >= 0 && checked_product(bytes, static_cast<std::uint64_t>(extent), bytes);
    }
    expects(fits && bytes == tensor.bytes.size(),
            "tensor \"" + tensor.name + "\" has " + std::to_string(tensor.bytes.size()) +
                " bytes, which do not fit its shape " + shape_text(tensor.shape));
    expects(tensor.name != "__metadata__", "no tensor may be called __metadata__");
    expects(is_valid_utf8(tensor.name), "the name of a tensor must be valid UTF-8");
    expects(names.insert(tensor.name).second, "two tensors are called \"" + tensor.name + "\"");
    order.push_back(&tensor);
  }
  std::sort(order.begin(), order.end(), [](auto const* a, auto const* b) {
    std::uint64_t const x = dtype_size(a->dtype);
    std::uint64_t const y = dtype_size(b->dtype);
    if (x != y) return x > y;
    if (a->dtype != b->dtype) return a->dtype < b->dtype;
    return a->name < b->name;
  });
  return order;
}

/// Writes a whole safetensors file and leaves it to the caller to commit it.
inline void write_tensors(AtomicFile& file, std::span<TensorToWrite const> tensors,
                          std::map<std::string, std::string> const& metadata) {
  auto const order = order_of_writing(tensors);
  Json header = Json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::uint64_t at = 0;
  for (auto const* tensor : order) {
    header[tensor->name] = {{"dtype", dtype_name(tensor->dtype)},
                            {"shape", tensor->shape},
                            {"data_offsets", {at, at + tensor->bytes.size()}}};
    at += tensor->bytes.size();
  }
  std::string text = header.dump(-1, ' ', false, Json::error_handler_t::replace);
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::uint64_t const length = text.size();
  file.write(std::as_bytes(std::span(&length, 1)));
  file.write(text);
  for (auto const* tensor : order) file.write(tensor->bytes);
}

}  // namespace detail

/// Writes a safetensors file, all or nothing. Tensors lie by falling element size, then by name, so
/// that each is aligned and the bytes are a function of the contents alone.
/// @param metadata the `__metadata__` map; transformers wants {"format": "pt"}, which is what is
/// written by default
/// @throws ShapeError if a tensor's bytes do not fit its shape, or two have one name
/// @throws IoError naming the file; an old file of that name is then untouched
inline void write_safetensors(std::filesystem::path const& path,
                              std::span<TensorToWrite const> tensors,
                              std::map<std::string, std::string> const& metadata = {
                                  {"format", "pt"}}) {
  AtomicFile file(path);
  detail::write_tensors(file, tensors, metadata);
  file.commit();
}

}  // namespace emprl::io
