"use strict";
// Elements of the page. Texts enter it through textContent alone.

function element(name, options = {}, children = []) {
  const made = document.createElement(name);
  if (options.text !== undefined) made.textContent = options.text;
  if (options.class) made.className = options.class;
  if (options.id) made.id = options.id;
  for (const child of children) made.append(child);
  return made;
}

function section(id, title, note) {
  const made = element("section", { id });
  made.append(element("h2", { text: title }));
  if (note) made.append(element("p", { class: "note", text: note }));
  return made;
}

function choice(label, options, onChange) {
  const select = element("select");
  for (const [value, text] of options) {
    const option = element("option", { text });
    option.value = value;
    select.append(option);
  }
  select.addEventListener("change", () => onChange(select.value));
  const made = element("label", { text: label });
  made.append(select);
  return { label: made, select };
}

// A cell is a text, or an object with a text and a class.
function table(heads, lines, textColumns = []) {
  const cells = (line, name) =>
    line.map((cell, i) => {
      const options = cell !== null && typeof cell === "object" ? { ...cell } : { text: cell };
      if (textColumns.includes(i)) options.class = `text ${options.class || ""}`;
      return element(name, options);
    });
  const body = element("tbody");
  for (const line of lines) body.append(element("tr", {}, cells(line, "td")));
  const head = element("thead", {}, [element("tr", {}, cells(heads, "th"))]);
  return element("div", { class: "scroll" }, [element("table", {}, [head, body])]);
}

function fixed(value, digits) {
  return value === null || value === undefined ? "–" : value.toFixed(digits);
}

function points(value) {
  if (value === null) return "–";
  const text = (100 * value).toFixed(1);
  if (Number(text) === 0) return "0.0";
  return value > 0 ? `+${text}` : text.replace("-", "−");
}

function probability(value) {
  return value < 0.001 ? "< 0.001" : value.toFixed(3);
}

function unique(values) {
  return [...new Set(values)];
}
