"use strict";
// How the work is shared among experts: a map of layers and experts at a step, or of one layer over time.

const MAP_STOPS = [[13, 8, 60], [90, 24, 130], [190, 55, 84], [249, 142, 8], [252, 255, 164]]; // inferno
const MOST_SHARES = 4; // equal shares at which the brightest colour begins

class ExpertMap {
  constructor() {
    this.data = null;
    this.canvas = element("canvas", { role: "img", mousemove: (event) => this.#read(event) });
    this.slider = element("input", { type: "range", min: "0", max: "0", value: "0", input: () => this.#draw() });
    this.stepWords = element("output", {});
    this.layer = select([["all", "all layers at one step"]], "all", () => this.#draw());
    this.words = element("p", { class: "note" });
    this.root = element(
      "div",
      {},
      element("div", { class: "controls" }, labelled("Show", this.layer), labelled("Moment", this.slider), this.stepWords),
      element("div", { class: "map" }, this.canvas),
      this.#writeScale(),
      this.words,
    );
  }

  show(data) {
    const isNewest = !this.data || Number(this.slider.value) === this.data.steps.length - 1;
    const isSame = this.data && this.data.num_layers === data.num_layers;
    this.data = data;
    if (!data.steps.length) return;
    this.slider.max = String(data.steps.length - 1);
    if (isNewest || !isSame) this.slider.value = this.slider.max;
    if (!isSame) {
      const layers = [...Array(data.num_layers).keys()].map((layer) => [String(layer), `layer ${layer} over time`]);
      const options = [["all", "all layers at one step"], ...layers];
      this.layer.replaceChildren(...options.map(([value, words]) => element("option", { value }, words)));
    }
    this.#draw();
  }

  // Rows of shares, and what each row is called.
  #rows() {
    const { loads, steps, kinds } = this.data;
    if (this.layer.value === "all") {
      const index = Number(this.slider.value);
      return { rows: loads[index], name: (row) => `layer ${row}`, index };
    }
    const layer = Number(this.layer.value);
    return {
      rows: loads.map((load) => load[layer]),
      name: (row) => (kinds[row] === "profile" ? "before training" : `step ${shortNumber(steps[row])}`),
      index: null,
    };
  }

  #draw() {
    if (!this.data || !this.data.steps.length) return;
    const { rows, index } = this.#rows();
    const numExperts = this.data.num_experts;
    const cell = Math.max(3, Math.min(18, Math.floor((this.root.clientWidth || 900) / numExperts)));
    const height = Math.max(6, Math.min(18, Math.floor(420 / rows.length)));
    this.canvas.width = cell * numExperts;
    this.canvas.height = height * rows.length;
    const brush = this.canvas.getContext("2d");
    rows.forEach((shares, row) => shares.forEach((share, expert) => {
      brush.fillStyle = heatColour(share * numExperts);
      brush.fillRect(expert * cell, row * height, cell - (cell > 6 ? 1 : 0), height - (height > 6 ? 1 : 0));
    }));
    this.slider.disabled = index === null;
    const kind = this.data.kinds[index ?? 0];
    this.stepWords.textContent = index === null ? "all moments, from top to bottom"
      : kind === "profile" ? "before training" : `step ${shortNumber(this.data.steps[index])}`;
    this.words.textContent = this.#summarise(rows);
    this.canvas.setAttribute("aria-label", `Load of experts. ${this.words.textContent}`);
  }

  #summarise(rows) {
    const { name } = this.#rows();
    let busiest = { load: 0, row: 0, expert: 0 };
    let numIdle = 0;
    rows.forEach((shares, row) => shares.forEach((share, expert) => {
      const load = share * this.data.num_experts;
      if (load > busiest.load) busiest = { load, row, expert };
      if (load < 0.01) numIdle += 1;
    }));
    return `Busiest: expert ${busiest.expert} in ${name(busiest.row)}, with ${shortNumber(busiest.load)} equal shares. ` +
      `Nearly idle: ${numIdle} of ${rows.length * this.data.num_experts}. Experts from left to right.`;
  }

  #read(event) {
    const { rows, name } = this.#rows();
    const box = this.canvas.getBoundingClientRect();
    const expert = Math.floor(((event.clientX - box.left) / box.width) * this.data.num_experts);
    const row = Math.floor(((event.clientY - box.top) / box.height) * rows.length);
    const share = rows[row]?.[expert];
    if (share === undefined) return;
    this.words.textContent = `${name(row)}, expert ${expert}: ${shortNumber(share * this.data.num_experts)} equal shares`;
  }

  #writeScale() {
    const marks = [0, 0.5, 1, 2, 3, 4].map((load) => {
      const patch = element("span", { class: "patch" });
      patch.style.background = heatColour(load);
      return element("li", {}, patch, load === 1 ? "1 equal share" : load === MOST_SHARES ? "4 or more" : String(load));
    });
    return element("ul", { class: "legend" }, ...marks);
  }
}

function heatColour(load) {
  const place = Math.min(1, Math.sqrt(load / MOST_SHARES)) * (MAP_STOPS.length - 1);
  const below = Math.min(Math.floor(place), MAP_STOPS.length - 2);
  const share = place - below;
  const mixed = MAP_STOPS[below].map((one, index) => Math.round(one + share * (MAP_STOPS[below + 1][index] - one)));
  return `rgb(${mixed.join(" ")})`;
}
