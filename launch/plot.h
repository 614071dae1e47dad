#pragma once
// Line plots as SVG text: enough for a loss curve, with no library behind it.

#include <string>
#include <vector>

namespace longhaul::launch {

struct PlotPoint {
  double x = 0, y = 0;
};

struct PlotSeries {
  std::string name;   ///< in the legend
  std::string color;  ///< as in SVG, e.g. "#1f5fa8"
  bool dashed = false;
  double width = 1.8;
  std::vector<PlotPoint> points;  ///< a point that is not finite breaks the line
  bool dots = false;              ///< draws the points too: for few of them
};

struct LinePlot {
  std::string title, x_label, y_label;
  std::vector<PlotSeries> series;
  int width = 800, height = 480;  ///< pixels
  bool y_from_zero = false;       ///< the y axis begins at 0, or below where values are
};

/// A complete SVG document: axes with round ticks, grid, labels, and a legend in that upper corner
/// where it covers fewer points. Without a finite point the
/// axes run from 0 to 1.
std::string line_plot_svg(const LinePlot& plot);

/// Round numbers, at least two, that cover [low, high] at about `count` steps of 1, 2 or 5 times a
/// power of ten.
std::vector<double> round_ticks(double low, double high, int count);

}  // namespace longhaul::launch
