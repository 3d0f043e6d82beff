#!/usr/bin/env bash
# plot_metrics.sh METRICS.jsonl > curves.svg: training loss and validation top-1 over the steps of a
# run, as an SVG picture that any browser shows. Needs awk only.
set -euo pipefail
if [ $# -ne 1 ] || [ ! -r "$1" ]; then
  echo "usage: $0 METRICS.jsonl > curves.svg" >&2
  exit 2
fi
awk '
function field(name,   s) { # the value of "name" in this line
  if (!match($0, "\"" name "\": *[^,}]*")) return ""
  s = substr($0, RSTART, RLENGTH); sub(/^[^:]*: */, "", s); gsub(/"/, "", s); return s
}
function x(step) { return 60 + 660 * step / last }
function panel(top, title, lo, hi, unit,   i, y) {
  printf "<text x=\"60\" y=\"%d\" font-weight=\"bold\">%s</text>\n", top - 8, title
  for (i = 0; i <= 4; i++) {
    y = top + 180 - 45 * i
    printf "<path d=\"M60 %d H720\" stroke=\"#ddd\"/><text x=\"52\" y=\"%d\" text-anchor=\"end\">%.3g%s</text>\n", \
      y, y + 4, lo + (hi - lo) * i / 4, unit
  }
}
function line(points, colour) {
  printf "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"1.5\" points=\"%s\"/>\n", colour, points
}
{ kind = field("kind"); step = field("step") + 0; if (step > last) last = step }
kind == "train" { n++; s[n] = step; l[n] = field("loss") + 0; if (l[n] > most) most = l[n] }
kind == "val" { w = field("weights"); v++; vs[v] = step; vw[v] = w; vt[v] = field("top1") + 0 }
END {
  if (!last) last = 1
  if (!most) most = 1
  print "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"760\" height=\"520\" font-family=\"sans-serif\" font-size=\"12\">"
  print "<rect width=\"760\" height=\"520\" fill=\"white\"/>"
  panel(40, "training loss", 0, most, "")
  for (i = 1; i <= n; i++) loss = loss sprintf("%.1f,%.1f ", x(s[i]), 220 - 180 * l[i] / most)
  line(loss, "#1f77b4")
  panel(290, "validation top-1 (blue: weights, orange: their moving average)", 0, 100, "%")
  for (i = 1; i <= v; i++) {
    p = sprintf("%.1f,%.1f ", x(vs[i]), 470 - 1.8 * vt[i])
    if (vw[i] == "ema") ema = ema p; else raw = raw p
  }
  line(raw, "#1f77b4"); line(ema, "#ff7f0e")
  printf "<text x=\"720\" y=\"500\" text-anchor=\"end\">step %d</text>\n</svg>\n", last
}' "$1"
