// The widgets, their fonts and the viewer lie beside the pages, never on another host.
{
  const vendor = document.documentElement.dataset.content_root + "vendor/";
  window.require = { baseUrl: vendor, paths: { anywidget: "anywidget/index" } };
  window.__jupyter_widgets_assets_path__ = vendor + "@jupyter-widgets/html-manager/dist/";
}
// FontAwesome would otherwise rewrite what the widgets draw while they draw it.
window.FontAwesomeConfig = { observeMutations: false };
{
  const each = (selector, change) => document.querySelectorAll(selector).forEach(change);
  document.addEventListener("DOMContentLoaded", () => {
    // A page opened from a file cannot read other files: search shows titles without their context.
    if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
    // What the theme leaves unsaid to a screen reader.
    each("summary", (tag) => tag.textContent.trim() || tag.setAttribute("aria-label", "Show pages"));
    each("details.hide > summary", (tag) => tag.removeAttribute("aria-label")); // it has words
    // For readers who write no code, notebooks/00_start_here.html?code=folded.
    if (new URLSearchParams(location.search).get("code") === "folded") {
      each(".cell_input", (code) => {
        if (code.closest("details")) return;
        const details = document.createElement("details");
        details.className = "hide above-input";
        details.innerHTML = "<summary>Code</summary>";
        code.replaceWith(details);
        details.append(code);
      });
    }
    each(".search-button-field", (tag) => tag.removeAttribute("aria-label"));
    each(".citation-list", (tag) => tag.removeAttribute("role"));
    each(".theme-switch-button [title]", (tag) => tag.removeAttribute("title"));
  });
  window.addEventListener("load", () => {
    // FontAwesome may have drawn the icons of that button before, each as a picture with a title.
    each(".theme-switch-button svg", (icon) => {
      icon.querySelector("title")?.remove();
      for (const name of ["role", "aria-labelledby"]) icon.removeAttribute(name);
      icon.setAttribute("aria-hidden", "true");
    });
    // What scrolls sideways can be reached, and scrolled, with the keyboard.
    const boxes = "div.math, mjx-container[display], .bd-article table, .bd-article pre";
    const reach = () => document.querySelectorAll(boxes).forEach((box) => {
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    });
    (window.MathJax?.startup?.promise ?? Promise.resolve()).then(reach);
  });
}
