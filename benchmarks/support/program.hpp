// SPDX-License-Identifier: Apache-2.0
#pragma once

// What every benchmark does the same way: read its options, say on what machine it runs, print a
// table, write JSON, and turn whatever goes wrong into one line and an exit status: 0 done, 1
// failed, 2 wrong usage.

#include <fmt/core.h>
#include <stdlib.h>
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "emprl/io/json.hpp"

namespace emprl::bench {

/// The name that Linux gives the processor; "unknown" elsewhere.
inline std::string processor_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("model name")) continue;
    std::size_t const colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown";
}

inline std::string compiler_name() {
#ifdef __clang__
  return std::string("clang++ ") + __clang_version__;
#else
  return std::string("g++ ") + __VERSION__;
#endif
}

/// The widest vectors that the compiler may use.
inline std::string instruction_set() {
#if defined(__AVX512F__)
  return "AVX-512";
#elif defined(__AVX2__)
  return "AVX2";
#elif defined(__x86_64__)
  return "x86-64 baseline";
#else
  return "other";
#endif
}

/// Everything about machine and build that a number without it means nothing.
inline io::Json describe_machine(int threads) {
  double load[1] = {0};
  io::Json j;
  j["processor"] = processor_name();
  j["processors"] = std::thread::hardware_concurrency();
  j["threads"] = threads;
  j["compiler"] = compiler_name();
#ifdef __OPTIMIZE__
  j["optimised"] = true;
#else
  j["optimised"] = false;
#endif
  j["instruction_set"] = instruction_set();
#ifdef EMPRL_HAS_ONEDNN
  j["matrix_products"] = "oneDNN";
#else
  j["matrix_products"] = "Eigen";
#endif
  if (getloadavg(load, 1) == 1) j["load_before"] = load[0];
  return j;
}

/// The most memory that this process ever held, in MiB (Linux counts in KiB).
inline double peak_memory() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024;
}

inline void print_machine(io::Json const& machine) {
  for (auto const& [name, value] : machine.items()) {
    fmt::print("{:<16} {}\n", name,
               value.is_string() ? value.get_ref<std::string const&>() : value.dump());
  }
  fmt::print("\n");
}

/// Prints rows of cells, the first row as header: names to the left, numbers to the right.
inline void print_table(std::vector<std::vector<std::string>> const& rows) {
  std::vector<std::size_t> widths;
  for (auto const& row : rows) {
    widths.resize(std::max(widths.size(), row.size()), 0);
    for (std::size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], row[c].size());
  }
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::string line;
    for (std::size_t c = 0; c < rows[i].size(); ++c) {
      line += c == 0 ? fmt::format("{:<{}}", rows[i][c], widths[c])
                     : fmt::format("  {:>{}}", rows[i][c], widths[c]);
    }
    fmt::print("{}\n", line);
    if (i == 0) fmt::print("{}\n", std::string(line.size(), '-'));
  }
}

/// Parses the options of `app` and does the work. @return the status to exit with
template <class Work>
int run(CLI::App& app, int argc, char** argv, Work&& work) {
  try {
    app.parse(argc, argv);
  } catch (CLI::ParseError const& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  try {
    return std::forward<Work>(work)();
  } catch (std::exception const& error) {
    fmt::print(stderr, "{}: error: {}\n", app.get_name(), error.what());
    return 1;
  }
}

}  // namespace emprl::bench
