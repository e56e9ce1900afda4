"use strict";
// One chart: lines with the band of what each point stands for, hover, zoom, and a legend with values.

const CHART_HEIGHT = 210;
const DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3], [4, 2], [1, 2]];
const MARKS = ["solid", "dashed", "dotted", "double", "groove", "ridge"]; // of lines, in the legend
const KEY_STEP = 0.02; // of the width, for an arrow key

class Chart {
  // page: { view, zoom(range), unzoom() }; definition: as the server lists charts.
  constructor(page, definition) {
    this.page = page;
    this.definition = definition;
    this.plot = null;
    this.lines = [];
    this.canvas = element("div", { class: "canvas" });
    this.legend = element("ul", { class: "legend" });
    this.spoken = element("p", { class: "unseen", "aria-live": "polite" });
    this.frame = element(
      "div",
      {
        class: "frame",
        tabindex: "0",
        role: "group",
        "aria-label": `${definition.title}: chart. Arrow keys read values, + and - zoom, 0 shows all.`,
        keydown: (event) => this.#takeKey(event),
        blur: () => this.#leave(),
      },
      this.canvas,
    );
    const unit = definition.unit && definition.unit !== "share" ? ` (${definition.unit})` : "";
    this.root = element(
      "figure",
      {},
      element("figcaption", {}, definition.title + unit),
      this.frame,
      this.legend,
      this.spoken,
      this.#explain(),
    );
  }

  // What the numbers of this chart mean, folded away.
  #explain() {
    const rows = this.definition.series.filter(({ meaning }) => meaning);
    if (!rows.length) return null;
    const words = rows.flatMap(({ label, meaning }) => [element("dt", {}, label), element("dd", {}, meaning)]);
    return element("details", { class: "meaning" }, element("summary", {}, "What is this?"), element("dl", {}, ...words));
  }

  // runs: [{ key, name, colour, curves, plan, state }]; those that are shown.
  show(runs) {
    this.lines = this.#collectLines(runs);
    const hasPoints = this.lines.some((line) => line.x.length);
    this.root.hidden = !hasPoints;
    if (!hasPoints) return;
    const { series, data, bands } = this.#forPlot();
    const shape = JSON.stringify([series.map((one) => [one.label, one.stroke, one.dash, one.width]), this.page.view.isLogX,
      this.page.view.isLogY, this.page.view.axis, bands]);
    if (!this.plot || shape !== this.shape) {
      this.shape = shape;
      this.#draw(series, data, bands);
    } else {
      this.plot.setData(data, false);
      this.#rescale();
    }
    this.#writeLegend(null);
  }

  #collectLines(runs) {
    const view = this.page.view;
    const lines = [];
    for (const run of runs) {
      this.definition.series.forEach(({ name, label }, index) => {
        const curve = run.curves[name];
        if (!curve || !curve.steps.length) return;
        const isAlone = runs.length === 1;
        lines.push({
          label,
          run,
          colour: isAlone ? lineColour(index) : lineColour(run.colour),
          dash: isAlone ? [] : DASHES[index % DASHES.length],
          mark: isAlone ? MARKS[0] : MARKS[index % MARKS.length],
          linesEach: curve.lines_each,
          ...placeCurve(curve, view, run),
        });
      });
      const planned = run.plan[this.definition.planned];
      const measured = lines.at(-1);
      if (planned && measured && measured.x.length) {
        lines.push({
          label: "planned",
          run,
          colour: pageColour("faint"),
          dash: [2, 4],
          mark: "dotted",
          linesEach: 1,
          isPlan: true,
          x: [measured.x[0], measured.x.at(-1)],
          mean: [planned, planned],
        });
      }
    }
    return lines;
  }

  #forPlot() {
    const weight = this.page.view.smoothing;
    const tables = [];
    const series = [{}];
    const bands = [];
    for (const line of this.lines) {
      line.drawn = line.isPlan ? line.mean : smooth(line.mean, weight);
      const isFaint = weight > 0 && !line.isPlan;
      const columns = [line.x, line.drawn];
      const shown = { label: line.label, stroke: line.colour, dash: line.dash, width: 1.7, isLine: true };
      shown.points = { show: line.x.length < 3 && !line.isPlan, size: 6, fill: line.colour };
      series.push(shown);
      line.index = series.length - 1;
      if (isFaint) {
        columns.push(line.mean);
        series.push({ label: "", stroke: faded(line.colour, 0.3), dash: line.dash, width: 1, points: { show: false } });
      }
      if (line.low) {
        columns.push(line.high, line.low);
        series.push({ label: "", stroke: "transparent", width: 0, points: { show: false } });
        series.push({ label: "", stroke: "transparent", width: 0, points: { show: false } });
        bands.push({ series: [series.length - 2, series.length - 1], fill: faded(line.colour, 0.18) });
      }
      tables.push(columns);
    }
    return { series, data: uPlot.join(tables), bands };
  }

  #draw(series, data, bands) {
    if (this.plot) this.plot.destroy();
    const view = this.page.view;
    const axis = {
      stroke: pageColour("quiet"),
      grid: { stroke: pageColour("grid"), width: 1 },
      ticks: { stroke: pageColour("grid"), width: 1 },
      font: "11px system-ui, sans-serif",
    };
    const unit = this.definition.unit === "share" ? "share" : "";
    const options = {
      width: this.#width(),
      height: CHART_HEIGHT,
      legend: { show: false },
      series,
      bands,
      scales: {
        x: { time: false, distr: view.isLogX ? 3 : 1, range: (_, min, max) => this.#rangeOfX(min, max) },
        y: { distr: view.isLogY ? 3 : 1, ...(view.isLogY ? {} : { range: rangeOfY }) },
      },
      axes: [
        { ...axis, size: 26, space: 60, values: (_, marks) => marks.map((mark) => (mark === null ? "" : shortNumber(mark))) },
        { ...axis, size: (_, marks) => axisWidth(marks), values: (_, marks) => marks.map((mark) => (mark === null ? "" : withUnit(mark, unit))) },
      ],
      cursor: {
        drag: { x: true, y: false, setScale: false },
        sync: { key: "steps", setSeries: false },
        dataIdx: (plot, index, hovered, place) => this.#indexNear(plot, index, hovered, place),
        points: { size: 7, fill: (plot, index) => plot.series[index].stroke(plot, index) },
        bind: { dblclick: () => () => this.page.unzoom() },
      },
      hooks: {
        setCursor: [(plot) => this.#writeLegend(plot)],
        setSelect: [(plot) => this.#zoomToSelection(plot)],
      },
    };
    this.plot = new uPlot(options, data, this.canvas);
    this.plot.over.classList.add("over");
    this.#followFinger();
  }

  #width() {
    return Math.max(220, this.frame.clientWidth || 340);
  }

  resize() {
    if (this.plot && !this.root.hidden) this.plot.setSize({ width: this.#width(), height: CHART_HEIGHT });
  }

  #rangeOfX(min, max) {
    const range = this.page.view.range;
    const [first, last] = range ? [range.min, range.max] : [min, max];
    if (first === null || last === null) return [1, 2];
    if (this.page.view.isLogX) return [Math.max(first, 1e-9), Math.max(last, first * 1.01, 1e-8)];
    return first === last ? [first - 1, last + 1] : [first, last];
  }

  #rescale() {
    this.plot.setScale("x", { min: this.plot.data[0][0], max: this.plot.data[0].at(-1) });
  }

  // A number that is logged now and then is read at its own nearest point.
  #indexNear(plot, seriesIndex, hovered, place) {
    if (seriesIndex === 0 || !plot.series[seriesIndex].isLine) return hovered;
    const values = plot.data[seriesIndex];
    if (values[hovered] !== null && values[hovered] !== undefined) return hovered;
    const found = nearestPoint(plot.data[0], values, place);
    return found < 0 ? hovered : found;
  }

  #zoomToSelection(plot) {
    const { left, width } = plot.select;
    if (width < 4) return;
    const range = { min: plot.posToVal(left, "x"), max: plot.posToVal(left + width, "x") };
    plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    this.page.zoom(range);
  }

  // A finger reads values as a mouse does; moving up and down still scrolls the page.
  #followFinger() {
    const read = (event) => {
      if (event.pointerType !== "touch") return;
      const box = this.plot.over.getBoundingClientRect();
      this.plot.setCursor({ left: event.clientX - box.left, top: event.clientY - box.top });
    };
    this.plot.over.addEventListener("pointerdown", read);
    this.plot.over.addEventListener("pointermove", read);
  }

  #takeKey(event) {
    if (!this.plot || event.ctrlKey || event.metaKey || event.altKey) return;
    const scale = this.plot.scales.x;
    const width = this.plot.over.clientWidth;
    const place = this.plot.cursor.left >= 0 ? this.plot.cursor.left : width;
    const center = this.plot.posToVal(place, "x");
    const move = (to) => {
      this.plot.setCursor({ left: Math.min(width, Math.max(0, to)), top: 10 });
      this.spoken.textContent = [...this.legend.children].map((item) => item.textContent).join(", ");
    };
    const zoom = (factor) => {
      const half = (factor * (scale.max - scale.min)) / 2;
      this.page.zoom({ min: center - half, max: center + half });
    };
    const actions = {
      ArrowLeft: () => move(place - KEY_STEP * width),
      ArrowRight: () => move(place + KEY_STEP * width),
      Home: () => move(0),
      End: () => move(width),
      "+": () => zoom(0.5),
      "=": () => zoom(0.5),
      "-": () => zoom(2),
      0: () => this.page.unzoom(),
      Escape: () => this.page.unzoom(),
    };
    if (!(event.key in actions)) return;
    event.preventDefault();
    actions[event.key]();
  }

  #leave() {
    this.spoken.textContent = "";
    if (this.plot) this.plot.setCursor({ left: -10, top: -10 });
  }

  // The values under the cursor, or the last ones.
  #writeLegend(plot) {
    const isHovered = plot && plot.cursor.left >= 0 && plot.cursor.idx !== null && plot.cursor.idx !== undefined;
    const place = isHovered ? plot.posToVal(plot.cursor.left, "x") : null;
    const unit = this.definition.unit === "share" ? "share" : "";
    const describe = (line) => {
      const index = isHovered ? nearestPoint(line.x, line.drawn, place) : line.drawn.length - 1;
      const band = line.low && index >= 0 && isHovered ? ` (${withUnit(line.low[index], unit)} to ${withUnit(line.high[index], unit)})` : "";
      return [element("b", {}, withUnit(index < 0 ? null : line.drawn[index], unit)), band];
    };
    const runs = [...new Set(this.lines.map((line) => line.run))];
    const items = runs.length > 1
      ? this.#writeLegendOfRuns(runs, describe)
      : this.lines.map((line) => element("li", {}, lineMark(line.colour, line.mark), `${line.label} `, ...describe(line)));
    if (isHovered) {
      const where = this.page.view.axis === "hours" ? `after ${shortNumber(place)} h` : `step ${shortNumber(Math.round(place))}`;
      items.unshift(element("li", { class: "place" }, where));
    }
    this.legend.replaceChildren(...items);
  }

  // A key to the dashes, and behind each run's colour its values in the same order.
  #writeLegendOfRuns(runs, describe) {
    const labels = new Map(this.lines.map((line) => [line.label, line.mark]));
    const keys = [...labels].map(([label, mark]) => element("span", {}, lineMark(pageColour("quiet"), mark), `${label} `));
    const values = runs.map((run) => {
      const lines = this.lines.filter((line) => line.run === run);
      const shown = lines.flatMap((line, index) => [index ? " · " : "", ...describe(line)]);
      return element("li", {}, lineMark(lines[0].colour, "solid"), `${run.name} `, ...shown);
    });
    return labels.size > 1 ? [element("li", { class: "keys" }, ...keys), ...values] : values;
  }

  // How many logged lines a point stands for, in the curve where it is most.
  linesEach() {
    return this.root.hidden ? 1 : Math.max(1, ...this.lines.map((line) => line.linesEach));
  }
}

function lineMark(colour, style) {
  const mark = element("span", { class: "key" });
  mark.style.borderTopColor = colour;
  mark.style.borderTopStyle = style;
  return mark;
}

function rangeOfY(_, min, max) {
  if (min === null || max === null) return [0, 1];
  if (min === max) return min === 0 ? [-0.1, 1] : [min - Math.abs(min) * 0.1, max + Math.abs(max) * 0.1];
  return uPlot.rangeNum(min, max, { min: { pad: 0.08, soft: 0, mode: 3 }, max: { pad: 0.08, soft: 0, mode: 3 } });
}

// Room for the marks beside a chart, of which the longest says how much, in pixels.
function axisWidth(marks) {
  return Math.max(52, 20 + 6.5 * Math.max(0, ...(marks ?? []).map((mark) => mark.length)));
}

function faded(colour, opacity) {
  const digits = Math.round(opacity * 255).toString(16).padStart(2, "0");
  return `${colour}${digits}`; // colours of the style sheet are written #rrggbb
}
