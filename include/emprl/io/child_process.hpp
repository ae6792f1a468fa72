// SPDX-License-Identifier: Apache-2.0
#pragma once

// A program run beside this one and spoken to in lines: one line to its standard input, one line
// from its standard output, each with a deadline. POSIX.
//
// Nothing here waits for one pipe alone. While a line is written, output is taken in as well, so
// that a child which prints before it has read everything does not block against its parent; what
// it says on standard error is always read away, and only the end of it is kept for messages.
// Between calls nobody reads: a child that then prints more than a pipe holds (64 KiB on Linux)
// waits for the next call.
//
// The child leads a process group of its own: stopping it stops what it has started, and Ctrl-C at
// the terminal reaches the parent alone. If the parent is killed, the child finds the end of its
// input and should leave by itself.

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "emprl/core/error.hpp"
#include "emprl/io/file.hpp"
#include "emprl/io/utf8.hpp"

// Not every system's headers declare it.
extern "C" char** environ;

namespace emprl::io {

/// A child ended, or closed its pipes, while something was still asked of it.
class ChildEnded : public IoError {
 public:
  using IoError::IoError;
};

/// A child let a deadline pass.
class ChildTimedOut : public IoError {
 public:
  using IoError::IoError;
};

/// How a child ended.
struct ChildStatus {
  enum class Kind {
    exited,   ///< by itself; `number` is its exit status
    killed,   ///< by a signal; `number` is the signal's
    unknown,  ///< this process discards its children's status (SIGCHLD is ignored)
  };
  Kind kind = Kind::unknown;
  int number = 0;

  /// The end of a sentence: "ended with status 3", "was killed by signal 9 (Killed)".
  std::string text() const {
    if (kind == Kind::exited) return "ended with status " + std::to_string(number);
    if (kind == Kind::unknown) return "ended";
    char const* const name = ::strsignal(number);
    return "was killed by signal " + std::to_string(number) +
           (name != nullptr ? " (" + std::string(name) + ")" : std::string());
  }
};

/// What a child may cost. Sizes are in bytes.
struct ChildLimits {
  /// The longest line it may print.
  std::size_t longest_line = std::size_t{16} << 20;
  /// How much it may print before anybody has asked for it.
  std::size_t most_unread = std::size_t{64} << 20;
  /// How long the destructor waits after closing the child's input, and again after SIGTERM.
  std::chrono::milliseconds patience{1000};
};

namespace detail {

/// A text with every byte that is not UTF-8 replaced by U+FFFD.
inline std::string mended_utf8(std::string_view text) {
  std::string out;
  for (;;) {
    std::size_t const bad = find_invalid_utf8(text);
    out += text.substr(0, bad);
    if (bad == std::string_view::npos) return out;
    out += "\xEF\xBF\xBD";
    text.remove_prefix(bad + 1);
  }
}

/// A writer to a pipe without readers gets SIGPIPE, which ends the process unless the program
/// arranged otherwise (train::ignore_write_signals). While one of these lives, this thread's
/// write(2) fails with EPIPE instead, whatever the program chose.
class BrokenPipeGuard {
 public:
  BrokenPipeGuard() noexcept {
    static_cast<void>(::sigemptyset(&pipe_));
    static_cast<void>(::sigaddset(&pipe_, SIGPIPE));
    was_pending_ = pending();
    static_cast<void>(::pthread_sigmask(SIG_BLOCK, &pipe_, &before_));
  }
  BrokenPipeGuard(BrokenPipeGuard const&) = delete;
  BrokenPipeGuard& operator=(BrokenPipeGuard const&) = delete;
  ~BrokenPipeGuard() {
    int const error = errno;
    // A signal that was there before is not this guard's to take.
    if (!was_pending_ && pending()) {
      int taken = 0;
      static_cast<void>(::sigwait(&pipe_, &taken));
    }
    static_cast<void>(::pthread_sigmask(SIG_SETMASK, &before_, nullptr));
    errno = error;
  }

 private:
  static bool pending() noexcept {
    sigset_t now;
    static_cast<void>(::sigemptyset(&now));
    return ::sigpending(&now) == 0 && ::sigismember(&now, SIGPIPE) == 1;
  }

  sigset_t pipe_;
  sigset_t before_;
  bool was_pending_ = false;
};

/// Both ends of a pipe, closed on exec.
struct Pipe {
  Descriptor read;
  Descriptor write;
};

[[noreturn]] inline void fail_to_start(std::string const& command, int error) {
  throw IoError("cannot start the program \"" + command + "\": " + system_message(error) + ".");
}

/// Moves a descriptor out of 0, 1 and 2, which a program may have closed: there the child's own
/// would overwrite it.
inline Descriptor above_standard(Descriptor fd, std::string const& command) {
  if (fd.get() > 2) return fd;
  Descriptor moved(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 3));
  if (moved.get() < 0) fail_to_start(command, errno);
  return moved;
}

inline Pipe open_pipe(std::string const& command) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) fail_to_start(command, errno);
  Descriptor read(ends[0]);
  Descriptor write(ends[1]);
  return {above_standard(std::move(read), command), above_standard(std::move(write), command)};
}

inline void make_non_blocking(Descriptor const& fd, std::string const& command) {
  int const flags = ::fcntl(fd.get(), F_GETFL);
  if (flags < 0 || ::fcntl(fd.get(), F_SETFL, flags | O_NONBLOCK) != 0) {
    fail_to_start(command, errno);
  }
}

/// What posix_spawn(3) is told: which pipes, a group of its own, and signals as they are in a fresh
/// process (what this process ignores or blocks would be inherited).
class SpawnPlan {
 public:
  SpawnPlan() {
    static_cast<void>(::posix_spawn_file_actions_init(&actions_));
    static_cast<void>(::posix_spawnattr_init(&attributes_));
    note(::posix_spawnattr_setpgroup(&attributes_, 0));
    sigset_t signals;
    static_cast<void>(::sigemptyset(&signals));
    note(::posix_spawnattr_setsigmask(&attributes_, &signals));
    for (int const signal : {SIGPIPE, SIGTERM, SIGXFSZ, SIGCHLD}) {
      static_cast<void>(::sigaddset(&signals, signal));
    }
    note(::posix_spawnattr_setsigdefault(&attributes_, &signals));
    note(::posix_spawnattr_setflags(
        &attributes_, static_cast<short>(POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK |
                                         POSIX_SPAWN_SETSIGDEF)));
  }
  SpawnPlan(SpawnPlan const&) = delete;
  SpawnPlan& operator=(SpawnPlan const&) = delete;
  ~SpawnPlan() {
    static_cast<void>(::posix_spawnattr_destroy(&attributes_));
    static_cast<void>(::posix_spawn_file_actions_destroy(&actions_));
  }

  void connect(Descriptor const& fd, int as) {
    note(::posix_spawn_file_actions_adddup2(&actions_, fd.get(), as));
  }

  pid_t start(std::string const& command) {
    std::string text = command;
    char shell[] = "sh";
    char option[] = "-c";
    char* const arguments[] = {shell, option, text.data(), nullptr};
    pid_t pid = -1;
    if (error_ == 0) {
      error_ = ::posix_spawn(&pid, "/bin/sh", &actions_, &attributes_, arguments, ::environ);
    }
    if (error_ != 0) fail_to_start(command, error_);
    return pid;
  }

 private:
  void note(int error) {
    if (error_ == 0) error_ = error;
  }

  posix_spawn_file_actions_t actions_;
  posix_spawnattr_t attributes_;
  int error_ = 0;
};

}  // namespace detail

/// A running `sh -c COMMAND`, spoken to in lines. For one thread at a time.
///
///   io::ChildProcess child("python3 reward.py");
///   auto const deadline = io::ChildProcess::Clock::now() + std::chrono::seconds(10);
///   child.write_line("a question", deadline);
///   std::string const answer = child.read_line(deadline);
///
/// Messages name the command and end in the last words of its standard error.
class ChildProcess {
 public:
  using Clock = std::chrono::steady_clock;

  /// Starts the command. One that the shell cannot find is not an error yet: it is a child that
  /// ends with status 127.
  /// @throws IoError if there is no pipe or no process to be had
  explicit ChildProcess(std::string command, ChildLimits limits = {})
      : command_(std::move(command)), limits_(limits) {
    words_.reserve(2 * kept_words);
    detail::Pipe in = detail::open_pipe(command_);
    detail::Pipe out = detail::open_pipe(command_);
    detail::Pipe err = detail::open_pipe(command_);
    // Each end of a pipe has its own flags: the child's ends go on blocking.
    detail::make_non_blocking(in.write, command_);
    detail::make_non_blocking(out.read, command_);
    detail::make_non_blocking(err.read, command_);
    detail::SpawnPlan plan;
    plan.connect(in.read, STDIN_FILENO);
    plan.connect(out.write, STDOUT_FILENO);
    plan.connect(err.write, STDERR_FILENO);
    pid_ = plan.start(command_);
    input_ = std::move(in.write);
    output_ = std::move(out.read);
    errors_ = std::move(err.read);
  }

  ChildProcess(ChildProcess const&) = delete;
  ChildProcess& operator=(ChildProcess const&) = delete;

  /// Closes the child's input and gives it `patience` to leave; then the group gets SIGTERM, and
  /// after the same time SIGKILL. Whatever of the group has outlived the child is killed, too.
  ~ChildProcess() {
    static_cast<void>(input_.close());
    if (!wait_for_end(Clock::now() + limits_.patience)) {
      static_cast<void>(::kill(-pid_, SIGTERM));
      static_cast<void>(wait_for_end(Clock::now() + limits_.patience));
    }
    // Until it is waited for, the child's number is not given to anybody else, nor is its group's.
    // Without its status that does not hold, and then the number is left alone.
    bool const taken = ended_ && ended_->kind == ChildStatus::Kind::unknown;
    if (!taken) static_cast<void>(::kill(-pid_, SIGKILL));
    while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
    }
  }

  std::string const& command() const { return command_; }
  pid_t pid() const { return pid_; }

  /// Writes one line; output that comes meanwhile is kept for read_line.
  /// @param line without its newline
  /// @throws ChildTimedOut if the child has not taken it by the deadline
  /// @throws ChildEnded if it ended or closed its input
  /// @throws IoError if it prints beyond its limits
  void write_line(std::string_view line, Clock::time_point deadline) {
    expects(line.find('\n') == std::string_view::npos, "a line for a child holds no newline");
    expects(!input_closed_, "a line for a child comes before close_input");
    std::string text(line);
    text += '\n';
    std::string_view rest = text;
    for (bool in_time = true; !rest.empty();) {
      if (input_.get() < 0 || gone_) throw_ended("closed its input");
      if (!in_time) throw_late("has not read its input");
      in_time = pump(rest, deadline);
    }
  }

  /// The next line that the child printed, without its newline. What it prints last without a
  /// newline is no line, for it may have been cut off.
  /// @throws ChildTimedOut if there is none by the deadline
  /// @throws ChildEnded if the child ended or closed its output, and all its lines have been read
  /// @throws IoError if it prints beyond its limits
  std::string read_line(Clock::time_point deadline) {
    std::string_view nothing;
    for (bool in_time = true; lines_.empty();) {
      if (output_.get() < 0) throw_ended("closed its output");
      if (!in_time) throw_late("has printed no line");
      in_time = pump(nothing, deadline);
    }
    std::string line = std::move(lines_.front());
    lines_.pop_front();
    unread_ -= line.size() + line_overhead;
    return line;
  }

  /// Closes the child's input: it reads no more than it was sent.
  void close_input() {
    input_closed_ = true;
    static_cast<void>(input_.close());
  }

  /// Waits until the child has ended; what it prints meanwhile is lost.
  /// @return how it ended, or nothing if it has not by the deadline
  std::optional<ChildStatus> wait(Clock::time_point deadline) noexcept {
    static_cast<void>(wait_for_end(deadline));
    return ended_;
  }

  /// The last 4 KiB or so that the child wrote to standard error, as far as they have been read:
  /// valid UTF-8, without white space at the end.
  std::string last_words() const {
    std::string_view words = words_;
    if (words.size() > kept_words) words.remove_prefix(words.size() - kept_words);
    std::size_t const last = words.find_last_not_of(" \t\r\n\v\f");
    return detail::mended_utf8(words.substr(0, last == std::string_view::npos ? 0 : last + 1));
  }

  /// A sentence with the last words, for messages.
  std::string last_words_sentence() const {
    std::string const words = last_words();
    if (words.empty()) return "It wrote nothing to standard error.";
    return "Its last words on standard error: \"" + words + "\".";
  }

 private:
  static constexpr std::size_t kept_words = 4096;
  static constexpr std::size_t block_size = std::size_t{1} << 16;
  // So that empty lines are not free.
  static constexpr std::size_t line_overhead = sizeof(std::string);

  enum class Output { keep, discard };

  std::string name() const { return "the program \"" + command_ + "\" "; }

  // Moves bytes for a while. @return whether there is time left
  bool pump(std::string_view& input, Clock::time_point deadline) {
    using std::chrono::milliseconds;
    // In slices, for a child can end while something it started holds its pipes open.
    auto wait = milliseconds(0);
    if (auto const now = Clock::now(); now < deadline) {
      wait = milliseconds(100);
      if (deadline - now < wait) wait = std::chrono::ceil<milliseconds>(deadline - now);
    }
    if (move_bytes(input, Output::keep, wait) == 0) {
      // It may have printed just before it ended: only the second silence counts.
      if (gone_) static_cast<void>(output_.close());
      gone_ = has_ended();
    }
    return Clock::now() < deadline;
  }

  // One poll(2), and whatever can be moved after it without waiting. @return what poll returned:
  // 0 if nothing happened. Throws only if output is kept.
  int move_bytes(std::string_view& input, Output output, std::chrono::milliseconds wait) {
    pollfd fds[3] = {{input.empty() ? -1 : input_.get(), POLLOUT, 0},
                     {output_.get(), POLLIN, 0},
                     {errors_.get(), POLLIN, 0}};
    int const ready = ::poll(fds, 3, static_cast<int>(wait.count()));
    if (ready <= 0) return ready;
    if (fds[2].revents != 0) static_cast<void>(read_errors());
    if (fds[1].revents != 0) read_output(output);
    if (fds[0].revents != 0) write_input(input);
    return ready;
  }

  // Whether to try again later; after anything else but bytes the pipe is closed.
  static bool is_passing(int error) { return error == EAGAIN || error == EINTR; }

  // Keeps within its reserve, so it never throws. @return whether there was anything
  bool read_errors() noexcept {
    char block[block_size];
    ssize_t const n = ::read(errors_.get(), block, sizeof block);
    if (n <= 0) {
      if (n == 0 || !is_passing(errno)) static_cast<void>(errors_.close());
      return false;
    }
    std::string_view fresh(block, static_cast<std::size_t>(n));
    if (fresh.size() > kept_words) fresh.remove_prefix(fresh.size() - kept_words);
    if (words_.size() + fresh.size() > 2 * kept_words) words_.erase(0, words_.size() - kept_words);
    words_ += fresh;
    return true;
  }

  void read_output(Output output) {
    char block[block_size];
    ssize_t const n = ::read(output_.get(), block, sizeof block);
    if (n <= 0) {
      if (n == 0 || !is_passing(errno)) static_cast<void>(output_.close());
      return;
    }
    if (output == Output::discard) return;
    std::string_view fresh(block, static_cast<std::size_t>(n));
    for (;;) {
      std::size_t const end = fresh.find('\n');
      std::string_view const part = fresh.substr(0, end);
      if (part.size() > limits_.longest_line - partial_.size()) {
        throw IoError(name() + "printed a line of more than " +
                      std::to_string(limits_.longest_line) + " bytes. " + last_words_sentence());
      }
      partial_ += part;
      if (end == std::string_view::npos) return;
      unread_ += partial_.size() + line_overhead;
      lines_.push_back(std::exchange(partial_, {}));
      if (unread_ > limits_.most_unread) {
        throw IoError(name() + "printed more than " + std::to_string(limits_.most_unread) +
                      " bytes that nobody had asked for. " + last_words_sentence());
      }
      fresh.remove_prefix(end + 1);
    }
  }

  void write_input(std::string_view& input) {
    detail::BrokenPipeGuard const guard;
    ssize_t const n = ::write(input_.get(), input.data(), input.size());
    if (n >= 0) {
      input.remove_prefix(static_cast<std::size_t>(n));
    } else if (!is_passing(errno)) {
      static_cast<void>(input_.close());
    }
  }

  // Leaves the child to be waited for: as long as it is not, its number means it alone.
  bool has_ended() noexcept {
    if (ended_) return true;
    siginfo_t info{};
    while (::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) != 0) {
      if (errno == EINTR) continue;
      ended_ = ChildStatus{};
      return true;
    }
    if (info.si_pid == 0) return false;
    auto const kind =
        info.si_code == CLD_EXITED ? ChildStatus::Kind::exited : ChildStatus::Kind::killed;
    ended_ = ChildStatus{kind, info.si_status};
    return true;
  }

  // Reads both pipes away meanwhile, so that a child with much to say can come to its end.
  bool wait_for_end(Clock::time_point deadline) noexcept {
    std::string_view nothing;
    while (!has_ended()) {
      if (Clock::now() >= deadline) return false;
      static_cast<void>(move_bytes(nothing, Output::discard, std::chrono::milliseconds(5)));
    }
    // Its last words may still be in the pipe; others who hold it may go on for ever.
    for (int i = 0; i < 64 && errors_.get() >= 0 && read_errors(); ++i) {
    }
    return true;
  }

  [[noreturn]] void throw_ended(std::string const& otherwise) {
    // The pipe closes a moment before the status is there.
    auto const status = wait(Clock::now() + limits_.patience);
    throw ChildEnded(name() + (status ? status->text() : otherwise) + ". " + last_words_sentence());
  }

  [[noreturn]] void throw_late(std::string const& what) const {
    throw ChildTimedOut(name() + what + " by the deadline. " + last_words_sentence());
  }

  std::string command_;
  ChildLimits limits_;
  pid_t pid_ = -1;
  detail::Descriptor input_;
  detail::Descriptor output_;
  detail::Descriptor errors_;
  bool input_closed_ = false;         // by close_input
  bool gone_ = false;                 // the child ended; its output may have more
  std::optional<ChildStatus> ended_;  // as soon as it is known

  std::deque<std::string> lines_;  // printed, not yet read
  std::string partial_;            // the line that is being printed
  std::size_t unread_ = 0;         // what lines_ takes
  std::string words_;
};

}  // namespace emprl::io
