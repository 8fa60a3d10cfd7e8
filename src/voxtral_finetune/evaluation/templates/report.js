"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const AT_ONCE = 50;
const SPOKEN = { d: () => "missing: ", i: () => "too many: ", s: (said) => `instead of ${said}: ` };
const SIGNS = { d: "−", i: "+", s: "≠" };
const [which, speaker, language, sort, search] = ["which", "speaker", "language", "sort", "search"].map((id) =>
  document.getElementById(id),
);

function make(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function marked(marks) {
  const line = document.createDocumentFragment();
  for (const [kind, said, heard] of marks) {
    if (line.childNodes.length) line.append(" ");
    if (kind === "=") {
      line.append(make("bdi", "", heard));
      continue;
    }
    const sign = make("span", "sign", SIGNS[kind]);
    sign.ariaHidden = "true";
    const word = make("span", `mark ${kind}`, make("span", "unseen", SPOKEN[kind](said)), sign);
    word.append(make("bdi", "", heard || said));
    if (kind === "s") {
      const instead = make("bdi", "instead", said);
      instead.ariaHidden = "true";
      word.append(" ", instead);
    }
    line.append(word);
  }
  return line;
}

function counted(row, index) {
  const [before, after] = row.errors;
  const parts = [];
  if (row.capped[index]) parts.push(make("span", "badge", "cut off"));
  if (row.errors[index]) parts.push(make("span", "badge", `${row.errors[index]} wrong`));
  if (index && after !== before) {
    const kind = after > before ? "worse" : "better";
    parts.push(make("span", `change ${kind}`, `${after > before ? "+" : "−"}${Math.abs(after - before)} ${kind}`));
  }
  return parts;
}

function line(name, content, ...after) {
  const text = make("dd", "", content, ...after);
  text.dir = "auto";
  return [make("dt", "", name), text];
}

function item(row) {
  const made = make("li");
  if (row.clip) {
    const play = make("button", "play");
    play.type = "button";
    play.dataset.source = row.clip;
    play.ariaPressed = "false";
    play.ariaLabel = `Play ${row.file}`;
    made.append(play);
  }
  const heard = ["before", "after"].map((name, index) => {
    const content = row[name].length ? marked(row[name]) : make("span", "quiet", "nothing");
    return line(index ? "After" : "Before", content, ...counted(row, index));
  });
  made.append(make("dl", "", ...line("Said", row.said || "—"), ...heard.flat()));
  const facts = make("p", "quiet", make("bdi", "", row.file));
  for (const fact of [row.speaker, row.language, row.seconds ? `${row.seconds} s` : ""].filter(Boolean))
    facts.append(" · ", make("bdi", "", fact));
  made.append(facts);
  return made;
}

const change = (row) => row.errors[1] - row.errors[0];
const FITS = {
  all: () => true,
  worse: (row) => change(row) > 0,
  better: (row) => change(row) < 0,
  wrong: (row) => row.errors[1] > 0,
  right: (row) => row.errors[1] === 0,
  capped: (row) => row.capped.includes(true),
  clip: (row) => Boolean(row.clip),
};
const ORDERS = {
  index: () => 0,
  regressions: (one, other) => change(other) - change(one),
  gains: (one, other) => change(one) - change(other),
  errors: (one, other) => other.errors[1] - one.errors[1],
  longest: (one, other) => other.seconds - one.seconds,
  shortest: (one, other) => one.seconds - other.seconds,
};
const heardText = (marks) => marks.map((mark) => mark[2]).join(" ");
const words = new Map(
  data.rows.map((row) => [
    row,
    [row.said, heardText(row.before), heardText(row.after), row.file, row.speaker, row.language].join(" ").toLowerCase(),
  ]),
);

const list = document.getElementById("rows");
const more = document.getElementById("more");
let found = [];
let drawn = 0;

function draw() {
  const next = found.slice(drawn, drawn + AT_ONCE).map(item);
  list.append(...next);
  drawn += next.length;
  more.hidden = drawn === found.length;
  document.getElementById("shown").textContent =
    `${found.length} of ${data.rows.length} utterances` + (more.hidden ? "" : `, the first ${drawn} shown`);
  return next[0];
}

function update() {
  stop();
  const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  found = data.rows
    .filter((row) => FITS[which.value](row))
    .filter((row) => (!speaker.value || row.speaker === speaker.value) && (!language.value || row.language === language.value))
    .filter((row) => wanted.every((word) => words.get(row).includes(word)))
    .sort(ORDERS[sort.value]);
  drawn = 0;
  list.replaceChildren();
  document.getElementById("none").hidden = found.length > 0;
  draw();
}

more.addEventListener("click", () => {
  const first = draw();
  first.tabIndex = -1;
  first.focus({ preventScroll: true }); // so that the next Tab goes on in what is new
});

for (const [select, name] of [[speaker, "speaker"], [language, "language"]]) {
  const names = [...new Set(data.rows.map((row) => row[name]).filter(Boolean))].sort();
  for (const each of names) select.add(new Option(each, each));
  select.parentElement.hidden = names.length < 2;
}
for (const name of ["regressions", "gains"]) {
  const rows = data[name].map((index) => item(data.rows[index]));
  document.getElementById(name).append(...(rows.length ? rows : [make("li", "quiet", "None.")]));
}
for (const select of [which, speaker, language, sort]) select.addEventListener("change", update);
search.addEventListener("input", update);
document.addEventListener("DOMContentLoaded", update); // once the player below is there
