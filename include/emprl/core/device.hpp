// SPDX-License-Identifier: Apache-2.0
#pragma once

// Execution contexts. The first argument of every op is one; its type selects the implementation.

#include <concepts>

#include "emprl/core/arena.hpp"
#include "emprl/core/config.hpp"

namespace emprl {

/// The host: its threads and its working memory. One context serves one thread of control at a
/// time.
struct Cpu {
  /// Threads that an op may use, this one included.
  int threads = 1;
  /// Activations kept for a backward pass. Whoever starts a training pass opens the scope that
  /// releases them.
  Arena saved;
  /// Temporaries of one op or layer; released when it returns.
  Arena scratch;

  Cpu() = default;
  explicit Cpu(int thread_count) : threads(thread_count) {}
};

/// Where an op runs.
template <class D>
concept Device = requires(D& dev) {
  dev.saved;
  dev.scratch;
};

static_assert(Device<Cpu>);

/// While it lives, the caller orders work that writes no parameter. So a device whose launches may
/// overlap can read the parameters of one while the one in front still runs. On the host it means
/// nothing.
template <class D>
class LaunchChain {
 public:
  explicit LaunchChain(D&) {}
  LaunchChain(LaunchChain const&) = delete;
  LaunchChain& operator=(LaunchChain const&) = delete;
};

}  // namespace emprl
