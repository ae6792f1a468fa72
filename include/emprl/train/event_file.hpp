// SPDX-License-Identifier: Apache-2.0
#pragma once

// TensorBoard's event files, for scalars. A file is a row of records
//
//   8 bytes   length n, little-endian          4 bytes   masked CRC-32C of those 8
//   n bytes   a protobuf message Event         4 bytes   masked CRC-32C of the n
//
//   Event    1: wall_time (double)   2: step (varint)   3: file_version (string)   5: Summary
//   Summary  1: Value, repeated      Value  1: tag (string)   2: simple_value (float)
//
// The first record holds file_version "brain.Event:2". mask(c) = rotate_right(c, 15) + 0xa282ead8.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/io/file.hpp"

namespace emprl::train {

/// Named numbers, in the order in which they are to be shown.
using Metrics = std::vector<std::pair<std::string, double>>;

namespace detail {

inline constexpr std::array<std::uint32_t, 256> crc32c_table = [] {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t c = i;
    for (int bit = 0; bit < 8; ++bit) c = (c & 1u) != 0 ? c >> 1 ^ 0x82F63B78u : c >> 1;
    table[i] = c;
  }
  return table;
}();

/// A file that only grows, a whole piece at a time: what cannot be written in full is taken back.
class AppendFile {
 public:
  enum class Mode { open_or_make, must_be_new };

  /// @throws IoError naming the path
  AppendFile(std::filesystem::path path, Mode mode) : path_(std::move(path)) {
    int const flags = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC;
    fd_ = io::detail::Descriptor(
        ::open(path_.c_str(), mode == Mode::must_be_new ? flags | O_EXCL : flags, 0666));
    if (fd_.get() < 0) io::detail::fail("write", path_, errno);
  }

  std::filesystem::path const& path() const { return path_; }

  /// @throws IoError naming the path; the file is then as it was
  void append(std::string_view text) {
    struct stat status {};
    bool const sized = ::fstat(fd_.get(), &status) == 0 && S_ISREG(status.st_mode);
    try {
      io::detail::write_all(fd_.get(), io::bytes_of(text), path_);
    } catch (...) {
      if (sized && ::ftruncate(fd_.get(), status.st_size) != 0) {
        // What is left is a torn tail, which every reader here passes over.
      }
      throw;
    }
  }

  /// Flushes to the disk. @throws IoError naming the path
  void sync() {
    if (::fsync(fd_.get()) != 0 && errno != EINVAL) io::detail::fail("write", path_, errno);
  }

 private:
  std::filesystem::path path_;
  io::detail::Descriptor fd_;
};

template <class T>
void put_little_endian(std::string& out, T value) {
  for (std::size_t i = 0; i < sizeof(T); ++i) {
    out += static_cast<char>(static_cast<unsigned char>(value >> (8 * i)));
  }
}

template <class T>
T get_little_endian(std::string_view bytes) {
  T value = 0;
  for (std::size_t i = 0; i < sizeof(T); ++i) {
    value = static_cast<T>(value | static_cast<T>(static_cast<unsigned char>(bytes[i])) << (8 * i));
  }
  return value;
}

inline void put_varint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>((value & 0x7F) | 0x80);
  out += static_cast<char>(value);
}

inline void put_bytes(std::string& out, char key, std::string_view bytes) {
  out += key;
  put_varint(out, bytes.size());
  out += bytes;
}

/// A double as float; what float cannot hold becomes infinite, as IEEE 754 has it but C++ does not
/// promise.
inline float to_float(double x) {
  constexpr double most = std::numeric_limits<float>::max();
  if (x > most) return std::numeric_limits<float>::infinity();
  if (x < -most) return -std::numeric_limits<float>::infinity();
  return static_cast<float>(x);
}

/// One field of a protobuf message: a number for wire types 0, 1 and 5, bytes for type 2.
struct ProtobufField {
  std::uint64_t number = 0;
  std::uint64_t value = 0;
  std::string_view bytes;
};

/// Takes the next field off a message. @return nothing at the end of it, or where it is malformed
inline std::optional<ProtobufField> next_field(std::string_view& message) {
  auto const varint = [&]() -> std::optional<std::uint64_t> {
    std::uint64_t value = 0;
    for (int shift = 0; shift < 64 && !message.empty(); shift += 7) {
      auto const byte = static_cast<unsigned char>(message.front());
      message.remove_prefix(1);
      value |= static_cast<std::uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    return std::nullopt;
  };
  auto const key = varint();
  if (!key) return std::nullopt;
  ProtobufField field;
  field.number = *key >> 3;
  std::uint64_t length = 0;
  switch (*key & 7) {
    case 0: {
      auto const value = varint();
      if (!value) return std::nullopt;
      field.value = *value;
      return field;
    }
    case 1:
      length = 8;
      break;
    case 5:
      length = 4;
      break;
    case 2: {
      auto const size = varint();
      if (!size) return std::nullopt;
      length = *size;
      break;
    }
    default:
      return std::nullopt;
  }
  if (length > message.size()) return std::nullopt;
  field.bytes = message.substr(0, static_cast<std::size_t>(length));
  message.remove_prefix(static_cast<std::size_t>(length));
  if ((*key & 7) == 1) field.value = get_little_endian<std::uint64_t>(field.bytes);
  if ((*key & 7) == 5) field.value = get_little_endian<std::uint32_t>(field.bytes);
  return field;
}

}  // namespace detail

/// CRC-32C (Castagnoli), as in RFC 3720: crc32c("123456789") = 0xE3069283.
inline std::uint32_t crc32c(std::string_view bytes) {
  std::uint32_t c = 0xFFFFFFFFu;
  for (char const b : bytes) {
    c = detail::crc32c_table[(c ^ static_cast<unsigned char>(b)) & 0xFFu] ^ c >> 8;
  }
  return ~c;
}

/// The form in which event files hold a checksum, so that checksums of checksums stay telling.
inline std::uint32_t masked_crc32c(std::string_view bytes) {
  return std::rotr(crc32c(bytes), 15) + 0xA282EAD8u;
}

/// One record of an event file.
struct Event {
  /// Seconds since 1970.
  double wall_time = 0.0;
  index_t step = 0;
  /// Only in the first record of a file.
  std::string file_version;
  /// Tags and values; float in the file.
  Metrics scalars;
};

/// An event as the bytes of a record.
inline std::string encode_event(Event const& event) {
  std::string message(1, '\x09');
  detail::put_little_endian(message, std::bit_cast<std::uint64_t>(event.wall_time));
  if (event.step != 0) {
    message += '\x10';
    detail::put_varint(message, static_cast<std::uint64_t>(event.step));
  }
  if (!event.file_version.empty()) detail::put_bytes(message, '\x1A', event.file_version);
  if (!event.scalars.empty()) {
    std::string summary;
    for (auto const& [tag, value] : event.scalars) {
      std::string entry;
      detail::put_bytes(entry, '\x0A', tag);
      entry += '\x15';
      detail::put_little_endian(entry, std::bit_cast<std::uint32_t>(detail::to_float(value)));
      detail::put_bytes(summary, '\x0A', entry);
    }
    detail::put_bytes(message, '\x2A', summary);
  }
  std::string record;
  detail::put_little_endian(record, static_cast<std::uint64_t>(message.size()));
  detail::put_little_endian(record, masked_crc32c(record));
  record += message;
  detail::put_little_endian(record, masked_crc32c(message));
  return record;
}

/// Takes the next record off a file's bytes. Fields that are not scalars are passed over.
/// @param record if given, where to put the record as it lies in the file
/// @return nothing at the end, and where a record is cut off or fails its checksum
inline std::optional<Event> next_event(std::string_view& bytes,
                                       std::string_view* record = nullptr) {
  if (bytes.size() < 16) return std::nullopt;
  auto const length = detail::get_little_endian<std::uint64_t>(bytes);
  if (detail::get_little_endian<std::uint32_t>(bytes.substr(8)) !=
          masked_crc32c(bytes.substr(0, 8)) ||
      length > bytes.size() - 16) {
    return std::nullopt;
  }
  auto const size = static_cast<std::size_t>(length);
  std::string_view message = bytes.substr(12, size);
  if (detail::get_little_endian<std::uint32_t>(bytes.substr(12 + size)) != masked_crc32c(message)) {
    return std::nullopt;
  }
  if (record != nullptr) *record = bytes.substr(0, 16 + size);
  bytes.remove_prefix(16 + size);

  Event event;
  while (auto const field = detail::next_field(message)) {
    if (field->number == 1) event.wall_time = std::bit_cast<double>(field->value);
    if (field->number == 2) event.step = static_cast<index_t>(field->value);
    if (field->number == 3) event.file_version = field->bytes;
    if (field->number != 5) continue;
    std::string_view summary = field->bytes;
    while (auto const value = detail::next_field(summary)) {
      if (value->number != 1) continue;
      std::string_view entry = value->bytes;
      std::string tag;
      std::optional<float> number;
      while (auto const part = detail::next_field(entry)) {
        if (part->number == 1) tag = part->bytes;
        if (part->number == 2) {
          number = std::bit_cast<float>(static_cast<std::uint32_t>(part->value));
        }
      }
      if (number) event.scalars.emplace_back(tag, static_cast<double>(*number));
    }
  }
  return event;
}

/// All events of a file, up to its end or to a record that was cut off.
/// @throws IoError naming the file if it cannot be read
inline std::vector<Event> read_event_file(std::filesystem::path const& path) {
  std::string const text = io::read_file(path);
  std::string_view bytes = text;
  std::vector<Event> events;
  while (auto event = next_event(bytes)) events.push_back(std::move(*event));
  return events;
}

/// Seconds since 1970 by the system's clock.
inline double wall_time_now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

/// A new event file in a folder, named events.out.tfevents.<time>.<host>.<pid>; a number is added
/// where the name is taken.
class EventFile {
 public:
  /// @throws IoError naming the file if it cannot be made
  explicit EventFile(std::filesystem::path const& folder, double wall_time = wall_time_now())
      : file_(make(folder, wall_time)) {
    file_.append(encode_event({wall_time, 0, "brain.Event:2", {}}));
  }

  std::filesystem::path const& path() const { return file_.path(); }

  /// Appends one event. @throws IoError naming the file, which then ends before the event
  void write(index_t step, Metrics const& scalars, double wall_time = wall_time_now()) {
    file_.append(encode_event({wall_time, step, {}, scalars}));
  }

  /// Flushes to the disk. @throws IoError naming the file
  void sync() { file_.sync(); }

 private:
  static detail::AppendFile make(std::filesystem::path const& folder, double wall_time) {
    char host[256] = "localhost";
    if (::gethostname(host, sizeof host - 1) != 0 || host[0] == '\0') {
      std::strcpy(host, "localhost");
    }
    std::string name = "events.out.tfevents." + std::to_string(static_cast<long long>(wall_time)) +
                       "." + host + "." + std::to_string(::getpid());
    std::replace(name.begin(), name.end(), '/', '_');
    std::filesystem::path path = folder / name;
    std::error_code ignored;
    for (int n = 1; std::filesystem::exists(path, ignored); ++n) {
      path = folder / (name + "." + std::to_string(n));
    }
    return {path, detail::AppendFile::Mode::must_be_new};
  }

  detail::AppendFile file_;
};

}  // namespace emprl::train
