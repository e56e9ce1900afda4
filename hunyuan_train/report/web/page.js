"use strict";
// Puts the parts together, and keeps them up to date while the run goes on.

const POLL_MILLISECONDS = 2000;
const LOG_MILLISECONDS = 4000;

class Page {
  constructor(data) {
    this.source = openSource(data);
    this.runs = new Map(); // by key, in the order of the server
    this.shown = null; // keys of runs whose curves are drawn; null until the first answer
    this.chosen = null; // key of the run that the words are about
    this.seen = {}; // versions of what was fetched last, by part and run
    this.grid = new ChartGrid(this.source, () => this.#shownRuns());
    this.map = new ExpertMap();
    this.parts = {};
    this.notice = element("p", { class: "notice", role: "status", hidden: true });
    this.#build();
  }

  #build() {
    const section = (id, title, ...content) => {
      const body = element("div", {}, ...content);
      const made = element("section", { id, "aria-labelledby": `${id}-title` }, element("h2", { id: `${id}-title` }, title), body);
      this.parts[id] = { section: made, body };
      return made;
    };
    this.title = element("h1", {}, "Runs");
    this.head = element("div", { class: "head-of-run" });
    this.csv = element("p", { class: "links" });
    const sections = [
      section("runs", "Runs"), section("verdict", "Verdict"), section("hosts", "Hosts"), section("warnings", "Warnings"),
      section("curves", "Curves", this.grid.root, this.csv), section("experts", "Experts", this.map.root),
      section("answers", "Answers"), section("rest", "Data and settings"), section("log", "Log"),
    ];
    const links = Object.entries(this.parts).map(([id, { section: made }]) =>
      element("a", { href: `#${id}`, "data-part": id }, made.firstChild.textContent));
    this.nav = element("nav", { "aria-label": "parts of this page" }, ...links);
    const [runs, ...others] = sections;
    const header = element("header", {}, this.title, this.notice);
    document.getElementById("page").append(header, element("main", {}, runs, this.head, this.nav, ...others));
  }

  async start() {
    await this.#update();
    if (!this.source.isLive) return;
    setInterval(() => this.#updateLog(), LOG_MILLISECONDS);
    for (;;) {
      await new Promise((resolve) => setTimeout(resolve, POLL_MILLISECONDS));
      if (!document.hidden) await this.#update();
    }
  }

  async #update() {
    try {
      const overview = await this.source.overview();
      this.#take(overview);
      await this.#fetchWhatChanged();
      this.notice.hidden = this.source.isLive;
      if (!this.source.isLive) this.notice.textContent = `As of ${describeTime(overview.now)}.`;
    } catch (error) {
      this.notice.hidden = false;
      this.notice.textContent = `No news: ${error.message}. Is hunyuan-train watch still running?`;
      if (!(error instanceof TypeError) && !/the server answers/.test(error.message)) throw error;
    }
  }

  #take(overview) {
    const earlier = this.runs;
    this.now = overview.now;
    this.runs = new Map(overview.runs.map((run, index) => [run.key, { ...run, colour: index, curves: earlier.get(run.key)?.curves }]));
    if (!this.runs.has(this.chosen)) this.chosen = overview.runs[0]?.key ?? null;
    this.shown ??= new Set([...this.runs.keys()].slice(0, 8));
    for (const key of this.runs.keys()) if (!earlier.has(key) && earlier.size) this.shown.add(key);
    this.grid.define(overview.charts);
    this.#write();
  }

  #shownRuns() {
    return [...this.runs.values()].filter((run) => this.shown.has(run.key));
  }

  // Fetches a part of a run where its version is new; says whether it was.
  async #fetchNew(part, run, version, use) {
    const name = JSON.stringify([part, run.key]);
    const text = JSON.stringify(version);
    if (this.seen[name] === text) return;
    use(await this.source[part](run.key));
    this.seen[name] = text;
  }

  async #fetchWhatChanged() {
    const shown = this.#shownRuns();
    const versions = JSON.stringify(shown.map((run) => [run.key, run.versions.metrics]));
    if (versions !== this.seen.curves) {
      await this.grid.reload();
      this.seen.curves = versions;
    }
    const run = this.runs.get(this.chosen);
    if (!run) return;
    await this.#fetchNew("experts", run, [run.versions.loads, this.chosen], (data) => {
      this.#reveal("experts", data.steps.length > 0);
      this.map.show(data);
    });
    await this.#fetchNew("answers", run, [run.versions.answers, this.chosen], (data) =>
      this.#fill("answers", writeAnswers(data)));
    await this.#fetchRest(run);
    if (!this.seen.log) await this.#updateLog();
  }

  async #fetchRest(run) {
    const version = JSON.stringify([run.key, run.tries, run.versions.metrics[2] === null, [...this.shown]]);
    if (this.seen.rest === version) return;
    const others = await Promise.all(this.#shownRuns().filter((one) => one.key !== run.key)
      .map(async (one) => ({ ...(await this.source.rest(one.key)), name: one.name })));
    const rest = { ...(await this.source.rest(run.key)), name: run.name };
    this.#fill("rest", writeRest(rest, others));
    this.seen.rest = version;
  }

  async #updateLog() {
    if (!this.chosen || document.hidden) return;
    const box = this.parts.log.body.querySelector(".log");
    const isAtEnd = !box || box.scrollTop + box.clientHeight > box.scrollHeight - 20;
    try {
      this.#fill("log", writeLog(await this.source.log(this.chosen)));
      this.seen.log = true;
    } catch {
      return; // the overview tells of a server that is gone
    }
    const fresh = this.parts.log.body.querySelector(".log");
    if (fresh && isAtEnd) fresh.scrollTop = fresh.scrollHeight;
  }

  #fill(id, children) {
    this.#reveal(id, children.length > 0);
    refill(this.parts[id].body, children);
  }

  #reveal(id, isThere) {
    this.parts[id].section.hidden = !isThere;
    this.nav.querySelector(`[data-part="${id}"]`).hidden = !isThere;
  }

  #write() {
    const run = this.runs.get(this.chosen);
    if (!run) return;
    const names = [...this.runs.values()].map((one) => one.name);
    this.title.textContent = names.length === 1 ? `Run ${names[0]}` : `${names.length} runs`;
    const share = run.state.total_steps ? `${Math.floor((100 * (run.state.step ?? 0)) / run.state.total_steps)} % ` : "";
    document.title = names.length === 1 ? `${isGoingOn(run.state) ? share : ""}${run.name}` : this.title.textContent;
    this.#writeRuns();
    const heading = names.length > 1 ? [element("h2", {}, run.name)] : [];
    refill(this.head, [...heading, ...writeHead(run, this.now), ...writeReading(run)]);
    this.#fill("verdict", writeVerdict(run));
    this.#fill("hosts", [...writeHosts(run, this.now), ...writeTries(run)]);
    this.#fill("warnings", writeWarnings(run));
    this.#reveal("curves", true);
    this.#writeLinks();
  }

  #writeLinks() {
    const words = this.source.isLive ? "all logged lines" : "the numbers of this page";
    const links = this.#shownRuns().map((run) => {
      const text = this.runs.size > 1 ? `CSV of ${run.name}` : "CSV";
      return element("a", { href: this.source.csvLink(run.key), download: `${run.name}.csv` }, text);
    });
    refill(this.csv, links.length ? [element("span", {}, `Download ${words}: `), ...links] : []);
  }

  // With several runs: a table in which to choose what is drawn, and what the words are about.
  #writeRuns() {
    this.#reveal("runs", this.runs.size > 1);
    if (this.runs.size < 2) return;
    const focused = document.activeElement?.id;
    const rows = [...this.runs.values()].map((run) => {
      const mark = lineMark(lineColour(run.colour), "solid");
      const show = element("input", { type: "checkbox", id: `show-${run.key}`, checked: this.shown.has(run.key),
        "aria-label": `draw ${run.name}`, change: () => this.#toggle(run.key) });
      const choose = element("input", { type: "radio", name: "chosen", id: `choose-${run.key}`, checked: run.key === this.chosen,
        "aria-label": `tell of ${run.name}`, change: () => this.#choose(run.key) });
      const latest = Object.fromEntries(run.latest);
      const { state } = run;
      const step = `${shortNumber(state.step)}${state.total_steps ? ` of ${shortNumber(state.total_steps)}` : ""}`;
      return [element("span", {}, show, " ", mark, run.key), choose, phaseBadge(state), step, latest["training loss"] ?? "–",
        latest["held-out loss"] ?? "–", isGoingOn(state) ? `${describeDuration(state.seconds_left)} left` : describeDuration(state.seconds)];
    });
    const head = ["drawn", "told of", "state", "step", "loss", "held out", "time"];
    this.parts.runs.body.replaceChildren(table(rows, { head, caption: "Runs on this page", isTitled: false }));
    if (focused) document.getElementById(focused)?.focus();
  }

  #toggle(key) {
    if (this.shown.has(key)) this.shown.delete(key);
    else this.shown.add(key);
    this.#write();
    this.#fetchWhatChanged().then(() => this.grid.redraw());
  }

  #choose(key) {
    this.chosen = key;
    this.seen.log = false;
    for (const name of Object.keys(this.seen)) if (/^\["(experts|answers)"/.test(name)) delete this.seen[name];
    this.#write();
    this.#fetchWhatChanged();
  }
}

new Page(JSON.parse(document.getElementById("data").textContent)).start();
