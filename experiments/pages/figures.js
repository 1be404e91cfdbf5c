"use strict";
// Plotly figures: curves with bands, reliability, pass@k. No untrusted text enters them.

const LAYOUT = {
  margin: { l: 60, r: 10, t: 34, b: 50 },
  font: { family: "system-ui, sans-serif", size: 13 },
  paper_bgcolor: "#fff",
  plot_bgcolor: "#fff",
  hovermode: "closest",
  legend: { font: { size: 12 } },
};
// No button that would send the figure anywhere.
const CONFIG = {
  responsive: true, displaylogo: false,
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
};

function translucent(colour, opacity) {
  const parts = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
  return `rgba(${parts.join(",")},${opacity})`;
}

const GREY = "#a8a8a8";

// Published curves have rollouts alone, and no error bars.
function publishedTraces(run, unit) {
  if (unit !== "rollouts") return [];
  return run.published.map((curve) => ({
    x: curve.budgets, y: curve.accuracies.map((a) => 100 * a), name: curve.label,
    mode: "lines+markers", line: { color: GREY, dash: curve.dash, width: 1.5 },
    marker: { color: GREY, symbol: curve.symbol, size: 6 },
    hovertemplate: "%{fullData.name}<br>N = %{x}: %{y:.1f} %<extra></extra>",
  }));
}

function curveTraces(run, unit) {
  const traces = publishedTraces(run, unit);
  for (const method of run.methods) {
    const here = run.points.filter((p) => p.method === method.name && p.costs[unit] !== null);
    if (!here.length) continue;
    const x = here.map((p) => p.costs[unit]);
    if (here.length > 1) {
      traces.push({
        x: [...x, ...[...x].reverse()],
        y: [...here.map((p) => 100 * p.high), ...here.map((p) => 100 * p.low).reverse()],
        fill: "toself", fillcolor: translucent(method.colour, 0.13), line: { width: 0 },
        mode: "lines", hoverinfo: "skip", showlegend: false, legendgroup: method.name,
      });
    }
    const bar = here.length > 1 ? {} : {
      error_y: {
        type: "data", symmetric: false,
        array: here.map((p) => 100 * (p.high - p.accuracy)),
        arrayminus: here.map((p) => 100 * (p.accuracy - p.low)),
      },
    };
    traces.push({
      ...bar, x, y: here.map((p) => 100 * p.accuracy), name: method.label, mode: "lines+markers",
      legendgroup: method.name, line: { color: method.colour, dash: method.dash, width: 2 },
      marker: { color: method.colour, symbol: method.symbol, size: 8 },
      text: here.map((p) => `N = ${p.budget}<br>${p.text} %<br>` + Object.keys(run.units)
        .filter((u) => p.costs[u] !== null)
        .map((u) => `${u.replace("_", " ")}: ${p.costs[u].toLocaleString("en")}`).join("<br>")),
      hovertemplate: "<b>%{fullData.name}</b><br>%{text}<extra></extra>",
    });
  }
  return traces;
}

function drawCurves(place, run, unit) {
  const axis = { type: "log", title: { text: run.units[unit] }, gridcolor: "#e8eaed" };
  if (unit === "rollouts") {
    const budgets = [...run.points.map((p) => p.budget), ...run.published.flatMap((c) => c.budgets)];
    axis.tickvals = unique(budgets).sort((a, b) => a - b);
  }
  return Plotly.react(place, curveTraces(run, unit), {
    ...LAYOUT, xaxis: axis, yaxis: { title: { text: "accuracy (%)" }, gridcolor: "#e8eaed" },
  }, CONFIG);
}

function drawReliability(place, run) {
  const traces = [{
    x: [0, 1], y: [0, 1], mode: "lines", name: "calibrated",
    line: { color: "#9aa0a6", dash: "dot", width: 1 }, hoverinfo: "skip",
  }];
  for (const entry of run.calibration) {
    const method = run.methods.find((m) => m.name === entry.method);
    const show = ["smc", "self_consistency", "particle_filter"].includes(entry.method.split("@")[0]);
    traces.push({
      x: entry.bins.map((b) => b.probability), y: entry.bins.map((b) => b.accuracy),
      error_y: {
        type: "data", symmetric: false, thickness: 1,
        array: entry.bins.map((b) => b.interval[1] - b.accuracy),
        arrayminus: entry.bins.map((b) => b.accuracy - b.interval[0]),
      },
      text: entry.bins.map((b) => `${b.size} runs`),
      hovertemplate: "%{fullData.name}: probability %{x:.2f}, right %{y:.2f}, %{text}<extra></extra>",
      name: method.label, mode: "lines+markers", visible: show ? true : "legendonly",
      line: { color: method.colour, dash: method.dash, width: 2 },
      marker: { color: method.colour, symbol: method.symbol, size: 8 },
    });
  }
  return Plotly.react(place, traces, {
    ...LAYOUT,
    xaxis: { title: { text: "probability of the selected answer" }, range: [-0.02, 1.02], gridcolor: "#e8eaed" },
    yaxis: { title: { text: "share that is right" }, range: [-0.02, 1.02], gridcolor: "#e8eaed" },
  }, CONFIG);
}

function drawPass(place, run) {
  const x = run.pass.map((p) => p.k);
  const high = run.pass.map((p) => 100 * (p.pass + p.error));
  const low = run.pass.map((p) => 100 * (p.pass - p.error));
  return Plotly.react(place, [
    { x: [...x, ...[...x].reverse()], y: [...high, ...low.reverse()], fill: "toself",
      fillcolor: "rgba(0,114,178,0.15)", line: { width: 0 }, mode: "lines", hoverinfo: "skip", showlegend: false },
    { x, y: run.pass.map((p) => 100 * p.pass), mode: "lines+markers", name: "pass@k",
      line: { color: "#0072B2" }, hovertemplate: "pass@%{x}: %{y:.1f} %<extra></extra>" },
    ...run.pools.map((pool) => {
      const styled = run.methods.find((m) => m.name === pool.method);
      return {
        x: pool.points.map((p) => p.n), y: pool.points.map((p) => 100 * p.accuracy),
        error_y: { type: "data", array: pool.points.map((p) => 100 * p.error), thickness: 1 },
        name: styled.label, mode: "lines+markers", line: { color: styled.colour, dash: styled.dash },
        marker: { color: styled.colour, symbol: styled.symbol, size: 7 },
        hovertemplate: "%{fullData.name} of %{x}: %{y:.1f} ± %{error_y.array:.1f} %<extra></extra>",
      };
    }),
  ], {
    ...LAYOUT, showlegend: run.pools.length > 0,
    xaxis: { type: "log", title: { text: "samples k" }, tickvals: x, gridcolor: "#e8eaed" },
    yaxis: { title: { text: "right (%)" }, gridcolor: "#e8eaed" },
  }, CONFIG);
}
