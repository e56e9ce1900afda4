"use strict";
// Questions, the data's answers and the model's, as they come.

const UNFOLDED_QUESTIONS = 4;
const UNFOLDED_LINES = 12;
const UNFOLDED_CHARACTERS = 1500;

function writeAnswers(data) {
  const parts = [];
  if (data.samples.length) {
    parts.push(element("h3", {}, "At the end of the run"));
    for (const sample of data.samples) {
      parts.push(element("div", { class: "question" }, ...foldText(sample.prompt),
        element("div", { class: "pair" }, writeAnswer(`${sample.mode} mode`, sample.marks, sample, ""))));
    }
  }
  if (data.pairs.rows.length) {
    const head = ["question", "chosen", "rejected", ...data.pairs.steps.map((step) => `margin, step ${shortNumber(step)}`)];
    parts.push(table(data.pairs.rows, { head, caption: "Held-out pairs, and by how much the chosen answer is ahead" }));
  }
  const tools = Object.entries(data.tools.rows);
  if (tools.length) {
    const head = ["", ...data.tools.steps.map((step) => (step === 0 ? "before training" : `step ${shortNumber(step)}`))];
    parts.push(table(tools.map(([name, shares]) => [name, ...shares]), { head, caption: "Right calls of each tool" }));
  }
  if (data.questions.length) parts.push(element("h3", {}, "Held-out questions"));
  const questions = data.questions.map(writeQuestion);
  parts.push(...questions.slice(0, UNFOLDED_QUESTIONS));
  const rest = questions.slice(UNFOLDED_QUESTIONS);
  if (rest.length) parts.push(element("details", {}, element("summary", {}, `${rest.length} more questions`), ...rest));
  if (data.num_questions > data.questions.length) {
    parts.push(element("p", { class: "note" }, `${data.num_questions - data.questions.length} questions more are in answers.jsonl.`));
  }
  return parts;
}

function writeQuestion({ prompt, reference, answers }) {
  const first = answers[0];
  const last = answers.at(-1);
  const cells = [writeAnswer("the data", [], reference, "dim"), writeAnswer(whenOf(last), last.marks, last, "")];
  if (answers.length > 1) cells.splice(1, 0, writeAnswer(whenOf(first), first.marks, first, ""));
  const between = answers.slice(1, -1).reverse();
  const more = between.length
    ? [element("details", {}, element("summary", {}, `${between.length} answers between`),
        element("div", { class: "pair" }, ...between.map((one) => writeAnswer(whenOf(one), one.marks, one, ""))))]
    : [];
  return element("div", { class: "question" }, ...foldText(prompt), element("div", { class: "pair" }, ...cells), ...more);
}

function whenOf(answer) {
  const when = answer.step === 0 ? "before training" : `step ${shortNumber(answer.step)}`;
  return `${when}, ${answer.mode} mode`;
}

function writeAnswer(head, marks, { reasoning, content }, kind) {
  const badges = marks.map((mark) => element("span", { class: `badge ${["exact", "calls right"].includes(mark) ? "good" : "note"}` }, mark));
  return element(
    "div",
    { class: kind },
    element("p", { class: "head" }, element("b", {}, head), " ", ...badges),
    ...(reasoning ? foldText(reasoning, { class: "thought" }) : []),
    ...foldText(content || "(nothing)"),
  );
}

// A model that repeats itself would push all that follows off the screen.
function foldText(text, kind = {}) {
  const lines = text.split("\n");
  const start = lines.slice(0, UNFOLDED_LINES).join("\n").slice(0, UNFOLDED_CHARACTERS);
  if (start.length === text.length) return [element("pre", kind, text)];
  const size = lines.length > UNFOLDED_LINES ? `${lines.length} lines` : `${text.length} characters`;
  return [
    element("pre", kind, `${start} …`),
    element("details", {}, element("summary", {}, `all ${size}`), element("pre", kind, text)),
  ];
}
