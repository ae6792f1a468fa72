// SPDX-License-Identifier: Apache-2.0
#pragma once

// The host executor: runs CUDA kernels on the processor, thread by thread, to find out whether they
// are right. It is the other half of include/emprl/cuda/host.hpp; the two together need a C++20
// compiler, POSIX and Boost.Context, and nothing else of this project but core/error.hpp and
// core/rng.hpp. Another project takes include/emprl/cuda, include/emprl/core and this folder, and
// compiles executor.cpp into its tests.
//
// A kernel is written against emprl/cuda (kernel.hpp, shared.hpp, ...) and launched with `launch`,
// as for the GPU. The grid's blocks run one after the other in an order drawn from the seed; every
// thread of a block is a fiber, and when one waits another is drawn. A fault ends the launch with a
// KernelFault that names the kernel, the block, the thread and the line.
//
// What it finds:
//   * barriers that not all threads reach, or that they reach in different lines; warp functions
//     whose mask names a lane that does not come, or does not name the caller; any deadlock: each
//     group of stuck threads is listed with the line where it waits
//   * races on shared memory: two threads at one element, one of them writing, and no barrier
//     between them (within a warp sync_warp is enough; shuffles order nothing, as in CUDA's guide;
//     atomics do not race with each other)
//   * reads of shared memory that nobody has written in this block. It starts as NaN (all bits
//     set); Options may allow the read, to see that NaN reaches the output
//   * indices outside a shared array or a part of it, and misaligned vector accesses
//   * touching the target of cp.async before its wait_copies; reading what another thread copied
//     without a barrier after its wait
//   * launches that no device takes; one that overlaps the launch in front (LaunchShape) and has a
//     thread that ends without wait_for_previous
// Under AddressSanitizer also overruns of buffers in global memory. The fibers are announced to it,
// and it names the kernel. Results are those of the kernel's own arithmetic.
//
// What it cannot find:
//   * anything about speed: occupancy, bank conflicts, coalescing, registers; launch bounds, and
//     devices whose blocks have less than the 227 KB of shared memory of sm_90
//   * races in global memory and between blocks: blocks do not overlap. A kernel in which a block
//     waits for another never ends, nor does a thread that polls a flag of its own block
//   * the memory model beyond barriers: fences, volatile, acquire and release, the async proxy
//   * the last bits of tensor cores and of approximate instructions
//   * what nvcc's optimiser does; ptxas; anything of streams: launches run at once, or, recorded as
//     a graph (emprl/cuda/graph.cuh), at every replay. Launches that overlap do not: what a kernel
//     touches before wait_for_previous is not looked at. Of a capture it knows that it takes no
//     copy from or to the host, no waiting and no allocation
//   * partial warp barriers: of several reads of one element before a write only the first one's
//     time is kept, so a race may be missed (never invented)
//
// What it costs (one core of an EPYC server, g++ 12 -O3, November 2026; the hidden test [measure]
// prints it): a switch of fibers 32 ns, an access to shared memory 12 ns and 56 bytes of records an
// element, a barrier of 256 threads 9 us, an mma.sync of a warp 1.9 us, which is 2.2 GFLOP/s.
// Kernels that never wait run on one stack without switches.
//
// One kernel runs at a time, on the thread that launches it. A kernel function must not be
// noexcept: stuck threads are ended by an exception.

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "emprl/cuda/host.hpp"

namespace host_executor {

using emprl::cuda::host::Fault;

/// What `launch` throws when a kernel is wrong.
class KernelFault : public std::runtime_error {
 public:
  KernelFault(Fault kind, std::string const& report) : std::runtime_error(report), kind_(kind) {}
  Fault kind() const { return kind_; }

 private:
  Fault kind_;
};

/// How the launches that follow are run.
struct Options {
  /// Fixes the order of blocks and threads.
  std::uint64_t seed = 0;
  /// Report reads of shared memory that nobody wrote. Without it they give NaN.
  bool report_unwritten = true;
};

/// The options in force; changed freely between launches.
Options& options();

/// Options for a scope.
class WithOptions {
 public:
  explicit WithOptions(Options const& these) : before_(options()) { options() = these; }
  ~WithOptions() { options() = before_; }
  WithOptions(WithOptions const&) = delete;
  WithOptions& operator=(WithOptions const&) = delete;

 private:
  Options before_;
};

/// What the launches so far have done.
struct Counts {
  std::uint64_t switches = 0;
  std::uint64_t threads = 0;
};
Counts counts();

}  // namespace host_executor
