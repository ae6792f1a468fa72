// SPDX-License-Identifier: Apache-2.0
// emprl-corpus: writes the synthetic corpus that quickstart and tests run on.

#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <exception>
#include <string>

#include "writer.hpp"

int main(int argc, char** argv) {
  std::signal(SIGXFSZ, SIG_IGN);  // a file size limit becomes an error that names the file
  try {
    emprl::corpus::CorpusConfig config;
    std::string out;
    CLI::App app{
        "Writes a synthetic corpus of dialogues and posts whose empathy levels are known by "
        "construction.\nExample: emprl-corpus --out corpus --dialogues 3000 --posts 900 --seed 1",
        "emprl-corpus"};
    app.add_option("--out", out, "folder to write to")->required();
    app.add_option("--dialogues", config.dialogues, "conversations in all three splits")
        ->capture_default_str();
    app.add_option("--posts", config.posts, "rows of each mechanism's file")->capture_default_str();
    app.add_option("--seed", config.seed, "the same seed writes the same bytes")
        ->capture_default_str();
    app.add_option("--label-noise", config.label_noise, "share of the posts' levels made wrong")
        ->capture_default_str();
    try {
      app.parse(argc, argv);
    } catch (CLI::Success const& done) {
      return app.exit(done);
    } catch (CLI::ParseError const& wrong) {
      fmt::print(stderr, "emprl-corpus: error: {}\n", wrong.what());
      return 2;
    }
    try {
      config.validate();
    } catch (emprl::ConfigError const& wrong) {
      fmt::print(stderr, "emprl-corpus: error: {}\n", wrong.what());
      return 2;
    }
    auto const counts = emprl::corpus::write_corpus(out, config);
    fmt::print(
        "{}: synthetic, {} conversations ({} train, {} valid, {} test), {} pairs, "
        "{:.0f} % with their context's likely levels\n",
        out, config.dialogues, counts.dialogues[0], counts.dialogues[1], counts.dialogues[2],
        counts.pairs, 100.0 * counts.mode_share);
    fmt::print("{}: synthetic, {} responses to {} posts for each of three mechanisms\n", out,
               counts.posts, counts.seekers);
    return 0;
  } catch (std::exception const& error) {
    fmt::print(stderr, "emprl-corpus: error: {}\n", error.what());
    return 1;
  }
}
