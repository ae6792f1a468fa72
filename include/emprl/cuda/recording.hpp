// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a graph is where there is no nvcc: work that is written down in its order instead of being
// done, for cuda/graph.cuh to do again and again. What CUDA does not let into a capture is refused
// here as well, so that a test without a GPU finds it.

#if !defined(__CUDACC__)

#include <functional>
#include <string>
#include <vector>

#include "emprl/core/error.hpp"

namespace emprl::cuda::host {

/// Work of a stream, with its arguments as they were.
struct Recording {
  std::vector<std::function<void()>> work;
  /// The first call that a capture does not take; it spoils the rest, whoever caught its error.
  std::string refused;
};

/// The recording of this thread; null while work is done at once.
inline thread_local Recording* recording = nullptr;

/// Does the work now, or writes it down if a recording is under way. It is copied: what it points
/// to must be there at every replay.
template <class Work>
void enqueue(Work const& work) {
  if (recording != nullptr) {
    recording->work.emplace_back(work);
  } else {
    work();
  }
}

/// Notes that `what` has spoilt the recording, if one is under way.
inline bool spoil_recording(char const* what) {
  if (recording == nullptr) return false;
  if (recording->refused.empty()) recording->refused = what;
  return true;
}

/// @throws CudaError if a recording is under way
inline void refuse_in_recording(char const* what) {
  if (spoil_recording(what)) {
    throw CudaError(std::string(what) + ": not permitted while a graph is captured");
  }
}

}  // namespace emprl::cuda::host

#endif
