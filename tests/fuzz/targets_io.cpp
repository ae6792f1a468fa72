// SPDX-License-Identifier: Apache-2.0

// Targets of io/ and data/: safetensors, JSON, JSON lines, and the two kinds of CSV.

#include <cstddef>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "emprl/data/empathetic_dialogues.hpp"
#include "emprl/data/mental_health.hpp"
#include "emprl/data/pairs.hpp"
#include "emprl/io/csv.hpp"
#include "emprl/io/json.hpp"
#include "emprl/io/json_lines.hpp"
#include "emprl/io/safetensors.hpp"
#include "emprl/io/utf8.hpp"
#include "fuzz/harness.hpp"

namespace emprl::fuzz {

namespace {

void safetensors(std::string_view bytes) {
  static ScratchFolder const scratch;
  auto const copy = scratch.path() / "copy.safetensors";
  MemoryFile const memory(bytes);
  std::map<std::string, std::string> metadata;
  std::map<std::string, std::vector<std::byte>> contents;
  std::vector<io::TensorToWrite> tensors;
  bool const read = accepted([&] {
    io::SafeTensorsFile const file(memory.path());
    metadata = file.metadata();
    for (auto const& name : file.names()) {
      io::TensorInfo const& info = file.info(name);
      require(info.begin <= info.end && info.end <= bytes.size(), "a tensor lies in its file");
      auto const& held = contents[name] = file.bytes(name);
      require(held.size() == info.end - info.begin, "a tensor has the bytes that it claims");
      require(held.empty() || std::memcmp(held.data(), bytes.data() + info.begin, held.size()) == 0,
              "a tensor's bytes are those of the file");
      std::vector<float> wide(static_cast<std::size_t>(info.size()));
      accepted([&] { file.copy_to(name, std::span<float>(wide), std::span(info.shape)); });
      tensors.push_back({name, info.dtype, info.shape, held});
    }
  });
  if (!read) return;
  io::write_safetensors(copy, tensors, metadata);
  io::SafeTensorsFile const again(copy);
  require(again.metadata() == metadata, "metadata comes back");
  require(again.names().size() == tensors.size(), "every tensor comes back");
  for (auto const& tensor : tensors) {
    require(again.bytes(tensor.name) == contents[tensor.name], "a tensor's bytes come back");
    require(again.info(tensor.name).shape == tensor.shape, "a tensor's shape comes back");
    require(again.info(tensor.name).dtype == tensor.dtype, "a tensor's type comes back");
  }
}

void json(std::string_view bytes) {
  io::Json strict;
  io::Json value;
  bool const taken = accepted([&] { value = io::parse_json(bytes, "input"); });
  bool const unique =
      accepted([&] { strict = io::parse_json(bytes, "input", io::DuplicateKeys::refuse); });
  require(taken || !unique, "what the strict reader takes, the other takes");
  if (!taken) return;
  require(io::is_valid_utf8(bytes), "JSON is UTF-8");
  require(bytes.find('\0') == std::string_view::npos, "nothing is passed over after a NUL");
  require(!unique || strict == value, "without duplicate keys both readers agree");
  require(io::json_depth(bytes) <= io::max_json_depth, "the depth is bounded");
  auto const line = io::to_json_line(value);
  require(line.find('\n') == std::string::npos, "a value is written as one line");
  require(io::parse_json(line, "again") == value, "a value comes back");
}

void json_lines(std::string_view bytes) {
  std::string written;
  std::vector<io::Json> values;
  bool const read = accepted([&] {
    io::JsonLinesReader reader(std::string(bytes), "input");
    for (io::JsonLine line; reader.next(line);) {
      written += io::to_json_line(line.value) + "\n";
      values.push_back(line.value);
    }
  });
  for (auto const& value : values) {
    data::Pair pair;
    if (!accepted([&] { pair = data::pair_from_json(value, "input:1"); })) continue;
    require(!io::is_blank(pair.context) && !io::is_blank(pair.response), "a pair has two texts");
    auto const again = data::pair_from_json(data::pair_to_json(pair), "again:1");
    require(again.context == pair.context && again.response == pair.response &&
                again.emotion == pair.emotion && again.id == pair.id && again.levels == pair.levels,
            "a pair comes back");
  }
  if (!read) return;
  io::JsonLinesReader again(written, "again");
  std::size_t count = 0;
  for (io::JsonLine line; again.next(line); ++count) {
    require(count < values.size() && line.value == values[count], "an object comes back");
  }
  require(count == values.size(), "every object comes back");
}

std::string quoted(std::string const& field) {
  std::string out = "\"";
  for (char const c : field) out += c == '"' ? "\"\"" : std::string(1, c);
  return out + "\"";
}

void quoted_csv(std::string_view bytes) {
  std::vector<std::vector<std::string>> records;
  bool const read = accepted([&] {
    io::QuotedCsvReader reader(std::string(bytes), "input");
    index_t last = 0;
    for (std::vector<std::string> row; reader.next(row);) {
      require(!row.empty(), "a record has a field");
      require(reader.line() > last, "records come line after line");
      last = reader.line();
      records.push_back(row);
    }
  });
  if (!read) return;
  std::string written;
  for (auto const& row : records) {
    for (std::size_t i = 0; i < row.size(); ++i) written += (i > 0 ? "," : "") + quoted(row[i]);
    written += "\r\n";
  }
  io::QuotedCsvReader again(written, "again");
  std::size_t count = 0;
  for (std::vector<std::string> row; again.next(row); ++count) {
    require(count < records.size() && row == records[count], "a record comes back");
  }
  require(count == records.size(), "every record comes back");
}

void mental_health(std::string_view bytes) {
  std::vector<data::Post> posts;
  bool const read = accepted([&] {
    io::QuotedCsvReader reader(std::string(bytes), "input");
    posts = data::parse_posts(reader, "input");
  });
  if (!read) return;
  std::string written = "sp_id,rp_id,seeker_post,response_post,level,rationales\n";
  for (auto const& post : posts) {
    require(post.level >= 0 && post.level < data::level_count, "a level is 0, 1 or 2");
    require(!io::is_blank(post.seeker) && !io::is_blank(post.response), "a post has its texts");
    written += quoted(post.seeker_id) + "," + quoted(post.response_id) + "," + quoted(post.seeker) +
               "," + quoted(post.response) + "," + std::to_string(post.level) + ",\n";
  }
  io::QuotedCsvReader reader(written, "again");
  auto const again = data::parse_posts(reader, "again");
  require(again.size() == posts.size(), "every post comes back");
  for (std::size_t i = 0; i < posts.size(); ++i) {
    require(again[i].seeker_id == posts[i].seeker_id &&
                again[i].response_id == posts[i].response_id &&
                again[i].seeker == posts[i].seeker && again[i].response == posts[i].response &&
                again[i].level == posts[i].level,
            "a post comes back");
  }
}

std::string with_comma_marks(std::string const& text) {
  std::string out;
  for (char const c : text) out += c == ',' ? "_comma_" : std::string(1, c);
  return out;
}

void empathetic_dialogues(std::string_view bytes) {
  data::Conversations read;
  if (!accepted([&] { read = data::parse_empathetic_dialogues(bytes, "input"); })) return;
  std::string written =
      "conv_id,utterance_idx,context,prompt,speaker_idx,utterance,selfeval,tags\n";
  for (auto const& conversation : read.conversations) {
    require(!conversation.turns.empty(), "a conversation has a turn");
    for (std::size_t i = 0; i < conversation.turns.size(); ++i) {
      require(!io::is_blank(conversation.turns[i]), "a turn is not blank");
      written += conversation.id + "," + std::to_string(i + 1) + "," + conversation.emotion + "," +
                 with_comma_marks(conversation.prompt) + ",0," +
                 with_comma_marks(conversation.turns[i]) + ",5|5|5,\n";
    }
  }
  for (auto const& pair : data::listener_pairs(read)) {
    require(!io::is_blank(pair.context) && !io::is_blank(pair.response), "a pair has two texts");
  }
  auto const again = data::parse_empathetic_dialogues(written, "again");
  require(again.warnings.empty(), "what was read is well formed");
  require(again.conversations.size() == read.conversations.size(), "every conversation comes back");
  for (std::size_t i = 0; i < read.conversations.size(); ++i) {
    require(again.conversations[i].id == read.conversations[i].id &&
                again.conversations[i].emotion == read.conversations[i].emotion &&
                again.conversations[i].prompt == read.conversations[i].prompt &&
                again.conversations[i].turns == read.conversations[i].turns,
            "a conversation comes back");
  }
}

}  // namespace

Targets io_targets() {
  return {{"safetensors", safetensors},     {"json", json},
          {"json_lines", json_lines},       {"quoted_csv", quoted_csv},
          {"mental_health", mental_health}, {"empathetic_dialogues", empathetic_dialogues}};
}

}  // namespace emprl::fuzz
