"use strict";
// Without this every strip is shown one below the other; with it a slider goes through them.
for (const samples of document.querySelectorAll(".samples")) {
  const strips = [...samples.querySelectorAll("li")];
  const slider = samples.querySelector(".slider");
  const input = slider.querySelector("input");
  const output = slider.querySelector("output");
  if (strips.length < 2) continue;
  const show = () => {
    strips.forEach((strip, index) => strip.classList.toggle("shown", index === Number(input.value)));
    output.textContent = strips[Number(input.value)].dataset.when;
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.addEventListener("input", show);
  slider.hidden = false;
  samples.classList.add("one");
  show();
}
