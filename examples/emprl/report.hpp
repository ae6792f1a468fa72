// SPDX-License-Identifier: Apache-2.0
#pragma once

// The report page: one HTML file that explains a run to somebody who was not there.

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "emprl/core/error.hpp"
#include "emprl/io/file.hpp"

namespace emprl::program {

namespace detail::report {

using nlohmann::json;

struct Point {
  double x, y;
};

struct Series {
  std::string name;
  std::vector<Point> points;
};

struct Estimate {
  double value;
  std::optional<double> low, high;
};

// ---- reading: wrong types are missing parts ----

inline json const* member(json const& object, char const* key) {
  if (!object.is_object()) return nullptr;
  auto const at = object.find(key);
  return at == object.end() || at->is_null() ? nullptr : &*at;
}

inline json const* list(json const& object, char const* key) {
  json const* const at = member(object, key);
  return at != nullptr && at->is_array() && !at->empty() ? at : nullptr;
}

inline std::string text(json const& object, char const* key) {
  json const* const at = member(object, key);
  return at != nullptr && at->is_string() ? at->get<std::string>() : std::string();
}

inline std::optional<double> number(json const* value) {
  if (value == nullptr || !value->is_number()) return std::nullopt;
  double const x = value->get<double>();
  return std::isfinite(x) ? std::optional<double>(x) : std::nullopt;
}

inline std::optional<Estimate> estimate(json const* value) {
  if (value == nullptr) return std::nullopt;
  if (auto const x = number(value)) return Estimate{*x, {}, {}};
  auto const x = number(member(*value, "value"));
  if (!x) return std::nullopt;
  return Estimate{*x, number(member(*value, "low")), number(member(*value, "high"))};
}

// ---- writing ----

/// Text for HTML content and double-quoted attributes; control characters are dropped.
inline std::string escape(std::string_view raw) {
  std::string out;
  out.reserve(raw.size());
  for (char const c : raw) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        if (static_cast<unsigned char>(c) >= 0x20 || c == '\n' || c == '\t') out += c;
    }
  }
  return out;
}

inline std::string fixed(double x, int digits) {
  std::array<char, 400> buffer{};
  auto const end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), x,
                                 std::chars_format::fixed, digits);
  std::string out(buffer.data(), end.ptr);
  bool const zero = out.find_first_not_of("-0.") == std::string::npos;
  return zero && out.front() == '-' ? out.substr(1) : out;
}

inline std::string scientific(double x, int digits) {
  std::array<char, 64> buffer{};
  auto const end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), x,
                                 std::chars_format::scientific, digits);
  return std::string(buffer.data(), end.ptr);
}

/// Decimals that show about three figures of a number of this size.
inline int decimals(double x) {
  double const size = std::abs(x);
  if (size >= 1000.0) return 0;
  if (size >= 100.0) return 1;
  return size >= 1.0 ? 2 : 3;
}

inline std::string readable(double x, std::optional<double> like = std::nullopt) {
  double const size = std::abs(x);
  if (size >= 1e7 || (size > 0.0 && size < 5e-4 && !like)) return scientific(x, 2);
  return fixed(x, decimals(like.value_or(x)));
}

/// A coordinate in an SVG.
inline std::string at(double x) {
  return fixed(x, 1);
}

inline std::string cell(std::optional<Estimate> const& e) {
  if (!e) return "<td class=\"num none\">–</td>";
  std::string out = "<td class=\"num\">" + readable(e->value);
  if (e->low && e->high) {
    out += "<span class=\"interval\">" + readable(*e->low, e->value) + " to " +
           readable(*e->high, e->value) + "</span>";
  }
  return out + "</td>";
}

// ---- axes ----

struct Axis {
  double low, high, step;

  double place(double x) const { return (x - low) / (high - low); }
};

/// The smallest range of round numbers around [low, high] with about `parts` steps of 1, 2 or 5
/// times a power of ten.
inline Axis round_axis(double low, double high, int parts) {
  if (!(high - low > 1e-12 * std::max(std::abs(low), std::abs(high)))) {
    double const pad = low == 0.0 ? 1.0 : 0.1 * std::abs(low);
    low -= pad;
    high += pad;
  }
  double const raw = (high - low) / parts;
  double const power = std::pow(10.0, std::floor(std::log10(raw)));
  double const lead = raw / power;
  double const step = (lead <= 1.0 ? 1.0 : lead <= 2.0 ? 2.0 : lead <= 5.0 ? 5.0 : 10.0) * power;
  return {std::floor(low / step + 1e-9) * step, std::ceil(high / step - 1e-9) * step, step};
}

inline std::vector<double> ticks(Axis const& axis) {
  std::vector<double> out;
  int const n = static_cast<int>(std::lround((axis.high - axis.low) / axis.step));
  for (int i = 0; i <= n && i <= 20; ++i) out.push_back(axis.low + i * axis.step);
  return out;
}

inline std::string tick_label(double x, double step) {
  double const size = std::max(std::abs(x), step);
  if (size >= 1e6 || size < 1e-4) return std::abs(x) < step * 1e-6 ? "0" : scientific(x, 1);
  int const digits = std::max(0, static_cast<int>(std::ceil(-std::log10(step) - 1e-9)));
  return fixed(x, digits);
}

// ---- curves ----

/// Means of runs of points, so that a long training does not make a large page.
inline std::vector<Point> thinned(std::vector<Point> const& points, std::size_t most) {
  if (points.size() <= most) return points;
  std::vector<Point> out;
  for (std::size_t i = 0; i < most; ++i) {
    std::size_t const begin = i * points.size() / most;
    std::size_t const end = (i + 1) * points.size() / most;
    Point sum{0.0, 0.0};
    for (std::size_t j = begin; j < end; ++j) {
      sum.x += points[j].x;
      sum.y += points[j].y;
    }
    double const n = static_cast<double>(end - begin);
    out.push_back({sum.x / n, sum.y / n});
  }
  return out;
}

/// A centred moving average over about a tenth of the curve; at the ends the window is cut off
/// where the data is.
inline std::vector<Point> smoothed(std::vector<Point> const& points) {
  std::size_t const n = points.size();
  std::size_t const half = std::max<std::size_t>(2, n / 20);
  std::vector<Point> out;
  for (std::size_t i = 0; i < n; ++i) {
    std::size_t const begin = i - std::min(half, i);
    std::size_t const end = std::min(n, i + half + 1);
    double sum = 0.0;
    for (std::size_t j = begin; j < end; ++j) sum += points[j].y;
    out.push_back({points[i].x, sum / static_cast<double>(end - begin)});
  }
  return out;
}

inline std::vector<Series> read_series(json const& curve) {
  std::vector<Series> out;
  json const* const all = list(curve, "series");
  if (all == nullptr) return out;
  for (json const& one : *all) {
    Series series{text(one, "name"), {}};
    if (json const* const points = list(one, "points")) {
      for (json const& p : *points) {
        if (!p.is_array() || p.size() != 2) continue;
        auto const x = number(&p[0]);
        auto const y = number(&p[1]);
        if (x && y) series.points.push_back({*x, *y});
      }
    }
    if (!series.points.empty()) out.push_back(std::move(series));
  }
  return out;
}

inline std::string key_row(std::vector<std::string> const& names, bool bars) {
  std::string out = "<p class=\"key\">";
  for (std::size_t i = 0; i < names.size(); ++i) {
    std::string const c = "c" + std::to_string(i % 4);
    out += "<span><svg class=\"swatch\" viewBox=\"0 0 26 10\" aria-hidden=\"true\">";
    out += bars ? "<rect class=\"bar " + c + "\" x=\"6\" y=\"0\" width=\"12\" height=\"10\"/>"
                : "<path class=\"line " + c + "\" d=\"M1 5H25\"/>";
    out += "</svg>" + escape(names[i]) + "</span>";
  }
  return out + "</p>";
}

inline constexpr double width = 420.0, height = 240.0;
inline constexpr double left = 52.0, right = 12.0, top = 10.0, bottom = 42.0;

inline std::string frame(Axis const& y, std::string const& y_name, std::string const& x_name) {
  std::string out;
  for (double const t : ticks(y)) {
    double const v = top + (1.0 - y.place(t)) * (height - top - bottom);
    out += "<path class=\"grid\" d=\"M" + at(left) + " " + at(v) + "H" + at(width - right) + "\"/>";
    out += "<text class=\"tick end\" x=\"" + at(left - 6) + "\" y=\"" + at(v + 4) + "\">" +
           tick_label(t, y.step) + "</text>";
  }
  out += "<text class=\"axis\" x=\"" + at((left + width - right) / 2) + "\" y=\"" + at(height - 6) +
         "\">" + escape(x_name) + "</text>";
  if (!y_name.empty()) {
    double const middle = top + (height - top - bottom) / 2;
    out += "<text class=\"axis\" transform=\"translate(11 " + at(middle) + ") rotate(-90)\">" +
           escape(y_name) + "</text>";
  }
  return out;
}

inline std::string polyline(std::vector<Point> const& points, Axis const& x, Axis const& y,
                            std::string const& style) {
  std::string d;
  for (Point const& p : points) {
    d += d.empty() ? "M" : "L";
    d += at(left + x.place(p.x) * (width - left - right)) + " " +
         at(top + (1.0 - y.place(p.y)) * (height - top - bottom));
  }
  return "<path class=\"" + style + "\" d=\"" + d + "\"/>";
}

inline std::string curve_figure(json const& curve, int id) {
  auto const all = read_series(curve);
  if (all.empty()) return "";
  json const* const wish = member(curve, "smooth");
  bool const smooth = wish != nullptr && wish->is_boolean() && wish->get<bool>();
  double const infinity = std::numeric_limits<double>::infinity();
  double x0 = infinity, x1 = -infinity, y0 = infinity, y1 = -infinity;
  for (Series const& s : all) {
    for (Point const& p : thinned(s.points, 800)) {
      x0 = std::min(x0, p.x);
      x1 = std::max(x1, p.x);
      y0 = std::min(y0, p.y);
      y1 = std::max(y1, p.y);
    }
  }
  Axis const y = round_axis(y0, y1, 4);
  Axis const grid = round_axis(x0, x1, 5);
  Axis const x = x1 > x0 ? Axis{x0, x1, grid.step} : grid;
  std::string const title = text(curve, "title");
  std::string const name = "curve" + std::to_string(id);
  std::string drawn = frame(y, text(curve, "y"), text(curve, "x"));
  for (double const t : ticks(grid)) {
    if (t < x.low - 1e-9 * grid.step || t > x.high + 1e-9 * grid.step) continue;
    double const h = left + x.place(t) * (width - left - right);
    drawn += "<text class=\"tick middle\" x=\"" + at(h) + "\" y=\"" + at(height - bottom + 16) +
             "\">" + tick_label(t, grid.step) + "</text>";
  }
  std::string told;
  std::vector<std::string> names;
  for (std::size_t i = 0; i < all.size(); ++i) {
    std::string const c = "c" + std::to_string(i % 4);
    auto const points = thinned(all[i].points, 800);
    bool const soften = smooth && points.size() >= 10;
    if (soften) drawn += polyline(points, x, y, "line raw " + c);
    drawn += polyline(soften ? smoothed(points) : points, x, y, "line " + c);
    if (points.size() <= 30 && !soften) {
      for (Point const& p : points) {
        drawn += "<circle class=\"dot " + c + "\" r=\"2.5\" cx=\"" +
                 at(left + x.place(p.x) * (width - left - right)) + "\" cy=\"" +
                 at(top + (1.0 - y.place(p.y)) * (height - top - bottom)) + "\"/>";
      }
    }
    if (!all[i].name.empty()) names.push_back(all[i].name);
    told += all[i].name + " from " + readable(all[i].points.front().y) + " to " +
            readable(all[i].points.back().y) + " over " + std::to_string(all[i].points.size()) +
            " points. ";
  }
  std::string out = "<figure><figcaption>" + escape(title) + "</figcaption>";
  if (all.size() > 1 && names.size() == all.size()) out += key_row(names, false);
  out += "<svg class=\"chart\" viewBox=\"0 0 420 240\" role=\"img\" aria-labelledby=\"" + name +
         "t " + name + "d\"><title id=\"" + name + "t\">" + escape(title) + "</title><desc id=\"" +
         name + "d\">" + escape(told) + "</desc>" + drawn + "</svg></figure>";
  return out;
}

inline std::string curves_part(json const& report) {
  json const* const curves = list(report, "curves");
  if (curves == nullptr) return "";
  std::vector<std::pair<std::string, std::string>> groups;
  int id = 0;
  for (json const& curve : *curves) {
    std::string const figure = curve_figure(curve, id++);
    if (figure.empty()) continue;
    std::string const group = text(curve, "group");
    auto found =
        std::find_if(groups.begin(), groups.end(), [&](auto const& g) { return g.first == group; });
    if (found == groups.end()) found = groups.insert(groups.end(), {group, ""});
    found->second += figure;
  }
  if (groups.empty()) return "";
  std::string out = "<section><h2>Curves</h2>";
  for (auto const& [group, figures] : groups) {
    if (!group.empty()) out += "<h3>" + escape(group) + "</h3>";
    out += "<div class=\"figures\">" + figures + "</div>";
  }
  return out +
         "<p class=\"small\">A pale line joins the raw values, the strong one of the same "
         "colour is a centred moving average.</p></section>";
}

// ---- marginals ----

inline std::string marginal_figure(json const& marginal, int id) {
  json const* const groups = list(marginal, "groups");
  if (groups == nullptr) return "";
  std::vector<std::pair<std::string, std::array<double, 3>>> bars;
  double most = 0.0;
  for (json const& group : *groups) {
    json const* const shares = list(group, "shares");
    if (shares == nullptr || shares->size() != 3) continue;
    std::array<double, 3> values{};
    bool whole = true;
    for (std::size_t k = 0; k < 3; ++k) {
      auto const share = number(&(*shares)[k]);
      whole = whole && share && *share >= 0.0;
      values[k] = share.value_or(0.0);
    }
    if (!whole) continue;
    for (double const v : values) most = std::max(most, v);
    bars.emplace_back(text(group, "name"), values);
  }
  if (bars.empty()) return "";
  Axis y = round_axis(0.0, std::max(most, 0.01) * 100.0, 4);
  y.low = 0.0;
  std::string const title = text(marginal, "name");
  std::string const name = "marginal" + std::to_string(id);
  std::string drawn = frame(y, "% of answers", "level");
  double const slot = (width - left - right) / 3.0;
  double const each = 0.8 * slot / static_cast<double>(bars.size());
  double const base = height - bottom;
  std::string told;
  std::array<char const*, 3> const level_names{"0 none", "1 weak", "2 strong"};
  for (std::size_t k = 0; k < 3; ++k) {
    double const begin = left + slot * (static_cast<double>(k) + 0.1);
    for (std::size_t g = 0; g < bars.size(); ++g) {
      double const share = 100.0 * bars[g].second[k];
      double const h = begin + each * static_cast<double>(g);
      double const v = top + (1.0 - y.place(share)) * (base - top);
      drawn += "<rect class=\"bar c" + std::to_string(g % 4) + "\" x=\"" + at(h + 1) + "\" y=\"" +
               at(v) + "\" width=\"" + at(each - 2) + "\" height=\"" + at(base - v) + "\"/>";
      if (each >= 17.0) {
        drawn += "<text class=\"tick middle\" x=\"" + at(h + each / 2) + "\" y=\"" +
                 at(std::max(v - 4, 10.0)) + "\">" + fixed(share, 0) + "</text>";
      }
      told += "Level " + std::to_string(k) + ", " + bars[g].first + ": " + fixed(share, 0) + " %. ";
    }
    drawn += "<text class=\"tick middle\" x=\"" + at(left + slot * (static_cast<double>(k) + 0.5)) +
             "\" y=\"" + at(base + 16) + "\">" + level_names[k] + "</text>";
  }
  std::vector<std::string> names;
  for (auto const& bar : bars) names.push_back(bar.first);
  std::string out =
      "<figure><figcaption>" + escape(title) + "</figcaption>" + key_row(names, true) +
      "<svg class=\"chart\" viewBox=\"0 0 420 240\" role=\"img\" aria-labelledby=\"" + name + "t " +
      name + "d\"><title id=\"" + name + "t\">" + escape(title) + "</title><desc id=\"" + name +
      "d\">" + escape(told) + "</desc>" + drawn + "</svg>";
  std::string const note = text(marginal, "note");
  if (!note.empty()) out += "<p class=\"small\">" + escape(note) + "</p>";
  return out + "</figure>";
}

inline std::string marginals_part(json const& report) {
  json const* const marginals = list(report, "marginals");
  if (marginals == nullptr) return "";
  std::string figures;
  int id = 0;
  for (json const& marginal : *marginals) figures += marginal_figure(marginal, id++);
  if (figures.empty()) return "";
  return "<section><h2>Levels</h2><p>How often each level occurs, as the identifiers see it. A "
         "generator that collapses shows one tall bar.</p><div class=\"figures\">" +
         figures + "</div></section>";
}

// ---- tables ----

inline std::string comparison_part(json const& report) {
  json const* const metrics = list(report, "metrics");
  json const* const systems = list(report, "systems");
  std::string table;
  if (metrics != nullptr && systems != nullptr) {
    std::string body;
    std::string kind;
    for (json const& system : *systems) {
      std::string const name = text(system, "name");
      json const* const values = member(system, "values");
      if (name.empty() || values == nullptr) continue;
      std::string const next = text(system, "kind");
      if (next != kind && (next == "floor" || next == "control")) {
        body += "<tr class=\"kind\"><th scope=\"rowgroup\" colspan=\"" +
                std::to_string(metrics->size() + 1) + "\">" +
                (next == "floor" ? "Floors: reached without alignment"
                                 : "Controls: settings that are wrong on purpose") +
                "</th></tr>";
      }
      kind = next;
      std::string const note = text(system, "note");
      body += "<tr><th scope=\"row\">" + escape(name);
      if (!note.empty()) body += "<span class=\"interval\">" + escape(note) + "</span>";
      body += "</th>";
      for (json const& metric : *metrics) {
        body += cell(estimate(member(*values, text(metric, "key").c_str())));
      }
      body += "</tr>";
    }
    if (!body.empty()) {
      table =
          "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Comparison\">"
          "<table><thead><tr><th scope=\"col\"></th>";
      for (json const& metric : *metrics) {
        std::string const better = text(metric, "better");
        std::string const about = text(metric, "about");
        std::string const name = text(metric, "name");
        table += "<th scope=\"col\"" +
                 (about.empty() ? std::string() : " title=\"" + escape(about) + "\"") + ">" +
                 escape(name.empty() ? text(metric, "key") : name);
        if (better == "higher")
          table += "&nbsp;<span class=\"dir\" title=\"higher is better\">↑</span>";
        if (better == "lower")
          table += "&nbsp;<span class=\"dir\" title=\"lower is better\">↓</span>";
        table += "</th>";
      }
      table +=
          "</tr></thead><tbody>" + body +
          "</tbody></table></div><p class=\"small\">Small figures are 95 % intervals. ↑ higher "
          "is better, ↓ lower is better; measures without an arrow are there to be compared.</p>";
    }
  }
  std::string gains;
  if (json const* const all = list(report, "gains")) {
    for (json const& gain : *all) {
      auto const e = estimate(&gain);
      if (!e) continue;
      gains += "<li><strong>" + escape(text(gain, "name")) +
               "</strong>: " + (e->value > 0 ? "+" : "") + readable(e->value);
      if (e->low && e->high) {
        bool const clear = *e->low > 0.0 || *e->high < 0.0;
        gains += " (95 % interval " + readable(*e->low, e->value) + " to " +
                 readable(*e->high, e->value) +
                 (clear ? ", excludes zero)" : ", does not exclude zero)");
      }
      gains += "</li>";
    }
  }
  if (!gains.empty())
    gains = "<h3>Paired difference, after minus before</h3><ul>" + gains + "</ul>";
  if (table.empty() && gains.empty()) return "";
  return "<section><h2>Before and after</h2>" + table + gains + "</section>";
}

inline std::string identifiers_part(json const& report) {
  json const* const identifiers = list(report, "identifiers");
  if (identifiers == nullptr) return "";
  struct Column {
    char const* key;
    char const* name;
  };
  std::array<Column, 5> const known{{{"kappa", "Cohen's kappa"},
                                     {"macro_f1", "macro-F1"},
                                     {"weighted_f1", "weighted F1"},
                                     {"accuracy", "accuracy"},
                                     {"n", "held-out rows"}}};
  std::vector<Column> columns;
  for (Column const& column : known) {
    bool used = false;
    for (json const& identifier : *identifiers) {
      if (json const* const systems = list(identifier, "systems")) {
        for (json const& system : *systems) {
          used = used || estimate(member(system, column.key)).has_value();
        }
      }
    }
    if (used) columns.push_back(column);
  }
  std::string body;
  for (json const& identifier : *identifiers) {
    json const* const systems = list(identifier, "systems");
    if (systems == nullptr || columns.empty()) continue;
    body += "<tr class=\"kind\"><th scope=\"rowgroup\" colspan=\"" +
            std::to_string(columns.size() + 1) + "\">" + escape(text(identifier, "name")) +
            "</th></tr>";
    for (json const& system : *systems) {
      body += "<tr><th scope=\"row\">" + escape(text(system, "name")) + "</th>";
      for (Column const& column : columns) {
        auto const e = estimate(member(system, column.key));
        bool const count = std::string_view(column.key) == "n" && e;
        body += count ? "<td class=\"num\">" + fixed(e->value, 0) + "</td>" : cell(e);
      }
      body += "</tr>";
    }
  }
  if (body.empty()) return "";
  std::string out =
      "<section><h2>Identifiers</h2><p>On held-out posts, whose authors were not in the training "
      "part.</p><div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Identifiers\">"
      "<table><thead><tr><th scope=\"col\"></th>";
  for (Column const& column : columns) {
    out += "<th scope=\"col\">" + escape(column.name) + "</th>";
  }
  return out + "</tr></thead><tbody>" + body + "</tbody></table></div></section>";
}

// ---- samples ----

inline std::optional<std::array<int, 3>> levels(json const& object, char const* key) {
  json const* const all = list(object, key);
  if (all == nullptr || all->size() != 3) return std::nullopt;
  std::array<int, 3> out{};
  for (std::size_t k = 0; k < 3; ++k) {
    if (!(*all)[k].is_number_integer()) return std::nullopt;
    auto const level = (*all)[k].get<std::int64_t>();
    if (level < 0 || level > 2) return std::nullopt;
    out[k] = static_cast<int>(level);
  }
  return out;
}

inline std::string chips(std::array<int, 3> const& found,
                         std::optional<std::array<int, 3>> const& target) {
  std::array<char const*, 3> const names{"ER", "IP", "EX"};
  std::string out = "<span class=\"chips\">";
  for (std::size_t k = 0; k < 3; ++k) {
    bool const hit = target && (*target)[k] == found[k];
    out += std::string("<span class=\"chip") + (hit ? " hit" : "") + "\">" + names[k] + " " +
           std::to_string(found[k]) +
           (hit ? "<span aria-label=\", as the target\"> ✓</span>" : "") + "</span>";
  }
  return out + "</span>";
}

inline std::string samples_part(json const& report) {
  json const* const samples = list(report, "samples");
  if (samples == nullptr) return "";
  std::string out;
  for (json const& sample : *samples) {
    json const* const answers = list(sample, "answers");
    std::string turns;
    if (json const* const context = member(sample, "context")) {
      if (context->is_string()) turns = "<p>" + escape(context->get<std::string>()) + "</p>";
      if (context->is_array()) {
        for (json const& turn : *context) {
          if (turn.is_string()) turns += "<p>" + escape(turn.get<std::string>()) + "</p>";
        }
      }
    }
    if (answers == nullptr || turns.empty()) continue;
    auto const target = levels(sample, "target_levels");
    std::string const emotion = text(sample, "emotion");
    out += "<article><div class=\"context\">" +
           (emotion.empty() ? "" : "<span class=\"emotion\">" + escape(emotion) + "</span>") +
           turns + "</div><dl>";
    for (json const& answer : *answers) {
      std::string const said = text(answer, "text");
      out += "<dt>" + escape(text(answer, "name")) + "</dt><dd>" +
             (said.empty() ? std::string("<em>(nothing)</em>") : escape(said));
      if (auto const found = levels(answer, "levels")) out += " " + chips(*found, target);
      out += "</dd>";
    }
    out += "</dl></article>";
  }
  if (out.empty()) return "";
  return "<section><h2>Sample dialogues</h2><p class=\"small\">ER emotional reaction, IP "
         "interpretation, EX exploration; 0 none, 1 weak, 2 strong, as the identifiers see it. ✓ "
         "marks "
         "a level that equals the target's.</p>" +
         out + "</section>";
}

// ---- the run ----

inline std::string scalar(json const& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number_float()) {
    double const x = value.get<double>();
    if (!std::isfinite(x)) return "not finite";
  }
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

inline void flatten(json const& value, std::string const& name,
                    std::vector<std::pair<std::string, std::string>>& out) {
  if (value.is_object() && !value.empty()) {
    for (auto const& [key, inner] : value.items()) {
      flatten(inner, name.empty() ? key : name + "." + key, out);
    }
  } else if (!name.empty()) {
    out.emplace_back(name, scalar(value));
  }
}

inline std::string pairs_table(json const& report, char const* key) {
  json const* const values = member(report, key);
  if (values == nullptr || !values->is_object()) return "";
  std::vector<std::pair<std::string, std::string>> rows;
  flatten(*values, "", rows);
  std::string out;
  for (auto const& [name, value] : rows) {
    out += "<tr><th scope=\"row\">" + escape(name) + "</th><td>" + escape(value) + "</td></tr>";
  }
  return out.empty() ? "" : "<table class=\"pairs\"><tbody>" + out + "</tbody></table>";
}

inline std::string run_part(json const& report) {
  std::string out;
  std::string const command = text(report, "command");
  if (!command.empty()) {
    out += "<h3>Command</h3><pre tabindex=\"0\"><code>" + escape(command) + "</code></pre>";
  }
  out += pairs_table(report, "run");
  std::string const files = pairs_table(report, "files");
  if (!files.empty()) out += "<h3>Files</h3>" + files;
  std::string const configuration = pairs_table(report, "configuration");
  if (!configuration.empty()) {
    out += "<details><summary>Configuration</summary>" + configuration + "</details>";
  }
  return out.empty() ? "" : "<section><h2>What was run</h2>" + out + "</section>";
}

inline constexpr std::string_view style = R"css(
:root{color-scheme:light dark;--bg:#fff;--fg:#1c2128;--soft:#59636e;--line:#d5dae0;--panel:#f5f7f9;
--note:#fff8e1;--note-line:#b58900;--hit:#dcf5e3;--hit-line:#1a7f37;
--c0:#0a5fc2;--c1:#bc4c00;--c2:#197935;--c3:#7a3fd0}
@media (prefers-color-scheme:dark){:root{--bg:#12161b;--fg:#e4e9ee;--soft:#9aa6b2;--line:#343c46;
--panel:#1b2128;--note:#2b2615;--note-line:#d9a514;--hit:#16331f;--hit-line:#3fb950;
--c0:#62aefb;--c1:#f29152;--c2:#4cc765;--c3:#bf95ff}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,sans-serif}
main{max-width:1040px;margin:0 auto;padding:24px 16px 64px}
h1{font-size:1.8rem;line-height:1.2;margin:.2em 0}
h2{font-size:1.3rem;margin:2em 0 .6em;border-bottom:1px solid var(--line);padding-bottom:.2em}
h3{font-size:1rem;margin:1.4em 0 .5em}
p{margin:.5em 0}
.lead{color:var(--soft);font-size:1.05rem}
.small{color:var(--soft);font-size:.85rem}
.note{background:var(--note);border-left:4px solid var(--note-line);padding:10px 14px;margin:16px 0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}
.scroll table{min-width:100%}
th,td{padding:6px 10px;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
thead th{text-align:right;vertical-align:bottom}
thead th:first-child{text-align:left}
tbody th{font-weight:600;min-width:8.5em}
.num{text-align:right;white-space:nowrap}
.none{color:var(--soft)}
.interval{display:block;color:var(--soft);font-size:.8em;font-weight:400}
.kind th{background:var(--panel);color:var(--soft);font-size:.85rem}
.dir{color:var(--soft)}
.pairs th{font-weight:400;color:var(--soft);width:14em}
.pairs td,.pairs th{overflow-wrap:anywhere}
pre{background:var(--panel);padding:12px;overflow-x:auto;font-size:.85rem}
summary{cursor:pointer;margin:1em 0 .5em}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,360px),1fr));gap:20px}
figure{margin:0;min-width:0;max-width:520px}
figcaption{font-weight:600;font-size:.95rem}
.chart{display:block;width:100%;height:auto}
.chart text{fill:var(--soft);font:12px system-ui,sans-serif}
.chart .end{text-anchor:end}
.chart .middle,.chart .axis{text-anchor:middle}
.grid{stroke:var(--line);stroke-width:1;fill:none}
.line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.raw{stroke-width:1;opacity:.35}
.line.c1{stroke-dasharray:7 4}
.line.c2{stroke-dasharray:2 4}
.line.c3{stroke-dasharray:10 4 2 4}
.line.raw{stroke-dasharray:none}
.line.c0{stroke:var(--c0)}.line.c1{stroke:var(--c1)}.line.c2{stroke:var(--c2)}.line.c3{stroke:var(--c3)}
.bar.c0,.dot.c0{fill:var(--c0)}.bar.c1,.dot.c1{fill:var(--c1)}
.bar.c2,.dot.c2{fill:var(--c2)}.bar.c3,.dot.c3{fill:var(--c3)}
.key{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:.85rem;margin:.2em 0}
.swatch{width:26px;height:10px;margin-right:5px}
article{border:1px solid var(--line);border-radius:8px;padding:12px 16px;margin:12px 0}
.context{background:var(--panel);border-radius:6px;padding:8px 12px;margin-bottom:10px}
.context p{margin:.3em 0}
.emotion{float:right;margin-left:10px;color:var(--soft);font-size:.85rem}
dl{display:grid;grid-template-columns:9em 1fr;gap:6px 12px;margin:0}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
.chips{display:inline-flex;gap:4px;flex-wrap:wrap;margin-left:4px}
.chip{border:1px solid var(--line);border-radius:10px;padding:0 8px;font-size:.78rem;white-space:nowrap}
.hit{background:var(--hit);border-color:var(--hit-line)}
@media (max-width:560px){dl{grid-template-columns:1fr;gap:0}dt{margin-top:8px}dd{margin-bottom:4px}
.pairs th{width:9em}h1{font-size:1.5rem}
.scroll th:first-child:not([colspan]){position:sticky;left:0;background:var(--bg)}}
@media print{article,figure{break-inside:avoid}}
)css";

}  // namespace detail::report

/// A page that needs nothing else: styles and curves (SVG) are inside, there is no script and no
/// link to another place. Every text is escaped. Every key is optional but `title`; a part that is
/// missing, empty or of another type is left out, and so is a number that is not finite. NUMBER is
/// a number or a 95 % interval, {"value": 0.4, "low": 0.3, "high": 0.5}.
///
///     {
///       "title": "EmpRL: quickstart",
///       "subtitle": "One sentence below the title.",
///       "note": "What the data is, and what its numbers may not be used for.",
///       "findings": ["One sentence each."],
///       "command": "emprl run ...",
///       "run": {"commit": "...", "machine": "...", "seconds": 171},
///       "configuration": {"ppo": {"steps": 40}},             // nested names are joined by dots
///       "files": {"model": "path"},
///       "metrics": [{"key": "reward", "name": "Reward", "better": "higher" | "lower",
///                    "about": "..."}],
///       "systems": [{"name": "after PPO", "kind": "system" | "control" | "floor",
///                    "note": "...", "values": {"reward": NUMBER}}],
///       "gains": [{"name": "reward", "value": 0.08, "low": 0.06, "high": 0.1}],      // paired
///       "curves": [{"title": "PPO reward", "group": "PPO", "x": "step", "y": "reward",
///                   "smooth": true, "series": [{"name": "reward", "points": [[0, 0.31]]}]}],
///       "marginals": [{"name": "Emotional reaction", "note": "...",
///                      "groups": [{"name": "target", "shares": [0.3, 0.4, 0.3]}]}],
///       "identifiers": [{"name": "Emotional reaction",
///                        "systems": [{"name": "identifier", "kappa": NUMBER,
///                                     "macro_f1": NUMBER, "weighted_f1": NUMBER,
///                                     "accuracy": NUMBER, "n": 180}]}],
///       "samples": [{"emotion": "proud", "context": "..." | ["turn", "turn"],
///                    "target_levels": [2, 0, 1],                                // er, ip, ex
///                    "answers": [{"name": "after PPO", "text": "...", "levels": [1, 0, 0]}]}]
///     }
///
/// `smooth` draws a centred moving average over the raw points. Levels of answers that equal
/// `target_levels` are marked. Up to four series or groups have colours of their own.
/// @throws ConfigError if there is no title
inline std::string html_report(nlohmann::json const& report) {
  using namespace detail::report;
  std::string const title = text(report, "title");
  expects<ConfigError>(!title.empty(), "A report needs a title.");
  std::string head;
  std::string const subtitle = text(report, "subtitle");
  if (!subtitle.empty()) head += "<p class=\"lead\">" + escape(subtitle) + "</p>";
  std::string const note = text(report, "note");
  if (!note.empty()) head += "<p class=\"note\" role=\"note\">" + escape(note) + "</p>";
  if (json const* const findings = list(report, "findings")) {
    std::string items;
    for (json const& finding : *findings) {
      if (finding.is_string()) items += "<li>" + escape(finding.get<std::string>()) + "</li>";
    }
    if (!items.empty()) head += "<section><h2>Findings</h2><ul>" + items + "</ul></section>";
  }
  return "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
         "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">"
         "<meta name=\"color-scheme\" content=\"light dark\"><title>" +
         escape(title) + "</title><style>" + std::string(style) +
         "</style></head>\n<body><main><h1>" + escape(title) + "</h1>" + head +
         comparison_part(report) + marginals_part(report) + samples_part(report) +
         curves_part(report) + identifiers_part(report) + run_part(report) +
         "</main></body></html>\n";
}

/// Writes html_report(report) to a file, all or nothing.
/// @throws ConfigError if there is no title, IoError if the file cannot be written
inline void write_html_report(std::filesystem::path const& out, nlohmann::json const& report) {
  io::write_file_atomically(out, html_report(report));
}

}  // namespace emprl::program
