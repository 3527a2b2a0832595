// Starts each playground of a page: its controls appear, and the still picture goes.
for (const figure of document.querySelectorAll("[data-playground]")) {
  const {playground: name, weights} = figure.dataset;
  Promise.all([import(`./${name}.js`), fetch(weights).then(answer => answer.json())])
    .then(([module, stored]) => {
      figure.querySelector("template").replaceWith(figure.querySelector("template").content);
      figure.querySelector("img").remove();
      module.start(figure, stored);
      figure.dataset.ready = "";
    });
}
