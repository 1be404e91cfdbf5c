"use strict";
// Single problems: who was right, which answers were graded how, and kept genealogies.

function problemSection(run) {
  const made = section("problems", "Problems",
    "Each line is a problem; ✓ and ✗ are the methods at the chosen budget (first seed). Choose a problem to see every selected answer beside the right one, where wrong gradings can be spotted, and its genealogies if they were kept.");
  const state = { budget: Math.max(...budgetsOf(run)), filter: "all", words: "" };
  const list = element("div", { class: "list" }), detail = element("div", { class: "detail", id: "problem-detail" });
  const budget = choice("budget", budgetsOf(run).map((n) => [n, `N = ${n}`]), (value) => {
    state.budget = Number(value); show();
  });
  budget.select.value = state.budget;
  const filter = choice("show", [["all", "all problems"], ["differ", "methods disagree"],
    ["wrong", "no method is right"], ["lost", "right answer among particles, not selected"],
    ["kept", "with a kept genealogy"]], (value) => { state.filter = value; show(); });
  const words = element("input");
  words.type = "search";
  words.addEventListener("input", () => { state.words = words.value.toLowerCase(); show(); });
  const find = element("label", { text: "find" });
  find.append(words);
  made.append(budget.label, filter.label, find, list, detail);

  function show() {
    const seed = run.answers.length ? run.answers[0].seed : 0;
    const records = run.answers.filter((a) => a.budget === state.budget && a.seed === seed);
    const kept = new Set(run.trees.map((tree) => tree.problem));
    const tests = {
      all: () => true,
      differ: (i) => unique(gradesOf(records, i)).length > 1,
      wrong: (i) => gradesOf(records, i).length > 0 && gradesOf(records, i).every((right) => !right),
      lost: (i) => records.some((r) => r.correct[i] === false && r.num_right[i] > 0),
      kept: (i) => kept.has(run.problems[i].id),
    };
    const shown = run.problems.map((_, i) => i).filter((i) => tests[state.filter](i) &&
      `${run.problems[i].id} ${run.problems[i].prompt}`.toLowerCase().includes(state.words));
    const lines = shown.map((i) => {
      const problem = run.problems[i];
      return [String(problem.id), shorten(problem.prompt, 70), shorten(problem.answer, 20),
        ...records.map((r) => markOf(r.correct[i]))];
    });
    const made = table(["id", `problem (${shown.length} of ${run.problems.length})`, "answer",
      ...records.map((r) => labelOf(run, r.method))], lines, [1, 2]);
    [...made.querySelectorAll("tbody tr")].forEach((line, k) => {
      line.className = "choice";
      line.tabIndex = 0;
      const open = () => {
        for (const other of made.querySelectorAll("tr.chosen")) other.classList.remove("chosen");
        line.classList.add("chosen");
        detail.replaceChildren(problemView(run, shown[k]));
      };
      line.addEventListener("click", open);
      line.addEventListener("keydown", (event) => { if (event.key === "Enter") open(); });
    });
    list.replaceChildren(made);
  }
  show();
  return made;
}

// A method that does not have the problem has no grade.
function gradesOf(records, i) {
  return records.map((r) => r.correct[i]).filter((right) => right !== null);
}

function markOf(right) {
  if (right === null) return "";
  return right ? { text: "✓", class: "right" } : { text: "✗", class: "wrong" };
}

function problemView(run, i) {
  const problem = run.problems[i];
  const made = element("div", {}, [
    element("h3", { text: `Problem ${problem.id}` }),
    element("dl", {}, [
      element("dt", { text: "prompt" }), element("dd", { text: problem.prompt }),
      element("dt", { text: "right answer" }), element("dd", { text: problem.answer }),
    ]),
  ]);
  const lines = run.answers.filter((r) => r.correct[i] !== null).map((r) => [
    labelOf(run, r.method), `N = ${r.budget}`, String(r.seed),
    r.selected[i] === null ? "none" : r.selected[i],
    r.correct[i] ? { text: "right", class: "right" } : { text: "wrong", class: "wrong" },
    fixed(r.probability[i], 3), `${r.num_right[i] ?? "–"} of ${r.num_answered[i] ?? "–"}`,
  ]);
  const answers = table(["method", "budget", "seed", "selected", "graded", "probability", "right particles"], lines, [3]);
  answers.classList.add("list");
  const trees = run.trees.filter((tree) => tree.problem === problem.id);
  if (trees.length) {
    const place = element("div", { id: "tree-place" });
    const pick = choice("genealogy", trees.map((tree, k) =>
      [k, `${labelOf(run, tree.method)}, N = ${tree.budget}, seed ${tree.seed}`]),
    (value) => place.replaceChildren(treeView(trees[Number(value)])));
    place.append(treeView(trees[0]));
    made.append(pick.label, place);
  } else {
    made.append(element("p", { class: "note", text: run.trees.length
      ? "No genealogy of this problem is in this page."
      : "Genealogies are shown if texts are kept beside the rows (tsi scale --keep all)." }));
  }
  made.append(answers);
  return made;
}
