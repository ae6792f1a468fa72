// SPDX-License-Identifier: Apache-2.0
#pragma once

// JSON lines in and out of the commands that work line by line; "-" is standard input or output.

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "commands.hpp"
#include "emprl/io/json_lines.hpp"

namespace emprl::program {

/// A text of the input, and what messages call it.
struct InputText {
  std::string bytes;
  std::string name;
};

/// All of a file, or of standard input, which cannot be read a second time, for "-".
/// @throws ConfigError naming the option if the file is not there; IoError if it cannot be read
InputText read_input(fs::path const& path, std::string const& option);

/// An object of the input, and "file:line" where it stood.
struct InputLine {
  io::Json value;
  std::string where;
};

/// All lines of a file.
/// @param holds what each line should hold, for the message about a file without lines
/// @throws ConfigError naming the option if the file is not there; IoError naming file:line for
/// what cannot be read, and
///         for a file without lines
std::vector<InputLine> read_lines(fs::path const& path, std::string const& option,
                                  std::string const& holds = "a \"context\"");

/// A field that must be there and hold more than blanks.
/// @throws IoError naming file:line
std::string const& text_of(InputLine const& line, char const* field);

/// A file that appears whole at `commit`, or standard output, where every line shows at once.
class LineOutput {
 public:
  /// @throws IoError if the file cannot be made
  explicit LineOutput(fs::path const& path);
  void write(io::Json const& value);
  /// @throws IoError; the file that was there is then untouched
  void commit();

 private:
  std::optional<io::JsonLinesWriter> file_;
};

/// Writes and flushes. @throws IoError if nobody reads it, or the disk is full
void write_standard_output(std::string_view text);

/// One line on standard error: "emprl: warning: ...".
void warn(std::string const& sentence);

}  // namespace emprl::program
