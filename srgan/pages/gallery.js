"use strict";
for (const card of document.querySelectorAll(".exhibit")) {
  const compare = card.querySelector(".compare");
  const images = [...compare.querySelectorAll("img")];
  const slider = compare.querySelector("input");
  slider.addEventListener("input", () => compare.style.setProperty("--cut", `${slider.value}%`));
  for (const side of ["left", "right"]) {
    const select = card.querySelector(`.choose-${side}`);
    select.value = images.find((image) => image.classList.contains(side)).dataset.name;
    select.addEventListener("change", () => {
      for (const image of images) image.classList.toggle(side, image.dataset.name === select.value);
    });
  }
}

for (const box of document.querySelectorAll(".actual")) {
  box.addEventListener("change", () => box.closest(".exhibit").classList.toggle("actual-size", box.checked));
}

const order = document.querySelector("#order");
if (order) {
  const exhibits = document.querySelector(".exhibits");
  const sort = () => {
    const name = order.value.replace(/_(.)/g, (_, letter) => letter.toUpperCase());
    const sign = Number(order.selectedOptions[0].dataset.sign);
    const value = (card) => sign * Number(card.dataset[name].replace("inf", "Infinity"));
    exhibits.append(...[...exhibits.children].sort((a, b) => value(a) - value(b)));
  };
  order.addEventListener("change", sort);
}

for (const table of document.querySelectorAll(".sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const key = (row, column) => {
    const text = row.cells[column].textContent;
    const number = Number(text.replace("inf", "Infinity"));
    return Number.isNaN(number) ? text : number;
  };
  headings.forEach((heading, column) => {
    heading.addEventListener("click", () => {
      const up = heading.getAttribute("aria-sort") !== "ascending";
      for (const other of headings) other.setAttribute("aria-sort", "none");
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
      const rows = [...body.rows].sort((a, b) => compare(key(a, column), key(b, column)) * (up ? 1 : -1));
      body.append(...rows);
    });
  });
}
