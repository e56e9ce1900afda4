"use strict";
// Where the numbers come from: the server of a live page, or the page itself where it is frozen.

function openSource(data) {
  return data.mode === "live" ? liveSource() : frozenSource(data);
}

function liveSource() {
  const ask = async (path, query = {}) => {
    const words = new URLSearchParams(query).toString();
    const answer = await fetch(`${path}${words ? `?${words}` : ""}`, { credentials: "same-origin" });
    if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
    return answer.json();
  };
  return {
    isLive: true,
    overview: () => ask("/api/overview"),
    curves: (run, range) => ask("/api/curves", { run, ...range }),
    experts: (run) => ask("/api/experts", { run }),
    answers: (run) => ask("/api/answers", { run }),
    rest: (run) => ask("/api/rest", { run }),
    log: (run) => ask("/api/log", { run }),
    csvLink: (run) => `/csv?${new URLSearchParams({ run })}`,
  };
}

function frozenSource(data) {
  const links = {};
  const csvLink = (run) => {
    links[run] ??= URL.createObjectURL(new Blob([writeCsv(data.curves[run])], { type: "text/csv" }));
    return links[run];
  };
  return {
    isLive: false,
    overview: async () => data.overview,
    curves: async (run) => data.curves[run],
    experts: async (run) => data.experts[run],
    answers: async (run) => data.answers[run],
    rest: async (run) => data.rest[run],
    log: async (run) => data.log[run],
    csvLink,
  };
}

// The curves as a table: a line for each step at which some number was logged.
function writeCsv(curves) {
  const names = Object.keys(curves);
  const rows = new Map();
  for (const [column, name] of names.entries()) {
    const { steps, mean } = curves[name];
    steps.forEach((step, index) => {
      if (!rows.has(step)) rows.set(step, new Array(names.length).fill(""));
      rows.get(step)[column] = mean[index] ?? "nan";
    });
  }
  const quoted = names.map((name) => `"${name.replaceAll('"', '""')}"`);
  const lines = [...rows].sort(([one], [other]) => one - other).map(([step, row]) => [step, ...row].join(","));
  return [["step", ...quoted].join(","), ...lines].join("\n") + "\n";
}
