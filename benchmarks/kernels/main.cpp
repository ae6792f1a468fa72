// SPDX-License-Identifier: Apache-2.0

// Times the CUDA kernels, and T5 made of them, beside the limits of the machine that runs them.
// Each is compared with a reference on the CPU first, on a small shape. Compiled without nvcc the
// host executor runs the kernels: then it is a test of the program.
//   bench_kernels [NAME...] [--repetitions N] [--seconds S] [--validate-only] [--json FILE]

#include <fmt/core.h>

#include <algorithm>
#include <fstream>
#include <string>
#include <vector>

#include "emprl/core/error.hpp"
#include "kernels/measure.hpp"
#include "support/program.hpp"

namespace emprl::bench {
namespace {

struct Options {
  std::vector<std::string> kernels;
  std::string json, rows;
  KernelRun run;
};

/// The part of the machine's best that a kernel reached; 0 where neither is known.
double share(Ceilings const& best, KernelResult const& r) {
  return best.least_microseconds(r.what) / r.microseconds.median;
}

double per_second(double amount, KernelResult const& r) {
  return 1e6 * amount / r.microseconds.median;
}

io::Json to_json(KernelRun const& run) {
  io::Json results = io::Json::array();
  for (KernelResult const& r : run.results) {
    results.push_back({{"kernel", r.what.kernel},
                       {"format", r.what.format},
                       {"shape", r.what.shape},
                       {"implementation", "emprl"},
                       {"microseconds",
                        {{"median", r.microseconds.median},
                         {"lower_quartile", r.microseconds.low},
                         {"upper_quartile", r.microseconds.high}}},
                       {"repetitions", r.repetitions},
                       {"bytes", r.what.bytes},
                       {"flops", r.what.flops},
                       {"share_of_ceiling", share(run.ceilings, r)}});
  }
  io::Json checks = io::Json::array();
  for (KernelCheck const& c : run.checks) {
    checks.push_back({{"what", c.what}, {"error", c.error}, {"allowed", c.allowed}});
  }
  io::Json j;
  j["benchmark"] = "kernels";
  for (auto const& [name, value] : describe_device()) j["device"][name] = value;
  j["machine"] = describe_machine(1);
  j["ceilings"] = {{"bytes_per_second", run.ceilings.bytes_per_second},
                   {"bf16_flops", run.ceilings.bf16_flops},
                   {"float_flops", run.ceilings.float_flops},
                   {"empty_kernel_microseconds", run.ceilings.launch}};
  j["checks"] = std::move(checks);
  j["results"] = std::move(results);
  return j;
}

/// One line a result, fields between tabs, for scripts that put several programs' beside each
/// other: kernel, format, shape, implementation, median, quartiles, GB/s, TFLOP/s, share.
void write_rows(std::string const& path, KernelRun const& run) {
  std::ofstream out(path);
  for (KernelResult const& r : run.results) {
    out << fmt::format("{}\t{}\t{}\temprl\t{:.2f}\t{:.2f}\t{:.2f}\t{:.1f}\t{:.2f}\t{:.3f}\n",
                       r.what.kernel, r.what.format, r.what.shape, r.microseconds.median,
                       r.microseconds.low, r.microseconds.high, per_second(r.what.bytes, r) / 1e9,
                       per_second(r.what.flops, r) / 1e12, share(run.ceilings, r));
  }
  expects<IoError>(out.flush().good(), path + ": cannot be written");
}

void print_results(KernelRun const& run) {
  std::vector<std::vector<std::string>> table{
      {"kernel", "format", "shape", "us", "quartiles", "GB/s", "TFLOP/s", "of ceiling"}};
  for (KernelResult const& r : run.results) {
    double const part = share(run.ceilings, r);
    table.push_back({r.what.kernel, r.what.format, r.what.shape,
                     fmt::format("{:.1f}", r.microseconds.median),
                     fmt::format("[{:.1f},{:.1f}]", r.microseconds.low, r.microseconds.high),
                     fmt::format("{:.0f}", per_second(r.what.bytes, r) / 1e9),
                     r.what.flops > 0 ? fmt::format("{:.2f}", per_second(r.what.flops, r) / 1e12)
                                      : std::string("-"),
                     part > 0 ? fmt::format("{:.1f} %", 100 * part) : std::string("-")});
  }
  print_table(table);
  fmt::print(
      "\nMedian and quartiles of microseconds, L2 cold. Bytes and flops are the least that the "
      "operation\nneeds; the ceiling is the larger of their times at this machine's copy and "
      "product above. An\nempty kernel takes {:.1f} us.\n",
      run.ceilings.launch);
}

int benchmark(Options& options) {
  KernelRun& run = options.run;
  for (std::string const& name : options.kernels) {
    expects<ConfigError>(
        std::ranges::any_of(kernel_benchmarks,
                            [&](auto const& b) { return name == b.name || name == b.group; }),
        name + ": there is no benchmark and no group of this name; --list shows them");
  }
  for (auto const& [name, value] : describe_device()) fmt::print("{:<20} {}\n", name, value);
  fmt::print("\n");
  for (KernelBenchmark const& b : kernel_benchmarks) {
    // The ceilings always: shares of what another run measured would mean little.
    bool const wanted = options.kernels.empty() || std::string(b.name) == "ceilings" ||
                        std::ranges::any_of(options.kernels, [&](std::string const& name) {
                          return name == b.name || name == b.group;
                        });
    if (!wanted) continue;
    std::size_t const checks = run.checks.size();
    double const begin = now();
    b.run(run);
    fmt::print("{}: {} comparisons with the reference hold, {:.1f} s\n", b.name,
               run.checks.size() - checks, now() - begin);
    std::fflush(stdout);
    // After each, so that a run cut short leaves what it has.
    if (!options.json.empty()) io::write_json_file(options.json, to_json(run));
    if (!options.rows.empty()) write_rows(options.rows, run);
  }
  fmt::print("\n");
  if (!run.validate_only) print_results(run);
  return 0;
}

}  // namespace
}  // namespace emprl::bench

int main(int argc, char** argv) {
  using namespace emprl::bench;
  Options o;
#if !defined(EMPRL_BENCH_CUDA)
  o.run.small = true;
#endif
  bool list = false;
  CLI::App app{
      "The CUDA kernels at the shapes of T5-base and the model made of them, compared with a "
      "reference on the CPU and timed beside the machine's own copy and matrix product.",
      "bench_kernels"};
  app.add_option("kernel", o.kernels, "Only these, or groups (kernels, model); none: all");
  app.add_flag("--list", list, "Print the benchmarks and their groups and stop");
  app.add_option("--repetitions", o.run.repetitions, "Measurements of each line, at most")
      ->check(CLI::Range(5, 100000))
      ->capture_default_str();
  app.add_option("--seconds", o.run.seconds, "Seconds that the measurements of a line may take")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_flag("--validate-only", o.run.validate_only, "Compare with the reference and stop");
  app.add_flag("--small", o.run.small, "Time the small shapes of the comparison");
  app.add_option("--json", o.json, "Write everything to this file too");
  app.add_option("--tsv", o.rows, "Write the results as lines of fields to this file too");
  return run(app, argc, argv, [&] {
    if (list) {
      for (KernelBenchmark const& b : kernel_benchmarks) fmt::print("{:<16}{}\n", b.name, b.group);
      return 0;
    }
    return benchmark(o);
  });
}
