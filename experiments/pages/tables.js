"use strict";
// Tables of accuracy, cost, paired differences, scaling rates and calibration.

function labelOf(run, name) {
  // Texts of independent methods are kept under one of them, which may have no rows.
  const method = run.methods.find((m) => m.name === name);
  return method ? method.label : name;
}

function budgetsOf(run) {
  return unique(run.points.map((p) => p.budget)).sort((a, b) => a - b);
}

function accuracyTable(run) {
  const budgets = budgetsOf(run);
  const lines = run.methods.map((m) => [
    m.label,
    ...budgets.map((n) => {
      const point = run.points.find((p) => p.method === m.name && p.budget === n);
      return point ? point.text : "";
    }),
  ]);
  return table(["method", ...budgets.map((n) => `N = ${n}`)], lines);
}

function costTable(run, budget) {
  const whole = (value) => (value === null ? "–" : Math.round(value).toLocaleString("en"));
  const lines = run.points
    .filter((p) => p.budget === budget)
    .map((p) => [
      labelOf(run, p.method), p.text, whole(p.costs.generated_tokens), whole(p.reward_tokens),
      fixed(p.costs.flops === null ? null : p.costs.flops / 1e6, 1),
      fixed(p.costs.seconds === null ? null : 1e3 * p.costs.seconds, 1),
    ]);
  return table(
    ["method", "accuracy %", "tokens", "reward tokens", "MFLOP", "ms with compilation"], lines);
}

function pairedTable(run, rows) {
  if (!rows.length) {
    return element("p", { class: "note", text: "This run has no such pair at this budget." });
  }
  const lines = rows.map((row) => [
    labelOf(run, row.method), labelOf(run, row.against),
    `${points(row.difference)} ± ${fixed(row.error === null ? null : 100 * row.error, 1)}`,
    `[${points(row.interval[0])}, ${points(row.interval[1])}]`,
    String(row.only_first), String(row.only_second),
    probability(row.p_value), probability(row.p_value_holm),
    row.problems_for_5_points === null ? "–" : String(row.problems_for_5_points),
  ]);
  const count = rows.length;
  return element("div", {}, [
    table(["method", "against", "difference", "95 %", "only first", "only second", "p", "Holm",
      "problems for 5"], lines),
    element("p", { class: "note", text: `Holm's p-values are adjusted for the ${count} ` +
      `comparison${count > 1 ? "s" : ""} of this table.` }),
  ]);
}

function rateTable(run, unit) {
  const rows = run.rates[unit];
  if (!rows.length) {
    const reason = unit === "rollouts" ? run.no_rates : "costs in this unit do not increase with N, or no pair is compared.";
    return element("p", { class: "note", text: `No scaling rate: ${reason}` });
  }
  const factor = (rate) => {
    if (rate.mean === null) return "–";
    if (!rate.interval || rate.interval[0] === null) return `${rate.mean.toFixed(2)} [–]`;
    return `${rate.mean.toFixed(2)} [${rate.interval.map((x) => x.toFixed(2)).join(", ")}]`;
  };
  const range = (rate) =>
    rate.range[0] === null ? "–" : rate.range.map((x) => (100 * x).toFixed(1)).join(" to ");
  const lines = rows.map((row) => [
    labelOf(run, row.method), labelOf(run, row.against), factor(row.best), fixed(row.best.top, 2),
    range(row.best), factor(row.raw), range(row.raw),
  ]);
  return table(["method", "against", "mean [95 %]", "top", "accuracies %", "raw: mean [95 %]",
    "raw: accuracies %"], lines);
}

function calibrationTable(run) {
  const lines = run.calibration.map((row) => [
    labelOf(run, row.method),
    `${row.ece.toFixed(3)} [${row.ece_interval.map((x) => x.toFixed(3)).join(", ")}]`,
    fixed(row.ece_if_calibrated, 3), fixed(row.rms_error, 3), fixed(row.brier, 3),
    fixed(row.log_score, 3), fixed(row.right_log_score, 3), ...row.selective.map((x) => (100 * x).toFixed(1)),
    (100 * row.selective_area).toFixed(1),
  ]);
  return table(["method", "ECE [95 %]", "if calibrated", "RMS", "Brier", "log score",
    "log p(right)", "best 25 %", "50 %", "75 %", "area"], lines);
}
