// SPDX-License-Identifier: Apache-2.0
#pragma once

// Stopping a long run from outside: the first SIGINT (Ctrl-C) or SIGTERM asks it to finish its
// step, save and leave; the second one kills it as if nobody had listened.

#include <atomic>
#include <csignal>
#include <string>

#include <signal.h>

#include "emprl/core/error.hpp"

namespace emprl::train {

/// Thrown by a run that was asked to stop and has saved what it had.
struct Interrupted : Error {
  /// @param how_to_resume a sentence for the person who stopped it, such as the command that goes
  /// on
  explicit Interrupted(std::string const& how_to_resume) : Error("interrupted; " + how_to_resume) {}
};

namespace detail {

static_assert(std::atomic<int>::is_always_lock_free,
              "a signal handler may touch atomics only if they need no lock");

inline std::atomic<int> received_signal{0};
inline std::atomic<int> interrupt_guards{0};

/// A signal that is listened to, and what happened to it before.
struct WatchedSignal {
  int number;
  struct sigaction before;
  bool watched;
};
inline WatchedSignal watched_signals[2] = {{SIGINT, {}, false}, {SIGTERM, {}, false}};

// Only sigaction(2) and a lock-free atomic: both may be used inside a handler.
extern "C" inline void emprl_train_on_interrupt(int number) {
  received_signal.store(number);
  for (auto const& signal : watched_signals) {
    if (signal.watched) static_cast<void>(::sigaction(signal.number, &signal.before, nullptr));
  }
}

}  // namespace detail

/// While one lives, SIGINT and SIGTERM only make `interrupted()` true. The first of them gives both
/// signals back what they did before, so that the next one kills; a signal that was ignored before
/// (nohup, a job in the background) stays ignored. Guards may nest: the outermost counts. Make them
/// on one thread.
class InterruptGuard {
 public:
  InterruptGuard() {
    if (detail::interrupt_guards.fetch_add(1) > 0) return;
    struct sigaction listen {};
    listen.sa_handler = detail::emprl_train_on_interrupt;
    // Reads and writes under way go on: the run stops between steps, not inside a file.
    listen.sa_flags = SA_RESTART;
    static_cast<void>(::sigemptyset(&listen.sa_mask));
    // Each handler runs with the other signal held back, for both touch the same table.
    for (auto const& signal : detail::watched_signals) {
      static_cast<void>(::sigaddset(&listen.sa_mask, signal.number));
    }
    sigset_t old_mask;
    static_cast<void>(::pthread_sigmask(SIG_BLOCK, &listen.sa_mask, &old_mask));
    for (auto& signal : detail::watched_signals) {
      signal.watched =
          ::sigaction(signal.number, nullptr, &signal.before) == 0 &&
          ((signal.before.sa_flags & SA_SIGINFO) != 0 || signal.before.sa_handler != SIG_IGN);
    }
    for (auto& signal : detail::watched_signals) {
      if (signal.watched) signal.watched = ::sigaction(signal.number, &listen, nullptr) == 0;
    }
    static_cast<void>(::pthread_sigmask(SIG_SETMASK, &old_mask, nullptr));
  }
  InterruptGuard(InterruptGuard const&) = delete;
  InterruptGuard& operator=(InterruptGuard const&) = delete;
  ~InterruptGuard() {
    if (detail::interrupt_guards.fetch_sub(1) > 1) return;
    for (auto& signal : detail::watched_signals) {
      if (signal.watched) static_cast<void>(::sigaction(signal.number, &signal.before, nullptr));
      signal.watched = false;
    }
  }
};

/// Whether a signal asked the process to stop. It stays true, also beyond the guard, so that of
/// several runs in a row none misses it.
inline bool interrupted() {
  return detail::received_signal.load() != 0;
}

/// Forgets the request: for programs that go on after one, such as a prompt.
inline void clear_interrupt() {
  detail::received_signal.store(0);
}

/// Makes a file size limit and a closed pipe errors of write(2), which become IoError, instead of
/// the death of the process. For programs to call first; a library does not do so unasked.
inline void ignore_write_signals() {
  static_cast<void>(std::signal(SIGXFSZ, SIG_IGN));
  static_cast<void>(std::signal(SIGPIPE, SIG_IGN));
}

}  // namespace emprl::train
