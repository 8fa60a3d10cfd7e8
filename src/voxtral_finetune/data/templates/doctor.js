"use strict";
const rows = [...document.querySelectorAll(".rows tbody tr")];
const words = rows.map((row) => row.textContent.toLowerCase());
const kind = document.getElementById("kind");
const search = document.getElementById("search");

function filter() {
  const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  rows.forEach((row, index) => {
    const fits = !kind.value || row.dataset.kinds.split("|").includes(kind.value);
    row.hidden = !(fits && wanted.every((word) => words[index].includes(word)));
    count += !row.hidden;
  });
  document.getElementById("shown").textContent = `${count} of ${rows.length} shown`;
  document.getElementById("none").hidden = count > 0;
}

kind.addEventListener("change", filter);
search.addEventListener("input", filter);
for (const button of document.querySelectorAll("[data-kind]")) {
  button.addEventListener("click", () => {
    kind.value = button.dataset.kind;
    search.value = "";
    filter();
    const heading = document.getElementById("rows");
    heading.scrollIntoView();
    heading.focus({ preventScroll: true });
  });
}

filter();
