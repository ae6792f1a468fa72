// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the fuzz targets share. A target reads bytes as one parser of the library would and holds
// this against it: it throws one of the library's errors or gives a valid object, and what was read
// and is written again reads equal. That it does not crash, hang, or take memory out of proportion
// to its input, the engine watches over (engine.cpp).

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "emprl/core/error.hpp"

namespace emprl::fuzz {

/// One parser under test.
struct Target {
  std::string_view name;
  void (*run)(std::string_view bytes);
  /// Bytes of memory that any input may take. Beyond these, so many for each byte of it.
  std::size_t fixed_memory = std::size_t{8} << 20;
  std::size_t memory_per_byte = 1024;
};

/// The targets of one file, targets_*.cpp.
using Targets = std::vector<Target>;

/// Ends the program, as every finding does, unless `ok`.
inline void require(bool ok, char const* sentence) {
  if (ok) return;
  static_cast<void>(std::fprintf(stderr, "emprl_fuzz: broken property: %s\n", sentence));
  std::abort();
}

/// Runs `parse`. @return whether it went through; false if it threw one of the library's errors,
/// with a sentence. Anything else that it throws ends the program.
template <class F>
bool accepted(F&& parse) {
  try {
    parse();
    return true;
  } catch (Error const& error) {
    require(std::string_view(error.what()).size() >= 10, "an error says what is wrong");
    return false;
  }
}

/// A file that is nowhere but in memory, for parsers that want a path.
class MemoryFile {
 public:
  explicit MemoryFile(std::string_view bytes)
      : descriptor_(::memfd_create("emprl-fuzz", MFD_CLOEXEC)) {
    if (descriptor_ < 0) throw std::runtime_error("memfd_create failed");
    for (std::size_t at = 0; at < bytes.size();) {
      auto const n = ::write(descriptor_, bytes.data() + at, bytes.size() - at);
      if (n <= 0) throw std::runtime_error("cannot write to memory");
      at += static_cast<std::size_t>(n);
    }
  }
  MemoryFile(MemoryFile const&) = delete;
  MemoryFile& operator=(MemoryFile const&) = delete;
  ~MemoryFile() { ::close(descriptor_); }

  static std::filesystem::path folder() { return "/proc/self/fd"; }
  std::string name() const { return std::to_string(descriptor_); }
  std::filesystem::path path() const { return folder() / name(); }

 private:
  int descriptor_;
};

/// A folder that goes when the program ends; in memory where the system has such a place.
class ScratchFolder {
 public:
  ScratchFolder() {
    std::error_code error;
    auto const base = std::filesystem::is_directory("/dev/shm", error)
                          ? std::filesystem::path("/dev/shm")
                          : std::filesystem::temp_directory_path();
    std::string pattern = (base / "emprl-fuzz-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    path_ = pattern;
  }
  ScratchFolder(ScratchFolder const&) = delete;
  ScratchFolder& operator=(ScratchFolder const&) = delete;
  ~ScratchFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  std::filesystem::path const& path() const { return path_; }

  /// Writes a file without the library's help.
  void put(std::string const& name, std::string_view bytes) const {
    std::ofstream out(path_ / name, std::ios::binary | std::ios::trunc);
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    if (!out.flush()) throw std::runtime_error("cannot write " + (path_ / name).string());
  }

 private:
  std::filesystem::path path_;
};

Targets folder_targets();
Targets io_targets();
Targets text_targets();
Targets train_targets();

}  // namespace emprl::fuzz
