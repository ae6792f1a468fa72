// SPDX-License-Identifier: Apache-2.0
#include "emprl/train/interrupt.hpp"

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <string>

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support/catch.hpp"

namespace {

using namespace emprl::train;

/// Runs `f` in a process of its own. @return what waitpid reported
template <class F>
int status_of_child(F&& f) {
  pid_t const child = ::fork();
  if (child == 0) {
    // A core file would be all that a killed child leaves.
    rlimit const none{0, 0};
    ::setrlimit(RLIMIT_CORE, &none);
    // Catch2 listens to these signals itself while a test runs.
    std::signal(SIGINT, SIG_DFL);
    std::signal(SIGTERM, SIG_DFL);
    ::_exit(f());
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return status;
}

bool exited_with(int status, int code) {
  return WIFEXITED(status) && WEXITSTATUS(status) == code;
}
bool killed_by(int status, int signal) {
  return WIFSIGNALED(status) && WTERMSIG(status) == signal;
}

}  // namespace

TEST_CASE("interrupt: the first signal asks, the second kills", "[train][interrupt][unit]") {
  for (int const first : {SIGINT, SIGTERM}) {
    for (int const second : {SIGINT, SIGTERM}) {
      int const status = status_of_child([&] {
        InterruptGuard const guard;
        if (interrupted()) return 1;
        std::raise(first);
        if (!interrupted()) return 2;
        std::raise(second);
        return 3;
      });
      CHECK(killed_by(status, second));
    }
  }
}

TEST_CASE("interrupt: without a guard a signal kills, before it and after it",
          "[train][interrupt][unit]") {
  CHECK(killed_by(status_of_child([] { return std::raise(SIGINT); }), SIGINT));
  CHECK(killed_by(status_of_child([] {
                    { InterruptGuard const guard; }
                    return std::raise(SIGINT);
                  }),
                  SIGINT));
}

TEST_CASE("interrupt: guards nest, and the request outlives them until it is cleared",
          "[train][interrupt][unit]") {
  CHECK(exited_with(status_of_child([] {
                      InterruptGuard const outer;
                      { InterruptGuard const inner; }
                      std::raise(SIGTERM);
                      return interrupted() ? 7 : 1;
                    }),
                    7));
  CHECK(exited_with(status_of_child([] {
                      {
                        InterruptGuard const guard;
                        std::raise(SIGINT);
                      }
                      if (!interrupted()) return 1;
                      InterruptGuard const next;
                      if (!interrupted()) return 2;
                      clear_interrupt();
                      if (interrupted()) return 3;
                      std::raise(SIGINT);
                      return interrupted() ? 7 : 4;
                    }),
                    7));
}

TEST_CASE("interrupt: a signal that was ignored stays ignored", "[train][interrupt][unit]") {
  CHECK(exited_with(status_of_child([] {
                      std::signal(SIGINT, SIG_IGN);
                      InterruptGuard const guard;
                      std::raise(SIGINT);
                      return interrupted() ? 1 : 7;
                    }),
                    7));
}

TEST_CASE("interrupt: a closed pipe and a file size limit become errors of write",
          "[train][interrupt][unit]") {
  CHECK(exited_with(status_of_child([] {
                      ignore_write_signals();
                      int ends[2];
                      if (::pipe(ends) != 0) return 1;
                      ::close(ends[0]);
                      return ::write(ends[1], "x", 1) < 0 && errno == EPIPE ? 7 : 2;
                    }),
                    7));
  CHECK(exited_with(status_of_child([] {
                      ignore_write_signals();
                      std::FILE* const file = std::tmpfile();
                      if (file == nullptr) return 1;
                      int const fd = ::fileno(file);
                      rlimit const none{0, 0};
                      ::setrlimit(RLIMIT_FSIZE, &none);
                      return ::write(fd, "x", 1) < 0 && errno == EFBIG ? 7 : 2;
                    }),
                    7));
}

TEST_CASE("interrupt: Interrupted carries the sentence on how to resume",
          "[train][interrupt][unit]") {
  Interrupted const error("run the same command again to go on.");
  CHECK(std::string(error.what()) == "interrupted; run the same command again to go on.");
}
