// SPDX-License-Identifier: Apache-2.0
#include "emprl/io/child_process.hpp"

#include <signal.h>

#include <cerrno>
#include <chrono>
#include <string>
#include <thread>
#include <type_traits>

#include "io/temporary_folder.hpp"
#include "support/catch.hpp"

using Catch::Matchers::ContainsSubstring;
using emprl::IoError;
using emprl::ShapeError;
using emprl::io::ChildEnded;
using emprl::io::ChildLimits;
using emprl::io::ChildProcess;
using emprl::io::ChildStatus;
using emprl::io::ChildTimedOut;
using emprl::test::message_of;
using emprl::test::slurp;
using emprl::test::TemporaryFolder;
using std::chrono::milliseconds;
using std::chrono::seconds;

namespace {

ChildProcess::Clock::time_point in(milliseconds time) {
  return ChildProcess::Clock::now() + time;
}

// Long enough for a busy machine; no test waits for it.
ChildProcess::Clock::time_point soon() {
  return in(seconds(60));
}

// No such process, not even one that waits to be waited for.
bool is_gone(pid_t pid) {
  return ::kill(pid, 0) != 0 && errno == ESRCH;
}

// A killed grandchild belongs to init, which takes a moment to bury it. A container may lack an
// init, so a zombie counts as dead here.
bool dies(pid_t pid) {
  for (int i = 0; i < 500; ++i) {
    if (is_gone(pid)) return true;
    if (slurp("/proc/" + std::to_string(pid) + "/stat").find(") Z ") != std::string::npos) {
      return true;
    }
    std::this_thread::sleep_for(milliseconds(10));
  }
  return false;
}

}  // namespace

TEST_CASE("child process: a line goes in and a line comes out", "[io][child_process][unit]") {
  ChildProcess child("while read -r line; do echo \"<$line>\"; done");
  for (std::string const text : {"one", "", "three words here", "back\\slash"}) {
    child.write_line(text, soon());
    CHECK(child.read_line(soon()) == "<" + text + ">");
  }
  CHECK_FALSE(child.wait(in(milliseconds(10))));
  child.close_input();
  auto const status = child.wait(soon());
  REQUIRE(status);
  CHECK(status->kind == ChildStatus::Kind::exited);
  CHECK(status->number == 0);
}

TEST_CASE("child process: both pipes may be full without a deadlock", "[io][child_process][unit]") {
  ChildProcess child("cat");
  std::string const line(1 << 20, 'x');
  for (int i = 0; i < 20; ++i) child.write_line(line + std::to_string(i), soon());
  for (int i = 0; i < 20; ++i) REQUIRE(child.read_line(soon()) == line + std::to_string(i));
}

TEST_CASE("child process: a flood on standard error blocks nobody, and its end is kept",
          "[io][child_process][unit]") {
  ChildProcess child(
      "head -c 1000000 /dev/zero | tr '\\0' e >&2; echo done; "
      "head -c 1000000 /dev/zero | tr '\\0' f >&2; echo 'the end' >&2");
  CHECK(child.read_line(soon()) == "done");
  auto const message = message_of<ChildEnded>([&] { child.read_line(soon()); });
  CHECK_THAT(message, ContainsSubstring("ended with status 0"));
  CHECK_THAT(message, ContainsSubstring("fffthe end\"."));
  CHECK(message.size() < 8192);
}

TEST_CASE("child process: a child that never answers is late, however much it complains",
          "[io][child_process][unit]") {
  auto const start = ChildProcess::Clock::now();
  SECTION("silent") {
    ChildProcess child("echo loading >&2; echo ready; sleep 100");
    REQUIRE(child.read_line(soon()) == "ready");
    auto const message = message_of<ChildTimedOut>([&] { child.read_line(in(milliseconds(200))); });
    CHECK_THAT(message, ContainsSubstring("has printed no line by the deadline"));
    CHECK_THAT(message, ContainsSubstring("sleep 100"));
    CHECK_THAT(message, ContainsSubstring("standard error: \"loading\""));
  }
  SECTION("flooding standard error") {
    ChildProcess child("while :; do echo eeeeeeeeeeeeeeeeeeeeeeeeeeee >&2; done");
    CHECK_THROWS_AS(child.read_line(in(milliseconds(200))), ChildTimedOut);
  }
  SECTION("not reading") {
    ChildProcess child("sleep 100");
    std::string const line(1 << 20, 'x');
    auto const message =
        message_of<ChildTimedOut>([&] { child.write_line(line, in(milliseconds(200))); });
    CHECK_THAT(message, ContainsSubstring("has not read its input by the deadline"));
  }
  CHECK(ChildProcess::Clock::now() - start < seconds(50));
}

TEST_CASE("child process: the message says how the child ended", "[io][child_process][unit]") {
  auto const message = [](std::string const& command) {
    ChildProcess child(command);
    return message_of<ChildEnded>([&] { child.read_line(soon()); });
  };
  CHECK_THAT(message("echo oops >&2; exit 3"), ContainsSubstring("ended with status 3"));
  CHECK_THAT(message("echo oops >&2; exit 3"), ContainsSubstring("\"oops\""));
  CHECK_THAT(message("exit 0"), ContainsSubstring("It wrote nothing to standard error."));
  CHECK_THAT(message("kill -9 $$"), ContainsSubstring("was killed by signal 9"));
  CHECK_THAT(message("/no/such/program"), ContainsSubstring("ended with status 127"));
  CHECK_THAT(message("printf 'cut off'"), ContainsSubstring("ended with status 0"));
  CHECK_THAT(message("printf '\\377' >&2; exit 1"), ContainsSubstring("\"\xEF\xBF\xBD\""));
  CHECK_THAT(message("exec >&-; sleep 100"), ContainsSubstring("closed its output"));
}

TEST_CASE("child process: lines printed before the end are read first",
          "[io][child_process][unit]") {
  ChildProcess child("echo a; echo b; exit 1");
  CHECK(child.read_line(soon()) == "a");
  CHECK(child.read_line(soon()) == "b");
  CHECK_THROWS_AS(child.read_line(soon()), ChildEnded);
  CHECK_THROWS_AS(child.read_line(soon()), ChildEnded);
}

TEST_CASE("child process: writing to a child that has gone is an error, not a signal",
          "[io][child_process][unit]") {
  ChildProcess child("exit 4");
  auto const message = message_of<ChildEnded>([&] {
    for (;;) child.write_line("hello", soon());
  });
  CHECK_THAT(message, ContainsSubstring("ended with status 4"));
}

TEST_CASE("child process: the end is noticed although a grandchild holds the pipes",
          "[io][child_process][unit]") {
  pid_t grandchild = 0;
  auto const start = ChildProcess::Clock::now();
  {
    ChildProcess child("sleep 100 & echo $!; exit 5");
    grandchild = std::stoi(child.read_line(soon()));
    auto const message = message_of<ChildEnded>([&] { child.read_line(soon()); });
    CHECK_THAT(message, ContainsSubstring("ended with status 5"));
  }
  CHECK(dies(grandchild));
  CHECK(ChildProcess::Clock::now() - start < seconds(50));
}

TEST_CASE("child process: what a child may print is bounded", "[io][child_process][unit]") {
  SECTION("in one line") {
    ChildProcess child("cat /dev/zero", ChildLimits{.longest_line = 100000});
    auto const message = message_of<IoError>([&] { child.read_line(soon()); });
    CHECK_THAT(message, ContainsSubstring("a line of more than 100000 bytes"));
  }
  SECTION("in lines that nobody asked for") {
    ChildProcess child("yes ''", ChildLimits{.most_unread = 100000});
    auto const message = message_of<IoError>(
        [&] { child.write_line(std::string(std::size_t{1} << 20, 'x'), soon()); });
    CHECK_THAT(message, ContainsSubstring("more than 100000 bytes that nobody had asked for"));
  }
  SECTION("but a line of just that length is read") {
    ChildProcess child("echo 12345; echo 123456", ChildLimits{.longest_line = 5});
    CHECK_THROWS_AS((child.read_line(soon()), child.read_line(soon())), IoError);
    ChildProcess other("echo 12345", ChildLimits{.longest_line = 5});
    CHECK(other.read_line(soon()) == "12345");
  }
}

TEST_CASE("child process: the destructor ends a child that ignores the end of its input",
          "[io][child_process][unit]") {
  ChildLimits const hasty{.patience = milliseconds(100)};
  pid_t pid = 0;
  pid_t grandchild = 0;
  SECTION("by SIGTERM, which it may catch to clean up") {
    TemporaryFolder const folder;
    std::string const file = (folder / "told").string();
    {
      ChildProcess child(
          "trap 'echo term > " + file + "; exit' TERM; sleep 100 & echo $!; while :; do wait; done",
          ChildLimits{.patience = seconds(2)});
      pid = child.pid();
      grandchild = std::stoi(child.read_line(soon()));
    }
    CHECK(slurp(file) == "term\n");
  }
  SECTION("by SIGTERM") {
    ChildProcess child("sleep 100 & echo $!; wait", hasty);
    pid = child.pid();
    grandchild = std::stoi(child.read_line(soon()));
  }
  SECTION("by SIGKILL, with all it has started") {
    ChildProcess child("trap '' TERM; sleep 100 & echo $!; while :; do sleep 100; done", hasty);
    pid = child.pid();
    grandchild = std::stoi(child.read_line(soon()));
  }
  CHECK(is_gone(pid));
  CHECK(dies(grandchild));
}

TEST_CASE("child process: a child with much left to say comes to its end",
          "[io][child_process][unit]") {
  TemporaryFolder const folder;
  std::string const file = (folder / "finished").string();
  {
    ChildProcess child(
        "cat > /dev/null; head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2; "
        "echo yes > " +
            file,
        ChildLimits{.patience = seconds(20)});
  }
  CHECK(slurp(file) == "yes\n");
}

TEST_CASE("child process: children do not hold one another's pipes", "[io][child_process][unit]") {
  ChildProcess first("cat");
  ChildProcess second("sleep 100", ChildLimits{.patience = milliseconds(10)});
  first.close_input();
  REQUIRE(first.wait(soon()));
}

TEST_CASE("child process: misuse is an error", "[io][child_process][unit]") {
  STATIC_REQUIRE(std::is_nothrow_destructible_v<ChildProcess>);
  ChildProcess child("cat");
  CHECK_THROWS_AS(child.write_line("two\nlines", soon()), ShapeError);
  child.close_input();
  CHECK_THROWS_AS(child.write_line("late", soon()), ShapeError);
}
