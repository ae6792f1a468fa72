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

std::string const generate = "generate --model model --input in.jsonl ";

}  // namespace

TEST_CASE("program: every command has a help of at most 80 columns with examples", "[program]") {
  auto const& w = workshop();
  std::vector<std::string> commands{"",      "run",   "tokenizer", "init",  "finetune", "identify",
                                    "label", "align", "generate",  "score", "evaluate", "chat"};
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
  check_refused(w.run(generate + "--output o --beams 4"), 2, {"--beams"});
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
  check_refused(w.run(generate + "--output o --min-tokens 9 --max-tokens 8"), 2,
                {"--min-tokens", "--max-tokens"});
  check_refused(w.run("init --preset tiny --config config.json --tokenizer tok --out m2"), 2,
                {"--preset", "--config"});
  check_refused(w.run("init --tokenizer tok --out m2"), 2, {"--preset", "--config"});
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
  check_refused(w.run(align + "--out r1 --reward-command 'echo out of order >&2; exit 3'"), 1,
                {"out of order", "3"});
  check_refused(w.run(align + "--out r2"), 2, {"--identifiers", "--reward-command"});
  check_refused(w.run(align + "--out r2 --reward-command x --mechanisms er"), 2,
                {"--reward-command", "--mechanisms"});
  check_refused(w.run(align + "--out r2 --reward-command x --mode trl"), 2, {"--mode"});
}

TEST_CASE("program: --reward says what the mechanisms make together", "[program]") {
  auto const& w = workshop();
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

TEST_CASE("program: align leaves checkpoints that others read, and goes on from the newest",
          "[program]") {
  auto const& w = workshop();
  // Every batch is four lines; the first reward talks nonsense in the third step.
  auto const reward = [&](std::string const& most) {
    w.write("counted.sh",
            "n=0\nwhile read -r line; do\n"
            "  n=$((n + 1))\n"
            "  [ $n -le " +
                most +
                " ] || echo nonsense\n"
                "  id=$(printf '%s' \"$line\" | sed 's/.*\"id\": *\\([0-9]*\\).*/\\1/')\n"
                "  printf '{\"id\": %s, \"score\": 0.25}\\n' \"$id\"\n"
                "done\n");
  };
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
