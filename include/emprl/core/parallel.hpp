// SPDX-License-Identifier: Apache-2.0
#pragma once

// Loops over the threads of the host.

#include <algorithm>

#include "emprl/core/config.hpp"
#include "emprl/core/device.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace emprl {

/// Calls f(begin, end) on disjoint ranges that cover [0, n), one range a thread, ranges fixed by
/// (n, threads) alone. Ranges shorter than `grain` are not worth a thread: fewer threads are used.
/// f must not throw. Nested calls run serially.
template <class F>
void parallel_for(Cpu const& dev, index_t n, index_t grain, F&& f) {
  if (n <= 0) return;
  index_t const most = std::max<index_t>(1, n / std::max<index_t>(1, grain));
  [[maybe_unused]] int const threads =
      static_cast<int>(std::min<index_t>(static_cast<index_t>(dev.threads), most));
#ifdef _OPENMP
  if (threads > 1 && omp_in_parallel() == 0) {
#pragma omp parallel num_threads(threads)
    {
      index_t const count = omp_get_num_threads();
      index_t const me = omp_get_thread_num();
      index_t const begin = n * me / count;
      index_t const end = n * (me + 1) / count;
      if (begin < end) f(begin, end);
    }
    return;
  }
#endif
  f(index_t{0}, n);
}

}  // namespace emprl
