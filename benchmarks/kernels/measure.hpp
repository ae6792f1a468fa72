// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the benchmark of the kernels asks for and finds out. Plain C++ without CUDA, fmt or JSON:
// main.cpp, which prints, and the files that nvcc compiles have this in common.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "emprl/core/error.hpp"
#include "support/timing.hpp"

namespace emprl::bench {

/// One thing that is timed. Bytes and flops are what the operation cannot do without, whatever a
/// kernel does: every input read once, every output written once, no product taken twice.
struct KernelCase {
  std::string kernel;
  std::string format;  ///< of what it reads: "float" or "Bf16"
  std::string shape;
  double bytes = 0;
  double flops = 0;
};

struct KernelResult {
  KernelCase what;
  Spread microseconds;
  int repetitions = 0;
};

/// What this machine does at best, measured in the same run; 0 where it was not measured.
struct Ceilings {
  double bytes_per_second = 0;  ///< of a copy, read and written bytes together
  double bf16_flops = 0;        ///< of a cuBLASLt product of Bf16
  double float_flops = 0;       ///< of one of float, without TF32
  double launch = 0;            ///< microseconds that an empty kernel takes by the same clock

  /// The microseconds in which these bytes and flops can be done. 0: not known.
  double least_microseconds(KernelCase const& c) const {
    double const peak = c.format == "Bf16" ? bf16_flops : float_flops;
    double const memory = bytes_per_second > 0 ? c.bytes / bytes_per_second : 0;
    double const arithmetic = peak > 0 ? c.flops / peak : 0;
    return 1e6 * std::max(memory, arithmetic);
  }
};

/// One check against the reference.
struct KernelCheck {
  std::string what;
  double error = 0;    ///< the largest difference, as a part of the largest value
  double allowed = 0;  ///< what the number format explains
};

/// A run: its settings, and what it has come to so far.
struct KernelRun {
  int repetitions = 51;
  /// Seconds that one case may take; with fewer repetitions, but five at least.
  double seconds = 0.5;
  bool validate_only = false;
  /// Time the shapes of the validation: all that the host executor can do.
  bool small = false;

  Ceilings ceilings;
  std::vector<KernelCheck> checks;
  std::vector<KernelResult> results;

  /// Compares what a kernel wrote with the truth.
  /// @throws Error if they differ by more than `allowed` times the largest true value
  void check(std::string const& what, std::vector<double> const& actual,
             std::vector<double> const& truth, double allowed) {
    expects(actual.size() == truth.size(), what + ": not as many numbers as the reference has");
    double largest = 0, error = 0;
    for (std::size_t i = 0; i < truth.size(); ++i) {
      largest = std::max(largest, std::abs(truth[i]));
      double const d = std::abs(actual[i] - truth[i]);
      error = d <= std::numeric_limits<double>::max() ? std::max(error, d)
                                                      : std::numeric_limits<double>::infinity();
    }
    if (largest > 0) error /= largest;
    checks.push_back({what, error, allowed});
    expects<Error>(error <= allowed, what + ": differs from the reference by " +
                                         std::to_string(error) + " of its largest value; allowed " +
                                         std::to_string(allowed));
  }
};

/// Everything about the GPU that a number without it means nothing, as names and values.
/// @throws CudaError if there is none
std::vector<std::pair<std::string, std::string>> describe_device();

// Each validates its kernels, or passes of the model, then times them.
void bench_ceilings(KernelRun& run);
void bench_attention(KernelRun& run);
void bench_decode(KernelRun& run);
void bench_few_rows(KernelRun& run);
void bench_token_logprob(KernelRun& run);
void bench_sampling(KernelRun& run);
void bench_rms_norm(KernelRun& run);
void bench_adamw(KernelRun& run);
void bench_embedding(KernelRun& run);
void bench_objective(KernelRun& run);
void bench_generation(KernelRun& run);
void bench_training(KernelRun& run);
void bench_ppo(KernelRun& run);

struct KernelBenchmark {
  char const* name;
  void (*run)(KernelRun&);
  /// All of a group have a name together.
  char const* group = "kernels";
};

/// The most important first: who stops early has them.
inline constexpr KernelBenchmark kernel_benchmarks[] = {
    {"ceilings", bench_ceilings},
    {"attention", bench_attention},
    {"decode", bench_decode},
    {"few_rows", bench_few_rows},
    {"token_logprob", bench_token_logprob},
    {"adamw", bench_adamw},
    {"rms_norm", bench_rms_norm},
    {"sampling", bench_sampling},
    {"embedding", bench_embedding},
    {"objective", bench_objective},
    {"generation", bench_generation, "model"},
    {"training", bench_training, "model"},
    {"ppo", bench_ppo, "model"},
};

}  // namespace emprl::bench
