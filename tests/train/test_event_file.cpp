// SPDX-License-Identifier: Apache-2.0
#include "emprl/train/event_file.hpp"

#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <string>
#include <string_view>

#include "io/temporary_folder.hpp"
#include "support/catch.hpp"

namespace {

using namespace emprl;
using train::Event;

/// The checksum from its definition: division by the polynomial, bit by bit.
std::uint32_t crc32c_by_bits(std::string_view bytes) {
  std::uint32_t c = ~0u;
  for (char const b : bytes) {
    for (unsigned i = 0; i < 8; ++i) {
      bool const carry = ((c ^ (static_cast<unsigned char>(b) >> i)) & 1u) != 0;
      c = (c >> 1) ^ (carry ? 0x82F63B78u : 0u);
    }
  }
  return ~c;
}

std::string four_bytes(std::uint32_t x) {
  std::string bytes(4, '\0');
  std::memcpy(bytes.data(), &x, 4);
  return bytes;
}

std::uint32_t mask(std::uint32_t c) {
  return ((c >> 15) | (c << 17)) + 0xa282ead8u;
}

}  // namespace

TEST_CASE("event_file: crc32c gives the values of RFC 3720", "[train][event_file][unit]") {
  CHECK(train::crc32c("123456789") == 0xE3069283u);
  CHECK(train::crc32c("") == 0u);
  CHECK(train::crc32c(std::string(32, '\0')) == 0x8A9136AAu);
  CHECK(train::crc32c(std::string(32, '\xFF')) == 0x62A8AB43u);
}

TEST_CASE("event_file: a record is, byte for byte, what the formats say",
          "[train][event_file][unit]") {
  // 1.5 = 3FF8000000000000 and 0.5f = 3F000000, both from the low byte up; 300 = AC 02 as a varint.
  std::string const message(
      "\x09\x00\x00\x00\x00\x00\x00\xF8\x3F"
      "\x10\xAC\x02"
      "\x2A\x0C"
      "\x0A\x0A"
      "\x0A\x03"
      "a/b"
      "\x15\x00\x00\x00\x3F",
      26);
  std::string const length("\x1A\0\0\0\0\0\0\0", 8);
  std::string const expected = length + four_bytes(mask(crc32c_by_bits(length))) + message +
                               four_bytes(mask(crc32c_by_bits(message)));
  CHECK(train::encode_event({1.5, 300, {}, {{"a/b", 0.5}}}) == expected);
}

TEST_CASE("event_file: what is written is read back", "[train][event_file][unit]") {
  test::TemporaryFolder const folder;
  std::filesystem::path path;
  {
    train::EventFile file(folder.path(), 1700000000.25);
    path = file.path();
    file.write(0, {{"finetune/loss", 2.5}}, 1700000001.5);
    file.write(1'000'000'000'000, {{"align/kl", -0.125}, {"align/reward", 1e300}}, 1700000002.0);
    file.write(-1, {{std::string(300, 'x'), std::numeric_limits<double>::quiet_NaN()}}, 0.0);
    file.sync();
  }
  std::string const name = path.filename().string();
  CHECK(name.starts_with("events.out.tfevents.1700000000."));
  CHECK(name.ends_with("." + std::to_string(::getpid())));

  auto const events = train::read_event_file(path);
  REQUIRE(events.size() == 4);
  CHECK(events[0].file_version == "brain.Event:2");
  CHECK(events[0].wall_time == 1700000000.25);
  CHECK(events[1].step == 0);
  CHECK(events[1].scalars == train::Metrics{{"finetune/loss", 2.5}});
  CHECK(events[2].step == 1'000'000'000'000);
  CHECK(events[2].wall_time == 1700000002.0);
  CHECK(events[2].scalars ==
        train::Metrics{{"align/kl", -0.125},
                       {"align/reward", std::numeric_limits<double>::infinity()}});
  CHECK(events[3].step == -1);
  CHECK(events[3].scalars.at(0).first.size() == 300);
  CHECK(std::isnan(events[3].scalars.at(0).second));
}

TEST_CASE("event_file: reading stops where a record is cut off or damaged, and never goes astray",
          "[train][event_file][unit]") {
  std::string const first = train::encode_event({1.0, 1, {}, {{"a/x", 1.0}}});
  std::string const both = first + train::encode_event({2.0, 2, {}, {{"a/x", 2.0}}});
  auto const count = [](std::string_view bytes) {
    int n = 0;
    while (train::next_event(bytes)) ++n;
    return n;
  };
  for (std::size_t size = 0; size <= both.size(); ++size) {
    CHECK(count(std::string_view(both).substr(0, size)) == (size == both.size()    ? 2
                                                            : size >= first.size() ? 1
                                                                                   : 0));
  }
  for (std::size_t i = 0; i < both.size(); ++i) {
    std::string damaged = both;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x40);
    CHECK(count(damaged) == (i < first.size() ? 0 : 1));
  }
  // A message that passes its checksum and makes no sense.
  for (std::string const& message :
       {std::string("\x2A\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x01"), std::string(20, '\xFF'),
        std::string("\x09\x01"), std::string("\x2A\x02\x0A\x7F")}) {
    std::string record = std::string(1, static_cast<char>(message.size())) + std::string(7, '\0');
    record += four_bytes(train::masked_crc32c(record)) + message +
              four_bytes(train::masked_crc32c(message));
    std::string_view bytes = record;
    auto const event = train::next_event(bytes);
    REQUIRE(event);
    CHECK(event->scalars.empty());
  }
}

TEST_CASE("event_file: a name that is taken is not overwritten", "[train][event_file][unit]") {
  test::TemporaryFolder const folder;
  train::EventFile const first(folder.path(), 1700000000.0);
  train::EventFile const second(folder.path(), 1700000000.0);
  CHECK(first.path() != second.path());
  CHECK(folder.entries() == 2);
}

TEST_CASE("event_file: an event that does not fit on the disk is taken back",
          "[train][event_file][unit]") {
  test::TemporaryFolder const folder;
  train::EventFile file(folder.path(), 1.0);
  file.write(1, {{"a/x", 1.0}});
  auto const size = std::filesystem::file_size(file.path());
  {
    test::FullDisk const full(size + 5);
    CHECK_THROWS_AS(file.write(2, {{"a/x", 2.0}}), IoError);
  }
  CHECK(std::filesystem::file_size(file.path()) == size);
  file.write(3, {{"a/x", 3.0}});
  CHECK(train::read_event_file(file.path()).back().step == 3);
}
