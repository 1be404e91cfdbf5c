"use strict";
// The page of one run at a time, from the data in the element "data".

function showRun(place, run) {
  place.replaceChildren();
  place.append(element("h1", { text: run.title }), element("p", { class: "note", text: run.name }));
  const parts = [
    ["curves", "Curves"], ["paired", "Paired differences"], ["costs", "Costs"],
    ["rates", "Scaling rates"], ["calibration", "Calibration"], ["pass", "pass@k"],
    ["problems", "Problems"], ["settings", "Settings"],
  ];
  const links = parts.map(([id, text]) => {
    const link = element("a", { text });
    link.href = `#${id}`;
    return link;
  });
  place.append(element("nav", {}, links));
  for (const note of run.notes) place.append(element("p", { class: "note", text: `Note: ${note}` }));

  const curves = section("curves", "Curves",
    "Bands are ±1 standard error, clustered by problem (68 % Wilson intervals where fewer than ten problems are right or wrong). Click on a name to hide a method.");
  const figure = element("div", { class: "figure", id: "curve-figure" });
  const units = Object.keys(run.units).filter((unit) => run.points.some((p) => p.costs[unit] !== null));
  curves.append(
    choice("cost in", units.map((unit) => [unit, run.units[unit]]), (unit) => drawCurves(figure, run, unit)).label,
    figure, accuracyTable(run));

  const paired = section("paired", "Paired differences",
    "Accuracy of the first minus that of the second, in points ± standard error, on the same problems. Only first, only second: runs in which one of the two alone is right. p: exact test that the two are interchangeable on each problem. Problems for 5: number at which a difference of 5 points would be found with probability 0.8 at level 0.05. The best of SMC, REBASE and DVTS is chosen on the same problems, which favours it.");
  const pairedPlace = element("div");
  const pairedState = { budget: Math.max(...budgetsOf(run)), family: "best" };
  const showPaired = () => pairedPlace.replaceChildren(
    pairedTable(run, run.paired[pairedState.budget][pairedState.family]));
  const pairedBudget = choice("budget", budgetsOf(run).map((n) => [n, `N = ${n}`]),
    (value) => { pairedState.budget = Number(value); showPaired(); });
  pairedBudget.select.value = pairedState.budget;
  paired.append(pairedBudget.label,
    choice("pairs", [["best", "each method against the best of SMC, REBASE and DVTS"],
      ["pairs", "samplers against baselines"]],
    (value) => { pairedState.family = value; showPaired(); }).label, pairedPlace);
  showPaired();

  const costs = section("costs", "Costs", "Means per problem.");
  const costPlace = element("div");
  const costBudget = choice("budget", budgetsOf(run).map((n) => [n, `N = ${n}`]),
    (value) => costPlace.replaceChildren(costTable(run, Number(value))));
  costBudget.select.value = Math.max(...budgetsOf(run));
  costPlace.append(costTable(run, Math.max(...budgetsOf(run))));
  costs.append(costBudget.label, costPlace);

  const rates = section("rates", "Scaling rates",
    "The cost that the second method needs, divided by that of the first, for equal accuracy: at running maxima over budgets, and at raw accuracies, whose range ends at what both have at their largest budget. –: the curves share no range of accuracies, or too few bootstrap replicates do.");
  const ratePlace = element("div", {}, [rateTable(run, "rollouts")]);
  rates.append(choice("cost in", Object.keys(run.rates).map((unit) => [unit, run.units[unit]]),
    (unit) => ratePlace.replaceChildren(rateTable(run, unit))).label, ratePlace);

  const calibration = section("calibration", "Calibration",
    `Whether the probability of the selected answer is that of being right, at N = ${run.calibration_budget}: its share of the weight, for self-consistency of the votes. ECE in 10 bins of equal width with a bootstrap interval over problems; if calibrated: what noise alone would give; RMS: signed root of the debiased squared error; best 25 %: accuracy of the most confident quarter; area: its mean over all fractions.`);
  const reliability = element("div", { class: "figure", id: "reliability-figure" });
  if (run.calibration.length) calibration.append(reliability, calibrationTable(run));
  else calibration.append(element("p", { class: "note", text: "No two methods have a budget above 1 in common." }));

  const pass = section("pass", "pass@k",
    "Probability that one or more of k independent samples is right (unbiased; band ±1 standard error). No selection from k samples can be right more often. The other curves are the accuracy of selection from k samples, over all subsets of the pool (bars ±1 standard error).");
  const passFigure = element("div", { class: "figure", id: "pass-figure" });
  if (run.pass.length > 1) pass.append(passFigure);
  else pass.append(element("p", { class: "note", text: "This run has no method with independent samples at several budgets." }));

  const settings = section("settings", "Settings", "Those that all rows share.");
  const list = element("dl");
  for (const [name, value] of Object.entries(run.settings)) {
    list.append(element("dt", { text: name }), element("dd", { text: value }));
  }
  settings.append(list);

  place.append(curves, paired, costs, rates, calibration, pass, problemSection(run), settings);
  drawCurves(figure, run, units[0]);
  if (run.calibration.length) drawReliability(reliability, run);
  if (run.pass.length > 1) drawPass(passFigure, run);
}

function start() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const page = document.getElementById("page"), place = element("div");
  if (data.runs.length > 1) {
    page.append(choice("run", data.runs.map((run, i) => [i, `${run.name}: ${run.title}`]),
      (value) => showRun(place, data.runs[Number(value)])).label);
  }
  page.append(place);
  showRun(place, data.runs[0]);
  document.body.dataset.ready = "true";
}

start();
