"use strict";
// The parts of the page in words and tables.

const KINDS = { good: "✓", note: "•", warn: "!", bad: "✗" };
const PHASES = {
  starting: ["starting", "note"], running: ["running", "good"], done: ["done", "good"], stopped: ["stopped", "warn"],
  failed: ["failed", "bad"], lost: ["no sign", "bad"], unknown: ["not known to run", "note"],
};
const SILENT_SECONDS = 15;

function phaseBadge(state) {
  const [words, kind] = PHASES[state.phase];
  return element("span", { class: `badge ${kind}` }, words);
}

function writeHead(run, now) {
  const { state } = run;
  const doing = state.doing && state.doing !== "training" && state.phase === "running" ? `, ${state.doing}` : "";
  const step = state.step === null ? "no step yet" : `step ${shortNumber(state.step)}`;
  const of = state.total_steps ? ` of ${shortNumber(state.total_steps)}` : "";
  const line = element("p", { class: "state" }, phaseBadge(state), ` ${step}${of}${doing}`);
  if (state.seconds_left !== null) line.append(element("span", {}, `, ${describeDuration(state.seconds_left)} left`));
  const parts = [line];
  if (state.total_steps) {
    const share = Math.min(1, (state.step ?? 0) / state.total_steps);
    parts.push(element("progress", { value: String(share), max: "1", "aria-label": "steps done" }, `${Math.round(100 * share)} %`));
  }
  const hours = `${describeHours(state.process_hours)} ${state.is_on_gpu ? "GPU hours" : "process hours, on CPU"}`;
  const facts = [
    ["started", describeTime(state.started)],
    [isGoingOn(state) ? "last heartbeat" : "ended", isGoingOn(state) ? describeAgo(state.last_sign, now) : describeTime(state.ended)],
    ["duration", describeDuration(state.seconds) + (state.num_tries > 1 ? `, in ${state.num_tries} starts` : "")],
    ["cost", hours],
    ...run.latest,
  ];
  parts.push(element("dl", { class: "facts" }, ...facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)))));
  parts.push(element("p", { class: "note path" }, run.folder));
  return parts;
}

function isGoingOn(state) {
  return state.phase === "starting" || state.phase === "running";
}

function describeAgo(time, now) {
  if (time === null) return "none yet";
  const seconds = Math.max(0, now - time);
  return seconds < 5 ? "just now" : `${describeDuration(seconds)} ago`;
}

function writeVerdict(run) {
  if (!run.verdict.length) return [element("p", { class: "note" }, "Nothing can be said yet.")];
  const items = run.verdict.map(({ kind, about, text, command }) =>
    element("li", { class: kind }, element("span", { class: "mark", "aria-hidden": "true" }, KINDS[kind]),
      element("div", {}, element("b", {}, about), " ", ...withFlags(text), command ? element("pre", { class: "command" }, command) : null)));
  return [element("ul", { class: "verdict" }, ...items)];
}

function writeReading(run) {
  const { is_sample: isSample, share, num_lines: numLines } = run.read;
  if (!isSample) return [];
  const words = `${Math.round(100 * share)} % of the run's lines are read; until all are, ${shortNumber(numLines)} of them, at even distances, are shown.`;
  return [element("p", { class: "note", role: "status" }, words)];
}

function writeHosts(run, now) {
  if (!run.hosts.length) return [];
  const rows = run.hosts.map((host) => {
    const ago = Math.max(0, now - host.heard_at);
    const isSilent = isGoingOn(run.state) && !host.is_over && ago > SILENT_SECONDS;
    const sign = isGoingOn(run.state) && !host.is_over ? describeAgo(host.heard_at, now) : describeTime(host.heard_at);
    const words = element("span", { class: isSilent ? "badge bad" : "" }, isSilent ? `silent for ${describeDuration(ago)}` : sign);
    return [host.name, String(host.num_ranks), host.is_over ? "ended" : host.doing, host.step === null ? "–" : shortNumber(host.step), words];
  });
  return [table(rows, { head: ["host", "processes", "doing", "step", "last heartbeat"], caption: "Hosts", isTitled: false })];
}

function writeWarnings(run) {
  return run.warnings.map(({ text, count, last, advice }) =>
    element("div", { class: "warning" },
      element("p", {}, text, count > 1 ? element("span", { class: "note" }, ` (${count} times, last ${last})`) : null),
      advice ? element("p", { class: "advice" }, "What to do: ", ...withFlags(advice)) : null));
}

function writeTries(run) {
  if (run.tries.length < 2 && !run.tries.some((one) => one.words)) return [];
  const rows = run.tries.map((one, index) => [
    `start ${index + 1}`, describeTime(one.started), one.ended ? describeTime(one.ended) : "–", String(one.num_processes), one.outcome, one.words,
  ]);
  return [table(rows, { head: ["", "from", "to", "processes", "outcome", "why"], caption: "Starts by the launcher" })];
}

function writeRest(rest, others) {
  const parts = [];
  if (rest.data.length) parts.push(table(rest.data, { caption: "Data" }));
  const needles = Object.entries(rest.needles.rows);
  if (needles.length) {
    const head = ["", ...rest.needles.lengths.map((length) => `${length.toLocaleString("en")} tokens`)];
    parts.push(table(needles.map(([model, shares]) => [model, ...shares]), { head, caption: "Facts found in long texts" }));
  }
  if (rest.quarantine.length) {
    const rows = rest.quarantine.map(({ step, reason, samples }) => [`step ${shortNumber(step)}`, reason, samples.join(", ")]);
    parts.push(table(rows, { head: ["", "why", "samples"], caption: "Bad steps" }));
  }
  if (rest.starts.length) {
    const rows = rest.starts.map((one) => [one.time, one.step, one.where, one.code, one.versions]);
    parts.push(table(rows, { head: ["start", "from step", "processes", "code", "versions"], caption: "Starts" }));
  }
  parts.push(...writeSettings(rest, others));
  return parts;
}

// Settings, those first in which runs differ.
function writeSettings(rest, others) {
  const names = Object.keys(rest.settings);
  const parts = [];
  if (others.length) {
    const all = [...new Set([...names, ...others.flatMap(({ settings }) => Object.keys(settings))])];
    const columns = [rest, ...others];
    const rows = all.map((name) => [name, ...columns.map(({ settings }) => settings[name] ?? "none")])
      .filter(([, ...values]) => new Set(values).size > 1);
    if (rows.length) parts.push(table(rows, { head: ["", ...columns.map(({ name }) => name)], caption: "Settings that differ" }));
  }
  if (names.length) {
    const rows = names.map((name) => [name, rest.settings[name]]);
    parts.push(element("details", {}, element("summary", {}, "All settings"), table(rows, { caption: "Settings" })));
  }
  return parts;
}

function writeLog(lines) {
  return lines.length ? [element("pre", { class: "log", tabindex: "0", role: "group", "aria-label": "end of the log" }, lines.join("\n"))] : [];
}
