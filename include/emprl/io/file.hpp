// SPDX-License-Identifier: Apache-2.0
#pragma once

// Whole files, in and out. Every failure is an IoError whose sentence names the path and what the
// system said.
//
// Writing is atomic: the bytes go to a temporary name in the same folder, are flushed to the disk,
// and take the final name by rename(2). Whoever reads sees the old file or the new one, never a
// part; when anything fails (a full disk, a file size limit) the temporary file is removed and the
// old one is as it was. A program that may meet RLIMIT_FSIZE must ignore SIGXFSZ, so that write(2)
// reports the limit instead of the process being killed.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "emprl/core/error.hpp"

namespace emprl::io {

namespace detail {

inline std::string system_message(int error) {
  return std::generic_category().message(error);
}

[[noreturn]] inline void fail(std::string const& what, std::filesystem::path const& path,
                              int error) {
  throw IoError("cannot " + what + " " + path.string() + ": " + system_message(error) + ".");
}

/// A POSIX file descriptor, closed on destruction.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    if (this != &other) {
      close();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  ~Descriptor() { close(); }

  int get() const { return fd_; }

  /// Closes now. @return 0, or the error that close(2) reported (a late write error on a network
  /// file system)
  int close() noexcept {
    if (fd_ < 0) return 0;
    return ::close(std::exchange(fd_, -1)) == 0 ? 0 : errno;
  }

 private:
  int fd_ = -1;
};

inline void write_all(int fd, std::span<std::byte const> bytes, std::filesystem::path const& path) {
  while (!bytes.empty()) {
    ssize_t const n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("write", path, errno);
    if (n == 0) fail("write", path, ENOSPC);
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
}

/// Flushes a folder's entries, so that a rename survives a power cut. Some file systems refuse;
/// that harms nothing here.
inline void sync_directory(std::filesystem::path const& directory) {
  Descriptor const fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.get() >= 0) static_cast<void>(::fsync(fd.get()));
}

inline std::filesystem::path parent_of(std::filesystem::path const& path) {
  return path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
}

}  // namespace detail

/// The bytes of a text.
inline std::span<std::byte const> bytes_of(std::string_view text) {
  return std::as_bytes(std::span<char const>(text.data(), text.size()));
}

/// A regular file open for reading at any place. It never maps the file: one that shrinks while it
/// is being read is an error, not a signal. Nor would a map be faster or smaller for weights: they
/// are trained, and lie in memory in an order of the model's, so that their bytes must be copied
/// out of the map, whose pages then count beside the copy. `read_at` puts them in their place at
/// once.
class InputFile {
 public:
  /// @throws IoError if the path is missing, is a folder, or may not be read
  explicit InputFile(std::filesystem::path path)
      : path_(std::move(path)), fd_(::open(path_.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (fd_.get() < 0) detail::fail("read", path_, errno);
    struct stat status {};
    if (::fstat(fd_.get(), &status) != 0) detail::fail("read", path_, errno);
    if (S_ISDIR(status.st_mode)) detail::fail("read", path_, EISDIR);
    regular_ = S_ISREG(status.st_mode);
    size_ = static_cast<std::uint64_t>(status.st_size);
  }

  std::filesystem::path const& path() const { return path_; }
  /// Bytes in the file when it was opened; 0 for a pipe or a terminal.
  std::uint64_t size() const { return size_; }
  bool is_regular() const { return regular_; }

  /// Fills `out` from `offset`.
  /// @throws IoError if the file ends before that
  void read_at(std::uint64_t offset, std::span<std::byte> out) const {
    while (!out.empty()) {
      ssize_t const n = ::pread(fd_.get(), out.data(), out.size(), static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) detail::fail("read", path_, errno);
      if (n == 0) {
        throw IoError("cannot read " + path_.string() + ": the file ended at byte " +
                      std::to_string(offset) + ", before what was expected there.");
      }
      offset += static_cast<std::uint64_t>(n);
      out = out.subspan(static_cast<std::size_t>(n));
    }
  }

  /// All that is left to read, from the start of the file; works for pipes too.
  std::string read_all() const {
    std::string text;
    text.reserve(static_cast<std::size_t>(size_));
    char block[1 << 16];
    for (;;) {
      ssize_t const n = ::read(fd_.get(), block, sizeof block);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) detail::fail("read", path_, errno);
      if (n == 0) return text;
      text.append(block, static_cast<std::size_t>(n));
    }
  }

 private:
  std::filesystem::path path_;
  detail::Descriptor fd_;
  std::uint64_t size_ = 0;
  bool regular_ = false;
};

/// The whole of a file, as bytes.
/// @throws IoError naming the path
inline std::string read_file(std::filesystem::path const& path) {
  return InputFile(path).read_all();
}

/// A file being written under a temporary name; `commit` gives it its own. Without `commit` nothing
/// remains. A path that is there and is not a regular file (a terminal, a pipe, /dev/full) is
/// written to directly.
class AtomicFile {
 public:
  /// @throws IoError if the folder is not there or may not be written
  explicit AtomicFile(std::filesystem::path path) : path_(std::move(path)) {
    std::error_code ignored;
    std::filesystem::path place = path_;
    if (std::filesystem::is_symlink(place, ignored)) {
      // A link stays a link: what it points to is replaced.
      auto const target = std::filesystem::weakly_canonical(place, ignored);
      if (!ignored && !target.empty()) place = target;
    }
    struct stat status {};
    bool const there = ::stat(place.c_str(), &status) == 0;
    if (there && S_ISDIR(status.st_mode)) detail::fail("write", path_, EISDIR);
    if (there && !S_ISREG(status.st_mode)) {
      fd_ = detail::Descriptor(::open(place.c_str(), O_WRONLY | O_CLOEXEC));
      if (fd_.get() < 0) detail::fail("write", path_, errno);
      return;
    }
    final_ = place;
    for (int attempt = 0;; ++attempt) {
      temporary_ = place;
      temporary_ += ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(attempt);
      fd_ = detail::Descriptor(
          ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
      if (fd_.get() >= 0) break;
      int const error = errno;
      if (error == EEXIST && attempt < 1000) continue;
      temporary_.clear();
      detail::fail("write", path_, error);
    }
    if (there) static_cast<void>(::fchmod(fd_.get(), status.st_mode & 07777));
  }

  AtomicFile(AtomicFile const&) = delete;
  AtomicFile& operator=(AtomicFile const&) = delete;
  ~AtomicFile() {
    if (!temporary_.empty()) static_cast<void>(::unlink(temporary_.c_str()));
  }

  /// Appends. @throws IoError naming the final path, on a full disk for one
  void write(std::span<std::byte const> bytes) { detail::write_all(fd_.get(), bytes, path_); }
  /// Appends text.
  void write(std::string_view text) { write(bytes_of(text)); }

  /// Flushes what was written to the disk, still under the temporary name: of several files that
  /// belong together, all are flushed before the first is committed.
  /// @throws IoError; the old file is then untouched
  void flush() {
    if (!final_.empty() && ::fsync(fd_.get()) != 0) detail::fail("write", path_, errno);
  }

  /// Flushes to the disk and renames. @throws IoError; the old file is then untouched
  void commit() {
    flush();
    if (final_.empty()) {
      if (int const error = fd_.close()) detail::fail("write", path_, error);
      return;
    }
    if (int const error = fd_.close()) detail::fail("write", path_, error);
    if (::rename(temporary_.c_str(), final_.c_str()) != 0) detail::fail("write", path_, errno);
    temporary_.clear();
    detail::sync_directory(detail::parent_of(final_));
  }

 private:
  std::filesystem::path path_;
  std::filesystem::path final_;
  std::filesystem::path temporary_;
  detail::Descriptor fd_;
};

/// Replaces a file's contents, or makes it, all or nothing.
/// @throws IoError naming the path
inline void write_file_atomically(std::filesystem::path const& path,
                                  std::span<std::byte const> bytes) {
  AtomicFile file(path);
  file.write(bytes);
  file.commit();
}

/// Replaces a text file's contents, or makes it, all or nothing.
inline void write_file_atomically(std::filesystem::path const& path, std::string_view text) {
  write_file_atomically(path, bytes_of(text));
}

/// Makes a folder and those above it, unless it is there.
/// @throws IoError naming the part of the path that is in the way, such as a regular file
inline void ensure_directory(std::filesystem::path const& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) return;
  std::filesystem::path upward;
  for (auto const& part : path) {
    upward /= part;
    auto const status = std::filesystem::status(upward, error);
    if (std::filesystem::exists(status) && !std::filesystem::is_directory(status)) {
      throw IoError("cannot make the folder " + path.string() + ": " + upward.string() +
                    " is a file, not a folder.");
    }
  }
  std::filesystem::create_directories(path, error);
  if (error || !std::filesystem::is_directory(path, error)) {
    throw IoError("cannot make the folder " + path.string() + ": " + error.message() + ".");
  }
}

}  // namespace emprl::io
