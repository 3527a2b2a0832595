// The menu of a formula offers other renderers and a reader aloud, which these pages leave out.
// Screen readers get the MathML that every formula carries.
addEventListener("load", async () => {
  if (!window.MathJax?.startup?.promise) return;
  await MathJax.startup.promise;
  const menu = MathJax.startup.document.menu?.menu;
  for (const place of [["Settings", "Renderer"], ["Accessibility"]]) menu?.findID(...place)?.disable();
});
