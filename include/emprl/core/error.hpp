// SPDX-License-Identifier: Apache-2.0
#pragma once

// Errors are exceptions that carry a sentence: what was expected, what was found, and where.

#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

namespace emprl {

/// The base of all that the library throws on purpose.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Extents of tensors that do not fit together: a mistake in the calling program.
class ShapeError : public Error {
 public:
  using Error::Error;
};

/// A setting that is out of range or contradicts another; the message names the setting.
class ConfigError : public Error {
 public:
  using Error::Error;
};

/// A file that cannot be read, written or understood; the message names the file and, where there
/// is one, the line.
class IoError : public Error {
 public:
  using Error::Error;
};

/// A CUDA call or kernel launch that failed; the message names the call and carries CUDA's own
/// words.
class CudaError : public Error {
 public:
  using Error::Error;
};

/// A line of source code. std::source_location would do, but clang 14 cannot compile libstdc++'s;
/// the builtins beneath it are common to g++, clang++ and nvcc.
struct SourceLocation {
  char const* file = "";
  int line = 0;
  static constexpr SourceLocation current(char const* file = __builtin_FILE(),
                                          int line = __builtin_LINE()) {
    return {file, line};
  }
};

/// Throws E unless `ok`. A ShapeError also says which line of which file asked, because its reader
/// is a programmer; the other kinds reach people who run programs and carry the sentence alone.
template <class E = ShapeError>
void expects(bool ok, std::string_view sentence, SourceLocation where = SourceLocation::current()) {
  if (ok) return;
  if constexpr (std::is_same_v<E, ShapeError>) {
    throw E(std::string(sentence) + " [" + where.file + ":" + std::to_string(where.line) + "]");
  } else {
    throw E(std::string(sentence));
  }
}

}  // namespace emprl
