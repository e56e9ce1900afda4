"use strict";
// All charts of the page, and what is set for all of them: axes, smoothing, range, runs.

const BUCKETS = 500;
const RANGES = [["all", "all steps"], ["0.5", "last half"], ["0.1", "last tenth"], ["0.01", "last hundredth"], ["zoom", "as zoomed"]];

class ChartGrid {
  constructor(source, chosen) {
    this.source = source;
    this.chosen = chosen; // gives the runs to show
    this.view = { smoothing: 0, isLogX: false, isLogY: false, axis: "step", range: null };
    this.charts = new Map();
    this.grid = element("div", { class: "grid" });
    this.extra = element("div", { class: "grid" });
    this.extraFold = element("details", { toggle: () => this.redraw() }, element("summary", {}, "Other numbers"), this.extra);
    this.empty = element("p", { class: "note" }, "No step has been logged yet.");
    this.note = element("p", { class: "note" });
    this.root = element("div", {}, this.#writeControls(), this.empty, this.note, this.grid, this.extraFold);
    new ResizeObserver(() => this.#resize()).observe(this.root);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
  }

  #writeControls() {
    const smoothing = element("input", { type: "range", min: "0", max: "0.99", step: "0.01", value: "0",
      input: (event) => this.#set({ smoothing: Number(event.target.value) }) });
    this.rangeSelect = select(RANGES, "all", (value) => this.#chooseRange(value));
    return element(
      "div",
      { class: "controls" },
      labelled("Smoothing", smoothing),
      labelled("Range", this.rangeSelect),
      labelled("Against", select([["step", "steps"], ["hours", "hours"]], "step", (axis) => this.#setAxis(axis))),
      labelled("log x", checkbox(false, (isLogX) => this.#set({ isLogX })), { isBefore: false }),
      labelled("log y", checkbox(false, (isLogY) => this.#set({ isLogY })), { isBefore: false }),
      element("span", { class: "note" }, "Drag over a chart to zoom, double-click for all. Keys: arrows, + − 0."),
    );
  }

  #set(change) {
    Object.assign(this.view, change);
    this.redraw();
  }

  #setAxis(axis) {
    this.unzoom();
    this.#set({ axis });
  }

  #chooseRange(value) {
    if (value === "all") this.unzoom();
    const share = Number(value);
    if (!(share > 0)) return;
    const ends = this.chosen().map((run) => endOf(run, this.view)).filter(Number.isFinite);
    const last = Math.max(...ends);
    if (ends.length) this.#zoomTo({ min: last * (1 - share), max: last }, value);
  }

  zoom(range) {
    this.#zoomTo(range, "zoom");
  }

  #zoomTo(range, name) {
    this.view.range = range;
    this.rangeSelect.value = name;
    this.redraw();
    this.reload();
  }

  unzoom() {
    this.view.range = null;
    this.rangeSelect.value = "all";
    this.redraw();
    this.reload();
  }

  // Asks for the curves of the runs that are shown, as fine as the present range allows.
  async reload() {
    const range = this.view.axis === "step" ? this.view.range : null;
    const words = range ? { first: range.min, last: range.max, most: BUCKETS } : { most: BUCKETS };
    await Promise.all(this.chosen().map(async (run) => { run.curves = await this.source.curves(run.key, words); }));
    this.redraw();
  }

  define(definitions) {
    for (const definition of definitions) {
      const known = this.charts.get(definition.title);
      if (known && known.definition.series.length === definition.series.length) continue;
      const chart = new Chart(this, definition);
      if (known) known.root.replaceWith(chart.root);
      else (definition.is_extra ? this.extra : this.grid).append(chart.root);
      this.charts.set(definition.title, chart);
    }
    this.extraFold.hidden = !definitions.some((definition) => definition.is_extra);
  }

  redraw() {
    const runs = this.chosen().filter((run) => run.curves);
    this.empty.hidden = runs.some((run) => Object.keys(run.curves).length);
    for (const chart of this.charts.values()) {
      if (chart.definition.is_extra && !this.extraFold.open) continue;
      chart.show(runs);
    }
    const most = Math.max(1, ...[...this.charts.values()].map((chart) => chart.linesEach()));
    const words = `Where lines are many, a point is the mean of up to ${most}, and the shade reaches from the lowest to the highest.`;
    this.note.textContent = most > 1 ? `${words} Zoom in for each line.` : "";
  }

  #resize() {
    for (const chart of this.charts.values()) chart.resize();
  }
}

function endOf(run, view) {
  const time = run.curves?.time;
  if (view.axis === "hours" && time?.steps.length) return hoursAt([time.steps.at(-1)], time, run.state.started)[0];
  return run.state.step;
}
