// SPDX-License-Identifier: Apache-2.0

// Weights in several files with an index, as Hugging Face splits them.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "emprl/io/hugging_face.hpp"
#include "io/temporary_folder.hpp"
#include "support/catch.hpp"

namespace sharded_test {

using Catch::Matchers::ContainsSubstring;
using emprl::ConfigError;
using emprl::index_t;
using emprl::IoError;
using emprl::io::FolderWeights;
using emprl::io::HuggingFaceFolder;
using emprl::io::Json;
using emprl::io::tensor_to_write;
using emprl::io::TensorToWrite;
using emprl::test::message_of;
using emprl::test::slurp;
using emprl::test::TemporaryFolder;

/// Four tensors of 40, 24, 8 and 16 bytes.
struct Weights {
  std::vector<float> values = std::vector<float>(22);
  std::vector<TensorToWrite> tensors;

  explicit Weights(float first = 1.0F) {
    std::iota(values.begin(), values.end(), first);
    std::span<float const> const all(values);
    tensors = {tensor_to_write("d", {2, 5}, all.subspan(0, 10)),
               tensor_to_write("c", {6}, all.subspan(10, 6)),
               tensor_to_write("b", {2, 1}, all.subspan(16, 2)),
               tensor_to_write("a", {4}, all.subspan(18, 4))};
  }
  Weights(Weights const&) = delete;
  Weights& operator=(Weights const&) = delete;
};

void check_values(HuggingFaceFolder const& folder, Weights const& expected) {
  FolderWeights const read(folder);
  CHECK(read.names().size() == expected.tensors.size());
  CHECK(read.warnings().empty());
  for (TensorToWrite const& tensor : expected.tensors) {
    std::vector<float> out(tensor.bytes.size() / sizeof(float), -1.0F);
    read.copy_to(tensor.name, std::span(out), std::span<index_t const>(tensor.shape));
    CHECK(std::equal(tensor.bytes.begin(), tensor.bytes.end(),
                     std::as_bytes(std::span(out)).begin()));
  }
}

/// A folder with three shards, one of which a test then damages.
struct Damaged {
  TemporaryFolder folder;
  HuggingFaceFolder model{folder.path()};
  Weights weights;
  Json index;

  Damaged() {
    emprl::io::write_weights(model, weights.tensors, 40);
    index = Json::parse(slurp(model.index()));
  }
  void put_index() const { folder.put("model.safetensors.index.json", index.dump()); }
  std::string refusal() const {
    return message_of<IoError>([&] { FolderWeights const file(model); });
  }
  std::string refusal_of_index() const {
    put_index();
    std::string const message = refusal();
    CHECK_THAT(message, ContainsSubstring(model.index().string()));
    return message;
  }
};

std::string const first = "model-00001-of-00003.safetensors";
std::string const second = "model-00002-of-00003.safetensors";
std::string const third = "model-00003-of-00003.safetensors";

TEST_CASE("sharded: weights are split in their order, and a large tensor has a shard for itself",
          "[io][sharded][unit]") {
  TemporaryFolder const folder;
  HuggingFaceFolder const model{folder / "new/model"};
  Weights const weights;
  // 40 | 24 8 | 16: no shard has more than 32 bytes but for the tensor that alone has more.
  CHECK(emprl::io::write_weights(model, weights.tensors, 32) == 3);
  Json const index = Json::parse(slurp(model.index()));
  CHECK(index["metadata"]["total_size"] == 88);
  CHECK(index["weight_map"].size() == 4);
  CHECK(index["weight_map"]["d"] == first);
  CHECK(index["weight_map"]["c"] == second);
  CHECK(index["weight_map"]["b"] == second);
  CHECK(index["weight_map"]["a"] == third);
  CHECK_FALSE(std::filesystem::exists(model.weights()));
  CHECK(emprl::io::find_weights(model) == model.index());
  check_values(model, weights);

  FolderWeights const read(model);
  CHECK(read.path() == model.index());
  CHECK(read.contains("a"));
  CHECK_FALSE(read.contains("e"));
  CHECK(read.file_of("a").path() == model.path / third);
  CHECK(read.info("d").shape == std::vector<index_t>{2, 5});
  CHECK_THAT(message_of<IoError>([&] { read.info("e"); }),
             ContainsSubstring(model.index().string()) && ContainsSubstring("\"e\""));
}

TEST_CASE("sharded: a limit that all weights meet gives the one file", "[io][sharded][unit]") {
  TemporaryFolder const folder;
  HuggingFaceFolder const model{folder.path()};
  Weights const weights;
  CHECK(emprl::io::write_weights(model, weights.tensors, 88) == 1);
  CHECK(folder.entries() == 1);
  check_values(model, weights);
  CHECK(emprl::io::write_weights(model, weights.tensors, 87) == 2);
  CHECK_THROWS_AS(emprl::io::write_weights(model, weights.tensors, 0), ConfigError);
}

TEST_CASE("sharded: two tensors of one name are refused, in whatever shards they would lie",
          "[io][sharded][bad_input]") {
  TemporaryFolder const folder;
  Weights weights;
  weights.tensors[3].name = "d";
  CHECK_THROWS_AS(emprl::io::write_weights({folder.path()}, weights.tensors, 40),
                  emprl::ShapeError);
  CHECK(folder.entries() == 0);
}

TEST_CASE("sharded: new weights replace old ones in whatever files those were",
          "[io][sharded][unit]") {
  TemporaryFolder const folder;
  HuggingFaceFolder const model{folder.path()};
  folder.put("config.json", "{}");
  Weights const old(1.0F);
  Weights const fresh(100.0F);
  std::uint64_t const limits[] = {16, 32, 40, 64, emprl::io::one_file};
  for (std::uint64_t const before : limits) {
    for (std::uint64_t const after : limits) {
      CAPTURE(before, after);
      emprl::io::write_weights(model, old.tensors, before);
      std::size_t const files = emprl::io::write_weights(model, fresh.tensors, after);
      check_values(model, fresh);
      // The configuration, the new files and, of several, their index; nothing of the old ones.
      CHECK(folder.entries() == static_cast<std::ptrdiff_t>(files == 1 ? 2 : files + 2));
    }
  }
}

TEST_CASE("sharded: a full disk leaves the old weights and no temporary file",
          "[io][sharded][bad_input]") {
  TemporaryFolder const folder;
  HuggingFaceFolder const model{folder.path()};
  Weights const old(1.0F);
  std::vector<float> const many(5000, 2.0F);
  std::span<float const> const all(many);
  std::vector<TensorToWrite> const large{tensor_to_write("a", {10}, all.first(10)),
                                         tensor_to_write("b", {4990}, all.subspan(10))};
  for (std::uint64_t const before : {std::uint64_t{40}, emprl::io::one_file}) {
    emprl::io::write_weights(model, old.tensors, before);
    auto const entries = folder.entries();
    for (std::uint64_t const after : {std::uint64_t{40}, emprl::io::one_file}) {
      CAPTURE(before, after);
      std::string message;
      {
        emprl::test::FullDisk const full(4096);
        message = message_of<IoError>([&] { emprl::io::write_weights(model, large, after); });
      }
      CHECK_THAT(message, ContainsSubstring("cannot write " + folder.path().string()));
      CHECK(folder.entries() == entries);
      check_values(model, old);
    }
  }
}

TEST_CASE("sharded: one file counts where an index is beside it, and that is said",
          "[io][sharded][unit]") {
  TemporaryFolder const folder;
  HuggingFaceFolder const model{folder.path()};
  Weights const split(1.0F);
  Weights const whole(50.0F);
  emprl::io::write_weights(model, split.tensors, 40);
  emprl::io::write_safetensors(model.weights(), whole.tensors);
  FolderWeights const read(model);
  CHECK(read.path() == model.weights());
  REQUIRE(read.warnings().size() == 1);
  CHECK_THAT(read.warnings()[0], ContainsSubstring("model.safetensors.index.json is not read"));
  std::vector<float> d(10);
  read.copy_to("d", std::span(d), std::vector<index_t>{2, 5});
  CHECK(d[0] == 50.0F);
}

TEST_CASE("sharded: a missing shard is named, with a tensor that it should have",
          "[io][sharded][bad_input]") {
  Damaged const damaged;
  std::filesystem::remove(damaged.model.path / second);
  CHECK_THAT(damaged.refusal(), ContainsSubstring((damaged.model.path / second).string()) &&
                                    ContainsSubstring("is missing") && ContainsSubstring("\"b\""));
}

TEST_CASE("sharded: a tensor that its shard does not have is named with both files",
          "[io][sharded][bad_input]") {
  Damaged damaged;
  damaged.index["weight_map"]["ghost"] = second;
  CHECK_THAT(damaged.refusal_of_index(),
             ContainsSubstring((damaged.model.path / second).string()) &&
                 ContainsSubstring("has no tensor \"ghost\""));
}

TEST_CASE("sharded: a tensor in another shard than the index says is named",
          "[io][sharded][bad_input]") {
  Damaged damaged;
  damaged.index["weight_map"]["a"] = first;
  damaged.index["weight_map"]["b"] = third;
  CHECK_THAT(damaged.refusal_of_index(),
             ContainsSubstring("\"a\"") &&
                 ContainsSubstring((damaged.model.path / third).string()) &&
                 ContainsSubstring("says that it lies in " + first));
}

TEST_CASE("sharded: a tensor in two shards is named with both", "[io][sharded][bad_input]") {
  Damaged const damaged;
  std::vector<TensorToWrite> const twice{damaged.weights.tensors[3], damaged.weights.tensors[0]};
  emprl::io::write_safetensors(damaged.model.path / third, twice);
  CHECK_THAT(damaged.refusal(), ContainsSubstring("\"d\" lies in two files") &&
                                    ContainsSubstring((damaged.model.path / first).string()) &&
                                    ContainsSubstring((damaged.model.path / third).string()));
}

TEST_CASE("sharded: a tensor that the index does not list is named", "[io][sharded][bad_input]") {
  Damaged damaged;
  damaged.index["weight_map"].erase("c");
  CHECK_THAT(damaged.refusal_of_index(),
             ContainsSubstring((damaged.model.path / second).string()) &&
                 ContainsSubstring("\"c\"") && ContainsSubstring("does not list"));
}

TEST_CASE("sharded: a damaged shard is named", "[io][sharded][bad_input]") {
  Damaged const damaged;
  std::string const bytes = slurp(damaged.model.path / second);
  damaged.folder.put(second, bytes.substr(0, bytes.size() - 1));
  CHECK_THAT(damaged.refusal(), ContainsSubstring((damaged.model.path / second).string()) &&
                                    ContainsSubstring("truncated"));
}

TEST_CASE("sharded: an index cannot reach out of its folder", "[io][sharded][bad_input]") {
  Damaged damaged;
  Weights const elsewhere;
  std::filesystem::create_directories(damaged.folder / "below");
  emprl::io::write_safetensors(damaged.folder / "below/a.safetensors", elsewhere.tensors);
  for (std::string const name :
       {"../a.safetensors", "/tmp/a.safetensors", "below/a.safetensors", "..\\a.safetensors", "",
        "config.json", "..", "a.safetensors/", "pytorch_model-00001-of-00002.bin"}) {
    CAPTURE(name);
    damaged.index["weight_map"]["a"] = name;
    CHECK_THAT(damaged.refusal_of_index(),
               ContainsSubstring("tensor \"a\"") && ContainsSubstring("same folder"));
  }
}

TEST_CASE("sharded: an index that is none is refused", "[io][sharded][bad_input]") {
  Damaged damaged;
  auto const refuses = [&](std::string const& text, std::string const& why) {
    CAPTURE(text);
    damaged.folder.put("model.safetensors.index.json", text);
    CHECK_THAT(damaged.refusal(),
               ContainsSubstring(damaged.model.index().string()) && ContainsSubstring(why));
  };
  refuses("[]", "object was expected");
  refuses("{", "not valid JSON");
  refuses("{}", "no \"weight_map\"");
  refuses(R"({"weight_map": {}})", "no \"weight_map\"");
  refuses(R"({"weight_map": ["a"]})", "no \"weight_map\"");
  refuses(R"({"weight_map": {"a": 1}})", "not a text");
  refuses(R"({"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}})", "twice");
  refuses(R"({"weight_map": {"a": "x.safetensors"}, "metadata": 3})", "\"metadata\"");
  refuses(R"({"weight_map": {"a": "x.safetensors"}, "metadata": {"total_size": "88"}})",
          "\"total_size\"");
  refuses(R"({"weight_map": {"a": "x.safetensors"}, "metadata": {"total_size": -1}})",
          "\"total_size\"");
}

TEST_CASE("sharded: a size that is wrong in the index is said, and a missing one is not",
          "[io][sharded][unit]") {
  Damaged damaged;
  damaged.index["metadata"]["total_size"] = 87;
  damaged.put_index();
  REQUIRE(FolderWeights(damaged.model).warnings().size() == 1);
  CHECK_THAT(FolderWeights(damaged.model).warnings()[0],
             ContainsSubstring("87 bytes") && ContainsSubstring("there are 88"));
  damaged.index["metadata"]["total_size"] = 88.0;
  damaged.put_index();
  CHECK(FolderWeights(damaged.model).warnings().empty());
  damaged.index.erase("metadata");
  damaged.put_index();
  CHECK(FolderWeights(damaged.model).warnings().empty());
}

TEST_CASE("sharded: tensors are the same if type, shape and every byte are, across files too",
          "[io][sharded][unit]") {
  TemporaryFolder const folder;
  HuggingFaceFolder const model{folder.path()};
  // Longer than the pieces in which they are compared.
  std::vector<float> const values(300'001, 0.5F);
  std::vector<float> other = values;
  other.back() = 0.25F;
  std::vector<std::int32_t> const whole(values.size());
  index_t const n = static_cast<index_t>(values.size());
  std::vector<TensorToWrite> const tensors{
      tensor_to_write("a", {n}, std::span(values)),
      tensor_to_write("same", {n}, std::span(values)),
      tensor_to_write("last", {n}, std::span<float const>(other)),
      tensor_to_write("shape", {n, 1}, std::span(values)),
      tensor_to_write("type", {n}, std::span(whole)),
      tensor_to_write("empty", {0}, std::span<float const>()),
      tensor_to_write("empty too", {0}, std::span<float const>())};
  emprl::io::write_weights(model, tensors, 1);
  FolderWeights const read(model);
  CHECK(read.same_contents("a", "a"));
  CHECK(read.same_contents("a", "same"));
  CHECK_FALSE(read.same_contents("a", "last"));
  CHECK_FALSE(read.same_contents("a", "shape"));
  CHECK_FALSE(read.same_contents("a", "type"));
  CHECK(read.same_contents("empty", "empty too"));
  CHECK_THROWS_AS(read.same_contents("a", "b"), IoError);
}

}  // namespace sharded_test
