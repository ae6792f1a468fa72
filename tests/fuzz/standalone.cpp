// SPDX-License-Identifier: Apache-2.0

// A small engine for machines without libFuzzer: the same targets, the same command line.
//
//   emprl_fuzz --target=NAME [-max_total_time=SECONDS] [-max_len=BYTES] [-seed=N]
//   [-timeout=SECONDS]
//              [-dict=FILE] [-artifact_prefix=PATH] [FILE | FOLDER]...
//
// It runs every file given, then mutates them with a generator that the seed decides: bits, bytes,
// numbers, tokens of the dictionary, pieces moved, doubled or cut, two inputs spliced. It does not
// see which code an input reaches, as libFuzzer does; now and then a mutated
// input joins the corpus, so that it does not stand still. What ends the program is written to
// crash-NAME (after the artifact prefix) first.

#include <sanitizer/common_interface_defs.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "emprl/core/rng.hpp"

extern "C" {
int LLVMFuzzerInitialize(int* argc, char*** argv);
int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size);
}

namespace {

namespace fs = std::filesystem;
using emprl::index_t;

/// What a finding is written from, when the program may do little more than write.
std::string current_input;
std::string artifact_path;

void write_artifact() {
  std::FILE* const file = std::fopen(artifact_path.c_str(), "wb");
  if (file == nullptr) return;
  static_cast<void>(std::fwrite(current_input.data(), 1, current_input.size(), file));
  static_cast<void>(std::fclose(file));
  static_cast<void>(
      std::fprintf(stderr, "emprl_fuzz: the input is in %s\n", artifact_path.c_str()));
}

void on_signal(int signal) {
  if (signal == SIGALRM) {
    static_cast<void>(std::fprintf(stderr, "emprl_fuzz: an input takes too long\n"));
  }
  write_artifact();
  ::_exit(77);
}

struct Options {
  double seconds = 5;
  std::size_t max_length = 4096;
  std::uint64_t seed = 1;
  unsigned timeout = 10;
  std::string dictionary;
  std::string prefix;
  std::string target;
  std::vector<fs::path> corpus;
};

/// The command line. @throws std::exception for numbers that are none
bool parse(int argc, char** argv, Options& options) {
  for (int i = 1; i < argc; ++i) {
    std::string const word = argv[i];
    if (!word.starts_with('-')) {
      options.corpus.emplace_back(word);
      continue;
    }
    std::size_t const equals = std::min(word.find('='), word.size() - 1);
    std::string const name = word.substr(0, equals);
    std::string const value = word.substr(equals + 1);
    if (name == "-max_total_time") {
      options.seconds = std::stod(value);
    } else if (name == "-max_len") {
      options.max_length = std::stoul(value);
    } else if (name == "-seed") {
      options.seed = std::stoull(value);
    } else if (name == "-timeout") {
      options.timeout = static_cast<unsigned>(std::stoul(value));
    } else if (name == "-dict") {
      options.dictionary = value;
    } else if (name == "-artifact_prefix") {
      options.prefix = value;
    } else if (name == "--target") {
      options.target = value;
    } else {
      static_cast<void>(std::fprintf(stderr, "emprl_fuzz: unknown option %s\n", name.c_str()));
      return false;
    }
  }
  return true;
}

std::string slurp(fs::path const& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

std::vector<std::string> read_corpus(std::vector<fs::path> const& from) {
  std::vector<fs::path> files;
  for (auto const& path : from) {
    if (!fs::is_directory(path)) {
      files.push_back(path);
      continue;
    }
    for (auto const& entry : fs::recursive_directory_iterator(path)) {
      if (entry.is_regular_file()) files.push_back(entry.path());
    }
  }
  std::sort(files.begin(), files.end());
  std::vector<std::string> inputs;
  for (auto const& file : files) inputs.push_back(slurp(file));
  return inputs;
}

/// The tokens of a dictionary in libFuzzer's form: "text" a line, with \xHH, \\ and \".
std::vector<std::string> read_dictionary(std::string const& path) {
  std::vector<std::string> tokens;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    std::size_t const open = line.find('"');
    std::size_t const close = line.rfind('"');
    if (line.starts_with('#') || open == std::string::npos || close <= open) continue;
    std::string token;
    for (std::size_t i = open + 1; i < close; ++i) {
      if (line[i] != '\\' || i + 1 >= close) {
        token += line[i];
      } else if (line[i + 1] == 'x' && i + 3 < close) {
        token += static_cast<char>(std::stoi(line.substr(i + 2, 2), nullptr, 16));
        i += 3;
      } else {
        token += line[++i];
      }
    }
    tokens.push_back(token);
  }
  return tokens;
}

class Mutator {
 public:
  Mutator(std::uint64_t seed, std::vector<std::string> const& corpus,
          std::vector<std::string> const& tokens)
      : random_(seed, emprl::Stream::sample), corpus_(corpus), tokens_(tokens) {}

  /// A member of the corpus, changed in one to eight places.
  std::string next(std::size_t max_length) {
    std::string input = corpus_[below(corpus_.size())];
    for (std::size_t changes = std::size_t{1} << below(4); changes > 0; --changes) change(input);
    if (input.size() > max_length) input.resize(max_length);
    return input;
  }

 private:
  std::size_t below(std::size_t n) {
    return static_cast<std::size_t>(random_.below(static_cast<index_t>(n)));
  }
  std::size_t place(std::string const& input) { return below(input.size() + 1); }

  void put(std::string& input, std::string_view piece) {
    std::size_t const at = place(input);
    // Over what is there, or between.
    if (below(2) == 0) {
      input.replace(at, std::min(piece.size(), input.size() - at), piece);
    } else {
      input.insert(at, piece);
    }
  }

  void change(std::string& input) {
    if (input.empty()) {
      input.push_back(static_cast<char>(below(256)));
      return;
    }
    std::size_t const at = below(input.size());
    std::size_t const length = 1 + below(std::min<std::size_t>(input.size() - at, 64));
    switch (below(10)) {
      case 0:
        input[at] = static_cast<char>(static_cast<unsigned char>(input[at]) ^ (1u << below(8)));
        break;
      case 1:
        input[at] = static_cast<char>(below(256));
        break;
      case 2:
        input.erase(at, length);
        break;
      case 3:
        input.resize(at);
        break;
      case 4:
        put(input, std::string(input, at, length));
        break;
      case 5: {
        std::string const& other = corpus_[below(corpus_.size())];
        input = input.substr(0, at) + other.substr(place(other));
        break;
      }
      case 6: {
        // A number in binary, at the edges of its type or near a small one.
        std::uint64_t const edge = std::uint64_t{1} << below(64);
        std::uint64_t const number = below(2) == 0 ? edge - below(2) : 0 - edge + below(3);
        char bytes[8];
        std::memcpy(bytes, &number, sizeof bytes);
        put(input, std::string_view(bytes, std::size_t{1} << below(4)));
        break;
      }
      case 7: {
        // A number in digits, in the place of one where there is one.
        std::size_t const digit = input.find_first_of("0123456789", at);
        std::size_t const end = input.find_first_not_of("0123456789", digit);
        static constexpr std::string_view numbers[] = {"0",
                                                       "-1",
                                                       "1e999",
                                                       "2147483648",
                                                       "4294967296",
                                                       "9223372036854775807",
                                                       "9223372036854775808",
                                                       "18446744073709551616",
                                                       "0.5",
                                                       "1e-320"};
        std::string_view const number = numbers[below(std::size(numbers))];
        if (digit == std::string::npos) {
          put(input, number);
        } else {
          input.replace(digit, std::min(end, input.size()) - digit, number);
        }
        break;
      }
      default:
        if (tokens_.empty()) {
          put(input, std::string(length, input[at]));
        } else {
          put(input, tokens_[below(tokens_.size())]);
        }
    }
  }

  emprl::RandomSequence random_;
  std::vector<std::string> const& corpus_;
  std::vector<std::string> const& tokens_;
};

int run(Options const& options) {
  artifact_path = options.prefix + "crash-" + options.target;
  __sanitizer_set_death_callback(write_artifact);
  for (int const signal : {SIGABRT, SIGALRM}) ::signal(signal, on_signal);

  std::vector<std::string> corpus = read_corpus(options.corpus);
  std::vector<std::string> const tokens = read_dictionary(options.dictionary);
  auto const execute = [&](std::string input) {
    current_input = std::move(input);
    ::alarm(options.timeout);
    // A copy of its exact size, so that AddressSanitizer sees one byte too far.
    std::vector<std::uint8_t> const bytes(current_input.begin(), current_input.end());
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    ::alarm(0);
  };
  for (auto const& input : corpus) execute(input);
  std::size_t const replayed = corpus.size();
  if (corpus.empty()) corpus.emplace_back();

  Mutator mutator(options.seed, corpus, tokens);
  auto const end =
      std::chrono::steady_clock::now() + std::chrono::duration<double>(options.seconds);
  std::uint64_t runs = 0;
  while (std::chrono::steady_clock::now() < end) {
    execute(mutator.next(options.max_length));
    ++runs;
    if (runs % 512 == 0 && corpus.size() < 4 * replayed + 64) corpus.push_back(current_input);
  }
  std::printf("%s: %zu inputs replayed, %llu mutated, no finding\n", options.target.c_str(),
              replayed, static_cast<unsigned long long>(runs));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    Options options;
    if (!parse(argc, argv, options)) return 2;
    LLVMFuzzerInitialize(&argc, &argv);
    return run(options);
  } catch (std::exception const& error) {
    static_cast<void>(std::fprintf(stderr, "emprl_fuzz: %s\n", error.what()));
    if (!artifact_path.empty()) write_artifact();
    return 77;
  }
}
