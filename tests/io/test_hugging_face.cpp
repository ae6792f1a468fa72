// SPDX-License-Identifier: Apache-2.0
#include "emprl/io/hugging_face.hpp"

#include "io/temporary_folder.hpp"
#include "support/catch.hpp"

using Catch::Matchers::ContainsSubstring;
using emprl::IoError;
using emprl::io::HuggingFaceFolder;
using emprl::test::message_of;
using emprl::test::TemporaryFolder;

TEST_CASE("hugging_face: a configuration keeps its unknown fields and their order",
          "[io][hugging_face][unit]") {
  TemporaryFolder const folder;
  HuggingFaceFolder const model{folder / "new/model"};
  emprl::io::Json const config{{"model_type", "t5"}, {"d_model", 64}, {"a_strange_field", nullptr}};
  emprl::io::write_config(model, config);
  CHECK(emprl::io::read_config(model).dump() == config.dump());
}

TEST_CASE("hugging_face: what is missing is named", "[io][hugging_face][bad_input]") {
  TemporaryFolder const folder;
  HuggingFaceFolder const model{folder.path()};
  CHECK_THAT(message_of<IoError>([&] { emprl::io::read_config(model); }),
             ContainsSubstring(folder.path().string()) && ContainsSubstring("no config.json"));
  CHECK_THAT(message_of<IoError>([&] { emprl::io::find_weights(model); }),
             ContainsSubstring("no model.safetensors."));
  CHECK_THAT(message_of<IoError>([&] { emprl::io::find_spiece_model(model); }),
             ContainsSubstring("no spiece.model."));
  folder.put("pytorch_model.bin", "x");
  CHECK_THAT(message_of<IoError>([&] { emprl::io::find_weights(model); }),
             ContainsSubstring("pickles are refused"));
  folder.put("model.safetensors", "x");
  CHECK(emprl::io::find_weights(model) == folder / "model.safetensors");
  folder.put("spiece.model", "x");
  CHECK(emprl::io::find_spiece_model(model) == folder / "spiece.model");

  HuggingFaceFolder const missing{folder / "nowhere"};
  CHECK_THAT(message_of<IoError>([&] { emprl::io::read_config(missing); }),
             ContainsSubstring("does not exist"));
  HuggingFaceFolder const file{folder / "spiece.model"};
  CHECK_THAT(message_of<IoError>([&] { emprl::io::read_config(file); }),
             ContainsSubstring("is a file"));
  CHECK_THROWS_AS(emprl::io::write_config(file, {{"a", 1}}), IoError);
}

TEST_CASE("hugging_face: pickles are refused with the command that converts them",
          "[io][hugging_face][bad_input]") {
  for (char const* const name : {"pytorch_model.bin", "pytorch_model.bin.index.json"}) {
    TemporaryFolder const folder;
    folder.put(name, "x");
    CHECK_THAT(
        message_of<IoError>([&] { emprl::io::find_weights(HuggingFaceFolder{folder.path()}); }),
        ContainsSubstring(name) && ContainsSubstring("pickles are refused") &&
            ContainsSubstring("examples/convert/convert.py --model " + folder.path().string()));
  }
}

TEST_CASE("hugging_face: a folder with tokenizer.json alone says where a spiece.model comes from",
          "[io][hugging_face][bad_input]") {
  TemporaryFolder const folder;
  folder.put("tokenizer.json", "{}");
  CHECK_THAT(
      message_of<IoError>([&] { emprl::io::find_spiece_model(HuggingFaceFolder{folder.path()}); }),
      ContainsSubstring("no spiece.model but a tokenizer.json") &&
          ContainsSubstring("copy the spiece.model") && ContainsSubstring("convert.py"));
}

TEST_CASE("hugging_face: the vocabulary of a tokenizer.json is read piece by piece",
          "[io][hugging_face][unit]") {
  TemporaryFolder const folder;
  auto const path =
      folder.put("tokenizer.json",
                 R"({"model": {"type": "Unigram", "vocab": [["<pad>", 0], ["▁a", -2.5]]},
          "added_tokens": [{"id": 7, "content": "<x>", "special": true}]})");
  emprl::io::FastTokenizer const tokenizer = emprl::io::read_fast_tokenizer(path);
  REQUIRE(tokenizer.pieces.size() == 2);
  CHECK(tokenizer.pieces[1].text == "▁a");
  CHECK(tokenizer.pieces[1].score == -2.5);
  CHECK(tokenizer.added.at(7) == "<x>");

  auto const refuses = [&](char const* text, char const* why) {
    CAPTURE(text);
    CHECK_THAT(message_of<IoError>(
                   [&] { emprl::io::read_fast_tokenizer(folder.put("tokenizer.json", text)); }),
               ContainsSubstring(path.string()) && ContainsSubstring(why));
  };
  refuses("[]", "object was expected");
  refuses("{}", "no \"model\"");
  refuses(R"({"model": {"type": "BPE", "vocab": {"a": 0}}})", "\"BPE\"");
  refuses(R"({"model": {"vocab": {"a": 0}}})", "no list \"vocab\"");
  refuses(R"({"model": {"vocab": [["a", 0], ["b"]]}})", "entry 1");
  refuses(R"({"model": {"vocab": [["a", "0"]]}})", "entry 0");
  refuses(R"({"model": {"vocab": []}, "added_tokens": {}})", "not a list");
  refuses(R"({"model": {"vocab": []}, "added_tokens": [{"id": "7", "content": "x"}]})",
          "\"added_tokens\"");
}
