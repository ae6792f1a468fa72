// SPDX-License-Identifier: Apache-2.0
#include "emprl/io/file.hpp"

#include <array>
#include <cstddef>
#include <filesystem>
#include <string>

#include "emprl/io/utf8.hpp"
#include "io/temporary_folder.hpp"
#include "support/catch.hpp"

using Catch::Matchers::ContainsSubstring;
using emprl::IoError;
using emprl::test::FullDisk;
using emprl::test::message_of;
using emprl::test::slurp;
using emprl::test::TemporaryFolder;

TEST_CASE("file: what is written is read back, byte for byte", "[io][file][unit]") {
  TemporaryFolder const folder;
  std::string bytes = "a\0b\r\n\xFF";
  bytes += std::string(200'000, 'x');
  emprl::io::write_file_atomically(folder / "f", bytes);
  CHECK(emprl::io::read_file(folder / "f") == bytes);
  emprl::io::write_file_atomically(folder / "f", std::string_view("short"));
  CHECK(slurp(folder / "f") == "short");
  CHECK(folder.entries() == 1);
}

TEST_CASE("file: a full disk is an IoError and leaves the old file and no other", "[io][file]") {
  TemporaryFolder const folder;
  auto const path = folder.put("f", "old");
  std::string message;
  {
    FullDisk const full(1000);
    message = message_of<IoError>(
        [&] { emprl::io::write_file_atomically(path, std::string(5000, 'x')); });
  }
  CHECK_THAT(message, ContainsSubstring("cannot write " + path.string()));
  CHECK(slurp(path) == "old");
  CHECK(folder.entries() == 1);
}

TEST_CASE("file: a device that is full is an IoError", "[io][file]") {
  if (!std::filesystem::exists("/dev/full")) return;
  CHECK_THROWS_AS(emprl::io::write_file_atomically("/dev/full", std::string_view("x")), IoError);
  CHECK(std::filesystem::is_character_file("/dev/full"));
}

TEST_CASE("file: a file that is never committed leaves nothing", "[io][file]") {
  TemporaryFolder const folder;
  {
    emprl::io::AtomicFile file(folder / "f");
    file.write("half");
  }
  CHECK(folder.entries() == 0);
}

TEST_CASE("file: writing through a link replaces what it points to", "[io][file]") {
  TemporaryFolder const folder;
  auto const real = folder.put("real", "old");
  std::filesystem::create_symlink(real, folder / "link");
  emprl::io::write_file_atomically(folder / "link", std::string_view("new"));
  CHECK(std::filesystem::is_symlink(folder / "link"));
  CHECK(slurp(real) == "new");
}

TEST_CASE("file: errors name the path", "[io][file]") {
  TemporaryFolder const folder;
  auto const regular = folder.put("regular", "x");
  CHECK_THAT(message_of<IoError>([&] { emprl::io::read_file(folder / "missing"); }),
             ContainsSubstring((folder / "missing").string()) && ContainsSubstring("No such file"));
  CHECK_THAT(message_of<IoError>([&] { emprl::io::read_file(folder.path()); }),
             ContainsSubstring("directory"));
  CHECK_THAT(message_of<IoError>([&] {
               emprl::io::write_file_atomically(folder / "no/such/f", std::string_view("x"));
             }),
             ContainsSubstring("no/such/f"));
  CHECK_THAT(message_of<IoError>(
                 [&] { emprl::io::write_file_atomically(folder.path(), std::string_view("x")); }),
             ContainsSubstring(folder.path().string()));
  std::string const under =
      message_of<IoError>([&] { emprl::io::ensure_directory(regular / "runs" / "one"); });
  CHECK_THAT(under, ContainsSubstring(regular.string() + " is a file, not a folder"));
  CHECK(slurp(regular) == "x");
  emprl::io::ensure_directory(folder / "a/b/c");
  CHECK(std::filesystem::is_directory(folder / "a/b/c"));
  CHECK_NOTHROW(emprl::io::ensure_directory(folder / "a/b/c"));
}

TEST_CASE("file: reading beyond the end is an IoError", "[io][file]") {
  TemporaryFolder const folder;
  emprl::io::InputFile const file(folder.put("f", "four"));
  std::array<std::byte, 3> out{};
  CHECK_NOTHROW(file.read_at(1, out));
  CHECK_THROWS_AS(file.read_at(2, out), IoError);
}

TEST_CASE("utf8: what RFC 3629 forbids is found where it starts", "[io][utf8][unit]") {
  using emprl::io::find_invalid_utf8;
  using emprl::io::is_valid_utf8;
  CHECK(is_valid_utf8(""));
  CHECK(is_valid_utf8("caf\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80 \xED\x9F\xBF \xEE\x80\x80"));
  CHECK(is_valid_utf8("\xF4\x8F\xBF\xBF"));
  CHECK(find_invalid_utf8("ab\xFF") == 2);
  CHECK(find_invalid_utf8("a\x80") == 1);
  CHECK(find_invalid_utf8("\xC0\x80") == 0);          // overlong
  CHECK(find_invalid_utf8("\xE0\x9F\xBF") == 0);      // overlong
  CHECK(find_invalid_utf8("\xED\xA0\x80") == 0);      // surrogate
  CHECK(find_invalid_utf8("\xF4\x90\x80\x80") == 0);  // above U+10FFFF
  CHECK(find_invalid_utf8("x\xE2\x82") == 1);         // cut short
}
