"use strict";
// The genealogy of one kept run: a tree whose branches open by a click or by Enter.

const SVG = "http://www.w3.org/2000/svg";
const COLUMN = 190, ROW = 46, COLOURS = { selected: "#D55E00", alive: "#0072B2", dead: "#B8BCC2" };

function shape(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function shorten(text, size) {
  const line = text.replace(/\s+/g, " ").trim();
  return line.length <= size ? line : `${line.slice(0, size - 1)}…`;
}

function branchColour(node) {
  if (!node.survivors) return COLOURS.dead;
  return node.selected ? COLOURS.selected : COLOURS.alive;
}

function drawTree(tree, onChoose) {
  const columns = 1 + Math.max(...tree.nodes.map((n) => n.step));
  const rows = 1 + Math.max(...tree.nodes.map((n) => n.row));
  const width = columns * COLUMN + 150, height = rows * ROW + 20;
  const picture = shape("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group" });
  const total = tree.nodes.filter((n) => n.parent === null).reduce((sum, n) => sum + n.survivors, 0);
  const y = (node) => node.row * ROW + 26, x = (node) => node.step * COLUMN + 10;
  for (const node of [...tree.nodes].sort((a, b) => a.survivors - b.survivors)) {
    const from = node.parent === null ? "" : `M ${x(node) - 24} ${y(tree.nodes[node.parent])} L ${x(node)} ${y(node)} `;
    const right = x(node) + (node.survivors ? COLUMN - 24 : 24);
    picture.append(shape("path", {
      d: `${from}M ${x(node)} ${y(node)} L ${right} ${y(node)}`, fill: "none", stroke: branchColour(node),
      "stroke-width": 1.2 + (4 * node.survivors) / Math.max(total, 1), "stroke-linecap": "round",
    }));
  }
  tree.nodes.forEach((node, index) => {
    const group = shape("g", { class: "node", tabindex: 0, role: "button", "data-node": index });
    group.append(shape("rect", { x: x(node) - 2, y: y(node) - 21, width: COLUMN - 26, height: 38, rx: 4, fill: "transparent" }));
    const facts = [node.size > 1 ? `×${node.size}` : "", node.reward === null ? "" : `r ${node.reward.toFixed(2)}`];
    const text = node.text === null ? "" : shorten(node.text, 24);
    group.append(shape("text", { x: x(node) + 2, y: y(node) - 7, "font-size": 12, "font-family": "ui-monospace, monospace", fill: "#1b1b1f" }, text));
    group.append(shape("text", { x: x(node) + (node.text === null ? 30 : 2), y: y(node) + 14, "font-size": 11, fill: "#5f6368" }, facts.join(" ").trim()));
    if (node.ends.length) {
      const weight = node.ends.reduce((sum, end) => sum + end.weight, 0);
      const end = node.ends[0], mark = end.right === null ? "" : end.right ? " ✓" : " ✗";
      group.append(shape("text", {
        x: x(node) + COLUMN - 18, y: y(node) + 4, "font-size": 12,
        fill: end.right ? "#007a5a" : end.right === false ? "#b3261e" : "#1b1b1f",
      }, `${shorten(end.answer === null ? "no answer" : end.answer, 12)}${mark}  ${weight.toFixed(3)}`));
    }
    const open = () => {
      for (const other of picture.querySelectorAll("g.chosen")) other.classList.remove("chosen");
      group.classList.add("chosen");
      onChoose(node);
    };
    group.addEventListener("click", open);
    group.addEventListener("keydown", (event) => { if (event.key === "Enter") open(); });
    picture.append(group);
  });
  return picture;
}

function describeNode(node) {
  const list = element("dl");
  const add = (name, value) => list.append(element("dt", { text: name }), element("dd", { text: value }));
  add("step", String(node.step));
  add("equal particles", String(node.size));
  add("reward", fixed(node.reward, 3));
  add("survivors at the end", String(node.survivors));
  add("their weight", fixed(node.weight, 4));
  for (const end of node.ends) {
    const grade = end.right === null ? "not graded" : end.right ? "right" : "wrong";
    add("ends with", `${end.answer === null ? "no answer" : end.answer} (${grade}), weight ${fixed(end.weight, 4)}, reward ${fixed(end.reward, 3)}`);
  }
  const text = node.text === null ? "No particle of this branch is left at the end, and its text was not kept." : node.text;
  return element("div", { id: "node-detail" }, [list, element("pre", { text })]);
}

function treeView(tree) {
  const side = element("div", { class: "side" }, [
    element("p", { text: tree.outcome }),
    table(["answer", "weight", ""], tree.posterior.map((entry) => [
      { text: entry.answer === null ? "no answer" : entry.answer, class: "text" },
      fixed(entry.weight, 3),
      entry.right === null ? "" : entry.right ? { text: "right", class: "right" } : { text: "wrong", class: "wrong" },
    ])),
    element("p", { class: "note", text: "Vermilion branches lead to the selected answer, blue ones survive, grey ones do not. ×n: equal particles; r: their mean reward. Click on a branch for its text." }),
    element("div", { id: "node-place" }),
  ]);
  const picture = drawTree(tree, (node) => side.lastChild.replaceChildren(describeNode(node)));
  return element("div", { class: "columns" }, [element("div", { class: "tree" }, [picture]), side]);
}
