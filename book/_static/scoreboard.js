// Shows the rows of the scoreboard that the reader picked, and unfolds the chapters that have them.
document.addEventListener("DOMContentLoaded", () => {
  const kind = document.getElementById("row-kind"), text = document.getElementById("row-text");
  if (!kind) return;
  const show = () => {
    const asked = kind.value || text.value;
    document.querySelectorAll("details.claim-rows").forEach(chapter => {
      let found = 0;
      chapter.querySelectorAll("tbody tr").forEach(row => {
        const head = row.closest("table").querySelector("th").textContent.trim();
        const said = row.textContent.toLowerCase();
        const isMeasurement = head === "measured";
        const finding = said.includes("(this book)");
        const kinds = isMeasurement ? ["measurement"]
          : [finding ? "finding" : "claim", row.lastElementChild.querySelector("em")?.textContent];
        const shown = (!kind.value || kinds.includes(kind.value))
          && said.includes(text.value.toLowerCase());
        row.hidden = !shown;
        found += shown;
      });
      chapter.hidden = !found;
      chapter.open = Boolean(asked) && found > 0;
    });
  };
  kind.addEventListener("change", show);
  text.addEventListener("input", show);
});
