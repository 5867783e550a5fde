// The browser's half of widgets.FrameViewer: all state is in the model, drawing is a function of it.
function render({ model, el }) {
  const box = document.createElement("div"), title = model.get("title");
  box.className = "cryonb-frames";
  box.innerHTML = `<div aria-hidden="true"></div><img><div><button type="button"></button>
    <input type="range" min="0" step="1"><span></span></div>`;
  const [heading, image, bar] = box.children, [play, slider, label] = bar.children;
  el.append(box);
  heading.textContent = title;
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", title);
  slider.setAttribute("aria-label", title + ": frame");
  image.style.width = model.get("width_px") + "px";
  image.style.imageRendering = model.get("pixelated") ? "pixelated" : "auto";
  let timer = null;
  const show = () => {
    const k = model.get("index"), frames = model.get("frames");
    image.src = "data:image/png;base64," + frames[k];
    image.alt = model.get("alt")[k];
    slider.max = frames.length - 1;
    play.hidden = slider.hidden = frames.length < 2;
    slider.value = k;
    label.textContent = model.get("labels")[k];
    slider.setAttribute("aria-valuetext", label.textContent);
  };
  const go = (k) => {
    const n = model.get("frames").length;
    model.set("index", (k + n) % n);
    model.save_changes();
    show();
  };
  const run = (wanted) => {
    clearInterval(timer);
    const next = () => go(model.get("index") + 1);
    timer = wanted ? setInterval(next, model.get("interval_ms")) : null;
    play.textContent = timer ? "\u275A\u275A" : "\u25B6";
    play.setAttribute("aria-label", (timer ? "Pause " : "Play ") + title);
    label.setAttribute("aria-live", timer ? "off" : "polite");
  };
  play.onclick = () => run(!timer);
  slider.oninput = () => { run(false); go(Number(slider.value)); };
  box.onkeydown = (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.stopPropagation();  // else JupyterLab takes the key for itself
    if (event.target === slider) return;  // a slider moves by itself
    run(false);
    go(model.get("index") + step);
    event.preventDefault();
  };
  for (const name of ["index", "frames", "labels"]) model.on("change:" + name, show);
  show();
  run(false);
  return () => {
    clearInterval(timer);
    for (const name of ["index", "frames", "labels"]) model.off("change:" + name, show);
  };
}
export default { render };
