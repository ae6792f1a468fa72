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
