// Lets Escape close the sentence of a term, until another term is pointed at or has the focus.
document.addEventListener("keydown", event => {
  if (event.key === "Escape") document.documentElement.classList.add("terms-rest");
});
for (const kind of ["focusin", "pointerover"]) document.addEventListener(kind, event => {
  if (event.target.closest?.(".term")) document.documentElement.classList.remove("terms-rest");
});
