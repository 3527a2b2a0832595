// Shows the rows of the scoreboard that the reader picked, and unfolds the chapters that have them.
document.addEventListener("DOMContentLoaded", () => {
  const picked = ["chapter", "kind", "verdict", "text"].map(
    name => document.getElementById("row-" + name));
  if (!picked[0]) return;
  const show = () => {
    const [number, kind, verdict, text] = picked.map(input => input.value.toLowerCase());
    document.querySelectorAll("details.claim-rows").forEach(chapter => {
      const asked = !number || parseInt(chapter.querySelector("summary").textContent) === +number;
      let found = 0;
      chapter.querySelectorAll("tbody tr").forEach(row => {
        const said = row.textContent.toLowerCase();
        const measured = row.closest("table").querySelector("th").textContent.trim() === "measured";
        const is = measured ? "measurement" : said.includes("(finding)") ? "finding" : "claim";
        const judged = measured ? "" : row.lastElementChild.querySelector("em")?.textContent;
        const shown = asked && (!kind || is === kind) && (!verdict || judged === verdict)
          && said.includes(text);
        row.hidden = !shown;
        found += shown;
      });
      chapter.hidden = !found;
      chapter.open = picked.some(input => input.value) && found > 0;
    });
  };
  picked.forEach(input => input.addEventListener("input", show));
});
