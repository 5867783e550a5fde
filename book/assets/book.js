// The widgets, their fonts and the viewer lie beside the pages, never on another host.
{
  const vendor = document.documentElement.dataset.content_root + "vendor/";
  window.require = { baseUrl: vendor, paths: { anywidget: "anywidget/index" } };
  window.__jupyter_widgets_assets_path__ = vendor + "@jupyter-widgets/html-manager/dist/";
}
// FontAwesome would otherwise rewrite what the widgets draw while they draw it.
window.FontAwesomeConfig = { observeMutations: false };
// A page opened from a file cannot read other files: search shows titles without their context.
if (location.protocol === "file:") {
  document.addEventListener("DOMContentLoaded", () => {
    DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
  });
}
