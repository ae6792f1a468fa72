// SPDX-License-Identifier: Apache-2.0

// The program as scripts see it: exit status, one-line errors, files in and out.

#include "support/catch.hpp"

#ifndef EMPRL_PROGRAM

TEST_CASE("program: it was not built, so there is nothing to hold it to", "[program]") {
  SUCCEED();
}

#else

#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "emprl/io/file.hpp"
#include "emprl/io/json.hpp"
#include "emprl/io/json_lines.hpp"
#include "emprl/text/tokenizer.hpp"

namespace {

namespace fs = std::filesystem;
using Catch::Matchers::ContainsSubstring;
using emprl::io::Json;
using emprl::io::read_file;

struct Outcome {
  int status = -1;
  std::string out, err;
};

/// A folder of its own, with a tokenizer and a small model made by the program itself once.
class Workshop {
 public:
  Workshop()
      : folder_(fs::temp_directory_path() / ("emprl_program_" + std::to_string(::getpid()))) {
    fs::remove_all(folder_);
    fs::create_directories(folder_ / "data");
    std::string corpus;
    std::vector<std::string> const who{"my sister", "my dog", "an old friend", "the neighbour",
                                       "my boss"};
    std::vector<std::string> const what{"left town", "won a prize", "broke a leg", "forgot me",
                                        "sang for me"};
    std::vector<std::string> const reply{"I am sorry to hear that.", "How wonderful!",
                                         "What happened then?"};
    for (std::size_t i = 0; i < 60; ++i) {
      Json line{{"context", "Yesterday " + who[i % 5] + " " + what[i / 5 % 5] + ", it was day " +
                                std::to_string(i)},
                {"response", reply[i % 3] + " Tell me about " + who[i * 7 % 5] + "."}};
      corpus += line.dump() + "\n";
    }
    write("data/train.jsonl", corpus);
    write("config.json",
          R"({"model_type": "t5", "vocab_size": 256, "d_model": 16, "d_kv": 8, "d_ff": 32,
              "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2,
              "feed_forward_proj": "relu"})");
    write(
        "in.jsonl",
        "{\"n\": 1, \"context\": \"Yesterday my dog left town\", \"response\": \"How wonderful!\", "
        "\"tags\": [1, {\"a\": null}]}\n"
        "\n"
        "{\"context\": \"my sister forgot me\", \"response\": \"What happened then?\", \"zeta\": "
        "0.5, \"alpha\": \"x\"}\n"
        "{\"context\": \"caf\\u00e9 \\ud83d\\ude42 was closed\", \"response\": \"I am sorry.\"}\n");
    tokenizer = run("tokenizer --input data --out tok --vocabulary 250");
    model = run("init --config config.json --tokenizer tok --out model --seed 3");
  }
  ~Workshop() {
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
  }
  Workshop(Workshop const&) = delete;
  Workshop& operator=(Workshop const&) = delete;

  fs::path operator/(std::string const& name) const { return folder_ / name; }

  void write(std::string const& name, std::string const& bytes) const {
    fs::create_directories((folder_ / name).parent_path());
    emprl::io::write_file_atomically(folder_ / name, bytes);
  }

  /// Runs a shell command in the folder; "emprl" is the program.
  Outcome shell(std::string const& command) const {
    std::string const script = "cd '" + folder_.string() +
                               "' && emprl() { '" EMPRL_PROGRAM "' \"$@\"; }; { " + command +
                               "\n} >'" + (folder_ / ".out").string() + "' 2>'" +
                               (folder_ / ".err").string() + "' </dev/null";
    int const status = std::system(script.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status),
            read_file(folder_ / ".out"), read_file(folder_ / ".err")};
  }
  Outcome run(std::string const& arguments) const { return shell("emprl " + arguments); }

  /// Names and contents of all that lies in a part of the folder.
  std::map<std::string, std::string> contents(std::string const& part) const {
    std::map<std::string, std::string> all;
    for (auto const& entry : fs::recursive_directory_iterator(folder_ / part)) {
      all[entry.path().string()] =
          entry.is_regular_file() ? read_file(entry.path()) : std::string();
    }
    return all;
  }

  std::vector<Json> lines(std::string const& name) const {
    std::vector<Json> all;
    for (auto& line : emprl::io::read_json_lines(folder_ / name))
      all.push_back(std::move(line.value));
    return all;
  }

  Outcome tokenizer, model;

 private:
  fs::path folder_;
};

Workshop const& workshop() {
  static Workshop const instance;
  return instance;
}

/// Wrong usage and failures say one line, name what is wrong, and print nothing else.
void check_refused(Outcome const& outcome, int status, std::vector<std::string> const& names) {
  INFO("stdout: " << outcome.out << "\nstderr: " << outcome.err);
  CHECK(outcome.status == status);
  REQUIRE(!outcome.err.empty());
  // Progress and warnings come before; the error is the last line, and the only one of its kind.
  std::string const body = outcome.err.substr(0, outcome.err.size() - 1);
  std::size_t const start = body.rfind('\n');
  std::string const last = start == std::string::npos ? body : body.substr(start + 1);
  CHECK(outcome.err.back() == '\n');
  CHECK(last.starts_with("emprl: error: "));
  CHECK(outcome.err.find("emprl: error: ") == outcome.err.rfind("emprl: error: "));
  for (std::string const& name : names) CHECK_THAT(last, ContainsSubstring(name));
}

/// Annotated posts for `identify`, in the folder "posts".
void write_posts(Workshop const& w) {
  std::vector<std::string> const replies{"I am sorry to hear that.", "How wonderful!",
                                         "What happened then?"};
  std::string posts = "sp_id,rp_id,seeker_post,response_post,level,rationales\n";
  for (std::size_t i = 0; i < 30; ++i) {
    std::string const n = std::to_string(i);
    posts += "s" + n + ",r" + n + ",my dog left town on day " + n + "," + replies[i % 3] + "," +
             std::to_string(i % 3) + ",\n";
  }
  for (std::string const name : {"emotional-reactions", "interpretations", "explorations"}) {
    w.write("posts/" + name + "-reddit.csv", posts);
  }
}

/// A text and dialogues for `pretrain`: book.txt and talk.jsonl.
void write_running_text(Workshop const& w) {
  std::vector<std::string> const who{"my sister", "my dog", "an old friend", "the neighbour",
                                     "my boss"};
  std::string book, talk;
  for (std::size_t i = 0; i < 80; ++i) {
    book += "Yesterday " + who[i % 5] + " won a prize and " + who[i * 3 % 5] +
            " forgot me, it was day " + std::to_string(i) + "\n\n";
  }
  for (std::size_t i = 0; i < 40; ++i) {
    Json const line{{"turns", {"Tell me about " + who[i % 5] + ".", "How wonderful!"}}};
    talk += line.dump() + "\n";
  }
  w.write("book.txt", book);
  w.write("talk.jsonl", talk);
}

/// Runs a command and asks it to stop once its log has a step. A shell's children in the background
/// do not hear Ctrl-C; SIGTERM asks for the same.
Outcome stop(Workshop const& w, std::string const& arguments, std::string const& log) {
  return w.shell("'" EMPRL_PROGRAM "' " + arguments +
                 " & pid=$!\n"
                 "while kill -0 $pid 2>/dev/null && ! grep -q '\"step\":' " +
                 log +
                 " 2>/dev/null; do sleep 0.01; done\n"
                 "kill -TERM $pid 2>/dev/null\n"
                 "wait $pid");
}

std::string const generate = "generate --model model --input in.jsonl ";

}  // namespace

TEST_CASE("program: every command has a help of at most 80 columns with examples", "[program]") {
  auto const& w = workshop();
  std::vector<std::string> commands{"",         "run",      "tokenizer", "init",  "pretrain",
                                    "finetune", "identify", "label",     "align", "generate",
                                    "score",    "evaluate", "chat",      "merge"};
  for (std::string const& command : commands) {
    Outcome const outcome = w.run(command + " --help");
    INFO(command << "\n" << outcome.out << outcome.err);
    CHECK(outcome.status == 0);
    CHECK(outcome.err.empty());
    std::istringstream text(outcome.out);
    for (std::string line; std::getline(text, line);) {
      INFO(line);
      CHECK(line.size() <= 80);
    }
    if (command.empty()) continue;
    CHECK_THAT(outcome.out, ContainsSubstring("Example"));
    CHECK_THAT(outcome.out, ContainsSubstring("--seed"));
  }
  Outcome const version = w.run("--version");
  CHECK(version.status == 0);
  CHECK_THAT(version.out, ContainsSubstring("emprl 0."));
}

TEST_CASE("program: wrong usage is exit 2 and one line that names it", "[program]") {
  auto const& w = workshop();
  check_refused(w.run(""), 2, {"command"});
  check_refused(w.run("genrate --model model"), 2, {"genrate", "did you mean generate?"});
  check_refused(w.run("--frobnicate"), 2, {"--frobnicate"});
  check_refused(w.run(generate + "--output o --temprature 1"), 2,
                {"--temprature", "did you mean --temperature?"});
  check_refused(w.run(generate + "--output o --beams 0"), 2, {"--beams"});
  check_refused(w.run(generate + "--output o --beams 4 --early-stopping soon"), 2,
                {"--early-stopping", "soon"});
  check_refused(w.run(generate + "--output o --beams 4 --length-penalty nan"), 2,
                {"--length-penalty"});
  check_refused(w.run(generate + "--output o --repetition-penalty 0"), 2, {"--repetition-penalty"});
  check_refused(w.run(generate + "--output o --no-repeat-ngram -1"), 2, {"--no-repeat-ngram"});
  check_refused(w.run("generate --frobnicate"), 2, {"--frobnicate"});
  check_refused(w.run("generate --input in.jsonl --output o"), 2, {"--model"});
  check_refused(w.run(generate + "--output o --batch many"), 2, {"--batch"});
  check_refused(w.run(generate + "--output o --batch 0"), 2, {"--batch"});
#if defined(EMPRL_PROGRAM_CUDA)
  // With a GPU it is answered, without one it says what the driver says.
  auto const on_gpu = w.run(generate + "--output o --device cuda");
  if (on_gpu.status != 0) check_refused(on_gpu, 1, {"--device cuda: ", "cuda"});
#else
  check_refused(w.run(generate + "--output o --device cuda"), 2,
                {"--device", "no CUDA", "EMPRL_CUDA_PROGRAMS"});
#endif
  check_refused(w.run(generate + "--output o --device tpu"), 2, {"--device", "tpu"});
  check_refused(w.run(generate + "--output o --precision bf16"), 2, {"--precision bf16", "cuda"});
  check_refused(w.run(generate + "--output o --precision fp8"), 2, {"--precision", "fp8"});
  check_refused(w.run(generate + "--output o --temperature 0"), 2, {"--temperature"});
  check_refused(w.run(generate + "--output o --temperature nan"), 2, {"--temperature"});
  check_refused(w.run(generate + "--output o --top-p 1.5"), 2, {"--top-p"});
  check_refused(w.run(generate + "--output o extra"), 2, {"extra"});
  check_refused(w.run(generate + "--output o --seed"), 2, {"--seed"});
  check_refused(w.run("chat --model nowhere"), 2, {"--model", "nowhere"});
  check_refused(w.run("generate --model model --input nothing.jsonl --output o"), 2,
                {"nothing.jsonl"});
  check_refused(w.run("init --preset huge --tokenizer tok --out m2"), 2, {"huge"});
}

TEST_CASE("program: contradictory options are exit 2 and write nothing", "[program]") {
  auto const& w = workshop();
  check_refused(w.run(generate + "--output o --greedy --temperature 0.5"), 2,
                {"--greedy", "--temperature"});
  check_refused(w.run(generate + "--output o --greedy --top-k 5"), 2, {"--greedy", "--top-k"});
  check_refused(w.run(generate + "--output o --greedy --samples 3"), 2, {"--greedy", "--samples"});
  for (std::string const other :
       {"--greedy", "--temperature 0.5", "--top-k 5", "--top-p 0.5", "--samples 2"}) {
    check_refused(w.run(generate + "--output o --beams 3 " + other), 2,
                  {"--beams", other.substr(0, other.find(' '))});
  }
  for (std::string const of_beams : {"--length-penalty 2", "--early-stopping true", "--n-best 2"}) {
    check_refused(w.run(generate + "--output o " + of_beams), 2,
                  {"--beams", of_beams.substr(0, of_beams.find(' '))});
  }
  check_refused(w.run(generate + "--output o --beams 3 --n-best 4"), 2,
                {"--beams 3", "--n-best 4"});
  check_refused(w.run(generate + "--output o --min-tokens 9 --max-tokens 8"), 2,
                {"--min-tokens", "--max-tokens"});
  check_refused(w.run("init --preset tiny --config config.json --tokenizer tok --out m2"), 2,
                {"--preset", "--config"});
  check_refused(w.run("init --tokenizer tok --out m2"), 2, {"--preset", "--config"});
  check_refused(
      w.run("run --dialogues data --empathy-data data --preset tiny --precision bf16 --out o"), 2,
      {"--precision bf16", "--device cuda"});
  check_refused(w.run(generate + "--output o --greedy --length-penalty 2"), 2,
                {"--greedy", "--length-penalty"});
  CHECK(!fs::exists(w / "o"));
  CHECK(!fs::exists(w / "m2"));
}

TEST_CASE("program: tokenizer and init write folders that others can read", "[program]") {
  auto const& w = workshop();
  INFO(w.tokenizer.err << w.model.err);
  REQUIRE(w.tokenizer.status == 0);
  REQUIRE(w.model.status == 0);
  for (char const* file : {"tok/spiece.model", "tok/configuration.json", "tok/metrics.jsonl",
                           "model/config.json", "model/model.safetensors", "model/spiece.model",
                           "model/configuration.json", "model/metrics.jsonl"}) {
    CHECK(fs::exists(w / file));
  }
  CHECK(!fs::exists(w / "model/value_head.safetensors"));
  for (char const* file :
       {"generation_config.json", "tokenizer_config.json", "special_tokens_map.json"}) {
    CHECK(emprl::io::read_json_file(w / "model" / file).is_object());
  }

  // What --config says beyond the model stays.
  Json more = emprl::io::read_json_file(w / "config.json");
  more["task_specific_params"] = {{"prefix", "reply: "}};
  w.write("more.json", more.dump());
  CHECK(w.run("init --config more.json --tokenizer tok --out more").status == 0);
  CHECK(emprl::io::read_json_file(w / "more/config.json")["task_specific_params"] ==
        more["task_specific_params"]);

  Outcome const preset = w.run("init --preset tiny --tokenizer tok --out tiny --seed 1");
  INFO(preset.err);
  CHECK(preset.status == 0);
  Json const config = emprl::io::read_json_file(w / "tiny/config.json");
  Json const measured = w.lines("tok/metrics.jsonl").front();
  CHECK(config["vocab_size"].get<int>() >= measured["ids"].get<double>());
  CHECK(config["vocab_size"].get<int>() % 8 == 0);

  w.write("sentences.txt",
          "One sentence.\nAnother sentence, longer than that.\n\nAnd a third one here.\n");
  Outcome const text = w.run("tokenizer --input sentences.txt --out tok2 --vocabulary 4000");
  INFO(text.err);
  CHECK(text.status == 0);
  CHECK_THAT(text.out, ContainsSubstring("no more to give"));

  Json small = emprl::io::read_json_file(w / "config.json");
  small["vocab_size"] = 120;
  w.write("small.json", small.dump());
  check_refused(w.run("init --config small.json --tokenizer tok --out m3"), 2,
                {"120", "vocabulary"});
}

TEST_CASE("program: tokenizer encodes and decodes JSON lines", "[program]") {
  auto const& w = workshop();
  w.write("texts.jsonl",
          "{\"n\": 1, \"text\": \"my dog  left town\"}\n{\"text\": \"\"}\n"
          "{\"text\": \"my <extra_id_0> dog</s>\", \"more\": [1]}\n"
          "{\"text\": \"a\\u0000b \\ud83d\\ude42\"}\n");
  Outcome const encoded = w.run("tokenizer --model tok --encode texts.jsonl --output ids.jsonl");
  INFO(encoded.err);
  REQUIRE(encoded.status == 0);
  emprl::text::SentencePieceTokenizer const tokenizer(w / "tok/spiece.model");
  auto const texts = w.lines("texts.jsonl");
  auto const ids = w.lines("ids.jsonl");
  REQUIRE(ids.size() == texts.size());
  for (std::size_t i = 0; i < texts.size(); ++i) {
    Json expected = texts[i];
    expected["ids"] = tokenizer.encode(texts[i]["text"].get<std::string>());
    CHECK(ids[i] == expected);
  }
  Outcome const decoded = w.run("tokenizer --model tok/spiece.model --decode ids.jsonl");
  INFO(decoded.err);
  REQUIRE(decoded.status == 0);
  CHECK_THAT(decoded.out, ContainsSubstring("\"text\":\"my dog left town\""));
  CHECK_THAT(decoded.out, ContainsSubstring("\"text\":\"my <extra_id_0> dog"));

  REQUIRE(w.run("tokenizer --model tok --encode texts.jsonl --max-tokens 3 --output cut.jsonl")
              .status == 0);
  auto const cut = w.lines("cut.jsonl");
  CHECK(cut[0]["ids"].size() == 3);
  CHECK(cut[0]["ids"].back() == 1);
  CHECK(cut[1]["ids"] == Json::array({1}));

  check_refused(w.run("tokenizer --model tok"), 2, {"--encode", "--decode"});
  check_refused(w.run("tokenizer --encode texts.jsonl"), 2, {"--model"});
  check_refused(w.run("tokenizer --model tok --encode texts.jsonl --decode ids.jsonl"), 2,
                {"--encode", "--decode"});
  check_refused(w.run("tokenizer --model tok --decode ids.jsonl --max-tokens 3"), 2,
                {"--max-tokens"});
  check_refused(w.run("tokenizer --out t9"), 2, {"--input"});
  check_refused(w.run("tokenizer --input data"), 2, {"--out"});
  check_refused(w.run("tokenizer --model absent --encode texts.jsonl"), 2, {"--model", "absent"});
  check_refused(w.run("tokenizer --model tok --decode texts.jsonl"), 1, {"texts.jsonl:1", "ids"});
  check_refused(w.run("tokenizer --model tok --encode in.jsonl"), 1, {"in.jsonl:1", "text"});
  for (std::string const bad : {"-1", "2147483648", "1.5", "\"3\""}) {
    w.write("bad_ids.jsonl", "{\"ids\": [3]}\n{\"ids\": [3, " + bad + "]}\n");
    check_refused(w.run("tokenizer --model tok --decode bad_ids.jsonl --output absent.jsonl"), 1,
                  {"bad_ids.jsonl:2", bad});
    CHECK(!fs::exists(w / "absent.jsonl"));
  }
}

TEST_CASE("program: unknown fields pass through in order, and generated text is added",
          "[program]") {
  auto const& w = workshop();
  Outcome const outcome = w.run(generate + "--output out.jsonl");
  INFO(outcome.err);
  REQUIRE(outcome.status == 0);
  auto const in = w.lines("in.jsonl");
  auto const out = w.lines("out.jsonl");
  REQUIRE(out.size() == in.size());
  for (std::size_t i = 0; i < in.size(); ++i) {
    Json rest = out[i];
    REQUIRE(rest["generated"].is_string());
    rest.erase("generated");
    CHECK(rest.dump() == in[i].dump());
  }
}

TEST_CASE("program: greedy responses are the same twice, and sampled ones follow the seed",
          "[program]") {
  auto const& w = workshop();
  REQUIRE(w.run(generate + "--output a.jsonl --greedy").status == 0);
  REQUIRE(w.run(generate + "--output b.jsonl --greedy --seed 7 --batch 1").status == 0);
  CHECK(read_file(w / "a.jsonl") == read_file(w / "b.jsonl"));
  REQUIRE(w.run(generate + "--output c.jsonl --seed 1").status == 0);
  REQUIRE(w.run(generate + "--output d.jsonl --seed 1").status == 0);
  REQUIRE(w.run(generate + "--output e.jsonl --seed 2").status == 0);
  CHECK(read_file(w / "c.jsonl") == read_file(w / "d.jsonl"));
  CHECK(read_file(w / "c.jsonl") != read_file(w / "e.jsonl"));
}

TEST_CASE("program: neither --batch nor --samples changes a sampled response", "[program]") {
  auto const& w = workshop();
  REQUIRE(w.run(generate + "--output a.jsonl --samples 3").status == 0);
  REQUIRE(w.run(generate + "--output b.jsonl --samples 3 --batch 1").status == 0);
  REQUIRE(w.run(generate + "--output c.jsonl --batch 2").status == 0);
  CHECK(read_file(w / "a.jsonl") == read_file(w / "b.jsonl"));
  auto const lists = w.lines("a.jsonl");
  auto const single = w.lines("c.jsonl");
  for (std::size_t i = 0; i < lists.size(); ++i) {
    REQUIRE(lists[i]["generated"].size() == 3);
    CHECK(lists[i]["generated"][0] == single[i]["generated"]);
  }
  REQUIRE(w.run(generate + "--output d.jsonl --samples 1").status == 0);
  CHECK(w.lines("d.jsonl")[0]["generated"].is_array());
}

TEST_CASE("program: beams give the best responses in the order of their scores", "[program]") {
  auto const& w = workshop();
  std::string const search = generate + "--beams 4 --length-penalty 0.6 --no-repeat-ngram 2 ";
  REQUIRE(w.run(search + "--output best.jsonl").status == 0);
  Outcome const many = w.run(search + "--output n.jsonl --n-best 3 --details --batch 5");
  INFO(many.err);
  REQUIRE(many.status == 0);
  auto const best = w.lines("best.jsonl");
  auto const lists = w.lines("n.jsonl");
  for (std::size_t i = 0; i < best.size(); ++i) {
    REQUIRE(lists[i]["generated"].size() == 3);
    CHECK(lists[i]["generated"][0] == best[i]["generated"]);
    double last = 0;
    for (std::size_t k = 0; k < 3; ++k) {
      Json const& d = lists[i]["details"][k];
      double const score = d["score"].get<double>();
      CHECK((k == 0 || score <= last));
      last = score;
      double sum = 0;
      for (double const x : d["token_scores"]) sum += x;
      double const length = static_cast<double>(d["ids"].size());
      CHECK(score == Approx(sum / std::pow(length, 0.6)).epsilon(1e-9));
    }
  }
  // Width one is greedy, and the other settings reach the search.
  REQUIRE(w.run(generate + "--output one.jsonl --beams 1").status == 0);
  REQUIRE(w.run(generate + "--output greedy.jsonl --greedy").status == 0);
  CHECK(read_file(w / "one.jsonl") == read_file(w / "greedy.jsonl"));
  REQUIRE(w.run(search + "--output short.jsonl --max-tokens 4").status == 0);
  CHECK(read_file(w / "short.jsonl") != read_file(w / "best.jsonl"));
}

TEST_CASE("program: --details say what score says of the same tokens", "[program]") {
  auto const& w = workshop();
  REQUIRE(w.run(generate + "--output a.jsonl").status == 0);
  REQUIRE(w.run(generate + "--output b.jsonl --details --temperature 0.9").status == 0);
  REQUIRE(w.run(generate + "--output greedy.jsonl --details --greedy").status == 0);
  auto const plain = w.lines("a.jsonl");
  auto const detailed = w.lines("b.jsonl");
  for (std::size_t i = 0; i < plain.size(); ++i) {
    CHECK(plain[i]["generated"] == detailed[i]["generated"]);
    Json const& d = detailed[i]["details"];
    std::size_t const n = d["ids"].size();
    REQUIRE(n >= 5);
    double sum = 0;
    for (std::size_t t = 0; t < n; ++t) {
      CHECK(d["tokens"][t].is_string());
      CHECK(d["logprobs"][t].get<double>() < 0);
      // Of 20 tokens at a temperature below 1 a drawn one is likelier than of all.
      CHECK(d["drawn_logprobs"][t].get<double>() > d["logprobs"][t].get<double>());
      CHECK(d["entropies"][t].get<double>() > 0);
      CHECK(d["entropies"][t].get<double>() < std::log(256.0));
      sum += d["logprobs"][t].get<double>();
    }
    CHECK(d["drawn_logprobs"].size() == n);
    CHECK(d["logprob"].get<double>() == Approx(sum));
    CHECK(!d.contains("score"));
  }
  CHECK(!w.lines("greedy.jsonl")[0]["details"].contains("drawn_logprobs"));

  Outcome const scored =
      w.run("score --model model --input in.jsonl --output s.jsonl --details --batch 2");
  INFO(scored.err);
  REQUIRE(scored.status == 0);
  for (Json const& line : w.lines("s.jsonl")) {
    Json const& d = line["details"];
    auto const n = line["tokens"].get<std::size_t>();
    CHECK(d["ids"].size() == n);
    CHECK(d["tokens"].size() == n);
    CHECK(d["tokens"].back() == "</s>");
    CHECK(d["entropies"].size() == n);
    double sum = 0;
    for (double const x : d["logprobs"]) sum += x;
    CHECK(line["logprob"].get<double>() == Approx(sum).epsilon(1e-12));
  }
}

TEST_CASE("program: a line's own seed is all that its response depends on", "[program]") {
  auto const& w = workshop();
  std::string const dog = "{\"context\": \"my dog left town\", \"seed\": ";
  w.write("seeds.jsonl", dog + "5}\n{\"context\": \"my boss\"}\n" + dog + "6}\n" + dog + "5}\n");
  w.write("one.jsonl", dog + "5}\n");
  std::string const flags = " --model model --samples 2 --temperature 2 --top-k 0 --output ";
  REQUIRE(w.run("generate --input seeds.jsonl" + flags + "a.jsonl --seed 1").status == 0);
  REQUIRE(w.run("generate --input one.jsonl" + flags + "b.jsonl --seed 2").status == 0);
  auto const many = w.lines("a.jsonl");
  CHECK(many[0]["generated"] == w.lines("b.jsonl")[0]["generated"]);
  CHECK(many[3]["generated"] == many[0]["generated"]);
  CHECK(many[2]["generated"] != many[0]["generated"]);
  CHECK(many[0]["generated"][0] != many[0]["generated"][1]);
  w.write("bad_seed.jsonl", dog + "5}\n" + dog + "-5}\n");
  check_refused(w.run("generate --input bad_seed.jsonl" + flags + "bad_seed_out.jsonl"), 1,
                {"bad_seed.jsonl:2", "seed"});
  CHECK(!fs::exists(w / "bad_seed_out.jsonl"));
}

TEST_CASE("program: the number of generated tokens keeps to its limits", "[program]") {
  auto const& w = workshop();
  REQUIRE(w.run(generate + "--output a.jsonl --max-tokens 3").status == 0);
  REQUIRE(w.run(generate + "--output b.jsonl --min-tokens 3 --max-tokens 3").status == 0);
  CHECK(read_file(w / "a.jsonl") == read_file(w / "b.jsonl"));
}

TEST_CASE("program: - reads standard input and writes standard output", "[program]") {
  auto const& w = workshop();
  REQUIRE(w.run(generate + "--output a.jsonl").status == 0);
  Outcome const piped = w.shell("cat in.jsonl | emprl generate --model model --input - --output -");
  CHECK(piped.status == 0);
  CHECK(piped.out == read_file(w / "a.jsonl"));
}

TEST_CASE("program: a closed pipe is an error, not a crash", "[program]") {
  auto const& w = workshop();
  std::string many;
  for (int i = 0; i < 40; ++i)
    many += "{\"context\": \"my dog\", \"fill\": \"" + std::string(4000, 'x') + "\"}\n";
  w.write("many.jsonl", many);
  Outcome const outcome = w.shell(
      "{ emprl generate --model model --input many.jsonl --output - --max-tokens 2; echo $? "
      ">status; } | true\n"
      "cat status");
  CHECK(outcome.out == "1\n");
  CHECK_THAT(outcome.err, ContainsSubstring("emprl: error: cannot write standard output"));
}

TEST_CASE("program: score adds the log-probability and the number of tokens", "[program]") {
  auto const& w = workshop();
  Outcome const outcome = w.run("score --model model --input in.jsonl --output scored.jsonl");
  INFO(outcome.err);
  REQUIRE(outcome.status == 0);
  REQUIRE(w.run("score --model model --input in.jsonl --output scored1.jsonl --batch 1").status ==
          0);
  auto const in = w.lines("in.jsonl");
  auto const one = w.lines("scored1.jsonl");
  auto out = w.lines("scored.jsonl");
  REQUIRE(out.size() == in.size());
  for (std::size_t i = 0; i < out.size(); ++i) {
    CHECK(out[i]["logprob"].get<double>() < 0.0);
    CHECK(out[i]["logprob"].get<double>() == Approx(one[i]["logprob"].get<double>()).epsilon(1e-5));
    CHECK(out[i]["tokens"].is_number_integer());
    CHECK(out[i]["tokens"].get<int>() >= 2);
    out[i].erase("logprob");
    out[i].erase("tokens");
    CHECK(out[i].dump() == in[i].dump());
  }
  Outcome const cut =
      w.run("score --model model --input in.jsonl --output cut.jsonl --max-response 3");
  CHECK(cut.status == 0);
  CHECK_THAT(cut.err, ContainsSubstring("emprl: warning: 3 responses"));
  CHECK(w.lines("cut.jsonl")[0]["tokens"] == 3);
}

TEST_CASE("program: chat answers every line of a pipe, and /reset forgets", "[program]") {
  auto const& w = workshop();
  Outcome const outcome = w.shell(
      "printf 'my dog left town\\n\\nreally?\\n/reset\\nmy dog left town\\n/quit\\nnever read\\n' "
      "| "
      "emprl chat --model model --greedy --min-tokens 5");
  INFO(outcome.err);
  CHECK(outcome.status == 0);
  std::istringstream text(outcome.out);
  std::vector<std::string> replies;
  for (std::string line; std::getline(text, line);) replies.push_back(line);
  REQUIRE(replies.size() == 3);
  CHECK(replies[0] == replies[2]);
  check_refused(w.shell("printf 'good\\n\\377\\n' | emprl chat --model model"), 1,
                {"standard input:2", "UTF-8"});
}

TEST_CASE("program: commands in a chat change how it answers", "[program]") {
  auto const& w = workshop();
  auto const say = [&](std::string const& lines, std::string const& flags) {
    Outcome const outcome = w.shell("printf '" + lines + "' | emprl chat --model model " + flags);
    INFO(outcome.err);
    CHECK(outcome.status == 0);
    return outcome.out;
  };
  CHECK(say("/beams 3\\nmy dog\\n", "") == say("my dog\\n", "--beams 3"));
  CHECK(say("/set --temperature 2 --top-k 0\\nmy dog\\n", "--greedy") ==
        say("my dog\\n", "--temperature 2 --top-k 0"));
  CHECK(say("/seed 7\\nmy dog\\n", "") == say("my dog\\n", "--seed 7"));
  CHECK(say("/sample\\nmy dog\\n", "--beams 2") == say("my dog\\n", ""));
  CHECK_THAT(say("/help\\n", ""),
             ContainsSubstring("/temperature 0.7") || ContainsSubstring("--temperature 0.7"));
  CHECK(say("/max-tokens 3\\n/greedy\\n/repetition-penalty 1.5\\n/settings\\n", "--seed 3") ==
        "--greedy --min-tokens 3 --max-tokens 3 --repetition-penalty 1.5 --no-repeat-ngram 0 "
        "--seed 3\n");
  CHECK(say("/beams 4\\n/length-penalty 2\\n/early-stopping never\\n/settings\\n", "") ==
        "--beams 4 --length-penalty 2 --early-stopping never --min-tokens 5 --max-tokens 29 "
        "--repetition-penalty 1 --no-repeat-ngram 0 --seed 42\n");
  auto const refused = [&](std::string const& line, std::vector<std::string> const& names) {
    check_refused(w.shell("printf '/greedy\\n" + line + "\\n' | emprl chat --model model"), 1,
                  names);
  };
  refused("/dance", {"standard input:2", "/dance", "/help"});
  refused("/temperature warm", {"standard input:2", "--temperature"});
  refused("/length-penalty 2", {"standard input:2", "--length-penalty", "--beams"});
  refused("/set --temprature 2", {"standard input:2", "did you mean --temperature?"});
  refused("/seed x", {"standard input:2", "/seed"});
}

TEST_CASE("program: options may come from a file, and the command line wins", "[program]") {
  auto const& w = workshop();
  w.write("options.json",
          R"({"model": "model", "input": "in.jsonl", "output": "from_file.jsonl", "seed": 5,
                              "temperature": 0.7, "greedy": false, "top-k": 4, "adapter": null})");
  REQUIRE(w.run("generate --config options.json").status == 0);
  REQUIRE(w.run(generate + "--output a.jsonl --seed 5 --temperature 0.7 --top-k 4").status == 0);
  CHECK(read_file(w / "from_file.jsonl") == read_file(w / "a.jsonl"));
  REQUIRE(w.run("generate --config=options.json --output b.jsonl --seed=6").status == 0);
  REQUIRE(w.run(generate + "--output c.jsonl --seed 6 --temperature 0.7 --top-k 4").status == 0);
  CHECK(read_file(w / "b.jsonl") == read_file(w / "c.jsonl"));
  // What the file says of sampling gives way to --greedy.
  REQUIRE(w.run("generate --config options.json --output d.jsonl --greedy").status == 0);

  w.write("beams.json", R"({"model": "model", "input": "in.jsonl", "output": "beams.jsonl",
                            "beams": 3, "length-penalty": 2, "n-best": 2})");
  REQUIRE(w.run("generate --config beams.json").status == 0);
  CHECK(w.lines("beams.jsonl")[0]["generated"].size() == 2);
  REQUIRE(w.run("generate --config beams.json --output e.jsonl --greedy").status == 0);
  REQUIRE(w.run(generate + "--output f.jsonl --greedy").status == 0);
  CHECK(read_file(w / "e.jsonl") == read_file(w / "f.jsonl"));

  w.write("unknown.json", R"({"model": "model", "temprature": 0.7})");
  check_refused(w.run("generate --config unknown.json"), 2,
                {"unknown.json", "temprature", "temperature"});
  w.write("kind.json", R"({"greedy": "yes"})");
  check_refused(w.run("generate --config kind.json"), 2, {"kind.json", "greedy"});
  w.write("nested.json", R"({"model": {"a": 1}})");
  check_refused(w.run("generate --config nested.json"), 2, {"nested.json", "model"});
  w.write("list.json", R"({"model": ["a", "b"]})");
  check_refused(w.run("generate --config list.json"), 2, {"list.json", "model"});
  w.write("broken.json", "{\"model\": ");
  check_refused(w.run("generate --config broken.json"), 1, {"broken.json"});
  check_refused(w.run("generate --config absent.json"), 2, {"absent.json"});
}

TEST_CASE("program: the configuration that a folder holds makes it again", "[program]") {
  auto const& w = workshop();
  auto const first = w.contents("tok");
  REQUIRE(w.run("tokenizer --config tok/configuration.json --out tok_again").status == 0);
  CHECK(read_file(w / "tok_again/spiece.model") == read_file(w / "tok/spiece.model"));
  Json again = emprl::io::read_json_file(w / "tok_again/configuration.json");
  Json const before = emprl::io::read_json_file(w / "tok/configuration.json");
  CHECK(before["vocabulary"] == 250);
  CHECK(before["seed"] == 42);
  CHECK(before["device"] == "cpu");
  CHECK(before["threads"] == 0);
  again["out"] = before["out"];
  CHECK(again == before);
  CHECK(w.contents("tok") == first);
}

TEST_CASE("program: the configuration of a run holds the values that are used", "[program]") {
  auto const& w = workshop();
  fs::create_directories(w / "no_posts");
  w.write("no_dialogues/train.jsonl", "");
  // It stops at its first stage, after the configuration was written.
  REQUIRE(w.run("run --dialogues no_dialogues --empathy-data no_posts --preset tiny --out new_run "
                "--ppo-steps 7")
              .status == 1);
  Json const fresh = emprl::io::read_json_file(w / "new_run/configuration.json");
  CHECK(fresh["ppo-lr"] == 3e-4);
  CHECK(fresh["generator-epochs"] == 12);
  CHECK(fresh["vocabulary"] == 8000);
  CHECK(fresh["ppo-steps"] == 7);
  // A model of one's own brings its vocabulary, and takes the published settings.
  REQUIRE(w.run("run --dialogues no_dialogues --empathy-data no_posts --model model --out own_run")
              .status == 1);
  Json const own = emprl::io::read_json_file(w / "own_run/configuration.json");
  CHECK(own["ppo-lr"] == 1e-5);
  CHECK(own["generator-epochs"] == 3);
  CHECK_FALSE(own.contains("vocabulary"));
  check_refused(w.run("run --dialogues no_dialogues --empathy-data no_posts --model model "
                      "--vocabulary 300 --out other_run"),
                2, {"--vocabulary", "--model"});
}

TEST_CASE("program: align takes any program as its reward", "[program]") {
  auto const& w = workshop();
  w.write("reward.sh",
          "while read -r line; do\n"
          "  id=$(printf '%s' \"$line\" | sed 's/.*\"id\": *\\([0-9]*\\).*/\\1/')\n"
          "  printf '{\"id\": %s, \"score\": 0.25}\\n' \"$id\"\n"
          "done\n");
  std::string const align = "align --model model --data data --steps 2 --batch 4 --mini-batch 4 ";
  REQUIRE(w.run(align + "--out rewarded --reward-command 'sh reward.sh'").status == 0);
  auto const lines = emprl::io::read_json_lines(w / "rewarded/metrics.jsonl");
  REQUIRE(!lines.empty());
  CHECK(lines.back().value["score_mean"] == 0.25);
  // How many dialogues a model sees at once is no matter of scores, and is told.
  Outcome const passes = w.run(
      align + "--out in_passes --reward-command 'sh reward.sh' --rows-per-pass 1 --no-shared-pass");
  REQUIRE(passes.status == 0);
  CHECK_THAT(passes.out, ContainsSubstring("up to 4 dialogues in a pass") &&
                             ContainsSubstring("first pass is computed anew"));
  Json const options = emprl::io::read_json_file(w / "in_passes/configuration.json");
  CHECK(options["rows-per-pass"] == 1);
  CHECK(options["no-shared-pass"] == true);
  check_refused(w.run(align + "--out r1 --reward-command x --rows-per-pass 0"), 2,
                {"--rows-per-pass"});
  check_refused(w.run(align + "--out r1 --reward-command 'echo out of order >&2; exit 3'"), 1,
                {"out of order", "3"});
  check_refused(w.run(align + "--out r2"), 2, {"--identifiers", "--reward-command"});
  check_refused(w.run(align + "--out r2 --reward-command x --mechanisms er"), 2,
                {"--reward-command", "--mechanisms"});
  check_refused(w.run(align + "--out r2 --reward-command x --mode trl"), 2, {"--mode"});
}

TEST_CASE("program: --reward says what the mechanisms make together", "[program]") {
  auto const& w = workshop();
  write_posts(w);
  REQUIRE(w.run("identify --encoder model --data posts --out ids --epochs 1").status == 0);
  std::string const align =
      "align --model model --identifiers ids --data data --steps 1 --batch 4 --mini-batch 4 ";
  // Before the first update every run samples the same responses.
  auto const first_step = [&](std::string const& out, std::string const& options) {
    REQUIRE(w.run(align + "--out " + out + options).status == 0);
    return emprl::io::read_json_lines(w / (out + "/metrics.jsonl")).front().value;
  };
  Json const product = first_step("by_default", "");
  Json const sum = first_step("by_sum", " --reward sum");
  Json const match = first_step("by_match", " --reward match");
  auto const mean_of_parts = [](Json const& step) {
    return (step["score/er"].get<double>() + step["score/ip"].get<double>() +
            step["score/ex"].get<double>()) /
           3;
  };
  CHECK(sum["score/ip"] == product["score/ip"]);
  CHECK(sum["score_mean"].get<double>() == Approx(mean_of_parts(sum)).epsilon(1e-6));
  CHECK(match["score_mean"].get<double>() == Approx(mean_of_parts(match)).margin(1e-6));
  CHECK(product["score_mean"].get<double>() < sum["score_mean"].get<double>());
  // Of four responses so many match.
  double const matches = 4 * match["score/er"].get<double>();
  CHECK(matches == std::round(matches));
  CHECK(emprl::io::read_json_file(w / "by_default/configuration.json")["reward"] == "product");
  CHECK(emprl::io::read_json_file(w / "by_sum/configuration.json")["reward"] == "sum");

  check_refused(w.run(align + "--out r3 --reward mean"), 2, {"--reward", "mean"});
  check_refused(w.run("align --model model --data data --out r3 --reward-command x --reward sum"),
                2, {"--reward-command", "--reward"});
}

TEST_CASE("program: label writes levels and, if asked, the probabilities that make them likeliest",
          "[program]") {
  auto const& w = workshop();
  write_posts(w);
  REQUIRE(w.run("identify --encoder model --data posts --out judges --epochs 1").status == 0);
  std::string const label = "label --identifiers judges --input in.jsonl --output ";
  REQUIRE(w.run(label + "levels.jsonl").status == 0);
  REQUIRE(w.run(label + "both.jsonl --probabilities").status == 0);
  std::vector<Json> const levels = w.lines("levels.jsonl");
  std::vector<Json> const both = w.lines("both.jsonl");
  REQUIRE(both.size() == 3);
  for (std::size_t i = 0; i < both.size(); ++i) {
    CHECK_FALSE(levels[i].contains("probabilities"));
    CHECK(both[i]["levels"] == levels[i]["levels"]);
    for (char const* const mechanism : {"er", "ip", "ex"}) {
      auto const p = both[i]["probabilities"][mechanism].get<std::vector<double>>();
      REQUIRE(p.size() == 3);
      CHECK(p[0] + p[1] + p[2] == Approx(1).margin(1e-9));
      auto const likeliest = std::max_element(p.begin(), p.end()) - p.begin();
      CHECK(both[i]["levels"][mechanism] == likeliest);
    }
  }
}

namespace {

/// A reward program for the shell, which gives each line a score and from line `most` + 1 on talks
/// nonsense.
/// @param score  a word of the shell's, of $line
void write_reward(Workshop const& w, std::string const& name, std::string const& most,
                  std::string const& score) {
  w.write(name,
          "n=0\nwhile read -r line; do\n"
          "  n=$((n + 1))\n"
          "  [ $n -le " +
              most +
              " ] || echo nonsense\n"
              "  id=$(printf '%s' \"$line\" | sed 's/.*\"id\": *\\([0-9]*\\).*/\\1/')\n"
              "  printf '{\"id\": %s, \"score\": %s}\\n' \"$id\" \"" +
              score + "\"\ndone\n");
}

}  // namespace

TEST_CASE("program: align leaves checkpoints that others read, and goes on from the newest",
          "[program]") {
  auto const& w = workshop();
  // Every batch is four lines; the first reward talks nonsense in the third step.
  auto const reward = [&](std::string const& most) { write_reward(w, "counted.sh", most, "0.25"); };
  std::string const align =
      "align --model model --data data --steps 4 --batch 4 --mini-batch 4 --save-every 1 "
      "--reward-command 'sh counted.sh' --out steps ";
  reward("10");
  CHECK(w.run(align).status == 1);
  CHECK_FALSE(fs::exists(w / "steps/checkpoint/step-000003"));
  CHECK(w.run("generate --model steps/checkpoint/step-000002 --input in.jsonl --output o.jsonl")
            .status == 0);
  reward("100");
  check_refused(w.run(align + "--lr 0.5"), 2, {"ppo.learning_rate", "0.5", "step-000002"});
  check_refused(w.run(align + "--keep 0"), 2, {"--keep"});
  Outcome const resumed = w.run(align + "--keep 3");
  INFO(resumed.err);
  CHECK(resumed.status == 0);
  CHECK(w.lines("steps/metrics.jsonl").size() == 4);
  CHECK_FALSE(fs::exists(w / "steps/checkpoint"));
  // All scores are equal: the first checkpoint is the best.
  CHECK(w.run("generate --model steps/best --input in.jsonl --output o.jsonl").status == 0);
  REQUIRE(w.run(align + "--no-best").status == 0);
  CHECK_FALSE(fs::exists(w / "steps/best"));
}

TEST_CASE("program: --deterministic promises bits, and a run keeps to what it promised",
          "[program]") {
  auto const& w = workshop();
  // A reward that talks nonsense in the third of four steps, and one that does not.
  auto const reward = [&](std::string const& most) {
    write_reward(w, "nonsense.sh", most, "0.$(printf %s \"$line\" | tr -cd e | wc -c)");
  };
  std::string const align =
      "align --model model --data data --steps 4 --batch 4 --mini-batch 4 --save-every 1 "
      "--threads 2 --reward-command 'sh nonsense.sh' --out ";
  reward("100");
  REQUIRE(w.run(align + "bits_plain").status == 0);
  REQUIRE(w.run(align + "bits_straight --deterministic").status == 0);
  reward("10");
  REQUIRE(w.run(align + "bits_stopped --deterministic").status == 1);
  REQUIRE(w.run(align + "bits_not_promised").status == 1);
  REQUIRE(fs::exists(w / "bits_stopped/checkpoint/step-000002"));
  reward("100");
  check_refused(w.run(align + "bits_stopped"), 2,
                {"step-000002", "deterministic is true there and not set here"});
  check_refused(w.run(align + "bits_not_promised --deterministic"), 2,
                {"step-000002", "deterministic is not recorded there and true here"});
  REQUIRE(w.run(align + "bits_stopped --deterministic").status == 0);
  for (char const* const file : {"model.safetensors", "value_head.safetensors", "metrics.jsonl"}) {
    std::string const bytes = read_file(w / "bits_straight" / file);
    CHECK(read_file(w / "bits_stopped" / file) == bytes);
    // The CPU gives them in any case.
    CHECK(read_file(w / "bits_plain" / file) == bytes);
  }
  CHECK(read_file(w / "bits_straight/model.safetensors") !=
        read_file(w / "model/model.safetensors"));
  auto const resolved = [&](std::string const& folder) {
    return emprl::io::read_json_file(w / folder / "configuration.json");
  };
  CHECK(resolved("bits_straight")["deterministic"] == true);
  CHECK(resolved("bits_plain")["deterministic"] == false);

  // Every command takes it, from a file too.
  for (char const* const command :
       {"run", "tokenizer", "init", "pretrain", "finetune", "identify", "label", "align",
        "generate", "score", "evaluate", "chat", "merge"}) {
    INFO(command);
    CHECK_THAT(w.run(std::string(command) + " --help").out, ContainsSubstring("--deterministic"));
  }
  REQUIRE(
      w.run("tokenizer --config tok/configuration.json --deterministic --out tok_bits").status ==
      0);
  CHECK(read_file(w / "tok_bits/spiece.model") == read_file(w / "tok/spiece.model"));
  CHECK(resolved("tok_bits")["deterministic"] == true);
  REQUIRE(w.run(generate + "--output bits_a.jsonl").status == 0);
  w.write("bits.json", R"({"deterministic": true})");
  REQUIRE(w.run(generate + "--config bits.json --output bits_b.jsonl").status == 0);
  CHECK(read_file(w / "bits_a.jsonl") == read_file(w / "bits_b.jsonl"));

  // A whole run, which stops at its first stage for want of dialogues.
  fs::create_directories(w / "no_posts");
  w.write("no_dialogues/train.jsonl", "");
  std::string const run =
      "run --dialogues no_dialogues --empathy-data no_posts --model model --out bits_run ";
  REQUIRE(w.run(run + "--deterministic").status == 1);
  CHECK(resolved("bits_run")["deterministic"] == true);
  check_refused(w.run(run), 2, {"bits_run", "another --deterministic"});
  CHECK(w.run(run + "--deterministic").status == 1);
  // A folder from before there was a choice goes on without.
  Json before = resolved("bits_run");
  before.erase("deterministic");
  w.write("bits_run/configuration.json", before.dump());
  check_refused(w.run(run + "--deterministic"), 2, {"bits_run", "another --deterministic"});
  CHECK(w.run(run).status == 1);
}

TEST_CASE("program: finetune --log-batches names the pairs of every step", "[program]") {
  auto const& w = workshop();
  REQUIRE(w.run("finetune --model model --train data/train.jsonl --valid data/train.jsonl --out "
                "logged --epochs 2 --batch 25 --log-batches")
              .status == 0);
  auto const batches = w.lines("logged/batches.jsonl");
  std::vector<Json> steps;
  for (auto const& line : w.lines("logged/metrics.jsonl")) {
    if (line.at("phase") == "finetune") steps.push_back(line.at("step"));
  }
  // 60 pairs are three steps an epoch.
  REQUIRE(batches.size() == 6);
  std::vector<std::string> names[2];
  for (std::size_t i = 0; i < 6; ++i) {
    CHECK(batches[i].at("step") == steps.at(i));
    CHECK(batches[i].at("epoch") == i / 3 + 1);
    CHECK(batches[i].at("pairs").size() == (i % 3 == 2 ? 10u : 25u));
    for (auto const& name : batches[i].at("pairs")) {
      names[i / 3].push_back(name.get<std::string>());
      CHECK_THAT(names[i / 3].back(), ContainsSubstring("train.jsonl:"));
    }
  }
  CHECK(names[0] != names[1]);
  for (auto& all : names) std::sort(all.begin(), all.end());
  CHECK(names[0] == names[1]);
  CHECK(std::adjacent_find(names[0].begin(), names[0].end()) == names[0].end());
  REQUIRE(w.run("finetune --model model --train data/train.jsonl --out silent --epochs 1").status ==
          0);
  CHECK_FALSE(fs::exists(w / "silent/batches.jsonl"));
}

TEST_CASE("program: pretrain learns from text and dialogues, and says how fast", "[program]") {
  auto const& w = workshop();
  write_running_text(w);
  std::string const pretrain =
      "pretrain --model model --text book.txt --dialogues talk.jsonl --length 32 "
      "--batch-tokens 256 --lr 1e-2 --warmup 5 --valid-windows 4 ";
  Outcome const run = w.run(pretrain + "--steps 60 --validate-every 20 --out learnt");
  INFO(run.out << run.err);
  REQUIRE(run.status == 0);
  CHECK_THAT(run.out, ContainsSubstring("book.txt: 80 paragraphs, "));
  CHECK_THAT(run.out, ContainsSubstring("talk.jsonl: 80 turns, "));
  CHECK_THAT(run.out, ContainsSubstring(" 4 held out; 8 windows a step"));
  CHECK_THAT(run.out, ContainsSubstring("tokens/s"));
  CHECK_THAT(run.out, ContainsSubstring("perplexity"));
  CHECK_THAT(run.err, ContainsSubstring("step 20 of 60"));
  std::vector<double> losses;
  std::vector<Json> validations;
  for (auto const& line : w.lines("learnt/metrics.jsonl")) {
    if (line.at("phase") == "pretrain") losses.push_back(line.at("loss").get<double>());
    if (line.at("phase") == "pretrain validation") validations.push_back(line);
  }
  REQUIRE(losses.size() == 60);
  CHECK(losses.back() < losses.front() - 1);
  REQUIRE(validations.size() == 3);
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(validations[i].at("step") == 20 * (i + 1));
    CHECK(validations[i].at("tokens_per_second").get<double>() > 0);
  }
  Json const training = emprl::io::read_json_file(w / "learnt/training.json");
  CHECK(training.at("steps") == 60);
  CHECK(training.at("tokens").get<double>() > 60 * 8 * 30);
  CHECK(training.at("seconds").get<double>() > 0);
  CHECK_FALSE(fs::exists(w / "learnt/checkpoint"));
  // What it writes is a model like others.
  CHECK(w.run("finetune --model learnt --train data/train.jsonl --out learnt_more --epochs 1")
            .status == 0);
  // The same text through a pipe, and the configuration that the folder holds.
  REQUIRE(w.run(pretrain + "--steps 3 --out three").status == 0);
  REQUIRE(w.shell("cat book.txt | emprl pretrain --config three/configuration.json --text - "
                  "--out piped")
              .status == 0);
  CHECK(read_file(w / "piped/model.safetensors") == read_file(w / "three/model.safetensors"));
  REQUIRE(w.run("pretrain --config three/configuration.json --out again").status == 0);
  CHECK(read_file(w / "again/model.safetensors") == read_file(w / "three/model.safetensors"));
  REQUIRE(w.run("pretrain --config three/configuration.json --seed 7 --out other").status == 0);
  CHECK(read_file(w / "other/model.safetensors") != read_file(w / "three/model.safetensors"));
}

TEST_CASE("program: a pretraining that was stopped goes on to the same bits", "[program]") {
  auto const& w = workshop();
  write_running_text(w);
  std::string const arguments =
      " --model model --text book.txt --dialogues talk.jsonl --length 32 --batch-tokens 128 "
      "--steps 400 --validate-every 50 --dropout 0.1 --threads 1 ";
  REQUIRE(w.run("pretrain" + arguments + "--out straight").status == 0);
  // Where the machine is so fast that it was done, nothing was stopped.
  Outcome const stopped =
      stop(w, "pretrain" + arguments + "--out stopped", "stopped/metrics.jsonl");
  INFO(stopped.out << stopped.err);
  if (stopped.status != 0) {
    CHECK(stopped.status == 1);
    CHECK_THAT(stopped.err, ContainsSubstring("interrupted; the same command goes on from step "));
    CHECK(fs::exists(w / "stopped/checkpoint"));
    CHECK_FALSE(fs::exists(w / "stopped/model.safetensors"));
    // Other text is another run.
    check_refused(w.run("pretrain --model model --text book.txt --length 32 --batch-tokens 128 "
                        "--steps 400 --validate-every 50 --dropout 0.1 --out stopped"),
                  2, {"examples"});
    REQUIRE(w.run("pretrain" + arguments + "--out stopped").status == 0);
  }
  CHECK(read_file(w / "stopped/model.safetensors") == read_file(w / "straight/model.safetensors"));
  std::vector<Json> losses[2];
  for (int i = 0; i < 2; ++i) {
    for (auto const& line : w.lines(i == 0 ? "straight/metrics.jsonl" : "stopped/metrics.jsonl")) {
      if (line.contains("loss")) losses[i].push_back(line.at("loss"));
      if (line.contains("valid_loss")) losses[i].push_back(line.at("valid_loss"));
    }
  }
  CHECK(losses[0].size() == 408);
  CHECK(losses[0] == losses[1]);
}

TEST_CASE("program: a command that trains and is asked to stop finishes its step and saves",
          "[program]") {
  auto const& w = workshop();
  write_posts(w);
  write_running_text(w);
  w.write("half.sh",
          "while read -r line; do\n"
          "  id=$(printf '%s' \"$line\" | sed 's/.*\"id\": *\\([0-9]*\\).*/\\1/')\n"
          "  printf '{\"id\": %s, \"score\": 0.5}\\n' \"$id\"\n"
          "done\n");
  struct Case {
    std::string arguments, log, checkpoint;
  };
  // None of them would end by itself in a day.
  std::vector<Case> const cases{
      {"pretrain --model model --text book.txt --length 32 --batch-tokens 64 --steps 100000000 "
       "--out s1",
       "s1/metrics.jsonl", "s1/checkpoint"},
      {"finetune --model model --train data/train.jsonl --epochs 10000000 --out s2",
       "s2/metrics.jsonl", "s2/checkpoint"},
      {"identify --encoder model --data posts --mechanism er --epochs 10000000 --patience 0 "
       "--out s3",
       "s3/er/metrics.jsonl", "s3/er/checkpoint"},
      {"align --model model --data data --steps 10000000 --batch 4 --mini-batch 4 --save-every 0 "
       "--reward-command 'sh half.sh' --out s4",
       "s4/metrics.jsonl", "s4/checkpoint"}};
  for (Case const& c : cases) {
    Outcome const outcome = stop(w, c.arguments, c.log);
    INFO(c.arguments << "\n" << outcome.out << outcome.err);
    check_refused(outcome, 1, {"interrupted; the same command goes on from step "});
    CHECK(fs::exists(w / c.checkpoint));
  }
}

TEST_CASE("program: what pretrain cannot learn from is named in one sentence", "[program]") {
  auto const& w = workshop();
  write_running_text(w);
  std::string const pretrain = "pretrain --model model --length 32 --batch-tokens 64 --steps 1 ";
  check_refused(w.run(pretrain + "--out p9"), 2, {"--text", "--dialogues"});
  check_refused(w.run(pretrain + "--text absent.txt --out p9"), 2, {"--text", "absent.txt"});
  check_refused(w.run(pretrain + "--text book.txt --dialogues absent.jsonl --out p9"), 2,
                {"--dialogues", "absent.jsonl"});
  check_refused(w.run(pretrain + "--text - --dialogues - --out p9"), 2, {"standard input", "once"});
  check_refused(w.run(pretrain + "--text - --out p9"), 1, {"standard input", "no text"});
  w.write("empty.txt", "");
  check_refused(w.run(pretrain + "--text empty.txt --out p9"), 1, {"empty.txt", "no text"});
  w.write("short.txt", "my dog\n");
  check_refused(w.run(pretrain + "--text short.txt --out p9"), 1, {"1 window ", "two are needed"});
  w.write("bad_talk.jsonl", "{\"turns\": [\"hi\"]}\n{\"turns\": [\"hi\"\n");
  check_refused(w.run(pretrain + "--dialogues bad_talk.jsonl --out p9"), 1,
                {"bad_talk.jsonl:2", "JSON"});
  check_refused(w.run(pretrain + "--dialogues data/train.jsonl --out p9"), 1,
                {"train.jsonl:1", "turns"});
  check_refused(w.run("pretrain --model data --text book.txt --out p9"), 1, {"data"});
  fs::create_directories(w / "no_pieces");
  for (char const* name : {"config.json", "model.safetensors"}) {
    fs::copy_file(w / "model" / name, w / "no_pieces" / name, fs::copy_options::overwrite_existing);
  }
  check_refused(w.run("pretrain --model no_pieces --text book.txt --out p9"), 1, {"spiece.model"});
  check_refused(w.run("pretrain --model model --text book.txt --batch-tokens 255 --out p9"), 2,
                {"--batch-tokens 255", "--length 256"});
  check_refused(w.run("pretrain --model model --text book.txt --length 4096 --out p9"), 2,
                {"205 hidden spans", "100 sentinels"});
  check_refused(w.run(pretrain + "--text book.txt --density 1.5 --out p9"), 2, {"hide"});
  check_refused(w.run(pretrain + "--text book.txt --schedule rising --out p9"), 2, {"rising"});
  CHECK(!fs::exists(w / "p9"));
}

TEST_CASE("program: a LoRA is trained, scored with, aligned and merged, and its base stays",
          "[program]") {
  auto const& w = workshop();
  auto const base = w.contents("model");
  std::string const finetune =
      "finetune --model model --train data/train.jsonl --tuning lora --epochs 2 --batch 15 "
      "--lr 1e-2 ";
  Outcome const tuned =
      w.run(finetune + "--lora-rank 2 --lora-alpha 8 --lora-targets q,v,wo --out lora");
  INFO(tuned.err);
  REQUIRE(tuned.status == 0);
  CHECK(w.contents("model") == base);
  for (char const* file : {"adapter_config.json", "adapter_model.safetensors", "configuration.json",
                           "metrics.jsonl", "training.json"}) {
    CHECK(fs::exists(w / "lora" / file));
  }
  CHECK_FALSE(fs::exists(w / "lora/model.safetensors"));
  Json const config = emprl::io::read_json_file(w / "lora/adapter_config.json");
  CHECK(config["r"] == 2);
  CHECK(config["lora_alpha"] == 8);
  CHECK(config["target_modules"] == Json({"q", "v", "wo"}));
  CHECK(config["base_model_name_or_path"] == "model");

  REQUIRE(w.run("merge --model model --adapter lora --out merged").status == 0);
  auto const scored = [&](std::string const& model) {
    REQUIRE(w.run("score --model " + model + " --input in.jsonl --output s.jsonl").status == 0);
    std::vector<double> all;
    for (Json const& line : w.lines("s.jsonl")) all.push_back(line["logprob"].get<double>());
    return all;
  };
  auto const plain = scored("model");
  auto const beside = scored("model --adapter lora");
  auto const merged = scored("merged");
  for (std::size_t i = 0; i < plain.size(); ++i) {
    CHECK(std::abs(beside[i] - plain[i]) > 1e-3);
    CHECK(merged[i] == Approx(beside[i]).epsilon(1e-5));
  }
  REQUIRE(w.run(generate + "--adapter lora --greedy --output g.jsonl").status == 0);

  w.write("mixed.sh",
          "n=0\nwhile read -r line; do\n"
          "  n=$((n + 1))\n"
          "  id=$(printf '%s' \"$line\" | sed 's/.*\"id\": *\\([0-9]*\\).*/\\1/')\n"
          "  printf '{\"id\": %s, \"score\": 0.%s}\\n' \"$id\" $((n % 4))\n"
          "done\n");
  std::string const align =
      "align --model model --adapter lora --data data --steps 2 --batch 4 --mini-batch 4 --lr 1e-2 "
      "--reward-command 'sh mixed.sh' ";
  Outcome const aligned = w.run(align + "--out lora_aligned");
  INFO(aligned.err);
  REQUIRE(aligned.status == 0);
  CHECK(read_file(w / "lora_aligned/model.safetensors") ==
        base.at((w / "model/model.safetensors").string()));
  auto const better = scored("lora_aligned --adapter lora_aligned/adapter");
  CHECK(better != beside);
  CHECK(w.contents("model") == base);

  REQUIRE(w.run("finetune --model model --train data/train.jsonl --tuning prefix --epochs 1 "
                "--batch 30 --prefix-length 2 --out prefix_only")
              .status == 0);
  check_refused(w.run("merge --model model --adapter prefix_only --out m9"), 2,
                {"--adapter", "prefixes"});
  check_refused(w.run("merge --model model --adapter nowhere --out m9"), 2,
                {"--adapter", "nowhere"});
  check_refused(w.run(finetune + "--lora-targets q,banana --out m9"), 2, {"banana"});
  check_refused(w.run(finetune + "--lora-rank 0 --out m9"), 2, {"--lora-rank"});
  check_refused(w.run(generate + "--adapter data --output o9"), 1, {"adapter_config.json"});
  CHECK_FALSE(fs::exists(w / "m9"));
}

#ifdef __linux__
TEST_CASE("program: --threads 1 keeps to one processor", "[program]") {
  auto const& w = workshop();
  REQUIRE(w.run("init --preset tiny --tokenizer tok --out wide").status == 0);
  auto const seconds = [](timeval const& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  rusage before{}, after{};
  ::getrusage(RUSAGE_CHILDREN, &before);
  auto const begin = std::chrono::steady_clock::now();
  REQUIRE(w.run("finetune --model wide --train data/train.jsonl --out wide_tuned --tuning full "
                "--epochs 4 --batch 30 --lr 1e-3 --threads 1")
              .status == 0);
  double const wall =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  ::getrusage(RUSAGE_CHILDREN, &after);
  // A second thread that computes or spins would add as much again as the training takes. A tenth
  // of a second covers the shell and the program's start.
  CHECK(seconds(after.ru_utime) - seconds(before.ru_utime) < 1.1 * wall + 0.1);
}
#endif

TEST_CASE("program: bad lines are named by file and line, and harm nothing", "[program]") {
  auto const& w = workshop();
  w.write("kept.jsonl", "what was there\n");
  auto const refuse = [&](std::string const& text, std::vector<std::string> const& names,
                          std::string const& command = "generate") {
    w.write("bad.jsonl", text);
    check_refused(w.run(command + " --model model --input bad.jsonl --output kept.jsonl"), 1,
                  names);
    CHECK(read_file(w / "kept.jsonl") == "what was there\n");
  };
  std::string const good = "{\"context\": \"fine\", \"response\": \"fine\"}\n";
  refuse("", {"bad.jsonl", "empty"});
  refuse("\n \n", {"bad.jsonl", "empty"});
  refuse(good + "{\"context\": \"cut", {"bad.jsonl:2", "JSON"});
  refuse(good + good + "[1, 2]\n", {"bad.jsonl:3", "object"});
  refuse(good + "{\"context\": \"\xff\"}\n", {"bad.jsonl:2", "UTF-8"});
  refuse(good + "{\"context\": \"  \"}\n", {"bad.jsonl:2", "context", "empty"});
  refuse(good + "{\"text\": \"x\"}\n", {"bad.jsonl:2", "context"});
  refuse(good + "{\"context\": 5}\n", {"bad.jsonl:2", "context"});
  refuse(good + "{\"context\": " + std::string(5000, '[') + "\n", {"bad.jsonl:2", "deep"});
  refuse(good + "{\"context\": \"x\"}\n", {"bad.jsonl:2", "response"}, "score");
  refuse(good + "{\"context\": \"x\", \"response\": \"\"}\n", {"bad.jsonl:2", "response", "empty"},
         "score");

  w.write("empty.txt", "");
  check_refused(w.run("tokenizer --input empty.txt --out t9"), 1, {"empty.txt"});
  w.write("invalid.txt",
          "good\nb\xe9"
          "d\n");
  check_refused(w.run("tokenizer --input invalid.txt --out t9"), 1, {"invalid.txt:2", "UTF-8"});
  check_refused(w.run("tokenizer --input absent --out t9"), 2, {"--input", "absent"});
  CHECK(!fs::exists(w / "t9"));
}

TEST_CASE("program: damaged models are named, and nothing is written", "[program]") {
  auto const& w = workshop();
  std::string const weights = read_file(w / "model/model.safetensors");
  auto const refuse = [&](std::string const& bytes, std::vector<std::string> const& names) {
    fs::remove_all(w / "damaged");
    fs::copy(w / "model", w / "damaged", fs::copy_options::recursive);
    w.write("damaged/model.safetensors", bytes);
    check_refused(w.run("generate --model damaged --input in.jsonl --output never.jsonl"), 1,
                  names);
    CHECK(!fs::exists(w / "never.jsonl"));
  };
  auto const with_header = [&](auto change) {
    std::size_t length = 0;
    for (std::size_t i = 0; i < 8; ++i) {
      length |= static_cast<std::size_t>(static_cast<unsigned char>(weights[i])) << (8 * i);
    }
    Json header = Json::parse(weights.substr(8, length));
    change(header);
    std::string const text = header.dump();
    std::string prefix(8, '\0');
    for (std::size_t i = 0; i < 8; ++i)
      prefix[i] = static_cast<char>(text.size() >> (8 * i) & 0xff);
    return prefix + text + weights.substr(8 + length);
  };
  refuse("", {"model.safetensors"});
  refuse(weights.substr(0, 5), {"model.safetensors"});
  refuse(weights.substr(0, weights.size() / 2), {"model.safetensors"});
  refuse(std::string(8, '\xff') + weights.substr(8), {"model.safetensors"});
  std::string const norm = "encoder.final_layer_norm.weight";
  refuse(with_header([&](Json& header) {
           header["another.weight"] = header[norm];
           header.erase(norm);
         }),
         {"model.safetensors", norm});
  refuse(with_header([&](Json& header) {
           header[norm]["shape"] = {4, 4};
         }),
         {"model.safetensors", norm});

  fs::remove_all(w / "damaged");
  fs::copy(w / "model", w / "damaged", fs::copy_options::recursive);
  w.write("damaged/spiece.model", read_file(w / "model/spiece.model").substr(0, 100));
  check_refused(w.run("generate --model damaged --input in.jsonl --output never.jsonl"), 1,
                {"spiece.model"});
  w.write("damaged/config.json", "{}");
  check_refused(w.run("generate --model damaged --input in.jsonl --output never.jsonl"), 1,
                {"config.json"});
  check_refused(w.run("generate --model in.jsonl --input in.jsonl --output never.jsonl"), 1,
                {"in.jsonl"});
  check_refused(w.run("generate --model model --adapter tok --input in.jsonl --output never.jsonl"),
                1, {"tok"});
}

TEST_CASE("program: outputs that cannot be are refused, and what was there stays", "[program]") {
  auto const& w = workshop();
  w.write("file", "a regular file\n");
  check_refused(w.run("tokenizer --input data --out file/tok --vocabulary 250"), 2,
                {"--out", "file"});
  check_refused(w.run("tokenizer --input data --out file --vocabulary 250"), 2, {"--out", "file"});
  check_refused(w.run("init --config config.json --tokenizer tok --out file/model"), 2,
                {"--out", "file"});
  check_refused(w.run(generate + "--output file/out.jsonl"), 1, {"file/out.jsonl"});
  check_refused(w.run(generate + "--output no/such/out.jsonl"), 1, {"no/such/out.jsonl"});
  CHECK(read_file(w / "file") == "a regular file\n");
}

TEST_CASE("program: a full disk is an error and leaves what was there", "[program]") {
  auto const& w = workshop();
  fs::remove_all(w / "full");
  fs::copy(w / "model", w / "full", fs::copy_options::recursive);
  auto const before = w.contents("full");
  // 4 blocks of 512 bytes (1024 in some shells): less than the weights, more than an error message.
  Outcome const init =
      w.shell("ulimit -f 4; emprl init --config config.json --tokenizer tok --out full --seed 9");
  check_refused(init, 1, {"full"});
  for (auto const& [name, bytes] : w.contents("full")) {
    INFO(name);
    CHECK(before.count(name) == 1);
  }
  CHECK(read_file(w / "full/model.safetensors") == read_file(w / "model/model.safetensors"));

  std::string many;
  for (int i = 0; i < 40; ++i)
    many += "{\"context\": \"my dog\", \"fill\": \"" + std::string(4000, 'x') + "\"}\n";
  w.write("big.jsonl", many);
  w.write("kept/out.jsonl", "what was there\n");
  check_refused(
      w.shell("ulimit -f 4; emprl generate --model model --input big.jsonl --output kept/out.jsonl "
              "--max-tokens 2"),
      1, {"kept/out.jsonl"});
  CHECK(w.contents("kept").size() == 1);
  CHECK(read_file(w / "kept/out.jsonl") == "what was there\n");
  if (fs::exists("/dev/full")) {
    check_refused(w.shell("emprl --help >/dev/full"), 1, {"standard output"});
    check_refused(w.run(generate + "--output /dev/full"), 1, {"/dev/full"});
  }
}

#endif
