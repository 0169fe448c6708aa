// Formulas by the KaTeX beside this file, so that no request leaves the site.
document.querySelectorAll(".arithmatex").forEach((element) => {
  const display = element.tagName === "DIV";
  const source = element.textContent.trim().replace(/^\\[([]/, "").replace(/\\[)\]]$/, "");
  katex.render(source, element, { displayMode: display, throwOnError: false });
});
