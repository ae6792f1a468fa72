// SPDX-License-Identifier: Apache-2.0
#pragma once

// How far a long piece of work is, on standard error: one line that is rewritten where that is a
// terminal, a plain line now and then where it is a file or a pipe.

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <string_view>
#include <utility>

#include "emprl/core/config.hpp"
#include "emprl/io/utf8.hpp"

namespace emprl::train {

namespace detail {

/// Columns that a character takes on a terminal: 0 for marks that combine, 2 for East Asian wide
/// forms and pictographs. Coarse on purpose; where it is in doubt it says 2, which cuts a line
/// early instead of letting it wrap.
inline index_t columns_of(char32_t c) {
  auto const in = [c](char32_t low, char32_t high) { return c >= low && c <= high; };
  if (in(0x0300, 0x036F) || in(0x200B, 0x200F) || in(0x202A, 0x202E) || in(0x2060, 0x2069) ||
      in(0x20D0, 0x20FF) || in(0xFE00, 0xFE0F) || c == 0xFEFF) {
    return 0;
  }
  if (in(0x1100, 0x115F) || in(0x231A, 0x231B) || in(0x23E9, 0x23F3) || in(0x2600, 0x27BF) ||
      in(0x2B1B, 0x2B55) || in(0x2E80, 0xA4CF) || in(0xA960, 0xA97F) || in(0xAC00, 0xD7A3) ||
      in(0xF900, 0xFAFF) || in(0xFE30, 0xFE6F) || in(0xFF00, 0xFF60) || in(0xFFE0, 0xFFE6) ||
      c >= 0x1F000) {
    return 2;
  }
  return 1;
}

/// What a terminal can show of a text in at most `columns`: whole characters only, control
/// characters as spaces, bytes that are not UTF-8 as question marks.
struct ShownText {
  std::string text;
  index_t columns = 0;
};

inline ShownText fit_to_columns(std::string_view text, index_t columns) {
  ShownText shown;
  for (std::size_t i = 0; i < text.size();) {
    auto const lead = static_cast<unsigned char>(text[i]);
    std::size_t length = lead < 0xC0 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    std::string_view character = text.substr(i, length);
    char32_t code = lead;
    if (!io::is_valid_utf8(character)) {
      length = 1;
      character = "?";
      code = U'?';
    } else if (length > 1) {
      code = lead & (0x7Fu >> length);
      for (char const tail : character.substr(1)) {
        code = code << 6 | (static_cast<unsigned char>(tail) & 0x3Fu);
      }
    }
    if (code < 0x20 || (code >= 0x7F && code < 0xA0)) {
      character = " ";
      code = U' ';
    }
    index_t const width = columns_of(code);
    if (shown.columns + width > columns) break;
    shown.text += character;
    shown.columns += width;
    i += length;
  }
  return shown;
}

/// "m:ss" or "h:mm:ss".
inline std::string duration_text(double seconds) {
  constexpr double most = 3600.0 * 100'000;
  auto const s = static_cast<long long>(std::lround(std::clamp(seconds, 0.0, most)));
  char text[48];
  if (s < 3600) {
    std::snprintf(text, sizeof text, "%lld:%02lld", s / 60, s % 60);
  } else {
    std::snprintf(text, sizeof text, "%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
  }
  return text;
}

/// "12.3/s", or "4.1 s each" where that is more telling.
inline std::string rate_text(double per_second) {
  char text[48];
  if (per_second >= 1.0) {
    std::snprintf(text, sizeof text, per_second < 99.0 ? "%.1f/s" : "%.0f/s",
                  std::min(per_second, 1e15));
  } else {
    double const each = std::min(1.0 / per_second, 1e15);
    std::snprintf(text, sizeof text, each < 99.0 ? "%.1f s each" : "%.0f s each", each);
  }
  return text;
}

}  // namespace detail

/// Where progress goes and by which clock.
struct ProgressOutput {
  /// Shows a piece of text at once.
  std::function<void(std::string_view)> write;
  /// Seconds on a clock that never goes back.
  std::function<double()> seconds;
  /// The terminal's width; 0 where there is no terminal that can rewrite a line.
  std::function<index_t()> columns;
};

/// Standard error, its terminal's present width (80 where the terminal does not tell), and a steady
/// clock.
inline ProgressOutput standard_error_output() {
  ProgressOutput out;
  out.write = [](std::string_view text) {
    static_cast<void>(std::fwrite(text.data(), 1, text.size(), stderr));
    static_cast<void>(std::fflush(stderr));
  };
  out.seconds = [] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  };
  out.columns = []() -> index_t {
    if (::isatty(STDERR_FILENO) == 0) return 0;
    char const* const terminal = std::getenv("TERM");
    if (terminal != nullptr && std::string_view(terminal) == "dumb") return 0;
    winsize size{};
    if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
    return size.ws_col;
  };
  return out;
}

/// The progress of one piece of work. It shows itself when it is made, then as `advance` is called:
/// on a terminal at most ten times a second, elsewhere a line every ten seconds; and when it is
/// finished. An object that goes without `finish` (an error is on its way) leaves the cursor on a
/// new line.
class Progress {
 public:
  /// @param label what is going on, such as "align"
  /// @param total how many units there are; 0 or less where nobody knows
  /// @param unit  what is counted, in the plural
  /// @param start units done by an earlier run, which do not count for the rate
  Progress(std::string label, index_t total, std::string unit = "steps", index_t start = 0,
           ProgressOutput output = standard_error_output())
      : label_(std::move(label)),
        total_(total),
        unit_(std::move(unit)),
        output_(std::move(output)),
        done_(start),
        began_(output_.seconds()),
        measured_(began_) {
    show(began_, false);
  }
  Progress(Progress const&) = delete;
  Progress& operator=(Progress const&) = delete;
  ~Progress() {
    try {
      if (line_open_) output_.write("\n");
    } catch (...) {  // There is nowhere left to complain to.
    }
  }

  /// So many units are done, in all and not since the last call. @param note what else to show,
  /// such as the loss
  void advance(index_t done, std::string_view note = {}) {
    double const now = output_.seconds();
    measure(done, now);
    note_.assign(note);
    stale_ = true;
    if (now - shown_ >= (terminal_ ? 0.1 : 10.0)) show(now, false);
  }

  /// Shows the last state and the time it took, and ends the line. Later calls do nothing.
  void finish() {
    if (finished_) return;
    finished_ = true;
    show(output_.seconds(), true);
  }

  /// Prints a line of its own without spoiling the one that is rewritten.
  void print(std::string_view line) {
    output_.write((line_open_ ? "\r\x1b[K" : "") + std::string(line) + "\n");
    if (line_open_) show(output_.seconds(), false);
  }

 private:
  // Units and seconds, older ones counting less: the rate follows a change within about a minute,
  // and work whose single unit takes longer than that goes by its last units.
  void measure(index_t done, double now) {
    constexpr double memory_seconds = 60.0;
    double const passed = now - measured_;
    double const kept = std::exp(-passed / memory_seconds);
    recent_units_ = recent_units_ * kept + static_cast<double>(std::max<index_t>(0, done - done_));
    recent_seconds_ = recent_seconds_ * kept + passed;
    done_ = done;
    measured_ = now;
  }

  std::string counts(double now, bool last) const {
    std::string text = std::to_string(done_);
    if (total_ > 0) text += "/" + std::to_string(total_);
    text += " " + unit_;
    double const rate = recent_seconds_ > 0.0 ? recent_units_ / recent_seconds_ : 0.0;
    if (rate > 0.0) text += ", " + detail::rate_text(rate);
    if (last) {
      text += ", took " + detail::duration_text(now - began_);
    } else if (rate > 0.0 && total_ > done_) {
      text += ", " + detail::duration_text(static_cast<double>(total_ - done_) / rate) + " left";
    }
    return text;
  }

  std::string bar(index_t width) const {
    double const part =
        std::clamp(static_cast<double>(done_) / static_cast<double>(total_), 0.0, 1.0);
    auto const full = static_cast<std::size_t>(part * static_cast<double>(width));
    return "[" + std::string(full, '#') + std::string(static_cast<std::size_t>(width) - full, '.') +
           "] ";
  }

  void show(double now, bool last) {
    index_t const columns = output_.columns();
    terminal_ = columns > 0;
    shown_ = now;
    std::string const tail = note_.empty() ? "" : ", " + note_;
    if (!terminal_) {
      if (!stale_ && !last) return;
      constexpr index_t no_limit = 1 << 20;
      output_.write(
          detail::fit_to_columns(label_ + ": " + counts(now, last) + tail, no_limit).text + "\n");
      stale_ = false;
      line_open_ = false;
      return;
    }
    // The last column stays free: some terminals wrap as soon as it is written to.
    index_t const room = columns - 1;
    std::string const head = label_ + " ";
    std::string const body = counts(now, last);
    std::string text = head;
    if (total_ > 0) {
      index_t const spare = room - 3 - detail::fit_to_columns(head + body, room).columns;
      index_t const with_note = spare - detail::fit_to_columns(tail, room).columns;
      if (spare >= 10) text += bar(std::clamp<index_t>(with_note, 10, 30));
    }
    text += body + tail;
    output_.write("\r" + detail::fit_to_columns(text, room).text + "\x1b[K" + (last ? "\n" : ""));
    line_open_ = !last;
    stale_ = false;
  }

  std::string label_;
  index_t total_;
  std::string unit_;
  ProgressOutput output_;
  index_t done_;
  double began_;
  double measured_;
  double recent_units_ = 0.0;
  double recent_seconds_ = 0.0;
  double shown_ = 0.0;
  std::string note_;
  bool terminal_ = false;
  bool line_open_ = false;
  bool stale_ = true;
  bool finished_ = false;
};

}  // namespace emprl::train
