// The slider over positions writes the field beside it; let go of with a pointer, it goes there.

import { number } from "./format.js";

for (const form of document.querySelectorAll("form[data-travel]")) {
  const slider = form.querySelector('input[type="range"]');
  const field = form.elements.at;
  const say = () => slider.setAttribute("aria-valuetext", `#${number(slider.value)}`);
  say();
  slider.addEventListener("input", () => {
    field.value = slider.value;
    say();
  });
  field.addEventListener("input", () => {
    const position = Number(field.value.replace(/[#,]/g, ""));
    if (Number.isInteger(position)) slider.value = position;
    say();
  });
  // With keys each step is a change: there Enter goes.
  slider.addEventListener("pointerup", () => form.requestSubmit());
}
