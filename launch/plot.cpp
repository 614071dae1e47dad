#include "launch/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace longhaul::launch {
namespace {

constexpr int kLeft = 72, kRight = 24, kTop = 48, kBottom = 56;

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
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
      default:
        out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return out;
}

bool finite(const PlotPoint& point) { return std::isfinite(point.x) && std::isfinite(point.y); }

struct Range {
  double low = 0, high = 1;
};

template <class Coordinate>
Range range_of(const LinePlot& plot, Coordinate coordinate) {
  Range range{INFINITY, -INFINITY};
  for (const PlotSeries& series : plot.series) {
    for (const PlotPoint& point : series.points) {
      if (!finite(point)) continue;
      range.low = std::min(range.low, coordinate(point));
      range.high = std::max(range.high, coordinate(point));
    }
  }
  return range.low <= range.high ? range : Range{};
}

// Data coordinates to pixels, with the ticks that bound the axes.
struct Axes {
  std::vector<double> x_ticks, y_ticks;
  Range x_range, y_range;
  double left = 0, right = 0, top = 0, bottom = 0;

  double x(double value) const {
    return left + (value - x_range.low) / (x_range.high - x_range.low) * (right - left);
  }
  double y(double value) const {
    return bottom - (value - y_range.low) / (y_range.high - y_range.low) * (bottom - top);
  }
};

Axes axes_of(const LinePlot& plot) {
  const Range xs = range_of(plot, [](const PlotPoint& p) { return p.x; });
  Range ys = range_of(plot, [](const PlotPoint& p) { return p.y; });
  if (plot.y_from_zero) ys.low = std::min(ys.low, 0.0);
  Axes axes;
  axes.x_ticks = round_ticks(xs.low, xs.high, 8);
  axes.y_ticks = round_ticks(ys.low, ys.high, 6);
  // The x axis ends with the data, so the curve fills the width; the y axis ends at round numbers.
  axes.x_range = xs.low < xs.high ? xs : Range{axes.x_ticks.front(), axes.x_ticks.back()};
  axes.y_range = {axes.y_ticks.front(), axes.y_ticks.back()};
  axes.left = kLeft;
  axes.right = plot.width - kRight;
  axes.top = kTop;
  axes.bottom = plot.height - kBottom;
  return axes;
}

std::string tick_text(double value, const std::vector<double>& ticks) {
  const double step = ticks[1] - ticks[0];
  if (std::abs(value) < step * 1e-9) return "0";
  if (std::abs(value) >= 1e6 || step < 1e-5) return fmt::format("{:.3g}", value);
  const int decimals = std::max(0, static_cast<int>(-std::floor(std::log10(step) + 1e-9)));
  return fmt::format("{:.{}f}", value, decimals);
}

std::string draw_axes(const LinePlot& plot, const Axes& axes) {
  std::string svg;
  for (const double tick : axes.y_ticks) {
    const double y = axes.y(tick);
    svg += fmt::format(
        "<line class=\"grid\" x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\"/>\n",
        axes.left, y, axes.right, y);
    svg += fmt::format(
        "<text class=\"tick\" text-anchor=\"end\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n",
        axes.left - 8, y + 4, tick_text(tick, axes.y_ticks));
  }
  for (const double tick : axes.x_ticks) {
    const double slack = (axes.x_range.high - axes.x_range.low) * 1e-9;
    if (tick < axes.x_range.low - slack || tick > axes.x_range.high + slack) continue;
    const double x = axes.x(tick);
    svg += fmt::format(
        "<line class=\"axis\" x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\"/>\n", x,
        axes.bottom, x, axes.bottom + 5);
    svg += fmt::format(
        "<text class=\"tick\" text-anchor=\"middle\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n", x,
        axes.bottom + 20, tick_text(tick, axes.x_ticks));
  }
  svg += fmt::format(
      "<path class=\"axis\" fill=\"none\" d=\"M{:.1f},{:.1f} L{:.1f},{:.1f} L{:.1f},{:.1f}\"/>\n",
      axes.left, axes.top, axes.left, axes.bottom, axes.right, axes.bottom);
  const double x_middle = (axes.left + axes.right) / 2, y_middle = (axes.top + axes.bottom) / 2;
  svg +=
      fmt::format("<text class=\"title\" text-anchor=\"middle\" x=\"{:.1f}\" y=\"26\">{}</text>\n",
                  x_middle, escaped(plot.title));
  svg += fmt::format("<text text-anchor=\"middle\" x=\"{:.1f}\" y=\"{}\">{}</text>\n", x_middle,
                     plot.height - 14, escaped(plot.x_label));
  svg += fmt::format(
      "<text text-anchor=\"middle\" transform=\"translate(20,{:.1f}) rotate(-90)\">{}</text>\n",
      y_middle, escaped(plot.y_label));
  return svg;
}

std::string draw_series(const PlotSeries& series, const Axes& axes) {
  std::string path, dots;
  bool pen_down = false;
  for (const PlotPoint& point : series.points) {
    if (!finite(point)) {
      pen_down = false;
      continue;
    }
    path += fmt::format("{}{:.1f},{:.1f} ", pen_down ? 'L' : 'M', axes.x(point.x), axes.y(point.y));
    pen_down = true;
    if (series.dots) {
      dots += fmt::format("<circle fill=\"{}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"2.5\"/>\n",
                          escaped(series.color), axes.x(point.x), axes.y(point.y));
    }
  }
  if (path.empty()) return "";
  path.pop_back();
  return fmt::format(
             "<path fill=\"none\" stroke=\"{}\" stroke-width=\"{}\" stroke-linejoin=\"round\" "
             "stroke-linecap=\"round\"{} d=\"{}\"/>\n",
             escaped(series.color), series.width, series.dashed ? " stroke-dasharray=\"7 5\"" : "",
             path) +
         dots;
}

// How many points lie between x = left and right and above y = bottom, in pixels.
std::ptrdiff_t points_in(const LinePlot& plot, const Axes& axes, double left, double right,
                         double bottom) {
  std::ptrdiff_t count = 0;
  for (const PlotSeries& series : plot.series) {
    count += std::ranges::count_if(series.points, [&](const PlotPoint& point) {
      const double x = axes.x(point.x);
      return finite(point) && x >= left && x <= right && axes.y(point.y) <= bottom;
    });
  }
  return count;
}

std::string draw_legend(const LinePlot& plot, const Axes& axes) {
  std::size_t longest = 0;
  for (const PlotSeries& series : plot.series) longest = std::max(longest, series.name.size());
  const double width = 56 + 7.0 * static_cast<double>(longest);
  const double height = 14 + 20.0 * static_cast<double>(plot.series.size());
  const double top = axes.top + 8;
  const double right_corner = axes.right - width - 8, left_corner = axes.left + 8;
  const auto covered = [&](double left) {
    return points_in(plot, axes, left - 8, left + width + 8, top + height);  // to the edge
  };
  const double left = covered(left_corner) < covered(right_corner) ? left_corner : right_corner;
  std::string svg = fmt::format(
      "<rect class=\"legend\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" "
      "rx=\"4\"/>\n",
      left, top, width, height);
  double y = top + 17;
  for (const PlotSeries& series : plot.series) {
    svg += fmt::format(
        "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\" "
        "stroke-width=\"{}\"{}/>\n",
        left + 10, y, left + 38, y, escaped(series.color), series.width,
        series.dashed ? " stroke-dasharray=\"7 5\"" : "");
    svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n", left + 46, y + 4,
                       escaped(series.name));
    y += 20;
  }
  return svg;
}

}  // namespace

std::vector<double> round_ticks(double low, double high, int count) {
  if (!(high > low)) {  // one value: room on both sides of it
    const double room = low == 0 ? 1 : std::abs(low) * 0.1;
    low -= room;
    high = low + 2 * room;
  }
  const double raw = (high - low) / count;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  double step = 10 * power;
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= raw * (1 - 1e-9)) {
      step = factor * power;
      break;
    }
  }
  const double first = std::floor(low / step + 1e-9), last = std::ceil(high / step - 1e-9);
  std::vector<double> ticks;
  for (double k = first; k <= last; ++k) ticks.push_back(k * step);
  return ticks;
}

std::string line_plot_svg(const LinePlot& plot) {
  const Axes axes = axes_of(plot);
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} "
      "{1}\">\n"
      "<style>text{{font:13px sans-serif;fill:#222}} .title{{font-size:16px;font-weight:600}} "
      ".tick{{font-size:12px;fill:#444}} .axis{{stroke:#444;stroke-width:1}} "
      ".grid{{stroke:#ddd;stroke-width:1}} "
      ".legend{{fill:#fff;fill-opacity:0.9;stroke:#bbb}}</style>\n"
      "<rect width=\"{0}\" height=\"{1}\" fill=\"#fff\"/>\n",
      plot.width, plot.height);
  svg += draw_axes(plot, axes);
  for (const PlotSeries& series : plot.series) svg += draw_series(series, axes);
  if (!plot.series.empty()) svg += draw_legend(plot, axes);
  return svg + "</svg>\n";
}

}  // namespace longhaul::launch
